"""Class lists: names in the config, a file with one name a line, or a built-in list."""

import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from absl import logging

from synth2_jax.errors import UserError

COMMON_OBJECTS = "common_objects"
_FOLDER = pathlib.Path(__file__).parent / "class_lists"
_MAX_CHARACTERS = 100


def load_classes(
    given: Sequence[str] | str, built_in: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...]:
    """Returns distinct class names, in order.

    Names that differ only in case or spaces are one class, spelled as the first of them; the log
    counts such names.

    Args:
      given: names, or text with commas between names. Each is the name of a built-in list
        ("common_objects" and those of `built_in`), a file (it holds a "/" or ends in ".txt"), or a
        class name. In files, lines that start with "#" are comments.
      built_in: further lists by name.

    Raises:
      UserError: a missing file, a line that is no class name, or no names at all.
    """
    items = given.split(",") if isinstance(given, str) else given
    names: list[str] = []
    for item in filter(str.strip, items):
        if item in (built_in or {}):
            names += built_in[item]
        elif item == COMMON_OBJECTS:
            names += read_class_list(_FOLDER / f"{COMMON_OBJECTS}.txt")
        elif "/" in item or item.endswith(".txt"):
            names += read_class_list(pathlib.Path(item))
        else:
            names.append(_name(item, "classes"))
    if not names:
        raise UserError(
            "classes: found none, expected class names, files with one name a line, or a built-in "
            f"list ({', '.join((COMMON_OBJECTS, *(built_in or {})))})"
        )
    return _merged(names)


def read_class_list(path: pathlib.Path) -> list[str]:
    """Reads the names in a file, one a line.

    Raises:
      UserError: a missing file, or a line that is not UTF-8 or no class name; with its number.
    """
    if not path.is_file():
        raise UserError(
            f"classes {str(path)!r}: no such file. Give a file with one class name a line."
        )
    names = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}: line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8, expected a class name") from error
        if text and not text.startswith("#"):
            names.append(_name(text, where))
    if not names:
        raise UserError(f"{path}: found no class names, expected one a line")
    return names


def _name(text: str, where: str) -> str:
    name = text
    if len(text) <= 10 * _MAX_CHARACTERS:  # many combining marks take minutes to normalize
        name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name.isprintable() or not re.search(r"\w", name) or len(name) > _MAX_CHARACTERS:
        raise UserError(
            f"{where}: found {text!r:.60}, expected a class name: letters, no control characters, "
            f"at most {_MAX_CHARACTERS} characters"
        )
    return name


def _merged(names: Sequence[str]) -> tuple[str, ...]:
    kept: dict[str, str] = {}
    twice: dict[str, None] = {}
    for name in names:
        key = name.casefold()
        if key in kept:
            twice[kept[key]] = None
        kept.setdefault(key, name)
    if len(kept) < len(names):
        logging.warning(
            "classes: %d of %d names are duplicates and were merged: %s",
            len(names) - len(kept),
            len(names),
            ", ".join(map(repr, list(twice)[:10])) + (", ..." if len(twice) > 10 else ""),
        )
    return tuple(kept.values())
