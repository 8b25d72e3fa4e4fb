"""Rows of the data that are not used, and why."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An example that gives no pairs.

    `reason` is a category for counting, `detail` says what exactly is wrong, `num_pairs` pairs are
    lost with it.
    """

    key: str
    reason: str
    detail: str = ""
    num_pairs: int = 1


class SkipError(Exception):
    """Raised on a picture or a caption that is skipped; `at` makes it a `Skipped`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def at(self, key: str, num_pairs: int = 1) -> Skipped:
        return Skipped(key, self.reason, self.detail, num_pairs)


def reasons(skipped: Mapping[str, int]) -> str:
    """Lists reasons as "corrupt image 12, empty caption 3", the most frequent first."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"
