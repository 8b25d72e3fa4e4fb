"""Tensors of a .safetensors file, the format that models are most often shared in.

A file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors' bytes
one after the other. So it can be written from shapes first and arrays as they come, which the
safetensors package cannot do.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors

from synth2_jax.errors import UserError

FORMAT = "synth2_jax parameters"
_DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "bool": "BOOL",
}


def read_tensors(path: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns {name: array} of the tensors whose names start with `prefix`; reads no others.

    Raises:
      UserError: no such file, or one that is not in this format.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file, expected a .safetensors file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: found no .safetensors file, but {reason!r}") from error


def write_tensors(
    path: pathlib.Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors under a temporary name, then renames; one array at a time is needed.

    Args:
      path: of the file.
      shapes: shape and dtype by name, in the order of `arrays`.
      arrays: the tensors themselves.
      metadata: goes into the header.

    Raises:
      UserError: a dtype that the format lacks.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, leaf in shapes.items():
        dtype = np.dtype(leaf.dtype)
        if dtype.name not in _DTYPES:
            raise UserError(f"{name}: found dtype {dtype.name}, expected one of {sorted(_DTYPES)}")
        start, end = end, end + int(np.prod(leaf.shape)) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[dtype.name],
            "shape": list(leaf.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for (name, leaf), array in zip(shapes.items(), arrays, strict=True):
                if array.shape != tuple(leaf.shape) or array.dtype != leaf.dtype:
                    raise ValueError(f"{name}: {array.dtype}{array.shape}, expected {leaf}")
                file.write(np.ascontiguousarray(array).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_params(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (parameters as a nested dict, metadata) of a file that `synth2 export` wrote.

    Raises:
      UserError: no such file, or one of another origin.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file, expected one that `synth2 export` wrote")
    with open(file, "rb") as opened:
        try:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            metadata = header.pop("__metadata__")
            known = metadata["format"] == FORMAT
        except (ValueError, KeyError, AttributeError, OverflowError, MemoryError):
            known = False
        if not known:
            raise UserError(f"{path}: found another file, expected what `synth2 export` writes")
        start = opened.tell()
    data = np.memmap(file, np.uint8, mode="r", offset=start)
    dtypes = {short: name for name, short in _DTYPES.items()}
    params: dict[str, Any] = {}
    for name, told in header.items():
        dtype = ml_dtypes.bfloat16 if told["dtype"] == "BF16" else dtypes[told["dtype"]]
        first, end = told["data_offsets"]
        *path_to, last = name.split(".")
        place = params
        for key in path_to:
            place = place.setdefault(key, {})
        place[last] = np.array(data[first:end]).view(dtype).reshape(told["shape"])
    return params, metadata
