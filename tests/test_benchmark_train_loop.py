"""Segments of the loop are paired with the bare steps after them, and its own metrics are read."""

import importlib.util
import pathlib
import sys

import jax
import pytest

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import records
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def train_loop():
    path = ROOT / "benchmarks" / "train_loop.py"
    spec = importlib.util.spec_from_file_location("benchmarks_train_loop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CountedBatches(FakeBatches):
    given = 0

    def __next__(self):
        self.given += 1
        return super().__next__()


def test_the_loop_and_bare_steps_take_turns(train_loop, tmp_path, monkeypatch):
    toy = ToyObjective()
    batches = CountedBatches(toy.batch_spec(8))
    turns = []
    run = train_loop.BareSteps.run

    def recorded(self, steps):
        turns.append((batches.given, steps))
        return run(self, steps)

    monkeypatch.setattr(train_loop.BareSteps, "run", recorded)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    tx = make_optimizer(OptimizerConfig())
    found = train_loop.compare(
        train_loop.Training(toy, tx, mesh), batches, steps=3, repeats=2, workdir=tmp_path
    )
    # One batch goes to the bare steps; then three to each segment of the loop.
    assert turns == [(1, 1), (1 + 3, 3), (1 + 6, 3), (1 + 9, 3)]
    assert min(found.values()) > 0 and found["input_wait_share"] < 1
    assert (tmp_path / "metrics.jsonl").exists()  # the usual writers are part of the loop


def test_medians_are_of_the_pairs_without_the_first(train_loop):
    segments = [(1.0, 0.9), (8.0, 0.1), (9.0, 0.2), (5.0, 0.3)]
    assert train_loop.summary(segments, [10.0, 10.0, 10.0, 5.0]) == {
        "steps_per_second": 8.0,
        "bare_steps_per_second": 10.0,
        "share_of_bare": 0.9,  # of 0.8, 0.9 and 1
        "input_wait_share": 0.2,
    }
    with pytest.raises(ValueError):  # a segment without its bare steps
        train_loop.summary(segments, [10.0])


def test_figures_name_the_idle_share_and_the_input_wait(train_loop):
    found = {"steps_per_second": 8.0, "share_of_bare": 0.9, "input_wait_share": 0.002}
    loop, wait = train_loop.figures_of(found, "scenes vlm")
    assert str(loop).endswith("8 steps/s, 90.0% of the bare steps limit; the device idles 10.0%")
    assert (wait.value, wait.unit) == (0.2, "%")
    faster = {**found, "share_of_bare": 1.01}  # noise
    assert train_loop.figures_of(faster, "scenes vlm")[0].note == "the device idles 0.0%"


@pytest.mark.slow
def test_pairs_are_written_once_and_make_batches_of_the_model(train_loop, tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop, "_PAIRS", 12)
    config = config_lib.load_config(str(ROOT / "configs" / "scenes" / "vlm.py:tiny"))
    objective = make_objective("vlm", config.model.to_dict())
    tokenizer = objective.task.tokenizer
    written = None
    for _ in range(2):
        batch = next(train_loop.batches("pairs", objective, config, 2, tmp_path))
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord")}
        assert len(times) == 4 and times == (written or times)
        written = times
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in objective.batch_spec(2).items()
    }
    (folder,) = tmp_path.iterdir()
    pairs = list(records.read_pairs(folder))
    assert len(pairs) == 12
    codes = {int(code) for pair in pairs for code in pair.image_tokens}
    assert min(codes) >= 0 and max(codes) < tokenizer.codebook_size and len(codes) > 50


def test_unknown_data_is_told_before_anything_is_measured(train_loop, monkeypatch):
    arguments = ["train_loop.py", "--config=configs/scenes/no.py", "--data=random,pears"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="--data: unknown 'pears'"):
        train_loop.main()


def test_what_the_pipeline_needs_and_is_not_installed_is_named(train_loop, monkeypatch, capsys):
    monkeypatch.setattr(train_loop, "NEEDS", ("no_such_package",))
    monkeypatch.setattr(train_loop, "write_result", lambda name, result, figures: result["data"])
    config = str(ROOT / "configs" / "scenes" / "vlm.py")
    monkeypatch.setattr(sys, "argv", ["train_loop.py", f"--config={config}", "--data=pairs"])
    train_loop.main()
    assert capsys.readouterr().out.splitlines() == [
        "skipped pairs: no_such_package not installed",
        "{}",
    ]
