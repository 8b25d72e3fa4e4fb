import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from synth2_jax.pages.html import (
    arm_colour,
    arm_name,
    duration,
    escaped,
    image_tag,
    lookup,
    mark,
    number,
    ordered_arms,
    percent,
    picture,
    signed,
)
from synth2_jax.stages.experiment import ARMS


def test_picture_is_the_image_enlarged_pixel_by_pixel():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    uri = picture(image, scale=2)
    assert uri.startswith("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    np.testing.assert_array_equal(decoded, image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8)]
)
def test_picture_refuses_other_images(image):
    with pytest.raises(ValueError, match="expected uint8"):
        picture(image)


def test_lookup_is_none_where_the_path_ends_early():
    tree = {"a": {"b": 1}}
    assert lookup(tree, "a", "b") == 1
    assert lookup(tree, "a", "c") is lookup(tree, "x", "b") is lookup(tree, "a", "b", "c") is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number(-1234.56), "−1,234.6"),
        (number(3, 0), "3"),
        (percent(0.314), "31\N{NO-BREAK SPACE}%"),
        (percent(1, 1), "100.0\N{NO-BREAK SPACE}%"),
        (signed(2, unit=" pts"), "+2.0 pts"),
        (signed(-0.5), "−0.5"),
        (duration(9), "9.0 s"),
        (duration(99.4), "99 s"),
        (duration(2290), "38 min"),
        (duration(6180), "1 h 43 min"),
        (escaped("<a b='c'>&"), "&lt;a b=&#x27;c&#x27;&gt;&amp;"),
    ],
)
def test_numbers_and_texts(found, expected):
    assert found == expected


@pytest.mark.parametrize("write", [number, percent, signed, duration])
@pytest.mark.parametrize("value", [None, math.nan, -math.inf, "3", {}])
def test_what_is_no_number_is_a_dash(write, value):
    assert write(value) == "–"


def test_a_picture_is_a_data_uri_or_missing():
    assert 'src="data:image/png;base64,AA"' in image_tag("data:image/png;base64,AA", "it")
    assert "<img" not in image_tag(None, "it") and "–" in image_tag(None, "it")
    with pytest.raises(ValueError, match="expected a data:image/ URI"):
        image_tag("http://example.org/a.png", "it")


def test_marks_are_signs_with_words():
    for share, sign in ((1, "✓"), (0.99, "✗"), (0, "✗"), (None, "–"), (math.nan, "–")):
        assert sign in mark(share, "objects") and "objects" in mark(share, "objects")


def test_the_compared_arms_come_first_and_keep_their_colours():
    arms = ordered_arms({"captions_only": 1, "real_synthetic": 2}, None, {"real": 3})
    assert arms == ["real", "real_synthetic", "captions_only"]
    assert [arm_colour(arm, arms) for arm in arms] == [0, 1, 2]
    assert arm_colour("real_synthetic", ["real_synthetic"]) == 1
    assert sorted(arm_colour(arm, list(ARMS)) for arm in ARMS) == [0, 1, 2, 3, 4, 5]
    assert [arm_name(arm) for arm in (*arms, "<b>")] == [
        "real only",
        "real + synthetic",
        "blank images",
        "&lt;b&gt;",
    ]
