"""Near-duplicates against the slow way: every caption with every kept one, sets in Python."""

import random
import sys

import numpy as np
import pytest

from synth2_jax.caption_writing.classes import COMMON_OBJECTS, load_classes
from synth2_jax.caption_writing.duplicates import NUM_HASHES, NearDuplicates, jaccard, num_rows
from synth2_jax.errors import UserError


def features(caption):
    words = caption.lower().replace(".", "").split()
    return set(words) | set(zip(words, words[1:], strict=False))


def like(found, others, similarity):
    """Whether a set is near one of the others."""
    return any(len(found & one) >= similarity * len(found | one) for one in others)


def slow(captions, similarity):
    """Which captions are near-duplicates of one that is kept before, in quadratic time."""
    kept, dropped = [], []
    for found in map(features, captions):
        dropped.append(like(found, kept, similarity))
        if not dropped[-1]:
            kept.append(found)
    return np.array(dropped)


def written(num, rng):
    """Sentences of a small grammar; one in ten is there twice, one in five with a word changed."""
    classes = [name for name in load_classes(COMMON_OBJECTS) if " " not in name]
    colours = ["red", "green", "blue", "brown", "grey", "white", "black", "yellow", "old", "new"]
    places = ["table", "street", "beach", "floor", "grass", "shelf", "road", "bridge"]
    captions = []
    for _ in range(num):
        kind = rng.random()
        if captions and kind < 0.1:
            captions.append(rng.choice(captions))
        elif captions and kind < 0.3:
            words = rng.choice(captions).split()
            words[rng.randrange(len(words))] = rng.choice(classes)
            captions.append(" ".join(words))
        else:
            a, b = rng.sample(classes, 2)
            captions.append(
                f"a {rng.choice(colours)} {a} next to a {rng.choice(colours)} {b} on the "
                f"{rng.choice(colours)} {rng.choice(places)} in front of some {rng.choice(classes)}"
            )
    return captions


def random_words(num, rng):
    vocabulary = [f"w{i}" for i in range(500)]
    captions = []
    for _ in range(num):
        if captions and rng.random() < 0.3:
            words = rng.choice(captions).split()
            for _ in range(rng.randint(0, 2)):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
            captions.append(" ".join(words))
        else:
            captions.append(" ".join(rng.choices(vocabulary, k=rng.randint(1, 30))))
    return captions


def test_jaccard_counts_words_and_pairs_of_words():
    assert jaccard("a red dog", "A red dog.") == 1
    assert jaccard("a red dog", "a red cat") == 3 / 7  # a, red, a red; of 5 + 5 - 3
    assert jaccard("a red dog", "dog red a") == 3 / 7  # the words alone
    assert jaccard("", "") == jaccard("...", "...") == 0


@pytest.mark.parametrize(
    "captions, similarity, dropped",
    [
        (["a red dog", "a red dog", "A RED dog!"], 1.0, [0, 1, 1]),
        (["a red dog", "a red cat"], 0.5, [0, 0]),
        (["a big red dog runs", "a big red dog sits"], 0.6, [0, 1]),  # 7 of 11
        (["a big red dog runs", "a big red dog sits"], 0.64, [0, 0]),
        (["", "", "🐕", "🐕"], 0.8, [0, 0, 0, 0]),
        ([], 0.8, []),
    ],
)
def test_literal_cases(captions, similarity, dropped):
    assert NearDuplicates(similarity).add(captions) == dropped


def test_the_first_of_several_is_kept_and_a_dropped_one_drops_no_other():
    chain = [
        "one two three four five six seven eight nine ten",
        "one two three four five six seven eight nine last",
        "first two three four five six seven eight nine last",
    ]
    assert jaccard(chain[0], chain[1]) > 0.8 > jaccard(chain[0], chain[2])
    assert jaccard(chain[1], chain[2]) > 0.8
    assert NearDuplicates(0.8).add(chain) == [False, True, False]
    assert NearDuplicates(0.8).add(chain[1:]) == [False, True]


@pytest.mark.parametrize("corpus", [written, random_words])
@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("num", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_what_is_dropped_is_near_what_is_kept_and_hardly_any_is_missed(num, corpus, similarity):
    captions = corpus(num, random.Random(0))
    dropped = NearDuplicates(similarity).add(captions)
    kept = [caption for caption, gone in zip(captions, dropped, strict=True) if not gone]
    sets = [features(caption) for caption in kept]
    # Precision: every one that is dropped is near one that is kept.
    for caption in np.array(captions, object)[dropped]:
        assert like(features(caption), sets, similarity)
    # Recall: bands miss one in a hundred, give or take three standard deviations.
    expected = slow(captions, similarity).sum()
    assert slow(kept, similarity).sum() <= 0.01 * expected + 3 * (0.01 * expected) ** 0.5
    assert expected > num / 20


@pytest.mark.parametrize("corpus", [written, random_words])
def test_one_by_one_it_is_the_slow_way(corpus):
    captions = corpus(150, random.Random(1))
    near = NearDuplicates(0.8)
    found = [near.add([caption])[0] for caption in captions]
    np.testing.assert_array_equal(found, slow(captions, 0.8))
    assert all(near.add(captions))  # all there already, or near one that is


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_one_in_a_hundred_at_most_where_it_is_hardest(similarity):
    rows = num_rows(similarity)
    assert NUM_HASHES % rows == 0
    assert (1 - similarity**rows) ** (NUM_HASHES // rows) <= 0.01


def test_without_the_package_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match=r"'near' needs the package rensa.*synth2-jax\[captions\]"):
        NearDuplicates(0.8)


@pytest.mark.parametrize("script", ["芝生の上に茶色い犬が一匹座っている", "สุนัขสีน้ำตาลนั่งบนหญ้า"])
def test_scripts_without_spaces_have_near_duplicates_too(script):
    assert NearDuplicates(0.8).add([script, f"{script}。", script[:3]]) == [False, True, False]
