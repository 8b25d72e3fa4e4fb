"""The report of a demo as one HTML file; its text is in templates/report.html.j2."""

import functools
from collections.abc import Iterable, Mapping

from synth2_jax.pages.arms import MIXED, REAL, named_arms, ordered_arms
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
from synth2_jax.pages.intervals import answer
from synth2_jax.pages.numbers import finite, flat, gain, lookup, number

# Anchor, heading, and keys of results or material: the section needs one of them.
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
_GROUPS = (("all", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))


def render_page(results: Mapping, material: Mapping) -> str:
    """Writes the whole page, one HTML document; a section without data is left out.

    `results` and `material` are what files of these names hold, see `report_files`; any key may be
    absent or None. CIDEr, BLEU and ROUGE-L are on the scale papers print (times 100), shares and
    `objects_right` are in [0, 1], times are in seconds, pictures are data URIs.

    Raises:
      ValueError: a picture that is not a data URI of an image.
    """
    scored, curves = results.get("arms") or {}, material.get("curves") or {}
    captions = [item.get("captions") for item in material.get("test") or ()]
    compared, trained = ordered_arms((REAL, MIXED), scored), ordered_arms(curves)
    return render(
        "report.html.j2",
        results=results,
        material=material,
        gain=gain,
        answer=_answer(results),
        gain_of=functools.partial(_gain, results),
        signs=MARKER_SIGNS,
        sections={
            anchor: title
            for anchor, title, keys in SECTIONS
            if not keys or any(results.get(key) or material.get(key) for key in keys)
        },
        captioned=named_arms(ordered_arms(scored, *captions)),
        compared=named_arms(compared),
        trained=named_arms(trained),
        curves=_curves(results, curves, trained),
        scores=_scores(results, compared),
        losses=list(_losses(material.get("losses") or {})),
        versions=list(flat(results.get("versions") or {})),
        config=list(flat(results.get("config") or {})),
    )


def _answer(results: Mapping) -> str:
    if results.get("tiny"):
        return "Plumbing only; the numbers mean nothing."
    real, mixed = (lookup(results, "arms", arm) or {} for arm in (REAL, MIXED))
    return answer(real, mixed, results.get("gains"))


def _gain(results: Mapping, name: str) -> Mapping:
    """The gain in a score, with its interval if the results have it."""
    scores = (lookup(results, "arms", arm, name) for arm in (MIXED, REAL))
    return lookup(results, "gains", name) or {"value": gain(*scores)}


def _curves(results: Mapping, curves: Mapping, arms: list[str]) -> str | None:
    level, baseline = None, curve_points(curves.get(REAL))
    if baseline:
        level = baseline[-1][1], f"real only ends at {number(baseline[-1][1])}"
    chart = line_chart(
        [Line(curve_points(curves[arm]), colour) for arm, colour, _ in named_arms(arms)],
        (440, 270),
        x_title="training steps",
        y_title="CIDEr",
        from_zero=True,
        level=level,
        crossing=finite(lookup(results, "steps_to_baseline", "steps")),
    )
    return svg(chart, "CIDEr over training steps, one line an arm")


def _scores(results: Mapping, arms: list[str]) -> str | None:
    groups, spoken = {}, []
    for group, key in _GROUPS:
        values = {arm: finite(lookup(results, "arms", arm, key)) for arm in arms}
        groups[group] = {
            colour: (values[arm], finite(lookup(results, "standard_errors", arm, key)))
            for arm, colour, _ in named_arms(arms)
        }
        said = (f"{name} {number(values[arm])}" for arm, _, name in named_arms(arms))
        spoken.append(f"{group}: {', '.join(said)}")
    return svg(bar_chart(groups), f"CIDEr. {'; '.join(spoken)}")


def _losses(losses: Mapping) -> Iterable[tuple[str, float | None, str | None]]:
    """Name, last value and chart of each model's loss."""
    for model, curve in losses.items():
        points = curve_points(curve)
        chart = line_chart([Line(thinned(points))], (190, 120))
        name = model.replace("_", " ")
        yield name, points[-1][1] if points else None, svg(chart, f"training loss of {name}")
