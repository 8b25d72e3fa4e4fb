"""Charts of the pages, drawn by matplotlib and written as SVG that follows the page's colours.

Only the project's own texts are in a chart; names that come from data are in HTML legends. Without
data a function returns None. matplotlib is imported when a chart is drawn.
"""

import dataclasses
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from synth2_jax.inert_text import inert
from synth2_jax.pages.numbers import finite, number, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Okabe and Ito, so that colour-blind readers tell them apart; each has a marker of its own.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#7d6bb8", "#6f6f6f")
MARKERS = ("o", "s", "^", "D", "v", "*")
MARKER_SIGNS = ("●", "■", "▲", "◆", "▼", "★")  # the same in a legend's text
INK, SOFT, RULE, PAPER = "#1a1d21", "#59626c", "#d9dde1", "#fefefe"
# The style sheet's name of each colour, which differs in dark windows.
_THEME = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper"} | {
    c: f"c{i}" for i, c in enumerate(COLOURS)
}
_OPTIONS = {"svg.fonttype": "none", "svg.hashsalt": "synth2", "text.parse_math": False}
_BEHIND = {"linewidth": 0, "pad": 1, "alpha": 0.7}  # the box behind a text
_LONGEST_NAME = 40  # characters of a name in a chart
CURVE_POINTS = 120  # a curve of more points is drawn as this many means, or fewer

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line through points.

    Attributes:
      colour: its index in COLOURS; None for a thin line without markers.
      spreads: of each point, what the band around the line reaches up and down.
    """

    points: Points
    colour: int | None = None
    spreads: Sequence[float] = ()


def curve_points(curve: Iterable | None) -> list[tuple[float, float]]:
    """The points of a curve whose step and value are numbers."""
    return [(finite(x), finite(y)) for x, y in curve or () if None not in (finite(x), finite(y))]


def thinned(points: Points, most: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """Means of neighbouring points, `most` or fewer of them."""
    size = math.ceil(len(points) / most) or 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(float(m) for m in np.mean(chunk, axis=0)) for chunk in chunks]


def line_chart(
    lines: Sequence[Line],
    size: tuple[int, int],
    *,
    x_title: str = "",
    y_title: str = "",
    from_zero: bool = False,
    level: tuple[float, str] | None = None,
    crossing: float | None = None,
    log_ticks: Sequence[float] = (),
    whole: bool = False,
) -> "Figure | None":
    """Draws lines over steps; those without points are left out.

    Args:
      size: width and height in CSS pixels.
      whole: whether the horizontal axis has ticks at whole numbers alone.
      log_ticks: the horizontal axis is logarithmic and has these ticks; spreads are error bars.
      from_zero: whether the vertical axis starts at 0, as the horizontal one does.
      level: value and text of a dashed horizontal line.
      crossing: step at which a dotted line falls from `level` to the horizontal axis.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    figure, axes = _figure(size)
    for line in lines:
        x, y = np.array(line.points, float).T
        if line.colour is None:
            axes.plot(x, y, color=INK, linewidth=1.2, marker="." if len(x) == 1 else "")
            continue
        colour, marker = COLOURS[line.colour], MARKERS[line.colour]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.8)
        if line.spreads and log_ticks:
            style = {"color": colour, "linestyle": "", "capsize": 3, "elinewidth": 1.2}
            axes.errorbar(x, y, yerr=np.array(line.spreads), **style)
        elif line.spreads:
            spread = np.array(line.spreads)
            axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.18, linewidth=0)
    if level:
        axes.axhline(level[0], color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
        text = axes.text(0.02, *level, transform=axes.get_yaxis_transform(), color=INK, va="bottom")
        text.set_bbox({"facecolor": PAPER, **_BEHIND})
        if crossing is not None:
            axes.vlines(crossing, 0, level[0], color=INK, linewidth=1.2, linestyle=(0, (1, 2)))
    if from_zero:
        axes.set_ylim(bottom=min(0.0, *(y for line in lines for _, y in line.points)))
    if log_ticks:
        axes.set_xscale("log")
        axes.set_xticks(log_ticks, [number(tick, 0) for tick in log_ticks])
        axes.minorticks_off()
    if whole:
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(x_title)
    axes.set_title(y_title, loc="left", fontsize=10, color=SOFT)
    return figure


def interval_chart(
    names: Sequence[str],
    panels: Mapping[str, Sequence[tuple[float | None, float | None, float | None]]],
    *,
    unit: str = "",
) -> "Figure | None":
    """Draws a row of points with bars for each name, in panels side by side, around a line at 0.

    `panels` has by title, for each name: the value, and the low and the high end of its interval.
    A value that is None is left out, a bound that is None has no bar.
    """
    rows = {title: list(map(_bounded, found)) for title, found in panels.items()}
    if not any(row for found in rows.values() for row in found):
        return None
    height = 60 + 26 * len(names)
    figure, panes = _figure((720, height), len(panels))
    places = np.arange(len(names))[::-1]  # the first name on top
    for axes, (title, found) in zip(panes, rows.items(), strict=True):
        for place, row in zip(places, found, strict=True):
            if row:
                value, low, high = row
                axes.plot([low, high], [place, place], color=COLOURS[1], linewidth=2.2)
                axes.plot([value], [place], color=COLOURS[1], marker="o", markersize=6)
                text = signed(value, unit=unit)
                axes.annotate(
                    *(text, (value, place), (0, 5)),
                    **{"textcoords": "offset points", "ha": "center", "va": "bottom"},
                    **{"fontsize": 9, "color": INK, "bbox": {"facecolor": PAPER, **_BEHIND}},
                )
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.grid(axis="x", color=RULE)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(names) - 0.3)
        axes.set_yticks(places, [])
        axes.set_title(title, loc="left", fontsize=10, color=SOFT)
    panes[0].set_yticks(places, [inert(name, _LONGEST_NAME) for name in names], color=INK)
    return figure


