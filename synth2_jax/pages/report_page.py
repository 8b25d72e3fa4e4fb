"""The report of a demo as one HTML file; its text is in templates/report.html.j2."""

from collections.abc import Iterable, Mapping
from typing import Any

from synth2_jax.pages.arms import MIXED, REAL, arm_colour, arm_name, ordered_arms
from synth2_jax.pages.charts import (
    MARKER_SIGNS,
    Line,
    bar_chart,
    curve_points,
    line_chart,
    svg,
    thinned,
)
from synth2_jax.pages.document import render
from synth2_jax.pages.numbers import (
    DASH,
    PERCENT,
    duration,
    finite,
    lookup,
    number,
    percent,
    signed,
)

TOO_CLOSE = 0.02  # relative CIDEr difference below which one run an arm is called a tie
# Anchor, heading, and the keys of results or material, one of which the section needs.
SECTIONS = (
    ("how", "How it works", ()),
    ("scenes", "Real pairs", ("scenes",)),
    ("tokenizer", "Tokenizer", ("reconstructions", "tokenizer")),
    ("synthetic", "Synthetic pairs", ("synthetic", "generator")),
    ("test", "Captions of test pictures", ("test",)),
    ("curves", "Learning curves", ("curves",)),
    ("unseen", "Seen and unseen combinations", ("arms",)),
    ("balance", "Balance of the captions", ("balance",)),
    ("speed", "Embeddings or pixels", ("steps_per_second",)),
    ("losses", "Training losses", ("losses",)),
    ("time", "Where the time went", ("seconds", "seconds_by_stage")),
    ("settings", "Settings", ("commit", "versions", "config")),
)
_CLAIMS = ("objects", "sizes", "places")
_GROUPS = (("all", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))
_METRICS = (  # name on the page, key in results["arms"][arm], is it a share
    ("CIDEr", "cider", False),
    ("CIDEr, seen", "cider_seen", False),
    ("CIDEr, never seen", "cider_unseen", False),
    ("BLEU-4", "bleu4", False),
    ("ROUGE-L", "rouge_l", False),
    ("objects named right", "objects_right", True),
)


def render_page(results: Mapping, material: Mapping) -> str:
    """Writes the whole page.

    Args:
      results: what results.json holds. CIDEr, BLEU and ROUGE-L are on the scale papers print (times
        100), shares and `objects_right` lie in [0, 1], times are in seconds. Any key may be absent
        or None; a section without data is left out.
      material: what is shown next to the numbers: "scenes", "reconstructions", "synthetic", "test",
        "curves" and "losses"; pictures are data URIs (see `document.picture`). Any key may be
        absent or empty.

    Returns:
      One HTML document.

    Raises:
      ValueError: a picture that is not a data URI of an image.
    """
    scored = results.get("arms") or {}
    shown = ordered_arms(scored, *(item.get("captions") for item in material.get("test") or ()))
    compared = ordered_arms((REAL, MIXED), scored)
    curves = material.get("curves") or {}
    return render(
        "report.html.j2",
        results=results,
        material=material,
        answer=answer(results),
        key_figures=_key_figures(results),
        sections={
            anchor: title
            for anchor, title, keys in SECTIONS
            if not keys or any(results.get(key) or material.get(key) for key in keys)
        },
        signs=MARKER_SIGNS,
        claims=_CLAIMS,
        verdict=lambda name, item: _verdict(name, lookup(item, "verdict", name)),
        captions_of=lambda item: [
            (arm_colour(arm, shown), arm_name(arm), lookup(item, "captions", arm)) for arm in shown
        ],
        objects_words=_objects_words,
        measured={name: _measured(results, name) for name in ("curve", "table")},
        curves=_curves(results, curves),
        curve_names=_names(ordered_arms(curves)),
        scores=_scores(results, compared),
        score_names=_names(compared),
        score_rows=[_score_row(scored, compared, *metric) for metric in _METRICS],
        speeds=[
            (label, value, DASH if value is None else f"{number(value, 2)} steps/s")
            for label, key in (("embeddings", "embedding"), ("pixels", "pixel"))
            for value in [lookup(results, "steps_per_second", key)]
        ],
        losses=list(_losses(material.get("losses") or {})),
        times=[
            (name.replace("_", " "), seconds, duration(seconds))
            for name, seconds in (results.get("seconds_by_stage") or {}).items()
        ],
        versions=list(_flat(results.get("versions") or {})),
        config=list(_flat(results.get("config") or {})),
    )


def answer(results: Mapping) -> str:
    """The result in one sentence."""
    if results.get("tiny"):
        return "Plumbing only; the numbers mean nothing."
    real, mixed = (finite(lookup(results, "arms", arm, "cider")) for arm in (REAL, MIXED))
    if real is None or mixed is None:
        return "No answer: this run did not score both arms."
    gain = _gain(mixed, real)
    change = f" ({_gain_text(gain)})" if gain is not None else ""
    both = (
        f"CIDEr is {number(mixed)} with real + synthetic pairs and {number(real)} with real "
        f"pairs only{change}"
    )
    if gain is not None and abs(gain) < TOO_CLOSE:
        return f"Too close to call: {both}, which one run of each arm cannot tell from chance."
    if mixed <= real:
        return f"No gain: {both}."
    before, after = (lookup(results, "arms", arm, "cider_unseen") for arm in (REAL, MIXED))
    unseen = _gain(after, before)
    tail = ""
    if unseen is not None:
        tail = (
            f"; on combinations that no real pair shows it is {number(after)} against "
            f"{number(before)} ({_gain_text(unseen)})"
        )
    return f"Yes, a gain: {both}{tail}."


