"""Keeps answers that were paid for, one JSON object a line, on disk before they are used.

Each line is appended and synced when its answer arrives, so a killed run loses at most the line
that it was writing.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from synth2_jax.caption_writing.answers import Answer
from synth2_jax.errors import UserError

_CHECKSUM = "crc32"
_ROOM = 16 << 20  # bytes; more than the answers under way can take


class Journal:
    """File of answers, `answers` by the keys of their requests. A context manager.

    Raises:
      UserError: another process has the file open, or a line before the last is damaged.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.answers: dict[str, Answer] = {}

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # A buffer would keep a line that a full disk refuses, and write it later.
            self._file = stack.enter_context(open(self._path, "ab+", buffering=0))
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self._path}: another run is writing to it. Wait for it to end, or stop it."
                ) from error
            self._read()
            stack.pop_all()
        return self

    def __exit__(self, *exception_info) -> None:
        self._file.close()

    def check_room(self) -> None:
        """Raises UserError when the disk may have no room for the answers under way."""
        found = os.fstatvfs(self._file.fileno())
        free = found.f_bavail * found.f_frsize
        if found.f_blocks and free < _ROOM:  # some mounted file systems do not know their size
            raise UserError(
                f"{self._path}: the disk is full (found {free >> 20} MiB, expected {_ROOM >> 20} "
                "MiB); nothing more is asked. Make room, and run the same command again."
            )

    def append(self, key: str, answer: Answer) -> None:
        """Returns once the answer is on disk; UserError leaves the file unchanged."""
        row = {"key": key, **dataclasses.asdict(answer)}
        # In ASCII: an answer may hold half of a surrogate pair, which UTF-8 cannot encode.
        line = json.dumps({**row, _CHECKSUM: _checksum(row)}) + "\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._write(line.encode("ascii"))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise UserError(
                f"{self._path}: {error.strerror}; an answer that was paid for is lost, "
                f"the {len(self.answers)} before it are kept. Make room, and run the same command "
                "again."
            ) from error
        self.answers[key] = answer

    def _write(self, line: bytes) -> None:
        while line:
            line = line[self._file.write(line) :]

    def _read(self) -> None:
        self._file.seek(0)
        *lines, torn = self._file.read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                self._take(line)
            except ValueError as error:
                raise UserError(
                    f"{self._path}: line {number} is damaged ({error}). Delete that line; its "
                    "caption is asked for again."
                ) from error
        if not torn:
            return
        try:
            self._take(torn)
            self._write(b"\n")
        except ValueError:
            logging.warning("%s: the last line is incomplete and is removed", self._path)
            self._file.truncate(sum(len(line) + 1 for line in lines))

    def _take(self, line: bytes) -> None:
        """Reads the answer of a line; raises ValueError if the line is damaged."""
        try:
            row = json.loads(line)
            checksum = row.pop(_CHECKSUM, None)  # lines of earlier versions have none
            if checksum not in (None, _checksum(row)):
                raise ValueError(f"{_CHECKSUM} differs")
            key, answer = row.pop("key"), Answer(**row)
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no answer under a key: {error}") from error
        if not isinstance(key, str):
            raise ValueError(f"key: found {key!r:.60}, expected a text")
        self.answers[key] = answer


def _checksum(row: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(row).encode())
