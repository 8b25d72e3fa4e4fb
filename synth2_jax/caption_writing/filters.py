"""Filter of captions: a function of a draft that returns why the draft is dropped, or None."""

import dataclasses
import functools
import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Callable

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.classes import read_lines
from synth2_jax.caption_writing.drafts import Draft
from synth2_jax.caption_writing.languages import check_language, language_check
from synth2_jax.errors import UserError, nearest
from synth2_jax.text.words import count_words, is_unspaced, words

DUPLICATES = ("verbatim", "normalized", "near")

CaptionFilter = Callable[[Draft], str | None]

# Some languages and emoji need joiners and direction marks.
_ALLOWED_FORMAT = frozenset("\u200c\u200d\u200e\u200f")
_REFUSED_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
_MARKUP = re.compile(r"</?[a-zA-Z!][^<>]*>|&(?:[a-zA-Z]{2,8}|#x?[0-9a-fA-F]{1,6});")

# Plurals that do not begin with the singular.
_IRREGULAR = {
    **{"child": "children", "man": "men", "person": "people", "woman": "women"},
    **{"foot": "feet", "goose": "geese", "mouse": "mice", "tooth": "teeth"},
}


@dataclasses.dataclass(frozen=True)
class DraftFilterConfig:
    """Attributes:

    min_words, max_words: length of a caption in words, or in characters in scripts without spaces.
    max_characters: length of a caption in characters.
    names_class: whether a caption must name its class.
    language: code such as "en" (`languages.LANGUAGES`); "" for any. Needs the extra `captions`.
    blocklist: file with one word or phrase a line; a caption that holds one is dropped. Case does
      not count.
    duplicates: "verbatim", "normalized" (case and punctuation do not count) or "near", which needs
      the extra `captions`.
    similarity: least Jaccard similarity of near-duplicates, over words and pairs of words.
    """

    min_words: int = 3
    max_words: int | None = None
    max_characters: int = 1000
    names_class: bool = True
    language: str = ""
    blocklist: str = ""
    duplicates: str = "verbatim"
    similarity: float = 0.8

    def __post_init__(self):
        config_lib.check_counts(self, "min_words", "max_words", "max_characters")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(
                f"max_words: found {self.max_words}, expected at least `min_words`, "
                f"{self.min_words}"
            )
        if self.language:
            check_language(self.language)
        if self.duplicates not in DUPLICATES:
            raise UserError(
                f"duplicates: unknown {self.duplicates!r}; {nearest(self.duplicates, DUPLICATES)}"
            )
        if not 0.3 <= self.similarity <= 1:
            raise UserError(f"similarity: found {self.similarity}, expected 0.3 to 1")

    def describe(self) -> dict[str, object]:
        """Returns the settings for a manifest, with the blocklist's sha256 in place of its path."""
        found = dataclasses.asdict(self)
        if self.blocklist:
            contents = pathlib.Path(self.blocklist).read_bytes()
            found["blocklist"] = hashlib.sha256(contents).hexdigest()
        return found


def make_filter(config: DraftFilterConfig = DraftFilterConfig()) -> CaptionFilter:
    """Returns a function that returns why a draft is dropped, or None for a good one.

    It remembers the captions it has kept, verbatim or normalized. Near-duplicates are found by
    `duplicates.NearDuplicates`.

    Raises:
      UserError: the blocklist cannot be read, or a package for `language` is missing.
    """
    blocked = _phrases(config.blocklist) if config.blocklist else {}
    in_language = language_check(config.language) if config.language else lambda caption: True
    seen: set[str] = set()
    key = str if config.duplicates == "verbatim" else normalized

    def drop_reason(draft: Draft) -> str | None:
        if draft.drop_reason:
            return draft.drop_reason
        caption = draft.caption
        if not draft.finished:
            return "unfinished"
        if len(caption) > config.max_characters:
            return "too long"
        if reason := _malformed(caption):
            return reason
        num_words = count_words(caption)
        if num_words < config.min_words:
            return "too short"
        if config.max_words is not None and num_words > config.max_words:
            return "too long"
        needs_name = config.names_class and draft.class_name is not None
        if needs_name and not names(caption, draft.class_name):
            return "class not named"
        if not in_language(caption):
            return "another language"
        if blocked and _holds(words(caption), blocked):
            return "blocked"
        if key(caption) in seen:
            return "duplicate"
        seen.add(key(caption))
        return None

    return drop_reason


def normalized(caption: str) -> str:
    """Returns only the words, case-folded; a caption without words, such as emoji, is unchanged."""
    return " ".join(words(caption)) or caption


def names(caption: str, class_name: str) -> bool:
    """Returns whether a caption names its class, in the singular or plural.

    >>> names("two red cherries", "cherry"), names("a covered bridge", "red")
    (True, False)
    """
    return _naming(class_name).search(caption) is not None


def forms(class_name: str) -> tuple[str, ...]:
    """Returns a class name, and its plural if that is more than an ending.

    >>> forms("wine glass"), forms("kitchen knife")
    (('wine glass',), ('kitchen knife', 'kitchen knives'))
    """
    start, space, last = class_name.rpartition(" ")
    plural = ""
    if last.lower() in _IRREGULAR:
        plural = _IRREGULAR[last.lower()]
    elif last.endswith("y"):
        plural = f"{last[:-1]}ies"
    elif last.endswith(("f", "fe")):
        plural = f"{last.removesuffix('e')[:-1]}ves"
    return (class_name, f"{start}{space}{plural}") if plural else (class_name,)


@functools.lru_cache(maxsize=1 << 16)
def _naming(class_name: str) -> re.Pattern[str]:
    # At the start of a word, so that "red" is not found in "covered". An ending may follow.
    edge = "" if is_unspaced(class_name[0]) else r"(?<!\w)"
    either = "|".join(map(re.escape, forms(class_name)))
    return re.compile(f"{edge}(?:{either})", re.IGNORECASE)


def _malformed(caption: str) -> str | None:
    if "\N{REPLACEMENT CHARACTER}" in caption:
        return "not UTF-8"
    # Other scripts have printable characters that are refused, and unprintable ones that are not.
    if not (caption.isprintable() and caption.isascii()) and any(
        unicodedata.category(character) in _REFUSED_CATEGORIES and character not in _ALLOWED_FORMAT
        for character in caption
    ):
        return "control characters"
    return "markup" if _MARKUP.search(caption) else None


def _phrases(path: str) -> dict[int, set[tuple[str, ...]]]:
    """Reads the blocklist: {number of words: phrases of that length}."""
    found: dict[int, set[tuple[str, ...]]] = {}
    for text in read_lines(path, "blocklist", "word or phrase").values():
        if phrase := tuple(words(text)):
            found.setdefault(len(phrase), set()).add(phrase)
    if not found:
        raise UserError(f"blocklist {path}: found no words, expected one word or phrase a line")
    return found


def _holds(found: list[str], phrases: dict[int, set[tuple[str, ...]]]) -> bool:
    return any(
        tuple(found[start : start + length]) in group
        for length, group in phrases.items()
        for start in range(len(found) - length + 1)
    )
