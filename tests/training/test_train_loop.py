"""Tests of the whole loop: resume, signals, NaNs and the order of things, on a toy objective.

Kills, several processes and meshes are tested in tests/pod.
"""

import inspect
import io
import os
import pathlib
import signal
import types
import zipfile

import jax
import numpy as np
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.testing.toy_objective import ToyObjective, one_device_mesh
from synth2_jax.training import train_loop
from synth2_jax.training.checkpoint_reader import latest_step, restore_params
from synth2_jax.training.metrics import JsonlWriter, ProgressWriter, read_metrics
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_loop import TrainLoopConfig, train


class RecordedBatches(FakeBatches):
    """FakeBatches of the toy that keep what they gave out.

    `poison` is the index of a batch of NaNs, `stop_at` that of the draw at which a signal comes,
    `end` the number of batches.
    """

    def __init__(self, rows=8, *, poison=None, stop_at=None, number=signal.SIGTERM, end=None):
        super().__init__(ToyObjective().batch_spec(rows))
        self.given = []
        self._poison, self._stop_at, self._number, self._end = poison, stop_at, number, end

    def __next__(self):
        if len(self.given) == self._stop_at:
            signal.raise_signal(self._number)
        if len(self.given) == self._end:
            raise StopIteration
        batch = super().__next__()
        if len(self.given) == self._poison:
            batch["x"] = np.full_like(batch["x"], np.nan)
        self.last_keys = [f"example-{len(self.given)}-{i}" for i in range(len(batch["x"]))]
        self.given.append(batch)
        return batch


pytestmark = pytest.mark.usefixtures("compilation_cache")  # every run here compiles the same toy


def run(
    workdir,
    steps,
    *,
    toy=None,
    batches=None,
    checkpoint_every=3,
    log_every=1,
    writers=None,
    optimizer=None,
    **options,
):
    """(state, batches given) of a training in this process."""
    batches = RecordedBatches() if batches is None else batches
    if writers is None:
        writers = [JsonlWriter(pathlib.Path(workdir) / "metrics.jsonl")]
    config = TrainLoopConfig(
        steps=steps, log_every=log_every, eval_every=4, checkpoint_every=checkpoint_every, keep=2
    )
    section = {"weight_decay": 0.1, "warmup_steps": 3, **(optimizer or {})}
    tx = make_optimizer(OptimizerConfig(**section), 6)
    toy = toy or ToyObjective()
    state = train(toy, tx, one_device_mesh(), batches, config, workdir, writers, **options)
    return state, batches.given


def rows_of(workdir, name="loss"):
    rows = read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    return [row for row in rows if name in row]


def losses(workdir):
    return {row["step"]: row["loss"] for row in rows_of(workdir)}


class Evaluation:
    """An `evaluate` that keeps the steps at which it was called."""

    def __init__(self):
        self.steps = []

    def __call__(self, state):
        self.steps.append(int(state.step))
        return {"cider": 0.5}


def assert_bitwise_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_resumed_run_is_bitwise_the_straight_one(tmp_path):
    straight, all_batches = run(tmp_path / "straight", 7)
    _, first_batches = run(tmp_path / "resumed", 4)
    resumed, last_batches = run(tmp_path / "resumed", 7)
    assert len(first_batches) == 4 and len(last_batches) == 3
    assert_bitwise_equal(all_batches, first_batches + last_batches)
    assert_bitwise_equal(straight, resumed)
    assert losses(tmp_path / "straight") == losses(tmp_path / "resumed")
    assert len(losses(tmp_path / "straight")) == 7
    # A finished run returns its state and draws nothing.
    again, batches = run(tmp_path / "resumed", 7)
    assert batches == []
    assert_bitwise_equal(straight, again)


@pytest.mark.slow
def test_a_checkpoint_holds_its_own_step_although_the_state_was_donated(tmp_path):
    """Saving runs in the background while the next step reuses the buffers of the saved state."""
    run(tmp_path / "long", 20, checkpoint_every=1)
    for step in (19, 20):
        run(tmp_path / str(step), step)
        saved = restore_params(tmp_path / "long", step)
        assert_bitwise_equal(saved, restore_params(tmp_path / str(step), step))


