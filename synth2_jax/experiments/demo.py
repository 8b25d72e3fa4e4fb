"""`synth2 demo`: runs all of Synth² on the built-in data, from nothing to a report.

Real pairs -> tokenizer -> language model -> synthetic captions -> synthetic image tokens -> a VLM
on real pairs and one on real and synthetic pairs, at equal steps -> scores, pictures, a page.
Writes WORKDIR/report/index.html and WORKDIR/report/results.json; stopped and started again, it goes
on.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import environment
from synth2_jax.domains.scenes import dataset, language, oracle
from synth2_jax.domains.scenes import scores as scenes_scores
from synth2_jax.evaluation.scorer import EvaluateConfig
from synth2_jax.experiments.arms import ARMS, MIXED, REAL
from synth2_jax.experiments.caption_sets import balance_of
from synth2_jax.experiments.curves import curve, steps_to_baseline
from synth2_jax.experiments.experiment import SCORES, Experiment
from synth2_jax.experiments.experiment_config import ExperimentConfig
from synth2_jax.experiments.gains import estimates, gain, part_masks
from synth2_jax.experiments.image_space import speed_by_space
from synth2_jax.files import read_json_lines, write_json
from synth2_jax.loading.run import Trained
from synth2_jax.loading.tokenizing import decode_images, encode_images
from synth2_jax.pages.document import picture
from synth2_jax.pages.intervals import answer
from synth2_jax.side_files import parse_as
from synth2_jax.stages import report

COMPARED = (REAL, MIXED)
NUM_SHOWN = 12  # pictures a section of the page
LOSSES = {
    "tokenizer": "reconstruction",
    "language_model": "loss",
    "generator": "loss",
    "vlm_real": "loss",
    "vlm_real_synthetic": "loss",
}


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Runs every step that is missing, then writes the report; returns the results."""
    start = time.monotonic()
    experiment = Experiment(config, workdir, arms={arm: ARMS[arm] for arm in COMPARED})
    cfg = config_lib.build(ExperimentConfig, config)
    tokenizer = experiment.tokenizer()
    experiment.language_model()
    experiment.pairs()
    experiment.captions()
    experiment.generator()
    experiment.synthesize()
    vlms = [experiment.vlm(arm) for arm in COMPARED]
    arms = {arm: experiment.evaluate(arm) for arm in COMPARED}

    print("== report", flush=True)
    reconstructions, tokenizer_right = _reconstructions(tokenizer)
    synthetic, generator_scores = _synthetic(experiment)
    curves = {arm: experiment.curve(arm) for arm in COMPARED}
    per_image = [experiment.cider_per_image(arm) for arm in COMPARED]
    captioned = {arm: _captioned(experiment, arm) for arm in COMPARED}
    model, batch_size = vlms[-1].config["model"], vlms[-1].config["data"]["batch_size"]
    speed, notes = speed_by_space(model, batch_size), experiment.notes
    times = notes.times()
    this_process = time.monotonic() - start - sum(notes.seconds.values())
    results = {
        "arms": {arm: {name: arms[arm][name] for name in SCORES} for arm in COMPARED},
        "gains": estimates(gain, [[scores] for scores in per_image]),
        "standard_errors": dict(zip(COMPARED, map(standard_errors, per_image), strict=True)),
        "tokenizer": {"objects_right": tokenizer_right},
        "generator": generator_scores,
        "steps_per_second": speed,
        "balance": _balance(experiment),
        "steps_to_baseline": steps_to_baseline(*curves.values()),
        "seconds": sum(times.values()) + this_process,
        "seconds_by_stage": times,
        "peak_memory_gib": notes.peak_memory_gib(),
        "measured": measured(cfg),
        "tiny": cfg.tiny,
        "config": config.to_dict(),
        "versions": environment.describe(),
        "commit": ", ".join(notes.commits()),
        "captions_scored_by": arms["real"]["provenance"],
    }
    material = {
        "scenes": _real_scenes(experiment.case.real_pairs),
        "reconstructions": reconstructions,
        "synthetic": synthetic,
        "test": _test_captions(captioned),
        "curves": curves,
        "losses": {name: curve(experiment.path(name), loss) for name, loss in LOSSES.items()},
    }
    folder = pathlib.Path(workdir) / "report"
    write_json(folder / "results.json", results)
    write_json(folder / "material.json", material)
    print(summary(results))
    report.run(None, workdir)
    return results


def summary(results: dict[str, Any]) -> str:
    """The results in a few lines for a terminal."""
    real, both = (results["arms"][arm] for arm in COMPARED)
    speed = results["steps_per_second"]
    lines = [
        answer(real, both, results["gains"]),
        f"objects right: real only {real['objects_right']:.1%}, real + synthetic "
        f"{both['objects_right']:.1%}",
        f"tokenizer {results['tokenizer']['objects_right']:.1%}, "
        f"generator {results['generator']['objects_right']:.1%} of objects right",
        f"embedding space {speed['embedding'] / speed['pixel']:.2f}x the steps/s of pixel space",
        f"{results['seconds'] / 60:.1f} minutes, {results['peak_memory_gib']:.1f} GiB of memory",
    ]
    if results["tiny"]:
        lines.insert(0, "tiny: this shows that everything runs; its numbers mean nothing")
    return "\n".join(lines)


