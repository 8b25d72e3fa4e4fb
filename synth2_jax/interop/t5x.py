"""The encoder of a t5x checkpoint.

A checkpoint is a folder `checkpoint_STEP` in one of the layouts that t5x has written:

- t5x's own: `target.encoder....` and the like, a zarr array each, beside a msgpack file
  `checkpoint` that holds parameters which were not partitioned.
- Orbax: a folder `state` (or `default`, or none between) with the same arrays as folders, or all
  of them in one OCDBT database (`manifest.ocdbt`); zarr or zarr3.

`_NAMES` has the names below `target`, "." in files for "/". Kernels are [inputs, outputs]; heads
are one axis with their dim, or two in `scalable_t5`, umT5's network. That one also has a bias in
each layer, and may be scanned: all layers are then one array in `encoder/encoder`, along axis 1.
Nothing says which activation a gated MLP has: the config does. A part of an array is read from its
chunks, each of them whole; chunks are the parts that the devices of the writer held.
"""

import os
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble, by_names, one
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import recognise
from synth2_jax.interop.tensor_files import Tensors, open_flax_msgpack
from synth2_jax.interop.zarr_arrays import open_zarr_arrays
from synth2_jax.models.text_encoder import TextEncoderConfig, parameter_shapes

_UNFINISHED = re.compile(r"\.(orbax-checkpoint-tmp|tmp-\d)")  # names while a save runs
_OF_ENCODER = re.compile(r"target[./](encoder|token_embedder)[./]")
_SCANNED = "encoder/encoder"
_ATTENTION = ("query", "key", "value", "out")
_NAMES = {
    "token_embedding/embedding": "token_embedder/embedding",
    "final_norm/scale": "encoder/encoder_norm/scale",
    "relpos_bias/embedding": "encoder/relpos_bias/rel_embedding",
    **{
        f"encoder/layers_{{}}/{ours}": f"encoder/layers_{{}}/{theirs}"
        for ours, theirs in {
            "relpos_bias/embedding": "relpos_bias/rel_embedding",
            "attention_norm/scale": "pre_attention_layer_norm/scale",
            **{f"attention/{name}/kernel": f"attention/{name}/kernel" for name in _ATTENTION},
            "mlp_norm/scale": "pre_mlp_layer_norm/scale",
            "mlp/gate/kernel": "mlp/wi_0/kernel",
            "mlp/up/kernel": "mlp/wi_1/kernel",
            "mlp/down/kernel": "mlp/wo/kernel",
        }.items()
    },
}
_WITHOUT_GATE = {"encoder/layers_{}/mlp/up/kernel": "encoder/layers_{}/mlp/wi/kernel"}


def load_text_encoder(path: str | os.PathLike[str], config: TextEncoderConfig) -> dict[str, Any]:
    """The parameters of models.text_encoder.TextEncoder, as LazyArrays: nothing is read yet.

    `path` is a checkpoint, or a folder of several: the newest is taken. Decoder and optimizer are
    skipped. A scanned checkpoint is read best if `config.scan_layers`: else each layer reads the
    chunks that it shares with others.

    Raises:
      UserError: no t5x checkpoint, one whose save or copy was not finished (what is missing is
        named), or tensors that do not fit the config (all are listed).
    """
    folder = _checkpoint(pathlib.Path(path))
    tensors = _open(folder)
    shapes = parameter_shapes(config)
    recipes = by_names(shapes, _NAMES if config.gated_mlp else _NAMES | _WITHOUT_GATE)
    if any(name.startswith(f"{_SCANNED}/") for name in tensors):
        recipes |= {
            path: _from_all_layers(path, recipe.names[0], config)
            for path, recipe in recipes.items()
            if path.startswith("encoder/layers")
        }
    return assemble(recipes, tensors, shapes, str(folder))


def _from_all_layers(path: str, name: str, config: TextEncoderConfig) -> Recipe:
    """Our parameter from their array of all layers, which are its axis 1."""
    layer = re.match(r"encoder/layers_(\d+)/", path)

    def change(kernel: LazyArray) -> LazyArray:
        if kernel.shape[1] != config.num_layers:
            raise ValueError(f"{kernel.shape} has not {config.num_layers} layers in axis 1")
        if layer:
            return kernel.take(1, int(layer[1]))
        return kernel.transpose(1, 0, *range(2, kernel.ndim))

    return one(re.sub(r"^encoder/layers_\d+", _SCANNED, name), change)


def _checkpoint(path: pathlib.Path) -> pathlib.Path:
    """The folder with the arrays."""
    if not path.is_dir():
        found = recognise(path).description  # raises if nothing is there
        raise UserError(f"{path}: found {found}, expected the folder of a t5x checkpoint")
    steps = {
        int(match[1]): child
        for child in path.iterdir()
        if (match := re.fullmatch(r"checkpoint_(\d+)", child.name)) and child.is_dir()
    }
    folder = steps[max(steps)] if steps else path
    inner = [folder / name for name in ("state", "default") if (folder / name).is_dir()]
    unfinished = [child.name for child in folder.iterdir() if _UNFINISHED.search(child.name)]
    if _UNFINISHED.search(folder.name) or (unfinished and not inner):
        raise UserError(
            f"{folder}: its save was not finished, as the names of {[folder.name, *unfinished]} "
            "say; expected a whole t5x checkpoint"
        )
    return inner[0] if inner else folder


def _open(folder: pathlib.Path) -> Tensors:
    """The encoder's arrays, by their names below `target`."""
    tensors = {
        name.removeprefix("target/"): _as_bfloat16(tensor)
        for name, tensor in open_zarr_arrays(folder, wanted=_OF_ENCODER.pattern).items()
    }
    if (folder / "checkpoint").is_file():
        for name, tensor in open_flax_msgpack(folder / "checkpoint").items():
            name = name.removeprefix("optimizer/")
            if _OF_ENCODER.match(name):
                tensors[name.removeprefix("target/")] = tensor
    if not tensors:
        raise UserError(
            f"{folder}: found {recognise(folder).description}, expected a t5x checkpoint with an "
            "encoder"
        )
    return tensors


def _as_bfloat16(tensor: LazyArray) -> LazyArray:
    """t5x before June 2021 had no other way to write bfloat16 than as uint16."""
    if tensor.dtype != np.uint16:
        return tensor
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return LazyArray(tensor.shape, bfloat16, lambda box: tensor[box].view(bfloat16))
