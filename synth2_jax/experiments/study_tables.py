"""The tables of a study and the lines below them; zero-shot scores come first.

`runs` and `summary` are parts of study.json, see `study`. A run's name is ARM/SEED, or
ARM/SEED/nNUMBER if it has another number of real pictures than the config.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from synth2_jax.experiments.arms import BOUND, MIXED, REAL, Arm
from synth2_jax.experiments.curves import steps_to_baseline
from synth2_jax.experiments.gains import PARTS
from synth2_jax.pages.intervals import drawn_over, factor_text, gain_text, share_text
from synth2_jax.pages.numbers import DASH, finite, lookup, number, percent
from synth2_jax.pages.study_page import mean_and_spread

Runs = Mapping[str, Any]
Summary = Mapping[str, Any]
Table = list[list[str]]  # the head first


def arms_table(
    runs: Runs, summary: Summary, arms: Mapping[str, Arm], seeds: Sequence[int]
) -> Table:
    """Mean and standard deviation over the seeds that are there, and gains over real only."""
    head = ["arm", "seeds", "zero-shot CIDEr", "zero-shot gain", "CIDEr", "gain", "CIDEr seen"]
    rows = [[*head, "BLEU-4", "objects right"]]
    at = main_number(runs)
    for name, arm in arms.items():
        found = {s: values(runs, name, s, seeds, at) for s in (*PARTS, "bleu4", "objects_right")}
        if not found["cider"]:
            continue
        gains = {
            part: "" if name == REAL else gain_text(gain_of(runs, summary, name, part, seeds, at))
            for part in PARTS
        }
        cells = [
            *(spread(found["cider_unseen"].values()), gains["cider_unseen"]),
            *(spread(found["cider"].values()), gains["cider"]),
            *(spread(found["cider_seen"].values()), spread(found["bleu4"].values())),
            f"{spread(found['objects_right'].values(), 100)} %",
        ]
        rows.append([arm.title or name, str(len(found["cider"])), *cells])
    return rows


def curve_table(
    runs: Runs, summary: Summary, arms: Mapping[str, Arm], seeds: Sequence[int]
) -> Table | None:
    """Every number of real pictures, of the arms that have several; None without such arms."""
    if len(numbers := numbers_of(runs, summary)) < 2:
        return None
    head = ["real pictures", "arm", "zero-shot CIDEr", "zero-shot gain", "CIDEr", "gain"]
    rows = [[*head, "real only needs, zero-shot", "real only needs", "real only needs, seen"]]
    of_arm = {
        name: [at for at in numbers.values() if values(runs, name, "cider", seeds, at)]
        for name in arms
    }
    for count, at in numbers.items():
        for name, arm in arms.items():
            if at not in of_arm[name] or len(of_arm[name]) < 2:
                continue
            found = {part: values(runs, name, part, seeds, at) for part in PARTS}
            cells = [number(count, 0), arm.title or name]
            for part in PARTS[:2]:
                gain = gain_of(runs, summary, name, part, seeds, at)
                cells += [spread(found[part].values()), "" if name == REAL else gain_text(gain)]
            needed = lookup(summary, "pairs_factor", f"{name}{at}")
            for part in PARTS:
                cells.append("" if name == REAL else factor_text(lookup(needed, part)))
            rows.append(cells)
    return rows if rows[1:] else None


def captions_table(runs: Runs, summary: Summary, seeds: Sequence[int]) -> Table | None:
    """The caption sets with their balance and what the arm on each scores; None without sets."""
    if not (sets := summary.get("captions")):
        return None
    head = ["captions", "number", "in the 5 largest clusters", "entropy, nats", "name unseen"]
    rows = [[*head, "zero-shot CIDEr", "zero-shot gain", "CIDEr", "gain"]]
    for name, one in sets.items():
        balance = [f"{number(100 * one['top5_share'])} %", number(one["entropy"], 2)]
        unseen = percent(one.get("unseen_share"), 1)  # older files lack it
        cells = [name, number(one["captions"], 0), *balance, unseen]
        for part in PARTS[:2]:
            found = values(runs, one["arm"], part, seeds, main_number(runs)) if one["arm"] else {}
            gain = gain_of(runs, summary, one["arm"], part, seeds, main_number(runs))
            cells += [spread(found.values()), gain_text(gain)] if found else [DASH, DASH]
        rows.append(cells)
    return rows


def footnote(
    runs: Runs, summary: Summary, made_with: Mapping[str, str], seeds: Sequence[int]
) -> str:
    """The generator, the share of the gap closed, steps and compute, and how it was made."""
    at = main_number(runs)
    lines = []
    if any(f"generator/{seed}{at}" in runs for seed in seeds):
        shares = []
        for name in ("objects", "sizes", "places"):
            found = values(runs, "generator", f"{name}_right", seeds, at).values()
            shares.append(f"{name}{' right' * (not shares)} {spread(found, 100)} %")
        lines.append(f"Generated pictures, read by the oracle: {', '.join(shares)}.")
    lines += _gap_line(runs, summary, seeds, at)
    pairs = [[runs.get(f"{arm}/{s}{at}") for arm in (REAL, MIXED)] for s in seeds]
    reached = [steps_to_baseline(*(run["curve"] for run in pair)) for pair in pairs if all(pair)]
    if reached:
        shares = [f"{r['share']:.0%}" if r else "never" for r in reached]
        lines.append(f"Real-only's last score is reached after {', '.join(shares)} of its steps.")
    speeds = {arm: values(runs, arm, "steps_per_second", seeds, at) for arm in (MIXED, "pixel")}
    if all(speeds.values()):
        embedding, pixel = (statistics.mean(found.values()) for found in speeds.values())
        lines.append(
            f"Steps a second: {number(embedding)} from embeddings, {number(pixel)} through pixels, "
            f"{embedding / pixel:.2f}x."
        )
    longer, steps = (values(runs, arm, "steps", seeds, at) for arm in ("real_longer", REAL))
    if longer and steps:
        factor = statistics.mean(longer.values()) / statistics.mean(steps.values())
        lines.append(
            f"Equal compute: {factor:.1f}x the steps, the FLOPs of generator and synthesis."
        )
    lines.append("Zero-shot: test pictures with a combination that no real pair shows.")
    if gains := summary.get("gains"):
        over = drawn_over(found for parts in gains.values() for found in parts.values())
        lines.append(f"In brackets: 95 % intervals, by a bootstrap over {over}.")
    count = at.removeprefix("/n") or summary.get("real_pictures")
    lines.append(
        f"Mean ± standard deviation over seeds; {f'{count} real pictures; ' * bool(count)}"
        f"jax {made_with['jax']} on {made_with['device']}, commit {made_with['commit']}."
    )
    return "\n".join(lines)


def _gap_line(runs: Runs, summary: Summary, seeds: Sequence[int], at: str) -> Iterator[str]:
    closed = summary.get("gap_closed")
    texts = []
    for part, name in (("cider_unseen", "zero-shot"), ("cider", "whole test set")):
        if closed:
            found = closed.get(part)
        else:
            means = [_mean(values(runs, arm, part, seeds, at)) for arm in (REAL, MIXED, BOUND)]
            real, both, bound = means
            defined = None not in means and bound != real
            found = {"value": (both - real) / (bound - real)} if defined else None
        if found:
            texts.append(f"{share_text(found)} {name}")
    if texts:
        yield f"Gap to the upper bound closed: {', '.join(texts)}."


def numbers_of(runs: Runs, summary: Summary) -> dict[int, str]:
    """{number of real pictures: the end of its runs' names}, ascending."""
    ends = {f"/n{name.partition('/n')[2]}" if "/n" in name else "" for name in runs}
    base = summary.get("real_pictures", 0)
    return dict(sorted((int(end[2:]) if end else base, end) for end in ends))


def main_number(runs: Runs) -> str:
    """The end of the names of the config's own number, or of the smallest one that is there."""
    ends = [name.partition("/n")[2] for name in runs]
    return "" if "" in ends or not ends else f"/n{min(map(int, ends))}"


def gain_of(
    runs: Runs, summary: Summary, arm: str, part: str, seeds: Sequence[int], at: str
) -> dict[str, Any] | None:
    """The gain of an arm over real only, of the same seeds; None without either."""
    if found := lookup(summary, "gains", f"{arm}{at}", part):
        return found
    real, own = (values(runs, name, part, seeds, at) for name in (REAL, arm))
    common = sorted(real.keys() & own.keys())
    before, after = (_mean({s: found[s] for s in common}) for found in (real, own))
    return {"value": after / before - 1} if before and after is not None else None


def values(
    runs: Runs, arm: str, score: str, seeds: Sequence[int], at: str = ""
) -> dict[int, float]:
    """{seed: score} of one number of real pictures.

    Without those that counted nothing: NaN, or None once they were in a file.
    """
    found = {s: finite(lookup(runs, f"{arm}/{s}{at}", score)) for s in seeds}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(found: Mapping[int, float]) -> float | None:
    return statistics.mean(found.values()) if found else None


def spread(found: Iterable, scale: float = 1, digits: int = 1) -> str:
    """(1, None, 3) -> "2.0 ± 1.4", mean and standard deviation; one value has no deviation."""
    known = [f"{scale * x:.{digits}f}" for x in mean_and_spread(found) if x is not None]
    return " ± ".join(known) or DASH
