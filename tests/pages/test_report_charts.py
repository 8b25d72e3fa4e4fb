import math
import re

import numpy as np
import pytest

from synth2_jax.pages.charts import (
    arm_legend,
    bar_table,
    curve_points,
    grouped_bars,
    line_chart,
    lying_bar,
    thinned,
    ticks,
)
from synth2_jax.pages.html import NOTHING
from synth2_jax.pages.style import STYLE
from synth2_jax.stages.experiment import ARMS


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 83, 4, [0, 25, 50, 75, 100]),
        (0, 100, 4, [0, 25, 50, 75, 100]),
        (2.1, 2.9, 2, [2, 2.5, 3]),
        (-4, -4, 2, [-4, -2]),
        (0, 0, 2, [0, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, count, expected):
    assert ticks(low, high, count) == pytest.approx(expected)


def test_points_that_are_no_numbers_are_left_out():
    assert curve_points([[0, 1], [1, math.nan], [2, None], [3, 4.0]]) == [(0, 1), (3, 4)]
    assert curve_points(None) == curve_points([]) == []


def test_a_thinned_curve_holds_means_of_neighbours():
    assert thinned([(i, 10.0 * i) for i in range(6)], most=3) == [(0.5, 5), (2.5, 25), (4.5, 45)]
    assert thinned([(0.0, 1.0), (1.0, 3.0)], most=3) == [(0, 1), (1, 3)]
    assert len(thinned([(i, 0.0) for i in range(1000)])) <= 120 and thinned([]) == []


def test_lines_are_drawn_to_scale():
    """Two points that span the chart: the first line's last point lies on the dashed level."""
    chart = line_chart(
        [(0, [(0, 1.0), (4000, 60.0)]), (1, [(0, 2.0), (4000, 75.0)])],
        "CIDEr",
        (440, 270),
        from_zero=True,
        level=(60.0, "real only"),
        crossing=2000,
    )
    level = float(re.search(r'class="level" d="M\S+ ([\d.]+)H', chart).group(1))
    x0, y0, x1, y1 = map(
        float,
        re.search(r'class="line0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart).groups(),
    )
    assert x0 < x1 and y1 < y0 and y1 == level
    mixed = float(re.search(r'class="line1" d="M[\d.]+ [\d.]+L[\d.]+ ([\d.]+)"', chart).group(1))
    assert mixed < y1  # 75 stands above 60
    crossing = float(re.search(r'class="crossing" d="M([\d.]+) ', chart).group(1))
    assert crossing == pytest.approx((x0 + x1) / 2, abs=0.1)


def test_lines_of_one_point_or_one_value_are_drawn():
    for points in ([(0, 0.0)], [(5, 2.0)], [(0, 2.0), (9, 2.0)], [(0, -4.0)]):
        for colour, from_zero in ((0, True), (None, False)):
            chart = line_chart([(colour, points)], "loss", (190, 120), from_zero=from_zero)
            assert "nan" not in chart and chart.count('class="axis"') >= 2


def test_bars_are_as_tall_as_their_values():
    groups = [
        ("all", {"real": 60.0, "real_synthetic": 75.0}),
        ("seen", {"real": 80.0, "real_synthetic": 80.0}),
        ("never seen", {"real": 40.0, "real_synthetic": None}),
    ]
    chart = grouped_bars(groups, ["real", "real_synthetic"])
    tall = [
        float(h) for h in re.findall(r'<rect class="fill\d" [^>]*height="([\d.]+)"/><text', chart)
    ]
    np.testing.assert_allclose(
        np.array(tall) / tall[2], np.array([60, 75, 80, 80, 40, 0]) / 80, atol=2e-3
    )
    assert "all: real only 60.0, real + synthetic 75.0; seen:" in chart  # for screen readers


def test_lying_bars_share_one_scale():
    table = bar_table([("a", 4.0, "4 s"), ("b", 1.0, "1 s"), ("c", None, "–")])
    assert re.findall(r"width:([\d.]+)%", table) == ["100.0", "25.0", "0.0"]
    assert "width:0.0%" in lying_bar(3.0, 0.0) and "width:100.0%" in lying_bar(3.0, 2.0)


def test_charts_of_nothing_say_so():
    assert line_chart([(0, []), (None, [])], "CIDEr", (440, 270)) == NOTHING
    assert grouped_bars([("all", {"real": None})], ["real"]) == NOTHING


def test_further_arms_get_other_colours_than_the_compared_two():
    found = arm_legend(["real", "real_synthetic", "captions_only"])
    assert re.findall(r'class="line(\d)".*?</svg> ([^<]+)<', found) == [
        ("0", "real only"),
        ("1", "real + synthetic"),
        ("2", "blank images"),
    ]


def test_every_arm_of_a_study_has_a_marker_and_a_colour_of_its_own():
    found = arm_legend(list(ARMS))
    colours = re.findall(r'class="(line\d)"', found)
    markers = re.findall(r"<(\w+ class=\"fill\d\"[^/]*)/>", found)
    assert len(set(colours)) == len(set(markers)) == len(ARMS)
    for css in (*colours, *(marker.split('"')[1] for marker in markers)):
        assert re.search(rf"\.{css}{{[^}}]*var\(--c\d\)", STYLE)
