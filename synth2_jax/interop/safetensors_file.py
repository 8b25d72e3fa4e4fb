"""Writes .safetensors files, the format that models are most often shared in.

A file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors' bytes
one after the other. So it can be written from shapes first and arrays as they come, which the
safetensors package cannot do.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.files import write_json, written_whole

FORMAT = "synth2_jax parameters"
# Hugging Face's tools refuse files with metadata that does not say so.
_READABLE = {"format": "pt"}
_DTYPES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"int32": "I32", "uint32": "U32", "bool": "BOOL"},
}
Shapes = Mapping[str, jax.ShapeDtypeStruct]


def write_tensors(
    path: pathlib.Path,
    shapes: Shapes,
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors under a temporary name, then renames; one array at a time is needed.

    `shapes` are in the order of `arrays`, and `metadata` goes into the header. Raises UserError on
    a dtype that the format lacks.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, leaf in shapes.items():
        dtype = np.dtype(leaf.dtype).name
        if dtype not in _DTYPES:
            raise UserError(f"{name}: found dtype {dtype}, expected one of {sorted(_DTYPES)}")
        start, end = end, end + _num_bytes(leaf)
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(leaf.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, leaf), array in zip(shapes.items(), arrays, strict=True):
            if array.shape != tuple(leaf.shape) or array.dtype != leaf.dtype:
                raise ValueError(f"{name}: {array.dtype}{array.shape}, expected {leaf}")
            file.write(np.ascontiguousarray(array).tobytes())


def write_folder(
    folder: pathlib.Path, shapes: Shapes, arrays: Iterable[np.ndarray], file_bytes: int
) -> list[str]:
    """Writes tensors as Hugging Face's tools do: model.safetensors, or several files and an index.

    Returns the names of the files. Each holds `file_bytes` of tensors at most; a larger tensor has
    a file to itself. The rest is as in `write_tensors`.
    """
    parts: list[dict[str, jax.ShapeDtypeStruct]] = [{}]
    for name, leaf in shapes.items():
        if parts[-1] and _num_bytes(*parts[-1].values(), leaf) > file_bytes:
            parts.append({})
        parts[-1][name] = leaf
    files = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    arrays = iter(arrays)
    for file, part in zip(files, parts, strict=True):
        write_tensors(folder / file, part, itertools.islice(arrays, len(part)), _READABLE)
    for _ in arrays:
        raise ValueError(f"more arrays than the {len(shapes)} shapes")
    if len(parts) > 1:
        index = {
            "metadata": {"total_size": _num_bytes(*shapes.values())},
            "weight_map": {n: file for file, part in zip(files, parts, strict=True) for n in part},
        }
        write_json(folder / "model.safetensors.index.json", index)
        files.append("model.safetensors.index.json")
    return files


def _num_bytes(*leaves: jax.ShapeDtypeStruct) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
