"""`synth2 inspect DIR`: says what is in a training run, an exported model or a folder of pairs.

`synth2 inspect MIXTURE`, a task or mixture of SeqIO: see pages/mixture.py.

    synth2 inspect workdir/demo/generator
    synth2 inspect workdir/demo/generator/checkpoints/2000 --fingerprints

Of a run, its checkpoints or one of them: steps, parameter tree with shapes and sizes, fingerprints,
config. Only metadata is read, so a laptop can look at any model; `--fingerprints` reads every
parameter, one at a time, for the parts' own fingerprints. Of an exported model: the same, as far as
it has them; `--fingerprints` checks that no byte of it has changed. Of pairs: counts, shards,
provenance, some captions; every byte is checked against the manifest.
"""

import itertools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data import records, views
from synth2_jax.errors import UnknownNameError, UserError, nearest
from synth2_jax.files import read_json
from synth2_jax.fingerprint import by_part
from synth2_jax.inert_text import inert
from synth2_jax.loading.exported import is_exported, open_exported
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig
from synth2_jax.pages import mixture
from synth2_jax.training import checkpoint_reader

NUM_SHOWN = 5


def run(config: Any, workdir: str, fingerprints: bool = False, **mixture_options: str) -> None:
    """Prints what is there; only a mixture reads the config."""
    folder = pathlib.Path(workdir)
    if not folder.exists() and folder.parent == pathlib.Path.cwd():
        try:
            mixture.show(config, folder.name, **mixture_options)
        except UnknownNameError as error:
            here = [path.name for path in folder.parent.iterdir() if path.is_dir()]
            raise UserError(
                f"{folder.name}: no such folder in {folder.parent}; {nearest(folder.name, here)}; "
                f"nor is it a mixture: {str(error).removeprefix('--config.data.mixture: ')}"
            ) from error
        return
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder, expected a training run, an exported model, a folder of "
            "pairs, or the name of a mixture"
        )
    described = _describe(folder, with_fingerprints=fingerprints)
    print("\n".join(inert(line) for line in described.splitlines()))  # it may come from anywhere


def _describe(folder: pathlib.Path, *, with_fingerprints: bool) -> str:
    if (folder / views.VIEW).exists():
        return describe_view(folder)
    if (folder / records.MANIFEST).exists() and (folder / "captions.jsonl").exists():
        found = read_json(folder / records.MANIFEST, "captions")
        return json.dumps(found, indent=2, ensure_ascii=False)
    if (folder / records.MANIFEST).exists() or (folder / records.PROGRESS).exists():
        return describe_pairs(folder)
    describe = describe_export if is_exported(folder) else describe_run
    return describe(folder, with_fingerprints=with_fingerprints)


def describe_view(folder: pathlib.Path) -> str:
    """A view, in lines; UserError when its rows are not those that were written."""
    view = views.open_view(folder)
    chosen = {name: value for name, value in view.chosen.items() if name != "scores"}
    return (
        f"a view of {view.num_pairs:,} of {view.manifest.num_pairs:,} pairs in {view.pairs}\n"
        f"{view.num_repaired:,} with the image of another pair; chosen: {json.dumps(chosen)}"
    )


def describe_run(folder: pathlib.Path, *, with_fingerprints: bool = False) -> str:
    """The newest checkpoint of a training run, in lines."""
    steps = checkpoint_reader.saved_steps(folder)
    step = steps[-1]
    config, built_on = checkpoint_reader.read_description(folder, step)
    params = checkpoint_reader.saved_arrays(folder, step)
    fingerprints = {}
    if with_fingerprints:
        section = config.get("model", {}).get("tokenizer")
        tokenizer = config_lib.build(VQTokenizerConfig, section, "tokenizer") if section else None
        arrays = checkpoint_reader.read_arrays(folder, step, sorted(params))
        fingerprints = by_part(arrays, tokenizer)
    state = checkpoint_reader.saved_arrays(folder, step, "train")
    optimizer = [path for path in state if path.startswith("opt_state")]
    average = checkpoint_reader.saved_average(folder, step)
    width, decay = max(map(len, params)), config.get("train", {}).get("ema_decay")
    averaged = f"{'moving average':<{width}}  {len(average):>15,} arrays      "
    averaged += f"{_size(_total(average, [*average])):>9}  (decay {decay}; later stages take it)"
    saved_by = len(checkpoint_reader.position_files(folder, step))
    return _model(
        f"{config.get('model_name', 'model')} at step {step} in {folder}",
        f"steps saved: {', '.join(map(str, steps))}",
        (params, fingerprints, built_on, config),
        f"{'optimizer state':<{width}}  {len(optimizer):>15,} arrays      "
        f"{_size(_total(state, optimizer)):>9}",
        *[averaged] * bool(average),
        f"position of the data saved by {saved_by} data shard{'s' * (saved_by != 1)}",
    )


