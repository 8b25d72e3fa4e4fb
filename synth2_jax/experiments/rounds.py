"""`synth2 rounds`: improves generator and VLM by their own pairs, round after round.

Both are first trained on real pairs alone. Each round writes new captions, makes pictures of them
by the generator of the round before, keeps the pairs that the VLM of the round before finds fit
best, trains both models further on real and kept pairs, and evaluates. One long round makes as many
pairs of the same captions by the first models alone and trains for as many steps, for comparison.
The rounds stop early when the loss on held-out real pairs rises. Writes into the workdir, after
every round, rounds.json and rounds.html. Stopped and started again, it goes on.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import environment
from synth2_jax.data import records, views
from synth2_jax.domains.scenes import oracle
from synth2_jax.domains.scenes import scores as scenes_scores
from synth2_jax.experiments.caption_sets import balance_of
from synth2_jax.experiments.experiment import NUM_READ, SCORES
from synth2_jax.experiments.gains import estimates, gain
from synth2_jax.experiments.round_steps import MODELS, RoundsConfig, RoundSteps
from synth2_jax.files import read_json, write_json, write_text
from synth2_jax.loading import tokenizing
from synth2_jax.pages.rounds_page import render_rounds, summary
from synth2_jax.scoring.diversity import token_agreement
from synth2_jax.stages import filter as filter_stage

RESULTS, PAGE = "rounds.json", "rounds.html"


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Runs every step that is missing; returns what rounds.json holds."""
    cfg = config_lib.build(RoundsConfig, config.get("rounds"), "--config.rounds")
    steps = RoundSteps(config, workdir)
    steps.base()
    kept: dict[str, list[str]] = {}  # captions by round
    runs, stopped = {"round_0": _measure(steps, "round_0")}, None
    for number in range(1, cfg.rounds + 1):
        name = f"round_{number}"
        steps.round(number)
        runs[name] = _measure(steps, name) | _measure_pairs(steps, name, kept)
        before = [runs[f"round_{earlier}"]["held_out"] for earlier in range(number)]
        stopped = rise(runs[name]["held_out"], before, cfg.tolerance)
        results = _write(steps, runs, kept, stopped)
        if stopped:
            break
    if cfg.long_round and number > 1:  # after one round it would be that round again
        name = steps.long_round(number)
        runs[name] = _measure(steps, name)
        results = _write(steps, runs, kept, stopped)
    print(summary(results))
    return results


def rise(
    held_out: Mapping[str, float], before: Sequence[Mapping[str, float]], tolerance: float
) -> dict[str, Any] | None:
    """Returns {"model", "loss", "lowest"} of a loss that has risen beyond the tolerance, or None.

    Args:
      held_out: {model: loss} after a round.
      before: those of the rounds before, at least one.
      tolerance: how far it may rise above the lowest before, as a share of that.
    """
    for model in MODELS:
        loss, lowest = held_out[model], min(losses[model] for losses in before)
        if not (math.isfinite(loss) and loss <= (1 + tolerance) * lowest):
            return {"model": model, "loss": loss, "lowest": lowest}
    return None


def _measure(steps: RoundSteps, name: str) -> dict[str, Any]:
    found = steps.scores(name)
    return {
        "scores": {score: found.get(score) for score in SCORES},
        "held_out": steps.held_out(name),
        "real_share": steps.drawn(name),
    }


def _measure_pairs(steps: RoundSteps, name: str, kept: dict[str, list[str]]) -> dict[str, Any]:
    """Measures the pairs of a round; adds the captions of those that were kept to `kept`."""
    made = list(records.read_pairs(steps.path(name, "synthetic")))
    left = list(views.read_view(steps.path(name, "kept")))
    kept[name] = [pair.caption for pair in left]
    filtered = read_json(pathlib.Path(steps.path(name, "kept"), filter_stage.SUMMARY), "filter")
    scores = filtered["scores"][filtered["chosen"]["by"]]
    return {
        "pairs": {"synthetic": len(made), "kept": len(left)},
        "fit": scores.get("mean"),
        "faithful": {
            "synthetic": _objects_right(steps, made),
            "kept": _objects_right(steps, left),
        },
        "token_agreement": token_agreement(np.stack([pair.image_tokens for pair in made])),
    }


def _objects_right(steps: RoundSteps, pairs: Sequence[records.Pair]) -> float:
    """Share of the objects in captions that the oracle sees in their pictures, of a sample."""
    chosen = np.random.default_rng(0).permutation(len(pairs))[:NUM_READ]
    tokens = np.stack([pairs[i].image_tokens for i in chosen])
    scenes = oracle.read(tokenizing.decode_images(steps.tokenizer(), tokens))
    captions = [pairs[i].caption for i in chosen]
    return scenes_scores.agreement_shares(captions, scenes)["objects_right"]


def _gains(steps: RoundSteps, names: Sequence[str]) -> dict[str, Any]:
    """{run: the gain of the last round over it, by part of the test pictures}, see `estimates`."""
    *_, last = (name for name in names if name.startswith("round_"))
    others = [name for name in names if name == "round_1" or name.startswith("long_")]
    scores = {name: [steps.cider_per_image(name)] for name in (last, *others)}
    return {name: estimates(gain, [scores[name], scores[last]]) for name in others if name != last}


def _write(
    steps: RoundSteps,
    runs: Mapping[str, Any],
    kept: Mapping[str, Sequence[str]],
    stopped: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes rounds.json and rounds.html with what is there so far; returns the first."""
    real = [pair.caption for pair in records.read_pairs(steps.real())]
    measured = balance_of({"round_0": real, **kept})
    results = {
        "runs": {name: {**run, "captions": measured.get(name)} for name, run in runs.items()},
        "gains": _gains(steps, list(runs)),
        "stopped": stopped,
        "made_with": environment.describe() | {"commit": ", ".join(steps.notes.commits())},
        "config": steps.config.to_dict(),
    }
    write_json(steps.workdir / RESULTS, results)
    write_text(steps.workdir / PAGE, render_rounds(results))
    return results
