"""How balanced and varied a set of captions is.

Follows the paper's analysis of caption balance: captions are embedded and clustered by k-means, and
caption sets are compared by the share of their largest clusters and their entropy over clusters.
The number of clusters, the embedding and the logarithm's base behind the paper's figures are not
known here, so numbers compare only within one call of `balance`.

Legend: N captions, D embedding width, K clusters, F hash buckets.
"""

import collections
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from synth2_jax.scoring import words


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Sizes of the built-in caption embedding."""

    dim: int = 256
    num_buckets: int = 1 << 14
    word_orders: tuple[int, ...] = (1, 2)
    char_orders: tuple[int, ...] = (3, 4)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Result of `k_means`: centroids f64[K,D], labels i64[N], and the sum of squared distances."""

    centroids_KD: np.ndarray
    labels_N: np.ndarray
    inertia: float


@dataclasses.dataclass(frozen=True)
class SetBalance:
    """One caption set seen through the shared clusters.

    `cluster_sizes` is i64[K]; `entropy` is in nats, at most ln K.
    """

    top_share: float
    entropy: float
    distinct_1: float
    distinct_2: float
    cluster_sizes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Balance:
    """Result of `balance`: one entry a caption set, and the line that says how they were made."""

    sets: dict[str, SetBalance]
    provenance: str


def embed_captions(
    captions: Sequence[str], config: EmbeddingConfig = EmbeddingConfig()
) -> np.ndarray:
    """Bag-of-n-grams embedding: f64[N,D], rows of length 1 (0 for a caption without words).

    Word n-grams and character n-grams are hashed to buckets, weighted by tf-idf, brought to equal
    length so that the many character n-grams do not drown the words, and projected by a fixed
    random matrix. The idf comes from `captions`, so embeddings compare only within one call.
    """
    projection_FD = np.random.default_rng(config.seed).standard_normal(
        (config.num_buckets, config.dim)
    )
    chars_of_word: dict[str, list[int]] = {}
    word_bags, char_bags = [], []
    for caption in captions:
        tokens = words.tokenize(caption)
        word_bag, char_bag = collections.Counter(), collections.Counter()
        for order in config.word_orders:
            word_bag.update(
                _bucket("w" + " ".join(tokens[i : i + order]), config.num_buckets)
                for i in range(len(tokens) - order + 1)
            )
        for token in tokens:
            if token not in chars_of_word:
                marked = f"<{token}>"
                chars_of_word[token] = [
                    _bucket("c" + marked[i : i + order], config.num_buckets)
                    for order in config.char_orders
                    for i in range(len(marked) - order + 1)
                ]
            char_bag.update(chars_of_word[token])
        word_bags.append(word_bag)
        char_bags.append(char_bag)

    embeddings_ND = _project(word_bags, projection_FD) + _project(char_bags, projection_FD)
    return _unit_rows(embeddings_ND)


def _bucket(feature: str, num_buckets: int) -> int:
    # Not hash(): that one differs from process to process.
    return zlib.crc32(feature.encode()) % num_buckets


def _project(bags: list[collections.Counter], projection_FD: np.ndarray) -> np.ndarray:
    """tf-idf weights of each bag, scaled to length 1, times the projection: f64[N,D]."""
    bags_with = collections.Counter(bucket for bag in bags for bucket in bag)
    embeddings_ND = np.zeros((len(bags), projection_FD.shape[1]))
    for row, bag in enumerate(bags):
        if bag:
            buckets = list(bag)
            idf = 1 + np.log(len(bags) / np.array([bags_with[b] for b in buckets]))
            weights = np.array([bag[b] for b in buckets]) * idf
            embeddings_ND[row] = (weights / np.linalg.norm(weights)) @ projection_FD[buckets]
    return embeddings_ND


def _unit_rows(x_ND: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.divide(x_ND, norm_N1, out=np.zeros_like(x_ND), where=norm_N1 > 0)


def k_means(
    points_ND: np.ndarray,
    num_clusters: int,
    *,
    seed: int = 0,
    restarts: int = 4,
    max_steps: int = 100,
) -> Clusters:
    """Lloyd's k-means from k-means++ starts; the best of `restarts` by sum of squared distances.

    Raises:
        ValueError: `num_clusters` is not in 1..N, or `restarts` < 1.
    """
    points_ND = np.asarray(points_ND, np.float64)
    if not 1 <= num_clusters <= len(points_ND):
        raise ValueError(f"num_clusters is {num_clusters}, expected 1 to {len(points_ND)} (points)")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}, expected at least 1")
    runs = (
        _lloyd(points_ND, num_clusters, np.random.default_rng((seed, restart)), max_steps)
        for restart in range(restarts)
    )
    return min(runs, key=lambda run: run.inertia)


def _lloyd(
    points_ND: np.ndarray, num_clusters: int, rng: np.random.Generator, max_steps: int
) -> Clusters:
    centroids_KD = _plus_plus(points_ND, num_clusters, rng)
    labels_N, distance_N = _nearest(points_ND, centroids_KD)
    for _ in range(max_steps):
        one_hot_KN = (np.arange(num_clusters)[:, None] == labels_N).astype(np.float64)
        size_K = one_hot_KN.sum(axis=1)
        filled_K = size_K > 0
        centroids_KD = centroids_KD.copy()
        centroids_KD[filled_K] = (one_hot_KN @ points_ND)[filled_K] / size_K[filled_K, None]
        # A cluster that lost its points restarts at one of the points worst served.
        worst = np.argsort(-distance_N, kind="stable")[: np.sum(~filled_K)]
        centroids_KD[~filled_K] = points_ND[worst]
        previous_N = labels_N
        labels_N, distance_N = _nearest(points_ND, centroids_KD)
        if np.array_equal(labels_N, previous_N):
            break
    return Clusters(centroids_KD, labels_N, float(distance_N.sum()))


