"""Tests of caption diversity: embeddings, k-means, and the measures made of clusters."""

import os
import subprocess
import sys

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


def blobs(sizes, seed=0, spread=0.01):
    """Points around well separated corners, with their corner's index."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    points = np.eye(len(sizes))[truth] + spread * rng.standard_normal((len(truth), len(sizes)))
    order = rng.permutation(len(truth))
    return points[order], truth[order]


# Embeddings.


def test_embeddings_are_unit_rows_and_zero_without_words():
    embeddings = diversity.embed_captions([*ANIMALS, "", "..."])
    assert embeddings.shape == (len(ANIMALS) + 2, diversity.EmbeddingConfig().dim)
    norms = np.linalg.norm(embeddings, axis=1)
    np.testing.assert_allclose(norms, [1.0] * len(ANIMALS) + [0.0, 0.0], atol=1e-12)


def test_embeddings_bring_similar_captions_together():
    x = diversity.embed_captions([*ANIMALS, *FOODS])
    is_food = np.arange(len(x)) >= len(ANIMALS)
    cosines = x @ x.T - 2 * np.eye(len(x))  # a caption is not its own neighbour
    np.testing.assert_array_equal(is_food[np.argmax(cosines, axis=1)], is_food)
    same = is_food[:, None] == is_food
    assert cosines[same & (cosines > -1)].mean() > cosines[~same].mean() + 0.2


def test_embedding_ignores_case_and_punctuation_only():
    x = diversity.embed_captions(["A red dog.", "a red dog", "a red log", "red a dog"])
    np.testing.assert_allclose(x[0], x[1])
    assert x[0] @ x[2] < 0.99 and x[0] @ x[3] < 0.99


def test_embedding_is_the_same_in_another_process():
    # Python's own hash of a string is not.
    code = (
        "from synth2_jax.scoring import diversity;"
        "print(repr(float(diversity.embed_captions(['a red dog', 'two cats'])[0, 0])))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert float(printed) == float(diversity.embed_captions(["a red dog", "two cats"])[0, 0])


# k-means.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k_means_recovers_separated_blobs(seed):
    sizes = [5, 20, 10, 40]
    points, truth = blobs(sizes, seed)
    clusters = diversity.k_means(points, 4, seed=seed)
    # The same partition: every true blob has one label, and no two blobs share it.
    pairs = set(zip(truth.tolist(), clusters.labels_N.tolist(), strict=True))
    assert len(pairs) == 4 == len({label for _, label in pairs})
    for blob, label in pairs:
        np.testing.assert_allclose(clusters.centroids_KD[label], points[truth == blob].mean(axis=0))


def test_k_means_inertia_is_the_sum_of_squared_distances():
    points, _ = blobs([10, 10, 10], spread=0.3)
    clusters = diversity.k_means(points, 3)
    residual = points - clusters.centroids_KD[clusters.labels_N]
    assert clusters.inertia == pytest.approx(np.sum(residual**2))


def test_k_means_is_deterministic_and_restarts_never_hurt():
    points = np.random.default_rng(0).standard_normal((60, 3))
    one = diversity.k_means(points, 8, seed=3, restarts=1)
    again = diversity.k_means(points, 8, seed=3, restarts=1)
    np.testing.assert_array_equal(one.labels_N, again.labels_N)
    np.testing.assert_array_equal(one.centroids_KD, again.centroids_KD)
    inertia = [diversity.k_means(points, 8, seed=3, restarts=n).inertia for n in (1, 5, 10)]
    assert inertia[0] >= inertia[1] >= inertia[2]
    assert inertia[0] > inertia[2]


def test_k_means_of_one_cluster_is_the_mean():
    points, _ = blobs([3, 4])
    clusters = diversity.k_means(points, 1)
    np.testing.assert_allclose(clusters.centroids_KD, points.mean(axis=0, keepdims=True))


def test_k_means_leaves_clusters_empty_when_points_repeat():
    points = np.repeat([[0.0, 1.0], [1.0, 0.0]], 3, axis=0)
    clusters = diversity.k_means(points, 4)
    assert clusters.inertia == 0
    assert sorted(np.bincount(clusters.labels_N, minlength=4)) == [0, 0, 3, 3]


@pytest.mark.parametrize("num_clusters", [0, 4])
def test_k_means_refuses_impossible_numbers_of_clusters(num_clusters):
    with pytest.raises(ValueError, match=f"num_clusters is {num_clusters}, expected 1 to 3"):
        diversity.k_means(np.eye(3), num_clusters)


def test_k_means_refuses_no_restarts():
    with pytest.raises(ValueError, match="restarts is 0"):
        diversity.k_means(np.eye(3), 2, restarts=0)


# Measures.


def test_share_of_top_clusters_counts_the_largest():
    # 40 + 20 + 10 + 10 + 8 of 100, wherever they stand.
    sizes = [2, 40, 5, 8, 10, 5, 20, 10]
    assert diversity.share_of_top_clusters(sizes, top=5) == pytest.approx(0.88)
    assert diversity.share_of_top_clusters(sizes, top=1) == pytest.approx(0.40)
    assert diversity.share_of_top_clusters([3, 1], top=5) == pytest.approx(1.0)


def test_entropy_of_equal_clusters_is_ln_k():
    for k in (1, 2, 7, 50):
        assert diversity.cluster_entropy([3] * k) == pytest.approx(np.log(k), abs=1e-12)


def test_entropy_of_one_cluster_is_zero_and_empty_ones_do_not_count():
    assert diversity.cluster_entropy([0, 9, 0]) == 0
    # Shares 1/2, 1/4, 1/4: 1.5 bits.
    assert diversity.cluster_entropy([4, 0, 2, 2]) == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize("measure", [diversity.share_of_top_clusters, diversity.cluster_entropy])
def test_measures_refuse_empty_clusters(measure):
    with pytest.raises(ValueError, match="hold no captions"):
        measure([0, 0])


def test_distinct_n_counts_over_the_whole_set():
    # Words a b a c, a b: 3 distinct of 6. Bigrams ab ba ac, ab: 3 distinct of 4.
    assert diversity.distinct_n(["a b a c", "A, b"], 1) == pytest.approx(3 / 6)
    assert diversity.distinct_n(["a b a c", "A, b"], 2) == pytest.approx(3 / 4)
    assert diversity.distinct_n(["a", ""], 2) == 0


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
    assert "captions per set=6" in result.provenance and "clusters=3" in result.provenance


def test_balance_gives_equal_sets_equal_numbers():
    result = diversity.balance({"a": ANIMALS, "b": list(ANIMALS)}, num_clusters=4, sample_size=8)
    np.testing.assert_array_equal(result.sets["a"].cluster_sizes, result.sets["b"].cluster_sizes)
    assert result.sets["a"].distinct_2 == result.sets["b"].distinct_2


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
    assert result.sets["varied"].distinct_2 > result.sets["narrow"].distinct_2


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
