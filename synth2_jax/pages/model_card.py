"""The model card of an exported model: README.md, from the run's config, its data and its scores.

Nothing in it is taken on trust: counts are those of the pairs' manifests, scores those of
results.json files whose fingerprint is the model's own, and limits follow from both.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax.data import records, views
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.files import read_json
from synth2_jax.inert_text import inert
from synth2_jax.training.metrics import read_metrics

RESULTS = "results.json"
# Of each model: Hugging Face's name for what it does, what it is, and what it is for.
_KINDS = {
    "vlm": (
        "image-to-text",
        "A visual language model that captions images, trained as in Synth² (arXiv 2403.07750): it "
        "reads an image as the codebook vectors of its tokens, never as pixels.",
        "Captions of images like those it was trained on, and research on training with synthetic "
        "pairs.",
    ),
    "generator": (
        "text-to-image",
        "A text-to-image generator that fills in masked image tokens (Muse, arXiv 2301.00704; "
        "MaskGIT, arXiv 2202.04200).",
        "Synthetic pairs for the training of visual language models (Synth², arXiv 2403.07750), "
        "whose captions are like those it was trained on.",
    ),
    "language_model": (
        "text-generation",
        "A decoder-only language model of captions.",
        "The frozen part of a visual language model, and a writer of captions.",
    ),
    "tokenizer": (
        "feature-extraction",
        "A VQ-GAN tokenizer: images to token ids and codebook vectors, and back.",
        "The image tokens of generators and visual language models.",
    ),
}
_USE = {
    "vlm": """import synth2_jax

vlm = synth2_jax.load_vlm("{name}")
print(vlm.caption("picture.jpg"))
""",
    "generator": """import synth2_jax

generator = synth2_jax.load_generator("{name}")
made = generator.generate(["a caption", "another caption"], seed=0)
made.tokens, made.embeddings, made.images
""",
}
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
      name: of the exported folder.
      task: the model's config.
      description: its config.json.
      training: the run's resolved config.
      run_folder: of the run.
      trained: fingerprints of the run's own parameters, which `description`'s differ from where
        parameters were rounded.
      parameters: shapes and dtypes by "/"-joined path, as exported.
      scores: what `read_results` returns.
      license: the user's line; "" for none.
    """

    name: str
    task: Any
    description: Mapping[str, Any]
    training: Mapping[str, Any]
    run_folder: pathlib.Path
    trained: Mapping[str, str]
    parameters: Mapping[str, jax.ShapeDtypeStruct]
    scores: Mapping[str, Mapping[str, Any]]
    license: str = ""

    @property
    def model_name(self) -> str:
        return self.description["model_name"]

    @property
    def data(self) -> DataConfig:
        """What the run was trained on."""
        return config_lib.build(DataConfig, self.training["data"])

    @property
    def rounded(self) -> list[str]:
        """The parts that are not what was trained."""
        found = self.description["fingerprints"]
        return [part for part in found if found[part] != self.trained[part]]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a folder of pairs that the model was trained on.

    Attributes:
      name: of its task.
      rate: as the config mixes it; "" with nothing to mix.
      contents: the manifest or view; None where the folder is gone or no longer whole.
    """

    name: str
    rate: str
    contents: records.Manifest | views.View | None

    @property
    def counts(self) -> Mapping[str, int]:
        """Pairs by "real" and "synthetic"; of a view those of the folder that it is a view of."""
        if self.contents is None:
            return {}
        return getattr(self.contents, "manifest", self.contents).counts


def read_results(
    given: str, run_folder: pathlib.Path, model_name: str, fingerprints: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Results by file name: those given, with commas between, and those that lie in the run.

    Args:
      given: paths; "" for none.
      run_folder: RUN/results.json and RUN/*/results.json are looked at.
      model_name: "vlm" for what `synth2 evaluate` writes.
      fingerprints: of the model's parts; results of another model are left out.

    Raises:
      UserError: a file that was given is none of results, or tells of another model.
    """
    results = {}
    for path in filter(None, given.split(",")):
        found = read_json(pathlib.Path(path), "evaluate")
        told = _model_of(found, model_name)
        if told not in (None, fingerprints[model_name]):
            raise UserError(
                f"--results={path}: of a {model_name} with fingerprint {told}, expected "
                f"{fingerprints[model_name]}"
            )
        results[path] = found
    for path in sorted([*run_folder.glob(RESULTS), *run_folder.glob(f"*/{RESULTS}")]):
        found = read_json(path, "evaluate")
        if _model_of(found, model_name) == fingerprints[model_name]:
            results.setdefault(str(path.relative_to(run_folder)), found)
    return results