@pytest.mark.slow
def test_means_are_those_of_a_straight_run_wherever_it_was_stopped(tmp_path):
    run(tmp_path / "straight", 8, log_every=4)
    for _ in range(2):  # after steps 3 and 6
        with pytest.raises(SystemExit):
            run(tmp_path / "stopped", 8, batches=RecordedBatches(stop_at=2), log_every=4)
    run(tmp_path / "stopped", 8, log_every=4)
    straight, stopped = (
        [
            [row[name] for name in ("step", "loss", "grad_norm", "learning_rate")]
            for row in rows_of(tmp_path / name)
        ]
        for name in ("straight", "stopped")
    )
    assert stopped == straight and [step for step, *_ in straight] == [4, 8]
    # Those since the last line, if each step was logged before.
    run(tmp_path / "each", 8)
    run(tmp_path / "resumed", 6)
    run(tmp_path / "resumed", 8, log_every=4)
    each, last = losses(tmp_path / "each"), rows_of(tmp_path / "resumed")[-1]
    assert last["step"] == 8 and last["loss"] == pytest.approx((each[7] + each[8]) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_every_signal_to_stop_saves_first_and_is_as_it_was_afterwards(
    tmp_path, capsys, number, code
):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, 9, batches=RecordedBatches(stop_at=4, number=number))
    assert error.value.code == code and latest_step(tmp_path) == 5
    said = f"step 5 is saved in {tmp_path / 'checkpoints'}; the same command goes on"
    _, line = capsys.readouterr().err.splitlines()  # the first is what the run trains
    assert line == f"stopped by {signal.Signals(number).name}; {said}"
    assert signal.getsignal(number) == before


def test_a_closed_pipe_saves_first_and_exits_with_141(tmp_path):
    class ClosedPipe(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    with pytest.raises(SystemExit) as error:
        run(tmp_path, 9, writers=[ProgressWriter(9, stream=ClosedPipe())])
    assert error.value.code == 141 and latest_step(tmp_path) == 1


def test_sigterm_while_evaluating_saves_and_exits_with_143(tmp_path):
    def evaluate(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"cider": 0.5}

    for stopped_at in (4, 8, 9):  # the last evaluation is after the last step
        with pytest.raises(SystemExit) as error:
            run(tmp_path, 9, evaluate=evaluate)
        assert error.value.code == 143 and latest_step(tmp_path) == stopped_at
    _, batches = run(tmp_path, 9)
    assert batches == []


@pytest.mark.parametrize(
    "rows, poison, named, good",
    [
        # The batch with the NaNs, though the next one is drawn before the loss is looked at.
        (8, 4, ", ".join(f"example-4-{i}" for i in range(8)), "step 3"),
        (16, 0, ", ".join(f"example-0-{i}" for i in range(8)) + ", ...", "none yet"),
        (8, 5, "example-5-0, ", "step 3"),  # at a step that is to be saved
    ],
)
def test_nan_names_the_batch_and_the_last_good_checkpoint_and_is_not_saved(
    tmp_path, rows, poison, named, good
):
    with pytest.raises(UserError) as error:
        run(tmp_path, 9, batches=RecordedBatches(rows, poison=poison))
    line = str(error.value)
    assert line.startswith(f"loss is nan at step {poison + 1} (batch: {named}")
    assert line.endswith(f"); last good checkpoint: {good} in {tmp_path / 'checkpoints'}")
    assert line.count("example-") == 8
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert saved == ({"3"} if good == "step 3" else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("y"), r"batch\['y'\]: found nothing, expected \(\(8, 4\), 'float32'\)"),
        (lambda b: b.update(z=b["x"]), r"batch\['z'\]: found .* expected nothing"),
        (
            lambda b: b.update(x=b["x"][:, :3]),
            r"batch\['x'\]: found \(\(8, 3\), 'float32'\), expected \(\(8, 8\), 'float32'\)",
        ),
        (lambda b: b.update(x=b["x"].astype(np.float64)), r"found .*float64.* expected .*float32"),
    ],
)
def test_the_first_batch_must_be_what_the_objective_expects(tmp_path, change, message):
    class Wrong(RecordedBatches):
        def __next__(self):
            batch = super().__next__()
            change(batch)
            return batch

    with pytest.raises(UserError, match=message):
        run(tmp_path, 2, batches=Wrong())


