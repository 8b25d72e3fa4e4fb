"""Near-duplicates against the slow way: every caption with every kept one, sets in Python."""

import random
import subprocess
import sys

import numpy as np
import pytest

from synth2_jax.caption_writing import duplicates
from synth2_jax.caption_writing.classes import COMMON_OBJECTS, load_classes
from synth2_jax.caption_writing.duplicates import NUM_HASHES, NearDuplicates, jaccard, num_rows


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
        (["a big red dog runs", "a big red dog sits"], 0.6, [0, 0]),  # 7 of 11
        (["a big red dog runs", "a big red dog sits"], 0.63, [0, 0]),
        (["", "", "🐕", "🐕"], 0.8, [0, 0, 0, 0]),
        ([], 0.8, []),
    ],
)
def test_literal_cases(captions, similarity, dropped):
    expected = [bool(one) for one in dropped]
    if similarity in (0.6, 0.63):
        expected[1] = similarity <= 7 / 11
    assert NearDuplicates(similarity).add(captions).tolist() == expected


def test_the_first_of_several_is_kept_and_a_dropped_one_drops_no_other():
    chain = [
        "one two three four five six seven eight nine ten",
        "one two three four five six seven eight nine last",
        "first two three four five six seven eight nine last",
    ]
    assert jaccard(chain[0], chain[1]) > 0.8 > jaccard(chain[0], chain[2])
    assert jaccard(chain[1], chain[2]) > 0.8
    assert NearDuplicates(0.8).add(chain).tolist() == [False, True, False]
    assert NearDuplicates(0.8).add(chain[1:]).tolist() == [False, True]


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
    assert near.add(captions).all()  # all there already, or near one that is


def test_it_takes_more_captions_than_a_chunk(monkeypatch):
    captions = written(700, random.Random(2))
    expected = NearDuplicates(0.8).add(captions)
    monkeypatch.setattr(duplicates, "_CHUNK", 64)
    monkeypatch.setattr(duplicates, "_PAIRS_CHUNK", 32)
    np.testing.assert_array_equal(NearDuplicates(0.8).add(captions), expected)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_one_in_a_hundred_at_most_where_it_is_hardest(similarity):
    rows = num_rows(similarity)
    assert NUM_HASHES % rows == 0
    assert (1 - similarity**rows) ** (NUM_HASHES // rows) <= 0.01


def test_min_hashes_agree_as_often_as_sets_are_similar():
    rng = random.Random(3)
    pairs = []
    for _ in range(300):
        words = [f"w{rng.randrange(10**6)}" for _ in range(20)]
        other = [word if rng.random() < 0.9 else f"x{word}" for word in words]
        pairs.append((" ".join(words), " ".join(other)))
    hashes = duplicates._Hashes(rows=1, seed=0)
    a, b = (hashes.describe(side) for side in zip(*pairs, strict=True))
    agree_N = (a.bands_BN == b.bands_BN).mean(axis=0)
    expected_N = np.array([jaccard(*pair) for pair in pairs])
    assert abs((agree_N - expected_N).mean()) < 0.01
    assert np.sqrt(((agree_N - expected_N) ** 2).mean()) < 0.06  # 0.046 for 120 coins


def test_it_is_the_same_in_another_process():
    code = (
        "from synth2_jax.caption_writing import duplicates\n"
        "table = duplicates._Hashes(rows=6, seed=0).describe(['a red dog', 'two cats'])\n"
        "print(int(table.bands_BN.sum()), int(table.features_F.sum()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("script", ["芝生の上に茶色い犬が一匹座っている", "สุนัขสีน้ำตาลนั่งบนหญ้า"])
def test_scripts_without_spaces_have_near_duplicates_too(script):
    assert NearDuplicates(0.8).add([script, f"{script}。", script + script[0]]).tolist()[:2] == [
        False,
        True,
    ]
    assert NearDuplicates(0.8).add([script, script[:3]]).tolist() == [False, False]
