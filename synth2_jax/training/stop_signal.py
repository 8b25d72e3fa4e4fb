"""SIGTERM, which schedulers send before they take a machine away, as a flag to be polled."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM  # 143: "stopped; the same command goes on"


class StopSignal:
    """A context manager inside which SIGTERM sets a flag instead of killing the process.

    Leaving it exits too when a signal came that nobody polled any more: what follows in the same
    process must not run on. Outside the main thread Python takes no signal handlers, and it does
    nothing.
    """

    def __init__(self):
        self._received = False
        self._previous = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, exception_type, *exception_info) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if self._received and exception_type is None:
            self.exit()

    def requested(self) -> bool:
        """Returns whether any process was told to stop; with several, all must call it together."""
        if jax.process_count() == 1:
            return self._received
        # Processes hear the signal at different steps: one that left alone would hang the others.
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())

    def exit(self) -> None:
        """Leaves the program with the code by which a launcher knows to run it again."""
        raise SystemExit(EXIT_CODE)

    def _receive(self, signum, frame) -> None:
        del signum, frame
        self._received = True
