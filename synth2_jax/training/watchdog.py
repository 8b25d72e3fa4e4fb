"""Ends a run that hangs: a pod whose worker has died would wait for it for ever."""

import faulthandler
import os
import sys
import threading
import time

EXIT_CODE = 1


class Watchdog:
    """`with Watchdog(seconds) as watchdog:`, then `watchdog.beat()` at each sign of life.

    When none comes for `seconds`, it prints the stack traces of all threads to stderr and ends the
    process, without waiting for anybody. 0 watches nothing.

    A call into C that hangs with the interpreter's lock stops every thread of Python. Then, a tenth
    of the time and a second later, a timer of `faulthandler` does the same, which needs no lock.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._stopped = threading.Event()
        self._timer_set = -float("inf")

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *exception_info) -> None:
        self._stopped.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """The run is alive."""
        self._last = time.monotonic()
        # Setting the timer starts a thread: not at every step.
        if self._seconds and self._last - self._timer_set > self._seconds / 20:
            self._timer_set = self._last
            # Not sys.stderr, which may be replaced by what is no file.
            faulthandler.dump_traceback_later(1.1 * self._seconds + 1, exit=True, file=2)

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print(
                    f"watchdog: no step has finished for {self._seconds:g} s "
                    "(train.watchdog_seconds); stack traces of all threads are printed above",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_CODE)