def test_data_that_ends_early_is_logged_evaluated_and_kept_as_any_last_step(tmp_path, caplog):
    batches, evaluate = RecordedBatches(end=5), Evaluation()
    batches.totals = {"data/real_examples": 8}
    with caplog.at_level("WARNING", logger="absl"):
        state, given = run(tmp_path, 20, batches=batches, log_every=3, evaluate=evaluate)
    assert int(state.step) == len(given) == 5 and evaluate.steps == [4, 5]
    assert "the data ends after step 5 of 20" in caplog.text
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 5]
    logged = [(row["step"], row["data/real_examples"]) for row in rows_of(tmp_path)]
    assert logged == [(3, 8), (5, 8)]
    assert [row["step"] for row in rows_of(tmp_path, "cider")] == [4, 5]
    # The same command again has nothing to train, says so, and changes nothing.
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        again, given = run(tmp_path, 20, batches=RecordedBatches(end=0), log_every=3)
    assert "the data ends after step 5 of 20, and none was left. To train further" in caplog.text
    with caplog.at_level("WARNING", logger="absl"):
        run(tmp_path, 5, batches=RecordedBatches(end=0))
    assert f"{tmp_path} has trained 5: nothing is left to do. Give more steps, or" in caplog.text
    assert given == [] and int(again.step) == 5 == latest_step(tmp_path)
    assert_bitwise_equal(again, state)


def test_data_that_ends_at_a_checkpoint_is_evaluated_after_a_kill(tmp_path):
    """The kill came after the checkpoint of the last batch, before the evaluation."""

    class Killed(Evaluation):
        def __call__(self, state):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 20, batches=RecordedBatches(end=3), log_every=9, evaluate=Killed())
    assert latest_step(tmp_path) == 3 and losses(tmp_path) == {3: losses(tmp_path).get(3)}
    evaluate = Evaluation()
    run(tmp_path, 20, batches=RecordedBatches(end=0), log_every=9, evaluate=evaluate)
    assert evaluate.steps == [3] and [row["step"] for row in rows_of(tmp_path, "cider")] == [3]


@pytest.mark.slow
def test_metrics_say_the_training_stage_and_a_run_resumes_across_its_start(tmp_path):
    two = {"schedule": "linear", "restarts": ((4, 0.5),), "warmup_steps": 0}
    straight, _ = run(tmp_path / "straight", 6, optimizer=two)
    for step in (3, 4, 5, 6):
        resumed, _ = run(tmp_path / "resumed", step, optimizer=two)
    assert_bitwise_equal(straight, resumed)
    for name in ("straight", "resumed"):
        rows = rows_of(tmp_path / name, "learning_rate")
        assert [row["training_stage"] for row in rows] == [1, 1, 1, 1, 2, 2]
        shown = [round(1e3 * row["learning_rate"], 4) for row in rows]
        assert shown == [1, 0.75, 0.5, 0.25, 0.5, 0.25]
    run(tmp_path / "one", 1)
    assert "training_stage" not in rows_of(tmp_path / "one")[0]


def test_a_damaged_position_is_passed_over_for_the_step_before(tmp_path):
    class Damaged(RecordedBatches):
        def set_state(self, state):
            if state == b"5":
                raise zipfile.BadZipFile("File is not a zip file")
            super().set_state(state)

    straight, _ = run(tmp_path / "straight", 7)
    run(tmp_path / "damaged", 5)
    state, given = run(tmp_path / "damaged", 7, batches=Damaged())
    assert len(given) == 4  # from step 3
    assert_bitwise_equal(state, straight)
    assert (tmp_path / "damaged" / "checkpoints" / "unreadable-5").is_dir()


