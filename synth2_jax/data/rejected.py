"""Why a picture or a caption is not used."""

from collections.abc import Mapping


class Rejected(Exception):
    """`reason` is in words that many examples share, `detail` of this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def reasons(skipped: Mapping[str, int]) -> str:
    """ "corrupt image 12, empty caption 3", the most frequent first."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"
