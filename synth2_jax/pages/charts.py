"""The charts of the report.

Each is SVG or a table written here, its colours classes of `style`, so that it follows the
reader's colour scheme. Texts that come in are HTML already; labels for screen readers are not.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from synth2_jax.pages.html import (
    ARM_NAMES,
    NOTHING,
    arm_colour,
    arm_name,
    escaped,
    finite,
    number,
)

LOSS_POINTS = 120  # a loss curve is drawn as this many means, or fewer


def _marker(shape: int, x: float, y: float) -> str:
    css = f'class="fill{shape}"'
    if shape == 0:
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
    if shape == 1:
        return f'<rect {css} x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>'
    corners = {
        2: ((0, -4.4), (4.2, 3.4), (-4.2, 3.4)),
        3: ((0, -4.8), (4.4, 0), (0, 4.8), (-4.4, 0)),
        4: ((0, 4.4), (4.2, -3.4), (-4.2, -3.4)),
        5: ((-4.4, -2), (0, -4.6), (4.4, -2), (2.7, 3.6), (-2.7, 3.6)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon {css} points="{points}"/>'


def legend(names: Sequence[tuple[int, str]]) -> str:
    """Line and marker of each (colour, name); names are HTML."""
    keys = "".join(
        f'<span><svg width="22" height="12" aria-hidden="true"><path class="line{c}" d="M0 6H22"/>'
        f"{_marker(c, 11, 6)}</svg> {name}</span>"
        for c, name in names
    )
    return f'<p class="legend">{keys}</p>'


def arm_legend(arms: Sequence[str]) -> str:
    """The legend of a chart of arms."""
    return legend([(arm_colour(arm, arms), arm_name(arm)) for arm in arms])


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` steps apart, that enclose [low, high].

    >>> ticks(0, 83, 4)
    [0, 25, 50, 75, 100]
    """
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f * count >= span * (1 - 1e-9))
    step = int(step) if step >= 1 and step == int(step) else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _tick_text(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def curve_points(curve: Iterable | None) -> list[tuple[float, float]]:
    """The points of a curve whose step and value are numbers."""
    return [(finite(x), finite(y)) for x, y in curve or () if None not in (finite(x), finite(y))]


def thinned(
    points: list[tuple[float, float]], most: int = LOSS_POINTS
) -> list[tuple[float, float]]:
    """Means of neighbouring points, `most` or fewer of them."""
    size = math.ceil(len(points) / most) or 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(float(m) for m in np.mean(chunk, axis=0)) for chunk in chunks]


