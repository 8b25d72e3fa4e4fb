"""Progress of stages that go through a known number of items: count, rate and time left."""

import sys
import time


class Progress:
    """`with Progress("synthesize", 3000, "pairs") as progress: ... progress.add(64)`.

    Where nothing reads it any more (a closed pipe or terminal), the work goes on in silence.
    """

    def __init__(self, label: str, total: int, unit: str, every_seconds: float = 5.0):
        self._label, self._total, self._unit = label, total, unit
        self._every = every_seconds
        self._done = 0
        self._is_read = True

    def __enter__(self) -> "Progress":
        self._start = self._last = time.monotonic()
        return self

    def __exit__(self, *exception_info) -> None:
        self._print(time.monotonic(), end="\n")

    def add(self, count: int) -> None:
        """Counts items as done."""
        self._done += count
        now = time.monotonic()
        if now - self._last >= (0.2 if sys.stderr.isatty() else self._every):
            self._last = now
            self._print(now)

    def _print(self, now: float, end: str = "") -> None:
        rate = self._done / max(now - self._start, 1e-9)
        left = f"  {duration(max(0, self._total - self._done) / rate)} left" if rate else ""
        line = f"{self._label} {self._done}/{self._total} {self._unit}  {rate:.4g}/s{left}"
        try:
            if self._is_read:
                sys.stderr.write(f"\r{line}\x1b[K{end}" if sys.stderr.isatty() else line + "\n")
                sys.stderr.flush()
        except OSError:
            self._is_read = False


def duration(seconds: float) -> str:
    """Returns minutes and seconds, "1:05"; hours before them where there are any, "2:00:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
