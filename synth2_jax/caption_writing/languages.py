"""Guesses whether a text is in a language, by its script and its most common words.

Most languages differ in script. Those with Latin letters differ in words that nearly every sentence
has. A short text may have none of these words, so it only counts as foreign if it has more words of
another language, or is long and has none of this one.
"""

import functools
import unicodedata

from synth2_jax.errors import UserError, nearest
from synth2_jax.text.words import words

# Language -> first words of the Unicode names of its letters.
_SCRIPTS = {
    "ar": ("ARABIC",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "HALFWIDTH"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
    "uk": ("CYRILLIC",),
    "zh": ("CJK",),
}
_COMMON_WORDS = {
    language: frozenset(text.split())
    for language, text in {
        "de": "der die das den dem des ein eine einen einem einer und ist sind auf mit im am vor "
        "von zu neben unter über aus sich nicht es steht liegt sitzt",
        "en": "the a an and of in on is are with to at by from near its it his her their that "
        "this there two some while under over beside behind",
        "es": "el la los las un una unos unas y de del en con es son está están por para junto "
        "sobre su sus al que se hay",
        "fr": "le la les un une des et de du en dans avec est sont sur sous au aux près son sa "
        "ses qui il elle ce cette",
        "it": "il lo la gli le un una uno e di del della nel nella con è sono su sul sulla per "
        "vicino che dei delle al",
        "nl": "de het een en van in op met is zijn naar aan bij onder naast voor er dat die ligt "
        "staat zit",
        "pt": "o a os as um uma uns umas e de do da em no na com é são está ao perto sobre por "
        "que se dos das",
    }.items()
}
_LATIN = ("LATIN",)
_LONG_WORDS = 6  # a sentence of this many words has a common one
_SHARE_OF_LETTERS = 0.8  # names and units may be written in other letters

LANGUAGES = tuple(sorted(_SCRIPTS | _COMMON_WORDS))


def check_language(language: str, where: str) -> None:
    """Raises UserError unless `language` is one of LANGUAGES."""
    if language not in LANGUAGES:
        raise UserError(f"{where}: unknown language {language!r}; {nearest(language, LANGUAGES)}")


def is_in_language(text: str, language: str) -> bool:
    """Returns whether `text` may be in `language`, a code of LANGUAGES.

    >>> is_in_language("a dog on the beach", "en"), is_in_language("ein Hund am Strand", "en")
    (True, False)
    """
    letters = [character for character in text if character.isalpha()]
    scripts = _SCRIPTS.get(language, _LATIN)
    fitting = sum(_script(letter) in scripts for letter in letters)
    if fitting < _SHARE_OF_LETTERS * len(letters):
        return False
    if language == "ja":
        return any(_script(letter) != "CJK" for letter in letters) or len(letters) < _LONG_WORDS
    if language not in _COMMON_WORDS:
        return bool(letters)
    found = words(text)
    counts = {
        other: sum(word in common for word in found) for other, common in _COMMON_WORDS.items()
    }
    if not counts[language] and len(found) >= _LONG_WORDS:
        return False
    return counts[language] == max(counts.values())


@functools.lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]
