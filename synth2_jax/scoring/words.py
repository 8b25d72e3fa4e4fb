"""Words of a caption, as coco-caption counts them, without Java.

coco-caption runs Stanford CoreNLP 3.4.1's PTBTokenizer in lower case and then drops a fixed list
of punctuation tokens. `tokenize` follows the same Penn Treebank rules for what captions contain:
contractions, possessives, hyphens, numbers, abbreviations, quotes, brackets. It leaves out what
they rarely do: markup, emoticons, file names, and whether the next word begins a sentence. Of
Flickr8k's 40,460 captions all but 4 get the same tokens from both.

Two habits of the original are kept on purpose, since scores depend on them: lower-casing turns
"-LRB-" into "-lrb-", which the punctuation list then misses, so brackets stay as tokens; and a run
of marks such as "!!" is one token that the list misses too.
"""

import re

TOKENIZER = "ptb-like"

PUNCTUATION = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Written in ASCII before splitting.
_ASCII = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "–": "--",
        "—": "--",
        "…": "...",
        "£": "#",
        "€": "$",
        "\N{NO-BREAK SPACE}": " ",
    }
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Penn Treebank writes these single words as two.
_COMPOUNDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}

# Abbreviations whose full stop belongs to the word.
_ABBREVIATIONS = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|lt|col|gen|govs?|adm|rev|maj|sgt|cpl|pvt|capt|pres|hon|jr|sr|"
    "esq|messrs|mt|ste?|ave|blvd|rd|sq|ft|inc|co|corp|ltd|bros|vs|etc|al|cf|est|dept|univ|seq|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
)

_ALNUM = r"[^\W_]"
_LETTER = r"[^\W\d_]"

# One alternative a kind of token; the first that matches wins.
_TOKEN = re.compile(
    "|".join(
        (
            r"(?:https?://|www\.)\S*[^\W_]/?|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
            rf"'(?:tis|twas|em|til|cause|\d0s)(?!{_ALNUM})|'n'",
            r"\.{3,}|-{2,}|[?!]+|''|``",
            rf"(?<!{_ALNUM})(?:{_LETTER}\.){{2,}}",  # u.s.  p.m.
            rf"(?<!{_ALNUM})(?:{_ABBREVIATIONS}|{_LETTER}|no(?=\. ?\d))\.(?!{_ALNUM})",
            rf"(?:(?<!\S)[+-])?\d*(?:(?<!{_LETTER})[.,:]\d+)+(?:-{_ALNUM}+)*",  # 3,000  10:30  .5
            rf"(?<!\S)[+-]\d+(?!{_ALNUM})",
            rf"{_ALNUM}+?(?=n't(?!{_ALNUM}))",  # the "do" of don't
            rf"n't(?!{_ALNUM})|'(?:s|m|d|re|ve|ll)(?!{_ALNUM})",
            rf"(?:ma'am|cap'n|ne'er)(?!{_ALNUM})|y'(?=all|know)",
            rf"[a-hj-xz]'(?!(?:ll|re|ve)(?!{_ALNUM})){_LETTER}{{2,}}",  # o'clock, but not i've
            rf"{_ALNUM}+(?:[-_&/.]{_ALNUM}+)*",  # t-shirt  and/or  r&b
            r"\S",
        )
    )
)


def tokenize(caption: str) -> list[str]:
    """Lower-case words of a caption, punctuation removed.

    >>> tokenize("The dog's T-shirt isn't red, is it?")
    ['the', 'dog', "'s", 't-shirt', 'is', "n't", 'red', 'is', 'it']
    """
    words = []
    for token in _TOKEN.findall(caption.translate(_ASCII).lower()):
        if token in _COMPOUNDS:
            words.extend(_COMPOUNDS[token])
        elif token not in PUNCTUATION and token.strip(".-"):
            words.append(_BRACKETS.get(token, token))
    return words
