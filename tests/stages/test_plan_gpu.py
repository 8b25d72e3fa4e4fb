"""Plans for GPUs that are not there: mistakes, and the times that were measured on a real one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from synth2_jax.config import load_config
from synth2_jax.planning import topologies
from synth2_jax.planning.chips import CHIPS, chip_of
from synth2_jax.stages import plan
from synth2_jax.testing.user_errors import raises_line

ROOT = pathlib.Path(__file__).parents[2]
MEASURED = ROOT / "benchmarks" / "results" / "1_x_NVIDIA_H200"
SAMPLE = """
import ml_collections

def get_config():
    sections = {"sampler": {"num_steps": STEPS}, "guidance": {"scale": 3.0}}
    return ml_collections.ConfigDict({"generator": "", "captions": "", **sections})
"""


@pytest.mark.parametrize("name", ["h200:3", "h200:16", "h200:2x2", "h200:", "a100:x"])
def test_a_machine_has_up_to_eight_cards(name):
    kind = name.partition(":")[0]
    line = f"--topology={name}: expected 1, 2, 4 or 8 cards of one machine as in {kind}:8"
    with raises_line(line):
        chip_of(name)
    assert chip_of("h200") == (CHIPS["h200"], "") and chip_of("h200:8") == (CHIPS["h200"], "8")


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "--topology=h200: found no compiler for GPUs; install the compiler for GPUs by `pip"),
        ({"slices": 2}, "--slices: found 2, expected 1 for GPUs"),
    ],
)
def test_what_cannot_be_planned_here(tmp_path, monkeypatch, options, message):
    def none(**options):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", none)
    with raises_line(message):
        plan.run(load_config("configs/scenes/vlm.py:tiny"), str(tmp_path), "h200", **options)


AS_MEASURED = """
import sys

from synth2_jax import main
from synth2_jax.layers import stack

stack._unroll = lambda num_layers, *stacks: 1
sys.exit(main.main(["synth2", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("share, usable", [(None, 0.75 * 79), ("0.9", 0.9 * 79), ("all", None)])
def test_jax_takes_a_share_of_a_cards_memory(monkeypatch, share, usable):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    if share:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
    if usable:
        assert CHIPS["h100"].usable_bytes == pytest.approx(usable * 2**30)
    else:
        with raises_line(
            "XLA_PYTHON_CLIENT_MEM_FRACTION: found 'all', expected a share such as 0.75"
        ):
            CHIPS["h100"].usable_bytes  # noqa: B018
    assert CHIPS["v5e"].usable_bytes == CHIPS["v5e"].hbm_bytes


def planned(tmp_path, *arguments, program=("-m", "synth2_jax.main")):
    """`synth2 plan` where the compiler is; JAX finds it by a path of its own process."""
    compilers = [str(path) for path in (ROOT / ".venv").glob("jax-cuda13-plugin-*")]
    assert compilers, "launch/test.sh has not put the compiler for GPUs there"
    command = [sys.executable, *program, "plan", "--name=x", *arguments]
    command += [f"--workdir={tmp_path}"]
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), *compilers]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
    return done, [json.loads(path.read_text()) for path in tmp_path.glob("x-*.json")]


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["h200", "h100:2", "a100"])
def test_a_training_step_for_every_card(tmp_path, topology):
    number = int(topology.partition(":")[2] or 1)
    arguments = [f"--topology={topology}", f"--mesh=fsdp={number}", "--batch=8"]
    done, (found,) = planned(tmp_path, "--config=configs/scenes/vlm.py:tiny", *arguments)
    assert (found["chips"], found["unknown_loops"]) == (number, 0)
    assert 0.98 < found["flops_ratio"] < 1.1
    assert found["estimate"]["seconds"] >= found["estimate"]["at_best"] > 0
    assert (found["collective_bytes_per_chip"] > 0) == (number > 1)
    assert "estimate by the compiler's schedule, no measurement" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, batch, share, message",
    [
        ("scenes/vlm.py:tiny", 8, "0.0001", "does not fit a chip's memory: a batch of 8 needs 0."),
        ("paper/vlm.py", 512, "0.75", "a batch of 512: the compiler for GPUs gives up without a"),
    ],
)
def test_what_cannot_be_compiled_is_told(tmp_path, monkeypatch, config, batch, share, message):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
    arguments = ["--topology=h100", "--mesh=data=1", f"--batch={batch}"]
    done, found = planned(tmp_path, f"--config=configs/{config}", *arguments)
    assert done.returncode == 2 and not found
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("synth2: ")]
    assert f"synth2: plan: {message}" in line


@pytest.mark.slow
@pytest.mark.parametrize("what, batch", [("vlm", 128), ("sampler 8", 64), ("sampler 24", 64)])
def test_the_time_is_that_of_a_real_card(tmp_path, what, batch):
    """Within 10 %, of what was measured: scans, where layers are unrolled today.

    The generator's step has changed since: see benchmarks/NOTES.md.
    """
    model, _, steps = what.partition(" ")
    arguments = ["--topology=h200", "--mesh=data=1", f"--batch={batch}"]
    if steps:
        (tmp_path / "sample.py").write_text(SAMPLE.replace("STEPS", steps))
        arguments += ["--config=configs/paper/generator.py", f"--sample={tmp_path}/sample.py"]
        results = json.loads((MEASURED / "parallel_decoding_paper_generator.json").read_text())
        (seconds,) = (r["seconds"] for r in results["rows"] if r["num_steps"] == int(steps))
    else:
        arguments += [f"--config=configs/paper/{model}.py"]
        results = json.loads((MEASURED / f"train_step_paper_{model}.json").read_text())
        seconds = results["seconds_per_step"]
    assert results["batch_size"] == batch
    _, (found,) = planned(tmp_path, *arguments, program=("-c", AS_MEASURED))
    assert found["estimate"]["seconds"] == pytest.approx(seconds, rel=0.1)
