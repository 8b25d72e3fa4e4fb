"""Signals that ask a program to end, as a flag to be polled: what is under way is saved first.

Schedulers send SIGTERM before they take a machine away, a terminal sends SIGINT at Ctrl-C and
SIGHUP when it is closed.
"""

import contextlib
import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax import sharding

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_CODE = 128 + signal.SIGTERM  # 143: "stopped; the same command goes on"


class StopSignal:
    """Inside this context manager a signal sets a flag instead of killing the process.

    A second Ctrl-C raises KeyboardInterrupt at once. A signal that was ignored before stays so:
    `nohup` ignores SIGHUP, and a shell SIGINT in what it runs in the background. Leaving the
    context exits too when a signal came that was not polled any more: what follows in the same
    process must not run on. Outside the main thread, where Python takes no handlers, it does
    nothing.
    """

    def __init__(self):
        self._received = 0
        self._previous = {}
        self._asked: jax.Array | None = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, exception_type, *exception_info) -> None:
        for number, previous in self._previous.items():
            if previous is not None:  # None is a handler of a library in C
                signal.signal(number, previous)
        if self._received and exception_type is None:
            self.exit()

    @property
    def received(self) -> bool:
        """Returns whether this process was asked to stop; for work no other process waits for."""
        return bool(self._received)

    def requested(self) -> bool:
        """Returns whether any process was asked to stop before the last poll; all must poll alike.

        Processes receive the signal at different steps, and one that left alone would hang the
        others. The answer to a poll is read at the next, so that no process waits for it.
        """
        if jax.process_count() > 1:
            asked = self._asked
            self._asked = sharding.over_devices(jnp.max, np.int32(self._received))
            if asked is None or not int(asked):
                return False
            self._received = self._received or int(asked)
        return self.received

    def request(self, number: int) -> None:
        """Asks this process to stop, as the signal of this number would."""
        self._received = self._received or number

    def exit(self, kept: str = "") -> None:
        """Leaves the program, with 143 after SIGTERM, by which a launcher knows to run it again.

        The line that is printed says what was `kept`.
        """
        number = self._received or signal.SIGTERM
        if jax.process_index() == 0:
            kept = f"; {kept}" if kept else ""
            with contextlib.suppress(OSError):  # the terminal may be gone
                line = f"stopped by {signal.Signals(number).name}{kept}"
                print(line, file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    def _receive(self, number: int, frame) -> None:
        del frame
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:  # `print` may be in the middle of a line
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping at the next step; Ctrl-C again ends at once\n")
        self.request(number)
