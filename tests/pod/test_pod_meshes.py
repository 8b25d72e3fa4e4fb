"""Processes whose devices share rows, by a tensor group or by parts of a batch with gaps.

Every mesh over every pod trains as one device does, also after a stop and on another mesh. Each
pod is started once and runs all of its meshes: starting costs more than twenty steps.
"""

import json

import numpy as np
import pytest

from synth2_jax.data.pair_writer import write_pairs
from synth2_jax.data.records import Pair, Provenance
from synth2_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 20
TRAIN = (
    "train",
    "--config=configs/scenes/language_model.py:tiny",
    "--config.model.language_model.num_layers=1",
    "--config.model.language_model.num_heads=4",  # tensor=4 divides them
    "--config.model.language_model.head_dim=32",
    "--config.data.source=fake",
    "--config.data.batch_size=16",
    "--config.optimizer.schedule=constant",  # whatever the number of steps
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=1000",
)
# {(processes, devices of each): meshes (data, fsdp, tensor)}
MESHES = {
    (2, 1): [(1, 1, 2), (1, 2, 1)],
    (4, 1): [(1, 1, 4), (2, 1, 2), (1, 2, 2), (1, 4, 1)],
    (2, 2): [(1, 1, 4), (1, 2, 2), (2, 2, 1)],
}
# argv: a list of command lines, JSON. Runs one after the other in this process of a pod.
RUN_ALL = """
import json, sys
from synth2_jax import main

codes = [main.main(["synth2", *argv]) for argv in json.loads(sys.argv[1])]
sys.exit(max(codes))  # waits for the others, who need process 0 to their end
"""


def mesh_flags(mesh):
    return [f"--config.mesh.{a}={n}" for a, n in zip(("data", "fsdp", "tensor"), mesh, strict=True)]


def steps(number):
    return f"--config.train.steps={number}"


def measured(workdir, *names):
    return {row["step"]: [row[n] for n in names] for row in read_metrics(workdir / "metrics.jsonl")}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-4), step


@pytest.fixture(scope="module")
def one_device(pod, tmp_path_factory):
    """{step: [loss, grad norm]} of one process with one device."""
    workdir = tmp_path_factory.mktemp("one")
    pod(1).run(*TRAIN, steps(STEPS), f"--workdir={workdir}")
    found = measured(workdir, "loss", "grad_norm")
    assert len({loss for loss, _ in found.values()}) == STEPS
    return found


@pytest.mark.parametrize("shape", MESHES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_mesh_trains_as_one_device(shape, one_device, pod, tmp_path):
    """Each trains the first half of one run, and then the second half of the run before it."""
    runs = []
    for number, mesh in enumerate(MESHES[shape]):
        next_mesh = MESHES[shape][(number + 1) % len(MESHES[shape])]
        workdir = f"--workdir={tmp_path}/{number}"
        runs.append([*TRAIN, *mesh_flags(mesh), workdir, steps(STEPS // 2)])
        runs.append([*TRAIN, *mesh_flags(next_mesh), workdir, steps(STEPS)])
    pod(*shape).run(json.dumps(runs), program=RUN_ALL, timeout=900)
    for number in range(len(MESHES[shape])):
        assert_same(measured(tmp_path / f"{number}", "loss", "grad_norm"), one_device)


# argv: FOLDERS MESHES, JSON. Prints a line of JSON for each mesh: the shard and keys of one epoch.
# Each mesh is there twice, the second time with its devices in another order, as a TPU's network
# asks for: a process then has rows with gaps between them.
READ = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh
from synth2_jax import distributed, sharding
from synth2_jax.data import pipeline

distributed.start(distributed.from_environment())
folders, meshes = map(json.loads, sys.argv[1:])
config = pipeline.DataConfig(
    mixture="both", folders=folders, rates=dict.fromkeys(folders, 1.0), num_epochs=1,
    batch_size=8, text_length=24, shuffle_buffer=16,
)
turned = np.arange(jax.device_count()).reshape(2, -1).T.reshape(-1)
for sizes, order in [(sizes, order) for sizes in meshes for order in (sorted(turned), turned)]:
    devices = np.array(jax.devices())[order].reshape(sizes)
    mesh = Mesh(devices, sharding.MESH_AXES)
    layout = sharding.data_layout(mesh)
    rows = np.arange(16).reshape(8, 2)
    placed = sharding.put_batch({"rows": rows[layout.rows(8)]}, mesh)["rows"]
    assert placed.shape == rows.shape
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
    iterator, keys = pipeline.train_iterator(config, "vlm", layout=layout), []
    for _ in iterator:
        keys += iterator.last_keys
    held_out = pipeline.eval_batches(config, "vlm", layout=layout, with_keys=True)
    seen = [key for batch in held_out for key in batch["key"][batch["valid"]].tolist()]
    print("found", json.dumps([layout.shard, keys, seen]), flush=True)
"""


def pairs(name, count):
    rng = np.random.default_rng(len(name))
    return [
        Pair(f"{name}-{i:02}", rng.integers(0, 8, 4), "a red circle", name) for i in range(count)
    ]


@pytest.mark.parametrize("shape", MESHES, ids=lambda shape: "x".join(map(str, shape)))
def test_examples_are_seen_once_an_epoch_by_the_processes_of_any_mesh(shape, pod, tmp_path):
    folders = {}
    for name, count in (("real", 24), ("synthetic", 20)):
        folders[name] = str(tmp_path / name)
        write_pairs(folders[name], pairs(name, count), Provenance("tok", 4, 8), num_shards=2)
    processes = pod(*shape).run(json.dumps(folders), json.dumps(MESHES[shape]), program=READ)
    logs = [processes.log(index) for index in range(shape[0])]
    found = [
        [json.loads(line[6:]) for line in log.splitlines() if line.startswith("found ")]
        for log in logs
    ]
    expected = None
    for of_mesh in zip(*found, strict=True):
        shards = {}
        for shard, *keys in of_mesh:  # processes of one shard read the same, in the same order
            assert shards.setdefault(shard, keys) == keys
        trained, seen = (sorted(sum(part, [])) for part in zip(*shards.values(), strict=True))
        assert len(set(trained)) == len(trained) >= 20
        assert expected in (None, trained)  # those of every mesh: the same batches
        expected = trained
        assert seen == [f"real-{i:02}" for i in range(24)] + [
            f"synthetic-{i:02}" for i in range(20)
        ]
