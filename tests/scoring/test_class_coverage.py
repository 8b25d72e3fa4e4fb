"""Tests of how a caption set covers a list of classes."""

import re

import numpy as np
import pytest

from synth2_jax.scoring.class_coverage import class_coverage
from synth2_jax.scoring.n_grams import tokenize


def captions_of(captions, *spellings):
    return class_coverage(tokenize(captions), spellings).captions_C.tolist()


def test_a_class_is_named_by_its_words_in_a_row():
    captions = ["a red circle on red", "A red, big circle", "circle red", "the RED CIRCLE."]
    assert captions_of(captions, ["red circle"], ["circle"], ["blue circle"]) == [2, 4, 0]


def test_a_caption_counts_once_however_often_it_names_a_class():
    assert captions_of(["dog dog dogs", "cat"], ["dog", "dogs"]) == [1]


def test_parts_of_words_name_nothing():
    assert captions_of(["a carpet"], ["car"], ["pet"], ["carpet"]) == [0, 0, 1]
    assert captions_of(["T-shirts"], ["shirts"], ["t-shirts"]) == [0, 1]


def test_any_spelling_will_do_and_may_be_of_several_classes():
    captions = ["a crane", "a wader", "tinca tinca"]
    spellings = ["crane"], ["crane", "wader"], ["heron"], ["tench", "Tinca tinca"]
    assert captions_of(captions, *spellings) == [1, 2, 0, 1]


def test_counts_are_those_of_a_search_caption_by_caption():
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(list("abcde"), n)) for n in rng.integers(0, 9, 200)]
    classes = ["a", "b c", "c b", "a a", "d e a", "a b c d e a", "f"]
    expected = [
        sum(bool(re.search(rf"\b{name}\b", caption)) for caption in captions) for name in classes
    ]
    assert (
        captions_of(captions, *([c] for c in classes)) == expected and 0 < expected[4] < expected[1]
    )


def test_measures_of_the_counts():
    captions = ["a cat", "a cat", "cats", "a dog", "a mouse"]
    found = class_coverage(tokenize(captions), [["cat", "cats"], ["dog"], ["horse"], ["mouse"]])
    assert found.share_named == 3 / 4 and found.fewest == 0 and found.median == 1
    # Shares 3/5, 1/5, 1/5.
    assert found.entropy == pytest.approx(0.6 * np.log(5 / 3) + 0.4 * np.log(5))


def test_nothing_named_is_no_error():
    for captions in (["a bird"], [""], []):
        found = class_coverage(tokenize(captions), [["cat"], ["dog"]])
        assert found.captions_C.tolist() == [0, 0]
        assert (found.share_named, found.fewest, found.median, found.entropy) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "spellings, message",
    [([], "no classes"), ([["cat"], ["..."]], "class 2: found .*, expected a word")],
)
def test_lists_that_name_nothing_are_refused(spellings, message):
    with pytest.raises(ValueError, match=message):
        class_coverage(tokenize(["a cat"]), spellings)
