"""The page of a study: gains with intervals, data efficiency, caption sets and learning curves."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from synth2_jax.pages.arms import MIXED, REAL, named_arms, ordered_arms
from synth2_jax.pages.charts import (
    COLOURS,
    MARKER_SIGNS,
    Line,
    curve_points,
    interval_chart,
    line_chart,
    svg,
)
from synth2_jax.pages.document import render
from synth2_jax.pages.intervals import answer, drawn_over
from synth2_jax.pages.numbers import finite, gain, lookup

# Score and title of each chart, zero-shot first.
_PARTS = (("cider_unseen", "never seen (zero-shot)"), ("cider", "all test pictures"))

Table = Sequence[Sequence[str]]
Runs = Mapping[int, Mapping]  # by seed


def render_study(
    runs: Mapping[str, Mapping], summary: Mapping, tables: Mapping[str, Table | None], footnote: str
) -> str:
    """Writes the whole page, one HTML document.

    `runs` and `summary` are those of study.json; `tables` has the cells of the tables "arms",
    "curve" and "captions", each with its head first, and `footnote` the lines below the first.
    """
    by_number: dict[str, dict[str, dict[int, Mapping]]] = {}  # by the end of names, arm and seed
    for name, run in runs.items():
        if "cider" in run:  # not the generator's scores
            arm, seed, *number = name.split("/")
            there = by_number.setdefault("".join(f"/{n}" for n in number), {})
            there.setdefault(arm, {})[int(seed)] = run
    end = "" if "" in by_number else min(by_number, default="", key=lambda end: int(end[2:]))
    by_arm = by_number.get(end, {})
    arms = named_arms(ordered_arms(by_arm))
    gains = {arm: lookup(summary, "gains", f"{arm}{end}") for arm in by_arm}
    drawn = arms[: len(COLOURS)]  # more lines have no colours of their own
    lines = [mean_curve(by_arm[arm].values(), colour) for arm, colour, _ in drawn]
    titles = {"x_title": "training steps", "y_title": "CIDEr"}
    curves = line_chart(lines, (440, 300), from_zero=True, **titles)
    return render(
        "study.html.j2",
        answer=_answer(by_arm, gains.get(MIXED)),
        tables=tables,
        footnote=footnote,
        signs=MARKER_SIGNS,
        names=drawn,
        compared=named_arms([REAL, MIXED]),
        drawn_over=drawn_over(
            found for parts in gains.values() if parts for found in parts.values()
        ),
        gains=svg(_gains(by_arm, gains, arms), "Gain in CIDEr of each arm over real pairs only"),
        efficiency=[
            svg(
                _efficiency(by_number, summary.get("real_pictures"), score, title),
                f"CIDEr over the number of real pictures, {title}",
            )
            for score, title in _PARTS
        ],
        curves=svg(curves, "CIDEr over training steps, one line an arm"),
    )


def _answer(by_arm: Mapping[str, Runs], gains: Mapping | None) -> str:
    means = _means(by_arm, (REAL, MIXED), [score for score, _ in _PARTS])
    return answer(means[REAL], means[MIXED], gains)


def _means(
    by_arm: Mapping[str, Runs], arms: Sequence[str], scores: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Mean of each score over the seeds that all of these arms have."""
    common = set.intersection(*(set(by_arm.get(arm, {})) for arm in arms))
    return {
        arm: {
            score: mean_and_spread(by_arm[arm][seed].get(score) for seed in common)[0]
            for score in scores
            if common
        }
        for arm in arms
    }


def _gains(
    by_arm: Mapping[str, Runs], gains: Mapping[str, Mapping | None], arms: Sequence
) -> object:
    """The chart of each arm's gain over real only; without intervals its points alone."""
    others = [(arm, name) for arm, _, name in arms if arm != REAL]
    panels = {}
    for score, title in _PARTS:
        panels[title] = []
        for arm, _ in others:
            found = lookup(gains.get(arm), score)
            if not found:
                means = _means(by_arm, (REAL, arm), [score])
                found = {"value": gain(means[arm].get(score), means[REAL].get(score))}
            bounds = (finite(found.get(key)) for key in ("value", "low", "high"))
            panels[title].append(tuple(x if x is None else 100 * x for x in bounds))
    return interval_chart([name for _, name in others], panels, unit=" %")


def _efficiency(
    by_number: Mapping[str, Mapping[str, Runs]], own: int | None, score: str, title: str
) -> object:
    """The chart of both arms over the number of real pictures; None for one number alone."""
    numbers = {int(end[2:]) if end else own: arms for end, arms in by_number.items()}
    if len(numbers) < 2 or None in numbers:
        return None
    lines = []
    for arm, colour, _ in named_arms([REAL, MIXED]):
        found = {
            number: mean_and_spread(run.get(score) for run in numbers[number].get(arm, {}).values())
            for number in sorted(numbers)
        }
        found = {number: both for number, both in found.items() if both[0] is not None}
        points = [(number, mean) for number, (mean, _) in found.items()]
        lines.append(Line(points, colour, [spread or 0.0 for _, spread in found.values()]))
    titles = {"x_title": "real pictures", "y_title": f"CIDEr, {title}"}
    return line_chart(lines, (440, 300), log_ticks=sorted(numbers), **titles)


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