def _model_of(results: Mapping[str, Any], model_name: str) -> str | None:
    told = results.get(model_name)
    return told.get("fingerprint") if isinstance(told, Mapping) else None


def model_card(facts: CardFacts) -> str:
    """The card, in Markdown with the metadata that Hugging Face's tools read."""
    _, what, use = _KINDS[facts.model_name]
    sources = _sources(facts.data)
    sections = {
        "Use": _usage(facts),
        "The model": _model(facts),
        "Training data": _data(facts, sources),
        "Scores": _scores(facts),
        "Intended use": use,
        "Limitations": _list(_limitations(facts, sources)),
        "License": _text(facts.license) or "None was given: ask who made this model.",
        "To train it again": _again(facts),
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items())
    return f"{_metadata(facts)}\n# {_text(facts.name)}\n\n{what}\n\n{body}"


def _metadata(facts: CardFacts) -> str:
    lines = ["---", "library_name: synth2_jax", f"pipeline_tag: {_KINDS[facts.model_name][0]}"]
    if _LICENSE_ID.fullmatch(facts.license):
        lines.append(f"license: {facts.license}")
    elif facts.license:
        lines += ["license: other", f"license_name: {json.dumps(facts.license)}"]
    lines += ["tags:", "- jax", "- flax", "- synth2", "---", ""]
    return "\n".join(lines)


def _usage(facts: CardFacts) -> str:
    text = ""
    if facts.model_name in _USE:
        code = _USE[facts.model_name].format(name=facts.name)
        text = f"```python\n{code}```\n\nOr `python load_example.py`. "
    return (
        f"{text}Every stage of `synth2` that takes the workdir of a {facts.model_name} takes this "
        "folder. Any reader of safetensors reads the parameters, whose names are their paths. "
        f"Written by synth2_jax {synth2_jax.__version__}."
    )


def _model(facts: CardFacts) -> str:
    task, description = facts.task, facts.description
    rows = []
    for part, fingerprint in description["fingerprints"].items():
        leaves = [leaf for path, leaf in facts.parameters.items() if path.startswith(f"{part}/")]
        dtypes = ", ".join(sorted({leaf.dtype.name for leaf in leaves}))
        count = sum(math.prod(leaf.shape) for leaf in leaves)
        rows.append((part, f"{count:,}", dtypes, fingerprint))
    lines = []
    if tokenizer := getattr(task, "tokenizer", None):
        size = tokenizer.image_size
        lines.append(
            f"Images of {size} x {size} pixels are {tokenizer.num_tokens} tokens of "
            f"{tokenizer.codebook_size} codes."
        )
    if text_length := description["data"].get("text_length"):
        vocabulary = _code(pathlib.PurePath(facts.data.vocabulary).name)
        lines.append(f"Text has up to {text_length} tokens of the vocabulary {vocabulary}.")
    lines += [f"Trained on top of {name} {of}." for name, of in description["built_on"].items()]
    for name in ("decode", "sampler", "guidance"):
        if name in description:
            lines.append(f"By default its {name} is {_code(description[name])}.")
    table = _table(("part", "parameters", "dtype", "fingerprint"), rows)
    return f"{table}\n\n{_list(lines)}"


def _sources(data: DataConfig) -> list[Source]:
    sources = []
    for name, folder in data.folders.items():
        try:
            contents = views.open_pairs(folder)
        except UserError:  # moved or deleted since: the card says so
            contents = None
        rate = data.rates.get(name, "")
        sources.append(Source(name, json.dumps(rate) if rate != "" else "", contents))
    return sources


