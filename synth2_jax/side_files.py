"""Files that a stage leaves for itself or the next one, checked where they are read."""

import pathlib
from typing import Any, TypeVar

from synth2_jax import config
from synth2_jax.errors import UserError
from synth2_jax.files import read_json

RecordT = TypeVar("RecordT")


def read_as(cls: type[RecordT], path: pathlib.Path, left_by: str) -> RecordT:
    """Returns the JSON object in a file of the stage `left_by` as the dataclass `cls`.

    As `config.build`; a ValueError of the class's `__post_init__` says what is wrong.

    Raises:
      UserError: no such file, not JSON, or a value that is missing, unknown or of another type.
    """
    return parse_as(cls, read_json(path, left_by), path, left_by)


def parse_as(cls: type[RecordT], values: Any, path: pathlib.Path, left_by: str) -> RecordT:
    """Does what `read_as` does with values that were read from `path`."""
    try:
        return config.build(cls, values, f"{path}: value", exact=True)
    except UserError as error:
        raise UserError(f"{error}; expected what `synth2 {left_by}` leaves there") from error


def first_difference(found: Any, expected: Any, key: str = "") -> tuple[str, str] | None:
    """Returns what differs first in two JSON values, as ("a.b 'found'", "'expected'").

    None if nothing does; a key that is not there is as one with null.
    """
    if found == expected:
        return None
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted({*found, *expected}):
            path = f"{key}.{name}".removeprefix(".")
            if difference := first_difference(found.get(name), expected.get(name), path):
                return difference
        return None
    if isinstance(found, list) and isinstance(expected, list) and len(found) != len(expected):
        return f"{len(found)} {key}", str(len(expected))
    return f"{key} {found!r}", repr(expected)
