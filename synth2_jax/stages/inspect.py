"""`synth2 inspect --workdir=DIR`: says what is in a training run or in a folder of pairs.

Of a run: the step, parameter tree with shapes and sizes, fingerprints, config. Of pairs: counts,
shards, provenance, some captions; every byte is checked against the manifest.
"""

import itertools
import json
import pathlib
from typing import Any

import numpy as np

from synth2_jax.data import records
from synth2_jax.errors import UserError
from synth2_jax.training import checkpoints, train_state

NUM_SHOWN = 5


def run(config: Any, workdir: str) -> None:
    """Prints; there is nothing to configure."""
    del config
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a training run or a folder of pairs")
    if (folder / records.MANIFEST).exists() and (folder / "captions.jsonl").exists():
        print((folder / records.MANIFEST).read_text())
    elif (folder / records.MANIFEST).exists() or (folder / records.PROGRESS).exists():
        print(describe_pairs(folder))
    else:
        print(describe_run(folder))


def describe_run(folder: pathlib.Path) -> str:
    """The newest checkpoint of a training run, in lines."""
    step = checkpoints.latest_step(folder)
    params, config, fingerprints = checkpoints.restore_params(folder, step)
    flat = train_state.flatten(params)
    width = max(len(path) for path in flat)
    lines = [f"{config.get('model_name', 'model')} at step {step} in {folder}", ""]
    for path, leaf in sorted(flat.items()):
        lines.append(f"{path:<{width}}  {leaf.dtype.name:<8}  {tuple(leaf.shape)}")
    lines.append("")
    for part in params:
        count = sum(leaf.size for leaf in train_state.flatten({part: params[part]}).values())
        fingerprint = checkpoints.fingerprint(params[part])
        lines.append(f"{part:<{width}}  {count:>12,} parameters  fingerprint {fingerprint}")
    for name, value in fingerprints.items():
        lines.append(f"trained on top of {name} {value}")
    lines += ["", json.dumps(config, indent=2)]
    return "\n".join(lines)


def describe_pairs(folder: pathlib.Path) -> str:
    """A folder of pairs, in lines; UserError when a byte differs from what the manifest says."""
    manifest = records.verify(folder)
    provenance = manifest.provenance
    pairs = list(itertools.islice(records.read_pairs(folder), 2000))
    codes = np.unique(np.stack([pair.image_tokens for pair in pairs])) if pairs else np.zeros(0)
    lines = [
        f"{manifest.num_pairs:,} pairs in {len(manifest.shards)} shards in {folder}, "
        "all hashes right",
        f"sources: {dict(manifest.counts)}",
        f"tokenizer {provenance.tokenizer}, {provenance.num_image_tokens} tokens an image, "
        f"{len(codes)} of {provenance.codebook_size} codes in the first {len(pairs)} pairs",
    ]
    for name in ("generator", "sampler", "captions"):
        if value := getattr(provenance, name):
            lines.append(f"{name}: {json.dumps(dict(value), default=dict)}")
    lines += [f"  {pair.key}  {pair.caption!r}" for pair in pairs[:NUM_SHOWN]]
    return "\n".join(lines)
