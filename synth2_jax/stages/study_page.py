"""The page of a study: the arms' scores and learning curves as pictures, beside the table."""

import statistics
from collections.abc import Mapping, Sequence

from synth2_jax.stages.report_charts import bar_table, legend, line_chart
from synth2_jax.stages.report_html import (
    MIXED,
    PERCENT,
    REAL,
    arm_colour,
    arm_name,
    escaped,
    figure,
    number,
    ordered_arms,
    signed,
)
from synth2_jax.stages.report_style import STYLE

_GROUPS = (("all pictures", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))


def render_study(runs: Mapping[str, Mapping], table: str, footnote: str) -> str:
    """Writes the whole page.

    Args:
      runs: "runs" of study.json: {"arm/seed": {score: value, "curve": [[step, CIDEr], ...]}}.
      table: the study's table in Markdown.
      footnote: the lines below it.

    Returns:
      One HTML document.
    """
    by_arm: dict[str, list[Mapping]] = {}
    for name, run in runs.items():
        if "cider" in run:  # not the generator's scores
            by_arm.setdefault(name.split("/")[0], []).append(run)
    arms = ordered_arms(by_arm)
    notes = "".join(f'<p class="fine">{escaped(line)}</p>' for line in footnote.splitlines())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Synth² on Scenes: a study of the arms</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">synth2_jax · method of Synth² (arXiv 2403.07750) · built-in data set Scenes</p>
<h1>Which part of a synthetic pair helps?</h1>
<p class="answer">{_answer(by_arm)}</p>
</header>
<main>
<section id="arms"><h2>The arms</h2>
{_html_table(table)}{notes}</section>
<section id="scores"><h2>Seen and unseen combinations</h2>
{_bars(by_arm, arms)}</section>
<section id="curves"><h2>Learning curves</h2>
{_curves(by_arm, arms)}</section>
</main>
<footer>This page needs no network.</footer>
</body>
</html>
"""


def _answer(by_arm: Mapping[str, Sequence[Mapping]]) -> str:
    if REAL not in by_arm or MIXED not in by_arm:
        return "No answer yet: the two arms that are compared are not both there."
    real, mixed = ([run["cider"] for run in by_arm[arm]] for arm in (REAL, MIXED))
    gain = statistics.mean(mixed) / statistics.mean(real) - 1
    # One spread each: less apart than that, a few seeds cannot tell the arms from chance.
    spread = sum(statistics.stdev(values) for values in (real, mixed) if len(values) > 1)
    difference = statistics.mean(mixed) - statistics.mean(real)
    verdict = "Too close to call"
    if abs(difference) > spread:
        verdict = "Yes" if difference > 0 else "No"
    return (
        f"{verdict}: CIDEr is {number(statistics.mean(mixed))} with real + synthetic pairs and "
        f"{number(statistics.mean(real))} with real pairs only ({signed(100 * gain, 1, PERCENT)}), "
        f"means of {len(mixed)} and {len(real)} seeds."
    )


def _html_table(markdown: str) -> str:
    """The cells of a Markdown table; its second line is the rule under the heads."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in markdown.strip().splitlines()]
    heads = f'<th scope="col">{escaped(head[0])}</th>' + "".join(
        f'<th scope="col" class="n">{escaped(cell)}</th>' for cell in head[1:]
    )
    body = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f'<td class="n">{escaped(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _bars(by_arm: Mapping[str, Sequence[Mapping]], arms: Sequence[str]) -> str:
    charts = []
    for title, key in _GROUPS:
        means = {arm: statistics.mean(run[key] for run in by_arm[arm]) for arm in arms}
        rows = [(arm_name(arm), mean, number(mean)) for arm, mean in means.items()]
        charts.append(f"<div><p><b>{title}</b></p>{bar_table(rows)}</div>")
    caption = (
        "CIDEr, mean of the seeds, by whether real pairs show all of a test picture's combinations "
        "of colour and shape (seen) or not."
    )
    return figure("".join(charts), caption)


def _curves(by_arm: Mapping[str, Sequence[Mapping]], arms: Sequence[str]) -> str:
    lines = [(arm_colour(arm, arms), _mean_curve(by_arm[arm])) for arm in arms]
    chart = line_chart(
        lines,
        "CIDEr over training steps, one line an arm",
        (440, 300),
        x_title="training steps",
        y_title="CIDEr",
        from_zero=True,
    )
    return figure(legend(arms) + chart, "CIDEr while training, mean of the seeds.")


def _mean_curve(runs: Sequence[Mapping]) -> list[tuple[float, float]]:
    """Mean over runs at the steps that all of them have."""
    curves = [dict(map(tuple, run.get("curve") or ())) for run in runs]
    common = set.intersection(*map(set, curves)) if curves else set()
    return [(step, statistics.mean(curve[step] for curve in curves)) for step in sorted(common)]
