"""Tests that text of unknown origin cannot act on whoever looks at it."""

import sys

import pytest

from synth2_jax.inert_text import inert


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a red dog, 100 % мир 世界 🐕", "a red dog, 100 % мир 世界 🐕"),
        ("\x1b[31mred\x1b[0m\x07", r"\x1b[31mred\x1b[0m\x07"),
        ("a\x00b\tc\r\nd\x7f\x9b", r"a\x00b\tc\r\nd\x7f\x9b"),
        ("\u202egod\u202c zero\u200bwidth\ufeff", r"\u202egod\u202c zero\u200bwidth\ufeff"),
        ("one\u2028two\u2029three\x85four", r"one\u2028two\u2029three\x85four"),
        ("half \ud800 a pair", r"half \ud800 a pair"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("", ""),
    ],
)
def test_what_acts_or_hides_is_an_escape(text, shown):
    assert inert(text) == shown


def test_every_character_ends_up_printable_on_one_line():
    whole = "".join(map(chr, [*range(0x20000), *range(0xE0000, 0xE0200), sys.maxunicode]))
    shown = inert(whole)
    assert shown.isprintable() and len(shown.splitlines()) == 1
    shown.encode("utf-8")


def test_long_texts_are_cut_and_say_so():
    assert inert("abcdef", 6) == "abcdef" and inert("abcdefg", 6) == "abcde…"
    assert len(inert("\x1b" * 10**6, 300)) == 299 * 4 + 1
