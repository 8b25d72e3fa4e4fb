"""launch/*.sh in a made-up checkout, with a stand-in for Python that only writes down its calls."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]

# What the scripts ask of Python: its version, `-m venv`, `-m pip install` (which brings `synth2`)
# and `-m pytest`. PIP says how the installation goes.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*) echo "${VERSION:-3.11}" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip")
    echo "pip ${@: -1}" >>"$CALLS"
    case ${PIP:-good} in
      bad) echo "ERROR: no such package" >&2; touch .venv/half; exit 1 ;;
      endless) touch .venv/half; sleep 60 ;;
      slow) sleep 1 ;;
    esac
    printf '#!/usr/bin/env bash\\nprintf "%%s\\\\n" "$@"\\n' >.venv/bin/synth2
    chmod +x .venv/bin/synth2
    ;;
  "-m pytest") shift 2; printf '%s\\n' "$@"; exit "${PYTEST_EXIT:-0}" ;;
esac
"""


class Checkout:
    """A copy of what the scripts need, in a path with a space, and a Python that is none."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "my checkout"
        self.calls = folder / "calls"
        self.calls.touch()
        (self.root / "launch").mkdir(parents=True)
        for name in ("demo.sh", "test.sh", "environment.sh"):
            shutil.copy(REPOSITORY / "launch" / name, self.root / "launch" / name)
        (self.root / "setup.py").write_text("setup\n")
        (self.root / "constraints.txt").write_text("numpy==1\n")
        self.python = self.interpreter(folder / "bin" / "python")
        self.venv = self.root / ".venv"
        self.environ = {**os.environ, "SYNTH2_PYTHON": str(self.python), "CALLS": str(self.calls)}

    def interpreter(self, path: pathlib.Path, text: str = FAKE_PYTHON) -> pathlib.Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, script: str, *arguments: str, cwd=None, **environ) -> subprocess.Popen:
        return subprocess.Popen(
            [self.root / "launch" / script, *arguments],
            cwd=cwd or self.root,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *call: str, **environ) -> subprocess.CompletedProcess:
        process = self.start(*call, **environ)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def extras(self) -> list[str]:
        """Of each installation."""
        return re.findall(r"^pip \.\[(.+)\]$", self.calls.read_text(), re.MULTILINE)


MADE = "data,dev"  # the extras of an environment that is made


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


# --- environment.sh ---


def test_environment_and_extras_are_installed_once_and_again_after_a_change(checkout):
    for extra in ([], [], ["interop"], ["interop"], []):
        again = checkout.run("environment.sh", *extra)
        assert again.returncode == 0
    assert again.stdout == again.stderr == ""
    assert checkout.extras() == [MADE, "interop"]
    (checkout.venv / "added by hand").touch()
    (checkout.root / "setup.py").write_text("changed\n")
    assert checkout.run("environment.sh", "interop").returncode == 0
    assert checkout.extras() == [MADE, "interop"] * 2
    (checkout.root / "constraints.txt").write_text("changed\n")
    assert checkout.run("environment.sh").returncode == 0
    assert checkout.extras() == [*[MADE, "interop"] * 2, MADE]
    assert (checkout.venv / "added by hand").exists()


def test_what_is_to_be_installed_alone_is(checkout):
    (checkout.root / "constraints.txt").write_text("# --no-deps one==1 two==2\nnumpy==1\n")
    assert checkout.run("environment.sh", "interop").returncode == 0
    installed = checkout.calls.read_text().splitlines()
    assert installed == ["pip .[data,dev]", "pip .[interop]", "pip two==2"]


def test_an_extra_that_cannot_be_installed_is_tried_again(checkout):
    checkout.run("environment.sh")
    assert checkout.run("environment.sh", "interop", PIP="bad").returncode == 1
    assert checkout.run("environment.sh").returncode == 0
    assert checkout.run("environment.sh", "interop").returncode == 0
    assert checkout.extras() == [MADE, "interop", "interop"]


def test_a_failed_installation_is_said_and_made_anew(checkout):
    failed = checkout.run("environment.sh", PIP="bad")
    assert failed.returncode == 1
    assert "ERROR: no such package" in failed.stderr
    assert (checkout.venv / "half").exists()
    assert checkout.run("environment.sh").returncode == 0
    assert not (checkout.venv / "half").exists()


def test_a_killed_installation_is_not_taken_for_a_good_one(checkout):
    process = checkout.start("environment.sh", PIP="endless")
    while not (checkout.venv / "half").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert checkout.run("environment.sh").returncode == 0
    assert checkout.extras() == [MADE] * 2 and not (checkout.venv / "half").exists()


@pytest.mark.skipif(not shutil.which("flock"), reason="without flock(1) starts do not wait")
def test_two_starts_install_once(checkout):
    both = [checkout.start("environment.sh", PIP="slow") for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert checkout.extras() == [MADE]
    assert sum("waiting" in error for error in errors) == 1


def test_a_moved_checkout_and_one_whose_python_is_gone_make_their_environment_anew(checkout):
    checkout.run("environment.sh")
    (checkout.venv / "old").touch()
    checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    checkout.venv = checkout.root / ".venv"
    assert checkout.run("environment.sh").returncode == 0
    assert checkout.extras() == [MADE] * 2 and not (checkout.venv / "old").exists()
    (checkout.venv / "bin" / "python").unlink()
    assert checkout.run("environment.sh").returncode == 0
    assert checkout.extras() == [MADE] * 3


def test_an_environment_made_by_hand_is_kept(checkout):
    checkout.interpreter(checkout.venv / "bin" / "python")
    (checkout.venv / "mine").touch()
    assert checkout.run("environment.sh").returncode == 0
    assert (checkout.venv / "mine").exists()


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14"])
def test_a_python_that_does_not_fit_is_a_mistake_of_the_user(checkout, version):
    refused = checkout.run("environment.sh", VERSION=version)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert str(checkout.python) in refused.stderr and "expected 3.11 to 3.13" in refused.stderr
    assert not checkout.venv.exists()


def test_a_name_on_path_that_only_fails_is_passed_over(checkout):
    names = checkout.root.parent / "names"
    checkout.interpreter(names / "python3.11", "#!/bin/sh\nexit 127\n")
    good = checkout.interpreter(names / "python3.12")
    path = f"{names}{os.pathsep}{os.environ['PATH']}"
    made = checkout.run("environment.sh", SYNTH2_PYTHON="", PATH=path, VERSION="3.12")
    assert made.returncode == 0
    assert f"Python 3.12 ({good.name})" in made.stderr


# --- demo.sh ---


@pytest.mark.parametrize(
    "given, config, rest",
    [
        ([], "{}", ["--workdir=workdir/demo"]),
        (["--tiny"], "{}:tiny", ["--workdir=workdir/demo_tiny"]),
        (["--config=mine.py", "--tiny"], "mine.py:tiny", ["--workdir=workdir/demo_tiny"]),
        (
            ["--config.train.steps=3", "--workdir=a b", "--config.name=x y", "--tiny"],
            "{}:tiny",
            ["--workdir=a b", "--config.train.steps=3", "--config.name=x y"],
        ),
    ],
)
def test_demo_runs_synth2_with_the_demo_config_and_what_it_is_given(
    checkout, tmp_path, given, config, rest
):
    config = config.format(checkout.root / "configs" / "scenes" / "demo.py")
    done = checkout.run("demo.sh", *given, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["demo", f"--config={config}", *rest]


@pytest.mark.parametrize(
    "argument",
    ["tiny", "--tinny", "--workdr=x", "--workdir", "--workdir=", "--config", "--config.x"],
)
def test_demo_refuses_an_unknown_argument_before_it_installs(checkout, argument):
    refused = checkout.run("demo.sh", argument)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"launch/demo.sh: found argument '{argument}', expected")
    assert len(refused.stderr.splitlines()) == 1
    assert not checkout.venv.exists()


# --- test.sh ---


@pytest.mark.parametrize(
    "asked, selection",
    [
        ([], ["-m", "not slow and not interop"]),
        (["--slow"], ["-m", "not interop"]),
        (["--interop"], ["-m", "not slow"]),
        (["--slow", "--interop"], []),
    ],
)
def test_tests_leave_some_out_unless_asked(checkout, asked, selection):
    workers = ["-n", "2", "--dist", "loadfile"]
    assert checkout.run("test.sh", *asked).stdout.splitlines() == [*workers, *selection]
    assert checkout.extras() == [MADE, *(["interop"] if "--interop" in asked else [])]


def test_arguments_and_exit_code_are_pytests(checkout, tmp_path):
    arguments = ["tests/layers", "--slow", "--interop", "-k", "mask and not rope"]
    done = checkout.run("test.sh", *arguments, cwd=tmp_path, PYTEST_EXIT="5")
    assert done.returncode == 5
    assert done.stdout.splitlines()[4:] == ["tests/layers", "-k", "mask and not rope"]


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
@pytest.mark.parametrize("failure", [{"PIP": "bad"}, {"VERSION": "3.9"}])
def test_nothing_runs_without_an_environment(checkout, script, failure):
    failed = checkout.run(script, **failure)
    assert failed.returncode == (2 if "VERSION" in failure else 1)
    assert failed.stdout == ""


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_help_installs_nothing(checkout, script):
    told = checkout.run(script, "--help")
    assert told.returncode == 0
    assert told.stdout.startswith(f"Usage: launch/{script} ")
    assert not checkout.venv.exists()
