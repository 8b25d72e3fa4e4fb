"""`synth2 captions`: writes captions class by class, from one of three sources.

The config names one source: `language_model`, which runs in this process; `server`, with OpenAI's
chat API; or `text_file`, a file of captions.

Writes WORKDIR/captions.jsonl, one caption a line with its model and sampling, and
WORKDIR/manifest.json: the model and sampling of all captions, how many drafts were dropped and why,
tokens and cost. A server's answers are kept in WORKDIR/answers.jsonl as they arrive. The same
command continues from there; with another filter or quota it asks only for answers that are
missing.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.classes import load_classes
from synth2_jax.caption_writing.filters import DraftFilterConfig
from synth2_jax.caption_writing.folder import ANSWERS, CAPTIONS, MANIFEST
from synth2_jax.caption_writing.journal import Journal
from synth2_jax.caption_writing.language_model import LanguageModelSource
from synth2_jax.caption_writing.openai_server import OpenAIServerSource
from synth2_jax.caption_writing.rounds import ask_in_rounds, read_file
from synth2_jax.caption_writing.selection import Selection
from synth2_jax.caption_writing.server_config import ServerConfig
from synth2_jax.caption_writing.templates import Prompts, load_template
from synth2_jax.caption_writing.text_file import TextFileSource
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError, naming, nearest
from synth2_jax.files import JsonLinesFile, write_json, write_json_lines
from synth2_jax.loading.language_models import LoadedLanguageModel, load_language_model
from synth2_jax.loading.trained import others_reader
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.stop_signal import StopSignal

SCENES = "scenes"  # the class list of the built-in data set


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """Attributes:

    language_model: workdir or export of a language model; or an instruction-tuned Gemma 3, in the
      format of the package gemma or of Hugging Face, which gets prompts in its chat format.
    vocabulary: path of a Gemma's SentencePiece model; empty for a run, which has its own.
    captions_per_class: number of captions that each class gets; None takes all of a text file.
    max_rounds: number of rounds in which classes without enough captions get more drafts.
    classes: class names, files with one name a line, "common_objects", or "scenes" for every colour
      and shape. Empty means no classes for a text file, and "scenes" for a language model trained
      on Scenes.
    decode: sampling of the language model; nucleus.
    batch_size: captions that the language model writes at once.
    seed: of all draws.
    server: model and address of a server.
    text_file: path of a file with one caption a line, or of a .jsonl file.
    template: name of a built-in prompt, or a file; "" is "class" for a language model of synth2,
      "chat" for a Gemma and "describe" for a server.
    styles, lengths: values of the slots {style} and {length}; the draws of a class take turns.
    quotas: {class name: number of captions}, for classes that get another number.
    filter: which captions are dropped.
    max_dropped_share: the run stops if a larger share of the drafts is dropped.
    """

    language_model: str = ""
    vocabulary: str = ""
    captions_per_class: int | None = None
    max_rounds: int = 8
    classes: tuple[str, ...] | str = ()
    decode: TextDecodeConfig = TextDecodeConfig(method="nucleus", max_length=34)
    batch_size: int = 256
    seed: int = 0
    server: ServerConfig | None = None
    text_file: str = ""
    template: str = ""
    styles: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    quotas: Mapping[str, int] = dataclasses.field(default_factory=dict)
    filter: DraftFilterConfig = DraftFilterConfig()
    max_dropped_share: float = 1.0

    def __post_init__(self):
        config_lib.check_seeds(self, "seed")
        config_lib.check_counts(self, "captions_per_class", "max_rounds", "batch_size")
        if not 0 <= self.max_dropped_share <= 1:
            raise UserError(f"max_dropped_share: found {self.max_dropped_share}, expected 0 to 1")
        for kind, values in (("lengths", self.lengths), ("quotas", self.quotas.values())):
            if any(value < 1 for value in values):
                raise UserError(f"{kind}: found {min(values)}, expected at least 1")
        given = [name for name in ("language_model", "server", "text_file") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(
                f"{given[0]}: found `{given[1]}` as well, expected one source. Remove one."
            )
        if self.text_file:
            for name in ("template", "styles", "lengths"):
                if getattr(self, name):
                    raise UserError(
                        f"{name}: found with `text_file`, which needs no prompt. Remove it."
                    )
        elif self.captions_per_class is None:
            raise UserError("captions_per_class: missing, expected a number")


def run(config: Any, workdir: str) -> list[dict[str, Any]]:
    """Writes the captions; returns the rows of captions.jsonl."""
    cfg = config_lib.build(CaptionsConfig, config)
    folder = pathlib.Path(workdir)
    prompts = model = None
    if not cfg.text_file:
        prompts = Prompts(load_template(cfg.template or _template(cfg)), cfg.styles, cfg.lengths)
        if not cfg.server:
            with naming("--config.language_model", cfg.language_model):
                model = load_language_model(cfg.language_model, cfg.vocabulary)
    classes = _classes(cfg, model)
    selection = Selection(_quotas(classes, cfg), cfg.filter, cfg.max_dropped_share)
    with StopSignal() as stop:
        ask = functools.partial(ask_in_rounds, selection=selection, prompts=prompts, stop=stop)
        if cfg.text_file:
            origin = _read_file(selection, classes, cfg, stop)
        elif cfg.server:
            origin = _ask_server(cfg, ask, folder / ANSWERS)
        else:
            origin = _ask_language_model(model, cfg, ask)
    rows = _rows(selection, origin, prompts, cfg)
    if not rows:
        advice = "Change the filter or the source."
        if model:
            advice = (
                "Train the language model for longer, or give classes that its training data "
                f"names (--config.classes), not such as {classes[0]!r}."
            )
        raise UserError(
            f"captions: none of {selection.dropped.total()} drafts is usable, dropped "
            f"{dict(selection.dropped)}. {advice}"
        )
    write_json_lines(folder / CAPTIONS, rows)
    written = JsonLinesFile(folder / CAPTIONS)
    lacks = selection.lacks()
    manifest = {
        **origin,
        "filter": cfg.filter.describe(),
        "seed": cfg.seed,
        "num_classes": len(classes or ()),
        "classes_sha256": hashlib.sha256("\n".join(classes or ()).encode()).hexdigest(),
        "num_captions": written.num_rows,
        "sha256": written.sha256,
        "short_of": lacks,
        "dropped": dict(selection.dropped),
    }
    if prompts:
        manifest |= {
            "prompt": prompts.template.text,
            "prompt_sha256": prompts.template.sha256,
            "styles": prompts.styles,
            "lengths": prompts.lengths,
        }
    write_json(folder / MANIFEST, manifest)
    short = ""
    if cfg.captions_per_class is not None:
        number = f"fewer than {cfg.captions_per_class}" if not cfg.quotas else "fewer than asked"
        short = f"; {len(lacks)} of {len(selection.kept)} classes have {number}"
    print(f"captions: {len(rows)} kept, dropped {dict(selection.dropped)}{short}")
    return rows


def _template(cfg: CaptionsConfig) -> str:
    """Returns the name of the built-in template for the source."""
    if cfg.server:
        return "describe"
    path = cfg.language_model
    with naming("--config.language_model", path):
        return "chat" if path and others_reader(path, "language_model") else "class"


def _classes(cfg: CaptionsConfig, model: LoadedLanguageModel | None) -> tuple[str, ...] | None:
    """Returns class names; None for a text file without classes."""
    given = cfg.classes
    if not any(given):
        if cfg.text_file:
            return None
        if model and model.mixture.startswith(f"{SCENES}_"):
            given = (SCENES,)
    return load_classes(given, {SCENES: dataset.CLASSES})


def _quotas(classes: Sequence[str] | None, cfg: CaptionsConfig) -> dict[str | None, int | None]:
    """Returns {class name: number}; raises UserError on a quota for an unknown class."""
    names: Sequence[str | None] = (None,) if classes is None else classes
    for name in cfg.quotas:
        if name not in names:
            raise UserError(f"--config.quotas: no class {name!r}; {nearest(name, classes or ())}")
    return {name: cfg.quotas.get(name, cfg.captions_per_class) for name in names}


# Each of these fills the selection and returns what the manifest says of the source.


def _read_file(
    selection: Selection, classes: Sequence[str] | None, cfg: CaptionsConfig, stop: StopSignal
) -> dict[str, Any]:
    with naming("--config.text_file", cfg.text_file):
        source = TextFileSource(cfg.text_file, classes)
        read_file(source, selection, stop)
        return {"source": "text_file", **source.describe()}


def _ask_server(cfg: CaptionsConfig, ask: Callable, path: pathlib.Path) -> dict[str, Any]:
    if jax.process_count() > 1:
        raise UserError(
            f"captions: found {jax.process_count()} processes, expected one: each would pay for "
            "its answers. Start one process."
        )
    with Journal(path) as journal:
        source = OpenAIServerSource(cfg.server, journal, seed=cfg.seed)
        try:
            kept = "the answers are kept; run the same command again to continue"
            ask(source, max_rounds=cfg.max_rounds, kept=kept)
        finally:
            print(f"captions: {source.summary()}", flush=True)
    return {
        "source": "server",
        "model": cfg.server.model,
        "server": source.base_url,
        "sampling": cfg.server.sampling(),
        "usage": source.usage(),
    }


def _ask_language_model(
    model: LoadedLanguageModel, cfg: CaptionsConfig, ask: Callable
) -> dict[str, Any]:
    source = LanguageModelSource(
        *(model.config, model.params, model.vocabulary, cfg.decode),
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
    ask(source, max_rounds=cfg.max_rounds, kept="nothing is written yet")
    sampling = dataclasses.asdict(cfg.decode)
    return {"source": "language_model", **model.provenance, "sampling": sampling}


def _rows(
    selection: Selection, origin: Mapping[str, Any], prompts: Prompts | None, cfg: CaptionsConfig
) -> list[dict[str, Any]]:
    model = origin.get("fingerprint", origin.get("model"))
    seed = None if cfg.text_file else cfg.seed
    rows = []
    for draft in (draft for kept in selection.kept.values() for draft in kept):
        row = {"caption": draft.caption, "class": draft.class_name, "draw": draft.draw}
        if prompts:
            row |= {"template_sha256": prompts.template.sha256, **prompts.targets(draft.draw)}
        row |= {"model": draft.model or model, "seed": seed if draft.seed is None else draft.seed}
        rows.append(row | {"sampling": origin.get("sampling")})
    return rows
