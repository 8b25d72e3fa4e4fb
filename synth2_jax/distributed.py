"""Several processes as one program: their start, the roll call before it, and how they end.

A launcher gives each process (launch/tpu_worker.sh does):

    SYNTH2_COORDINATOR=HOST:PORT   of process 0
    SYNTH2_NUM_PROCESSES=N
    SYNTH2_PROCESS_ID=I            0 to N - 1
    SYNTH2_NUM_DEVICES=D           of all processes together; may be left out
    SYNTH2_START_SECONDS=300       how long a process waits for the others; may be left out
    SYNTH2_SECRET=TEXT             the same for all processes of a launch; may be left out

JAX aborts a process whose companions do not come, with a stack trace and no word on who is
missing. So the processes first call the roll among themselves, on the coordinator's own port before
JAX takes it, and everyone learns who was found. Anyone may connect to that port: who does not prove
to know the secret is sent away. JAX's own service on it, which follows, knows no secret: keep the
port closed to other networks.
"""

import contextlib
import dataclasses
import hmac
import json
import math
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from synth2_jax import sharding
from synth2_jax.errors import UserError

_PREFIX = "SYNTH2_"
# Compiling for minutes must not look like death; who is really dead is found by the watchdog.
_HEARTBEAT_SECONDS = 600
# How long a process that is done waits for the others: process 0 may score captions for long.
_SHUTDOWN_SECONDS = 24 * 3600
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 5.0  # for one message of the roll call
_MAX_LINE = 8192  # bytes of one
_MAX_ERROR_BYTES = 4096
# What a stranger may cause who says anything at all.
_NO_MESSAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Processes:
    """The launcher's settings: see the file's docstring."""

    host: str
    port: int
    num_processes: int
    process_id: int
    num_devices: int | None = None
    start_seconds: float = 300.0
    secret: str = dataclasses.field(default="", repr=False)


def from_environment(environ: Mapping[str, str] = os.environ) -> Processes | None:
    """Reads the launcher's variables; None when this process is alone.

    Raises:
      UserError: a variable is missing or no number.
    """

    def refuse(name: str, found: object, expected: str) -> None:
        raise UserError(f"{_PREFIX}{name}: found {found!r}, expected {expected}")

    def whole(name: str, least: int) -> int:
        text = environ.get(f"{_PREFIX}{name}", "")
        if not text.isdecimal() or len(text) > 9 or int(text) < least:
            expected = f"a whole number from {least} on, for {_PREFIX}COORDINATOR is set"
            refuse(name, text or "nothing", expected)
        return int(text)

    coordinator = environ.get(f"{_PREFIX}COORDINATOR")
    if coordinator is None:
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port[:9]) <= 65535:
        refuse("COORDINATOR", coordinator, "HOST:PORT with a port from 1 to 65535")
    seconds = environ.get(f"{_PREFIX}START_SECONDS", "300")
    try:
        start_seconds = float(seconds)
    except ValueError:
        start_seconds = math.nan
    if not 0 < start_seconds < math.inf:
        refuse("START_SECONDS", seconds, "a number above 0")
    num_processes, process_id = whole("NUM_PROCESSES", 1), whole("PROCESS_ID", 0)
    if process_id >= num_processes:
        refuse("PROCESS_ID", process_id, f"0 to {num_processes - 1}, of {_PREFIX}NUM_PROCESSES")
    num_devices = whole("NUM_DEVICES", 1) if f"{_PREFIX}NUM_DEVICES" in environ else None
    secret = environ.get(f"{_PREFIX}SECRET", "")
    return Processes(host, int(port), num_processes, process_id, num_devices, start_seconds, secret)


