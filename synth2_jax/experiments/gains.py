"""Gains of arms over one another on the same test pictures, with intervals.

Zero-shot comes first: the test pictures that show a combination which no real pair does.

Legend: A arms, S seeds, I images, K numbers of real pictures.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.domains.scenes import scores as scenes_scores
from synth2_jax.scoring.bootstrap import estimate

PARTS = ("cider_unseen", "cider", "cider_seen")  # names of scores, zero-shot first

PerImage = Mapping[str, float]  # {key of a test picture: CIDEr}
Statistic = Callable[[np.ndarray], np.ndarray]  # means of the arms f[..., A] -> f[...]


def estimates(
    statistic: Statistic, runs: Sequence[Sequence[PerImage]]
) -> dict[str, dict[str, Any] | None]:
    """{part of the test pictures: {"value", "low", "high", "seeds"}}, the interval of 95 %.

    A value or a bound that is infinite is None; so is a part without pictures. `runs` has for each
    arm those of the same seeds.
    """
    keys = sorted(runs[0][0])
    scores_ASI = np.array([[[run[key] for key in keys] for run in arm] for arm in runs])
    masks = part_masks(keys)
    return {part: _estimate(statistic, scores_ASI[:, :, mask]) for part, mask in masks.items()}


def part_masks(keys: Sequence[str]) -> dict[str, np.ndarray]:
    """{part of the test pictures: which of the keys are in it, bool[I]}, in the order of PARTS."""
    unseen_I = np.array([_is_unseen(key) for key in keys], bool)
    every_I = np.ones(len(keys), bool)
    return dict(zip(PARTS, (unseen_I, every_I, ~unseen_I), strict=True))


def _estimate(statistic: Statistic, scores_ASI: np.ndarray) -> dict[str, Any] | None:
    if not scores_ASI.size:
        return None
    found = estimate(statistic, scores_ASI)
    values = {"value": found.value, "low": found.low, "high": found.high}
    finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
    return finite | {"seeds": scores_ASI.shape[1]}


@functools.cache
def _is_unseen(key: str) -> bool:
    return scenes_scores.has_unseen(scenes_scores.scene_of(key))


def gain(means: np.ndarray) -> np.ndarray:
    """(after - before) / before of means f[..., 2], before first; 0 of nothing over nothing."""
    before, after = means[..., 0], means[..., 1]
    return _ratio(after - before, before)


def gap(means: np.ndarray) -> np.ndarray:
    """Score of the third arm, the bound, above the first one."""
    return means[..., 2] - means[..., 0]


def gap_closed(means: np.ndarray) -> np.ndarray:
    """Share of the way from the first arm to the third, the bound, that the second one goes."""
    before, after, bound = np.moveaxis(means, -1, 0)
    return _ratio(after - before, bound - before)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(numerator == 0, 0.0, numerator / denominator)


def pairs_factor(numbers_K: Sequence[int], number: int) -> Statistic:
    """Returns the statistic of how many times the real pictures real-only needs to score as an arm.

    It takes real-only's means at each of the ascending `numbers_K`, then that of the
    arm, which has seen `number` real pictures. Between measured numbers, real-only's mean is linear
    in their logarithm; the first number that reaches the arm's counts. Infinite if none does; if
    the smallest one already does, it is that one.
    """
    log_K = np.log(np.asarray(numbers_K, np.float64))

    def factor(means: np.ndarray) -> np.ndarray:
        real, target = means[..., :-1], means[..., -1:]
        reached = real >= target
        stop = reached.argmax(-1)[..., None]
        start = np.maximum(stop - 1, 0)
        below, above = (np.take_along_axis(real, i, -1) for i in (start, stop))
        share = np.where(stop > start, _ratio(target - below, above - below), 0.0)
        log_needed = log_K[start] + share * (log_K[stop] - log_K[start])
        found = np.exp(log_needed[..., 0]) / number
        return np.where(reached.any(-1), found, np.inf)

    return factor
