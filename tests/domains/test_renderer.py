import numpy as np
import pytest

from synth2_jax.domains.scenes import renderer
from synth2_jax.domains.scenes.renderer import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)

RED, BLUE = COLOURS["red"], COLOURS["blue"]


def test_every_pixel_of_a_large_square_lies_where_it_should():
    # Radius 7 x 0.88 = 6.16: pixels 2 to 13 are covered whole, pixels 1 and 14 by 0.16 -> 1 of 4
    # fine rows, whose centres lie at 6.125 and 6.375.
    image = renderer.render(Scene((SceneObject((0, 1), "red", "square", "large"),), "white"))
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    white, edge = (246, 246, 246), (238, 194, 194)  # 246 + (214 - 246) / 4, 246 + (39 - 246) / 4 ..
    for row, column, expected in [
        *[(0, 0, white), (8, 8, white), (24, 24, white)],  # the other cells are empty
        *[(8, 16 + 0, white), (8, 16 + 1, edge), (8, 16 + 2, RED)],
        *[(8, 16 + 13, RED), (8, 16 + 14, edge), (2, 16 + 8, RED), (0, 16 + 8, white)],
    ]:
        np.testing.assert_array_equal(image[row, column], expected, err_msg=f"{row}, {column}")
    assert (image[2:14, 18:30] == RED).all()


def test_objects_lie_in_their_cells():
    for row, column in CELLS:
        item = SceneObject((row, column), "blue", "circle", "small")
        image = renderer.render(Scene((item,), "black"))
        np.testing.assert_array_equal(image[16 * row + 8, 16 * column + 8], BLUE)
        is_ink = (image != BACKGROUNDS["black"]).any(-1)
        is_ink[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = False
        assert not is_ink.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_mirrored_left_to_right_and_fit_their_cell(shape, size):
    coverage = renderer.coverage(shape, size)
    np.testing.assert_array_equal(coverage, coverage[:, ::-1])
    assert coverage.min() == 0 and coverage.max() == 1
    border = np.concatenate([coverage[[0, -1]].ravel(), coverage[:, [0, -1]].ravel()])
    assert not border.any()
    # All but the triangle are mirrored top to bottom too; it stands on its broad side.
    if shape == "triangle":
        assert coverage[8:].sum() > 1.5 * coverage[:8].sum()
    else:
        np.testing.assert_array_equal(coverage, coverage[::-1])
    if size == "large":
        assert coverage[7:9, 7:9].mean() == (shape != "ring")  # it alone is hollow


@pytest.mark.parametrize(
    "shape, area, outline",  # of radius 1
    [
        ("circle", np.pi, 2 * np.pi),
        ("ring", np.pi * (1 - 0.55**2), 2 * np.pi * 1.55),
        ("square", 1.76**2, 4 * 1.76),
        ("cross", 4 * 2 * 0.34 - 0.68**2, 8),
        ("triangle", 1.9, 2 + 2 * np.hypot(1.9, 1)),
    ],
)
def test_shapes_have_the_area_of_their_formula(shape, area, outline):
    for size, radius in SIZES.items():
        # An edge is drawn at most half a fine row, an eighth of a pixel, from where it is.
        error = renderer.coverage(shape, size).sum() - area * radius**2
        assert abs(error) <= outline * radius / 8


def test_shade_brightens_within_the_range_of_pixels():
    def middle(colour, shade):
        item = SceneObject((0, 0), colour, "circle", "large", shade)
        return renderer.render(Scene((item,), "black"))[8, 8]

    np.testing.assert_array_equal(middle("red", 0.05), [225, 41, 42])
    np.testing.assert_array_equal(middle("red", -0.05), [203, 37, 38])
    np.testing.assert_array_equal(middle("yellow", 0.06), [255, 227, 32])  # 259.7 does not wrap


def test_every_pixel_lies_between_ink_and_paper():
    item = SceneObject((1, 0), "green", "ring", "small")
    image = renderer.render(Scene((item,), "white"))
    low, high = np.minimum(COLOURS["green"], 246), np.maximum(COLOURS["green"], 246)
    assert (image >= low).all() and (image <= high).all()
    assert (image[:, 16:] == 246).all()


def test_scenes_are_equal_whatever_the_order_and_the_shades():
    first = SceneObject((0, 0), "red", "circle", "small", shade=0.01)
    second = SceneObject((1, 1), "blue", "ring", "large")
    scene = Scene((second, first), "white")
    assert scene.objects == (first, second)
    assert scene == Scene((SceneObject((0, 0), "red", "circle", "small"), second), "white")
    assert scene != Scene((first, second), "black")
    assert first.combination == ("red", "circle")