def measured(cfg: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """On how many test pictures, and by which decoding, the curve and the table are scored."""
    pictures = cfg.tokenize.max_images or dataset.split_size("test")

    def by(scoring: EvaluateConfig) -> dict[str, Any]:
        return {
            "pictures": min(pictures, scoring.max_images or pictures),
            "method": scoring.decode.method,
            "num_beams": scoring.decode.num_beams,
        }

    curve_by = cfg.vlm.validation.captions
    return {"table": by(cfg.evaluate), **({"curve": by(curve_by)} if curve_by else {})}


def _real_scenes(number: int) -> list[dict[str, Any]]:
    return [
        {
            "picture": picture(example.image),
            "captions": list(example.captions),
            "combinations": ", ".join(
                language.class_name(item.combination) for item in example.scene.objects
            ),
        }
        for example in dataset.examples("real", min(number, NUM_SHOWN))
    ]


def _reconstructions(tokenizer: Trained) -> tuple[list[dict[str, Any]], float]:
    examples = dataset.examples("test")
    images = np.stack([example.image for example in examples])
    decoded = decode_images(tokenizer, encode_images(tokenizer, images, 256, "tokenize test"))
    scenes = [example.scene for example in examples]
    seen = oracle.read(decoded[:NUM_SHOWN])
    shown = [
        {"original": picture(image), "reconstruction": picture(again), "right": found == scene}
        for image, again, found, scene in zip(images, decoded, seen, scenes, strict=False)
    ]
    return shown, scenes_scores.picture_objects_right(decoded, scenes)


def _synthetic(experiment: Experiment) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns what the oracle sees in the synthetic pairs."""
    captions, images, scenes = experiment.read_synthetic()
    shown = []
    for caption, image, scene in list(zip(captions, images, scenes, strict=True))[:NUM_SHOWN]:
        agreement = language.agreement(language.parse(caption), scene)
        objects = [f"{item.size} {item.colour} {item.shape}" for item in scene.objects]
        shown.append(
            {
                "caption": caption,
                "picture": picture(image),
                "verdict": {name: list(counts) for name, counts in agreement.items()},
                "read_back": ", ".join(objects) or "nothing",
                "unseen": scenes_scores.claims_unseen(caption),
            }
        )
    return shown, scenes_scores.agreement_shares(captions, scenes)


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A row of captions.jsonl of an evaluation; keys of Scenes are SPLIT-NUMBER."""

    key: str
    caption: str
    references: tuple[str, ...]

    def __post_init__(self):
        if not re.fullmatch(r"\w+-\d{1,9}", self.key, re.ASCII):
            raise ValueError(f"key is {self.key!r:.40}, expected SPLIT-NUMBER")


def _captioned(experiment: Experiment, arm: str) -> list[Captioned]:
    path = experiment.workdir / "evaluation" / f"vlm_{arm}" / "captions.jsonl"
    names = [field.name for field in dataclasses.fields(Captioned)]
    return [
        parse_as(Captioned, {n: row[n] for n in names if n in row}, path, "evaluate")
        for row in read_json_lines(path)
    ]


def standard_errors(per_image: Mapping[str, float]) -> dict[str, float | None]:
    """Standard error of each CIDEr over the test pictures; None for fewer than two pictures."""
    found = {}
    for part, mask in part_masks(list(per_image)).items():
        scores = np.array(list(per_image.values()))[mask]
        found[part] = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
    return found


def _test_captions(captioned: Mapping[str, Sequence[Captioned]]) -> list[dict[str, Any]]:
    shown = []
    for rows in list(zip(*captioned.values(), strict=False))[:NUM_SHOWN]:
        split, number = rows[0].key.rsplit("-", 1)
        example = dataset.examples(split, int(number) + 1)[-1]
        captions = {}
        for arm, row in zip(captioned, rows, strict=True):
            right = scenes_scores.caption_objects_right([row.caption], [example.scene])
            captions[arm] = {"text": row.caption, "objects_right": right}
        shown.append(
            {
                "picture": picture(example.image),
                "references": list(rows[0].references),
                "unseen": scenes_scores.has_unseen(example.scene),
                "captions": captions,
            }
        )
    return shown


def _balance(experiment: Experiment) -> dict[str, dict[str, float]]:
    sets = {
        "real": experiment.real_captions(),
        "synthetic": experiment.written_captions(),
        "test": [caption for example in dataset.examples("test") for caption in example.captions],
    }
    return balance_of(sets)
