"""launch/tpu_run.sh against a gcloud that plays a TPU's states, and on this machine."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
FLAGS_FILE = "synth2_jax/planning/libtpu_flags.txt"
# What the tests copy from the repository.
COPIED = (FLAGS_FILE, *(f"launch/{n}.sh" for n in ("tpu_run", "tpu_worker", "queued_resource")))
FLAGS = [
    line for line in (REPOSITORY / FLAGS_FILE).read_text().splitlines() if not line.startswith("#")
]
GCLOUD = (REPOSITORY / "tests" / "data" / "fake_gcloud.sh").read_text()

# What launch/environment.sh leaves: a Python that does nothing and the program under test.
ENVIRONMENT = """#!/usr/bin/env bash
mkdir -p .venv/bin && ln -sf /bin/true .venv/bin/python && ln -sf "$PROGRAM" .venv/bin/synth2
"""

TELL = 'echo "$SYNTH2_PROCESS_ID of $SYNTH2_NUM_PROCESSES at $SYNTH2_COORDINATOR: $*"'
CREATE = ("--type=v5litepod-8", "--runtime-version=v2")
TRAIN = ("--", "--config=c.py", "--workdir=/mnt/a b")


class Launcher:
    """A made-up checkout in a path with a space, a cloud beside it, and a program."""

    def __init__(self, folder):
        self.root, self.cloud = folder / "my checkout", folder / "cloud"
        self.cloud.mkdir()
        for file in COPIED:
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / file, self.root / file)
        self.write(self.root / "launch" / "environment.sh", ENVIRONMENT)
        self.write(folder / "bin" / "gcloud", GCLOUD)
        self.program = folder / "program"
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(self.root)]
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            subprocess.run([*git, *arguments], check=True)
        self.environ = {
            **{name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"},
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CLOUD": str(self.cloud),
            "PROGRAM": str(self.program),
            "SYNTH2_POLL_SECONDS": "0.1",
            "SYNTH2_GRACE_SECONDS": "1",
        }
        self.runs(TELL)

    def write(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def runs(self, text):
        """The program that workers run; $TRY counts its starts on a worker."""
        count = 'TRY=$(($(cat .tries 2>/dev/null || echo 0) + 1)); echo "$TRY" >.tries'
        self.write(self.program, f"#!/usr/bin/env bash\n{count}\n{text}\n")

    def becomes(self, number, *states):
        (self.cloud / f"next-{number}").write_text("".join(f"{state}\n" for state in states))

    def start(self, *arguments, **environ):
        if arguments[0] == "local":
            environ["SYNTH2_PROGRAM"] = str(self.program)
        return subprocess.Popen(
            [self.root / "launch" / "tpu_run.sh", *arguments],
            env={**self.environ, **environ},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell cannot trap what it was told to ignore, as whoever runs in the background is.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments, **environ):
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self, *words):
        """The calls of gcloud that hold all of these words."""
        path = self.cloud / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(word in line for word in words)]

    def log(self, worker, number=1, name="pod"):
        return (self.root / f"logs/{name}/try-{number}/worker-{worker}.log").read_text()

    def wait_until_two_are_running(self, name="pod"):
        logs = [self.root / f"logs/{name}/try-1/worker-{worker}.log" for worker in (0, 1)]
        deadline = time.monotonic() + 30
        while not all(log.exists() and "running" in log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def launcher(tmp_path):
    return Launcher(tmp_path)


# --- mistakes ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["strat", "pod"], "found command 'strat', expected create, attach, run,"),
        (["run"], "run: found 'nothing', expected a NAME"),
        (["run", "pod"], "run: found nothing to run, expected -- [STAGE] ARGUMENTS"),
        (["run", "pod", "--zoen=a", *TRAIN], "found '--zoen=a', expected one of the options"),
        (["run", "pod", "--max-retries=few", *TRAIN], "found 'few', expected a whole number"),
        (["run", "pod", "--mount=bucket", *TRAIN], "found '--mount=bucket', expected one of"),
        (["run", "pod", "--", "--workdir=gs://b/c"], "--workdir=gs://b/c: expected a path that ev"),
        (["run", "pod", "--", "train", "--workdir", "gs://b/c"], "--workdir=gs://b/c: expected a"),
        (["run", "pod", "--workdir", "gs://b/c"], "--workdir=gs://b/c: expected a path"),
        (["run", "pod", "--", "-workdir=gs://b/c"], "-workdir=gs://b/c: expected a path"),
        (["local", "2", "--devices-per-process=0", "--config=c"], "found 0, expected 1 or more"),
        (["local", "08", "--config=c"], "local: found '08', expected how many processes"),
        (["run", "pod", *TRAIN], "pod does not exist; to create it: found no --type=TYPE"),
        (["create", "pod", "--type=a"], "to create it: found no --runtime-version=VERSION"),
        (["attach", "pod"], "pod: found no TPU VM that is ready, expected one"),
        (["logs", "pod"], "found no logs, expected those of a run"),
        (["local", "two", "--config=c"], "local: found 'two', expected how many processes"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(launcher, arguments, message):
    done = launcher.run(*arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if message in line]
    assert len(lines) == 1 and lines[0].startswith("tpu_run: ")


def test_help():
    script = REPOSITORY / "launch" / "tpu_run.sh"
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Exit codes:" in done.stdout


# --- creating ---


@pytest.mark.parametrize("model", [[], ["--spot"], ["--reserved"]])
def test_create_asks_and_waits(launcher, model):
    launcher.becomes(0, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = launcher.run("create", "pod", "--zone=z", "--project=p", *CREATE, *model)
    assert done.returncode == 0
    (call,) = launcher.calls("create")
    expected = "--node-id=pod --accelerator-type=v5litepod-8 --runtime-version=v2"
    assert expected in call and call.endswith(" ".join([*model, "--zone=z", "--project=p"]))
    for state in ("none", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"queued resource pod: {state}" in done.stderr
    assert "pod still exists and costs; delete it by: launch/tpu_run.sh delete pod" in done.stderr


def test_a_request_that_failed_is_told_and_deleted(launcher):
    launcher.becomes(0, "WAITING_FOR_RESOURCES", "FAILED")
    done = launcher.run("create", "pod", *CREATE)
    assert done.returncode == 1
    assert "the request failed: no capacity in this zone" in done.stderr
    assert len(launcher.calls("delete", "--force")) == 1
    assert "still exists" not in done.stderr


def test_what_is_suspended_is_deleted_before_it_is_asked_for_again(launcher):
    (launcher.cloud / "resource").write_text("SUSPENDED\n")
    assert launcher.run("create", "pod", *CREATE).returncode == 0
    order = [line.split()[3] for line in launcher.calls() if "describe" not in line]
    assert order == ["delete", "create"]


@pytest.mark.parametrize("command", ["create", "run", "attach", "status", "stop", "delete"])
def test_a_dry_run_prints_the_commands_and_calls_none(launcher, command):
    more = [*CREATE, *TRAIN] if command == "run" else CREATE
    done = launcher.run(command, "pod", "--dry-run", *more)
    assert done.returncode == 0 and launcher.calls() == []
    lines = done.stdout.splitlines()
    assert lines and all(line.startswith("gcloud compute tpus ") for line in lines)
    assert not (launcher.root / "logs").exists()
    if command == "run":
        assert "launch/tpu_worker.sh" in lines[-1] and "train" in lines[-1]


# --- running ---


@pytest.mark.parametrize("stage", [[], ["evaluate"]])
def test_every_worker_runs_with_one_coordinator(launcher, stage):
    done = launcher.run("run", "pod", *CREATE, "--", *stage, *TRAIN[1:])
    assert done.returncode == 0
    named = stage[0] if stage else "train"
    for worker in (0, 1):
        line = f"{worker} of 2 at 10.0.0.1:8476: {named} --config=c.py --workdir=/mnt/a b"
        assert launcher.log(worker).splitlines() == [line]
        assert f"[{worker}] {line}" in done.stdout
    assert "pod still exists and costs" in done.stderr


def test_the_worker_that_failed_first_is_named_and_the_others_are_ended(launcher):
    launcher.runs('if [ "$SYNTH2_PROCESS_ID" = 1 ]; then exit 7; fi; exec sleep 60')
    start = time.monotonic()
    done = launcher.run("run", "pod", *CREATE, *TRAIN)
    assert done.returncode == 7 and time.monotonic() - start < 30
    assert "worker 1 failed with code 7; its log: " in done.stderr
    assert len(launcher.calls("create")) == 1


@pytest.mark.parametrize(
    "program, code",
    [
        *((f"exit {code}", code) for code in (1, 2, 143)),
        # A user's mistake, even when the pod is preempted.
        ('echo SUSPENDED >"$CLOUD/resource"; exit 2', 2),
    ],
)
def test_what_is_not_preempted_is_not_tried_again(launcher, program, code):
    launcher.runs(program)
    assert launcher.run("run", "pod", *CREATE, *TRAIN).returncode == code
    assert len(launcher.calls("create")) == 1 and launcher.calls("delete") == []


@pytest.mark.parametrize(
    "what, code",
    [('echo SUSPENDED >"$CLOUD/resource"', 143), ('echo PREEMPTED >"$CLOUD/node"', 255)],
)
def test_preempted_it_is_created_again_and_goes_on(launcher, what, code):
    launcher.runs(f'if [ "$TRY" = 1 ]; then {what}; exit {code}; fi; sleep 0.5; {TELL}')
    done = launcher.run("run", "pod", *CREATE, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "creating it again, retry 1 of 10" in done.stderr
    order = [line.split()[3] for line in launcher.calls("queued") if "describe" not in line]
    assert order == ["create", "delete", "create"]
    assert "0 of 2" in launcher.log(0, number=2) and launcher.log(0, number=1) == ""


def test_retries_end(launcher):
    launcher.runs('echo SUSPENDED >"$CLOUD/resource"; exit 1')
    done = launcher.run("run", "pod", "--max-retries=2", *CREATE, *TRAIN)
    assert done.returncode == 1
    assert "preempted 3 times, more than --max-retries=2" in done.stderr
    assert len(launcher.calls("create")) == 3


def test_a_vm_that_is_there_already(launcher):
    (launcher.cloud / "node").write_text("READY\n")
    assert launcher.run("attach", "pod").returncode == 0
    launcher.runs("exit 1")
    assert launcher.run("run", "pod", *TRAIN).returncode == 1
    assert launcher.calls("create") == launcher.calls("delete") == []


def test_a_bucket_is_mounted_on_every_worker(launcher):
    launcher.write(pathlib.Path(launcher.environ["PATH"].split(":")[0]) / "sudo", "#!/bin/sh\n")
    done = launcher.run("run", "pod", "--dry-run", "--mount=runs:/mnt/runs", *CREATE, *TRAIN)
    assert r"gcsfuse\ -o\ allow_other\ runs\ /mnt/runs" in done.stdout


@pytest.mark.parametrize("flags", [None, "", "--xla_a=true --xla_b='c d'"])
def test_libtpu_is_told_what_the_user_says_or_what_stands_in_the_file(launcher, flags):
    """The workers' shells do not have the variables of this one, so it goes into their command."""
    launcher.runs('echo "told: $LIBTPU_INIT_ARGS"')
    said = {} if flags is None else {"LIBTPU_INIT_ARGS": flags}
    assert launcher.run("run", "pod", *CREATE, *TRAIN, **said).returncode == 0
    assert FLAGS and all(flag.startswith("--xla") for flag in FLAGS)
    expected = " ".join(FLAGS) if flags is None else flags
    assert [launcher.log(worker) for worker in (0, 1)] == [f"told: {expected}\n"] * 2
    calls = launcher.calls("tpu_worker.sh")
    assert calls and (not said or all("export LIBTPU_INIT_ARGS=" in call for call in calls))


