"""The cost of a save is what its window has more, and the disk is measured with the same bytes."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from synth2_jax import sharding
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.training.checkpoints import Checkpoints
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_state import create_train_state, state_layout

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpointing():
    path = ROOT / "benchmarks" / "checkpointing.py"
    spec = importlib.util.spec_from_file_location("benchmarks_checkpointing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy():
    return ToyObjective(), make_optimizer(OptimizerConfig())


@pytest.fixture
def mesh():
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])


def test_a_save_costs_what_its_window_has_more(checkpointing):
    window, saves = 4, 3
    seconds = np.full(2 * window * saves + window + window // 2 + 1, 0.5)
    seconds[0] = 100.0  # compiles
    for save, cost in zip((8, 16, 24), (3.0, 1.0, 2.0), strict=True):
        seconds[save - 1] += cost  # what passes before batch `save` is drawn
    seconds[8] += 0.25  # the writing in the background slows the step after it down
    drawn_at = [0.0, *np.cumsum(seconds)]
    added, step = checkpointing.stall(drawn_at, window, saves)
    assert (added, step) == (2.0, 0.5)  # the median of 3.25, 1 and 2
    assert checkpointing.stall([0.5 * i for i in range(40)], window, saves) == (0.0, 0.5)


def test_the_loop_saves_in_the_middle_of_every_second_window(
    checkpointing, toy, mesh, tmp_path, monkeypatch
):
    """Time here is the number of steps that were drawn and ten for each save."""
    ticks = [0.0]
    saved_at = []
    save = Checkpoints.save

    def slow_save(self, state, *args):
        saved_at.append(int(state.step))
        ticks[0] += 10
        save(self, state, *args)

    class Clock:
        @staticmethod
        def perf_counter():
            ticks[0] += 1
            return ticks[0]

    monkeypatch.setattr(checkpointing.Checkpoints, "save", slow_save)
    monkeypatch.setattr(checkpointing, "time", Clock)
    batches = checkpointing.TimedBatches(toy[0].batch_spec(8))
    training = checkpointing.Training(*toy, mesh)
    assert checkpointing.measure_stall(training, batches, 4, 2, tmp_path) == (10.0, 1.0)
    assert saved_at == [8, 16, 23]  # the last is that of the end


def test_saves_and_restores_are_timed_beside_the_same_bytes(checkpointing, toy, mesh, tmp_path):
    objective, tx = toy
    layout = state_layout(objective, tx, mesh)
    state = create_train_state(objective, tx, layout, seed=0)
    batches = FakeBatches(objective.batch_spec(8))
    found = checkpointing.measure_disk(state, layout, batches, tmp_path, repeats=2)
    assert found["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert 0 < found["blocked_seconds"] <= found["save_seconds"]
    assert min(found[f"{name}_seconds"] for name in ("write", "read", "restore")) > 0
    assert 0 < found["checksums_seconds"] < found["restore_seconds"]
    assert found["files"] > 5 and found["bytes_on_disk"] > 0
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_plain_file_has_all_bytes_and_is_read_to_its_end(checkpointing, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "_CHUNK", 1000)
    path = tmp_path / "plain"
    assert checkpointing.write_plainly(path, 2500) > 0
    assert path.stat().st_size == 2500
    assert checkpointing.read_plainly(path) > 0
    checkpointing.drop_from_memory(tmp_path)
    contents = path.read_bytes()
    assert len(contents) == 2500 and len(set(contents)) > 100  # does not compress
