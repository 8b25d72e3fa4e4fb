"""Words of a caption, as coco-caption counts them, without Java.

coco-caption runs Stanford CoreNLP 3.4.1's PTBTokenizer in lower case and then drops a fixed list
of punctuation tokens. `tokenize` follows the same Penn Treebank rules for what captions contain:
contractions, possessives, hyphens, numbers, abbreviations, quotes, brackets, simple emoticons. It
leaves out what they rarely do: markup, file names, and whether the next word begins a sentence. Of
Flickr8k's 40,460 captions all but 4 get the same tokens from both; docs/ptb_differences.md lists
what differs in generated ones.

Two habits of the original are kept on purpose, since scores depend on them: lower-casing turns
"-LRB-" into "-lrb-", which the punctuation list then misses, so brackets stay as tokens; and a run
of marks such as "!!" is one token that the list misses too.
"""

import html
import re

TOKENIZER = "ptb-like"

PUNCTUATION = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Written otherwise before splitting: in ASCII, or not at all where the original drops it.
_SPACES = "₩₹₽\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}\ufe0f"
_ASCII = str.maketrans(
    "‘’“”«»‹›‐‑£€" + _SPACES, '\'\'""""""--#$' + " " * len(_SPACES), "\N{SOFT HYPHEN}"
)
_ASCII |= str.maketrans(dict.fromkeys("‒–—―", "--"))
_ASCII |= str.maketrans({"…": "...", "¢": " cents "})
_ASCII |= str.maketrans({"¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "})
_DROPPED = re.compile("[\U00010000-\U0010ffff]")  # emoji, and scripts that no caption is in
_ENTITY = re.compile("&(?:amp|quot|apos|lt|gt|nbsp);")

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_BRACKET = re.compile(r"[(){}]|(?<!.)[\[\]](?!.)")  # square ones stay in :]

# Penn Treebank writes these single words as two.
_COMPOUNDS = {
    part.replace("|", ""): part.split("|")
    for part in ("can|not", "gon|na", "got|ta", "wan|na", "lem|me", "gim|me", "'t|is", "'t|was")
}

# Abbreviations whose full stop belongs to the word.
_ABBREVIATIONS = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|lt|col|gen|govs?|adm|rev|maj|sgt|cpl|pvt|pfc|capt|cmdr|pres|"
    "supt|hon|jr|sr|esq|messrs|mme|mlle|msgr|mt|ste?|ave|blvd|rd|rt|ct|sq|ft|bldg|tel|ext|"
    "inc|co|corp|ltd|bros|vs|etc|al|cf|est|dept|univ|seq|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|"
    "ala|ariz|calif|colo|conn|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|"
    "wisc?|wyo|"
    "(?-i:Ark|Del|Ill|L[Aa]|Mass|Miss|Ore|Pa|Tex|Wash)"  # words in lower case
)

_ALNUM = r"[^\W_]"
_LETTER = r"[^\W\d_]"

# One alternative a kind of token; the first that matches wins.
_TOKEN = re.compile(
    "|".join(
        (
            r"(?:https?://|www\.)\S*[^\W_]/?|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
            rf"@[a-z_]\w*|\#{_LETTER}+",
            r"</?[a-z][^\s<>]*>|\^_+\^|-_-",
            rf"[<>]?[:;=][-o*']?[()dpo\\@|[\]](?!{_LETTER})",  # :-)
            rf"'n'|'(?:tis|twas|em|til|cause|n)(?!{_ALNUM})|(?<!\d)'(?:\d\d|[2-9]0s)(?!{_ALNUM})|ol'(?!{_ALNUM})",
            r"\.{3,}|-{2,}|_+|[?!]+|''|``",
            rf"(?<!{_ALNUM})(?:{_LETTER}\.){{2,}}(?:{_LETTER}(?!{_ALNUM}))?",  # u.s.  p.m.
            rf"(?<!{_ALNUM})(?:{_ABBREVIATIONS}|{_LETTER}|ph\.d)\.(?!{_ALNUM})",
            rf"(?<!{_ALNUM})(?:nos?|figs?)\.(?=\s?\d)",
            r"(?-i:(?:US|HK|NZ|A|C)\$)|(?-i:[A-Z]+(?:&[A-Z]+)+)",  # US$  R&B
            # 3,000  10:30  .5
            rf"(?:(?<![^\s\d])[+-])?\d*(?:(?<!{_LETTER})[.,:]\d+)+(?:-{_ALNUM}+(?![:,.]?{_ALNUM}))*",
            rf"(?:\+|(?<!\S)-)\d+(?!{_ALNUM})|c\+\+",
            rf"{_ALNUM}+?(?=n't(?!{_ALNUM}))",  # the "do" of don't
            rf"n't(?!{_ALNUM})|'(?:s|m|d|re|ve|ll)(?!{_ALNUM})",
            rf"(?:ma'am|cap'n|ne'er)(?!{_ALNUM})|y'(?=all|know)",
            rf"[a-hj-xz]'(?!(?:ll|re|ve)(?!{_ALNUM})){_LETTER}{{2,}}",  # o'clock, but not i've
            rf"{_ALNUM}+(?:[-_/.]{_ALNUM}+)*",  # t-shirt  and/or
            r"\S",
        )
    ),
    re.IGNORECASE,
)


def tokenize(caption: str) -> list[str]:
    """Lower-case words of a caption, punctuation removed.

    >>> tokenize("The dog's T-shirt isn't red, is it?")
    ['the', 'dog', "'s", 't-shirt', 'is', "n't", 'red', 'is', 'it']
    """
    words = []
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), caption)
    # Split before it is lowered: the original tells R&B from r&b, and the state Miss. from a miss.
    for token in map(str.lower, _TOKEN.findall(_DROPPED.sub(" ", text).translate(_ASCII))):
        if token in _COMPOUNDS:
            words.extend(_COMPOUNDS[token])
        elif token not in PUNCTUATION and token.strip(".-"):
            words.append(_BRACKET.sub(lambda bracket: _BRACKETS[bracket[0]], token))
    return words