def test_this_machines_processes_are_told_nothing(launcher):
    launcher.runs('echo "told: ${LIBTPU_INIT_ARGS-nothing}"')
    launcher.run("local", "1", "--config=c.py")
    assert launcher.log(0, name="1") == "told: nothing\n"


# --- ending ---


SAVES = """trap 'echo saved; exit 143' TERM
echo running
while :; do sleep 0.1; done"""


@pytest.mark.parametrize("delete", [True, False])
def test_a_signal_stops_the_program_which_saves(launcher, delete):
    launcher.runs(SAVES)
    process = launcher.start("run", "pod", *CREATE, *["--delete-on-exit"] * delete, *TRAIN)
    launcher.wait_until_two_are_running()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert all("saved" in launcher.log(worker) for worker in (0, 1))
    assert (len(launcher.calls("delete", "--force")) == 1) == delete
    assert ("still exists and costs" in err) != delete


def test_stop_status_and_logs_from_another_terminal(launcher):
    launcher.runs(SAVES)
    process = launcher.start("run", "pod", *CREATE, *TRAIN)
    launcher.wait_until_two_are_running()
    status = launcher.run("status", "pod")
    assert "queued resource: ACTIVE" in status.stderr and "TPU VM: READY" in status.stderr
    assert status.stdout.count("running") == 2
    assert launcher.run("stop", "pod").returncode == 0
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert launcher.run("logs", "pod").stdout.count("saved") == 2


