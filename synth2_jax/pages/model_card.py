"""The model card of an exported model: README.md, from the run's config, its data and its scores.

Nothing in it is taken on trust: counts are those of the pairs' manifests, scores those of
results.json files whose fingerprint is the model's own, and limits follow from both.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax.data import views
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.files import read_json
from synth2_jax.pages.document import render
from synth2_jax.pages.numbers import flat
from synth2_jax.training.metrics import read_metrics

RESULTS = "results.json"
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")


def read_results(
    given: str, run_folder: pathlib.Path, model_name: str, fingerprints: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns results by file name: those given, separated by commas, and those of the run.

    Of a run, RUN/results.json and RUN/*/results.json are looked at; those of another model, by the
    fingerprints of the parts, are left out.

    Raises:
      UserError: a given file holds no results, or those of another model.
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


def model_card(
    *,
    task: Any,
    description: Mapping[str, Any],
    training: Mapping[str, Any],
    run_folder: pathlib.Path,
    trained: Mapping[str, str],
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    scores: Mapping[str, Mapping[str, Any]],
    license: str,
    **shown: Any,
) -> str:
    """The card, in Markdown with the metadata that Hugging Face's tools read.

    Args:
      task: the model's config.
      description: its config.json.
      training: the run's resolved config.
      run_folder: of the run.
      trained: fingerprints of the run's own parameters, which `description`'s differ from where
        parameters were rounded.
      parameters: shapes and dtypes by "/"-joined path, as exported.
      scores: what `read_results` returns.
      license: the user's line; "" for none.
      shown: `name`, of the exported folder.
    """
    data, stream = config_lib.build(DataConfig, training["data"]), training.get("stream")
    model_name, fingerprints = description["model_name"], description["fingerprints"]
    sources = [_source(data, *named) for named in data.folders.items()]
    manifests = [source["manifest"] for source in sources if source["manifest"]]
    writers = [str((m.provenance.captions or {}).get("source", "")) for m in manifests]
    card = render(
        "model_card.md.j2",
        **shown,
        model_name=model_name,
        data=data,
        description=description,
        license=license,
        is_license_id=_LICENSE_ID.fullmatch(license),
        version=synth2_jax.__version__,
        parts=[_part(parameters, *part) for part in fingerprints.items()],
        rounded={p: trained[p] for p, found in fingerprints.items() if found != trained[p]},
        tokenizer=getattr(task, "tokenizer", None),
        vocabulary=pathlib.PurePath(data.vocabulary).name,
        sources=sources,
        stream=stream,
        generator=pathlib.PurePath(stream["generator"]).name if stream else "",
        steps=training["train"]["steps"],
        origin=_origin(training.get("started_from")),
        drawn=_drawn(run_folder, description["step"]),
        scores=[_scores(path, found, model_name) for path, found in scores.items()],
        is_scenes=data.mixture.startswith("scenes_")
        or any(writer.startswith("scenes/") for writer in writers),
        num_real=sum(manifest.counts.get("real", 0) for manifest in manifests),
        num_synthetic=sum(manifest.counts.get("synthetic", 0) for manifest in manifests),
        num_cut=sum(manifest.captions_cut for manifest in manifests),
        needs_text_encoder=getattr(task, "stored_text_features", False),
    )
    return re.sub(r"\n{3,}", "\n\n", card)


def _origin(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Adds the name of the run or file: a folder of checkpoints, or of one, is its run's."""
    if not record:
        return None
    name = pathlib.PurePath(re.sub(r"/checkpoints(/.*)?$", "", record["path"])).name
    return {**record, "name": name}


def _part(
    parameters: Mapping[str, jax.ShapeDtypeStruct], part: str, fingerprint: str
) -> tuple[str, int, str, str]:
    """Name, number of parameters, dtypes and fingerprint."""
    leaves = [leaf for path, leaf in parameters.items() if path.startswith(f"{part}/")]
    dtypes = ", ".join(sorted({leaf.dtype.name for leaf in leaves}))
    return part, sum(math.prod(leaf.shape) for leaf in leaves), dtypes, fingerprint


def _source(data: DataConfig, name: str, folder: str) -> dict[str, Any]:
    """A folder of pairs: its task and rate, and its contents unless it is gone or not whole.

    `contents` is a manifest or a view, `manifest` and `counts` are of the whole folder.
    """
    try:
        contents = views.open_pairs(folder)
    except UserError:  # moved or deleted since: the card says so
        contents = None
    manifest = getattr(contents, "manifest", contents)
    return {
        "name": name,
        "rate": json.dumps(data.rates[name]) if name in data.rates else "",
        "contents": contents,
        "is_view": isinstance(contents, views.View),
        "manifest": manifest,
        "counts": manifest.counts if manifest else {},
    }


def _drawn(run_folder: pathlib.Path, step: int) -> dict[str, int]:
    """Counts the examples of each kind that the training saw up to a step, by its own log."""
    path, pattern = run_folder / "metrics.jsonl", re.compile(r"data/(\w+)_examples")
    rows = read_metrics(path) if path.is_file() else []
    of_step = [row for row in rows if row["step"] <= step]
    last = next((row for row in reversed(of_step) if any("_examples" in name for name in row)), {})
    return {
        match[1]: int(value)
        for name, value in last.items()
        if (match := pattern.fullmatch(name)) and value is not None
    }


def _scores(
    path: str, results: Mapping[str, Any], model_name: str
) -> tuple[str, dict[str, float], dict[str, str]]:
    """The end of the path, the scores, and the texts that come with them."""
    found = flat({k: v for k, v in results.items() if k not in (model_name, "config")})
    found = {name: value for name, value in found if not isinstance(value, bool)}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    texts = {name: value for name, value in found.items() if isinstance(value, str)}
    return "/".join(pathlib.PurePath(path).parts[-2:]), numbers, texts
