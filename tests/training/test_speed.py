"""Steps a second: medians over rounds in which every objective has its turn."""

import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.training import speed
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer


class Clock:
    """perf_counter that advances by the next of `durations` between a start and its end."""

    def __init__(self, durations):
        self.left = list(durations)
        self._now, self._running = 100.0, False

    def perf_counter(self):
        # What happens between measurements does not count.
        self._now += self.left.pop(0) if self._running else 1000
        self._running = not self._running
        return self._now


def measure(**options):
    toys = {"slow": ToyObjective(), "fast": ToyObjective(frozen=("^encoder/",))}
    batch = next(FakeBatches(toys["slow"].batch_spec(8)))
    return speed.steps_per_second(toys, make_optimizer(OptimizerConfig()), batch, **options)


def test_the_median_round_counts_and_rounds_take_turns(monkeypatch):
    assert all(0 < rate < 1e6 for rate in measure(rounds=1, steps_per_round=1).values())
    # slow, fast, slow, fast, ...: one round of each was disturbed.
    clock = Clock([4.0, 1.0, 6.0, 50.0, 90.0, 2.0])
    monkeypatch.setattr(speed, "time", clock)
    found = measure(rounds=3, steps_per_round=2)
    assert found == pytest.approx({"slow": 2 / 6.0, "fast": 2 / 2.0}) and not clock.left


def test_runs_take_turns_after_a_call_that_does_not_count(monkeypatch):
    clock = Clock([3.0, 1.0, 7.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr(speed, "time", clock)
    called = []
    runs = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    assert speed.interleaved_seconds(runs, rounds=3) == {"a": 5.0, "b": 2.0}
    assert called == 4 * ["a", "b"] and not clock.left
