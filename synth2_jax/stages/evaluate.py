"""`synth2 evaluate`: captions images by a trained VLM, or answers questions, and scores the texts.

Writes to the workdir: captions.jsonl (key, caption, references), per_image.jsonl (key, CIDEr or VQA
accuracy), results.json (scores, and how they were measured), and for the scorers of the data sets
predictions.json and, of captions, references.json (see `coco_files`). Scores that are asked for in
addition (`more_scores`, `feature_model`) come last: where one fails, everything else is written and
a line says so. Only parameters are restored, on however many devices there are.

Legend: B batch, I images a text, N image tokens, P prompt tokens, T text tokens.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError, naming
from synth2_jax.evaluation import coco_files
from synth2_jax.evaluation.clip_results import clip_results
from synth2_jax.evaluation.more_scores import each_alone
from synth2_jax.evaluation.scorer import CaptionScorer, EvaluateConfig
from synth2_jax.files import write_json, write_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.scoring import feature_model
from synth2_jax.stop_signal import StopSignal

RESULTS, PER_IMAGE = "results.json", "per_image.jsonl"


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Evaluates and writes; returns the results."""
    cfg = config_lib.build(EvaluateConfig, config)
    if cfg.feature_model:
        feature_model.load(cfg.feature_model)  # a mistake in it comes to light now
        if jax.process_count() > 1:
            raise UserError("--config.feature_model: found several processes, expected one")
    mesh, rules = sharding.make_mesh(cfg.mesh), sharding.axis_rules(cfg.mesh)
    with naming("--config.vlm", cfg.vlm):
        trained = load_trained(cfg.vlm, "vlm", mesh=mesh, rules=rules)
    with StopSignal() as stop:
        tokenizer = trained.fingerprint("tokenizer")
        data = config_lib.build(DataConfig, trained.config["data"])
        scorer = CaptionScorer(trained.objective, cfg, data, tokenizer, mesh, rules, stop)
        captions = scorer.captions(trained.params)
    folder = pathlib.Path(workdir)
    if jax.process_index() == 0:
        coco_files.write(folder, scorer.images, captions, cfg.protocol.task)
    results = scorer.score(captions) | {
        "vlm": trained.provenance("vlm"),
        "protocol": cfg.protocol.describe(),
        "decoding": cfg.decode.describe(),
        "prompt": data.prompt,
        "pairs": records.read_manifest(cfg.folder).fingerprint,
        "config": dataclasses.asdict(cfg),
    }
    if jax.process_index():
        return results
    write_json_lines(folder / PER_IMAGE, scorer.per_image(captions))
    write_json(folder / RESULTS, results)
    more = scorer.more_scores(captions)
    if cfg.feature_model:
        more["feature_model"] = functools.partial(
            *(clip_results, cfg.feature_model, trained, scorer.images, captions, cfg.batch_size)
        )
    scores, failed = each_alone(more)
    if scores:
        results |= scores
        write_json(folder / RESULTS, results)
    for name, value in results.items():
        if name != "config":
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{name:>16}  {shown}")
    if failed:
        raise UserError(
            f"--config.{'; '.join(failed)}. Captions and all other scores are in {workdir}."
        )
    return results
