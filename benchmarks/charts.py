"""A curve as an SVG picture of its own: lines of points with error bars over a logarithmic axis."""

import dataclasses
import io
from collections.abc import Sequence

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure

from benchmarks.result import number
from synth2_jax.pages.charts import INK, MARKERS, RULE, SOFT

# After Okabe and Ito, so that colour-blind readers tell them apart; each has a marker of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73")


@dataclasses.dataclass(frozen=True)
class Point:
    """A mean `y` at `x`, with `spread` to both sides and a word beside it."""

    x: float
    y: float
    spread: float = 0.0
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one colour under one name; joined in their order, or apart."""

    name: str
    points: Sequence[Point]
    joined: bool = True


def chart(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Writes up to three lines as SVG; x is logarithmic, all x are above 0."""
    options = {"svg.fonttype": "none", "svg.hashsalt": "synth2"}
    file = io.StringIO()
    with matplotlib.rc_context(options):
        figure = draw(title, x_title, y_title, lines)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def draw(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> Figure:
    """Draws what `chart` writes."""
    figure = Figure((10, 6.1), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for line, colour, marker in zip(lines, COLOURS, MARKERS, strict=False):
        xs, ys, spreads = zip(*((p.x, p.y, p.spread) for p in line.points), strict=True)
        style = {"color": colour, "marker": marker, "linestyle": "-" if line.joined else ""}
        axes.errorbar(xs, ys, spreads, **style, elinewidth=1, capsize=3, label=line.name)
        for point in line.points:
            # Lines run close: a label is above its point unless another line's point is there.
            covered = any(
                abs(other.x / point.x - 1) < 0.06 and other.y > point.y
                for another in lines
                if another.joined and another is not line
                for other in another.points
            )
            reach = -point.spread if covered else point.spread
            axes.annotate(
                point.label,
                (point.x, point.y + reach),
                xytext=(0, -12 if covered else 5),
                textcoords="offset points",
                **{"ha": "center", "fontsize": 9, "color": INK},
            )
    axes.set_title(title, loc="left", fontweight="bold", color=INK)
    axes.set_xlabel(x_title, color=SOFT)
    axes.set_ylabel(y_title, color=SOFT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: number(value))
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(axis="y", color=RULE)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
