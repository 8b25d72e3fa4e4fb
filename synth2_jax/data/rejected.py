"""Why a picture or a caption is skipped."""

from collections.abc import Mapping


class Rejected(Exception):
    """A picture or a caption that is skipped.

    `reason` is a category for counting, `detail` says what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def reasons(skipped: Mapping[str, int]) -> str:
    """Lists reasons as "corrupt image 12, empty caption 3", the most frequent first."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"
