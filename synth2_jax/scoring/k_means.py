"""k-means in the points' own precision, whose steps are scipy's.

Legend: N points, S points of a sample, D their width, K clusters.
"""

import dataclasses

import numpy as np
import scipy.cluster.vq
import scipy.sparse

_START_POINTS = 1 << 14  # starts are sought among this many points
_START_POINTS_PER_CLUSTER = 16  # or this many a cluster, where that is more
_MAX_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Result of `k_means`: centroids f[K,D], labels i64[N], and the sum of squared distances."""

    centroids_KD: np.ndarray
    labels_N: np.ndarray
    inertia: float


def k_means(
    points_ND: np.ndarray, num_clusters: int, *, seed: int = 0, restarts: int = 4
) -> Clusters:
    """Lloyd's k-means from k-means++ starts; the best of `restarts` by sum of squared distances.

    Of many points, a random sample chooses among the starts, and the best one's centroids go on
    with all points until a step gains less than 1 in 10,000. Otherwise steps end when no label
    changes.

    Raises:
      ValueError: `num_clusters` is not in 1..N, or `restarts` < 1.
    """
    points_ND = np.asarray(points_ND)
    if not np.issubdtype(points_ND.dtype, np.floating):
        points_ND = points_ND.astype(np.float64)
    if not 1 <= num_clusters <= len(points_ND):
        raise ValueError(f"num_clusters is {num_clusters}, expected 1 to {len(points_ND)} (points)")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}, expected at least 1")
    sample_SD = points_ND
    size = max(_START_POINTS, _START_POINTS_PER_CLUSTER * num_clusters)
    if size < len(points_ND):
        rows = np.random.default_rng(seed).choice(len(points_ND), size, replace=False)
        sample_SD = points_ND[np.sort(rows)]
    rngs = (np.random.default_rng((seed, restart)) for restart in range(restarts))
    runs = (_lloyd(sample_SD, _plus_plus(sample_SD, num_clusters, rng)) for rng in rngs)
    best = min(runs, key=lambda run: run.inertia)
    return best if sample_SD is points_ND else _lloyd(points_ND, best.centroids_KD, min_gain=1e-4)


def _lloyd(
    points_ND: np.ndarray, centroids_KD: np.ndarray, *, min_gain: float | None = None
) -> Clusters:
    """Steps until no label changes, or inertia falls by less than `min_gain` of itself."""
    found, squared_N = _assigned(points_ND, centroids_KD)
    for _ in range(_MAX_STEPS):
        ones_N, rows_N = np.ones(len(points_ND)), np.arange(len(points_ND))  # sums are float64
        shape = len(centroids_KD), len(points_ND)
        one_hot_KN = scipy.sparse.csr_array((ones_N, (found.labels_N, rows_N)), shape=shape)
        size_K = np.bincount(found.labels_N, minlength=len(centroids_KD))
        centroids_KD = (one_hot_KN @ points_ND) / np.maximum(size_K, 1)[:, None]
        # A cluster that lost its points restarts at one of the points worst served.
        worst = np.argsort(-squared_N, kind="stable")[: np.sum(size_K == 0)]
        centroids_KD[size_K == 0] = points_ND[worst]
        previous = found
        found, squared_N = _assigned(points_ND, centroids_KD.astype(points_ND.dtype))
        if np.array_equal(found.labels_N, previous.labels_N):
            break
        gain = previous.inertia - found.inertia
        if min_gain is not None and gain < min_gain * previous.inertia:
            break
    return found


def _assigned(points_ND: np.ndarray, centroids_KD: np.ndarray) -> tuple[Clusters, np.ndarray]:
    """The nearest centroid of each point, and squared distances f[N] to them."""
    labels_N, distance_N = scipy.cluster.vq.vq(points_ND, centroids_KD, check_finite=False)
    squared_N = distance_N**2
    inertia = float(squared_N.sum(dtype=np.float64))
    return Clusters(centroids_KD, labels_N.astype(np.int64), inertia), squared_N


def _plus_plus(points_ND: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007): far points are likelier starts."""
    chosen = [int(rng.integers(len(points_ND)))]
    distance_N = np.full(len(points_ND), np.inf)
    for _ in range(num_clusters - 1):
        from_last_N = np.sum((points_ND - points_ND[chosen[-1]]) ** 2, axis=1, dtype=np.float64)
        distance_N = np.minimum(distance_N, from_last_N)
        total = distance_N.sum()
        # Fewer distinct points than clusters: the rest are duplicates and stay empty.
        chance_N = distance_N / total if total > 0 else None
        chosen.append(int(rng.choice(len(points_ND), p=chance_N)))
    return points_ND[chosen]
