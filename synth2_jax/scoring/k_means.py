"""k-means that goes through its points in blocks.

It works in the points' own precision. Beside the points it holds one block's distances.

Legend: N points, B points of a block, D their width, K clusters.
"""

import dataclasses

import numpy as np
import scipy.sparse

_BLOCK = 4096
_START_POINTS = 1 << 14  # starts are sought among this many points
_START_POINTS_PER_CLUSTER = 16  # or this many a cluster, where that is more


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Result of `k_means`: centroids f[K,D], labels i64[N], and the sum of squared distances."""

    centroids_KD: np.ndarray
    labels_N: np.ndarray
    inertia: float


def k_means(
    points_ND: np.ndarray,
    num_clusters: int,
    *,
    seed: int = 0,
    restarts: int = 4,
    max_steps: int = 100,
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
    sample_SD = _sample(points_ND, num_clusters, seed)
    runs = (
        _lloyd(sample_SD, _plus_plus(sample_SD, num_clusters, rng), max_steps)
        for rng in (np.random.default_rng((seed, restart)) for restart in range(restarts))
    )
    best = min(runs, key=lambda run: run.inertia)
    if len(sample_SD) == len(points_ND):
        return best
    return _lloyd(points_ND, best.centroids_KD, max_steps, min_gain=1e-4)


def _sample(points_ND: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    size = max(_START_POINTS, _START_POINTS_PER_CLUSTER * num_clusters)
    if size >= len(points_ND):
        return points_ND
    rows = np.random.default_rng(seed).choice(len(points_ND), size, replace=False)
    return points_ND[np.sort(rows)]


def _lloyd(
    points_ND: np.ndarray,
    centroids_KD: np.ndarray,
    max_steps: int,
    *,
    min_gain: float | None = None,
) -> Clusters:
    """Steps until no label changes, or inertia falls by less than `min_gain` of itself."""
    norm_N = np.einsum("ND,ND->N", points_ND, points_ND)
    labels_N, distance_N, sums_KD, size_K = _assign(points_ND, norm_N, centroids_KD)
    for _ in range(max_steps):
        filled_K = size_K > 0
        centroids_KD = np.zeros_like(centroids_KD)
        centroids_KD[filled_K] = sums_KD[filled_K] / size_K[filled_K, None]
        # A cluster that lost its points restarts at one of the points worst served.
        worst = np.argsort(-distance_N, kind="stable")[: np.sum(~filled_K)]
        centroids_KD[~filled_K] = points_ND[worst]
        previous_labels_N, previous_inertia = labels_N, _inertia(distance_N)
        labels_N, distance_N, sums_KD, size_K = _assign(points_ND, norm_N, centroids_KD)
        if np.array_equal(labels_N, previous_labels_N):
            break
        gain = previous_inertia - _inertia(distance_N)
        if min_gain is not None and gain < min_gain * previous_inertia:
            break
    return Clusters(centroids_KD, labels_N, _inertia(distance_N))


def _inertia(distance_N: np.ndarray) -> float:
    return float(distance_N.sum(dtype=np.float64))


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


def _assign(
    points_ND: np.ndarray, norm_N: np.ndarray, centroids_KD: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One pass over the points, whose squared lengths are `norm_N`.

    Returns (labels i64[N] of the nearest centroid, squared distance to it f[N], and each cluster's
    sum of points f64[K,D] and size i64[K]).
    """
    num_clusters = len(centroids_KD)
    labels_N = np.empty(len(points_ND), np.int64)
    distance_N = np.empty_like(norm_N)
    sums_KD = np.zeros(centroids_KD.shape)
    centroid_norm_K = np.einsum("KD,KD->K", centroids_KD, centroids_KD)
    for start in range(0, len(points_ND), _BLOCK):
        block_BD = points_ND[start : start + _BLOCK]
        rows_B = np.arange(len(block_BD))
        # Short of the points' own squared lengths, which do not tell centroids apart.
        nearness_BK = centroid_norm_K - block_BD @ (2 * centroids_KD).T
        labels_B = np.argmin(nearness_BK, axis=1)
        labels_N[start + rows_B] = labels_B
        distance_N[start + rows_B] = nearness_BK[rows_B, labels_B]
        one_hot_KB = scipy.sparse.csr_array(
            (np.ones(len(rows_B), points_ND.dtype), (labels_B, rows_B)),
            shape=(num_clusters, len(rows_B)),
        )
        sums_KD += one_hot_KB @ block_BD
    # Rounding can leave a distance of 0 slightly negative.
    distance_N = np.maximum(distance_N + norm_N, 0)
    return labels_N, distance_N, sums_KD, np.bincount(labels_N, minlength=num_clusters)
