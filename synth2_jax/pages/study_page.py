"""The page of a study: the arms' scores and learning curves, with their spread over the seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from synth2_jax.pages.arms import MIXED, REAL, arm_colour, arm_name, ordered_arms
from synth2_jax.pages.charts import MARKER_SIGNS, Line, bar_chart, curve_points, line_chart, svg
from synth2_jax.pages.document import render
from synth2_jax.pages.numbers import PERCENT, finite, number, signed

_GROUPS = (("all pictures", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))


def render_study(runs: Mapping[str, Mapping], table: Sequence[Sequence[str]], footnote: str) -> str:
    """Writes the whole page.

    Args:
      runs: "runs" of study.json: {"arm/seed": {score: value, "curve": [[step, CIDEr], ...]}}.
      table: cells of the study's table, its head first.
      footnote: the lines below it.

    Returns:
      One HTML document.
    """
    by_arm: dict[str, dict[str, Mapping]] = {}
    for name, run in runs.items():
        if "cider" in run:  # not the generator's scores
            arm, seed = name.split("/")
            by_arm.setdefault(arm, {})[seed] = run
    arms = ordered_arms(by_arm)
    colours = {arm: arm_colour(arm, arms) for arm in arms}
    return render(
        "study.html.j2",
        answer=_answer(by_arm),
        head=table[0],
        rows=table[1:],
        footnote=footnote,
        signs=MARKER_SIGNS,
        names=[(colour, arm_name(arm)) for arm, colour in colours.items()],
        scores=svg(
            bar_chart(
                {
                    title: {
                        colour: mean_and_spread(run.get(key) for run in by_arm[arm].values())
                        for arm, colour in colours.items()
                    }
                    for title, key in _GROUPS
                }
            ),
            "CIDEr of each arm on all, seen and never seen combinations",
        ),
        curves=svg(
            line_chart(
                [mean_curve(by_arm[arm].values(), colour) for arm, colour in colours.items()],
                (440, 300),
                x_title="training steps",
                y_title="CIDEr",
                from_zero=True,
            ),
            "CIDEr over training steps, one line an arm",
        ),
    )


def _answer(by_arm: Mapping[str, Mapping[str, Mapping]]) -> str:
    real, mixed = by_arm.get(REAL, {}), by_arm.get(MIXED, {})
    seeds = [seed for seed in real if seed in mixed]
    if not seeds:
        return "No answer yet: the two arms that are compared are not both there."
    before, after = ([arm[seed]["cider"] for seed in seeds] for arm in (real, mixed))
    gains = [100 * (b / a - 1) for a, b in zip(before, after, strict=True)]
    gain, spread = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
    verdict = "Too close to call"
    if abs(gain) > spread:
        verdict = "Yes, synthetic pairs help" if gain > 0 else "No"
    return (
        f"{verdict}: CIDEr is {number(statistics.mean(after))} with real + synthetic pairs and "
        f"{number(statistics.mean(before))} with real pairs only, a gain of "
        f"{signed(gain, 1, PERCENT)} ± {number(spread)} over {len(seeds)} seeds."
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
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    found = [mean_and_spread(curve[step] for curve in curves) for step in steps]
    points = [(step, mean) for step, (mean, _) in zip(steps, found, strict=True)]
    return Line(points, colour, [spread or 0.0 for _, spread in found])
