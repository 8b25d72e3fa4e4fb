"""JSON that came with third-party checkpoints: an object whose values have the types expected."""

import pathlib
from collections.abc import Mapping
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.files import load_json

Types = type | tuple[type, ...]
_MAX_INT = 2**31 - 1  # no size in a config is larger


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file; UserError if there is something else."""
    return parse_object(path.read_bytes(), path)


def parse_object(text: bytes, path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a part of a file, `text`; UserError as `read_object`."""
    try:
        value = load_json(text)
    except ValueError as error:
        raise UserError(
            f"{path}: is not JSON ({error!s:.200}); was its download cut short?"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {value!r:.40}, expected a JSON object")
    return value


def check_types(held: Mapping[str, Any], types: Mapping[str, Types], where: object) -> None:
    """Raises UserError unless the values of the keys that are there have these types.

    A bool is no int here, and an int is at most 2**31 - 1.
    """
    for key, expected in types.items():
        kinds = expected if isinstance(expected, tuple) else (expected,)
        value = held.get(key)
        fits = bool in kinds if isinstance(value, bool) else isinstance(value, kinds)
        if isinstance(value, int) and abs(value) > _MAX_INT:
            fits = False
        if key in held and not fits:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise UserError(f"{where}: {key}: found {value!r:.60}, expected {names}")
