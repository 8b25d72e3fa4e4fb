"""How fast the sampler can be at what quality, by the oracle of Scenes.

    python benchmarks/quality_speed.py --generator=workdir/demo/generator

A generator that `launch/demo.sh` trained makes pictures of captions that it never saw; the oracle
counts the objects in them that are what the caption says. An image of Scenes has 16 tokens: 16
steps, one token each, stand for the 24 of the paper and are the reference.

Settings are chosen one knob after another, on captions of their own and with one seed: once for few
steps, and once for the reference, which else would be beaten for want of tuning. The default ones
and the chosen ones are then compared on other captions with several seeds, at every number of
steps, and the chosen ones with guidance in a part of the steps. Every setting gets the same
captions and keys, batch by batch in turn, and is timed in these very calls.

Writes benchmarks/results/DEVICE/quality_speed.json and docs/quality_speed.svg.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.charts import Line, Point, chart  # noqa: E402
from benchmarks.result import Figure, run_as_command, write_result  # noqa: E402
from benchmarks.scenes_judge import Judge, Setting  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.config import dtype as dtype_of  # noqa: E402
from synth2_jax.domains.scenes import dataset  # noqa: E402
from synth2_jax.files import write_text  # noqa: E402
from synth2_jax.loading.run import Trained  # noqa: E402
from synth2_jax.loading.trained import load_trained  # noqa: E402
from synth2_jax.models.mask_schedule import masked_counts  # noqa: E402
from synth2_jax.sampling.guidance import GuidanceConfig  # noqa: E402
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig  # noqa: E402

# What is tried of each knob beside what is set, in this order: what matters most comes first. A
# sample temperature of 0 is left out: pictures of one caption would be alike.
KNOBS = {
    "sampler.sample_temperature": (0.1, 0.25, 1.0),
    "guidance.scale": (0.0, 0.75, 3.0),
    "guidance.ramp": ("constant",),
    "sampler.choice_temperature": (0.0, 2.0, 4.5),
    "sampler.schedule": ("linear", "square"),
    "sampler.order": ("halton", "random"),
}
EVERY_STEP = (0.0, 1.0)
INTERVALS = ((0.25, 1.0), (0.5, 1.0), (0.0, 0.5), (0.0, 0.0))
ASKED_STEPS = {4, 6, 8}  # whose score is a figure


def choose(
    judge: Judge,
    start: Setting,
    steps: Sequence[int],
    captions: Sequence[str],
    knobs: Mapping[str, Sequence[Any]] = KNOBS,
) -> tuple[Setting, list[dict[str, Any]]]:
    """The best setting found by changing one knob after another, and everything tried.

    A setting is as good as its mean over all the numbers of steps, with one seed: one choice for
    all of them, since a winner at each would be the luckiest rather than the best.
    """
    tried: list[dict[str, Any]] = []

    def objects_right(setting: Setting, knob: str, value: Any) -> float:
        rows = judge.score([setting.with_steps(n) for n in steps], captions, [0])
        mean = statistics.fmean(row["objects_right"] for row in rows)
        tried.append({"knob": knob, "value": value, "objects_right": mean})
        print(f"tried {knob or 'start'} {value}: {mean:.1%}", flush=True)
        return mean

    best, best_score = start, objects_right(start, "", "")
    for knob, values in knobs.items():
        before = best
        for value in values:
            if value == before.get(knob) or not _matters(before, knob):
                continue
            candidate = before.changed(knob, value)
            score = objects_right(candidate, knob, value)
            if score > best_score:
                best, best_score = candidate, score
    return best, tried


def _matters(setting: Setting, knob: str) -> bool:
    if knob == "guidance.ramp":
        return setting.guidance.scale != 0
    return knob != "sampler.choice_temperature" or setting.sampler.order == "confidence"


def measure(
    trained: Trained,
    default: Setting,
    steps: Sequence[int],
    *,
    num_captions: int,
    num_search_captions: int,
    num_seeds: int,
    batch_size: int,
    search_steps: Sequence[int],
    interval_steps: int,
    knobs: Mapping[str, Sequence[Any]] = KNOBS,
    intervals: Sequence[tuple[float, float]] = INTERVALS,
) -> dict[str, Any]:
    """Chooses settings on some captions and compares them with the default on others."""
    for number in (*steps, *search_steps, interval_steps):
        masked_counts(default.sampler.schedule, number, trained.objective.task.tokenizer.num_tokens)
    judge = Judge(trained, batch_size)
    # What lies behind the captions that are reported on is drawn as they are.
    examples = dataset.examples("test", num_captions + num_search_captions)
    captions = [example.captions[0] for example in examples]
    search_captions = captions[num_captions:]
    chosen, tried = choose(judge, default, search_steps, search_captions, knobs)
    reference, tried_for_reference = choose(judge, default, [max(steps)], search_captions, knobs)
    named = [
        (line, setting.with_steps(number))
        for line, setting in (("default", default), ("chosen", chosen))
        for number in steps
    ]
    named.append(("reference", reference.with_steps(max(steps))))
    in_intervals = chosen.with_steps(interval_steps)
    if not chosen.guidance.scale:
        in_intervals = dataclasses.replace(in_intervals, guidance=default.guidance)
    named += [
        ("interval", in_intervals.changed("guidance.interval", interval))
        for interval in (EVERY_STEP, *intervals)
    ]
    rows = judge.score(
        [setting for _, setting in named], captions[:num_captions], range(1, num_seeds + 1)
    )
    return {
        "generator": trained.provenance("generator"),
        "batch_size": batch_size,
        "num_captions": num_captions,
        "num_seeds": num_seeds,
        "search": {
            "num_captions": num_search_captions,
            "steps": list(search_steps),
            "chosen": tried,
            "reference": tried_for_reference,
        },
        "default": dataclasses.asdict(default),
        "chosen": dataclasses.asdict(chosen),
        "rows": [{"line": name, **row} for (name, _), row in zip(named, rows, strict=True)],
    }


def kept(row: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float]:
    """(share of the reference's objects right, its standard error over the seeds, in pairs)."""
    shares = [
        mine / other
        for mine, other in zip(
            row["objects_right_by_seed"], reference["objects_right_by_seed"], strict=True
        )
    ]
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0.0
    return row["objects_right"] / reference["objects_right"], error


def figures_of(result: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Figure]:
    """Score kept at fewer steps and in intervals of guidance; pairs/s beside the device's limit."""
    default, chosen = (
        {row["sampler"]["num_steps"]: row for row in result["rows"] if row["line"] == line}
        for line in ("default", "chosen")
    )
    last = max(chosen)
    at_last = [row for row in result["rows"] if row["sampler"]["num_steps"] == last]
    reference = max(at_last, key=lambda row: row["objects_right"])
    figures = []
    for num_steps in sorted(ASKED_STEPS & chosen.keys() - {last}):
        share, error = kept(chosen[num_steps], reference)
        of_default, _ = kept(default[num_steps], reference)
        faster = chosen[num_steps]["pairs_per_second"] / reference["pairs_per_second"]
        figures.append(
            Figure(
                f"objects right, Scenes, {num_steps} steps in place of {last}",
                100 * share,
                "%",
                note=f"± {100 * error:.1f}, of {reference['objects_right']:.1%}, at {faster:.2f}x "
                f"the pairs/s, with chosen settings; {of_default:.1%} with the default ones",
            )
        )
    whole, *parts = [row for row in result["rows"] if row["line"] == "interval"]
    for row in parts:
        start, end = row["guidance"]["interval"]
        share, error = kept(row, whole)
        where = f"guidance from {start:g} to {end:g}" if end > start else "no guidance"
        figures.append(
            Figure(
                f"{where} of {row['sampler']['num_steps']} steps, Scenes",
                row["pairs_per_second"] / whole["pairs_per_second"],
                "x",
                note=f"pairs/s of guidance at every step; {share:.1%} ± {error:.1%} of its objects "
                "right",
            )
        )
    for num_steps in sorted({min(8, last), last} & chosen.keys()):
        row = chosen[num_steps]
        name = f"decoding, demo's generator, batch {result['batch_size']}, {num_steps} steps"
        rate = row["pairs_per_second"]
        figures.append(device_limits.limited(name, rate, "pairs/s", row, limits))
    return figures


def picture(result: Mapping[str, Any]) -> str:
    """The curve: pairs/s and objects right of each setting, an error bar of a deviation."""

    def points(line: str) -> list[Point]:
        return [
            Point(
                row["pairs_per_second"],
                100 * row["objects_right"],
                100 * row["spread"],
                label(row),
            )
            for row in result["rows"]
            if row["line"] == line
        ]

    def label(row: Mapping[str, Any]) -> str:
        if row["line"] != "interval":
            return str(row["sampler"]["num_steps"])
        start, end = row["guidance"]["interval"]
        return "" if end > start else "without guidance"

    _, *parts = points("interval")  # the first is the chosen line's own
    lines = [
        Line("default settings", points("default")),
        Line("chosen", points("chosen")),
        Line("chosen, guidance in a part of the steps", parts, joined=False),
    ]
    return chart(
        "Scenes: objects right against speed of the sampler, by number of steps",
        "pairs/s",
        f"objects right, % (mean and deviation of {result['num_seeds']} seeds)",
        lines,
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", required=True, help="workdir of a generator of Scenes")
    parser.add_argument(
        "--config",
        default="configs/scenes/synthesize.py",
        help="of `synth2 synthesize`; its sampler and guidance are the default settings",
    )
    parser.add_argument("--steps", type=_numbers, default=[1, 2, 4, 6, 8, 12, 16])
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search_captions", type=int, default=256)
    parser.add_argument("--search_steps", type=_numbers, default=[4, 8])
    parser.add_argument("--interval_steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    config = config_lib.load_config(given.config)
    default = Setting(
        config_lib.build(ParallelDecodeConfig, config.sampler, "sampler"),
        config_lib.build(GuidanceConfig, config.guidance, "guidance"),
    )
    trained = load_trained(given.generator, "generator")
    result = measure(
        trained,
        default,
        given.steps,
        num_captions=given.captions,
        num_search_captions=given.search_captions,
        num_seeds=given.seeds,
        batch_size=given.batch,
        search_steps=given.search_steps,
        interval_steps=given.interval_steps,
    )
    limits = device_limits.measure(dtype_of(trained.objective.task.generator.maskgit.dtype))
    print(write_result("quality_speed", result | {"limits": limits}, figures_of(result, limits)))
    write_text(ROOT / "docs" / "quality_speed.svg", picture(result))


if __name__ == "__main__":
    run_as_command(main)
