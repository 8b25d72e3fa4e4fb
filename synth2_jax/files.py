"""Small files written so that they are either there whole or not at all."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from synth2_jax.errors import UserError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes under a temporary name, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {expected}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {value!r:.40}; {expected}")
    return value


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of `write_json_lines`.

    Raises:
      UserError: no such file, or a line that is not a JSON object, by its number.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected one JSON object a line")
    rows = []
    # Not str.splitlines, which also splits at characters that JSON strings may hold, as U+2028.
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines + [last] * (last != b""), start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is {row!r:.40}, expected a JSON object")
        rows.append(row)
    return rows
