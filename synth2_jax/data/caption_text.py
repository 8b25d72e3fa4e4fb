"""Captions from anywhere -> clean text, or the reason why not."""

import dataclasses
import unicodedata

# Marks that turn the direction of the text around them: a caption could pass for another.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class CaptionRejected(Exception):
    """Why a caption is not used: `reason`, in words that many captions share, and a detail."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class CaptionLimits:
    """`max_chars`: longer captions are not used (they are rather pages than captions)."""

    max_chars: int = 2000

    def __post_init__(self):
        if self.max_chars < 1:
            raise ValueError(f"max_chars: found {self.max_chars}, expected at least 1")


def clean_caption(found: bytes | str, limits: CaptionLimits = CaptionLimits()) -> str:
    """Text of any script in one line: control characters and runs of white space are one space.

    Raises:
      CaptionRejected: not UTF-8, empty, or too long.
    """
    try:
        text = found.decode("utf-8") if isinstance(found, bytes) else found
        text.encode("utf-8")  # JSON can hold halves of characters
    except UnicodeError as error:
        raise CaptionRejected("caption not UTF-8", str(error)) from None
    text = "".join(
        " " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
        if char not in _BIDI
    )
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if not text:
        raise CaptionRejected("empty caption")
    if len(text) > limits.max_chars:
        raise CaptionRejected("caption too long", f"{len(text):,} characters")
    return text
