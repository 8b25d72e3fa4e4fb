"""`synth2 captions`: a language model writes captions, class by class, the same number for each.

Writes WORKDIR/captions.jsonl (caption, class, draw) and WORKDIR/manifest.json (who wrote them and
how, how many were dropped and why).
"""

import collections
import dataclasses
import hashlib
import pathlib
from typing import Any

from synth2_jax import config as config_lib
from synth2_jax.captioners.prompts import CLASS_PROMPT
from synth2_jax.captioners.sources import LanguageModelSource, usual_filter
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.files import write_json, write_json_lines
from synth2_jax.progress import Progress
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.scenes import dataset
from synth2_jax.training.stop_signal import StopSignal
from synth2_jax.training.trained import load_trained
from synth2_jax.vocabulary import load_vocabulary

CAPTIONS, MANIFEST = "captions.jsonl", "manifest.json"


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """Attributes:

    language_model: workdir of the language model's training run.
    captions_per_class: to end with, after drafts were dropped.
    max_rounds: a class is asked this many times for what it lacks before it is given up.
    classes: "scenes" for every colour and shape, or class names.
    decode: nucleus sampling.
    """

    language_model: str
    captions_per_class: int
    max_rounds: int = 8
    classes: tuple[str, ...] = ("scenes",)
    decode: TextDecodeConfig = TextDecodeConfig(method="nucleus", max_length=34)
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self):
        config_lib.check_counts(self, "captions", "captions_per_class", "max_rounds", "batch_size")


def run(config: Any, workdir: str) -> list[dict[str, Any]]:
    """Writes the captions; returns the rows of captions.jsonl."""
    cfg = config_lib.build(CaptionsConfig, config)
    trained = load_trained(cfg.language_model, "language_model")
    source = LanguageModelSource(
        trained.objective.task.language_model,
        trained.params["language_model"],
        load_vocabulary(config_lib.build(DataConfig, trained.config["data"]).vocabulary),
        cfg.decode,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
    classes = dataset.CLASSES if cfg.classes == ("scenes",) else cfg.classes
    kept, dropped = _write(source, classes, cfg)
    folder = pathlib.Path(workdir)
    rows = [
        {"caption": draft.caption, "class": draft.class_name, "draw": draft.draw}
        for name in classes
        for draft in kept[name]
    ]
    write_json_lines(folder / CAPTIONS, rows)
    write_json(
        folder / MANIFEST,
        {
            "source": "language_model",
            **trained.provenance("language_model"),
            "prompt": CLASS_PROMPT,
            "prompt_sha256": hashlib.sha256(CLASS_PROMPT.encode()).hexdigest(),
            "sampling": dataclasses.asdict(cfg.decode),
            "seed": cfg.seed,
            "num_classes": len(classes),
            "num_captions": len(rows),
            "short_of": {
                name: cfg.captions_per_class - len(kept[name])
                for name in classes
                if len(kept[name]) < cfg.captions_per_class
            },
            "dropped": dict(dropped),
        },
    )
    short = sum(len(drafts) < cfg.captions_per_class for drafts in kept.values())
    print(
        f"captions: {len(rows)} kept, dropped {dict(dropped)}; {short} of {len(classes)} classes "
        f"have fewer than {cfg.captions_per_class}"
    )
    return rows


def _write(source: LanguageModelSource, classes, cfg: CaptionsConfig):
    """Asks in rounds until every class has its number, so that the set is balanced."""
    reason = usual_filter()
    kept = {name: [] for name in classes}
    asked = collections.Counter()
    dropped = collections.Counter()
    total = cfg.captions_per_class * len(classes)
    with StopSignal() as stop, Progress("captions", total, "captions") as progress:
        for _ in range(cfg.max_rounds):
            requests = []
            for index, name in enumerate(classes):
                for _ in range(cfg.captions_per_class - len(kept[name])):
                    requests.append((index, name, asked[name]))
                    asked[name] += 1
            for draft in source.write(requests):
                if stop.requested():
                    stop.exit()
                why = reason(draft)
                if why:
                    dropped[why] += 1
                else:
                    kept[draft.class_name].append(draft)
                    progress.add(1)
            if all(len(drafts) == cfg.captions_per_class for drafts in kept.values()):
                break
    if not any(kept.values()):
        raise UserError(
            f"captions: none of {sum(dropped.values())} drafts is usable, dropped {dict(dropped)}; "
            "train the language model for longer"
        )
    return kept, dropped
