"""Captions from anywhere -> clean text, or the reason why not."""

import dataclasses
import unicodedata

from synth2_jax.data.rejected import Rejected

# Marks that turn the direction of the text around them: a caption could pass for another.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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
      Rejected: not UTF-8, empty, or too long.
    """
    try:
        text = found.decode("utf-8") if isinstance(found, bytes) else found
        text.encode("utf-8")  # JSON can hold halves of characters
    except UnicodeError as error:
        raise Rejected("caption not UTF-8", str(error)) from None
    text = "".join(
        " " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
        if char not in _BIDI
    )
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if not text:
        raise Rejected("empty caption")
    if len(text) > limits.max_chars:
        raise Rejected("caption too long", f"{len(text):,} characters")
    return text
