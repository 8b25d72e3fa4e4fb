"""VQA accuracy: cases by hand, and a literal transcription of the rules as the reference."""

import doctest
import itertools
import re
import sys

import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.scoring import vqa

# The rules of https://visualqa.org/evaluation.html, one after the other, on their own.

PUNCTUATION = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-"]
PUNCTUATION += [">", "<", "@", "`", ",", "?", "!"]
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
DIGITS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
CONTRACTIONS = {"dont": "don't", "isnt": "isn't", "its": "its", "couldntve": "couldntve"}
CONTRACTIONS |= {"couldn'tve": "couldn't've", "couldnt've": "couldn't've", "oclock": "o'clock"}
CONTRACTIONS |= {"y'alld've": "y'all'd've", "ow's'at": "'ow's'at", "somebody'd": "somebodyd"}
CONTRACTIONS |= {"youre": "you're", "twas": "'twas", "cant": "can't", "theyll": "they'll"}


def transcribed(text):
    marks_go = "".join(text)
    for mark in PUNCTUATION:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        if beside_a_space or re.search(r"\d,\d", text):
            marks_go = marks_go.replace(mark, "")
        else:
            marks_go = marks_go.replace(mark, " ")
    no_periods = ""
    for place, letter in enumerate(marks_go):
        decimal = place + 1 < len(marks_go) and marks_go[place + 1].isdigit()
        if letter != "." or decimal:
            no_periods += letter
    words = []
    for word in no_periods.lower().split():
        word = DIGITS.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def slow_accuracy(answer, people):
    clean = [p.replace("\n", " ").replace("\t", " ").strip() for p in people]
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    if len(set(clean)) > 1:
        clean, answer = [transcribed(p) for p in clean], transcribed(answer)
    subsets = list(itertools.combinations(range(len(clean)), len(clean) - 1))
    return sum(min(sum(clean[i] == answer for i in s) / 3, 1) for s in subsets) / len(subsets)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("The Dog", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("3,000 people", "3000 people"),
        ("red/blue", "red blue"),
        ("red , blue", "red blue"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("yes.", "yes"),
        ("it dont", "it don't"),
        ("5 oclock", "5 o'clock"),
        ("don't", "don't"),
        ("10:30", "10:30"),
        ("a\nb", "b"),
        ("", ""),
        ("an apple a day", "apple day"),
    ],
)
def test_answers_are_normalized_by_the_rules(answer, expected):
    assert vqa.normalize(answer) == expected


def test_the_docstrings_example():
    assert doctest.testmod(vqa).failed == 0


def test_accuracy_is_that_of_the_transcription(parity):
    rng = np.random.default_rng(0)
    words = "a the two Two none 3,000 3.5 dont couldn'tve isnt dog dog. cat, red/blue -5 [x] what?"
    words = [*words.split(), *("hmm!", "a-b", "ow's'at", "\n", "", ";"), *("u.s.", "theyll")]

    def answer():
        return rng.choice(["", " "]).join(rng.choice(words, rng.integers(0, 4)))

    answers, references = [], []
    for _ in range(2000):
        pool = [answer() for _ in range(rng.integers(1, 4))]
        references.append([str(rng.choice(pool)) for _ in range(rng.choice([2, 5, 10, 10]))])
        answers.append(str(rng.choice([*pool, answer()])))
    found = vqa.vqa_accuracy(answers, references)
    expected = [slow_accuracy(a, p) for a, p in zip(answers, references, strict=True)]
    parity(
        f"VQA accuracy of {len(answers)} questions",
        "the published rules, transcribed in the test",
        "max abs difference",
        np.abs(found.per_image - expected).max(),
        1e-12,
    )
    assert 0.1 < found.corpus < 0.9


def test_the_score_says_how_it_was_made():
    score = vqa.vqa_accuracy(["cat", "2"], [["cat"] * 10, ["two", "three"]])
    assert score.corpus == pytest.approx((1 + 1 / 6) / 2)
    assert score.provenance == (
        "tokenizer=VQA answer normalization, questions=2, answers per question=2-10, df=none"
    )


@pytest.mark.parametrize(
    "answer, published",
    [
        ("riding", "ride"),
        ("buildings", "build"),
        ("the ponies", "poni"),
        ("texting", "text"),
        ("kid's toys", "kid toy"),
        ("weddings", "wed"),
    ],
)
def test_answers_of_ok_vqa_are_compared_by_their_stems(answer, published):
    for people in ([published] * 10, [published] * 4 + ["cat"] * 6):
        assert vqa.vqa_accuracy([answer], [people]).corpus == 0
        if answer != "the ponies" or "cat" in people:  # articles go where people differ
            assert vqa.vqa_accuracy([answer], [people], stem=True).corpus == 1
        assert vqa.vqa_accuracy([published], [people], stem=True).corpus == 1
        assert vqa.vqa_accuracy(["red"], [people], stem=True).corpus == 0
    provenance = vqa.vqa_accuracy([answer], [people], stem=True).provenance
    assert "tokenizer=VQA answer normalization, Snowball stems, questions=1" in provenance


def test_without_the_stemmers_package_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    with pytest.raises(UserError, match=r"stem_answers: .*'synth2-jax\[okvqa\]'"):
        vqa.load_stemmer.__wrapped__()


@pytest.mark.parametrize(
    "answers, references, message",
    [
        ([], [], "0 answers"),
        (["a"], [["a"] * 2, ["b"] * 2], "1 answers, but references of 2 questions"),
        (["a"], [["a"]], r"references\[0\] is \['a'\], expected the answers of several people"),
        (["a"], ["ab"], r"references\[0\] is 'ab'"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answers, references, message):
    with pytest.raises(ValueError, match=message):
        vqa.vqa_accuracy(answers, references)
