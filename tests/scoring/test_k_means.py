"""Tests of k-means: what it must find, and that samples change nothing."""

import numpy as np
import pytest

from synth2_jax.scoring import k_means as k_means_lib
from synth2_jax.scoring.k_means import k_means


def blobs(sizes, seed=0, spread=0.01):
    """Points around well separated corners, with their corner's index."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    points = np.eye(len(sizes))[truth] + spread * rng.standard_normal((len(truth), len(sizes)))
    order = rng.permutation(len(truth))
    return points[order], truth[order]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k_means_recovers_separated_blobs(seed):
    points, truth = blobs([5, 20, 10, 40], seed)
    clusters = k_means(points, 4, seed=seed)
    # The same partition: every true blob has one label, and no two blobs share it.
    pairs = set(zip(truth.tolist(), clusters.labels_N.tolist(), strict=True))
    assert len(pairs) == 4 == len({label for _, label in pairs})
    for blob, label in pairs:
        np.testing.assert_allclose(clusters.centroids_KD[label], points[truth == blob].mean(axis=0))
    one = k_means(points, 1)
    np.testing.assert_allclose(one.centroids_KD, points.mean(axis=0, keepdims=True))


def test_k_means_is_deterministic_and_restarts_never_hurt():
    points = np.random.default_rng(0).standard_normal((60, 3))
    one, again = (k_means(points, 8, seed=3, restarts=1) for _ in range(2))
    np.testing.assert_array_equal(one.labels_N, again.labels_N)
    np.testing.assert_array_equal(one.centroids_KD, again.centroids_KD)
    inertia = [k_means(points, 8, seed=3, restarts=n).inertia for n in (1, 5, 10)]
    assert inertia[0] >= inertia[1] >= inertia[2] and inertia[0] > inertia[2]


def test_k_means_leaves_clusters_empty_when_points_repeat():
    clusters = k_means(np.repeat([[0, 1], [1, 0]], 3, axis=0), 4)
    assert clusters.inertia == 0
    assert sorted(np.bincount(clusters.labels_N, minlength=4)) == [0, 0, 3, 3]


def test_a_cluster_without_points_starts_again_at_the_point_worst_served(monkeypatch):
    monkeypatch.setattr(k_means_lib, "_plus_plus", lambda points, number, rng: points[[0] * number])
    clusters = k_means(np.array([[0.0], [0.1], [10.0], [10.1]]), 2)
    assert clusters.inertia == pytest.approx(0.01)


@pytest.mark.parametrize(
    "num_clusters, restarts, message",
    [
        (0, 4, "num_clusters is 0, expected 1 to 3"),
        (4, 4, "num_clusters is 4, expected 1 to 3"),
        (2, 0, "restarts is 0"),
    ],
)
def test_k_means_refuses_impossible_numbers(num_clusters, restarts, message):
    with pytest.raises(ValueError, match=message):
        k_means(np.eye(3), num_clusters, restarts=restarts)


def slow_lloyd(points, centroids):
    """Lloyd's steps as they are defined, until nothing changes."""
    while True:
        distances = np.sum((points[:, None] - centroids) ** 2, axis=2)
        labels = distances.argmin(axis=1)
        means = np.stack([points[labels == k].mean(axis=0) for k in range(len(centroids))])
        if np.allclose(means, centroids, atol=1e-12):
            return labels, distances.min(axis=1).sum()
        centroids = means


@pytest.mark.parametrize("width", [3, 9])  # scipy has a routine for narrow points and one for wide
def test_k_means_ends_where_the_definition_does(width):
    points = np.random.default_rng(0).standard_normal((50, width))
    clusters = k_means(points, 4, seed=1)
    labels, inertia = slow_lloyd(points, clusters.centroids_KD)
    np.testing.assert_array_equal(clusters.labels_N, labels)
    assert clusters.inertia == pytest.approx(inertia)


def test_float32_stays_float32_and_finds_the_same():
    points, _ = blobs([30, 20, 10], spread=0.2)
    single, double = k_means(points.astype(np.float32), 3), k_means(points, 3)
    assert single.centroids_KD.dtype == np.float32
    np.testing.assert_array_equal(single.labels_N, double.labels_N)
    assert single.inertia == pytest.approx(double.inertia, rel=1e-5)


def test_starts_from_a_sample_serve_all_points(monkeypatch):
    points, truth = blobs([500, 900, 300, 700], spread=0.05)
    of_all = k_means(points, 4).inertia
    monkeypatch.setattr(k_means_lib, "_START_POINTS", 100)
    clusters = k_means(points, 4)
    assert len(set(zip(truth.tolist(), clusters.labels_N.tolist(), strict=True))) == 4
    residual = points - clusters.centroids_KD[clusters.labels_N]
    assert clusters.inertia == pytest.approx(np.sum(residual**2))
    assert clusters.inertia == pytest.approx(of_all, rel=1e-3)


def test_more_clusters_than_the_usual_sample_still_start_from_as_many_points(monkeypatch):
    monkeypatch.setattr(k_means_lib, "_START_POINTS", 4)
    points, _ = blobs([20] * 8)
    assert len(set(k_means(points, 8, restarts=8).labels_N.tolist())) == 8
