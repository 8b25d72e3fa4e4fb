"""The page of a study: the arms' scores and learning curves, with their spread over the seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from synth2_jax.pages.arms import MIXED, REAL, named_arms, ordered_arms
from synth2_jax.pages.charts import MARKER_SIGNS, Line, bar_chart, curve_points, line_chart, svg
from synth2_jax.pages.document import render
from synth2_jax.pages.numbers import finite, gain, number, signed_percent

_GROUPS = (("all pictures", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))


def render_study(runs: Mapping[str, Mapping], table: Sequence[Sequence[str]], footnote: str) -> str:
    """Writes the whole page, one HTML document.

    `runs` is that of study.json, {"arm/seed": {score: value, "curve": [[step, CIDEr], ...]}};
    `table` has the cells of the study's table, its head first, and `footnote` the lines below it.
    """
    by_arm: dict[str, dict[str, Mapping]] = {}
    for name, run in runs.items():
        if "cider" in run and "/n" not in name:  # not the generator's scores
            arm, seed = name.split("/")
            by_arm.setdefault(arm, {})[seed] = run
    arms = named_arms(ordered_arms(by_arm))
    scores = {
        title: {
            colour: mean_and_spread(run.get(key) for run in by_arm[arm].values())
            for arm, colour, _ in arms
        }
        for title, key in _GROUPS
    }
    lines = [mean_curve(by_arm[arm].values(), colour) for arm, colour, _ in arms]
    titles = {"x_title": "training steps", "y_title": "CIDEr"}
    curves = line_chart(lines, (440, 300), from_zero=True, **titles)
    return render(
        "study.html.j2",
        answer=_answer(by_arm),
        head=table[0],
        rows=table[1:],
        footnote=footnote,
        signs=MARKER_SIGNS,
        names=arms,
        scores=svg(bar_chart(scores), "CIDEr of each arm on all, seen and never seen combinations"),
        curves=svg(curves, "CIDEr over training steps, one line an arm"),
    )


def _answer(by_arm: Mapping[str, Mapping[str, Mapping]]) -> str:
    real, mixed = by_arm.get(REAL, {}), by_arm.get(MIXED, {})
    pairs = [(mixed[seed]["cider"], real[seed]["cider"]) for seed in real if seed in mixed]
    pairs = [pair for pair in pairs if gain(*pair) is not None]
    if not pairs:
        return "No answer yet: the two arms that are compared are not both there."
    after, before = map(statistics.mean, zip(*pairs, strict=True))
    mean, spread = mean_and_spread(gain(*pair) for pair in pairs)
    verdict = "Too close to call"
    if abs(mean) > (spread or 0):
        verdict = "Yes, synthetic pairs help" if mean > 0 else "No"
    return (
        f"{verdict}: CIDEr is {number(after)} with real + synthetic pairs and {number(before)} "
        f"with real pairs only, a gain of {signed_percent(mean)} ± {number(100 * (spread or 0))} "
        f"over {len(pairs)} seeds."
    )


def mean_and_spread(values: Iterable) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the values that are numbers; one value has no spread."""
    found = [value for value in map(finite, values) if value is not None]
    return (
        statistics.mean(found) if found else None,
        statistics.stdev(found) if len(found) > 1 else None,
    )


def mean_curve(runs: Iterable[Mapping], colour: int) -> Line:
    """Mean and standard deviation over runs at the steps that all of them have."""
    curves = [dict(curve_points(run.get("curve"))) for run in runs]
    steps = sorted(set.intersection(*map(set, curves)))
    found = [mean_and_spread(curve[step] for curve in curves) for step in steps]
    points = [(step, mean) for step, (mean, _) in zip(steps, found, strict=True)]
    return Line(points, colour, [spread or 0.0 for _, spread in found])
