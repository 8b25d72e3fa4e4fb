"""The watchdog bites what hangs, and nothing else."""

import subprocess
import sys
import time

import pytest

from synth2_jax.training.watchdog import Watchdog

HANGS = """
import time
from synth2_jax.training.watchdog import Watchdog

def a_step_that_hangs():
    time.sleep(60)

with Watchdog(0.5) as watchdog:
    for _ in range(4):
        time.sleep(0.3)
        watchdog.beat()
    print("alive", flush=True)
    a_step_that_hangs()
"""


@pytest.mark.parametrize("hold_the_lock", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_hangs_is_told_and_ended(hold_the_lock):
    program = HANGS
    if hold_the_lock:  # that of the interpreter
        program = HANGS.replace("time.sleep(60)", "__import__('ctypes').PyDLL(None).sleep(60)")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and time.monotonic() - start < 30
    assert done.stdout == "alive\n"  # longer than half a second in all, but with signs of life
    assert "in a_step_that_hangs" in done.stderr
    told = "watchdog: no step has finished for 0.5 s (train.watchdog_seconds)" in done.stderr
    assert told or hold_the_lock


def test_it_sleeps_when_told_to_and_afterwards():
    with Watchdog(0):
        pass
    with Watchdog(0.05):
        pass
    time.sleep(0.2)  # still here
