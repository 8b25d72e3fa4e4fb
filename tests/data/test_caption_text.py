"""Captions from anywhere."""

import unicodedata

import pytest

from synth2_jax.data.caption_text import CaptionLimits, clean_caption
from synth2_jax.data.skipped import SkipError


@pytest.mark.parametrize(
    ("found", "clean"),
    [
        ("a red circle", "a red circle"),
        ("  two\tblue \n squares\r\n", "two blue squares"),
        ("a\x00b\x07c\x1b[31mred\x1b[0m", "a b c [31mred [0m"),
        (
            "größer \u2028 日本の猫 \u2029 قطة кошка 🐈\u200d⬛",
            "größer 日本の猫 قطة кошка 🐈\u200d⬛",
        ),
        ("cafe\u0301", "caf\u00e9"),
        ("user\u202egpj.exe", "usergpj.exe"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # inert where it is shown
        ("größer".encode(), "größer"),
        (b"\xef\xbb\xbfa red circle\r\n", "a red circle"),
    ],
)
def test_captions_become_one_line(found, clean):
    assert clean_caption(found) == clean
    assert clean_caption(clean) == clean


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("", "empty caption"),
        (" \n\x00\u202e", "empty caption"),
        ("x" * 10_000, "caption too long"),
        (b"gr\xf6\xdfer", "caption not UTF-8"),
        ("half of \ud83d", "caption not UTF-8"),
        ("a" + "\u0315\u0316" * 240_000, "caption too long"),
        (None, "caption not text"),
        (2024, "caption not text"),
        (float("nan"), "caption not text"),
        (["a red circle"], "caption not text"),
    ],
)
def test_captions_that_are_no_text(found, reason):
    with pytest.raises(SkipError, match=reason) as error:
        clean_caption(found)
    assert "\n" not in str(error.value)


def test_the_length_is_checked_before_what_takes_long(monkeypatch):
    """NFC takes a minute of 480,000 marks, and a second of 32,000."""
    seen = []

    def normalize(form, text):
        seen.append(len(text))
        return text

    monkeypatch.setattr(unicodedata, "normalize", normalize)
    for count in (4_000, 16_000, 240_000):
        with pytest.raises(SkipError, match="caption too long"):
            clean_caption("\u0315\u0316" * count)
    assert seen == [8_000]


def test_captions_of_decomposed_characters_are_as_long_as_they_look():
    assert clean_caption("\u0041\u0323\u0302" * 2000) == "\u1eac" * 2000


def test_the_caller_says_what_the_text_is_and_its_limit():
    with pytest.raises(SkipError, match="question not text: found 7"):
        clean_caption(7, what="question")
    assert clean_caption("x" * 10_000, CaptionLimits(max_chars=10_000)) == "x" * 10_000
    with pytest.raises(ValueError, match="max_chars"):
        CaptionLimits(max_chars=0)
