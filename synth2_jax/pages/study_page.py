"""The page of a study: the arms' scores and learning curves as pictures, beside the table."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from synth2_jax.pages.charts import arm_legend, bar_table, line_chart
from synth2_jax.pages.html import (
    KICKER,
    MIXED,
    PERCENT,
    REAL,
    arm_colour,
    arm_name,
    document,
    escaped,
    figure,
    number,
    ordered_arms,
    signed,
)

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
    by_arm: dict[str, dict[str, Mapping]] = {}
    for name, run in runs.items():
        if "cider" in run:  # not the generator's scores
            arm, seed = name.split("/")
            by_arm.setdefault(arm, {})[seed] = run
    arms = ordered_arms(by_arm)
    notes = "".join(f'<p class="fine">{escaped(line)}</p>' for line in footnote.splitlines())
    body = f"""<header>
{KICKER}
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
<footer>This page needs no network.</footer>"""
    return document("Synth² on Scenes: a study of the arms", body)


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


def _bars(by_arm: Mapping[str, Mapping[str, Mapping]], arms: Sequence[str]) -> str:
    charts = []
    for title, key in _GROUPS:
        means = {arm: statistics.mean(run[key] for run in by_arm[arm].values()) for arm in arms}
        rows = [(arm_name(arm), mean, number(mean)) for arm, mean in means.items()]
        charts.append(f"<div><p><b>{title}</b></p>{bar_table(rows)}</div>")
    caption = (
        "CIDEr, mean of the seeds, by whether real pairs show all of a test picture's combinations "
        "of colour and shape (seen) or not."
    )
    return figure("".join(charts), caption)


def _curves(by_arm: Mapping[str, Mapping[str, Mapping]], arms: Sequence[str]) -> str:
    lines = [(arm_colour(arm, arms), _mean_curve(by_arm[arm].values())) for arm in arms]
    chart = line_chart(
        lines,
        "CIDEr over training steps, one line an arm",
        (440, 300),
        x_title="training steps",
        y_title="CIDEr",
        from_zero=True,
    )
    return figure(arm_legend(arms) + chart, "CIDEr while training, mean of the seeds.")


def _mean_curve(runs: Iterable[Mapping]) -> list[tuple[float, float]]:
    """Mean over runs at the steps that all of them have."""
    curves = [dict(map(tuple, run.get("curve") or ())) for run in runs]
    common = set.intersection(*map(set, curves)) if curves else set()
    return [(step, statistics.mean(curve[step] for curve in curves)) for step in sorted(common)]
