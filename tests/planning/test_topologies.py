"""How libtpu is started for pods that are not there."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_flag_that_libtpu_does_not_know_is_named():
    """It ends the process itself, so that no Python can say it."""
    program = "from synth2_jax.planning import topologies; topologies.devices('v5e:2x2')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LIBTPU_INIT_ARGS": "--xla_no_such_flag=true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "Unknown command line flag 'xla_no_such_flag'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_nothing_is_said_otherwise():
    program = (
        "from synth2_jax.planning import topologies; print(len(topologies.devices('v5e:2x2')))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
