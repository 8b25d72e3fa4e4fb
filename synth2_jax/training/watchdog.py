"""Ends a run that hangs: a pod whose worker has died would wait for it for ever."""

import faulthandler
import os
import sys
import threading
import time

EXIT_CODE = 1


class Watchdog:
    """`with Watchdog(seconds) as watchdog:`, then `watchdog.beat()` at each sign of life.

    When none comes for `seconds`, it writes where every thread stands to stderr and ends the
    process, without waiting for anybody. 0 watches nothing.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._stopped = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *exception_info) -> None:
        self._stopped.set()

    def beat(self) -> None:
        """The run is alive."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print(
                    f"watchdog: no step has finished for {self._seconds:g} s "
                    "(train.watchdog_seconds); where every thread stands is told above",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_CODE)
