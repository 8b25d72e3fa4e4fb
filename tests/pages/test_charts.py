"""Charts are drawn at their values, error bars included."""

import math
import re

import numpy as np
import pytest

from synth2_jax.experiments.arms import ARMS
from synth2_jax.pages.arms import named_arms, ordered_arms
from synth2_jax.pages.charts import (
    COLOURS,
    MARKER_SIGNS,
    MARKERS,
    Line,
    bar_chart,
    curve_points,
    interval_chart,
    line_chart,
    svg,
    thinned,
)


def test_points_that_are_no_numbers_are_left_out():
    assert curve_points([[0, 1], [1, math.nan], [2, None], [3, 4.0]]) == [(0, 1), (3, 4)]
    assert curve_points(None) == curve_points([]) == []


def test_a_thinned_curve_holds_means_of_neighbours():
    assert thinned([(i, 10.0 * i) for i in range(6)], most=3) == [(0.5, 5), (2.5, 25), (4.5, 45)]
    assert thinned([(0.0, 1.0), (1.0, 3.0)], most=3) == [(0, 1), (1, 3)]
    assert len(thinned([(i, 0.0) for i in range(1000)])) <= 120 and thinned([]) == []


def test_lines_and_their_bands_are_drawn_at_their_values():
    points = [(0, 2.0), (4000, 60.0)]
    chart = line_chart(
        [Line(points, 0, [1.0, 4.0]), Line([(0, 1.0)], 1), Line([], 2)],
        (440, 270),
        from_zero=True,
        level=(60.0, "real only"),
        crossing=2000,
    )
    (axes,) = chart.axes
    assert [tuple(point) for point in axes.lines[0].get_xydata()] == points
    assert len(axes.lines) == 3 and axes.lines[2].get_ydata() == [60.0, 60.0]  # the level
    band, crossing = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(0, 1.0), (0, 3.0), (4000, 56.0), (4000, 64.0)} <= corners
    np.testing.assert_array_equal(crossing.get_segments(), [[[2000, 0], [2000, 60]]])
    assert axes.get_ylim()[0] == 0
    assert "real only" in svg(chart, "")


@pytest.mark.parametrize("last", [2, 3, 40])
def test_rounds_are_whole_numbers(last):
    (axes,) = line_chart([Line([(0, 1.0), (last, 2.0)], 0)], (440, 300), whole=True).axes
    ticks = axes.get_xticks()
    assert len(ticks) > 2 and (ticks == ticks.round()).all()


def test_bars_and_their_error_bars_are_drawn_at_their_values():
    groups = {
        "all": {0: (60.0, 3.0), 1: (75.0, None)},
        "never seen": {0: (40.0, 2.0), 1: (None, None)},
    }
    (axes,) = bar_chart(groups).axes
    bars = [container for container in axes.containers if hasattr(container, "errorbar")]
    assert [[bar.get_height() for bar in one] for one in bars] == [[60, 40], [75, 0]]
    drawn = [one.errorbar.lines[2][0].get_segments() for one in bars]
    ends = [[y for segment in segments for _, y in segment] for segments in drawn]
    assert ends == [[57, 63, 38, 42], []]
    assert [text.get_text() for text in axes.texts] == ["60.0", "40.0", "75.0", "–"]


@pytest.mark.parametrize("points", [[(0, 0.0)], [(5, 2.0)], [(0, 2.0), (9, 2.0)], [(0, -4.0)]])
@pytest.mark.parametrize("colour, from_zero", [(0, True), (None, False)])
def test_lines_of_one_point_or_one_value_are_drawn(points, colour, from_zero):
    chart = svg(line_chart([Line(points, colour)], (190, 120), from_zero=from_zero), "loss")
    assert "nan" not in chart and chart.count("<text") >= 2


def test_charts_of_nothing_are_none():
    assert svg(line_chart([Line([], 0)], (440, 270)), "CIDEr") is None
    assert svg(bar_chart({"all": {0: (None, 1.0)}}), "CIDEr") is None


def test_intervals_are_points_with_bars_in_the_order_of_the_names():
    figure = interval_chart(
        ["first", "second", "third"],
        {
            "a": [(5.0, 2.0, 9.0), (None, None, None), (-1.0, None, None)],
            "b": [(0.0, 0.0, 0.0)] * 3,
        },
        unit=" %",
    )
    left, right = figure.axes
    bars = [line.get_xydata().tolist() for line in left.lines if line.get_linewidth() == 2.2]
    assert bars == [[[2, 2], [9, 2]], [[-1, 0], [-1, 0]]]  # the third without bounds is a point
    assert [text.get_text() for text in left.texts] == ["+5.0 %", "−1.0 %"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["first", "second", "third"]
    assert left.get_title(loc="left") == "a" and len(right.texts) == 3
    assert interval_chart(["first"], {"a": [(None, 1.0, 2.0)]}) is None
    hostile = svg(interval_chart(["<b>\u202e" + 99 * "x"], {"a": [(1.0, 0.0, 2.0)]}), "gains")
    assert "<b>" not in hostile and "\u202e" not in hostile and 50 * "x" not in hostile


def test_a_logarithmic_axis_has_the_ticks_it_is_given_and_error_bars():
    points = [(94, 10.0), (1500, 30.0)]
    figure = line_chart([Line(points, 0, [1.0, 2.0])], (440, 300), log_ticks=[94, 375, 1500])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["94", "375", "1,500"]
    (bars,) = axes.containers
    ends = [y for segment in bars.lines[2][0].get_segments() for _, y in segment]
    assert ends == [9, 11, 28, 32] and not axes.collections[1:]


def test_a_chart_follows_the_colours_of_the_page_and_is_always_the_same():
    charts = [svg(line_chart([Line([(0, 1), (1, 2)], 2)], (440, 270)), "<b>") for _ in range(2)]
    assert charts[0] == charts[1] and "var(--c2)" in charts[0] and "&lt;b&gt;" in charts[0]
    assert not re.search("#[0-9a-f]{6}", charts[0]) and "http" not in charts[0]


def test_the_compared_arms_come_first_and_every_arm_has_a_colour_and_a_marker():
    arms = ordered_arms({"captions_only": 1, "real_synthetic": 2}, None, {"real": 3})
    assert arms == ["real", "real_synthetic", "captions_only"]
    names = ["real only", "real + synthetic", "blank images"]
    assert named_arms(arms) == list(zip(arms, range(3), names, strict=True))
    assert named_arms(["real_synthetic"])[0][1] == 1  # whatever else is there
    assert {colour for _, colour, _ in named_arms(list(ARMS))} == set(range(len(COLOURS)))
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(set(MARKER_SIGNS)) == len(COLOURS)
