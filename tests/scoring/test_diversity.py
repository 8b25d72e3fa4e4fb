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


@pytest.mark.parametrize(
    "sizes, top, share",
    # 40 + 20 + 10 + 10 + 8 of 100, wherever they are.
    [([2, 40, 5, 8, 10, 5, 20, 10], 5, 0.88), ([2, 40, 58], 1, 0.58), ([3, 1], 5, 1.0)],
)
def test_share_of_top_clusters_counts_the_largest(sizes, top, share):
    assert diversity.share_of_top_clusters(sizes, top=top) == pytest.approx(share)


@pytest.mark.parametrize(
    "counts, nats",
    [
        *(([3] * k, np.log(k)) for k in (1, 2, 7, 50)),
        ([0, 9, 0], 0),
        ([4, 0, 2, 2], 1.5 * np.log(2)),  # shares 1/2, 1/4, 1/4: 1.5 bits
    ],
)
def test_entropy_is_ln_k_of_equal_clusters_and_ignores_empty_ones(counts, nats):
    assert diversity.entropy(counts) == pytest.approx(nats, abs=1e-12)


@pytest.mark.parametrize("measure", [diversity.share_of_top_clusters, diversity.entropy])
def test_measures_refuse_empty_clusters(measure):
    with pytest.raises(ValueError, match="hold no captions"):
        measure([0, 0])


def one_hot(captions):
    """An embedding that puts each first word in a corner of its own."""
    return np.eye(8)[[int(caption.split()[0]) for caption in captions]]


def test_balance_compares_sets_in_shared_clusters():
    sets = {
        "even": [f"{i % 8} even" for i in range(40)],
        "skewed": [f"{0 if i < 33 else i - 32} skewed" for i in range(40)],
    }
    result = diversity.balance(sets, num_clusters=8, embed=one_hot)
    # Even: 5 of 8 equal clusters. Skewed: 33 and four ones of 40.
    assert result["even"].top_share == pytest.approx(5 / 8)
    assert result["even"].entropy == pytest.approx(np.log(8))
    assert result["skewed"].top_share == pytest.approx(37 / 40)
    # Shares 33/40 once and 1/40 seven times.
    expected = -33 / 40 * np.log(33 / 40) + 7 / 40 * np.log(40)
    assert result["skewed"].entropy == pytest.approx(expected)
    large = np.argmax(result["skewed"].cluster_sizes)
    assert result["even"].cluster_sizes[large] == 5


def test_balance_draws_equal_samples():
    result = diversity.balance({"many": ANIMALS * 3, "few": FOODS}, num_clusters=3)
    assert set(result["many"].sample) <= set(ANIMALS) and result["few"].sample == FOODS
    for one in result.values():
        assert len(one.sample) == len(one.labels) == len(FOODS)
        np.testing.assert_array_equal(np.bincount(one.labels, minlength=3), one.cluster_sizes)


def test_balance_repeats_ignores_the_order_of_sets_and_gives_equal_sets_equal_numbers():
    sets = {"a": ANIMALS, "b": list(ANIMALS), "f": FOODS}
    first = diversity.balance(sets, num_clusters=4, seed=1)
    second = diversity.balance(dict(reversed(sets.items())), num_clusters=4, seed=1)
    for name, same in (("a", "a"), ("b", "a"), ("f", "f")):
        np.testing.assert_array_equal(first[name].labels, second[same].labels)


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


def test_self_similarity_is_the_mean_cosine_of_two_rows():
    points_ND = np.random.default_rng(0).normal(size=(6, 4)) * np.arange(6)[:, None]  # one of zeros
    norms = np.linalg.norm(points_ND, axis=1)
    cosines = [
        0.0 if not norms[i] * norms[j] else points_ND[i] @ points_ND[j] / (norms[i] * norms[j])
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert diversity.self_similarity(points_ND) == pytest.approx(np.mean(cosines))
    assert diversity.self_similarity(np.ones((3, 2))) == pytest.approx(1)
    assert np.isnan(diversity.self_similarity(np.ones((1, 2))))
    same = diversity.balance(
        {"a": ["a red dog"] * 4, "b": ["a", "dog", "ran", "off"]}, num_clusters=2
    )
    assert same["b"].self_similarity < 0.9 < same["a"].self_similarity == pytest.approx(1)


def test_token_agreement_counts_pairs_of_pictures():
    tokens_MP = np.array([[1, 5], [1, 6], [2, 6]])
    # Of three pairs of pictures, one agrees at each place.
    assert diversity.token_agreement(tokens_MP) == pytest.approx(1 / 3)
    assert diversity.token_agreement(np.ones((4, 3), int)) == 1
    assert np.isnan(diversity.token_agreement(tokens_MP[:1]))
