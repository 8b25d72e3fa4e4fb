"""The report of a demo as one HTML file: results in, page out, no script, nothing loaded.

Every chart is SVG written here, so that it follows the reader's colour scheme. Whatever comes from
data is escaped: captions are a language model's words and may hold markup. A number that is missing
or not finite is a dash.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

DASH = "–"
PERCENT = "\N{NO-BREAK SPACE}%"
REAL, MIXED = "real", "real_synthetic"
ARM_NAMES = {REAL: "real only", MIXED: "real + synthetic"}
TOO_CLOSE = 0.02  # relative CIDEr difference below which one run an arm is called a tie
LOSS_POINTS = 120  # a loss curve is drawn as this many means, or fewer

_NOTHING = '<p class="none">Not part of this run.</p>'
_METRICS = (  # name on the page, key in results["arms"][arm], is it a share
    ("CIDEr", "cider", False),
    ("CIDEr, seen", "cider_seen", False),
    ("CIDEr, never seen", "cider_unseen", False),
    ("BLEU-4", "bleu4", False),
    ("ROUGE-L", "rouge_l", False),
    ("objects named right", "objects_right", True),
)


def picture(image: np.ndarray, scale: int = 4) -> str:
    """Makes an image u8[H, W, 3] into a PNG data URI, each pixel drawn as scale x scale.

    Raises:
      ValueError: another dtype or shape, or a scale below 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or scale < 1:
        raise ValueError(
            f"picture: found {image.dtype}{list(image.shape)} at scale {scale}, "
            "expected uint8[H, W, 3] and a scale of at least 1"
        )
    height, width = image.shape[:2]
    drawn = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def render_page(results: Mapping, material: Mapping) -> str:
    """Writes the whole page.

    Args:
      results: what results.json holds. CIDEr, BLEU and ROUGE-L are on the scale papers print (times
        100), shares and `objects_right` lie in [0, 1], times are in seconds. Any key may be absent
        or None.
      material: what is shown beside the numbers: "scenes", "reconstructions", "synthetic", "test",
        "curves" and "losses"; pictures are data URIs (see `picture`). Any key may be absent or
        empty.

    Returns:
      One HTML document.

    Raises:
      ValueError: a picture that is not a data URI of an image.
    """
    sections = "\n".join(
        f'<section id="{name}"><h2>{title}</h2>\n{write(results, material)}\n</section>'
        for name, title, write in SECTIONS
    )
    contents = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in SECTIONS)
    tiny = bool(results.get("tiny"))
    notice = (
        '<p class="notice"><strong>Tiny run.</strong> It shows that every stage works and nothing '
        "else: models this small, trained this briefly, learn nothing that could be compared.</p>"
        if tiny
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Synth² on Scenes: what synthetic pairs add</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<p class="kicker">synth2_jax · method of Synth² (arXiv 2403.07750) · built-in data set Scenes</p>
<h1>What do synthetic pairs add to a caption model?</h1>
<p class="answer">{_answer(results)}</p>
{notice}<p class="fine">One training run per arm. Both arms share the tokenizer, the frozen language
model and the number of steps, and are scored on the same test pictures, balanced over all
combinations of colour and shape.</p>
</header>
<main>
{_key_figures(results)}
<nav aria-label="Contents">{contents}</nav>
{sections}
</main>
<footer>synth2_jax, commit {_text(results.get("commit"))}. This page needs no network.</footer>
</body>
</html>
"""


# Values


def _get(tree, *path):
    """The value at a path of keys, or None where any of them is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def _finite(value) -> float | None:
    if isinstance(value, (int, float, np.number)) and math.isfinite(value):
        return float(value)
    return None


def _text(value) -> str:
    return DASH if value is None else html.escape(str(value))


def _number(value, digits: int = 1) -> str:
    value = _finite(value)
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", "−")


def _percent(share, digits: int = 0) -> str:
    share = _finite(share)
    return DASH if share is None else _number(100 * share, digits) + PERCENT


def _signed(value, digits: int = 1, unit: str = "") -> str:
    value = _finite(value)
    return DASH if value is None else f"{value:+,.{digits}f}".replace("-", "−") + unit


def _gain(after, before) -> float | None:
    """(after - before) / before, or None where that says nothing."""
    after, before = _finite(after), _finite(before)
    return None if after is None or before is None or before <= 0 else after / before - 1


def _gain_text(gain: float | None) -> str:
    return DASH if gain is None else _signed(100 * gain, 1, PERCENT)


def _duration(seconds) -> str:
    seconds = _finite(seconds)
    if seconds is None:
        return DASH
    if seconds < 99.5:
        return f"{_number(seconds, 0 if seconds >= 10 else 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _image(uri, alt: str, css: str = "") -> str:
    if uri is None:
        return f'<span class="picture {css} missing">{DASH}</span>'
    if not str(uri).startswith("data:image/"):
        raise ValueError(f"picture: found {str(uri)[:40]!r}, expected a data:image/ URI")
    return f'<img class="picture {css}" src="{_text(uri)}" alt="{_text(alt)}" loading="lazy">'


def _mark(share, words: str) -> str:
    """Tick or cross with words, so that nothing hangs on colour; None is neither."""
    share = _finite(share)
    if share is None:
        return f'<span class="mark open">{DASH} {words}</span>'
    sign, css = ("✓", "right") if share >= 1 else ("✗", "wrong")
    return f'<span class="mark {css}"><b>{sign}</b> {words}</span>'


def _objects_words(share) -> str:
    share = _finite(share)
    if share is None:
        return "not scored"
    return (
        "objects right"
        if share >= 1
        else "objects wrong"
        if share <= 0
        else f"{_percent(share)} of objects right"
    )


# Arms


def _arms(*trees) -> list[str]:
    """Names of the arms in any of these dicts, the two that are compared first."""
    found = dict.fromkeys(name for tree in trees for name in (tree or {}))
    return [a for a in (REAL, MIXED) if a in found] + [a for a in found if a not in (REAL, MIXED)]


def _arm_name(arm: str) -> str:
    return ARM_NAMES.get(arm) or _text(arm).replace("_", " ")


def _arm_colour(arm: str, arms: Sequence[str]) -> int:
    """Index of the arm's colour and marker; the compared arms always have the same."""
    others = [a for a in arms if a not in (REAL, MIXED)]
    return {REAL: 0, MIXED: 1}.get(arm, 2 + others.index(arm) % 3 if arm in others else 2)


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
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon {css} points="{points}"/>'


def _legend(arms: Sequence[str]) -> str:
    keys = "".join(
        f'<span><svg width="22" height="12" aria-hidden="true"><path class="line{c}" d="M0 6H22"/>'
        f"{_marker(c, 11, 6)}</svg> {_arm_name(arm)}</span>"
        for arm in arms
        for c in [_arm_colour(arm, arms)]
    )
    return f'<p class="legend">{keys}</p>'


def _figure(body: str, caption: str) -> str:
    return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


# Charts


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` steps apart, that enclose [low, high].

    >>> _ticks(0, 83, 4)
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


def _points(curve: Iterable) -> list[tuple[float, float]]:
    return [
        (_finite(x), _finite(y)) for x, y in curve or () if None not in (_finite(x), _finite(y))
    ]


def _thinned(
    points: list[tuple[float, float]], most: int = LOSS_POINTS
) -> list[tuple[float, float]]:
    """Means of neighbouring points, `most` or fewer of them."""
    size = math.ceil(len(points) / most) or 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(float(m) for m in np.mean(chunk, axis=0)) for chunk in chunks]


def _line_chart(
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
        return _NOTHING
    width, height = size
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points] + ([level[0]] if level else [])
    y_ticks = _ticks(min(0.0, *ys) if from_zero else min(ys), max(ys), max(2, height // 55))
    x_low, x_high = min(0.0, *xs), max(1.0, *xs)
    x_ticks = [t for t in _ticks(x_low, x_high, max(2, width // 110)) if x_low <= t <= x_high]
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
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_text(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _grouped_bars(
    groups: Sequence[tuple[str, dict[str, float | None]]], arms: Sequence[str]
) -> str:
    """Upright bars, one colour an arm, in groups of (name, value by arm)."""
    values = [v for _, by_arm in groups for v in by_arm.values() if v is not None]
    if not values:
        return _NOTHING
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
                f'<rect class="fill{_arm_colour(arm, arms)}" x="{x:.1f}" y="{bottom - tall:.1f}" '
                f'width="{bar - 3:.1f}" height="{tall:.1f}"/>'
                f'<text class="value" x="{x + bar / 2 - 1.5:.1f}" y="{bottom - tall - 6:.1f}" '
                f'text-anchor="middle">{_number(value)}</text>'
            )
    parts.append(f'<path class="axis" d="M{left} {bottom}H{width - left}"/>')
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{ARM_NAMES.get(a, a)} {_number(v)}" for a, v in by_arm.items())
        for name, by_arm in groups
    )
    return _svg(size, f"CIDEr. {spoken}", parts)


def _bar(value, highest: float) -> str:
    value = _finite(value)
    share = 0.0 if value is None or highest <= 0 else min(1.0, max(0.0, value / highest))
    width = f"{100 * share:.1f}%"
    return f'<span class="track"><span class="bar" style="width:{width}"></span></span>'


def _bar_rows(rows: Sequence[tuple[str, float | None, str]]) -> str:
    """Lying bars as a table: (escaped label, value, text of the value) each."""
    highest = max([value for _, value, _ in rows if value is not None], default=0.0)
    body = "".join(
        f'<tr><th scope="row">{label}</th><td class="wide">{_bar(value, highest)}</td>'
        f'<td class="n">{text}</td></tr>'
        for label, value, text in rows
    )
    return f'<table class="bars">{body}</table>'


# The top of the page


def _answer(results: Mapping) -> str:
    if results.get("tiny"):
        return "Plumbing only; the numbers mean nothing."
    real, mixed = (_finite(_get(results, "arms", arm, "cider")) for arm in (REAL, MIXED))
    if real is None or mixed is None:
        return "No answer: this run did not score both arms."
    gain = _gain(mixed, real)
    change = f" ({_gain_text(gain)})" if gain is not None else ""
    both = (
        f"CIDEr is {_number(mixed)} with real + synthetic pairs and {_number(real)} with real "
        f"pairs only{change}"
    )
    if gain is not None and abs(gain) < TOO_CLOSE:
        return f"Too close to call: {both}, which one run of each arm cannot tell from chance."
    if mixed <= real:
        return f"No gain: {both}."
    before, after = (_get(results, "arms", arm, "cider_unseen") for arm in (REAL, MIXED))
    unseen = _gain(after, before)
    tail = ""
    if unseen is not None:
        tail = (
            f"; on combinations that no real pair shows it is {_number(after)} against "
            f"{_number(before)} ({_gain_text(unseen)})"
        )
    return f"Yes, a gain: {both}{tail}."


def _key_figures(results: Mapping) -> str:
    def of(*path):
        return _get(results, *path)

    gain = _gain(of("arms", MIXED, "cider"), of("arms", REAL, "cider"))
    unseen = _gain(of("arms", MIXED, "cider_unseen"), of("arms", REAL, "cider_unseen"))
    speed = _gain(of("steps_per_second", "embedding"), of("steps_per_second", "pixel"))
    ratio = DASH if speed is None else f"{_number(1 + speed, 2)}×"
    figures = (
        ("CIDEr, real only", _number(of("arms", REAL, "cider")), "real pairs alone", "arm0"),
        ("CIDEr, real + synthetic", _number(of("arms", MIXED, "cider")), "same steps", "arm1"),
        ("Gain in CIDEr", _gain_text(gain), "the paper: +17&nbsp;% (abstract, v1)", ""),
        ("Gain on unseen", _gain_text(unseen), "combinations no real pair shows", ""),
        (
            "Generator",
            _percent(of("generator", "objects_right")),
            "objects right in its pictures",
            "",
        ),
        (
            "Tokenizer",
            _percent(of("tokenizer", "objects_right")),
            "objects right once reconstructed",
            "",
        ),
        ("Embedding / pixel speed", ratio, "the paper: 1.25× (abstract)", ""),
        ("Time", _duration(of("seconds")), "the whole demo", ""),
    )
    tiles = "".join(
        f'<div class="tile {css}"><dt>{name}</dt><dd>{value}</dd><dd class="sub">{note}</dd></div>'
        for name, value, note, css in figures
    )
    return f'<dl class="tiles{" tiny" if results.get("tiny") else ""}">{tiles}</dl>'


# Sections: each takes (results, material) and returns the HTML under its heading


def _how(results: Mapping, material: Mapping) -> str:
    del results, material
    caption = (
        "Synth². Left: a synthetic pair. Right: a real pair. From the codebook on, both take the "
        "same way."
    )
    return f"""<div class="how"><ol>
<li><b>Captions.</b> A language model, asked class by class, writes captions: balanced over all
combinations, where the real pairs are not.</li>
<li><b>Tokens instead of pictures.</b> A text-to-image generator (MaskGIT), trained on the same few
real pairs, turns each caption into image tokens. No pixel is drawn.</li>
<li><b>Embeddings.</b> The tokens are looked up in the tokenizer's codebook. Real pictures arrive at
the same codebook through the VQ encoder, so the caption model cannot tell the two apart.</li>
<li><b>Caption model.</b> A resampler and gated cross-attention let the frozen language model see
the embeddings; it is trained on real pairs alone, or on both kinds.</li>
</ol>{_figure(_diagram(), caption)}</div>"""


def _diagram() -> str:
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


def _scenes(results: Mapping, material: Mapping) -> str:
    del results
    cards = "".join(
        f'<li class="card">{_image(scene.get("picture"), "a real picture")}<div>'
        f"{_caption_lines(scene.get('captions'), 3)}"
        f'<p class="sub">{_text(scene.get("combinations"))}</p></div></li>'
        for scene in material.get("scenes") or ()
    )
    words = (
        "<p>One to three objects on a plain background, with five captions each. The real pairs "
        "are few and long-tailed: some combinations of colour and shape are common, most are rare, "
        "some never occur. The test pictures show all of them equally often.</p>"
    )
    return words + (f'<ul class="cards">{cards}</ul>' if cards else _NOTHING)


def _caption_lines(captions, most: int) -> str:
    return "".join(f'<p class="caption">{_text(line)}</p>' for line in (captions or ())[:most])


def _reconstructions(results: Mapping, material: Mapping) -> str:
    share = _percent(_get(results, "tokenizer", "objects_right"))
    cards = "".join(
        f'<li><div class="pair">{_image(item.get("original"), "original")}'
        '<span aria-hidden="true">→</span>'
        f"{_image(item.get('reconstruction'), 'reconstruction')}</div>"
        + _mark(
            None if item.get("right") is None else float(item["right"]),
            {True: "read back right", False: "read back wrong"}.get(item.get("right"), "not read"),
        )
        + "</li>"
        for item in material.get("reconstructions") or ()
    )
    words = (
        "<p>The tokenizer turns a picture into tokens and back. An exact reader of pictures (the "
        f"oracle) finds <b>{share}</b> of the objects right after that: what the tokenizer loses, "
        "nothing behind it can win back.</p>"
    )
    return words + (f'<ul class="pairs">{cards}</ul>' if cards else _NOTHING)


def _verdict(name: str, counts) -> str:
    """Mark of one kind of claim from (right, claimed); a share comes as (share, 1)."""
    right, claimed = (_finite(c) for c in (counts or (None, None)))
    if right is None or claimed is None:
        return _mark(None, f"{name}: not read")
    if claimed <= 0:
        return _mark(None, f"{name}: none claimed")
    share = right / claimed
    if claimed > 1 and right == int(right):
        words = f"{int(right)} of {int(claimed)} right"
    else:
        words = "right" if share >= 1 else "wrong" if share <= 0 else f"{_percent(share)} right"
    return _mark(share, f"{name}: {words}")


def _unseen_tag(unseen) -> str:
    return '<span class="tag">never in real pairs</span>' if unseen else ""


def _synthetic(results: Mapping, material: Mapping) -> str:
    shares = (
        (name, _percent(_get(results, "generator", f"{name}_right")))
        for name in ("objects", "sizes", "places")
    )
    words = (
        "<p>The caption model trains on the tokens; they are decoded here only to be looked at. "
        "The oracle reads each picture back and compares it with its caption. Over the whole set: "
        + ", ".join(f"{name} right <b>{share}</b>" for name, share in shares)
        + ".</p>"
    )
    cards = "".join(
        f'<li class="card">{_image(item.get("picture"), "a decoded synthetic picture")}<div>'
        f'<p class="caption">{_text(item.get("caption"))}</p>'
        f'<p class="marks">{_unseen_tag(item.get("unseen"))}'
        + "".join(_verdict(n, _get(item, "verdict", n)) for n in ("objects", "sizes", "places"))
        + f'</p><p class="sub">Oracle: {_text(item.get("read_back"))}</p></div></li>'
        for item in material.get("synthetic") or ()
    )
    return words + (f'<ul class="cards">{cards}</ul>' if cards else _NOTHING)


def _test_captions(results: Mapping, material: Mapping) -> str:
    items = material.get("test") or ()
    arms = _arms(results.get("arms"), *(item.get("captions") for item in items))
    cards = []
    for item in items:
        lines = []
        for arm in arms:
            said = _get(item, "captions", arm) or {}
            right = said.get("objects_right")
            lines.append(
                f'<dt class="arm{_arm_colour(arm, arms)}">{_arm_name(arm)}</dt>'
                f'<dd><span class="caption">{_text(said.get("text"))}</span> '
                f"{_mark(right, _objects_words(right))}</dd>"
            )
        first = (item.get("references") or [None])[0]
        cards.append(
            f'<li class="card">{_image(item.get("picture"), "a test picture")}<div>'
            f'<p class="marks">{_unseen_tag(item.get("unseen"))}</p>'
            f'<dl class="said">{"".join(lines)}'
            f'<dt class="sub">reference</dt><dd class="sub">{_text(first)}</dd></dl></div></li>'
        )
    words = (
        "<p>The same pictures, captioned by each arm; right means every object named and none made "
        "up.</p>"
    )
    return words + (f'<ul class="cards">{"".join(cards)}</ul>' if cards else _NOTHING)


def _curves(results: Mapping, material: Mapping) -> str:
    curves = material.get("curves") or {}
    arms = _arms(curves)
    lines = [(_arm_colour(arm, arms), _points(curves[arm])) for arm in arms]
    baseline = _points(curves.get(REAL))
    level = (baseline[-1][1], f"real only ends at {_number(baseline[-1][1])}") if baseline else None
    reached = results.get("steps_to_baseline")
    chart = _line_chart(
        lines,
        "CIDEr over training steps, one line an arm",
        (440, 270),
        x_title="training steps",
        y_title="CIDEr",
        from_zero=True,
        level=level,
        crossing=_finite(_get(reached, "steps")),
    )
    if chart == _NOTHING:
        return chart
    caption = "CIDEr while training. Dashed: where the real-only arm ends."
    if reached:
        caption += (
            f" Dotted: real + synthetic gets there after {_number(_get(reached, 'steps'), 0)} "
            f"steps, {_percent(_get(reached, 'share'))} of the real-only arm's. "
            "(Synth²: about a third, by a secondary summary.)"
        )
    elif not results.get("tiny"):
        caption += " Real + synthetic does not get there, or it was not measured."
    return _figure(_legend(arms) + chart, caption)


def _seen_unseen(results: Mapping, material: Mapping) -> str:
    del material
    by_arm = results.get("arms") or {}
    arms = _arms(ARM_NAMES, by_arm)
    groups = [
        (name, {arm: _finite(_get(by_arm, arm, key)) for arm in arms})
        for name, key in (("all", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))
    ]
    chart = _grouped_bars(groups, arms)
    caption = (
        "CIDEr on test pictures by whether real pairs show all their combinations of colour and "
        "shape (seen) or not."
    )
    head = "".join(f'<th scope="col" class="n">{_arm_name(arm)}</th>' for arm in arms)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f'<td class="n">{(_percent if is_share else _number)(_get(by_arm, arm, key), 1)}</td>'
            for arm in arms
        )
        + f'<td class="n">{_difference(by_arm, key, is_share)}</td></tr>'
        for name, key, is_share in _METRICS
    )
    table = (
        f'<div class="scroll"><table><thead><tr><th scope="col">score</th>{head}'
        f'<th scope="col" class="n">difference</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return (_figure(_legend(arms) + chart, caption) if chart != _NOTHING else chart) + table


def _difference(by_arm: Mapping, key: str, is_share: bool) -> str:
    before, after = (_finite(_get(by_arm, arm, key)) for arm in (REAL, MIXED))
    if before is None or after is None:
        return DASH
    return _signed(100 * (after - before), 1, " pts") if is_share else _signed(after - before)


def _balance(results: Mapping, material: Mapping) -> str:
    del material
    sets = results.get("balance") or {}
    if not sets:
        return _NOTHING
    highest = max([_finite(_get(s, "entropy")) or 0.0 for s in sets.values()], default=0.0)
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th>'
        f'<td class="n">{_number(_get(one, "captions"), 0)}</td>'
        f'<td class="measure">{_percent(_get(one, "top5_share"), 1)}'
        f"{_bar(_get(one, 'top5_share'), 1.0)}</td>"
        f'<td class="measure">{_number(_get(one, "entropy"), 2)}'
        f"{_bar(_get(one, 'entropy'), highest)}</td>"
        "</tr>"
        for name, one in sets.items()
    )
    return f"""<p>Captions are clustered; a balanced set has a small share of its captions in the
five largest clusters and a high entropy over clusters. (Synth², by a secondary summary: 57.7&nbsp;%
for its synthetic set, 69.8 to 83.0&nbsp;% for real ones.)</p>
<div class="scroll"><table><thead><tr><th scope="col">caption set</th>
<th scope="col" class="n">captions</th><th scope="col">in the 5 largest clusters</th>
<th scope="col">entropy, nats</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _speed(results: Mapping, material: Mapping) -> str:
    del material
    rows = [
        (label, value, DASH if value is None else f"{_number(value, 2)} steps/s")
        for label, key in (("embeddings", "embedding"), ("pixels", "pixel"))
        for value in [_finite(_get(results, "steps_per_second", key))]
    ]
    return (
        "<p>Training steps a second of the caption model when synthetic tokens are looked up "
        "(embeddings), and when they are first drawn and encoded again (pixels). Synth² reports "
        "25&nbsp;% more for embeddings (abstract); the ratio depends on how large the tokenizer is "
        "beside the caption model.</p>" + _bar_rows(rows)
    )


def _losses(results: Mapping, material: Mapping) -> str:
    del results
    charts = []
    for model, curve in (material.get("losses") or {}).items():
        name = _text(model).replace("_", " ")
        points = _points(curve)
        chart = _line_chart([(None, _thinned(points))], f"training loss of {model}", (190, 120))
        last = f"last {_number(points[-1][1], 3)}" if points else DASH
        charts.append(f'<div><p><b>{name}</b><br><span class="sub">{last}</span></p>{chart}</div>')
    if not charts:
        return _NOTHING
    return _figure(
        f'<div class="multiples">{"".join(charts)}</div>',
        "Training loss over steps, means of neighbouring steps; each model has its own scale.",
    )


def _time(results: Mapping, material: Mapping) -> str:
    del material
    stages = results.get("seconds_by_stage") or {}
    rows = [
        (_text(name).replace("_", " "), _finite(value), _duration(value))
        for name, value in stages.items()
    ]
    total = f"<p>In all {_duration(results.get('seconds'))}.</p>"
    return total + (_bar_rows(rows) if rows else _NOTHING)


def _flat(tree: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _settings(results: Mapping, material: Mapping) -> str:
    del material

    def table(rows: Iterable[tuple[str, object]]) -> str:
        body = "".join(
            f'<tr><th scope="row"><code>{_text(k)}</code></th><td><code>{_text(v)}</code></td></tr>'
            for k, v in rows
        )
        return f'<div class="scroll"><table class="settings">{body}</table></div>'

    versions = list(_flat(results.get("versions") or {}))
    config = list(_flat(results.get("config") or {}))
    parts = [table([("commit", results.get("commit")), *versions])]
    if config:
        parts.append(
            f"<details><summary>The whole config, {len(config)} keys</summary>"
            f"{table(config)}</details>"
        )
    return "".join(parts)


SECTIONS: tuple[tuple[str, str, Callable[[Mapping, Mapping], str]], ...] = (
    ("how", "How it works", _how),
    ("scenes", "Real pairs", _scenes),
    ("tokenizer", "Tokenizer", _reconstructions),
    ("synthetic", "Synthetic pairs", _synthetic),
    ("test", "Captions of test pictures", _test_captions),
    ("curves", "Learning curves", _curves),
    ("unseen", "Seen and unseen combinations", _seen_unseen),
    ("balance", "Balance of the captions", _balance),
    ("speed", "Embeddings or pixels", _speed),
    ("losses", "Training losses", _losses),
    ("time", "Where the time went", _time),
    ("settings", "Settings", _settings),
)  # (anchor, heading, writer), in the page's order

# Arms in blue and orange, verdicts in green and magenta: after Okabe and Ito, so that colour-blind
# readers tell them apart.
_STYLE = """
:root{--paper:#fff;--panel:#f6f7f8;--rule:#d9dde1;--ink:#1a1d21;--soft:#59626c;--neutral:#7a8793;
 --c0:#0072b2;--c1:#e69f00;--c2:#009e73;--c3:#cc79a7;--c4:#7d6bb8;--t0:#00609a;--t1:#8f5a00;
 --right:#00704f;--wrong:#a02c68;--notice:#fff3d6;--notice-rule:#e69f00}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--panel:#1d2125;--rule:#363c43;
 --ink:#e8eaed;--soft:#a3acb6;--neutral:#8793a0;--c0:#4a9fdc;--c1:#f0b43c;--c2:#2fc598;
 --c3:#e09cc3;--c4:#a597e0;--t0:#7dbdec;--t1:#f0b43c;--right:#4fd0a5;--wrong:#f08fc0;
 --notice:#3a2f14;--notice-rule:#f0b43c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:64rem;padding:1.5rem 1.25rem 3rem;background:var(--paper);
 color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
 sans-serif;overflow-wrap:break-word}
h1{font-size:clamp(1.5rem,1.1rem + 2vw,2.2rem);line-height:1.2;margin:.2rem 0 1rem;
 letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .75rem}
section{border-top:1px solid var(--rule);margin-top:2.25rem;padding-top:1.5rem}
section>p{max-width:46rem;margin:0 0 1rem}
.kicker,.fine,.sub,figcaption,footer,.none{color:var(--soft);font-size:.875rem}
.kicker{margin:0}
.fine{max-width:46rem;margin:.75rem 0 0}
.none{font-style:italic}
.answer{font-size:clamp(1.1rem,1rem + .6vw,1.35rem);line-height:1.45;max-width:48rem;margin:0;
 border-left:4px solid var(--neutral);padding-left:1rem}
.notice{background:var(--notice);border:1px solid var(--notice-rule);border-radius:6px;
 padding:.6rem .9rem;max-width:46rem}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin:1.75rem 0 1.25rem}
.tile{background:var(--panel);border-radius:8px;padding:.75rem .9rem;
 border-top:3px solid transparent}
.tile.arm0{border-color:var(--c0)}
.tile.arm1{border-color:var(--c1)}
.tile dt{font-size:.82rem;color:var(--soft);line-height:1.3}
.tile dd{margin:.15rem 0 0;font-size:1.6rem;line-height:1.2;font-weight:650;
 font-variant-numeric:tabular-nums}
.tile dd.sub{font-size:.78rem;font-weight:400;line-height:1.35}
.tiny dd:not(.sub){color:var(--soft);font-weight:400}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;font-size:.875rem}
a{color:var(--t0);text-underline-offset:.15em}
figure{margin:0 0 1.25rem;max-width:34rem}
figure:has(.multiples){max-width:none}
figcaption{margin-top:.5rem}
svg{max-width:100%;overflow:visible}
figure>svg,.multiples svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}
svg .strong{fill:var(--ink);font-weight:600}
svg .value,svg .halo{fill:var(--ink)}
svg .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.grid,.axis{stroke:var(--rule);fill:none}
.axis{stroke:var(--neutral)}
.plain{stroke:var(--ink);stroke-width:1.4;fill:none}
.level{stroke:var(--ink);stroke-width:1.3;stroke-dasharray:6 4;fill:none}
.crossing{stroke:var(--ink);stroke-width:1.3;stroke-dasharray:1.5 3;fill:none}
.line0,.line1,.line2,.line3,.line4{fill:none;stroke-width:2}
.line0{stroke:var(--c0)}
.line1{stroke:var(--c1)}
.line2{stroke:var(--c2)}
.line3{stroke:var(--c3)}
.line4{stroke:var(--c4)}
.fill0{fill:var(--c0)}
.fill1{fill:var(--c1)}
.fill2{fill:var(--c2)}
.fill3{fill:var(--c3)}
.fill4{fill:var(--c4)}
svg .ink0{fill:var(--t0)}
svg .ink1{fill:var(--t1)}
.box{fill:var(--panel);stroke:var(--neutral)}
.box0{stroke:var(--c0);stroke-width:1.6}
.box1{stroke:var(--c1);stroke-width:1.6}
.arrow{stroke:var(--neutral);stroke-width:1.4;fill:none}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin:0 0 .5rem;font-size:.875rem}
.legend svg{vertical-align:-1px}
.how{display:grid;grid-template-columns:1fr minmax(0,25rem);gap:1rem 2.5rem;align-items:start}
.how ol{margin:0;padding-left:1.2rem}
.how li{margin-bottom:.75rem}
.cards,.pairs{list-style:none;margin:0;padding:0;display:grid;gap:.75rem}
.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr))}
.pairs{grid-template-columns:repeat(auto-fill,minmax(11rem,1fr))}
.card{display:flex;gap:.9rem;background:var(--panel);border-radius:8px;padding:.75rem;
 align-items:flex-start}
.card>div{min-width:0;flex:1}
.card p{margin:0 0 .35rem;line-height:1.4}
.caption{font-family:Charter,"Iowan Old Style",Georgia,"Times New Roman",serif}
.picture{width:96px;height:96px;flex:none;display:block;border-radius:3px;
 image-rendering:pixelated;outline:1px solid var(--rule)}
.picture.missing{display:grid;place-items:center;background:var(--panel);color:var(--soft)}
.pair{display:flex;align-items:center;gap:.4rem;margin-bottom:.25rem}
.pair .picture{width:80px;height:80px}
.marks{display:flex;flex-wrap:wrap;gap:.1rem .8rem}
.marks:empty{display:none}
.mark{font-size:.85rem;color:var(--soft);white-space:nowrap}
.mark.right{color:var(--right)}
.mark.wrong{color:var(--wrong)}
.tag{font-size:.78rem;border:1px solid var(--neutral);border-radius:99px;padding:0 .5rem;
 color:var(--soft);white-space:nowrap}
.said{margin:0}
.said dt{font-size:.8rem;line-height:1.3;padding-left:.5rem;border-left:3px solid transparent}
.said dt.arm0{border-color:var(--c0)}
.said dt.arm1{border-color:var(--c1)}
.said dt.arm2{border-color:var(--c2)}
.said dt.arm3{border-color:var(--c3)}
.said dt.arm4{border-color:var(--c4)}
.said dd{margin:0 0 .45rem;padding-left:calc(.5rem + 3px);line-height:1.4}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
th,td{padding:.35rem .9rem .35rem 0;text-align:left;vertical-align:top;
 border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:500}
tbody th,.bars th,.settings th{font-weight:400}
.n{text-align:right;white-space:nowrap}
.bars{width:100%;max-width:40rem}
.bars th{white-space:nowrap}
.bars th,.bars td{border:0;vertical-align:middle}
.wide{width:100%}
.measure{min-width:8.5rem}
.track{display:block;height:.7rem;min-width:3rem}
.bar{display:block;height:100%;background:var(--neutral);border-radius:2px}
.measure .track{height:.4rem}
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem 1.5rem}
.multiples p{margin:0 0 .25rem;font-size:.875rem}
code{font:.82rem/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.settings td{overflow-wrap:anywhere}
summary{cursor:pointer;margin:1rem 0 .5rem}
footer{border-top:1px solid var(--rule);margin-top:2.5rem;padding-top:1rem}
@media (max-width:44rem){body{padding:1rem 1rem 2rem}
.tiles{grid-template-columns:repeat(2,1fr);gap:.5rem}
.how{grid-template-columns:minmax(0,1fr)}
.pairs,.multiples{grid-template-columns:repeat(2,minmax(0,1fr))}
.pair .picture{width:72px;height:72px}
.measure{min-width:5.5rem}}
"""
