"""Tests of the whole loop: resume, kills, signals, NaNs and meshes, on a toy objective."""

import inspect
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest

from synth2_jax import sharding
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.fingerprint import fingerprint
from synth2_jax.sharding import MeshConfig
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.training import train_loop
from synth2_jax.training.checkpoint_reader import latest_step, restore_params
from synth2_jax.training.metrics import JsonlWriter, ProgressWriter, read_metrics
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_loop import TrainLoopConfig, train

# A run in a process of its own: argv is WORKDIR STEPS SECONDS_A_BATCH MESH_JSON.
RUN = """
import json, os, sys, time
from synth2_jax import sharding
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.fingerprint import fingerprint
from synth2_jax.training.metrics import JsonlWriter
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_loop import TrainLoopConfig, train

workdir, steps, pause, mesh = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

class Slow(FakeBatches):
    def __next__(self):
        time.sleep(pause)
        return super().__next__()

toy = ToyObjective()
state = train(
    toy,
    make_optimizer(OptimizerConfig(weight_decay=0.1, warmup_steps=3)),
    sharding.make_mesh(sharding.MeshConfig(**json.loads(mesh))),
    Slow(toy.batch_spec(8)),
    TrainLoopConfig(steps=steps, log_every=1, checkpoint_every=3),
    workdir,
    [JsonlWriter(os.path.join(workdir, "metrics.jsonl"))],
)
print(fingerprint(state.params))
"""


class RecordedBatches(FakeBatches):
    """FakeBatches that keep what they gave out; `poison` is an index of NaNs."""

    def __init__(self, *args, poison=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.given = []
        self._poison = poison

    def __next__(self):
        batch = super().__next__()
        if len(self.given) == self._poison:
            batch["x"] = np.full_like(batch["x"], np.nan)
        self.last_keys = [f"example-{len(self.given)}-{i}" for i in range(len(batch["x"]))]
        self.given.append(batch)
        return batch


pytestmark = pytest.mark.usefixtures("compilation_cache")  # every run here compiles the same toy


def one_device_mesh():
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def run(
    workdir,
    steps,
    *,
    toy=None,
    batches=None,
    checkpoint_every=3,
    log_every=1,
    writers=None,
    **kwargs,
):
    toy = toy or ToyObjective()
    if batches is None:
        batches = RecordedBatches(toy.batch_spec(8))
    if writers is None:
        writers = [JsonlWriter(pathlib.Path(workdir) / "metrics.jsonl")]
    config = TrainLoopConfig(
        steps=steps, log_every=log_every, eval_every=4, checkpoint_every=checkpoint_every, keep=2
    )
    tx = make_optimizer(OptimizerConfig(weight_decay=0.1, warmup_steps=3))
    state = train(toy, tx, one_device_mesh(), batches, config, workdir, writers, **kwargs)
    return state, batches.given


def losses(workdir):
    lines = read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines}


def start(workdir, steps, pause=0.0, mesh="{}", devices=1):
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", RUN, str(workdir), str(steps), str(pause), mesh]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_metrics(process, workdir, step):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


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


@pytest.mark.slow
def test_a_checkpoint_holds_its_own_step_although_the_state_was_donated(tmp_path):
    """Saving runs in the background while the next step reuses the buffers of the saved state."""
    run(tmp_path / "long", 20, checkpoint_every=1)
    for step in (19, 20):
        run(tmp_path / str(step), step)
        saved = restore_params(tmp_path / "long", step)[0]
        assert_bitwise_equal(saved, restore_params(tmp_path / str(step), step)[0])


def test_means_after_a_resume_are_of_the_steps_since_then(tmp_path):
    run(tmp_path / "straight", 8)
    run(tmp_path / "resumed", 6)
    run(tmp_path / "resumed", 8, log_every=4)
    each, last = losses(tmp_path / "straight"), read_metrics(tmp_path / "resumed/metrics.jsonl")[-1]
    assert last["step"] == 8 and last["loss"] == pytest.approx((each[7] + each[8]) / 2, rel=1e-6)


class Stopping(RecordedBatches):
    """Batches during which, at the draw of number `stop_at`, a signal comes."""

    def __init__(self, *args, stop_at, number=signal.SIGTERM):
        super().__init__(*args)
        self._stop_at, self._number = stop_at, number

    def __next__(self):
        if len(self.given) == self._stop_at:
            signal.raise_signal(self._number)
        return super().__next__()


