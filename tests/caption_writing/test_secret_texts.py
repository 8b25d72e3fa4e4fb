"""Secrets in every spelling that a message may have them in."""

import base64
import html
import json
import random
import time
import urllib.parse

import pytest

from synth2_jax.caption_writing.secret_texts import Secrets

KEY = "sk-a+b/c=d&'\"\\e<f>x%0~"  # all that is escaped somewhere


def encoded(before, after):
    return base64.b64encode(f"{before}{KEY}{after}".encode()).decode()


@pytest.mark.parametrize(
    "spelled",
    [
        KEY,
        "%25".join(KEY.split("%")),
        repr(KEY),
        repr(repr(KEY)),
        repr(KEY.encode()),
        json.dumps(KEY),
        json.dumps(json.dumps({"key": KEY})),
        json.dumps(KEY).replace("/", "\\/"),
        "".join(f"\\u{ord(c):04x}" for c in KEY),
        "".join(f"\\x{ord(c):02X}" for c in KEY),
        urllib.parse.quote(KEY, safe=""),
        urllib.parse.quote(KEY).lower(),
        urllib.parse.quote(urllib.parse.quote(KEY)),
        urllib.parse.urlencode({"key": KEY}),
        html.escape(KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        "".join(f"&#x{ord(c):X};" for c in KEY),
    ],
)
def test_every_spelling_is_found_and_left_out(spelled):
    secrets = Secrets(KEY)
    text = f"a key: {spelled}, and more"
    assert secrets.are_in(text)
    clean = secrets.without(text)
    assert "***" in clean and clean.startswith("a key: ") and clean.endswith(", and more")
    assert not any(part in clean.lower() for part in ("sk-a", "sk%2d", "b/c", "u0073", "#115"))


@pytest.mark.parametrize("before", ["", "x", "xy", "Bearer ", "user:"])
@pytest.mark.parametrize("alphabet", ["+/", "-_"])
def test_base64_of_a_header_is_found(before, alphabet):
    spelled = encoded(before, " tail").translate(str.maketrans("+/", alphabet))
    clean = Secrets(KEY).without(f"[{spelled}]")
    assert "***" in clean
    left = clean.strip("[]").split("***")
    assert all(len(part) <= len(before) * 4 // 3 + 12 for part in left)
    assert encoded(before, "")[12:20] not in clean


@pytest.mark.parametrize(
    "part", ["\\", "%25", "%", "&#0", "s", "\\u00", KEY[:-1], "0", "c2st", "k" * 59 + " "]
)
def test_a_long_text_takes_no_long_time(part):
    text = part * (300_000 // len(part))
    secrets = Secrets(KEY, "k" * 60)
    start = time.process_time()
    assert secrets.without(text) == text
    assert time.process_time() - start < 10


def test_other_texts_are_left_as_they_are():
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=-_%\\ "
    text = "".join(rng.choices(letters, k=100_000))
    assert Secrets("sk-planted-0123456789").without(text) == text
    assert Secrets().without(text) == text and not Secrets().are_in(text)


def test_a_quote_is_one_short_line_that_holds_no_part_of_a_secret():
    secrets = Secrets("sk-planted-0123456789")
    assert secrets.quoted("a\nb \x1b[31m sk-planted-0123456789") == "a b \\x1b[31m ***"
    assert len(secrets.quoted("x " * 10_000)) <= 300
    for size in range(9_900, 10_100, 7):  # where a long text is cut
        assert "planted" not in secrets.quoted(("sk-planted-0123456789" * 1000)[:size])
