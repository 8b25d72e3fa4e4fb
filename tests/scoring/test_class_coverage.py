"""Tests of how a caption set covers a list of classes."""

import re

import numpy as np
import pytest

from synth2_jax.scoring.class_coverage import class_coverage
from synth2_jax.scoring.n_grams import tokenize


@pytest.mark.parametrize(
    "captions, spellings, counts",
    [
        # Its words in a row.
        (
            ["a red circle on red", "A red, big circle", "circle red", "the RED CIRCLE."],
            (["red circle"], ["circle"], ["blue circle"]),
            [2, 4, 0],
        ),
        (["dog dog dogs", "cat"], (["dog", "dogs"],), [1]),  # once, however often
        (["a carpet"], (["car"], ["pet"], ["carpet"]), [0, 0, 1]),  # no parts of words
        (["T-shirts"], (["shirts"], ["t-shirts"]), [0, 1]),
        # Any spelling will do, and may be of several classes.
        (
            ["a crane", "a wader", "tinca tinca"],
            (["crane"], ["crane", "wader"], ["heron"], ["tench", "Tinca tinca"]),
            [1, 2, 0, 1],
        ),
        *((captions, (["cat"], ["dog"]), [0, 0]) for captions in (["a bird"], [""], [])),
    ],
)
def test_captions_that_name_each_class(captions, spellings, counts):
    assert class_coverage(tokenize(captions), spellings).tolist() == counts


def test_counts_are_those_of_a_search_caption_by_caption():
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(list("abcde"), n)) for n in rng.integers(0, 9, 200)]
    classes = ["a", "b c", "c b", "a a", "d e a", "a b c d e a", "f"]
    expected = [
        sum(bool(re.search(rf"\b{name}\b", caption)) for caption in captions) for name in classes
    ]
    found = class_coverage(tokenize(captions), [[name] for name in classes])
    assert found.tolist() == expected and 0 < expected[4] < expected[1]


@pytest.mark.parametrize(
    "spellings, message",
    [([], "no classes"), ([["cat"], ["..."]], "class 2: found .*, expected a word")],
)
def test_lists_that_name_nothing_are_refused(spellings, message):
    with pytest.raises(ValueError, match=message):
        class_coverage(tokenize(["a cat"]), spellings)
