import itertools

import numpy as np
import pytest

from synth2_jax.domains.scenes import dataset, oracle, renderer
from synth2_jax.domains.scenes.renderer import (
    BACKGROUNDS,
    COLOURS,
    MAX_SHADE,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)


@pytest.fixture(scope="module")
def drawn():
    scenes = [dataset.scene("images", i) for i in range(2000)]
    return scenes, np.stack([renderer.render(scene) for scene in scenes])


def share_right(images, scenes):
    return np.mean([read == scene for read, scene in zip(oracle.read(images), scenes, strict=True)])


def test_at_least_99_percent_of_clean_pictures_are_read_back_exactly(drawn):
    scenes, images = drawn
    assert share_right(images, scenes) >= 0.99
    noise = np.random.default_rng(0).normal(0, 15, images[:500].shape)  # a mild one
    noisy = np.clip(images[:500] + noise, 0, 255)
    assert share_right(noisy, scenes[:500]) >= 0.97
    assert share_right(noisy.round().astype(np.uint8), scenes[:500]) >= 0.97


def test_every_object_is_read_at_either_end_of_its_shades():
    looks = itertools.product(COLOURS, SHAPES, SIZES, (-MAX_SHADE, MAX_SHADE))
    items = [SceneObject((1, 0), *look) for look in looks]
    scenes = [Scene((item,), background) for item in items for background in BACKGROUNDS]
    assert share_right(np.stack([renderer.render(scene) for scene in scenes]), scenes) == 1


def test_an_empty_picture_has_no_objects():
    for background, value in (("white", 246), ("black", 16), ("white", 255), ("black", 0)):
        assert oracle.read(np.full((1, 32, 32, 3), value, np.uint8)) == [Scene((), background)]
    with pytest.raises(ValueError, match=r"\(2, 64, 64, 3\), expected \[B, 32, 32, 3\]"):
        oracle.read(np.zeros((2, 64, 64, 3), np.uint8))


def test_reading_depends_on_the_picture_alone(drawn):
    scenes, images = drawn
    np.testing.assert_array_equal(images[3:4], images[3:4].astype(np.float32))
    assert oracle.read(images[3:4]) == oracle.read(images[:7])[3:4] == scenes[3:4]
    assert oracle.read(images[3:4].astype(np.float64)) == scenes[3:4]


def test_one_changed_cell_changes_what_is_read_there_alone():
    left = SceneObject((0, 0), "red", "circle", "small")
    right = SceneObject((0, 1), "red", "circle", "small")
    other = SceneObject((0, 1), "red", "ring", "small")
    images = np.stack([renderer.render(Scene((left, item), "black")) for item in (right, other)])
    images[1, :, :16] = images[0, :, :16]
    assert oracle.read(images) == [Scene((left, right), "black"), Scene((left, other), "black")]