def _gain(after, before) -> float | None:
    """(after - before) / before, or None where that says nothing."""
    after, before = finite(after), finite(before)
    return None if after is None or before is None or before <= 0 else after / before - 1


def _gain_text(gain: float | None) -> str:
    return DASH if gain is None else signed(100 * gain, 1, PERCENT)


def _key_figures(results: Mapping) -> list[tuple[str, str, str, str]]:
    """Name, value, note and CSS class of each tile at the top."""

    def of(*path):
        return lookup(results, *path)

    gain = _gain(of("arms", MIXED, "cider"), of("arms", REAL, "cider"))
    unseen = _gain(of("arms", MIXED, "cider_unseen"), of("arms", REAL, "cider_unseen"))
    speed = _gain(of("steps_per_second", "embedding"), of("steps_per_second", "pixel"))
    ratio = DASH if speed is None else f"{number(1 + speed, 2)}×"
    generator, tokenizer = (of(part, "objects_right") for part in ("generator", "tokenizer"))
    return [
        ("CIDEr, real only", number(of("arms", REAL, "cider")), "real pairs alone", "arm0"),
        ("CIDEr, real + synthetic", number(of("arms", MIXED, "cider")), "same steps", "arm1"),
        ("Gain in CIDEr", _gain_text(gain), f"the paper: +17{PERCENT} (abstract, v1)", ""),
        ("Gain on unseen", _gain_text(unseen), "combinations no real pair shows", ""),
        ("Generator", percent(generator), "objects right in its pictures", ""),
        ("Tokenizer", percent(tokenizer), "objects right once reconstructed", ""),
        ("Embedding / pixel speed", ratio, "the paper: 1.25× (abstract)", ""),
        ("Time", duration(of("seconds")), "the whole demo", ""),
    ]


def _names(arms: Iterable[str]) -> list[tuple[int, str]]:
    arms = list(arms)
    return [(arm_colour(arm, arms), arm_name(arm)) for arm in arms]


def _verdict(name: str, counts: Any) -> tuple[float | None, str]:
    """Share and words of one kind of claim from (right, claimed); a share comes as (share, 1)."""
    right, claimed = (finite(c) for c in (counts or (None, None)))
    if right is None or claimed is None:
        return None, f"{name}: not read"
    if claimed <= 0:
        return None, f"{name}: none claimed"
    share = right / claimed
    if claimed > 1 and right == int(right):
        return share, f"{name}: {int(right)} of {int(claimed)} right"
    return share, f"{name}: {_right_or_wrong(share) or f'{percent(share)} right'}"


def _right_or_wrong(share: float) -> str:
    return "right" if share >= 1 else "wrong" if share <= 0 else ""


def _objects_words(share: Any) -> str:
    share = finite(share)
    if share is None:
        return "not scored"
    return (
        f"objects {word}"
        if (word := _right_or_wrong(share))
        else f"{percent(share)} of objects right"
    )


def _measured(results: Mapping, name: str) -> str:
    """ " by greedy decoding of 256 test pictures", of "curve" or "table"; "" where unknown."""
    by = lookup(results, "measured", name)
    if not by:
        return ""
    method = lookup(by, "method")
    if method == "beam":
        method = f"{number(lookup(by, 'num_beams'), 0)}-beam"
    return f" by {method} decoding of {number(lookup(by, 'pictures'), 0)} test pictures"


def _curves(results: Mapping, curves: Mapping) -> str | None:
    arms = ordered_arms(curves)
    baseline = curve_points(curves.get(REAL))
    chart = line_chart(
        [Line(curve_points(curves[arm]), arm_colour(arm, arms)) for arm in arms],
        (440, 270),
        x_title="training steps",
        y_title="CIDEr",
        from_zero=True,
        level=(baseline[-1][1], f"real only ends at {number(baseline[-1][1])}")
        if baseline
        else None,
        crossing=finite(lookup(results, "steps_to_baseline", "steps")),
    )
    return svg(chart, "CIDEr over training steps, one line an arm")


def _scores(results: Mapping, arms: list[str]) -> str | None:
    def of(tree: str, arm: str, key: str) -> float | None:
        return finite(lookup(results, tree, arm, key))

    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{arm_name(arm)} {number(of('arms', arm, key))}" for arm in arms)
        for name, key in _GROUPS
    )
    groups = {
        name: {
            arm_colour(arm, arms): (of("arms", arm, key), of("standard_errors", arm, key))
            for arm in arms
        }
        for name, key in _GROUPS
    }
    return svg(bar_chart(groups), f"CIDEr. {spoken}")


def _score_row(scored: Mapping, arms: list[str], name: str, key: str, is_share: bool) -> list[str]:
    cells = [(percent if is_share else number)(lookup(scored, arm, key), 1) for arm in arms]
    before, after = (finite(lookup(scored, arm, key)) for arm in (REAL, MIXED))
    if before is None or after is None:
        return [name, *cells, DASH]
    change = after - before
    return [name, *cells, signed(100 * change, 1, " pts") if is_share else signed(change)]


def _losses(losses: Mapping) -> Iterable[tuple[str, float | None, str | None]]:
    """Name, last value and chart of each model's loss."""
    for model, curve in losses.items():
        points = curve_points(curve)
        chart = line_chart([Line(thinned(points))], (190, 120))
        name = model.replace("_", " ")
        yield name, points[-1][1] if points else None, svg(chart, f"training loss of {name}")


def _flat(tree: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
