"""SIGTERM, which schedulers send before they take a machine away, as a flag to be polled."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax import sharding

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
        self._asked: jax.Array | None = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, exception_type, *exception_info) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if self._received and exception_type is None:
            self.exit()

    @property
    def received(self) -> bool:
        """Whether this process was told to stop; for work that no other process waits for."""
        return self._received

    def requested(self) -> bool:
        """Whether any process was told to stop before the last poll; all must poll alike.

        Processes hear the signal at different steps, and one that left alone would hang the others.
        The question rides along with the steps: what is asked at one poll is read at the next, so
        that nobody waits for the answer.
        """
        if jax.process_count() == 1:
            return self._received
        asked, self._asked = self._asked, sharding.over_devices(jnp.any, np.bool_(self._received))
        return asked is not None and bool(asked)

    def exit(self) -> None:
        """Leaves the program with the code by which a launcher knows to run it again."""
        raise SystemExit(EXIT_CODE)

    def _receive(self, signum, frame) -> None:
        del signum, frame
        self._received = True
