"""The loop's eyes: is the loss finite, how fast does it go, and what goes to the writers."""

import bisect
import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence

from synth2_jax.errors import UserError
from synth2_jax.stop_signal import StopSignal
from synth2_jax.training import metrics as metrics_lib
from synth2_jax.training.checkpoints import Checkpoints, DataIterator
from synth2_jax.training.metrics import Metrics, Sums, Writer

# A finite loss can have an infinite gradient, which spoils the parameters all the same.
WATCHED = ("loss", "grad_norm")
KEYS_NAMED = 8


class Watch:
    """Takes each step's metrics when it is dispatched (`add`), looks at them later (`settle`).

    Fetching a metric waits for its step. The loop settles a step after it has dispatched the next
    one, so that the device never waits for the host.

    Time spent on input counts as waiting only where the device may have had nothing to do: as far
    as the host, when it has dispatched that input's step, need not wait for the step before.

    Args:
      writers: get the means of every `log_every` steps, the steps a second and the share of the
        time that was spent waiting for input.
      checkpoints: their background errors surface here, and error messages name the last good one.
      stop: asked to stop when nothing reads what a writer writes any more.
      log_every: in steps.
      sums: of the steps since the last that was logged, from the checkpoint this run goes on from.
      restarts: the steps at which a training stage begins, but for the first: `Optimizer.restarts`.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        checkpoints: Checkpoints,
        stop: StopSignal,
        log_every: int,
        sums: Sums,
        restarts: Sequence[int] = (),
    ):
        self._writers, self._checkpoints, self._stop = list(writers), checkpoints, stop
        self._log_every, self._restarts = log_every, restarts
        self._created = time.monotonic()
        self._is_first = True
        self._pending: tuple[int, Metrics, Sequence[str]] | None = None
        self._merged: Metrics = metrics_lib.from_sums(sums)
        self._totals: dict[str, int] = {}
        self._restart_clock()

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """Takes the time inside as spent on input."""
        start = time.monotonic()
        yield
        self._fetched_seconds += time.monotonic() - start

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves the time inside (an evaluation) out of the speed."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def add(self, step: int, metrics: Metrics, data: DataIterator | None = None) -> None:
        """Takes the metrics of a step that was dispatched; the step before must be settled.

        They are still on the device. An error names the first of the data's `last_keys`; its
        `totals`, what this process was given until now, are logged as they are.
        """
        self._pending = (step, metrics, getattr(data, "last_keys", ()))
        self._totals = dict(getattr(data, "totals", {}))
        # Sums of another config, which computed other metrics, are left out.
        same = self._merged.keys() == metrics.keys()
        self._merged = metrics_lib.merge(self._merged, metrics) if same else metrics
        if self._is_first:
            self._is_first = False
            self.settle()
            self.write(step, {"seconds_to_first_step": time.monotonic() - self._created})
            self._restart_clock()

    def settle(self) -> None:
        """Waits for the step added last, checks it, and writes if it is one to be logged.

        Raises:
          UserError: its loss or gradient is not finite.
        """
        self._checkpoints.check_for_errors()
        fetched, self._fetched_seconds = self._fetched_seconds, 0.0
        if self._pending is None:
            self._waited_seconds += fetched
            return
        (step, metrics, keys), self._pending = self._pending, None
        start = time.monotonic()
        self._check_finite(step, metrics, keys)
        # The device was still at work when that input came, if the host then waited for it.
        self._waited_seconds += max(0.0, fetched - (time.monotonic() - start))
        self._steps += 1
        if step % self._log_every == 0:
            self._log(step)

    def finish(self, step: int) -> None:
        """Settles the last step and writes what is not written yet."""
        self.settle()
        if self._merged:
            self._log(step)

    def sums(self) -> Sums:
        """Returns the sums since the last step that was logged, for `Checkpoints.save`."""
        return metrics_lib.to_sums(self._merged)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Gives scalars to every writer."""
        for writer in list(self._writers):
            try:
                writer.write(step, scalars)
            except BrokenPipeError:
                self._writers.remove(writer)
                self._stop.request(signal.SIGPIPE)

    def _log(self, step: int) -> None:
        seconds = time.monotonic() - self._since
        speed = {
            "steps_per_second": self._steps / seconds,
            "input_wait_share": self._waited_seconds / seconds,
        }
        # The update before step N is number N - 1.
        stage = {"training_stage": 1 + bisect.bisect_left(self._restarts, step)}
        speed |= stage if self._restarts else {}
        self.write(step, metrics_lib.to_scalars(self._merged) | speed | self._totals)
        self._merged = {}
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since = time.monotonic()
        self._fetched_seconds = self._waited_seconds = 0.0
        self._steps = 0

    def _check_finite(self, step: int, metrics: Metrics, keys: Sequence[str]) -> None:
        scalars = metrics_lib.to_scalars({name: metrics[name] for name in WATCHED})
        for name in WATCHED:
            value = scalars.get(name, 0.0)
            if not math.isfinite(value):
                self._checkpoints.wait()
                good = self._checkpoints.latest_step()
                checkpoint = "none yet" if good is None else f"step {good}"
                named = ", ".join(keys[:KEYS_NAMED]) + ", ..." * (len(keys) > KEYS_NAMED)
                raise UserError(
                    f"{name} is {value} at step {step} (batch: {named or 'without keys'}); "
                    f"last good checkpoint: {checkpoint} in {self._checkpoints.folder}"
                )
