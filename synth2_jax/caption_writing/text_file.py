"""Reads existing captions: lines of text, or JSON objects in a .jsonl file.

A bad line becomes a draft with a reason to drop it: it is counted, and the rest is used.
"""

import codecs
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

from synth2_jax.caption_writing.drafts import Draft
from synth2_jax.caption_writing.filters import forms
from synth2_jax.errors import UserError
from synth2_jax.text.words import words

_MOST_SEARCHED = 10_000  # characters of a caption; many combining marks take long to normalize


class TextFileSource:
    """Reads the lines of a file as drafts; `draw` is the number of the line, from 1.

    A JSON object has the key "caption", and may have the key "class". Without a class, it is the
    class of the list that the caption names; longer names come first.

    `path` is of JSON lines if it ends in .jsonl, otherwise of plain text; `classes` is None if
    captions need no class. Raises UserError on a missing file.
    """

    def __init__(self, path: str, classes: Sequence[str] | None):
        self._path = pathlib.Path(path)
        if not self._path.is_file():
            raise UserError(
                f"text_file {path!r}: no such file. Give a file with one caption a line."
            )
        self._finder = None if classes is None else _class_finder(classes)

    def num_lines(self) -> int:
        """Counts all lines, also blank ones."""
        with open(self._path, "rb") as file:
            return sum(1 for _ in file)

    def read(self) -> Iterator[Draft]:
        """Yields a draft for each line that is not blank."""
        is_json = self._path.suffix == ".jsonl"
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                class_name, caption, reason = _parse(line, is_json)
                if not reason and class_name is None and self._finder:
                    class_name = self._finder(caption)
                    reason = "" if class_name else "class not named"
                yield Draft(class_name, number, caption, drop_reason=reason)

    def describe(self) -> dict[str, str]:
        """Returns the file's name and sha256, for a manifest."""
        with open(self._path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return {"file": self._path.name, "file_sha256": digest.hexdigest()}


def _parse(line: bytes, is_json: bool) -> tuple[str | None, str, str]:
    """Returns (class or None, caption, why the draft is dropped or "")."""
    try:
        text = line.decode()
        row = json.loads(text) if is_json else {"caption": text}
    except UnicodeDecodeError:
        return None, "", "not UTF-8"
    except (ValueError, RecursionError):
        return None, "", "not JSON"
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str):
        return None, "", "no caption"
    class_name = row.get("class")
    if class_name is not None and not isinstance(class_name, str):
        return None, "", "unknown class"
    return class_name, row["caption"].strip(), ""


def _class_finder(classes: Sequence[str]) -> Callable[[str], str | None]:
    """Returns a function that finds the class a caption names: the first of the longest names."""
    by_words: dict[tuple[str, ...], str] = {}
    for name in classes:
        for form in forms(name):
            for ending in ("", "s", "es"):
                by_words.setdefault(tuple(words(form + ending)), name)
    lengths = sorted({len(key) for key in by_words}, reverse=True)

    def find(caption: str) -> str | None:
        found = words(caption[:_MOST_SEARCHED])
        spans = ((start, length) for length in lengths for start in range(len(found) - length + 1))
        named = (by_words.get(tuple(found[start : start + length])) for start, length in spans)
        return next(filter(None, named), None)

    return find
