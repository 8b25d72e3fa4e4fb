"""Captions -> clean text, or the reason why they are skipped."""

import dataclasses
import unicodedata
from typing import Any

from synth2_jax.data.skipped import SkipError

# Marks that change the direction of text: with them a caption can look like a different one.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BYTE_ORDER_MARK = "\ufeff"  # some editors put it at the start of a UTF-8 file
_DECOMPOSED = 4  # NFC joins up to four characters into one
_UNITS_PER_CHAR = 4 * _DECOMPOSED  # bytes of one character of a clean caption, and white space


@dataclasses.dataclass(frozen=True)
class CaptionLimits:
    """Limits on the length of captions.

    Attributes:
      max_chars: longer captions are skipped, as they are whole pages.
    """

    max_chars: int = 2000

    def __post_init__(self):
        if self.max_chars < 1:
            raise ValueError(f"max_chars: found {self.max_chars}, expected at least 1")


def clean_caption(
    found: Any, limits: CaptionLimits = CaptionLimits(), what: str = "caption"
) -> str:
    """Returns text in one line: each run of control characters and white space becomes one space.

    `found` is text, or bytes that should be UTF-8; anything else, as JSON may have, is skipped.
    `what` is the word for it in reasons, such as "question".

    Raises:
      SkipError: not text, not UTF-8, empty, or too long.
    """
    if not isinstance(found, str | bytes):
        raise SkipError(f"{what} not text", f"found {found!r:.40}")
    if len(found) > _UNITS_PER_CHAR * limits.max_chars:
        raise SkipError(f"{what} too long", f"{len(found):,} bytes or characters")
    try:
        text = found.decode("utf-8") if isinstance(found, bytes) else found
        text.encode("utf-8")  # JSON can hold halves of characters
    except UnicodeError as error:
        raise SkipError(f"{what} not UTF-8", str(error)) from None
    text = "".join(
        " " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text.removeprefix(_BYTE_ORDER_MARK)
        if char not in _BIDI
    )
    text = " ".join(text.split())
    # The time that NFC takes grows with the square of the marks that it combines.
    if len(text) <= _DECOMPOSED * limits.max_chars:
        text = unicodedata.normalize("NFC", text)
    if not text:
        raise SkipError(f"empty {what}")
    if len(text) > limits.max_chars:
        raise SkipError(f"{what} too long", f"{len(text):,} characters")
    return text
