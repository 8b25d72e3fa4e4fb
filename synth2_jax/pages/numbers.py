"""Values of results, and numbers as pages write them: without a finite number, a dash."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

DASH = "–"
PERCENT = "\N{NO-BREAK SPACE}%"
_LARGEST = 1e100  # differences of such numbers are finite too


def lookup(tree, *path):
    """The value at a path of keys, or None where any of them is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of each value that is no mapping, or an empty one."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def finite(value) -> float | None:
    """The value as a float; None where it is missing, no number, or none that a chart can show."""
    if isinstance(value, (int, float, np.number)) and abs(value) <= _LARGEST:
        return float(value)
    return None


def gain(after, before) -> float | None:
    """(after - before) / before, or None where that says nothing."""
    after, before = finite(after), finite(before)
    return None if after is None or before is None or before <= 0 else after / before - 1


def number(value, digits: int = 1) -> str:
    """1234.5 -> "1,234.5"."""
    value = finite(value)
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", "−")


def percent(share, digits: int = 0) -> str:
    """0.31 -> "31 %"."""
    share = finite(share)
    return DASH if share is None else number(100 * share, digits) + PERCENT


def signed(value, digits: int = 1, unit: str = "") -> str:
    """2 -> "+2.0"."""
    value = finite(value)
    return DASH if value is None else f"{value:+,.{digits}f}".replace("-", "−") + unit


def signed_percent(share, digits: int = 1) -> str:
    """0.25 -> "+25.0 %"."""
    share = finite(share)
    return DASH if share is None else signed(100 * share, digits, PERCENT)


def duration(seconds) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    seconds = finite(seconds)
    if seconds is None:
        return DASH
    if seconds < 99.5:
        return f"{number(seconds, 0 if seconds >= 10 else 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
