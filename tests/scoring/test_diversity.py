"""Tests of caption diversity: the measures made of clusters."""

import numpy as np
import pytest

from synth2_jax.scoring import diversity

ANIMALS = [
    f"a {size} {animal} in the {place}"
    for size in ("small", "large")
    for animal in ("dog", "cat", "horse")
    for place in ("grass", "snow")
]
FOODS = [
    f"{n} slices of {food} on a plate"
    for n in ("two", "three")
    for food in ("pizza", "bread", "cake")
]


# Measures.


def test_share_of_top_clusters_counts_the_largest():
    # 40 + 20 + 10 + 10 + 8 of 100, wherever they stand.
    sizes = [2, 40, 5, 8, 10, 5, 20, 10]
    assert diversity.share_of_top_clusters(sizes, top=5) == pytest.approx(0.88)
    assert diversity.share_of_top_clusters(sizes, top=1) == pytest.approx(0.40)
    assert diversity.share_of_top_clusters([3, 1], top=5) == pytest.approx(1.0)


def test_entropy_of_equal_clusters_is_ln_k():
    for k in (1, 2, 7, 50):
        assert diversity.entropy([3] * k) == pytest.approx(np.log(k), abs=1e-12)


def test_entropy_of_one_cluster_is_zero_and_empty_ones_do_not_count():
    assert diversity.entropy([0, 9, 0]) == 0
    # Shares 1/2, 1/4, 1/4: 1.5 bits.
    assert diversity.entropy([4, 0, 2, 2]) == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize("measure", [diversity.share_of_top_clusters, diversity.entropy])
def test_measures_refuse_empty_clusters(measure):
    with pytest.raises(ValueError, match="hold no captions"):
        measure([0, 0])


# Balance.


def one_hot(captions):
    """An embedding that puts each first word in a corner of its own."""
    return np.eye(8)[[int(caption.split()[0]) for caption in captions]]


def test_balance_compares_sets_in_shared_clusters():
    even = [f"{i % 8} even" for i in range(40)]
    skewed = [f"{0 if i < 33 else i - 32} skewed" for i in range(40)]
    result = diversity.balance({"even": even, "skewed": skewed}, num_clusters=8, embed=one_hot)
    # Even: 5 of 8 equal clusters. Skewed: 33 and four ones of 40.
    assert result.sets["even"].top_share == pytest.approx(5 / 8)
    assert result.sets["even"].entropy == pytest.approx(np.log(8))
    assert result.sets["skewed"].top_share == pytest.approx(37 / 40)
    # Shares 33/40 once and 1/40 seven times.
    expected = -33 / 40 * np.log(33 / 40) + 7 / 40 * np.log(40)
    assert result.sets["skewed"].entropy == pytest.approx(expected)
    large = np.argmax(result.sets["skewed"].cluster_sizes)
    assert result.sets["even"].cluster_sizes[large] == 5


def test_balance_draws_equal_samples_and_says_so():
    sets = {"many": ANIMALS * 3, "few": FOODS}
    result = diversity.balance(sets, num_clusters=3)
    assert {int(s.cluster_sizes.sum()) for s in result.sets.values()} == {len(FOODS)}
    assert set(result.sets["many"].sample) <= set(ANIMALS)
    assert result.sets["few"].sample == FOODS
    for one in result.sets.values():
        np.testing.assert_array_equal(np.bincount(one.labels, minlength=3), one.cluster_sizes)
    assert "captions per set=6" in result.provenance and "clusters=3" in result.provenance


def test_balance_gives_equal_sets_equal_numbers():
    result = diversity.balance({"a": ANIMALS, "b": list(ANIMALS)}, num_clusters=4, sample_size=8)
    np.testing.assert_array_equal(result.sets["a"].cluster_sizes, result.sets["b"].cluster_sizes)
    np.testing.assert_array_equal(result.sets["a"].labels, result.sets["b"].labels)


def test_balance_repeats_and_ignores_the_order_of_sets():
    first = diversity.balance({"a": ANIMALS, "f": FOODS}, num_clusters=4, seed=1)
    second = diversity.balance({"f": FOODS, "a": ANIMALS}, num_clusters=4, seed=1)
    for name in "af":
        np.testing.assert_array_equal(
            first.sets[name].cluster_sizes, second.sets[name].cluster_sizes
        )


def test_balance_sees_that_varied_captions_are_more_balanced():
    rng = np.random.default_rng(0)
    pool = [*ANIMALS, *FOODS]
    varied = [pool[i % len(pool)] for i in range(90)]
    narrow = [pool[i] for i in rng.integers(0, 3, 90)]
    result = diversity.balance({"varied": varied, "narrow": narrow}, num_clusters=10)
    assert result.sets["varied"].entropy > result.sets["narrow"].entropy + 0.5
    assert result.sets["varied"].top_share < result.sets["narrow"].top_share


@pytest.mark.parametrize(
    "sets, arguments, message",
    [
        ({}, {}, "no caption sets"),
        ({"a": ["x"], "b": []}, {}, "smallest set 'b' has 0 captions"),
        ({"a": ["x", "y"]}, {"sample_size": 3}, "sample_size is 3, the smallest set 'a' has 2"),
        ({"a": ["x", "y"]}, {"num_clusters": 5}, "num_clusters is 5, expected 1 to 2"),
    ],
)
def test_balance_refuses_what_it_cannot_compare(sets, arguments, message):
    with pytest.raises(ValueError, match=message):
        diversity.balance(sets, **arguments)
