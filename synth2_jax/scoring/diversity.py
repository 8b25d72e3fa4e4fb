"""Scores of how balanced a set of captions is.

Follows the paper's analysis of caption balance: captions are embedded and clustered by k-means, and
caption sets are compared by the share of their largest clusters and their entropy over clusters.
The number of clusters, the embedding and the logarithm's base behind the paper's figures are not
known here, so numbers compare only within one call of `balance`.

Legend: N captions, D embedding width, K clusters; M pictures, P tokens of each.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from synth2_jax.scoring.caption_embedding import Embed, embed_captions
from synth2_jax.scoring.k_means import k_means


@dataclasses.dataclass(frozen=True)
class SetBalance:
    """One caption set seen through the shared clusters.

    Attributes:
      sample: the captions that were counted.
      labels: i64, the cluster of each.
      cluster_sizes: i64[K].
      top_share: share of the sample in the set's largest clusters.
      entropy: over clusters in nats, at most ln K.
      self_similarity: mean cosine between the embeddings of two captions of the sample.
    """

    sample: Sequence[str]
    labels: np.ndarray
    cluster_sizes: np.ndarray
    top_share: float
    entropy: float
    self_similarity: float


def share_of_top_clusters(cluster_sizes: Sequence[int], top: int = 5) -> float:
    """Share of the captions in the `top` largest clusters: 0 to 1; ValueError without captions."""
    return float(np.sort(_shares(cluster_sizes))[::-1][:top].sum())


def entropy(counts: Sequence[int]) -> float:
    """Entropy in nats, 0 to ln K; ValueError without captions."""
    share_K = _shares(counts)
    share_K = share_K[share_K > 0]
    # max: a single cluster would give -0.0
    return max(0.0, float(-np.sum(share_K * np.log(share_K))))


def self_similarity(points_ND: np.ndarray) -> float:
    """Mean cosine between two different rows; a row of zeros is like no other. NaN for one row."""
    norms_N1 = np.linalg.norm(points_ND, axis=1, keepdims=True)
    unit_ND = points_ND / np.where(norms_N1 > 0, norms_N1, 1.0)
    total_D, num_rows = unit_ND.sum(axis=0), len(unit_ND)
    if num_rows < 2:
        return float("nan")
    return float((total_D @ total_D - (unit_ND**2).sum()) / (num_rows * (num_rows - 1)))


def token_agreement(tokens_MP: np.ndarray) -> float:
    """Chance that two different pictures have the same token at a place. NaN for one picture."""
    num_pictures = len(tokens_MP)
    if num_pictures < 2:
        return float("nan")
    counts = [np.unique(column, return_counts=True)[1] for column in tokens_MP.T]
    alike = [(count * (count - 1)).sum() / (num_pictures * (num_pictures - 1)) for count in counts]
    return float(np.mean(alike))


def _shares(counts: Sequence[int]) -> np.ndarray:
    size_K = np.asarray(counts, np.float64)
    if not size_K.sum() > 0:
        raise ValueError("the clusters hold no captions")
    return size_K / size_K.sum()


def balance(
    caption_sets: Mapping[str, Sequence[str]],
    *,
    num_clusters: int = 20,
    sample_size: int | None = None,
    seed: int = 0,
    embed: Embed = embed_captions,
) -> dict[str, SetBalance]:
    """Compares caption sets, by name, by how evenly they fill clusters that all of them share.

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
    labels_N = k_means(points_ND, num_clusters, seed=seed).labels_N
    sets, parts = {}, (np.split(array, len(samples)) for array in (labels_N, points_ND))
    for name, labels, points in zip(samples, *parts, strict=True):
        size_K = np.bincount(labels, minlength=num_clusters)
        measures = share_of_top_clusters(size_K), entropy(size_K), self_similarity(points)
        sets[name] = SetBalance(samples[name], labels, size_K, *measures)
    return sets
