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

    Args:
      path: of the folder.
      wanted: a pattern of the beginnings of names as they are stored, "target.encoder."; every
        entry that it matches must be an array. "" takes all arrays and no notice of other entries.

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
    opened = {name: _open(kvstore, name, driver) for name, driver in drivers.items()}
    tensors, torn = {}, []
    for name, future in opened.items():
        try:
            array = future.result()
        except (ValueError, OSError) as error:
            torn.append(f"{name}: {_reason(error)}")
            continue
        found, expected = num_chunks[name], _num_chunks(array)
        if found < expected:  # TensorStore would read zeros there
            torn.append(f"{name}: {found} of {expected} chunks")
        tensors[name.replace(".", "/")] = _lazy(array, f"{folder}: {name}")
    if torn:
        raise UserError(f"{folder}: is not whole: {len(torn)} arrays ({'; '.join(sorted(torn))})")
    return tensors


def _kvstore(folder: pathlib.Path) -> dict[str, Any]:
    """Where TensorStore finds the arrays."""
    base = f"{folder.resolve()}/"
    if (folder / "manifest.ocdbt").is_file():
        return {"driver": "ocdbt", "base": {"driver": "file", "path": base}}
    if parts := sorted(child.name for child in folder.glob("ocdbt.process_*")):
        raise UserError(f"{folder}: is not whole: found {parts}, but no manifest.ocdbt")
    return {"driver": "file", "path": base}


def _open(kvstore: dict[str, Any], name: str, driver: str) -> tensorstore.Future:
    inside = {**kvstore, "path": f"{kvstore.get('path', '')}{name}/"}
    return tensorstore.open({"driver": driver, "kvstore": inside}, open=True, read=True)


def _num_chunks(array: tensorstore.TensorStore) -> int:
    chunk = array.chunk_layout.write_chunk.shape or ()  # None where there are no axes
    return math.prod(-(-size // step) for size, step in zip(array.shape, chunk, strict=True))


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
