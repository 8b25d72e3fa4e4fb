import importlib.metadata
import re
import subprocess

import jax
import pytest

from synth2_jax import environment


def test_describe_names_versions_and_the_device():
    found = environment.describe()
    assert found.keys() == {"python", "device", "commit", *environment.PACKAGES}
    assert found["jax"] == jax.__version__
    assert found["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")
    assert found["device"].startswith(f"{jax.device_count()} x ")
    assert found["commit"] == environment.commit()


@pytest.mark.parametrize("changes, mark", [("", ""), (" M setup.py\n", "+")])
def test_a_changed_checkout_is_marked(monkeypatch, changes, mark):
    def run(command, **kwargs):
        text = changes if "status" in command else "0123456789\n"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.commit() == f"0123456789{mark}"


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")]
)
def test_without_git_or_a_checkout_there_is_no_commit(monkeypatch, error):
    def run(command, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.commit() == ""


def test_the_commit_is_short_hexadecimal_where_there_is_one():
    assert re.fullmatch(r"([0-9a-f]{10}\+?)?", environment.commit())
