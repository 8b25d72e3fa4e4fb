"""Names of files: patterns that name many, short names for keys, and paths inside a folder."""

import glob
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from synth2_jax.data.skipped import SkipError
from synth2_jax.errors import UserError


def find_files(pattern: str, key: str) -> list[pathlib.Path]:
    """Files of a pattern in order: `*`, `?` and `[...]` as in a shell, `{000..331}`, `{a,b}`.

    A file or folder whose name is exactly the pattern, special characters included, comes first.

    Raises:
      UserError: there is none, or one that braces name is missing; begins with `key`.
    """
    if not pattern:
        raise UserError(f"{key}: no path given, expected files such as data-{{000..099}}.tar")
    folder, rest = _literal_folder(os.path.expanduser(pattern))
    paths = []
    for name in [rest] if os.path.isfile(os.path.join(folder, rest)) else _expand_braces(rest):
        found = [path := os.path.join(folder, name)]
        if not os.path.isfile(path) and glob.has_magic(name):
            found = sorted(glob.glob(os.path.join(glob.escape(folder), name), recursive=True))
        files = [path for path in found if not os.path.isdir(path)]
        if found and not files and os.path.isdir(found[0]):
            raise UserError(f"{key}: {found[0]} is a folder, expected files. Name those in it.")
        missing = [path for path in files if not os.path.isfile(path)]  # such as a dead link
        if missing or not files:
            raise UserError(f"{key}: no file {(missing or [path])[0]}")
        paths += files
    if not paths:  # such as of {9..0}
        raise UserError(f"{key}: no file {pattern}")
    return [pathlib.Path(path) for path in {os.path.abspath(path): path for path in paths}.values()]


def _literal_folder(pattern: str) -> tuple[str, str]:
    """Returns (the longest beginning of the pattern that is a folder, the rest)."""
    folder, rest = os.path.split(pattern)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
        rest = os.path.join(name, rest)
    return folder, rest


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    first, last, choices = match.groups()
    if choices is None:
        parts = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    else:
        parts = choices.split(",")
    for part in parts:
        yield from _expand_braces(f"{pattern[: match.start()]}{part}{pattern[match.end() :]}")


def describe_files(name: str, paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Identifies files by their names and sizes, without reading them."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.name) + f" {path.stat().st_size}\n".encode())
    return {"source": name, "files": len(paths), "files_sha256": digest.hexdigest()}


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns distinct names of files, without their common folder, if possible without endings.

    No name is the beginning of another name before a "/", so that keys of two files never collide.
    """
    common = os.path.commonpath([path.parent.absolute() for path in paths])
    names = [os.path.relpath(path, common) for path in paths]
    short = [name.removesuffix(path.suffix) for name, path in zip(names, paths, strict=True)]
    folders = {str(folder) for name in short for folder in pathlib.PurePath(name).parents}
    return names if len(set(short)) < len(short) or folders & set(short) else short


def inside(folder: pathlib.Path, name: Any) -> pathlib.Path:
    """Returns the path of a file in the folder, from its name in a file of annotations.

    An absolute name is allowed if it leads into the folder.

    Raises:
      SkipError: not a name, or one that leads out of the folder.
    """
    if not isinstance(name, str) or not name:
        raise SkipError("image name not text", f"found {name!r:.40}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SkipError("image name not UTF-8", str(error)) from None
    root = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(root, name))
    if "\0" in name or path == root or os.path.commonpath([root, path]) != root:
        raise SkipError("image outside of the folder", f"{name!r:.80} leads out of {folder}")
    return pathlib.Path(path)
