"""How right captions and generated pictures of Scenes are: shares of objects, sizes and places."""

from collections.abc import Sequence

import numpy as np

from synth2_jax.domains.scenes import dataset, language, oracle
from synth2_jax.domains.scenes.renderer import Scene
from synth2_jax.errors import UserError


def scene_of(key: str) -> Scene:
    """The scene of an example's key, such as "test-000012"; UserError on any other key."""
    split, _, index = key.rpartition("-")
    if not index.isdecimal():
        raise UserError(f"key: found {key!r}, expected one of Scenes such as 'test-000012'")
    return dataset.scene(split, int(index))


def has_unseen(scene: Scene) -> bool:
    """Whether the scene shows a combination that `real` never does."""
    unseen = dataset.unseen_combinations()
    return any(item.combination in unseen for item in scene.objects)


def caption_objects_right(captions: Sequence[str], scenes: Sequence[Scene]) -> float:
    """Mean `objects_right` of what each caption claims."""
    return float(
        np.mean(
            [
                language.objects_right(
                    language.combinations(language.parse(caption).objects),
                    language.combinations(scene.objects),
                )
                for caption, scene in zip(captions, scenes, strict=True)
            ]
        )
    )


def picture_objects_right(images: np.ndarray, scenes: Sequence[Scene]) -> float:
    """Mean `objects_right` of what the oracle reads in pictures [B, 32, 32, 3] in [0, 255]."""
    return float(
        np.mean(
            [
                language.objects_right(
                    language.combinations(seen.objects), language.combinations(scene.objects)
                )
                for seen, scene in zip(oracle.read(images), scenes, strict=True)
            ]
        )
    )


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
    """Whether a caption speaks of a combination that `real` never shows."""
    unseen = dataset.unseen_combinations()
    return any(claim.combination in unseen for claim in language.parse(caption).objects)
