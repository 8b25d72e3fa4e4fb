"""Intervals of statistics of paired scores, by a bootstrap over seeds and over images.

Each draw takes seeds with replacement, then images with replacement: the same images for all arms
and seeds, since all of them are scored on the same images. What differs between two arms is then
not hidden by how hard an image is.

A bootstrap of S seeds has (S - 1) / S of their variance, a third less than it should with three of
them. The weights of the seeds are therefore stretched around 1 / S (Rao and Wu, 1988). With two or
three seeds that differ much, an interval still covers less than it says; with one seed it covers
the images alone.

Legend: A arms, S seeds, I images, D draws.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

DRAWS = 2000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic, and the interval around it."""

    value: float
    low: float
    high: float


def estimate(
    statistic: Callable[[np.ndarray], np.ndarray],
    scores_ASI: np.ndarray,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Estimates a statistic of the arms' mean scores, with a percentile interval.

    Args:
      statistic: means of the arms f64[..., A] -> f64[...].

    Raises:
      ValueError: no arms, seeds or images, a score that is not finite, or a statistic that is NaN
        for some draw.
    """
    scores_ASI = np.asarray(scores_ASI, np.float64)
    if scores_ASI.ndim != 3 or not scores_ASI.size or not np.isfinite(scores_ASI).all():
        raise ValueError(f"scores: found shape {scores_ASI.shape}, expected finite f64[A, S, I]")
    drawn_D = statistic(resampled_means(scores_ASI, draws, seed))
    if np.isnan(drawn_D).any():
        raise ValueError(f"the statistic is NaN for {np.isnan(drawn_D).sum()} of {draws} draws")
    tail = (1 - level) / 2
    # An observed value, not one between two: the statistic may be infinite.
    low, high = np.quantile(drawn_D, [tail, 1 - tail], method="inverted_cdf")
    return Estimate(float(statistic(scores_ASI.mean((1, 2)))), float(low), float(high))


def resampled_means(scores_ASI: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Mean of each arm in each draw, f64[D, A]."""
    seeds_DS, images_DI = _weights(*scores_ASI.shape[1:], draws, seed)
    return np.einsum("DS,ASD->DA", seeds_DS, scores_ASI @ images_DI.T)


@functools.lru_cache(maxsize=16)  # drawing takes longer than all the rest
def _weights(
    num_seeds: int, num_images: int, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the seeds f64[D, S] and of the images f64[D, I], which sum to 1 in each draw."""
    rng = np.random.default_rng(seed)
    seeds_DS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), draws) / num_seeds
    images_DI = rng.multinomial(num_images, np.full(num_images, 1 / num_images), draws) / num_images
    if num_seeds > 1:
        stretch = np.sqrt(num_seeds / (num_seeds - 1))
        seeds_DS = 1 / num_seeds + stretch * (seeds_DS - 1 / num_seeds)
    return seeds_DS, images_DI