def test_means_are_those_of_a_straight_run_wherever_it_was_stopped(tmp_path):
    toy = ToyObjective()
    spec = toy.batch_spec(8)
    run(tmp_path / "straight", 8, toy=toy, log_every=4)
    for _ in range(2):  # after steps 3 and 6
        with pytest.raises(SystemExit):
            run(tmp_path / "stopped", 8, toy=toy, batches=Stopping(spec, stop_at=2), log_every=4)
    run(tmp_path / "stopped", 8, toy=toy, log_every=4)
    exact = ("loss", "grad_norm", "learning_rate")
    straight, stopped = (
        [(row["step"], *(row[name] for name in exact)) for row in rows if "loss" in row]
        for rows in (
            read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "stopped")
        )
    )
    assert stopped == straight and [step for step, *_ in straight] == [4, 8]


def test_a_finished_run_returns_its_state_and_draws_nothing(tmp_path):
    done, _ = run(tmp_path, 3)
    again, batches = run(tmp_path, 3)
    assert batches == []
    assert_bitwise_equal(done, again)


@pytest.mark.slow
def test_kill_9_and_run_again_is_the_straight_run(tmp_path):
    straight = start(tmp_path / "straight", 12)
    killed = start(tmp_path / "killed", 12, pause=0.05)
    wait_for_metrics(killed, tmp_path / "killed", 7)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert latest_step(tmp_path / "killed") in (3, 6, 9)
    again = start(tmp_path / "killed", 12)
    expected, found = straight.communicate()[0], again.communicate()[0]
    assert straight.returncode == again.returncode == 0
    assert expected == found and len(expected.strip()) == 16
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")


def test_sigterm_saves_and_exits_with_143(tmp_path):
    process = start(tmp_path, 10_000, pause=0.02)
    wait_for_metrics(process, tmp_path, 4)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    lines = read_metrics(tmp_path / "metrics.jsonl")
    step = latest_step(tmp_path)
    assert step == lines[-1]["step"] >= 4
    said = f"step {step} is saved in {tmp_path / 'checkpoints'}; the same command goes on"
    assert errors.decode().splitlines()[-1] == f"stopped by SIGTERM; {said}"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_every_signal_to_stop_saves_first(tmp_path, number, code):
    toy = ToyObjective()
    batches = Stopping(toy.batch_spec(8), stop_at=4, number=number)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, 9, toy=toy, batches=batches)
    assert error.value.code == code and latest_step(tmp_path) == 5


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


def test_after_training_sigterm_is_as_it_was(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, 1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nan_names_the_step_the_batch_and_the_last_good_checkpoint(tmp_path):
    toy = ToyObjective()
    batches = RecordedBatches(toy.batch_spec(8), poison=4)
    with pytest.raises(UserError) as error:
        run(tmp_path, 9, toy=toy, batches=batches)
    # Those of the batch with the NaNs, though the next one is drawn before the loss is looked at.
    keys = ", ".join(f"example-4-{i}" for i in range(8))
    assert str(error.value) == (
        f"loss is nan at step 5 (batch: {keys}); last good checkpoint: step 3 in "
        f"{tmp_path / 'checkpoints'}"
    )


def test_nan_before_any_checkpoint_and_in_a_batch_of_many(tmp_path):
    toy = ToyObjective()
    with pytest.raises(UserError) as error:
        run(tmp_path, 9, toy=toy, batches=RecordedBatches(toy.batch_spec(16), poison=0))
    assert "example-0-7, ...); last good checkpoint: none yet in" in str(error.value)
    assert "example-0-8" not in str(error.value)


def test_nan_at_a_checkpoint_step_is_not_saved(tmp_path):
    toy = ToyObjective()
    with pytest.raises(UserError, match="at step 6 .* last good checkpoint: step 3 in"):
        run(tmp_path, 9, toy=toy, batches=RecordedBatches(toy.batch_spec(8), poison=5))
    assert latest_step(tmp_path) == 3


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
    class Wrong(FakeBatches):
        given = ()

        def __next__(self):
            batch = super().__next__()
            change(batch)
            return batch

    toy = ToyObjective()
    with pytest.raises(UserError, match=message):
        run(tmp_path, 2, toy=toy, batches=Wrong(toy.batch_spec(8)))


def test_a_run_ends_with_its_data(tmp_path, caplog):
    class Five(RecordedBatches):
        totals = {"data/real_examples": 8}

        def __next__(self):
            if len(self.given) == 5:
                raise StopIteration
            return super().__next__()

    toy = ToyObjective()
    with caplog.at_level("WARNING", logger="absl"):
        state, given = run(tmp_path, 20, toy=toy, batches=Five(toy.batch_spec(8)))
    assert int(state.step) == len(given) == 5
    assert "the data ends after step 5 of 20" in caplog.text
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 5]
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["data/real_examples"] for line in logged if "loss" in line] == [8] * 5