def line_chart(
    lines: Sequence[tuple[int | None, list[tuple[float, float]]]],
    label: str,
    size: tuple[int, int],
    *,
    x_title: str = "",
    y_title: str = "",
    from_zero: bool = False,
    level: tuple[float, str] | None = None,
    crossing: float | None = None,
) -> str:
    """Lines over steps as SVG.

    Args:
      lines: (colour index with markers, or None for a plain line; points) each.
      label: what a screen reader says.
      size: (width, height) of the view box; text is 12 px at that size.
      x_title: name of the horizontal axis.
      y_title: name of the vertical axis.
      from_zero: whether the vertical axis starts at 0, as the horizontal one does.
      level: (value, text) of a dashed horizontal line.
      crossing: step at which a dotted line falls from `level` to the horizontal axis.
    """
    lines = [(colour, points) for colour, points in lines if points]
    if not lines:
        return NOTHING
    width, height = size
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points] + ([level[0]] if level else [])
    y_ticks = ticks(min(0.0, *ys) if from_zero else min(ys), max(ys), max(2, height // 55))
    x_low, x_high = min(0.0, *xs), max(1.0, *xs)
    x_ticks = [t for t in ticks(x_low, x_high, max(2, width // 110)) if x_low <= t <= x_high]
    left = 12 + 7 * max(len(_tick_text(t)) for t in y_ticks)
    right, top, bottom = width - 18, 20 if y_title else 8, height - (38 if x_title else 20)

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    parts = [
        f'<path class="grid" d="M{left} {py(t):.1f}H{right}"/>'
        f'<text x="{left - 6}" y="{py(t) + 4:.1f}" text-anchor="end">{_tick_text(t)}</text>'
        for t in y_ticks
    ]
    parts += [
        f'<path class="axis" d="M{px(t):.1f} {bottom}v4"/>'
        f'<text x="{px(t):.1f}" y="{bottom + 16}" text-anchor="middle">{_tick_text(t)}</text>'
        for t in x_ticks
    ]
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    if x_title:
        parts.append(
            f'<text x="{(left + right) / 2:.0f}" y="{height - 4}" text-anchor="middle">'
            f"{x_title}</text>"
        )
    if y_title:
        parts.append(f'<text x="0" y="11">{y_title}</text>')
    for colour, points in lines:
        way = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        css = "plain" if colour is None else f"line{colour}"
        parts.append(f'<path class="{css}" d="M{way}"/>')
        if colour is not None:
            parts += [_marker(colour, px(x), py(y)) for x, y in points[-24:]]
    if level:
        y = py(level[0])
        parts.append(f'<path class="level" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="halo" x="{left + 6}" y="{y - 6:.1f}">{level[1]}</text>')
        if crossing is not None and x_low <= crossing <= x_high:
            x = px(crossing)
            parts.append(f'<path class="crossing" d="M{x:.1f} {y:.1f}V{bottom}"/>')
    return _svg(size, label, parts)


def _svg(size: tuple[int, int], label: str, parts: Iterable[str]) -> str:
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(label)}">'
        f"{''.join(parts)}</svg>"
    )


def grouped_bars(groups: Sequence[tuple[str, dict[str, float | None]]], arms: Sequence[str]) -> str:
    """CIDEr as upright bars, one colour an arm, in groups of (name, value by arm)."""
    values = [v for _, by_arm in groups for v in by_arm.values() if v is not None]
    if not values:
        return NOTHING
    size = width, height = 440, 240
    left, top, bottom = 6, 24, height - 24
    highest = max(*values, 1e-9)
    group_width = (width - 2 * left) / len(groups)
    bar = min(64.0, group_width * 0.76 / len(arms))
    parts = []
    for g, (name, by_arm) in enumerate(groups):
        middle = left + (g + 0.5) * group_width
        parts.append(f'<text x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{name}</text>')
        for i, arm in enumerate(arms):
            value = by_arm.get(arm)
            x = middle + (i - len(arms) / 2) * bar + 1.5
            tall = max(0.0, value or 0.0) / highest * (bottom - top)
            parts.append(
                f'<rect class="fill{arm_colour(arm, arms)}" x="{x:.1f}" y="{bottom - tall:.1f}" '
                f'width="{bar - 3:.1f}" height="{tall:.1f}"/>'
                f'<text class="value" x="{x + bar / 2 - 1.5:.1f}" y="{bottom - tall - 6:.1f}" '
                f'text-anchor="middle">{number(value)}</text>'
            )
    parts.append(f'<path class="axis" d="M{left} {bottom}H{width - left}"/>')
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{ARM_NAMES.get(a, a)} {number(v)}" for a, v in by_arm.items())
        for name, by_arm in groups
    )
    return _svg(size, f"CIDEr. {spoken}", parts)


def lying_bar(value, highest: float) -> str:
    """One bar, `highest` filling its track; empty where the value is missing."""
    value = finite(value)
    share = 0.0 if value is None or highest <= 0 else min(1.0, max(0.0, value / highest))
    width = f"{100 * share:.1f}%"
    return f'<span class="track"><span class="bar" style="width:{width}"></span></span>'


def bar_table(rows: Sequence[tuple[str, float | None, str]]) -> str:
    """Lying bars as a table: (escaped label, value, text of the value) each."""
    highest = max([value for _, value, _ in rows if value is not None], default=0.0)
    body = "".join(
        f'<tr><th scope="row">{label}</th><td class="wide">{lying_bar(value, highest)}</td>'
        f'<td class="n">{text}</td></tr>'
        for label, value, text in rows
    )
    return f'<table class="bars">{body}</table>'


def diagram() -> str:
    """How synthetic and real pairs reach the caption model."""

    def box(x, y, width, title, sub, css="box"):
        middle = x + width / 2
        return (
            f'<rect class="{css}" x="{x}" y="{y}" width="{width}" height="42" rx="5"/>'
            f'<text class="strong" x="{middle}" y="{y + 18}" text-anchor="middle">{title}</text>'
            f'<text x="{middle}" y="{y + 34}" text-anchor="middle">{sub}</text>'
        )

    def arrow(x, y, to, words="", anchor="start"):
        side = 8 if anchor == "start" else -8
        text = f'<text x="{x + side}" y="{(y + to) / 2 + 3}" text-anchor="{anchor}">{words}</text>'
        head = f"M{x - 4} {to - 6}L{x} {to}L{x + 4} {to - 6}"
        return f'<path class="arrow" d="M{x} {y}V{to}{head}"/>' + (text if words else "")

    parts = [
        '<text class="strong ink1" x="90" y="14" text-anchor="middle">synthetic pair</text>',
        '<text class="strong ink0" x="278" y="14" text-anchor="middle">real pair</text>',
        box(10, 24, 160, "Language model", "writes a caption", "box box1"),
        arrow(90, 66, 98, "caption"),
        box(10, 98, 160, "Generator", "MaskGIT, no pixels", "box box1"),
        box(198, 24, 160, "Real picture", "and its caption", "box box0"),
        arrow(278, 66, 98, "pixels"),
        box(198, 98, 160, "VQ encoder", "of the tokenizer", "box box0"),
        arrow(90, 140, 176, "tokens"),
        arrow(278, 140, 176, "tokens"),
        box(10, 176, 348, "Codebook of the tokenizer", "one lookup for both kinds"),
        arrow(184, 218, 252, "image embeddings"),
        box(
            10, 252, 348, "Caption model (VLM)", "resampler, cross-attention, frozen language model"
        ),
        arrow(184, 294, 326),
        '<text class="strong" x="184" y="341" text-anchor="middle">a caption of the picture</text>',
    ]
    label = (
        "Language model to caption to generator to tokens; real picture to VQ encoder to tokens; "
        "tokens to codebook embeddings to caption model"
    )
    return _svg((368, 348), label, parts)
