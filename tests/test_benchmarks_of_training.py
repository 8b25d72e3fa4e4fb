"""Benchmarks of training: the loop, its checkpoints, its start, and stops by kills."""

import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import checkpointing, start_up, train_loop
from benchmarks.kills import check_environment, commands, contents
from synth2_jax.config import load_config
from synth2_jax.data import records
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.stages import train
from synth2_jax.testing.toy_objective import ToyObjective, one_device_mesh, toy_state
from synth2_jax.training.checkpoints import Checkpoints
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer

PARTS = ["import", "build", "open", "initialize", "compile", "first step"]


@pytest.fixture(scope="module")
def toy():
    """Objective, optimizer and mesh."""
    return ToyObjective(), make_optimizer(OptimizerConfig()), one_device_mesh()


# --- the loop ---


class CountedBatches(FakeBatches):
    given = 0

    def __next__(self):
        self.given += 1
        return super().__next__()


def test_the_loop_and_bare_steps_take_turns(toy, tmp_path, monkeypatch):
    batches = CountedBatches(toy[0].batch_spec(8))
    turns = []
    run = train_loop.BareSteps.run

    def recorded(self, steps):
        turns.append((batches.given, steps))
        return run(self, steps)

    monkeypatch.setattr(train_loop.BareSteps, "run", recorded)
    training = train_loop.Training(*toy)
    found = train_loop.compare(training, batches, steps=3, repeats=2, workdir=tmp_path)
    # One batch goes to the bare steps; then three to each segment of the loop.
    assert turns == [(1, 1), (1 + 3, 3), (1 + 6, 3), (1 + 9, 3)]
    assert min(found.values()) > 0 and found["input_wait_share"] < 1
    assert (tmp_path / "metrics.jsonl").exists()  # the usual writers are part of the loop


def test_medians_are_of_the_pairs_without_the_first():
    segments = [(1.0, 0.9), (8.0, 0.1), (9.0, 0.2), (5.0, 0.3)]
    assert train_loop.summary(segments, [10.0, 10.0, 10.0, 5.0]) == {
        "steps_per_second": 8.0,
        "bare_steps_per_second": 10.0,
        "share_of_bare": 0.9,  # of 0.8, 0.9 and 1
        "input_wait_share": 0.2,
    }
    with pytest.raises(ValueError):  # a segment without its bare steps
        train_loop.summary(segments, [10.0])


def test_figures_name_the_idle_share_and_the_input_wait():
    found = {"steps_per_second": 8.0, "share_of_bare": 0.9, "input_wait_share": 0.002}
    loop, wait = train_loop.figures_of(found, "scenes vlm")
    assert str(loop).endswith("8 steps/s, 90.0% of the bare steps limit; the device idles 10.0%")
    assert (wait.value, wait.unit) == (0.2, "%")
    faster = {**found, "share_of_bare": 1.01}  # noise
    assert train_loop.figures_of(faster, "scenes vlm")[0].note == "the device idles 0.0%"


@pytest.mark.slow
def test_pairs_are_written_once_and_make_batches_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop, "_PAIRS", 12)
    config = load_config("configs/scenes/vlm.py:tiny")
    objective = train.build(config)[1]
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
    assert codes < set(range(objective.task.tokenizer.codebook_size)) and len(codes) > 50


def test_unknown_data_is_told_before_anything_is_measured(monkeypatch):
    arguments = ["train_loop.py", "--config=configs/scenes/no.py", "--data=random,pears"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="--data: unknown 'pears'"):
        train_loop.main()


def test_what_the_pipeline_needs_and_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(train_loop, "NEEDS", ("no_such_package",))
    monkeypatch.setattr(train_loop, "write_result", lambda name, result, figures: result["data"])
    monkeypatch.setattr(
        sys, "argv", ["train_loop.py", "--config=configs/scenes/vlm.py", "--data=pairs"]
    )
    train_loop.main()
    skipped = "skipped pairs: no_such_package not installed"
    assert capsys.readouterr().out.splitlines() == [skipped, "{}"]


# --- checkpoints ---


