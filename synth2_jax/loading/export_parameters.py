"""The parameters of a checkpoint as `synth2 export` writes them; one at a time is in memory."""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import synth2_jax
from synth2_jax.errors import UserError, nearest
from synth2_jax.interop.safetensors_file import FORMAT, write_tensors
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.layers import lora
from synth2_jax.loading.exported import tensor_name
from synth2_jax.progress import Progress
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.objectives import make_objective

MIB = 2**20


class ExportParameters:
    """The parameters of a checkpoint, or of a part such as "vlm/resampler".

    LoRA adapters are merged into their matrices. With a dtype all are rounded to it, but those of
    the top-level part `kept_as_is`. UserError if there is no checkpoint, or no such part.
    """

    def __init__(self, workdir: str, part: str = "", dtype: Any = None, kept_as_is: str = ""):
        self.workdir, self.step = workdir, checkpoint_reader.latest_step(workdir)
        self.saved = checkpoint_reader.saved_arrays(workdir, self.step)
        start = f"{part}/" if part else ""
        self.names = sorted(
            name
            for name in self.saved
            if f"{name}/".startswith(start) and not lora.is_adapter(name)
        )
        pairs = ((name, lora.adapters_of(name, self.saved)) for name in self.names)
        self.adapters = {name: pair for name, pair in pairs if pair}  # by their matrix
        if not self.names:
            parts = {"/".join(name.split("/")[:depth]) for name in self.saved for depth in (1, 2)}
            raise UserError(f"--part={part}: the model has no such part; {nearest(part, parts)}")
        self.shapes = {}
        for name in self.names:
            leaf = self.saved[name]
            is_cast = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
            if is_cast and name.partition("/")[0] != kept_as_is:
                leaf = jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype))
            self.shapes[name] = leaf

    def by_tensor(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes by name in the file."""
        return {tensor_name(name): leaf for name, leaf in self.shapes.items()}

    def arrays(self) -> Iterator[np.ndarray]:
        """The parameters as they are written."""
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in self.shapes.values()) // MIB
        done = 0
        with Progress("export", total, "MiB") as progress:
            for name, array in self.merged():
                array = np.asarray(array).astype(self.shapes[name].dtype)
                yield array
                done += array.nbytes
                progress.add(done // MIB)
                done %= MIB

    def as_saved(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, parameter) as in the checkpoint, adapters too."""
        names = [*self.names, *itertools.chain(*self.adapters.values())]
        return checkpoint_reader.read_arrays(self.workdir, self.step, sorted(names))

    def merged(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, parameter) without adapters; the matrices that had them are float32."""
        order = (one for name in self.names for one in (name, *self.adapters.get(name, ())))
        arrays = checkpoint_reader.read_arrays(self.workdir, self.step, order)
        if self.adapters:
            config, _ = checkpoint_reader.read_description(self.workdir, self.step)
            objective = make_objective(config["model_name"], config["model"])
            scale, boxes = objective.task.vlm.lora.scale, objective.boxed_shapes
        for name, array in arrays:
            if pair := self.adapters.get(name):
                (_, a), (_, b) = next(arrays), next(arrays)
                axes = [boxes[path].names for path in (name, *pair)]
                array = np.asarray(lora.merge(array, a, b, axes, scale))
            yield name, array

    def as_loaded(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, parameter) as the model has them when it is loaded: merged, in its own dtypes."""
        return ((name, array.astype(self.saved[name].dtype)) for name, array in self.merged())

    @property
    def rounds_adapters(self) -> bool:
        """True if the files have matrices of fewer bits than the merge, float32."""
        return any(self.shapes[name].dtype != np.float32 for name in self.adapters)

    def description(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(config, built_on) of the model with its adapters merged; else those of the run."""
        config, built_on = checkpoint_reader.read_description(self.workdir, self.step)
        if self.adapters:
            model = config["model"]
            model = {**model, "vlm": {**model["vlm"], "lora": None}}
            config = {**config, "model": model}
            built_on = {name: one for name, one in built_on.items() if name != "language_model"}
        return config, built_on


def write_parameters(target: pathlib.Path, parameters: ExportParameters) -> None:
    """Writes one .safetensors file and reads it back; UserError if it differs."""
    config, built_on = parameters.description()
    written: list[str] = []

    def arrays() -> Iterator[np.ndarray]:
        for array in parameters.arrays():
            written.append(_sha256(array))
            yield array

    write_tensors(
        target,
        parameters.by_tensor(),
        arrays(),
        metadata={
            "format": FORMAT,
            "version": synth2_jax.__version__,
            "model_name": str(config.get("model_name")),
            "step": str(parameters.step),
            "fingerprints": json.dumps(built_on, sort_keys=True),
            "config": json.dumps(config, sort_keys=True),
        },
    )
    tensors = open_safetensors(target)
    if [_sha256(np.asarray(tensors[name])) for name in parameters.by_tensor()] != written:
        raise UserError(f"{target}: does not read back as it was written; is the disk damaged?")


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest()
