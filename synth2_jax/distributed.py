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
from collections.abc import Iterator, Mapping

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


@dataclasses.dataclass(frozen=True)
class Processes:
    """What the launcher said: see the file's docstring."""

    host: str
    port: int
    num_processes: int
    process_id: int
    num_devices: int | None = None
    start_seconds: float = 300.0
    secret: str = dataclasses.field(default="", repr=False)


def from_environment(environ: Mapping[str, str] = os.environ) -> Processes | None:
    """What this process is one of; None when it is alone.

    Raises:
      UserError: a variable is missing or no number.
    """
    coordinator = environ.get(f"{_PREFIX}COORDINATOR")
    if coordinator is None:
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port[:9]) <= 65535:
        raise UserError(
            f"{_PREFIX}COORDINATOR: found {coordinator!r}, expected HOST:PORT with a port from 1 "
            "to 65535"
        )
    seconds = environ.get(f"{_PREFIX}START_SECONDS", "300")
    try:
        start_seconds = float(seconds)
    except ValueError:
        start_seconds = math.nan
    if not 0 < start_seconds < math.inf:
        raise UserError(f"{_PREFIX}START_SECONDS: found {seconds!r}, expected a number above 0")
    processes = Processes(
        host,
        int(port),
        _whole(environ, "NUM_PROCESSES", 1),
        _whole(environ, "PROCESS_ID", 0),
        _whole(environ, "NUM_DEVICES", 1) if f"{_PREFIX}NUM_DEVICES" in environ else None,
        start_seconds,
        environ.get(f"{_PREFIX}SECRET", ""),
    )
    if not processes.process_id < processes.num_processes:
        raise UserError(
            f"{_PREFIX}PROCESS_ID: found {processes.process_id}, expected 0 to "
            f"{processes.num_processes - 1}, of {_PREFIX}NUM_PROCESSES"
        )
    return processes


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
    _check("processes", jax.process_count(), processes.num_processes)
    if processes.num_devices is not None:
        _check("devices", jax.device_count(), processes.num_devices)
    ones = int(sharding.over_devices(jnp.sum, np.int32(1)))
    _check("as the sum of a 1 from every device", ones, jax.device_count())


@contextlib.contextmanager
def through_process_0(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters `context` on process 0 for all processes; its UserError is raised on each of them."""
    if not jax.distributed.is_initialized():
        with context:
            yield
        return
    with contextlib.ExitStack() as stack:
        error = np.zeros(_MAX_ERROR_BYTES, np.uint8)
        if not jax.process_index():
            try:
                stack.enter_context(context)
            except UserError as caught:
                line = str(caught).encode()[:_MAX_ERROR_BYTES]
                error[: len(line)] = np.frombuffer(line, np.uint8)
        line = multihost_utils.broadcast_one_to_all(error).tobytes().rstrip(b"\0")
        if line:
            raise UserError(line.decode(errors="replace"))
        yield


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
    present: dict[int, socket.socket] = {}
    error = ""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(
                socket.create_server(("", processes.port), backlog=processes.num_processes)
            )
        except OSError as caught:
            raise UserError(
                f"{_PREFIX}COORDINATOR: cannot listen on port {processes.port} "
                f"({caught.strerror}). Use another port."
            ) from caught
        listener.settimeout(_POLL_SECONDS)
        over = threading.Event()
        receiver = threading.Thread(
            target=_receive, args=(listener, processes.secret, answers, over), daemon=True
        )
        receiver.start()
        stack.callback(receiver.join)  # so that the port is free for JAX
        stack.callback(over.set)
        while len(present) < processes.num_processes - 1 and not error:
            if time.monotonic() > deadline:
                found = [0, *sorted(present)]
                error = (
                    f"expected {processes.num_processes} processes, found {len(found)} within "
                    f"{processes.start_seconds:.0f} s: {', '.join(map(str, found))}"
                )
                break
            try:
                connection, other, expects = answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            stack.enter_context(connection)
            if expects != processes.num_processes:
                error = (
                    f"process 0 expected {processes.num_processes} processes, found process "
                    f"{other}, which expected {expects}"
                )
            elif other in present:
                error = f"expected one process {other}, found two"
            present[len(present) + processes.num_processes if error else other] = connection
        for connection in present.values():
            with contextlib.suppress(OSError):
                _send(connection, {"error": error})
    return error


def _receive(
    listener: socket.socket, secret: str, answers: queue.Queue, over: threading.Event
) -> None:
    """Hears every connection in a thread of its own, so that a silent one holds up no other."""
    while not over.is_set():
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection, _ = listener.accept()
            threading.Thread(target=_hear, args=(connection, secret, answers), daemon=True).start()


def _hear(connection: socket.socket, secret: str, answers: queue.Queue) -> None:
    """Puts (connection, process, processes) among the answers, or sends a stranger away."""
    try:
        connection.settimeout(_ANSWER_SECONDS)
        challenge = secrets.token_hex(16)
        _send(connection, {"challenge": challenge})
        said = _read(connection)
        process, processes, proof = said["process"], said["processes"], said["proof"]
        if type(process) is not int or type(processes) is not int or type(proof) is not str:
            raise TypeError("not of this protocol")
        if not 0 < process < processes:
            raise ValueError("no such process")
        if hmac.compare_digest(proof.encode(), _proof(secret, challenge, said).encode()):
            answers.put((connection, process, processes))
            return
        _send(connection, {"error": f"process 0 has another {_PREFIX}SECRET than this process"})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # a stranger, who gets no answer
    connection.close()


def _answer(processes: Processes) -> str:
    """Another process: reports to process 0 and hears from it."""
    deadline = time.monotonic() + processes.start_seconds
    said = {"process": processes.process_id, "processes": processes.num_processes}
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(
                (processes.host, processes.port), timeout=_ANSWER_SECONDS
            ) as link:
                challenge = str(_read(link)["challenge"])
                _send(link, said | {"proof": _proof(processes.secret, challenge, said)})
                # Process 0 counts its own seconds, which may have begun later than these.
                link.settimeout(processes.start_seconds + 30)
                return str(_read(link)["error"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def _check(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"preflight: expected {expected} {what}, found {found}")


def _whole(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(f"{_PREFIX}{name}", "")
    if not text.isdecimal() or len(text) > 9 or int(text) < least:
        raise UserError(
            f"{_PREFIX}{name}: found {text or 'nothing'!r}, expected a whole number from {least} "
            f"on, for {_PREFIX}COORDINATOR is set"
        )
    return int(text)
