"""Numbers, pictures and templates that every page is made of."""

import base64
import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from synth2_jax.pages.document import picture, render
from synth2_jax.pages.filter_page import render_filter
from synth2_jax.pages.numbers import duration, lookup, number, percent, signed


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
    ],
)
def test_numbers_and_texts(found, expected):
    assert found == expected


@pytest.mark.parametrize("write", [number, percent, signed, duration])
@pytest.mark.parametrize("value", [None, math.nan, -math.inf, "3", {}])
def test_what_is_no_number_is_a_dash(write, value):
    assert write(value) == "–"


@pytest.mark.parametrize(
    "hostile, shown",
    [
        ("<b a='c'>&", "&lt;b a=&#39;c&#39;&gt;&amp;"),
        ("{{ 7 * 7 }}{% raw %}", "{{ 7 * 7 }}{% raw %}"),
        ("\x1b[31m\u202e\ud800\n", "\\x1b[31m\\u202e\\ud800\\n"),
        ("5\N{NO-BREAK SPACE}%", "5\N{NO-BREAK SPACE}%"),
        (None, "–"),
    ],
)
def test_text_is_inert_in_every_template(hostile, shown):
    assert f"<h1>{shown}</h1>" in render("filter.html.j2", heading=hostile, histograms={})


def test_the_page_of_a_filter_says_which_score_decides(read_page):
    scores = {"caption": np.array([0.0, 1.0, np.inf]), "cycle": np.zeros(3)}
    page = read_page(render_filter("3 pairs: 2 kept", scores, "caption"))
    assert "Pairs by their score caption, which decides." in page.words
    assert "Pairs by their score cycle." in page.words and page.tags.count("svg") == 2


def test_no_template_library_is_imported_before_a_page_is_written():
    program = (
        "import sys; import synth2_jax.pages.report_page, synth2_jax.pages.study_page; "
        "assert not {'jinja2', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
