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
    lists = {COMMON_OBJECTS: _FOLDER / f"{COMMON_OBJECTS}.txt", **(built_in or {})}
    names: list[str] = []
    for item in filter(str.strip, given.split(",") if isinstance(given, str) else given):
        found = lists.get(item, pathlib.Path(item))
        if not isinstance(found, pathlib.Path):
            names += found
        elif item in lists or "/" in item or item.endswith(".txt"):
            lines = read_lines(str(found), "classes", "class name")
            names += [_name(text, f"{found}: line {number}") for number, text in lines.items()]
        else:
            names.append(_name(item, "classes"))
    if not names:
        raise UserError(
            "classes: found none, expected class names, files with one name a line, or a built-in "
            f"list ({', '.join(lists)})"
        )
    kept: dict[str, str] = {}
    twice: dict[str, None] = {}
    for name in names:
        if (key := name.casefold()) in kept:
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


def read_lines(path: str, key: str, item: str) -> dict[int, str]:
    """Reads {number from 1: line} of a file with one `item` a line, without blanks and # comments.

    Raises:
      UserError: a missing file, one without such lines, or a line that is not UTF-8.
    """
    file, found = pathlib.Path(path), {}
    if not file.is_file():
        raise UserError(f"{key} {path!r}: no such file. Give a file with one {item} a line.")
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{key} {path}: line {number} is not UTF-8, expected a {item}. Save the file as "
                "UTF-8."
            ) from error
        if text and not text.startswith("#"):
            found[number] = text
    if not found:
        raise UserError(f"{key} {path}: found no {item}, expected one a line")
    return found


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