def describe_export(folder: pathlib.Path, *, with_fingerprints: bool = False) -> str:
    """An exported model, in lines; with fingerprints, UserError where a file has changed."""
    exported = open_exported(folder)
    told = dict(exported.description)
    fingerprints, built_on, sha256 = (told.pop(n) for n in ("fingerprints", "built_on", "sha256"))
    if with_fingerprints and (changed := exported.changed_files()):
        raise UserError(
            f"{folder}: changed since the export, by their sha256: {', '.join(changed)}"
        )
    files = f"{len(sha256)} file{'s' * (len(sha256) != 1)}"
    return _model(
        f"exported {told['model_name']}, step {told['step']} of the run {told['run']}, in {folder}",
        f"{files}, all as they were exported" if with_fingerprints else files,
        (exported.tensors, fingerprints, built_on, told),
    )


def _model(heading: str, files: str, held: tuple[Mapping[str, Any], ...], *more: str) -> str:
    """Lines for arrays, then for each part of the model, then what it was built on and is."""
    arrays, fingerprints, built_on, config = held
    width = max(map(len, arrays))
    lines = [heading, files, ""]
    for name, leaf in sorted(arrays.items()):
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        size = _size(_total(arrays, [name]))
        lines.append(f"{name:<{width}}  {leaf.dtype.name:<8}  {shape:<18}  {size:>9}")
    lines.append("")
    # The part is the first in a name: "vlm/resampler", "vlm.resampler".
    for part, group in itertools.groupby(sorted(arrays), lambda name: re.split("[/.]", name)[0]):
        names = list(group)
        count = sum(math.prod(arrays[name].shape) for name in names)
        note = f"  fingerprint {fingerprints[part]}" if part in fingerprints else ""
        size = _size(_total(arrays, names))
        lines.append(f"{part:<{width}}  {count:>15,} parameters  {size:>9}{note}")
    lines += [*more, *(f"trained on top of {name} {value}" for name, value in built_on.items())]
    if origin := config.get("started_from"):
        networks = ", ".join(f"{name} {value}" for name, value in origin["fingerprints"].items())
        lines.append(f"started from {origin['path']}, step {origin['step']}, {networks}")
    return "\n".join([*lines, "", json.dumps(config, indent=2)])


def _total(arrays: Mapping[str, Any], names: list[str]) -> int:
    return sum(
        math.prod(arrays[name].shape) * np.dtype(arrays[name].dtype).itemsize for name in names
    )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} GiB"


def describe_pairs(folder: pathlib.Path) -> str:
    """A folder of pairs, in lines; UserError when a byte differs from what the manifest says."""
    manifest = records.verify(folder)
    provenance = manifest.provenance
    pairs = list(itertools.islice(records.read_pairs(folder), 2000))
    if provenance.image_size:
        contents = f"images of {provenance.image_size} pixels, for a tokenizer in the step"
    else:
        tokens = [pair.image_tokens for pair in pairs]
        codes = np.unique(np.stack(tokens)) if tokens else np.zeros(0)
        contents = (
            f"tokenizer {provenance.tokenizer}, {provenance.num_image_tokens} tokens an image, "
            f"{len(codes)} of {provenance.codebook_size} codes in the first {len(pairs)} pairs"
        )
    lines = [
        f"{manifest.num_pairs:,} pairs in {len(manifest.shards)} shards in {folder}, "
        "all hashes right",
        f"sources: {dict(manifest.counts)}",
        contents,
    ]
    for name in ("generator", "sampler", "captions", "text_encoder"):
        if value := getattr(provenance, name):
            lines.append(f"{name}: {json.dumps(dict(value), default=dict)}")
    if manifest.skipped:
        lines.append(f"skipped: {dict(manifest.skipped)}")
        for skip in manifest.skipped_examples[:NUM_SHOWN]:
            said = (skip.get(name, "") for name in ("key", "reason", "detail"))
            lines.append(inert("  {}  {}: {}".format(*said), 160))
    lines += [f"  {inert(pair.key)}  {pair.caption!r}" for pair in pairs[:NUM_SHOWN]]
    return "\n".join(lines)
