"""Several processes of this machine as one run."""

import os
import socket
import subprocess
from collections.abc import Sequence
from typing import Any


def free_address() -> str:
    """HOST:PORT of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def start(
    command: Sequence[str], num_processes: int, environ: dict[str, str], **given: Any
) -> list[subprocess.Popen]:
    """Starts the processes on CPUs; `given` are arguments of `subprocess.Popen`."""
    shared = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "SYNTH2_COORDINATOR": free_address(),
        "SYNTH2_NUM_PROCESSES": str(num_processes),
        **environ,
    }
    return [
        subprocess.Popen(command, env={**shared, "SYNTH2_PROCESS_ID": str(index)}, **given)
        for index in range(num_processes)
    ]