def _plus_plus(points_ND: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007): far points are likelier starts."""
    chosen = [int(rng.integers(len(points_ND)))]
    distance_N = np.full(len(points_ND), np.inf)
    for _ in range(num_clusters - 1):
        distance_N = np.minimum(
            distance_N, np.sum((points_ND - points_ND[chosen[-1]]) ** 2, axis=1)
        )
        total = distance_N.sum()
        # Fewer distinct points than clusters: the rest are duplicates and stay empty.
        chance_N = distance_N / total if total > 0 else None
        chosen.append(int(rng.choice(len(points_ND), p=chance_N)))
    return points_ND[chosen]


def _nearest(points_ND: np.ndarray, centroids_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each point's nearest centroid, and the squared distance to it."""
    squared_NK = (
        np.sum(points_ND**2, axis=1)[:, None]
        - 2 * points_ND @ centroids_KD.T
        + np.sum(centroids_KD**2, axis=1)
    )
    labels_N = np.argmin(squared_NK, axis=1)
    # Rounding can leave a distance of 0 slightly negative.
    return labels_N, np.maximum(squared_NK[np.arange(len(labels_N)), labels_N], 0)


def share_of_top_clusters(cluster_sizes: Sequence[int], top: int = 5) -> float:
    """Share of the captions that lie in the `top` largest clusters: 0 to 1.

    Raises:
        ValueError: the clusters are empty.
    """
    share_K = _shares(cluster_sizes)
    return float(np.sort(share_K)[::-1][:top].sum())


def cluster_entropy(cluster_sizes: Sequence[int]) -> float:
    """Entropy of the distribution over clusters in nats: 0 for one, ln K when all are equal.

    Raises:
        ValueError: the clusters are empty.
    """
    share_K = _shares(cluster_sizes)
    share_K = share_K[share_K > 0]
    # max: a single cluster would give -0.0
    return max(0.0, float(-np.sum(share_K * np.log(share_K))))


def _shares(cluster_sizes: Sequence[int]) -> np.ndarray:
    size_K = np.asarray(cluster_sizes, np.float64)
    if not size_K.sum() > 0:
        raise ValueError("the clusters hold no captions")
    return size_K / size_K.sum()


def distinct_n(captions: Iterable[str], order: int) -> float:
    """Distinct n-grams over all n-grams (Li et al., arXiv 1510.03055); 0 when there are none.

    It falls as a set grows: compare sets of equal size.
    """
    ngrams = []
    for caption in captions:
        tokens = words.tokenize(caption)
        ngrams.extend(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
    return len(set(ngrams)) / max(1, len(ngrams))


def balance(
    caption_sets: Mapping[str, Sequence[str]],
    *,
    num_clusters: int = 20,
    top: int = 5,
    sample_size: int | None = None,
    seed: int = 0,
    restarts: int = 4,
    embed: Callable[[Sequence[str]], np.ndarray] = embed_captions,
) -> Balance:
    """Compares caption sets by how evenly they fill clusters that all of them share.

    Every set contributes an equally large random sample, so that no set shapes the clusters more
    than another and sample size cannot masquerade as diversity; only the samples are counted.

    Args:
        sample_size: captions drawn from each set; by default as many as the smallest set has.
        embed: captions -> f[N,D]; called once, with the samples of all sets.

    Raises:
        ValueError: no sets, an empty set, a `sample_size` that is not positive or larger than the
            smallest set, or more clusters than captions.
    """
    if not caption_sets:
        raise ValueError("no caption sets to compare")
    smallest = min(caption_sets, key=lambda name: len(caption_sets[name]))
    available = len(caption_sets[smallest])
    size = available if sample_size is None else sample_size
    if not 1 <= size <= available:
        raise ValueError(
            f"sample_size is {size}, the smallest set {smallest!r} has {available} captions"
        )

    samples = {}
    for name in sorted(caption_sets):  # the order in which sets are named must not matter
        captions = caption_sets[name]
        rows = np.random.default_rng(seed).choice(len(captions), size, replace=False)
        samples[name] = [captions[row] for row in np.sort(rows)]
    points_ND = embed([caption for sample in samples.values() for caption in sample])
    clusters = k_means(points_ND, num_clusters, seed=seed, restarts=restarts)

    sets = {}
    for (name, sample), labels in zip(
        samples.items(), np.split(clusters.labels_N, len(samples)), strict=True
    ):
        size_K = np.bincount(labels, minlength=num_clusters)
        sets[name] = SetBalance(
            top_share=share_of_top_clusters(size_K, top),
            entropy=cluster_entropy(size_K),
            distinct_1=distinct_n(sample, 1),
            distinct_2=distinct_n(sample, 2),
            cluster_sizes=size_K,
        )
    provenance = (
        f"clusters={num_clusters}, top={top}, captions per set={size}, entropy in nats, seed={seed}"
    )
    return Balance(sets, provenance)
