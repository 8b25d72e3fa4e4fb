"""`synth2 inspect DIR`: says what is in a training run or in a folder of pairs.

`synth2 inspect MIXTURE`, a name of SeqIO's: see inspect_mixture.py.

    synth2 inspect workdir/demo/generator
    synth2 inspect workdir/demo/generator/checkpoints/2000 --fingerprints=true

Of a run, its checkpoints or one of them: steps, parameter tree with shapes and sizes, fingerprints,
config. Only metadata is read, so a laptop can look at any model; `--fingerprints=true` reads every
parameter, one at a time, for the parts' own fingerprints. Of pairs: counts, shards, provenance,
some captions; every byte is checked against the manifest.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from synth2_jax.data import records, views
from synth2_jax.errors import UserError
from synth2_jax.stages import inspect_mixture
from synth2_jax.stages.inert_text import inert
from synth2_jax.training import checkpoints

NUM_SHOWN = 5


def run(config: Any, workdir: str, fingerprints: str = "false", **mixture_options: str) -> None:
    """Prints; a config is of use with a mixture alone."""
    if fingerprints not in ("true", "false"):
        raise UserError(f"--fingerprints={fingerprints}: expected true or false")
    folder = pathlib.Path(workdir)
    if not folder.exists() and folder.parent == pathlib.Path.cwd():
        inspect_mixture.show(config, folder.name, **mixture_options)
        return
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder, expected a training run, a folder of pairs, or the name of "
            "a mixture"
        )
    if (folder / views.VIEW).exists():
        view = views.open_view(folder)
        print(f"a view of {view.num_pairs:,} of {view.manifest.num_pairs:,} pairs in {view.pairs}")
        chosen = {name: value for name, value in view.chosen.items() if name != "scores"}
        print(f"{view.num_repaired:,} with another's image; chosen: {json.dumps(chosen)}")
    elif (folder / records.MANIFEST).exists() and (folder / "captions.jsonl").exists():
        print((folder / records.MANIFEST).read_text())
    elif (folder / records.MANIFEST).exists() or (folder / records.PROGRESS).exists():
        print(describe_pairs(folder))
    else:
        print(describe_run(folder, with_fingerprints=fingerprints == "true"))


def describe_run(folder: pathlib.Path, *, with_fingerprints: bool = False) -> str:
    """The newest checkpoint of a training run, in lines."""
    steps = checkpoints.saved_steps(folder)
    step = steps[-1]
    config, built_on = checkpoints.read_description(folder, step)
    params = checkpoints.saved_arrays(folder, step)
    width = max(len(path) for path in params)
    lines = [
        f"{config.get('model_name', 'model')} at step {step} in {folder}",
        f"steps saved: {', '.join(map(str, steps))}",
        "",
    ]
    for path, leaf in sorted(params.items()):
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        lines.append(
            f"{path:<{width}}  {leaf.dtype.name:<8}  {shape:<18}  {_size(_bytes(leaf)):>9}"
        )
    lines.append("")
    for part in sorted({path.split("/")[0] for path in params}):
        names = sorted(path for path in params if path.split("/")[0] == part)
        count = sum(math.prod(params[path].shape) for path in names)
        line = f"{part:<{width}}  {count:>15,} parameters  {_size(_total(params, names)):>9}"
        if with_fingerprints:
            arrays = checkpoints.read_arrays(folder, step, names)
            inside = ((path.partition("/")[2], array) for path, array in arrays)
            line += f"  fingerprint {checkpoints.fingerprint_arrays(inside)}"
        lines.append(line)
    state = checkpoints.saved_arrays(folder, step, "train")
    optimizer = [path for path in state if path.startswith("opt_state")]
    saved_by = len(checkpoints.position_files(folder, step))
    lines += [
        f"{'optimizer state':<{width}}  {len(optimizer):>15,} arrays      "
        f"{_size(_total(state, optimizer)):>9}",
        f"position of the data saved by {saved_by} process{'es' * (saved_by != 1)}",
        *(f"trained on top of {name} {value}" for name, value in built_on.items()),
        "",
        json.dumps(config, indent=2),
    ]
    return "\n".join(lines)


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _total(arrays: Mapping[str, jax.ShapeDtypeStruct], names: list[str]) -> int:
    return sum(_bytes(arrays[name]) for name in names)


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
            lines.append(inert(f"  {skip['key']}  {skip['reason']}: {skip['detail']}", 160))
    lines += [f"  {inert(pair.key)}  {pair.caption!r}" for pair in pairs[:NUM_SHOWN]]
    return "\n".join(lines)