def _data(facts: CardFacts, sources: Sequence[Source]) -> str:
    data, rows, lines = facts.data, [], []
    for source in sources:
        counts, contents = source.counts, source.contents
        total = f"{contents.num_pairs:,}" if contents else "gone"
        by_kind = [f"{counts[kind]:,}" if kind in counts else "" for kind in records.SOURCES]
        rows.append((_text(source.name), _text(source.rate), total, *by_kind))
        if contents is not None:
            lines += _provenance(source)
    parts = []
    if rows:
        parts.append(_table(("task", "rate", "pairs", *records.SOURCES), rows))
    if data.source == "fake":
        parts.append("Random numbers of the right shapes (`data.source=fake`).")
    elif not rows or data.module_names:
        modules = f" of {', '.join(map(_code, data.module_names))}" if data.module_names else ""
        parts.append(f"The mixture {_code(data.mixture)}{modules}.")
    if lines:
        parts.append(_list(lines))
    if stream := facts.training.get("stream"):
        generator = pathlib.PurePath(stream["generator"]).name
        parts.append(
            f"Of each batch a share of {stream.get('share', 0.5)} was made anew by the generator "
            f"{_code(generator)}."
        )
    parts.append(f"{_steps(facts)} {_drawn(facts)}".strip())
    return "\n\n".join(parts)


def _provenance(source: Source) -> list[str]:
    """Where the pairs of a folder come from, one line a fact."""
    contents, provenance = source.contents, source.contents.provenance
    name = _code(source.name)
    lines = [f"{name}: image tokens of tokenizer {_text(provenance.tokenizer or 'the model')}."]
    if isinstance(contents, views.View):
        lines.append(
            f"{name}: a view of {contents.num_pairs:,} of {contents.manifest.num_pairs:,} pairs, "
            f"{contents.num_repaired:,} of them with the image of another pair."
        )
    for what in ("generator", "sampler", "captions"):
        if value := getattr(provenance, what):
            lines.append(f"{name}: {what} {_code(value)}.")
    manifest = getattr(contents, "manifest", contents)
    if manifest.skipped:
        lines.append(f"{name}: skipped were {_code(manifest.skipped)}.")
    return lines


def _steps(facts: CardFacts) -> str:
    step, steps = facts.description["step"], facts.training["train"]["steps"]
    return f"Step {step:,} of {steps:,}, of {facts.data.batch_size:,} rows each."


def _drawn(facts: CardFacts) -> str:
    """How many examples of each kind the training saw, by its own log."""
    counts = _drawn_counts(facts)
    drawn = [f"{count:,} {kind}" for kind, count in counts.items()]
    return f"Drawn up to there: {', '.join(drawn)} examples." if drawn else ""


def _drawn_counts(facts: CardFacts) -> dict[str, int]:
    path = facts.run_folder / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    of_step = [row for row in rows if row["step"] <= facts.description["step"]]
    last = next((row for row in reversed(of_step) if any("_examples" in name for name in row)), {})
    pattern = re.compile(r"data/(\w+)_examples")
    return {
        match[1]: int(value)
        for name, value in last.items()
        if (match := pattern.fullmatch(name)) and value is not None
    }


def _scores(facts: CardFacts) -> str:
    if not facts.scores:
        return "None are known."
    parts = []
    for path, results in facts.scores.items():
        flat = dict(_leaves(results, facts.model_name))
        numbers = {n: v for n, v in flat.items() if isinstance(v, int | float)}
        rows = [(_text(name), f"{value:.4g}") for name, value in numbers.items()]
        where = "/".join(pathlib.PurePath(path).parts[-2:])
        parts.append(f"{_code(where)}:\n\n{_table(('score', 'value'), rows)}")
        told = [
            f"{_text(name)}: {_text(value)}" for name, value in flat.items() if name not in numbers
        ]
        if told:
            parts.append(_list(told))
    if facts.rounded:
        parts.append(f"They were measured before {', '.join(facts.rounded)} was rounded.")
    return "\n\n".join(parts)


