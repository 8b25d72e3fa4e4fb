"""What the loop counts as waiting for input: what the device may have stood still for."""

import types

import numpy as np
import pytest

from synth2_jax.stop_signal import StopSignal
from synth2_jax.training import watch as watch_lib
from synth2_jax.training.watch import Watch


class Rig:
    """A watch whose clock moves only where the test says so; steps of `step_seconds`."""

    def __init__(self, monkeypatch, step_seconds: float):
        self.now, self.device_free_at, self.step_seconds = 0.0, 0.0, step_seconds
        self.written: dict[str, float] = {}
        checkpoints = types.SimpleNamespace(check_for_errors=lambda: None)
        monkeypatch.setattr(watch_lib, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(watch_lib.metrics_lib, "to_scalars", self._fetch)
        self.watch = Watch([self], checkpoints, StopSignal(), log_every=4, sums={})

    def write(self, step, scalars):
        self.written.update(scalars)

    def _fetch(self, metrics):
        """The device's results come when it is done."""
        self.now = max(self.now, max(end for end, _ in metrics.values()))
        return {"loss": 1.0}

    def step(self, number: int, input_seconds: float) -> None:
        """As the training loop does it."""
        with self.watch.input():
            self.now += input_seconds
        self.device_free_at = max(self.device_free_at, self.now) + self.step_seconds
        self.watch.settle()
        ended = (np.float64(self.device_free_at), 1.0)
        self.watch.add(number, {"loss": ended, "grad_norm": ended})

    def share(self, input_seconds: float) -> float:
        self.step(1, input_seconds)  # it compiles, and is left out
        for number in range(2, 6):
            self.step(number, input_seconds)
        return self.written["input_wait_share"]


@pytest.fixture
def rig(monkeypatch):
    # Sums of metrics are of no interest here.
    monkeypatch.setattr(watch_lib.metrics_lib, "merge", lambda merged, metrics: metrics)
    return lambda step_seconds: Rig(monkeypatch, step_seconds)


@pytest.mark.parametrize("input_seconds, step_seconds", [(2, 10), (10, 2), (0, 1)])
def test_input_counts_as_waiting_only_while_the_device_may_have_been_idle(
    rig, input_seconds, step_seconds
):
    share = rig(step_seconds).share(input_seconds)
    # Of input that comes while the device works, the first batch alone comes to an idle device.
    low, high = {10: (2 / 32, 2 / 32), 2: (0.75, 1), 1: (0, 0)}[step_seconds]
    assert low - 1e-9 <= share <= high + 1e-9


def test_the_share_is_never_below_what_the_device_lost(rig):
    """By the clock: of 4 steps' time all that the device did not work."""
    for input_seconds in (0.5, 3.0, 4.0, 5.0, 9.0):
        lost = max(0.0, input_seconds - 4.0) / max(4.0, input_seconds)
        assert rig(step_seconds=4.0).share(input_seconds) >= lost


def test_sums_of_a_config_with_other_metrics_are_left_out():
    """A run may go on with a loss more than the checkpoint that holds the sums."""
    written = {}
    writer = types.SimpleNamespace(write=lambda step, scalars: written.update(scalars))
    checkpoints = types.SimpleNamespace(check_for_errors=lambda: None)
    watch = Watch([writer], checkpoints, StopSignal(), log_every=10, sums={"loss": [10.0, 1.0]})
    one, two = (np.float32(1), np.float32(1)), (np.float32(2), np.float32(1))
    watch.add(5, {"loss": two, "grad_norm": one, "entropy": one})
    watch.finish(5)
    assert (written["loss"], written["entropy"]) == (2, 1)
