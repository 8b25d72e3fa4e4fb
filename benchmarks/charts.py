"""A curve as an SVG picture of its own: lines of points with error bars over a logarithmic axis."""

import dataclasses
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.result import number
from synth2_jax.pages.charts import ticks

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 700, 62, 388
# After Okabe and Ito, so that colour-blind readers tell them apart; each has a marker of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1a1d21}.title{font-weight:600}.small{font-size:11px}"
    ".grid{stroke:#d9dde1}.axis{stroke:#59626c}.line{fill:none;stroke-width:2}"
)


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
    """The SVG of up to three lines; x is logarithmic, all x are above 0."""
    points = [point for line in lines for point in line.points]
    x_ticks = _logarithmic_ticks(min(p.x for p in points), max(p.x for p in points))
    y_ticks = ticks(min(p.y - p.spread for p in points), max(p.y + p.spread for p in points), 6)
    low, high = math.log(x_ticks[0]), math.log(x_ticks[-1])

    def px(x: float) -> float:
        return LEFT + (math.log(x) - low) / (high - low) * (RIGHT - LEFT)

    def py(y: float) -> float:
        return BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (BOTTOM - TOP)

    parts = [f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>']
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {py(y):.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 8, py(y) + 4, number(y), "end"))
    for x in x_ticks:
        parts.append(f'<path class="axis" d="M{px(x):.1f} {BOTTOM}v5"/>')
        parts.append(_text(px(x), BOTTOM + 20, number(x), "middle"))
    middle = (TOP + BOTTOM) / 2
    parts += [
        f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>',
        _text((LEFT + RIGHT) / 2, HEIGHT - 10, x_title, "middle"),
        f'<g transform="translate(16 {middle}) rotate(-90)">{_text(0, 0, y_title, "middle")}</g>',
    ]
    left = LEFT
    for which, line in enumerate(lines):
        others = [(px(p.x), py(p.y)) for o in lines if o.joined and o is not line for p in o.points]
        parts += _line(line, which, px, py, others)
        parts += [_marker(which, left + 5, 40), _text(left + 16, 44, line.name)]
        left += 32 + 7 * len(line.name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _line(line: Line, which: int, px, py, others: Sequence[tuple[float, float]]) -> list[str]:
    colour = COLOURS[which]
    parts = []
    if line.joined:
        way = "L".join(f"{px(p.x):.1f} {py(p.y):.1f}" for p in line.points)
        parts.append(f'<path class="line" stroke="{colour}" d="M{way}"/>')
    for p in line.points:
        x, y = px(p.x), py(p.y)
        top, bottom = py(p.y + p.spread), py(p.y - p.spread)
        bar = f"M{x - 3:.1f} {top:.1f}h6M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {bottom:.1f}h6"
        parts.append(f'<path class="line" stroke="{colour}" stroke-width="1" d="{bar}"/>')
        parts.append(_marker(which, x, y))
        # Lines run close: a label stands above its point unless another line's point is there.
        covered = any(abs(x - left) < 20 and 0 < y - higher < 40 for left, higher in others)
        beside = bottom + 19 if covered else top - 11
        parts.append(_text(x, beside, p.label, "middle", "small"))
    return parts


def _marker(which: int, x: float, y: float) -> str:
    colour = f'fill="{COLOURS[which]}"'
    if which == 0:
        return f'<circle {colour} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if which == 1:
        return f'<rect {colour} x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path {colour} d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    css = f' class="{css}"' if css else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, enclosing [low, high]."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(tick for tick in found if tick <= low)
    last = min(tick for tick in found if tick >= high and tick > first)
    return [tick for tick in found if first <= tick <= last]
