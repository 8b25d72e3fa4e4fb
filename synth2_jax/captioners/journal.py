"""Answers that were paid for, one JSON object a line, on the disk before they are used.

A line is appended and synced as its answer arrives, so a kill loses no more than the line it tears.
"""

import fcntl
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from synth2_jax.errors import UserError


class Journal:
    """A context manager around a file of answers, each under the key of its request.

    Raises:
      UserError: another process has the file open, or a line that is not the last is damaged.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._answers: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"{self._path}: another run is writing there") from error
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception_info) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Mapping[str, Any] | None:
        return self._answers.get(key)

    def answers(self) -> list[Mapping[str, Any]]:
        """All of them, also those that this run has no use for."""
        return list(self._answers.values())

    def append(self, key: str, answer: Mapping[str, Any]) -> None:
        """Returns when the answer is on the disk."""
        # In ASCII: an answer may hold half of a surrogate pair, which has no UTF-8.
        line = json.dumps({"key": key, **answer}) + "\n"
        self._file.write(line.encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._answers[key] = answer

    def _read(self) -> None:
        self._file.seek(0)
        *lines, torn = self._file.read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                self._take(line)
            except (ValueError, LookupError, AttributeError) as error:
                raise UserError(
                    f"{self._path}: line {number} is damaged ({error}); delete that line, and its "
                    "caption is asked for anew"
                ) from error
        if not torn:
            return
        try:
            self._take(torn)
            self._file.write(b"\n")
        except (ValueError, LookupError, AttributeError):
            logging.warning("%s: the last line is torn and is left out", self._path)
            self._file.truncate(sum(len(line) + 1 for line in lines))

    def _take(self, line: bytes) -> None:
        answer = json.loads(line)
        self._answers[answer.pop("key")] = answer