def test_delete(launcher):
    launcher.run("create", "pod", *CREATE)
    assert launcher.run("delete", "pod").returncode == 0
    assert not (launcher.cloud / "resource").exists()


# --- this machine ---


def test_local_starts_processes_by_the_same_worker_script(launcher):
    launcher.runs(TELL + '; echo "$SYNTH2_NUM_DEVICES $JAX_PLATFORMS $XLA_FLAGS"')
    launcher.run("local", "3", "--devices-per-process", "2", "--config=c.py")
    for worker in range(3):
        lines = launcher.log(worker, name="3").splitlines()
        assert lines[0].startswith(f"{worker} of 3 at 127.0.0.1:")
        assert lines[0].endswith(": train --config=c.py")
        assert lines[1].startswith("6 cpu ") and lines[1].endswith("device_count=2")
    assert launcher.calls() == []


def test_local_names_the_process_that_was_killed(launcher):
    launcher.runs('if [ "$SYNTH2_PROCESS_ID" = 2 ]; then kill -9 $$; fi; exec sleep 60')
    done = launcher.run("local", "3", "--config=c.py")
    assert done.returncode == 137 and "worker 2 failed with code 137" in done.stderr


def test_local_passes_a_signal_on(launcher):
    launcher.runs(SAVES)
    process = launcher.start("local", "2", "--config=c.py")
    launcher.wait_until_two_are_running("2")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert all("saved" in launcher.log(worker, name="2") for worker in (0, 1))


def test_the_workers_of_a_try_share_a_secret_that_no_command_line_shows(launcher):
    launcher.runs('echo "secret: $SYNTH2_SECRET"')
    assert launcher.run("run", "pod", *CREATE, *TRAIN).returncode == 0
    launcher.run("local", "2", "--config=c.py")
    found = [launcher.log(index, name=name) for name in ("pod", "2") for index in (0, 1)]
    assert found[0] == found[1] != found[2] == found[3]
    secret = found[0].removeprefix("secret: ").strip()
    assert len(secret) == 32 and not launcher.calls(secret)
