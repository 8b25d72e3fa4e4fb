import numpy as np
import pytest

from synth2_jax.domains.scenes import dataset, renderer, scores
from synth2_jax.domains.scenes.renderer import Scene, SceneObject
from synth2_jax.errors import UserError

RED_CIRCLE = SceneObject((0, 0), "red", "circle", "small")
BLUE_SQUARE = SceneObject((0, 1), "blue", "square", "large")
SCENE = Scene((RED_CIRCLE, BLUE_SQUARE), "white")


def test_the_scene_of_a_key_is_that_of_the_example():
    for split in ("test", "real"):
        for example in dataset.examples(split, 3):
            assert scores.scene_of(example.key) == example.scene


@pytest.mark.parametrize("key", ["", "test", "test-", "test-x", "coco-000001", "000001"])
def test_other_keys_are_user_errors(key):
    with pytest.raises(UserError):
        scores.scene_of(key)


def test_captions_of_their_own_scenes_are_all_right():
    examples = dataset.examples("test", 50)
    scenes = [example.scene for example in examples]
    captions = [example.captions[0] for example in examples]
    assert scores.caption_objects_right(captions, scenes) == 1
    shares = scores.agreement_shares(captions, scenes)
    assert shares == {"objects_right": 1, "sizes_right": 1, "places_right": 1}
    moved = scenes[1:] + scenes[:1]
    assert scores.caption_objects_right(captions, moved) < 0.2
    assert scores.agreement_shares(captions, moved)["places_right"] < 0.2


def test_shares_are_of_all_claims_not_of_captions():
    captions = [
        "a small red circle left of a small blue square",  # sizes 1 of 2, places 1 of 1
        "a large blue square in the top left",  # objects 1 of 2, sizes 1 of 1, places 0 of 1
        "a purple ring",  # objects 0
    ]
    assert scores.agreement_shares(captions, [SCENE] * 3) == {
        "objects_right": pytest.approx((1 + 1 / 2 + 0) / 3),
        "sizes_right": pytest.approx(2 / 3),
        "places_right": pytest.approx(1 / 2),
    }
    assert scores.caption_objects_right(captions, [SCENE] * 3) == pytest.approx(0.5)
    # Of no claims there is no share.
    shares = scores.agreement_shares(["a red circle"], [SCENE])
    assert np.isnan(shares["sizes_right"]) and np.isnan(shares["places_right"])


def test_pictures_of_their_own_scenes_are_all_right():
    scenes = [dataset.scene("test", i) for i in range(20)]
    images = np.stack([renderer.render(scene) for scene in scenes])
    assert scores.picture_objects_right(images, scenes) == 1
    assert scores.picture_objects_right(images.astype(np.float32), scenes) == 1
    one_missing = renderer.render(Scene((RED_CIRCLE,), "white"))[None]
    assert scores.picture_objects_right(one_missing, [SCENE]) == 0.5
    assert scores.picture_objects_right(np.full_like(one_missing, 246), [SCENE]) == 0


def test_scores_need_one_scene_each():
    with pytest.raises(ValueError):
        scores.caption_objects_right(["a red circle"], [SCENE, SCENE])
    with pytest.raises(ValueError):
        scores.picture_objects_right(np.zeros((1, 32, 32, 3)), [SCENE, SCENE])


def test_unseen_combinations_are_found_in_scenes_and_captions():
    unseen = sorted(dataset.unseen_combinations())[0]
    seen = next(c for c in dataset.COMBINATIONS if c not in dataset.unseen_combinations())

    def scene(*combinations):
        objects = tuple(SceneObject((0, i), *c, "small") for i, c in enumerate(combinations))
        return Scene(objects, "white")

    assert scores.has_unseen(scene(unseen)) and scores.has_unseen(scene(seen, unseen))
    assert not scores.has_unseen(scene(seen)) and not scores.has_unseen(scene(seen, seen))
    assert scores.claims_unseen(f"a {seen[0]} {seen[1]} and a {unseen[0]} {unseen[1]}")
    assert not scores.claims_unseen(f"a {seen[0]} {seen[1]}") and not scores.claims_unseen("")
    assert not any(scores.has_unseen(dataset.scene("real", i)) for i in range(100))
