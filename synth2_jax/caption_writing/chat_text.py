"""Finds the caption in an answer of a chat model, which often writes more than the caption."""

import re

_THOUGHTS = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_POLITE = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|got it|no problem)"
_NAMES = r"(?:captions?|descriptions?|answers?|outputs?|options?|suggestions?|examples?|one)"
# "Sure! Here is a caption:", "Of course, here's one:", "Short caption:" and, alone, "Sure!".
_PREAMBLE = re.compile(
    rf"(?:{_POLITE}\s*[!,.:-]+\s*)*"
    rf"(?:here(?:'s|’s| is| are)\b[^.!?\n]{{0,60}}?\b{_NAMES}\b[^.!?\n]{{0,60}}?:|"
    rf"(?:(?:the|a|your|my|short|image|photo|possible|suggested)\s+)*"
    rf"(?:caption|description|answer|output)\s*(?:\d+\s*)?:|"
    rf"(?:sure(?: thing)?|certainly|of course|absolutely|got it|no problem)\s*!)",
    re.IGNORECASE,
)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_QUOTES = ('""', "''", "“”", "‘’", "«»", "„“", "``")


def caption_in(text: str) -> str:
    """Returns the caption on one line, without thoughts, preamble, later paragraphs and quotes.

    >>> caption_in('Sure! Here is a caption:\\n\\n"A dog\\n on  grass."\\n\\nDo you like it?')
    'A dog on grass.'
    """
    thoughts = _THOUGHTS.match(text)
    text = _without_preamble(text[thoughts.end() :] if thoughts else text)
    paragraphs = [part for part in _PARAGRAPHS.split(text) if part.strip()]
    # An introduction in other words, or another language, is a paragraph that ends with a colon.
    if len(paragraphs) > 1 and paragraphs[0].rstrip(" *_").endswith((":", "：")):
        del paragraphs[0]
    line = " ".join(_without_preamble(paragraphs[0] if paragraphs else "").split())
    return _without_quotes(line)


def _without_preamble(text: str) -> str:
    marks = re.match(r"[\s*_#]*", text)[0]  # of Markdown; they may end after the preamble
    found = _PREAMBLE.match(text, len(marks))
    return text[found.end() :].lstrip().removeprefix(marks.strip()) if found else text


def _without_quotes(line: str) -> str:
    if bold := re.fullmatch(r"\*\*([^*]+)\*\*", line):
        line = bold[1].strip()
    for opening, closing in _QUOTES:
        if len(line) > 1 and line[0] == opening and line[-1] == closing:
            inside = line[1:-1]
            if opening not in inside and closing not in inside:
                return inside.strip()
    return line
