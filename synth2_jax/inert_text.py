"""Text of unknown origin made safe to look at: it acts on no terminal and hides nothing."""


def inert(text: str, most: int | None = None) -> str:
    """Writes characters that would act or stay unseen as escapes, such as \\x1b or \\u202e.

    These are control and format characters (terminal escapes, line ends, changes of the writing
    direction, zero-width ones), halves of surrogate pairs and unassigned code points. Markup is
    left as it is: see `pages.html.escaped`. A text longer than `most` ends in an ellipsis.
    """
    cut = text if most is None or len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else _escape(c) for c in cut)


def _escape(character: str) -> str:
    if character.isspace() and character not in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029":
        return " "  # no-break and other wide or narrow spaces
    return character.encode("unicode_escape").decode()
