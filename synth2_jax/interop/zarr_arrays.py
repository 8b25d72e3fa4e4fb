"""Named arrays of a folder that t5x or Orbax wrote, opened without being read.

They are zarr or zarr3, folders each, or all in one OCDBT database (`manifest.ocdbt`).
"""

import collections
import math
import os
import pathlib
import re
from typing import Any

import numpy as np
import tensorstore

from synth2_jax.errors import UserError
from synth2_jax.interop.lazy_array import Index, LazyArray
from synth2_jax.interop.tensor_files import Tensors

_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}  # by the file that holds an array's shape
_NO_CHUNKS = {*_DRIVERS, ".zattrs"}


def open_zarr_arrays(path: str | os.PathLike[str], wanted: str = "") -> Tensors:
    """The arrays by their paths in the tree that was saved, joined with "/"; {} without any.

    `wanted` is a pattern of the beginnings of names as they are stored, "target.encoder."; every
    entry that it matches must be an array. "" takes all arrays and ignores other entries.

    Raises:
      UserError: a copy or save that was not finished: all arrays that lack a part are named.
    """
    folder = pathlib.Path(path)
    kvstore = _kvstore(folder)
    try:
        keys = tensorstore.KvStore.open(kvstore).result().list().result()
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: cannot be read: {_reason(error)}") from error
    names = [key.decode(errors="backslashreplace") for key in keys]
    files = [pathlib.PurePosixPath(name) for name in names]
    files = [file for file in files if len(file.parts) > 1 and re.match(wanted, str(file))]
    drivers = {str(file.parent): _DRIVERS[file.name] for file in files if file.name in _DRIVERS}
    if wanted:
        arrays = {name.partition("/")[0] for name in drivers}
        if bare := sorted({file.parts[0] for file in files} - arrays):
            raise UserError(
                f"{folder}: is not whole: {len(bare)} arrays without their "
                f"{' or '.join(_DRIVERS)} ({', '.join(bare)})"
            )
    num_chunks = collections.Counter(
        str(parent) for file in files if file.name not in _NO_CHUNKS for parent in file.parents
    )
    opened = {
        name: tensorstore.open(
            {"driver": driver, "kvstore": {**kvstore, "path": f"{kvstore.get('path', '')}{name}/"}},
            open=True,
            read=True,
        )
        for name, driver in drivers.items()
    }
    tensors, torn = {}, []
    for name, future in opened.items():
        try:
            array = future.result()
        except (ValueError, OSError) as error:
            torn.append(f"{name}: {_reason(error)}")
            continue
        chunk = array.chunk_layout.write_chunk.shape or ()  # None if there are no axes
        expected = math.prod(
            -(-size // step) for size, step in zip(array.shape, chunk, strict=True)
        )
        if num_chunks[name] < expected:  # TensorStore would read zeros there
            torn.append(f"{name}: {num_chunks[name]} of {expected} chunks")
        tensors[name.replace(".", "/")] = _lazy(array, f"{folder}: {name}")
    if torn:
        raise UserError(f"{folder}: is not whole: {len(torn)} arrays ({'; '.join(sorted(torn))})")
    return tensors


def _kvstore(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the spec by which TensorStore finds the arrays."""
    base = f"{folder.resolve()}/"
    if (folder / "manifest.ocdbt").is_file():
        return {"driver": "ocdbt", "base": {"driver": "file", "path": base}}
    if parts := sorted(child.name for child in folder.glob("ocdbt.process_*")):
        raise UserError(f"{folder}: is not whole: found {parts}, but no manifest.ocdbt")
    return {"driver": "file", "path": base}


def _lazy(array: tensorstore.TensorStore, where: str) -> LazyArray:
    def read(box: Index) -> np.ndarray:
        try:
            return array[box].read().result()
        except (ValueError, OSError) as error:
            raise UserError(
                f"{where}: cannot be read ({_reason(error)}); was it copied whole?"
            ) from error

    return LazyArray(array.shape, array.dtype.numpy_dtype, read)


def _reason(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"


def open_orbax(path: str | os.PathLike[str]) -> Tensors:
    """The arrays of Orbax's folder, by their paths in the tree that was saved, joined with "/".

    Raises:
      UserError: no folder with arrays, or as `open_zarr_arrays`.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a checkpoint of Orbax")
    if ".orbax-checkpoint-tmp" in folder.name:
        raise UserError(f"{folder}: its save was not finished, as its name says")
    tensors = open_zarr_arrays(folder / "default" if (folder / "default").is_dir() else folder)
    if not tensors:
        raise UserError(f"{folder}: found no arrays, expected a checkpoint of Orbax")
    return tensors
