"""A pod of real processes trains as one device does, and survives what pods meet."""

import os
import signal
import subprocess
import sys

import pytest

from synth2_jax.fingerprint import fingerprint
from synth2_jax.training.checkpoint_reader import latest_step, restore_params
from synth2_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 50
TRAIN = (
    "train",
    "--config=configs/scenes/language_model.py:tiny",
    "--config.data.source=fake",
    "--config.model.language_model.scan_layers=true",
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=10",
    "--config.train.log_every=1",
    "--config.train.ema_decay=0.9",
    "--config.train.watchdog_seconds=60",
    "--config.optimizer.learning_rate=1e-3",  # Adam's larger steps on noise grow every rounding
)
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")

# argv: WORKDIR DATA FSDP TENSOR. Prints what the newest checkpoint holds, restored on such a mesh.
RESTORE = """
import sys
from synth2_jax import sharding
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.trained import load_trained

mesh = sharding.make_mesh(sharding.MeshConfig(*map(int, sys.argv[2:])))
params = load_trained(sys.argv[1], "language_model", mesh=mesh).params
assert params["language_model"]["embed"]["embedding"].sharding.mesh == mesh
print(fingerprint(params))
"""


def losses(workdir):
    path = workdir / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def saved_steps(workdir):
    folder = workdir / "checkpoints"
    return {int(p.name) for p in folder.glob("*") if p.name.isdecimal()}


def params_of(workdir):
    return fingerprint(restore_params(workdir))


@pytest.fixture(scope="module")
def straight(pod, tmp_path_factory):
    """The workdir of four processes with two devices each that nothing happened to."""
    workdir = tmp_path_factory.mktemp("straight")
    pod(4, devices=2).run(*TRAIN, *MESH, f"--workdir={workdir}")
    return workdir


def test_its_losses_are_those_of_one_device(straight, pod, tmp_path):
    pod(1).run(*TRAIN, f"--workdir={tmp_path}")
    expected = losses(tmp_path)
    assert len(expected) == STEPS and len(set(expected.values())) == STEPS
    assert losses(straight) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 1), (1, 4, 2)])
def test_what_it_saved_opens_on_any_mesh_bit_for_bit(straight, mesh):
    devices = mesh[0] * mesh[1] * mesh[2]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", RESTORE, str(straight), *map(str, mesh)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == params_of(straight)


def test_stopped_and_killed_it_ends_as_if_nothing_had_happened(straight, pod, tmp_path):
    train = (*TRAIN, *MESH, f"--workdir={tmp_path}")

    # SIGTERM to one: all agree on a step, save it, and leave with the code that means "again".
    with pod(4, devices=2).start(*train) as processes:
        processes.wait_for(lambda: len(losses(tmp_path)) > 3)
        processes.processes[1].send_signal(signal.SIGTERM)
        assert processes.codes() == [143] * 4
    stopped = latest_step(tmp_path)
    assert stopped in losses(tmp_path) and stopped < STEPS
    positions = {path.name for path in tmp_path.glob(f"checkpoints/{stopped}/iterator/*.bin")}
    assert positions == {f"{shard}-of-4.bin" for shard in range(4)}

    # kill -9 of one: the others end with a message well before the watchdog would have bitten.
    with pod(4, devices=2).start(*train) as processes:
        processes.wait_for(lambda: max(losses(tmp_path)) > stopped + 2)
        processes.processes[2].kill()
        codes = processes.codes(timeout=90)
        assert codes[2] == -signal.SIGKILL and all(code not in (0, 2, 143) for code in codes)
        for index in (0, 1, 3):
            assert "Error" in processes.log(index) or "watchdog:" in processes.log(index)

    pod(4, devices=2).run(*train)
    assert losses(tmp_path) == losses(straight)
    assert params_of(tmp_path) == params_of(straight)


def test_a_second_training_in_one_workdir_is_refused_and_the_first_loses_nothing(pod, tmp_path):
    train = (*TRAIN, f"--workdir={tmp_path}", "--config.train.watchdog_seconds=300")
    with pod(2).start(*train, "--config.train.steps=100000") as first:
        first.wait_for(lambda: saved_steps(tmp_path))
        with pod(2).start(*train) as second:
            assert second.codes() == [2, 2]
            for index in range(2):
                line = second.log(index).splitlines()[-1]
                assert f"--workdir={tmp_path}: in use by process {first.processes[0].pid} " in line
                assert "Traceback" not in second.log(index)
        first.processes[0].send_signal(signal.SIGTERM)
        assert first.codes() == [143, 143], first.log(0)[-3000:]
    assert max(saved_steps(tmp_path)) == max(losses(tmp_path))