def start(processes: Processes) -> None:
    """Joins the others, and checks what came together: processes, devices, a sum over all chips.

    A process that has joined them before is left as it is.

    Raises:
      UserError: someone or something is missing; it says what was expected and found.
    """
    if jax.distributed.is_initialized():
        return
    roll_call(processes)
    jax.distributed.initialize(
        f"{processes.host}:{processes.port}",
        processes.num_processes,
        processes.process_id,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    ones = int(sharding.over_devices(jnp.sum, np.int32(1)))
    for what, found, expected in (
        ("processes", jax.process_count(), processes.num_processes),
        ("devices", jax.device_count(), processes.num_devices),
        ("as the sum of a 1 from every device", ones, jax.device_count()),
    ):
        if expected not in (found, None):
            raise UserError(f"preflight: expected {expected} {what}, found {found}")


def is_first() -> bool:
    """Returns whether this process is process 0 or alone; one that is alone asks no device."""
    return not jax.distributed.is_initialized() or not jax.process_index()


def agree(problem: str) -> None:
    """Raises UserError on every process where any has a problem; "" is none. All must call it."""
    if jax.distributed.is_initialized():
        line = problem.encode("utf-8", "backslashreplace")  # a path may be no UTF-8
        if len(line) > _MAX_ERROR_BYTES:  # the end says what to do
            line = line[: _MAX_ERROR_BYTES // 2 - 5] + b" ... " + line[-_MAX_ERROR_BYTES // 2 :]
        padded = np.frombuffer(line.ljust(_MAX_ERROR_BYTES, b"\0"), np.uint8)
        lines = [row.tobytes().rstrip(b"\0") for row in multihost_utils.process_allgather(padded)]
        others = [b"process %d: %b" % (i, found) for i, found in enumerate(lines) if found]
        problem = problem or b"".join(others[:1]).decode(errors="replace")
    if problem:
        raise UserError(problem)


def roll_call(processes: Processes) -> None:
    """Returns when all processes are there and agree on their number.

    Raises:
      UserError: on every process alike, after `start_seconds` or as soon as two contradict.
    """
    error = _answer(processes) if processes.process_id else _call(processes)
    if error:
        raise UserError(f"preflight: {error}")


def _call(processes: Processes) -> str:
    """Process 0: waits for the others, then tells all of them what was wrong, if anything."""
    deadline = time.monotonic() + processes.start_seconds
    answers: queue.Queue[tuple[socket.socket, int, int]] = queue.Queue()
    num_processes, present, error = processes.num_processes, {0}, ""
    with contextlib.ExitStack() as stack:
        try:
            server = socket.create_server(("", processes.port), backlog=num_processes)
        except OSError as caught:
            raise UserError(
                f"{_PREFIX}COORDINATOR: cannot listen on port {processes.port} "
                f"({caught.strerror}). Use another port."
            ) from caught
        listener = stack.enter_context(server)
        listener.settimeout(_POLL_SECONDS)
        connections = []
        while len(present) < num_processes and not error:
            with contextlib.suppress(TimeoutError, ConnectionError):
                connection, _ = listener.accept()
                # Each is heard in a thread of its own, so that a silent one holds up no other.
                given = (connection, processes.secret, answers)
                threading.Thread(target=_hear, args=given, daemon=True).start()
            while not answers.empty() and not error:
                connection, other, expects = answers.get()
                connections.append(stack.enter_context(connection))
                if expects != num_processes:
                    error = (
                        f"process 0 expected {num_processes} processes, found process {other}, "
                        f"which expected {expects}"
                    )
                elif other in present:
                    error = f"expected one process {other}, found two"
                present.add(other)
            if not error and len(present) < num_processes and time.monotonic() > deadline:
                error = (
                    f"expected {num_processes} processes, found {len(present)} within "
                    f"{processes.start_seconds:.0f} s: {', '.join(map(str, sorted(present)))}"
                )
        for connection in connections:
            with contextlib.suppress(OSError):
                _send(connection, {"error": error})
    return error


def _hear(connection: socket.socket, secret: str, answers: queue.Queue) -> None:
    """Puts (connection, process, processes) among the answers, or sends a stranger away."""
    try:
        connection.settimeout(_ANSWER_SECONDS)
        challenge = secrets.token_hex(16)
        _send(connection, {"challenge": challenge})
        said = _read(connection)
        process, processes, proof = said["process"], said["processes"], said["proof"]
        if (type(process), type(processes), type(proof)) != (int, int, str):
            raise TypeError("not of this protocol")
        if not 0 < process < processes:
            raise ValueError("no such process")
        if hmac.compare_digest(proof.encode(), _proof(secret, challenge, said).encode()):
            answers.put((connection, process, processes))
            return
        _send(connection, {"error": f"process 0 has another {_PREFIX}SECRET than this process"})
    except _NO_MESSAGE:
        pass  # a stranger, who gets no answer
    connection.close()


def _answer(processes: Processes) -> str:
    """Another process: reports to process 0 and hears from it."""
    deadline = time.monotonic() + processes.start_seconds
    said = {"process": processes.process_id, "processes": processes.num_processes}
    address, reason = (processes.host, processes.port), "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=_ANSWER_SECONDS) as link:
                challenge = str(_read(link)["challenge"])
                _send(link, said | {"proof": _proof(processes.secret, challenge, said)})
                # Process 0 counts its own seconds, which may have begun later than these.
                link.settimeout(processes.start_seconds + 30)
                return str(_read(link)["error"])
        except _NO_MESSAGE as error:
            reason = str(error)
            time.sleep(_POLL_SECONDS)
    return (
        f"process {processes.process_id} found no process 0 at {processes.host}:{processes.port} "
        f"within {processes.start_seconds:.0f} s ({reason})"
    )


def _proof(secret: str, challenge: str, said: Mapping[str, int]) -> str:
    """Returns what only those who know the secret can answer to a challenge."""
    message = f"{challenge} {said['process']} {said['processes']}"
    return hmac.digest(secret.encode(), message.encode(), "sha256").hex()


def _send(connection: socket.socket, message: Mapping[str, object]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket) -> Mapping[str, object]:
    """Returns one message; ValueError where it is none, or is too long."""
    with connection.makefile("rb") as file:
        return json.loads(file.readline(_MAX_LINE))
