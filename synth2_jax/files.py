"""Small files written so that they are either there whole or not at all."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from synth2_jax.errors import UserError

# The texts of a full disk and of the end of a quota, in the error of whoever meets it.
FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large")
# What TensorFlow says behind the path of a file, in errors of its own.
_REFUSALS = [
    os.strerror(number)
    for number in (errno.EACCES, errno.ENOENT, errno.EROFS, errno.EISDIR, errno.EIO, errno.ELOOP)
]
_BEFORE = ".before"  # ends the name of a folder that is being replaced
_LITTLE = 1 << 20  # bytes of room that are as good as none


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """Returns a hidden name beside `path` that no process of any machine has taken."""
    # Process ids repeat on machines that share the storage.
    return path.with_name(f".{_short(path.name)}.{secrets.token_hex(8)}.tmp")


def leftovers(path: pathlib.Path, suffix: str = ".tmp") -> list[pathlib.Path]:
    """Returns the temporary files of killed writers of `path`; needs the lock of its folder."""
    pattern = re.compile(rf"\.{re.escape(_short(path.name))}\.[0-9a-f]{{16}}{re.escape(suffix)}")
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return [found for found in beside if pattern.fullmatch(found.name)]


def _short(name: str) -> str:
    """A name of at most 40 characters: a temporary name may have 255 bytes."""
    if len(name) <= 40:
        return name
    return f"{name[:27]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"


def system_problem(error: Exception, folders: Iterable[str | os.PathLike[str]]) -> str | None:
    """Returns one line on a path that the system refuses; None for any other error.

    A full disk is recognised by its text too, for TensorFlow has classes of its own for it. The
    system does not say which disk is full, so those of `folders` are looked at.
    """
    if reason := _full(error):
        full = [folder for folder in folders if _free_bytes(folder) < _LITTLE]
        where = full or list(filter(None, [getattr(error, "filename", None)]))
        if not where:
            with_room = " and ".join(map(str, folders))
            return f"{reason}, though {with_room} have room; is the output's disk full?"
        return f"{' or '.join(map(str, where))}: {reason}. Make room and give the same command."
    if not isinstance(error, OSError):
        is_tensorflow = type(error).__module__.startswith("tensorflow")
        if is_tensorflow and any(f"; {text}" in str(error) for text in _REFUSALS):
            return f"{' '.join(str(error).split())}. Check the path."
        return None
    if "temporary directory" in str(error.strerror):  # the `tempfile` module found none at all
        return f"TMPDIR: {error.strerror}. Set TMPDIR to a folder with room."
    if not isinstance(error.filename, str | bytes):
        return None
    path = pathlib.Path(os.fsdecode(error.filename))
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path):.80}...: {error.strerror}. Choose a shorter name."
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"{path}: is a link to {os.readlink(path)}, which is not there. Repair or remove it."
    forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    advice = "Choose a place that you may read and write" if forbidden else "Check the path"
    return f"{path}: {error.strerror}. {advice}."


def _full(error: Exception) -> str | None:
    """The text of a full disk in an error."""
    return next((text for text in FULL_DISK if text in str(error)), None)


def _free_bytes(folder: str | os.PathLike[str]) -> float:
    """Returns the free bytes of the disk that holds `folder` or will; infinite if unknown."""
    path = pathlib.Path(folder).absolute()
    try:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return math.inf


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Gives a folder in TMPDIR, removed afterwards; UserError where TMPDIR cannot be used."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except Exception as error:  # TensorFlow has its own classes for what the system says
        reason = _full(error) or getattr(error, "strerror", None)
        if not reason:
            raise
        raise UserError(f"TMPDIR: {reason}. Set TMPDIR to a folder with room.") from error


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name to write to; `path` appears if the body ends well and its bytes are on disk."""
    temporary = temporary_name(path)
    try:
        with _as_the_user_knows(path, temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)  # the rename itself survives a power cut