def test_another_number_of_processes_goes_on_and_is_told_what_holds(straight, pod, tmp_path):
    pod(1).run(*TRAIN, f"--workdir={tmp_path}", f"--config.train.steps={STEPS // 2}")
    log = pod(2).run(*TRAIN, "--config.mesh.fsdp=2", f"--workdir={tmp_path}").log(0)
    assert "with 1 data shards, this run has 2: resuming the data exactly" in log
    # The learning rate's fall ends with the run, so only the data and its effect are compared.
    assert set(losses(tmp_path)) == set(losses(straight))


def test_killed_while_it_saves_it_goes_on_from_the_step_before(pod, tmp_path):
    train = (*TRAIN, f"--workdir={tmp_path}", "--config.train.checkpoint_every=5")

    def is_saving_another():
        half = list((tmp_path / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        return half and saved_steps(tmp_path)

    with pod(1).start(*train) as process:
        process.wait_for(is_saving_another)
        process.processes[0].kill()
        process.codes()
    good = max(saved_steps(tmp_path))
    assert f"resumed at step {good} from" in pod(1).run(*train, "--verbose").log(0)
    assert not list((tmp_path / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(pod, tmp_path):
    train = (*TRAIN, *MESH, f"--workdir={tmp_path}")
    pod(4, devices=2).run(*train, "--config.train.steps=20")
    for path in (tmp_path / "checkpoints" / "20" / "params").rglob("d/*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    assert f"{tmp_path}/checkpoints/20 cannot be read" in pod(4, devices=2).run(*train).log(0)
    assert (tmp_path / "checkpoints" / "unreadable-20").is_dir()


# argv: FOLDER COMMAND... In a file system of 40 MB of its own, which the run fills. The last lines
# show what the disk held at the end, since it is gone with the process.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=40m small "$1" || exit 99
folder=$1
shift
"$@"
code=$?
ls "$folder/run/checkpoints"
exit $code
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "synth2_jax.main", *TRAIN, f"--workdir={tmp_path}/run"]
    many = ["--config.train.keep=50", "--config.train.checkpoint_every=1"]
    root = [] if os.geteuid() == 0 else ["--map-root-user", "--user"]
    shell = ["unshare", "--mount", *root, "sh", "-c", ON_A_SMALL_DISK, "sh", str(tmp_path)]
    done = subprocess.run([*shell, *command, *many], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("synth2: ")]
    good = max(int(name) for name in done.stdout.split() if name.isdecimal())
    assert "could not be saved: No space left on device; last good checkpoint: step" in line
    assert f"step {good}; make room and give the same command" in line
    assert done.stderr.endswith(f"{line}\n")
    assert "ERROR:absl" not in done.stderr  # Orbax's threads, with a traceback each
    assert "Traceback" not in done.stderr


def test_a_process_that_does_not_come_is_missed_by_all(pod, tmp_path):
    train = (*TRAIN, f"--workdir={tmp_path}")
    with pod(3).start(*train, absent=1, SYNTH2_START_SECONDS="3") as processes:
        assert processes.codes(timeout=60) == [2, 2]
        expected = "synth2: preflight: expected 3 processes, found 2 within 3 s: 0, 1"
        assert [processes.log(index).splitlines()[-1] for index in (0, 1)] == [expected] * 2


@pytest.mark.parametrize("key, value", [("--wrokdir", "=x"), ("--config.train.steps", ".x=1")])
def test_a_command_line_that_is_wrong_on_one_process_ends_all(pod, tmp_path, key, value):
    program = (
        "import os, sys; from synth2_jax import main\n"
        "sys.argv += [sys.argv.pop()] * (os.environ['SYNTH2_PROCESS_ID'] == '1')\n"
        "main.console()"
    )
    arguments = (*TRAIN, f"--workdir={tmp_path}", key + value)
    with pod(2).start(*arguments, program=program) as processes:
        assert processes.codes(timeout=90) == [2, 2]
        first, second = (processes.log(index).splitlines()[-1] for index in (0, 1))
    assert second.startswith(f"synth2: {key}: ")
    assert first == second.replace("synth2: ", "synth2: process 1: ")


def test_two_processes_start_from_a_run_of_one(pod, tmp_path):
    """Each device reads its share of the parameters, and all agree on what they read."""
    from synth2_jax.loading.trained import load_trained
    from synth2_jax.testing.untrained_runs import write_untrained_run

    write_untrained_run(tmp_path / "source", "language_model")
    flags = (f"--config.init.from={tmp_path / 'source'}", "--config.train.steps=1")
    flags += ("--config.optimizer.schedule=constant", f"--workdir={tmp_path / 'new'}")
    pod(2).run(*TRAIN, *flags, "--config.mesh.fsdp=2", "--config.mesh.data=1")
    found = load_trained(tmp_path / "new", "language_model").config["started_from"]
    expected = load_trained(tmp_path / "source", "language_model").fingerprint("language_model")
    assert found["fingerprints"] == {"language_model": expected}
