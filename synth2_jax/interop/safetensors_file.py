"""Tensors of a .safetensors file, the format that PyTorch models are most often shared in."""

import pathlib

import numpy as np
import safetensors

from synth2_jax.errors import UserError


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
