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
    lock = _Lock(file, named, command)
    try:
        made = [path for path in (file.parent, *file.parent.parents) if not path.exists()]
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{named}: cannot write there ({error.strerror}). Choose a folder that you can write "
            "to."
        ) from error
    stop = threading.Event()
    beats = threading.Thread(target=lock.beat, args=(stop,), daemon=True)
    beats.start()
    try:
        yield
    finally:
        stop.set()
        beats.join()
        with contextlib.suppress(OSError):
            if lock.holder().get("token") == lock.owner["token"]:
                file.unlink()
            for folder in made:
                folder.rmdir()  # fails on the first that is not empty
        os.close(lock.descriptor)


class _Lock:
    """The open file, its name, and what this process writes into it."""

    def __init__(self, file: pathlib.Path, named: str, command: str):
        self.file, self.named, self.descriptor = file, named, -1
        self.owner = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "command": command,
            "beat": 0,
        }

    def acquire(self) -> None:
        """Opens the file, locks it and writes the owner; again if it is removed meanwhile."""
        while True:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                created = True
            except FileExistsError:
                created = False
                try:
                    self.descriptor = os.open(self.file, os.O_RDWR)
                except FileNotFoundError:  # released just now
                    continue
            try:
                if self._take(created):
                    return
            except BaseException:
                os.close(self.descriptor)
                raise
            os.close(self.descriptor)

    def _take(self, created: bool) -> bool:
        """Returns whether the lock is ours; False when the file was removed."""
        self.owner["machine"] = _machine(self.descriptor)
        by_kernel = _flock(self.descriptor)
        found = self.holder()
        if by_kernel is False:
            raise self._in_use(found)
        try:  # whether the open file still has this name
            if not os.path.samestat(os.fstat(self.descriptor), self.file.stat()):
                return False
        except FileNotFoundError:
            return False
        is_final = by_kernel and found.get("machine") == self.owner["machine"]
        if not created and not is_final and not self._is_dead(found):
            return False
        os.ftruncate(self.descriptor, 0)
        self._write()
        if not created and not is_final:
            time.sleep(2 * _POLL_SECONDS)  # two that saw the same death: the last to write has it
            if (now := self.holder()).get("token") != self.owner["token"]:
                raise self._in_use(now)
        return True

    def _is_dead(self, found: dict[str, Any]) -> bool:
        """Returns whether the count stays; UserError if it rises, False if the file goes."""
        print(
            f"synth2: {self.named}: {_who(found)} held it; waiting up to {DEAD_SECONDS:.0f} s to "
            "see whether that process is alive",
            file=sys.stderr,
        )
        deadline = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            if not self.file.exists():
                return False
            if (now := self.holder()) != found:
                raise self._in_use(now)
        return True

    def beat(self, stop: threading.Event) -> None:
        """Raises the count until `stop`; ends the process if it was taken for dead."""
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # such as a full disk: the next beat may pass
                found = self.holder()
                if found and found.get("token") != self.owner["token"]:
                    return _lost(self.named, found)
                self.owner["beat"] += 1
                self._write()

    def holder(self) -> dict[str, Any]:
        """Returns the file's contents; {} if it is gone or half-written."""
        try:
            with open(self.file, "rb") as opened:  # opened each time: NFS looks at the server then
                found = json.loads(opened.read(_MAX_BYTES))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        os.pwrite(self.descriptor, json.dumps(self.owner).encode(), 0)
        os.fsync(self.descriptor)  # other machines see it from now on

    def _in_use(self, found: dict[str, Any]) -> UserError:
        return UserError(
            f"{self.named}: in use by {_who(found)}. Wait until it ends, or choose another folder."
        )


def _lost(named: str, found: dict[str, Any]) -> None:
    """Ends the process at once: it was taken for dead, and two must not write."""
    line = f"{_who(found)} took this process for dead and writes there now; this one ends"
    print(f"synth2: {named}: {line}", file=sys.stderr, flush=True)
    os._exit(1)


def _flock(descriptor: int) -> bool | None:
    """Returns whether the kernel gives the lock; None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


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
    pid, host, command, started = map(found.get, ("pid", "host", "command", "started"))
    return f"process {pid} on {host} ({command}, since {started})"