def test_frozen_parameters_stay_and_pretrained_ones_are_used(tmp_path):
    kernel = np.arange(8 * 16, dtype=np.float32).reshape(8, 16) / 100
    toy = ToyObjective(frozen=["^encoder/"])
    state, _ = run(tmp_path, 3, toy=toy, initial_params={"encoder": {"kernel": kernel}})
    np.testing.assert_array_equal(state.params["encoder"]["kernel"], kernel)
    assert np.abs(state.params["head"]["bias"]).max() > 0


def test_metrics_say_what_was_evaluated_speed_input_wait_and_time_to_first_step(tmp_path):
    evaluate = Evaluation()
    run(tmp_path, 6, evaluate=evaluate)
    assert evaluate.steps == [4, 6]  # at its steps and after the last
    assert [row["step"] for row in rows_of(tmp_path, "cider")] == [4, 6]
    first, second, *_ = rows_of(tmp_path)
    assert first["seconds_to_first_step"] > 0
    assert second["steps_per_second"] > 0 and 0 <= second["input_wait_share"] <= 1
    assert {"loss", "grad_norm", "learning_rate"} <= second.keys()


def test_the_host_reads_a_step_only_after_dispatching_the_next(tmp_path):
    """At the draw of batch i >= 2, step i - 1 is dispatched and step i - 2 the last written."""
    written, at_draw = [], []

    def write(step, scalars):
        written.extend([step] if "loss" in scalars else [])

    class Batches(RecordedBatches):
        def __next__(self):
            at_draw.append(max(written, default=0))
            return super().__next__()

    writer = types.SimpleNamespace(write=write)
    run(tmp_path, 6, batches=Batches(), checkpoint_every=100, writers=[writer])
    assert at_draw == [0, 1, 1, 2, 3, 4]
    assert written == [1, 2, 3, 4, 5, 6]


def test_what_the_model_is_built_on_must_stay(tmp_path):
    run(tmp_path, 2, built_on={"tokenizer": "aaaa"})
    with pytest.raises(UserError, match="trained with tokenizer aaaa, this run has bbbb"):
        run(tmp_path, 3, built_on={"tokenizer": "bbbb"})
    # Older versions stored fewer settings, or none.
    run(tmp_path, 3, built_on={"tokenizer": "aaaa+code_choice=dot_product"})
    run(tmp_path, 4, built_on={"tokenizer": "aaaa+code_choice=dot_product+norm_groups=8"})
    with pytest.raises(UserError, match="with tokenizer aaaa.code_choice=dot_product.norm_groups"):
        run(tmp_path, 5, built_on={"tokenizer": "aaaa"})


def test_a_resumed_run_says_which_settings_are_other_than_before(tmp_path, caplog):
    config = {"optimizer": {"learning_rate": 0.001}, "train": {"steps": 2, "log_every": 1}}
    run(tmp_path, 2, resolved_config=config)
    run(tmp_path, 3, resolved_config={**config, "train": {"steps": 3, "log_every": 2}})
    assert "other settings" not in caplog.text
    run(tmp_path, 4, resolved_config={**config, "optimizer": {"learning_rate": 0.01}})
    assert caplog.text.count("resumes with other settings: ") == 1
    assert "settings: --config.optimizer.learning_rate=0.01 (0.001 before)\n" in caplog.text


def test_the_loop_stays_readable():
    assert len(pathlib.Path(inspect.getfile(train_loop)).read_text().splitlines()) < 200


@pytest.mark.parametrize(
    "section, message",
    [
        *(
            ({name: 0}, f"{name}: found 0, expected at least 1")
            for name in ("steps", "log_every", "checkpoint_every", "microbatches", "keep")
        ),
        ({"keep_best": -1}, "keep_best: found -1, expected at least 0"),
        ({"keep_best": 1}, "keep_best: found 1 with `best_metric`='', expected both or neither"),
        (
            {"keep_best": 1, "best_metric": "cider"},
            "keep_best: found 1, expected 0 with `eval_every",
        ),
    ],
)
def test_a_period_or_number_that_will_not_do_is_named(section, message):
    with pytest.raises((UserError, ValueError), match=f"^{message}"):
        TrainLoopConfig(**{"steps": 5, **section})
