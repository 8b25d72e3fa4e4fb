"""Named arrays of a folder that Orbax wrote, opened without being read."""

import os
import pathlib

from synth2_jax.errors import UserError
from synth2_jax.interop.tensor_files import Tensors
from synth2_jax.interop.zarr_arrays import open_zarr_arrays

_UNFINISHED = ".orbax-checkpoint-tmp"  # in names while a save runs


def open_orbax(path: str | os.PathLike[str]) -> Tensors:
    """The arrays by their paths in the tree that was saved, joined with "/".

    Raises:
      UserError: no folder with arrays, or one whose save or copy was not finished: all arrays that
        lack a part are named.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a checkpoint of Orbax")
    if _UNFINISHED in folder.name:
        raise UserError(f"{folder}: its save was not finished, as its name says")
    if (folder / "default").is_dir():
        folder /= "default"
    tensors = open_zarr_arrays(folder)
    if not tensors:
        raise UserError(f"{folder}: found no arrays, expected a checkpoint of Orbax")
    return tensors
