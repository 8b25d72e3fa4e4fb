"""Scores of captions and generated pictures of Scenes: shares of objects, sizes and places."""

from collections.abc import Sequence

import numpy as np

from synth2_jax.domains.scenes import dataset, language, oracle
from synth2_jax.domains.scenes.renderer import Scene, SceneObject
from synth2_jax.errors import UserError


def scene_of(key: str) -> Scene:
    """The scene of an example's key, such as "test-000012"; UserError on any other key."""
    split, _, index = key.rpartition("-")
    if not index.isdecimal():
        raise UserError(f"key: found {key!r}, expected one of Scenes such as 'test-000012'")
    return dataset.scene(split, int(index))


def has_unseen(scene: Scene) -> bool:
    """Returns whether the scene shows a combination that `real` never does."""
    return _any_unseen(scene.objects)


def caption_objects_right(captions: Sequence[str], scenes: Sequence[Scene]) -> float:
    """Mean `objects_right` of what each caption claims."""
    return _mean_objects_right([language.parse(caption) for caption in captions], scenes)


def picture_objects_right(images: np.ndarray, scenes: Sequence[Scene]) -> float:
    """Mean `objects_right` of what the oracle reads in pictures [B, 32, 32, 3] in [0, 255]."""
    return _mean_objects_right(oracle.read(images), scenes)


def _mean_objects_right(found: Sequence[Scene | language.Claims], scenes: Sequence[Scene]) -> float:
    pairs = [
        (language.combinations(one.objects), language.combinations(scene.objects))
        for one, scene in zip(found, scenes, strict=True)
    ]
    return float(np.mean([language.objects_right(*pair) for pair in pairs]))


def agreement_shares(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """{"objects_right", "sizes_right", "places_right"}: shares of what captions claim that holds.

    NaN where they claim nothing.
    """
    sums = {name: [0.0, 0.0] for name in ("objects", "sizes", "places")}
    for caption, scene in zip(captions, scenes, strict=True):
        for name, (right, claimed) in language.agreement(language.parse(caption), scene).items():
            sums[name][0] += right
            sums[name][1] += claimed
    return {
        f"{name}_right": right / claimed if claimed else float("nan")
        for name, (right, claimed) in sums.items()
    }


def claims_unseen(caption: str) -> bool:
    """Returns whether a caption names a combination that `real` never shows."""
    return _any_unseen(language.parse(caption).objects)


def _any_unseen(items: Sequence[SceneObject | language.Claim]) -> bool:
    return any(item.combination in dataset.unseen_combinations() for item in items)