def test_a_save_costs_what_its_window_has_more():
    window, saves = 4, 3
    seconds = np.full(2 * window * saves + window + window // 2 + 1, 0.5)
    seconds[0] = 100.0  # compiles
    for save, cost in zip((8, 16, 24), (3.0, 1.0, 2.0), strict=True):
        seconds[save - 1] += cost  # what passes before batch `save` is drawn
    seconds[8] += 0.25  # the writing in the background slows the step after it down
    added, step = checkpointing.stall([0.0, *np.cumsum(seconds)], window, saves)
    assert (added, step) == (2.0, 0.5)  # the median of 3.25, 1 and 2
    assert checkpointing.stall([0.5 * i for i in range(40)], window, saves) == (0.0, 0.5)


def test_the_loop_saves_in_the_middle_of_every_second_window(toy, tmp_path, monkeypatch):
    """Time here is the number of steps that were drawn and ten for each save."""
    ticks, saved_at = [0.0], []
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
    training = checkpointing.Training(*toy)
    assert checkpointing.measure_stall(training, batches, 4, 2, tmp_path) == (10.0, 1.0)
    assert saved_at == [8, 16, 23]  # the last is that of the end


def test_saves_and_restores_are_timed_beside_the_same_bytes(toy, tmp_path):
    layout, state = toy_state()
    batches = FakeBatches(toy[0].batch_spec(8))
    found = checkpointing.measure_disk(state, layout, batches, tmp_path, repeats=2)
    assert found["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert 0 < found["blocked_seconds"] <= found["save_seconds"]
    assert min(found[f"{name}_seconds"] for name in ("write", "read", "restore")) > 0
    assert 0 < found["checksums_seconds"] < found["restore_seconds"]
    assert found["files"] > 5 and found["bytes_on_disk"] > 0
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_plain_file_has_all_bytes_and_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "_CHUNK", 1000)
    path = tmp_path / "plain"
    assert checkpointing.write_plainly(path, 2500) > 0 and path.stat().st_size == 2500
    assert checkpointing.read_plainly(path) > 0
    checkpointing.drop_from_memory(tmp_path)
    contents = path.read_bytes()
    assert len(contents) == 2500 and len(set(contents)) > 100  # does not compress


# --- the start of a process ---


@pytest.fixture
def small(tmp_path):
    """A config file whose argument names a model of Scenes."""
    file = tmp_path / "small.py"
    file.write_text("from synth2_jax.testing.tiny_configs import tiny as get_config\n")
    return str(file)


def test_the_parts_are_all_of_the_time_up_to_the_first_step(small, monkeypatch):
    monkeypatch.setattr(start_up, "make_writers", lambda *arguments: [])  # may import PyTorch
    started = time.time() - 100.0
    found = start_up.parts(load_config(f"{small}:language_model"), 4, started)
    assert list(found) == [*PARTS, "in all"] and min(found.values()) > 0
    assert found["in all"] == pytest.approx(sum(found[part] for part in PARTS))
    assert 100 < found["in all"] <= time.time() - started
    assert found["import"] == pytest.approx(100, abs=1)


def test_the_second_process_of_a_pair_finds_what_the_first_has_compiled(monkeypatch):
    seen = []

    def in_a_process(config, batch_size, cache):
        cache = pathlib.Path(cache)
        seen.append((config, batch_size, sorted(file.name for file in cache.iterdir())))
        (cache / "program").touch()
        return {"compile": float(len(seen))}

    monkeypatch.setattr(start_up, "in_a_process", in_a_process)
    found = start_up.measure("a.py", 2, repeats=3)
    assert seen == [("a.py", 2, []), ("a.py", 2, ["program"])] * 3
    assert found == {"empty": {"compile": 3.0}, "warm": {"compile": 4.0}}


def test_a_process_is_told_its_cache_and_start_and_says_why_it_fails(monkeypatch):
    given, ends = {}, (0, 'a line before\n{"compile": 1.5}\n', "")

    def run(command, env, **kwargs):
        given.update(command=command, cache=env["JAX_COMPILATION_CACHE_DIR"])
        return subprocess.CompletedProcess(command, *ends)

    monkeypatch.setattr(start_up.subprocess, "run", run)
    before = time.time()
    assert start_up.in_a_process("a.py", 2, "cache") == {"compile": 1.5}
    assert given["cache"] == "cache" and "--batch=2" in given["command"]
    started = float(given["command"][-1].removeprefix("--started="))
    assert before <= started <= time.time()
    ends = (3, "", "trace\nValueError: out of memory\n  hint\n")
    line = r"--config=a\.py: its process ended with 3: ValueError: out of memory"
    with pytest.raises(UserError, match=line):
        start_up.in_a_process("a.py", 2, "cache")


def test_figures_say_where_the_time_goes():
    seconds = {
        "empty": {"import": 2.0, "compile": 3.0, "in all": 5.0, "sampler": 4.0},
        "warm": {"import": 2.0, "compile": 1.0, "in all": 3.0, "sampler": 0.5},
    }
    empty, warm, sampler = start_up.figures_of(seconds, "scenes vlm")
    assert (empty.value, empty.unit, empty.note) == (5.0, "s", "import 2, compile 3")
    assert (warm.value, warm.note) == (3.0, "import 2, compile 1")
    assert (sampler.value, sampler.note) == (4.0, "with a warm cache 0.5 s")
    for found in seconds.values():
        del found["sampler"]  # of a model that has none
    assert len(start_up.figures_of(seconds, "scenes tokenizer")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["generator", "vlm"])
def test_a_process_of_its_own_compiles_a_sampler_too(small, tmp_path, model):
    found = start_up.in_a_process(f"{small}:{model}", 2, str(tmp_path / "cache"))
    assert list(found) == [*PARTS, "in all", "sampler"] and found["sampler"] > 0
    assert json.dumps(found)


# --- the kill campaign: each bit that must be equal counts, and no other ---


def run_folder(folder, state, loss=0.5):
    """What a training and a stage of pairs leave, at another time in another place."""
    with Checkpoints(folder / "out") as checkpoints:
        checkpoints.save(state, FakeBatches({}), {"time": str(folder)}, {})
    row = {"step": 1, "time": hash(str(folder)), "loss": loss}
    (folder / "out" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "out" / "manifest.json").write_text(json.dumps({"pairs": f"{folder}/pairs"}))
    (folder / "out" / f".shard.{folder.name}.tmp").write_text(folder.name)
    return folder


def test_what_differs_is_named_and_nothing_else(tmp_path):
    _, state = toy_state()
    expected = contents(run_folder(tmp_path / "a", state))
    assert contents(run_folder(tmp_path / "b", state)) == expected
    moments = jax.tree.map(lambda x: x + jnp.ones_like(x), state.opt_state)
    other = run_folder(tmp_path / "c", state.replace(opt_state=moments), loss=0.25)
    (other / "out" / "manifest.json").write_text("{}")
    found = contents(other)
    differs = {key for key in expected if found[key] != expected[key]}
    kinds = {key.split("[")[0] for key in differs}
    assert kinds == {"out/metrics.jsonl", "out/manifest.json", "out/checkpoints/train"}
    assert any("opt_state" in key for key in differs)
    assert expected.keys() == found.keys()


def test_each_command_comes_after_those_that_it_needs(tmp_path):
    """And the stages that users run for hours are all there."""
    seen, every = set(), commands(tmp_path)
    for name, command in every.items():
        given = " ".join(command.arguments)
        needed = {other for other in every if f"{tmp_path / other}/" in given}
        assert needed | {path.parent.name for path in command.inputs.values()} <= seen, name
        seen.add(name)
    assert {command.arguments[0] for command in every.values()} == {
        *("train", "tokenize", "captions", "synthesize", "encode_captions", "filter", "evaluate"),
        "export",
    }


def test_a_campaign_goes_on_only_as_its_programs_were_compiled(tmp_path, monkeypatch):
    check_environment(tmp_path / "environment.json")
    check_environment(tmp_path / "environment.json")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    with pytest.raises(UserError, match="environment: found .*fast_math.*, expected"):
        check_environment(tmp_path / "environment.json")