def test_data_that_ends_early_is_logged_evaluated_and_kept_as_any_last_step(tmp_path):
    class Five(RecordedBatches):
        def __next__(self):
            if len(self.given) == 5:
                raise StopIteration
            return super().__next__()

    toy, seen = ToyObjective(), []

    def evaluate(state):
        seen.append(int(state.step))
        return {"cider": 0.5}

    run(tmp_path, 20, toy=toy, batches=Five(toy.batch_spec(8)), log_every=3, evaluate=evaluate)
    assert seen == [4, 5]
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in logged if "loss" in line] == [3, 5]
    assert [line["step"] for line in logged if "cider" in line] == [4, 5]


def test_a_damaged_position_is_passed_over_for_the_step_before(tmp_path):
    class Damaged(RecordedBatches):
        def set_state(self, state):
            if state == b"5":
                raise zipfile.BadZipFile("File is not a zip file")
            super().set_state(state)

    straight, _ = run(tmp_path / "straight", 7)
    run(tmp_path / "damaged", 5)
    toy = ToyObjective()
    state, given = run(tmp_path / "damaged", 7, toy=toy, batches=Damaged(toy.batch_spec(8)))
    assert len(given) == 4  # from step 3
    assert_bitwise_equal(state, straight)
    assert (tmp_path / "damaged" / "checkpoints" / "unreadable-5").is_dir()


def test_frozen_parameters_stay_and_pretrained_ones_are_used(tmp_path):
    kernel = np.arange(8 * 16, dtype=np.float32).reshape(8, 16) / 100
    toy = ToyObjective(frozen=["^encoder/"])
    state, _ = run(tmp_path, 3, toy=toy, initial_params={"encoder": {"kernel": kernel}})
    np.testing.assert_array_equal(state.params["encoder"]["kernel"], kernel)
    assert np.abs(state.params["head"]["bias"]).max() > 0


def test_evaluate_runs_at_its_steps_and_after_the_last(tmp_path):
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        return {"cider": 0.5}

    run(tmp_path, 6, evaluate=evaluate)
    assert seen == [4, 6]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("cider") == 0.5] == [4, 6]


def test_metrics_say_speed_input_wait_and_time_to_first_step(tmp_path):
    run(tmp_path, 3)
    first, second, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert first["seconds_to_first_step"] > 0
    assert second["steps_per_second"] > 0 and 0 <= second["input_wait_share"] <= 1
    assert {"loss", "grad_norm", "learning_rate"} <= second.keys()


def test_the_host_reads_a_step_only_after_dispatching_the_next(tmp_path):
    """At the draw of batch i >= 2, step i - 1 is dispatched and step i - 2 the last written."""
    written, at_draw = [], []

    class Writer:
        def write(self, step, scalars):
            if "loss" in scalars:
                written.append(step)

        def close(self):
            pass

    class Batches(RecordedBatches):
        def __next__(self):
            at_draw.append(max(written, default=0))
            return super().__next__()

    toy = ToyObjective()
    batches = Batches(toy.batch_spec(8))
    run(tmp_path, 6, toy=toy, batches=batches, checkpoint_every=100, writers=[Writer()])
    assert at_draw == [0, 1, 1, 2, 3, 4]
    assert written == [1, 2, 3, 4, 5, 6]


def test_other_fingerprints_are_refused(tmp_path):
    run(tmp_path, 2, built_on={"tokenizer": "aaaa"})
    with pytest.raises(UserError, match="trained with tokenizer aaaa, this run has bbbb"):
        run(tmp_path, 3, built_on={"tokenizer": "bbbb"})


