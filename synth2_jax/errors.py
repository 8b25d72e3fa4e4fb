"""Errors that the user can mend. `main` prints their one line and exits with code 2."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in a config, path or file, as one line: the thing, the found and the expected."""


class ChangedError(UserError):
    """A run was begun with another config, part or data than it is to go on with."""


class DamagedError(Exception):
    """A file of ours is not as it was written; an older one may do in its place."""


class UnknownNameError(UserError):
    """Nothing has the name that was asked for, which may be the name of something else."""


@contextlib.contextmanager
def naming(key: str, value: str | os.PathLike[str]) -> Iterator[None]:
    """Puts `KEY=VALUE: ` in front of UserErrors that name no option.

    Code that reads a folder does not know by which option the folder was given.
    """
    try:
        yield
    except UserError as error:
        line = str(error)
        if line.startswith("--"):
            raise
        for start in (f"pairs {value}: ", f"{value}: ", f"{os.path.abspath(value)}: "):
            line = line.removeprefix(start)
        option = f"{key}={value}" if str(value) else key
        raise type(error)(f"{option}: {line}") from error


@contextlib.contextmanager
def in_section(name: str) -> Iterator[None]:
    """Makes `--config.NAME.KEY` of each `--config.KEY` in UserErrors.

    A section that is a whole config to the code that runs it is one part of what the user typed.
    """
    try:
        yield
    except UserError as error:
        line = re.sub(r"(?<![\w-])--config\.(?=\w)", f"--config.{name}.", str(error))
        raise type(error)(line) from error


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the tail of an "unknown name" message: the nearest known name, then the names.

    Of more than 20 names (parameters of a model) it lists the first 20.

    >>> nearest("cosin", ["linear", "cosine"])
    "did you mean 'cosine'? one of: cosine, linear"
    """
    names = sorted(str(known) for known in names)
    close = difflib.get_close_matches(str(name), names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    more = ", ..." if len(names) > 20 else ""
    return f"{guess}one of: {', '.join(names[:20]) or '(none)'}{more}"