def _leaves(results: Mapping[str, Any], model_name: str) -> Iterable[tuple[str, Any]]:
    """(name, number or text); without the model, which the card is about, and the config."""
    for name, value in results.items():
        if isinstance(value, Mapping) and name not in (model_name, "config"):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _leaves(value, ""))
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            yield name, value


def _limitations(facts: CardFacts, sources: Sequence[Source]) -> list[str]:
    """What follows from the data and the scores."""
    data = facts.data
    real, synthetic = (sum(s.counts.get(kind, 0) for s in sources) for kind in records.SOURCES)
    limits = []
    if data.source == "fake":
        limits.append("It was trained on random numbers and knows nothing.")
    if tokenizer := getattr(facts.task, "tokenizer", None):
        size = tokenizer.image_size
        limits.append(
            f"An image is a square of {size} x {size} pixels: details below one of them are lost, "
            f"and all of it goes through {tokenizer.num_tokens} tokens."
        )
    if _is_scenes(data, sources):
        limits.append(
            "It was trained on Scenes, drawn shapes on plain grounds with captions of a small "
            "grammar. Of photographs and of other words it knows nothing."
        )
    if synthetic:
        share = 100 * synthetic / (real + synthetic)
        limits.append(
            f"{share:.0f} % of the pairs on disk are synthetic: what the generator drew wrongly "
            "and what the writer of the captions prefers was learned with them."
        )
    if synthetic and not real:
        limits.append("It has seen no real image with a caption.")
    drawn = _drawn_counts(facts)
    if real + synthetic and drawn:
        times = sum(drawn.values()) / (real + synthetic)
        limits.append(f"A pair was drawn {times:.2g} times in the mean.")
    gone = [source.name for source in sources if source.contents is None]
    if gone:
        names = ", ".join(map(_code, gone))
        limits.append(f"What was in {names} is not known: its folder is gone or changed.")
    cut = sum(
        getattr(source.contents, "manifest", source.contents).captions_cut
        for source in sources
        if source.contents is not None
    )
    if cut:
        limits.append(f"{cut:,} synthetic captions were longer than their generator reads.")
    if data.module_names or not sources and data.source != "fake":
        limits.append("What its mixture holds is told by the mixture's own code alone.")
    if getattr(facts.task, "stored_text_features", False):
        encoder = facts.description["built_on"].get("text_encoder")
        limits.append(
            f"It holds no text encoder: `load_generator(..., text_encoder=FOLDER)` takes that of "
            f"fingerprint {encoder}."
        )
    if facts.rounded:
        limits.append(
            f"{', '.join(facts.rounded)}: parameters are rounded; before, the fingerprint was "
            f"{', '.join(facts.trained[part] for part in facts.rounded)}."
        )
    if not facts.scores:
        limits.append("No scores are known: how good it is remains to be measured.")
    limits.append("It was not examined for harmful or unfair outputs.")
    return limits


def _is_scenes(data: DataConfig, sources: Sequence[Source]) -> bool:
    if data.mixture.startswith("scenes_"):
        return True
    written_by = [
        str((source.contents.provenance.captions or {}).get("source", ""))
        for source in sources
        if source.contents is not None
    ]
    return any(source.startswith("scenes/") for source in written_by)


def _again(facts: CardFacts) -> str:
    return (
        "training.json is the resolved config of the run; its paths are those of the machine that "
        "it ran on.\n\n```\n"
        "cat > training.py <<'END'\n"
        "import pathlib\n"
        "from synth2_jax.config import from_json\n\n"
        "def get_config():\n"
        '    return from_json(pathlib.Path("training.json").read_text())\n'
        "END\n"
        f"synth2 train --config=training.py --workdir=workdir/{facts.description['run']}\n```"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _text(value: Any) -> str:
    """Text of unknown origin in Markdown: it makes no markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", inert(str(value)))


def _code(value: Any) -> str:
    """JSON of a value, or a text, as code on one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=dict)
    return f"`{inert(text, 300).replace('`', chr(39))}`"