def test_a_run_of_an_older_version_resumes_without_settings_in_its_fingerprint(tmp_path):
    run(tmp_path, 2, built_on={"tokenizer": "aaaa"})
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


@pytest.mark.slow
def test_eight_devices_train_as_one_and_their_checkpoint_opens_on_one(tmp_path):
    one = start(tmp_path / "one", 6)
    eight = start(tmp_path / "eight", 6, mesh='{"data": 2, "fsdp": 2, "tensor": 2}', devices=8)
    for process in (one, eight):
        output = process.communicate()
        assert process.returncode == 0, output
    on_eight, on_one = restore_params(tmp_path / "eight")[0], restore_params(tmp_path / "one")[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), on_eight, on_one)
    for step, loss in losses(tmp_path / "one").items():
        assert abs(losses(tmp_path / "eight")[step] - loss) < 1e-5
    # And training goes on from it, here on one device.
    toy = ToyObjective()
    state, batches = run(tmp_path / "eight", 8, toy=toy)
    assert len(batches) == 2 and int(state.step) == 8
    assert len(fingerprint(state.params)) == 16


TWO_PROCESSES = """
import os, sys, jax
port, index = sys.argv.pop(), int(sys.argv.pop())
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
""" + RUN.replace("Slow(toy.batch_spec(8))", "Slow(toy.batch_spec(4), seed=index)").replace(
    "[JsonlWriter", "[] if index else [JsonlWriter"
)


def start_two(workdir, steps, pause=0.0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    # The two must not race for one compilation cache.
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", TWO_PROCESSES, str(workdir), str(steps), str(pause)]
    command += ['{"data": 2, "fsdp": 2}']
    return [
        subprocess.Popen(
            [*command, str(i), port], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_each_its_own_data(tmp_path):
    straight = [process.communicate(timeout=200) for process in start_two(tmp_path / "a", 24)]
    stopped = start_two(tmp_path / "b", 24, pause=0.3)
    wait_for_metrics(stopped[0], tmp_path / "b", 4)
    stopped[1].terminate()  # Only one of them hears it.
    errors = [process.communicate(timeout=200) for process in stopped]
    assert [process.returncode for process in stopped] == [143, 143], errors
    step = latest_step(tmp_path / "b")
    files = (tmp_path / "b" / "checkpoints" / str(step) / "iterator").glob("*.bin")
    assert sorted(path.name for path in files) == ["0-of-2.bin", "1-of-2.bin"]
    resumed = [process.communicate(timeout=200) for process in start_two(tmp_path / "b", 24)]
    # The last line: gloo greets on the same stream.
    fingerprints = {output.split()[-1] for output, _ in straight + resumed}
    assert len(fingerprints) == 1 and len(fingerprints.pop()) == 16, straight + resumed
    params = restore_params(tmp_path / "b")[0]
    assert fingerprint(params).encode() == straight[0][0].split()[-1]


def test_the_batch_must_split_over_the_mesh(tmp_path):
    code = RUN.replace("batch_spec(8)", "batch_spec(6)")
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    mesh = json.dumps({"data": 2, "fsdp": 2})
    command = [sys.executable, "-c", code, str(tmp_path), "2", "0", mesh]
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "UserError: batch: found 6 rows, which cannot be split" in "".join(
        process.stderr
    ).replace("synth2_jax.errors.", "")


def test_the_loop_stays_readable():
    assert len(pathlib.Path(inspect.getfile(train_loop)).read_text().splitlines()) < 200


def test_training_imports_no_tensorflow():
    code = (
        "import sys, synth2_jax.training.train_loop, synth2_jax.data.fake_batches\n"
        "banned = {'tensorflow', 'seqio', 'clu', 'tensorboard', 'flax.training.checkpoints'}\n"
        "assert not banned & set(sys.modules), banned & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.parametrize("name", ["steps", "log_every", "checkpoint_every", "microbatches", "keep"])
def test_a_period_or_number_of_nothing_is_named(name):
    with pytest.raises(UserError, match=f"{name}: found 0, expected at least 1"):
        TrainLoopConfig(**{"steps": 5, name: 0})
