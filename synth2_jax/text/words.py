"""Words of a caption in any script, for counting, blocklists and duplicates."""

import re
import unicodedata

# Thai, Lao, Burmese, Khmer, kana and Chinese characters stand without spaces: each is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def fold(text: str) -> str:
    """`text` without differences of case and of compatible characters (NFKC)."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """Folded words, punctuation removed.

    >>> words("A T-shirt, RED.")
    ['a', 't', 'shirt', 'red']
    """
    return _WORD.findall(fold(text))


def count_words(text: str) -> int:
    """Splits a text at spaces; in scripts without spaces, into characters."""
    return len(words(text)) if is_unspaced(text) else len(text.split())


def is_unspaced(text: str) -> bool:
    """Returns whether a character of it is of a script without spaces between words."""
    return not text.isascii() and _UNSPACED_CHARACTER.search(text) is not None