def sync_folder(folder: pathlib.Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_written_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write to, which takes the place of `folder` if the body ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    before = temporary.with_suffix(_BEFORE)
    temporary.mkdir()
    try:
        with _as_the_user_knows(folder, temporary):
            yield temporary
            if folder.exists():
                os.rename(folder, before)
            os.rename(temporary, folder)
    finally:
        if before.exists() and not folder.exists():
            os.rename(before, folder)
        for left in (temporary, before):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _as_the_user_knows(path: pathlib.Path, temporary: pathlib.Path) -> Iterator[None]:
    """Puts `path` into an error on the temporary name, or on a full disk, which names nothing."""
    try:
        yield
    except OSError as error:
        full = error.filename is None and any(text in str(error) for text in FULL_DISK)
        if full or str(error.filename).startswith(str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


def clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed writers of a file or folder left; puts back what was being replaced.

    Raises:
      UserError: something cannot be removed.
    """
    for before in leftovers(path, _BEFORE):
        if not path.exists():
            os.rename(before, path)
    for left in [*leftovers(path), *leftovers(path, _BEFORE)]:
        try:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError as error:
            raise UserError(
                f"{left}: left by a command that was killed, and cannot be removed "
                f"({error.strerror}). Remove it."
            ) from error


def write_bytes(path: pathlib.Path, contents: bytes) -> None:
    """The file is there whole, or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(contents)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text by `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
    """One JSON value, indented."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def write_json_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows))


def finite(value: Any) -> Any:
    """`value` with None for NaN and the infinities, which Python writes though JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [finite(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: pathlib.Path, left_by: str) -> dict[str, Any]:
    """The JSON object in a file that the stage `left_by` writes.

    Raises:
      UserError: no such file, or something else in it, such as half of an object.
    """
    expected = f"expected what `synth2 {left_by}` leaves there"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {expected}")
    try:
        value = load_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {expected}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {value!r:.40}; {expected}")
    return value


def load_json(contents: bytes, *, surrogates: bool = False) -> Any:
    """Returns the JSON value of UTF-8 text, of what every program can write again.

    With `surrogates`, texts may hold halves of surrogate pairs, which cannot be written as UTF-8.

    Raises:
      ValueError: not JSON; or what Python reads and cannot write or count with: NaN and the
        infinities, whole numbers of more than 64 bits, halves of surrogate pairs, deep nesting.
    """
    try:
        value = _DECODER.decode(contents.decode("utf-8-sig"))
        if not surrogates and b"\\ud" in contents.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    except UnicodeEncodeError as error:
        raise ValueError("found half of a surrogate pair, expected whole characters") from error
    return value


def _whole_number(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"found the number {text:.20}..., expected one of 64 bits")
    return int(text)


def _finite_number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"found {text:.20}, expected a finite number")
    return value


_DECODER = json.JSONDecoder(
    parse_constant=_finite_number, parse_int=_whole_number, parse_float=_finite_number
)


def read_json_lines(path: pathlib.Path, *, surrogates: bool = False) -> list[dict[str, Any]]:
    """Returns the rows of `write_json_lines`; `surrogates` as in `load_json`.

    Raises:
      UserError: no such file, or a line that is not a JSON object, by its number.
    """
    with _opened(path) as file:
        return [_row(path, number, line, surrogates) for number, line in enumerate(file, start=1)]


def _opened(path: pathlib.Path) -> BinaryIO:
    """The file, which splits at b"\\n" alone, and not at what JSON strings may hold, as U+2028."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected one JSON object a line")
    return open(path, "rb")


class JsonLinesFile:
    """The rows of `write_json_lines`, any range of them, of a file that need not fit in memory.

    Attributes: `path`, `num_rows` and `sha256` of the file. Raises UserError if there is none.
    """

    _STRIDE = 4096  # rows between those whose offset is kept

    def __init__(self, path: pathlib.Path):
        self.path, self.num_rows = path, 0
        self._offsets, offset, digest = [0], 0, hashlib.sha256()
        with _opened(path) as file:
            for line in file:
                digest.update(line)
                self.num_rows += 1
                offset += len(line)
                if self.num_rows % self._STRIDE == 0:
                    self._offsets.append(offset)
        self.sha256 = digest.hexdigest()

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number of the line from 1, row); UserError on a line that is not a JSON object."""
        if start >= self.num_rows:
            return
        with open(self.path, "rb") as file:
            file.seek(self._offsets[start // self._STRIDE])
            for index in range(start - start % self._STRIDE, min(stop, self.num_rows)):
                line = file.readline()
                if index >= start:
                    yield index + 1, _row(self.path, index + 1, line)


def _row(path: pathlib.Path, number: int, line: bytes, surrogates: bool = False) -> dict[str, Any]:
    try:
        row = load_json(line, surrogates=surrogates)
    except ValueError as error:
        raise UserError(f"{path}: line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} is {row!r:.40}, expected a JSON object")
    return row
