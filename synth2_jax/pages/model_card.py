"""The model card of an exported model: README.md, from the run's config, its data and its scores.

Nothing in it is taken on trust: counts are those of the pairs' manifests, scores those of
results.json files whose fingerprint is the model's own, and limits follow from both.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax.data import records, views
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.files import read_json
from synth2_jax.pages.document import render
from synth2_jax.pages.numbers import flat
from synth2_jax.training.metrics import read_metrics

RESULTS = "results.json"
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
    """A folder of pairs that the model was trained on.

    Attributes:
      name: of its task.
      rate: as the config mixes it; "" with nothing to mix.
      contents: the manifest or view; None where the folder is gone or no longer whole.
    """

    name: str
    rate: str
    contents: records.Manifest | views.View | None

    @property
    def is_view(self) -> bool:
        return isinstance(self.contents, views.View)

    @property
    def manifest(self) -> records.Manifest | None:
        """The manifest of the folder, or of the folder that this is a view of."""
        return getattr(self.contents, "manifest", self.contents)

    @property
    def counts(self) -> Mapping[str, int]:
        """Pairs by "real" and "synthetic"; for a view those of the whole folder."""
        return self.manifest.counts if self.manifest else {}


def read_results(
    given: str, run_folder: pathlib.Path, model_name: str, fingerprints: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns results by file name: those given, separated by commas, and those of the run.

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
    task, data, description = facts.task, facts.data, facts.description
    sources, stream = _sources(data), facts.training.get("stream")
    manifests = [source.manifest for source in sources if source.manifest]
    card = render(
        "model_card.md.j2",
        facts=facts,
        data=data,
        description=description,
        version=synth2_jax.__version__,
        is_license_id=_LICENSE_ID.fullmatch(facts.license),
        parts=[_part(facts, *part) for part in description["fingerprints"].items()],
        tokenizer=getattr(task, "tokenizer", None),
        vocabulary=pathlib.PurePath(data.vocabulary).name,
        sources=sources,
        stream=stream,
        generator=pathlib.PurePath(stream["generator"]).name if stream else "",
        drawn=_drawn(facts),
        scores=[_scores(path, facts) for path in facts.scores],
        is_scenes=_is_scenes(data, manifests),
        num_real=sum(manifest.counts.get("real", 0) for manifest in manifests),
        num_synthetic=sum(manifest.counts.get("synthetic", 0) for manifest in manifests),
        num_cut=sum(manifest.captions_cut for manifest in manifests),
        needs_text_encoder=getattr(task, "stored_text_features", False),
    )
    return re.sub(r"\n{3,}", "\n\n", card)


def _part(facts: CardFacts, part: str, fingerprint: str) -> tuple[str, int, str, str]:
    """Name, number of parameters, dtypes and fingerprint."""
    leaves = [leaf for path, leaf in facts.parameters.items() if path.startswith(f"{part}/")]
    dtypes = ", ".join(sorted({leaf.dtype.name for leaf in leaves}))
    return part, sum(math.prod(leaf.shape) for leaf in leaves), dtypes, fingerprint


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


def _drawn(facts: CardFacts) -> dict[str, int]:
    """How many examples of each kind the training saw, by its own log."""
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


def _scores(path: str, facts: CardFacts) -> tuple[str, dict[str, float], dict[str, str]]:
    """The end of the path, the scores, and the texts that come with them."""
    results = {k: v for k, v in facts.scores[path].items() if k not in (facts.model_name, "config")}
    found = {name: value for name, value in flat(results) if not isinstance(value, bool)}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    texts = {name: value for name, value in found.items() if isinstance(value, str)}
    return "/".join(pathlib.PurePath(path).parts[-2:]), numbers, texts


def _is_scenes(data: DataConfig, manifests: Sequence[records.Manifest]) -> bool:
    writers = [
        str((manifest.provenance.captions or {}).get("source", "")) for manifest in manifests
    ]
    return data.mixture.startswith("scenes_") or any(w.startswith("scenes/") for w in writers)
