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


@pytest.mark.parametrize(
    "changes, commit",
    [
        ("", "0123456789"),
        (" M setup.py\n", "0123456789+"),  # a changed checkout is marked
        (FileNotFoundError("git"), ""),
        (subprocess.CalledProcessError(128, "git"), ""),
    ],
)
def test_the_commit_is_that_of_the_checkout_where_there_is_one(monkeypatch, changes, commit):
    assert re.fullmatch(r"([0-9a-f]{10}\+?)?", environment.commit())

    def run(command, **kwargs):
        if isinstance(changes, Exception):
            raise changes
        text = changes if "status" in command else "0123456789\n"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.commit() == commit
