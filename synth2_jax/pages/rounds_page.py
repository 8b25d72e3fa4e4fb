"""The page of `synth2 rounds`: scores, faithfulness, diversity and held-out losses by round."""

from collections.abc import Mapping, Sequence
from typing import Any

from synth2_jax.pages.charts import MARKER_SIGNS, Line, line_chart, svg
from synth2_jax.pages.document import render
from synth2_jax.pages.intervals import drawn_over, gain_text
from synth2_jax.pages.numbers import finite, lookup, number, percent

MODEL_NAMES = {"generator": "generator", "vlm": "VLM"}
_SCORES = {
    "zero-shot CIDEr": ("scores", "cider_unseen"),
    "CIDEr": ("scores", "cider"),
    "CIDEr seen": ("scores", "cider_seen"),
}
# {title: (path in a run, how it is written)}
_COLUMNS = {
    **{title: (path, number) for title, path in _SCORES.items()},
    "objects right in captions": (("scores", "objects_right"), percent),
    "objects right in pictures": (("faithful", "synthetic"), percent),
    "... of kept pairs": (("faithful", "kept"), percent),
    "fit, nats": (("fit",), lambda value: number(value, 2)),
    "pairs made": (("pairs", "synthetic"), lambda value: number(value, 0)),
    "kept": (("pairs", "kept"), lambda value: number(value, 0)),
    "real share": (("real_share",), percent),
    "caption entropy": (("captions", "entropy"), lambda value: number(value, 2)),
    "captions alike": (("captions", "self_similarity"), lambda value: number(value, 3)),
    "pictures alike": (("token_agreement",), lambda value: number(value, 3)),
    "held-out loss, VLM": (("held_out", "vlm"), lambda value: number(value, 3)),
    "held-out loss, generator": (("held_out", "generator"), lambda value: number(value, 3)),
}


def render_rounds(results: Mapping[str, Any]) -> str:
    """Writes the whole page, one HTML document, of what rounds.json holds."""
    runs = results["runs"]
    rows = [
        [title(name), *(write(lookup(run, *path)) for path, write in _COLUMNS.values())]
        for name, run in runs.items()
    ]
    scores = [Line(_by_round(runs, *path), colour) for colour, path in enumerate(_SCORES.values())]
    losses = [Line(_by_round(runs, "held_out", m), i) for i, m in enumerate(MODEL_NAMES)]
    axis = {"x_title": "round", "whole": True}
    score_chart = line_chart(scores, (440, 300), **axis, y_title="CIDEr", from_zero=True)
    loss_chart = line_chart(losses, (440, 300), **axis, y_title="nats a token")
    return render(
        "rounds.html.j2",
        answer=answer(results),
        stop=stop(results),
        head=["round", *_COLUMNS],
        rows=rows,
        signs=MARKER_SIGNS,
        made_with=results["made_with"],
        score_names=[(name, i, name) for i, name in enumerate(_SCORES)],
        loss_names=[(name, i, name) for i, name in enumerate(MODEL_NAMES.values())],
        scores=svg(score_chart, "CIDEr after each round"),
        losses=svg(loss_chart, "loss on held-out real pairs after each round"),
    )


def title(name: str) -> str:
    """The name of a run on the page: "round 2", "one long round of 3"."""
    kind, _, count = name.partition("_")
    if kind == "long":
        return f"one long round (steps of {count})"
    return "real pairs alone" if name == "round_0" else f"round {count}"


def answer(results: Mapping[str, Any]) -> str:
    """Compares the last round with the first and with one long round, in a sentence each."""
    runs = results["runs"]
    rounds = [name for name in runs if name.startswith("round_")]
    last = rounds[-1]
    if len(rounds) < 3:
        return "No answer yet: there is nothing to compare before the second round."
    texts = [f"After {title(last)}: {_against(results, last, 'round_1')}."]
    for name in runs:
        if name.startswith("long_"):
            texts.append(f"At the same number of steps and pairs, {_against(results, last, name)}.")
    estimates = [found for gains in results["gains"].values() for found in gains.values()]
    texts.append(f"In brackets: the 95 % interval over {drawn_over(estimates)}.")
    return " ".join(texts)


def stop(results: Mapping[str, Any]) -> str | None:
    """Why the rounds ended early, or None."""
    if not (stopped := results["stopped"]):
        return None
    last = [name for name in results["runs"] if name.startswith("round_")][-1]
    return (
        f"Stopped after {title(last)}: the loss of the {MODEL_NAMES[stopped['model']]} on held-out "
        f"real pairs rose to {number(stopped['loss'], 3)} (lowest before: "
        f"{number(stopped['lowest'], 3)}), more than rounds.tolerance allows."
    )


def summary(results: Mapping[str, Any]) -> str:
    """The results in a few lines for a terminal."""
    lines = []
    for name, run in results["runs"].items():
        unseen, cider = (number(lookup(run, "scores", key)) for key in ("cider_unseen", "cider"))
        right = percent(lookup(run, "faithful", "synthetic"))
        lines.append(
            f"{title(name)}: zero-shot CIDEr {unseen}, CIDEr {cider}, pictures right {right}"
        )
    return "\n".join([*lines, answer(results), *filter(None, [stop(results)])])


def _against(results: Mapping[str, Any], last: str, other: str) -> str:
    parts = []
    for name, path in list(_SCORES.items())[:2]:
        after, before = (lookup(results["runs"][run], *path) for run in (last, other))
        gained = gain_text(lookup(results, "gains", other, path[-1]))
        parts.append(f"{name} is {number(after)}, {title(other)} has {number(before)} ({gained})")
    return "; ".join(parts)


def _by_round(runs: Mapping[str, Any], *path: str) -> Sequence[tuple[float, float]]:
    points = []
    for name, run in runs.items():
        value = finite(lookup(run, *path))
        if name.startswith("round_") and value is not None:
            points.append((int(name.partition("_")[2]), value))
    return points