def _bounded(
    row: tuple[float | None, float | None, float | None],
) -> tuple[float, float, float] | None:
    """The value with an interval; of the value alone where a bound is missing."""
    value, low, high = map(finite, row)
    if value is None:
        return None
    return (value, value, value) if low is None or high is None else (value, low, high)


def bar_chart(
    groups: Mapping[str, Mapping[int, tuple[float | None, float | None]]],
) -> "Figure | None":
    """Draws upright bars in groups, each with its value above it.

    `groups` has by the group's name, by the bar's colour: its value and what its error bar reaches
    up and down. Either may be None.
    """
    colours = list(dict.fromkeys(colour for bars in groups.values() for colour in bars))
    if not any(value is not None for bars in groups.values() for value, _ in bars.values()):
        return None
    figure, axes = _figure((440 if len(colours) < 4 else 720, 240))
    width = 0.8 / len(colours)
    for i, colour in enumerate(colours):
        found = [bars.get(colour, (None, None)) for bars in groups.values()]
        heights = [value or 0.0 for value, _ in found]
        errors = [math.nan if error is None else error for _, error in found]
        drawn = axes.bar(
            *(np.arange(len(groups)) + (i - (len(colours) - 1) / 2) * width, heights, 0.92 * width),
            **{"color": COLOURS[colour], "yerr": errors, "ecolor": INK, "capsize": 3},
            error_kw={"elinewidth": 1.1},
        )
        texts = [number(value) for value, _ in found]
        axes.bar_label(drawn, texts, padding=2, fontsize=9, color=INK)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_yticks([])
    axes.margins(x=0.02, y=0.12)
    return figure


def svg(figure: "Figure | None", label: str) -> str | None:
    """Makes a chart into SVG for a page; `label` is what a screen reader says."""
    import markupsafe
    import matplotlib

    if figure is None:
        return None
    file = io.StringIO()
    with matplotlib.rc_context(_OPTIONS):
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', text)[0]
    inside = text[text.index("</defs>") + len("</defs>") :]  # after a style sheet of its own
    inside = re.sub(r"(?<=<g) id=\"[^\"]*\"|font-family: [^;]*; |<!--.*?-->|\n *", "", inside)
    for colour, name in _THEME.items():
        inside = inside.replace(colour, f"var(--{name})")
    inside = inside.replace("xlink:href", "href")
    start = f'<svg {view_box} role="img" aria-label="{markupsafe.escape(inert(label))}">'
    return markupsafe.Markup(start + inside)


def _figure(size: tuple[int, int], num_panels: int = 0) -> "tuple[Figure, Axes]":
    """A figure and its axes, or with `num_panels` a list of axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure((size[0] / 72, size[1] / 72), layout="constrained")
    panels = figure.subplots(1, num_panels or 1, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelsize=10, left=False)
        axes.xaxis.label.set(color=SOFT, fontsize=10)
        axes.locator_params(axis="x", nbins=max(2, size[0] // len(panels) // 60))
        axes.locator_params(axis="y", nbins=max(2, size[1] // 40))
        axes.grid(axis="y", color=RULE)
        axes.set_axisbelow(True)
        axes.ticklabel_format(useOffset=False)
    return figure, list(panels) if num_panels else panels[0]
