"""Errors that the user can mend. `main` prints their one line and exits with code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config, path or file, as one line: the thing, the found and the expected."""


class DamagedError(Exception):
    """A file of ours is not as it was written; an older one may do in its place."""


class UnknownNameError(UserError):
    """Nothing has the name that was asked for, which may be the name of something else."""


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
