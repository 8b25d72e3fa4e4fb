"""A training step on eight devices: the same losses as on one, and only weights are gathered."""

import json
import os
import subprocess
import sys

import pytest

# Prints {"losses": {run: [...]}, "gathered": {run: [shapes]}, "whole": [...]} of one model, where a
# run is a mesh and a number of microbatches.
PROGRAM = """
import json, re, sys
import jax, numpy as np
from synth2_jax import sharding
from synth2_jax.config import load_config, override
from synth2_jax.sharding import MeshConfig
from synth2_jax.stages import train
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.training import train_state
from synth2_jax.training.metrics import mean
from synth2_jax.training.optimizer import make_optimizer
from synth2_jax.training.train_step import compile_train_step

ROWS = 40  # no width of the models is 40, nor 40 / 8
name, *adapted = sys.argv[1].split()
config = load_config(f"configs/scenes/{name}.py:tiny")
for part in {"generator": ("generator.text_encoder", "generator.maskgit"),
             "vlm": ("vlm.language_model", "vlm.resampler")}[name]:
    override(config, f"model.{part}.scan_layers", "true")
if adapted:
    override(config, "model.vlm.lora.rank", "8")
    override(config, "optimizer.groups", "({'pattern': '_lora_', 'clip_norm': 0.1},)")
cfg, objective = train.build(config)
tx = make_optimizer(cfg.optimizer, cfg.train.steps)
found = {"losses": {}, "gathered": {}, "whole": []}
runs = [(sizes, 1) for sizes in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2))]
runs += [(sizes, 5) for sizes in ((1, 1, 1), (8, 1, 1), (1, 8, 1))]
for sizes, microbatches in runs:
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(MeshConfig(*sizes), devices)
    layout = train_state.state_layout(objective, tx, mesh, with_average=True)
    state = train_state.create_train_state(objective, tx, layout, seed=0)
    expected = train_state.flatten(layout.params)
    averages = train_state.flatten(state.average)
    for path, leaf in [*train_state.flatten(state.params).items(), *averages.items()]:
        where = expected[path].sharding
        held = [shard.data.shape for shard in leaf.addressable_shards]
        if leaf.sharding != where or set(held) != {where.shard_shape(leaf.shape)}:
            found["whole"].append(f"{sizes} {path}")
    settings = {"microbatches": microbatches, "ema_decay": 0.9}
    step = compile_train_step(objective, tx, layout, mesh, **settings)
    batches = FakeBatches(objective.batch_spec(ROWS), seed=1)
    batch = sharding.put_batch(next(batches), mesh)
    step = step.lower(state, batch).compile()
    gathers = r"= \\(?\\w+\\[([0-9,]+)\\][^=]* all-gather(?:-start)?\\("
    shapes = re.findall(gathers, step.as_text())
    run = f"{sizes} {microbatches}"
    found["gathered"][run] = [[int(n) for n in s.split(",")] for s in shapes]
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(mean(metrics["loss"])))
        batch = sharding.put_batch(next(batches), mesh)
    found["losses"][run] = losses
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["generator", "vlm", "vlm lora"])
def found(request):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, request.param],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        check=True,
        capture_output=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_mesh_gives_the_losses_of_one_device_and_gathers_weights_only(found):
    for microbatches, meshes in (("1", 4), ("5", 3)):
        runs = {run: ran for run, ran in found["losses"].items() if run.endswith(microbatches)}
        one = runs[f"(1, 1, 1) {microbatches}"]
        assert len(set(one)) == len(one) and len(runs) == meshes
        for run, losses in runs.items():
            assert losses == pytest.approx(one, rel=1e-4), run
    assert found["whole"] == []  # every parameter, and its average, is created in parts
    # An array that has the whole batch as a dimension was gathered from its rows.
    assert found["gathered"]["(1, 8, 1) 1"], "weights are gathered over fsdp"
    for run in ("(8, 1, 1) 1", "(1, 8, 1) 1", "(8, 1, 1) 5", "(1, 8, 1) 5"):
        ids = [[40, 16], [40, 16, 1], [40, 26], [40, 26, 1]]  # a few bytes, to look vectors up by
        rows = [shape for shape in found["gathered"][run] if 40 in shape and shape not in ids]
        assert rows == [], run
