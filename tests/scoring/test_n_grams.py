"""Tests of n-grams of caption sets, against counting them one by one."""

import collections

import numpy as np
import pytest

from synth2_jax.scoring.n_grams import n_gram_statistics, tokenize

CAPTIONS = ["A red dog.", "", "a red dog and a red cat", "dog", "..."]


def test_captions_become_ids_of_words():
    found = tokenize(CAPTIONS)
    assert found.vocabulary == ("a", "red", "dog", "and", "cat")
    assert found.ids_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 4, 2]
    assert found.captions_T.tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 3]
    assert found.num_captions == 5 and found.lengths_N.tolist() == [3, 0, 7, 1, 0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_n_grams_are_those_that_counting_finds(order, seed):
    rng = np.random.default_rng(seed)
    captions = [" ".join(rng.choice(list("abcd"), n)) for n in rng.integers(0, 8, 60)]
    counted = collections.Counter(
        (row, tuple(caption.split()[i : i + order]))
        for row, caption in enumerate(captions)
        for i in range(len(caption.split()) - order + 1)
    )
    tokens = tokenize(captions)
    found = tokens.n_grams(order)
    n_grams = [tuple(tokens.spelled(ids).split()) for ids in found.word_ids_Un]
    pairs = zip(found.captions_G.tolist(), found.ids_G.tolist(), strict=True)
    assert collections.Counter((row, n_grams[i]) for row, i in pairs) == counted


@pytest.mark.parametrize("captions", [[], [""], ["a"]])
def test_sets_too_short_for_an_n_gram_have_none(captions):
    found = tokenize(captions).n_grams(2)
    assert found.word_ids_Un.shape == (0, 2) and len(found.ids_G) == len(found.captions_G) == 0


def test_distinct_n_and_the_most_frequent_count_over_the_whole_set():
    # Words a b a c, a b: 3 distinct of 6. Bigrams ab ba ac, ab: 3 distinct of 4.
    found = n_gram_statistics(tokenize(["a b a c", "A, b"]))
    assert found.distinct == pytest.approx({1: 3 / 6, 2: 3 / 4, 3: 1.0, 4: 1.0})
    assert n_gram_statistics(tokenize([""])).distinct == {1: 0, 2: 0, 3: 0, 4: 0}
    found = n_gram_statistics(tokenize(["a b a c", "a b"]), top=2).most_frequent
    assert found[1] == (("a", 3), ("b", 2))
    assert found[2][0] == ("a b", 2) and len(found[2]) == 2
    assert found[4] == (("a b a c", 1),)
