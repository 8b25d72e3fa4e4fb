"""The caption in an answer, and captions that look like more than a caption."""

import doctest
import time

import pytest

from synth2_jax.caption_writing import chat_text
from synth2_jax.caption_writing.chat_text import caption_in

CAPTION = "A dog on the grass."


@pytest.mark.parametrize(
    "text",
    [
        CAPTION,
        f' "{CAPTION}" ',
        f"“{CAPTION}”",
        "A dog\n on\tthe grass.",
        f"Sure! Here is a caption:\n\n{CAPTION}",
        f'Sure! Here is a caption: "{CAPTION}"',
        f"Here's a short caption for the photograph: {CAPTION}",
        f"Here’s one:\n{CAPTION}",
        f"Of course! {CAPTION}",
        f"Certainly, here is a caption in a plain style:\n\n**{CAPTION}**",
        f"Okay. Here are two possible captions:\n\n{CAPTION}\n\nA dog.",
        f"**Caption:** {CAPTION}",
        f"Caption:\n{CAPTION}",
        f"Image caption: “{CAPTION}”",
        f"## Caption 1:\n\n{CAPTION}",
        f"Voici une légende :\n\n{CAPTION}",
        f"{CAPTION}\n\nLet me know if you would like another one!",
        f"<think>\nThe user wants:\n\na caption.\n</think>\n\n{CAPTION}",
        f"<think></think>Sure! Caption: {CAPTION}",
    ],
)
def test_the_caption_is_found(text):
    assert caption_in(text) == CAPTION


@pytest.mark.parametrize(
    "text",
    [
        '"A dog" and "a cat"',
        '"',
        "it's a dog'",
        "A sign reads: no dogs on the grass.",
        "Sure-footed goats climb a rock.",
        "Here is where the dog sleeps.",
        "Here is the dog: asleep on a sofa.",
        "Okay corral at sunset, with two horses.",
        "OK! Magazines on a table.",
        "A great dane: large, grey and asleep.",
        "The caption on a poster reads STOP.",
        "**bold** and **bolder** dogs",
        "",
    ],
)
def test_a_caption_is_left_as_it_is(text):
    assert caption_in(text) == text


def test_a_preamble_alone_is_no_caption():
    for text in ("Sure! Here is a caption:", "Caption:\n", "Of course!", " \n\n "):
        assert caption_in(text) == ""


@pytest.mark.parametrize(
    "part",
    [" ", "\n", "\n ", "<think>", "sure!", "sure ", "here is ", "the ", "*", "\\", "a:\n\n", '"'],
)
def test_a_long_answer_takes_no_long_time(part):
    start = time.process_time()
    caption_in(part * (1_000_000 // len(part)))
    assert time.process_time() - start < 5


def test_the_docstrings_example():
    assert doctest.testmod(chat_text).failed == 0
