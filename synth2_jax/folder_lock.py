"""A lock for a folder: a second command that would write to the same folder is refused.

The lock is a file that says who holds it. Two things tell whether the holder is still alive:

- flock: the kernel releases it when the holder dies, however it dies. It is final on one machine.
- a count in the file that rises every BEAT_SECONDS. On shared storage flock may reach no further
  than one machine (some NFS, most FUSE), so the count of a holder on another machine is watched for
  DEAD_SECONDS. No clocks are compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from synth2_jax.errors import UserError

LOCK = ".synth2.lock"
BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0
_POLL_SECONDS = 1.0
_MAX_BYTES = 4096
_HELD = (errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def hold(file: pathlib.Path, named: str, command: str = "synth2") -> Iterator[None]:
    """Holds the lock in `file`; its folder is created, and removed at the end if it stays empty.

    Args:
      file: FOLDER/LOCK, or a file beside a folder that is replaced as a whole.
      named: what the user would type for the folder, such as "--workdir=DIR"; begins the error.
      command: what the holder does, for the error that another command gets.

    Raises:
      UserError: another process holds it, or the folder cannot be written to.
    """
    owner = {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": command,
        "beat": 0,
    }
    try:
        made = [path for path in (file.parent, *file.parent.parents) if not path.exists()]
        descriptor = _acquire(file, named, owner)
    except OSError as error:
        raise UserError(
            f"{named}: cannot write there ({error.strerror}). Choose a folder that you can write "
            "to."
        ) from error
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=(file, named, descriptor, owner, stop), daemon=True)
    beats.start()
    try:
        yield
    finally:
        stop.set()
        beats.join()
        with contextlib.suppress(OSError):
            if _read(file).get("token") == owner["token"]:
                file.unlink()
            for folder in made:
                folder.rmdir()  # fails on the first that is not empty
        os.close(descriptor)


def _acquire(file: pathlib.Path, named: str, owner: dict[str, Any]) -> int:
    """Returns the open file, locked, with `owner` in it."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        created = True
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            created = False
            try:
                descriptor = os.open(file, os.O_RDWR)
            except FileNotFoundError:  # released just now
                continue
        try:
            if _take(file, named, descriptor, owner, created):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(
    file: pathlib.Path, named: str, descriptor: int, owner: dict[str, Any], created: bool
) -> bool:
    """Whether the lock is ours; False when the file was removed meanwhile, to be tried again."""
    owner["machine"] = _machine(descriptor)
    by_kernel = _flock(descriptor)
    if by_kernel is False:
        raise _in_use(named, _read(file))
    if not _is_file(descriptor, file):
        return False
    if created:
        _write(descriptor, owner)
        return True
    found = _read(file)
    if not (by_kernel and found.get("machine") == owner["machine"]):
        if not _is_dead(file, named, found):
            return False
        os.ftruncate(descriptor, 0)
        _write(descriptor, owner)
        time.sleep(2 * _POLL_SECONDS)  # two that saw the same death: the last to write has it
        if _read(file).get("token") != owner["token"]:
            raise _in_use(named, _read(file))
        return True
    os.ftruncate(descriptor, 0)
    _write(descriptor, owner)
    return True


def _is_dead(file: pathlib.Path, named: str, found: dict[str, Any]) -> bool:
    """Whether the holder's count stands still; UserError if it rises, False if the file goes."""
    print(
        f"synth2: {named}: {_who(found)} held it; waiting up to {DEAD_SECONDS:.0f} s to see "
        "whether that process is alive",
        file=sys.stderr,
    )
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        if not file.exists():
            return False
        if (now := _read(file)) != found:
            raise _in_use(named, now)
    return True


def _beat(
    file: pathlib.Path, named: str, descriptor: int, owner: dict[str, Any], stop: threading.Event
) -> None:
    while not stop.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # such as a full disk: the next beat may pass
            found = _read(file)
            if found and found.get("token") != owner["token"]:
                return _lost(named, found)
            owner["beat"] += 1
            _write(descriptor, owner)


def _lost(named: str, found: dict[str, Any]) -> None:
    """Ends the process at once: it was taken for dead, and two must not write."""
    print(
        f"synth2: {named}: {_who(found)} took this process for dead and writes there now; this one "
        "ends",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _flock(descriptor: int) -> bool | None:
    """Whether the kernel gives the lock; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _is_file(descriptor: int, file: pathlib.Path) -> bool:
    """Whether the open file is the one of this name still."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read(file: pathlib.Path) -> dict[str, Any]:
    """The holder; {} if the file is gone or half-written."""
    try:
        with open(file, "rb") as opened:  # opened each time: NFS looks at the server then
            found = json.loads(opened.read(_MAX_BYTES))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(descriptor: int, owner: dict[str, Any]) -> None:
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)  # other machines see it from now on


def _machine(descriptor: int) -> str:
    """An id of this running kernel and the mounted storage, within which flock is final."""
    try:
        kernel = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = hex(uuid.getnode())
    return f"{kernel} {os.fstat(descriptor).st_dev}"


def _who(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    return (
        f"process {found.get('pid')} on {found.get('host')} ({found.get('command')}, since "
        f"{found.get('started')})"
    )


def _in_use(named: str, found: dict[str, Any]) -> UserError:
    return UserError(
        f"{named}: in use by {_who(found)}. Wait until it ends, or choose another folder."
    )
