"""The encoder of a t5x checkpoint.

A checkpoint is a folder `checkpoint_STEP` in one of the layouts that t5x has written:

- t5x's own: `target.encoder....` and the like, a zarr array each, beside a msgpack file
  `checkpoint` that holds parameters which were not partitioned.
- Orbax: a folder `state` (or `default`, or none between) with the same arrays as folders, or all
  of them in one OCDBT database (`manifest.ocdbt`); zarr or zarr3.

Its names below `target`, "." in files for "/", and shapes:

    token_embedder/embedding                                 [V, D]
    encoder/layers_I/pre_attention_layer_norm/scale          [D]
    encoder/layers_I/attention/{query,key,value}/kernel      [D, H K]
    encoder/layers_I/attention/out/kernel                    [H K, D]
    encoder/layers_I/pre_mlp_layer_norm/scale                [D]
    encoder/layers_I/mlp/{wi_0,wi_1}/kernel                  [D, M], or wi without a gate
    encoder/layers_I/mlp/wo/kernel                           [M, D]
    encoder/relpos_bias/rel_embedding                        [H, buckets]
    encoder/encoder_norm/scale                               [D]

V vocabulary, D width, H heads, K head dim, M hidden width, I layers. umT5's network is
`scalable_t5`, which differs in three ways. Heads are an axis of their own: [D, H, K] and [H, K, D].
Each layer has a bias, which is `relpos_per_layer` of our config. Scanned, all layers are one array
in `encoder/encoder` instead of `encoder/layers_I`, along axis 1: [D, I, M]. Nothing says which
activation a gated MLP has: the config does. A part of an array is read from the chunks that it lies
in, each of them whole; chunks are the parts that the devices of the writer held.
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble, one, per_layer
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import recognise
from synth2_jax.interop.tensor_files import Tensors, open_flax_msgpack
from synth2_jax.interop.zarr_arrays import open_zarr_arrays
from synth2_jax.models.text_encoder import TextEncoderConfig, parameter_shapes

_UNFINISHED = re.compile(r"\.(orbax-checkpoint-tmp|tmp-\d)")  # names while a save runs
_OF_ENCODER = re.compile(r"target[./](encoder|token_embedder)[./]")
_SCANNED = "encoder/encoder"


def load_text_encoder(path: str | os.PathLike[str], config: TextEncoderConfig) -> dict[str, Any]:
    """The parameters of models.text_encoder.TextEncoder, as LazyArrays: nothing is read yet.

    Args:
      path: of a checkpoint, or of a folder of several, of which the newest is taken. Decoder and
        optimizer are let be.
      config: of the encoder that is to hold the parameters. A scanned checkpoint is read best
        where `config.scan_layers`: else each layer reads the chunks that it shares with others.

    Raises:
      UserError: no t5x checkpoint, one whose save or copy was not finished (what is missing is
        named), or tensors that do not fit the config (all are listed).
    """
    folder = _checkpoint(pathlib.Path(path))
    tensors = _open(folder)
    return assemble(_recipes(config, tensors), tensors, parameter_shapes(config), str(folder))


def _checkpoint(path: pathlib.Path) -> pathlib.Path:
    """The folder with the arrays."""
    if not path.is_dir():
        found = recognise(path).description  # or it says that nothing is there
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
        _below_target(name): _as_bfloat16(tensor)
        for name, tensor in open_zarr_arrays(folder, wanted=_OF_ENCODER.pattern).items()
    }
    if (folder / "checkpoint").is_file():
        for name, tensor in open_flax_msgpack(folder / "checkpoint").items():
            if _OF_ENCODER.match(name.removeprefix("optimizer/")):
                tensors[_below_target(name.removeprefix("optimizer/"))] = tensor
    if not tensors:
        raise UserError(
            f"{folder}: found {recognise(folder).description}, expected a t5x checkpoint with an "
            "encoder"
        )
    return tensors


def _below_target(name: str) -> str:
    return name.replace(".", "/").removeprefix("target/")


def _as_bfloat16(tensor: LazyArray) -> LazyArray:
    """t5x before June 2021 had no other way to write bfloat16 than as uint16."""
    if tensor.dtype != np.uint16:
        return tensor
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return LazyArray(tensor.shape, bfloat16, lambda box: tensor[box].view(bfloat16))


def _recipes(config: TextEncoderConfig, tensors: Tensors) -> dict[str, Recipe]:
    heads = (config.num_heads, config.head_dim)
    # In a layer: by our names, theirs and which axis becomes one of heads and one of each head.
    layer: dict[str, tuple[str, int | None]] = {
        "attention_norm/scale": ("pre_attention_layer_norm/scale", None),
        "attention/query/kernel": ("attention/query/kernel", 1),
        "attention/key/kernel": ("attention/key/kernel", 1),
        "attention/value/kernel": ("attention/value/kernel", 1),
        "attention/out/kernel": ("attention/out/kernel", 0),
        "mlp_norm/scale": ("pre_mlp_layer_norm/scale", None),
        "mlp/up/kernel": (f"mlp/{'wi_1' if config.gated_mlp else 'wi'}/kernel", None),
        "mlp/down/kernel": ("mlp/wo/kernel", None),
    }
    if config.gated_mlp:
        layer["mlp/gate/kernel"] = ("mlp/wi_0/kernel", None)
    if config.relpos_per_layer:
        layer["relpos_bias/embedding"] = ("relpos_bias/rel_embedding", None)

    def of_layer(
        prefix: str,
        change: Callable[[LazyArray], LazyArray] = lambda kernel: kernel,
        first_axis: int = 0,
    ) -> dict[str, Recipe]:
        def to_ours(kernel: LazyArray, axis: int | None) -> LazyArray:
            kernel = change(kernel)
            if axis is None or kernel.ndim == first_axis + 3:  # heads are an axis already
                return kernel
            return kernel.split(first_axis + axis, heads)

        return {
            ours: one(f"{prefix}/{name}", functools.partial(to_ours, axis=axis))
            for ours, (name, axis) in layer.items()
        }

    def all_layers(kernel: LazyArray) -> LazyArray:
        return kernel.transpose(1, 0, *range(2, kernel.ndim))

    def scanned_layer(i: int) -> dict[str, Recipe]:
        def take(kernel: LazyArray) -> LazyArray:
            if kernel.shape[1] != config.num_layers:
                raise ValueError(f"{kernel.shape} has not {config.num_layers} layers in axis 1")
            return kernel.take(1, i)

        return of_layer(_SCANNED, take)

    if not any(name.startswith(f"{_SCANNED}/") for name in tensors):
        layers = per_layer(
            "encoder",
            config.num_layers,
            config.scan_layers,
            lambda i: of_layer(f"encoder/layers_{i}"),
        )
    elif config.scan_layers:
        stacked = of_layer(_SCANNED, all_layers, first_axis=1)
        layers = {f"encoder/layers/{ours}": recipe for ours, recipe in stacked.items()}
    else:
        layers = per_layer("encoder", config.num_layers, False, scanned_layer)
    recipes = {
        "token_embedding/embedding": one("token_embedder/embedding"),
        "final_norm/scale": one("encoder/encoder_norm/scale"),
        **layers,
    }
    if not config.relpos_per_layer:
        recipes["relpos_bias/embedding"] = one("encoder/relpos_bias/rel_embedding")
    return recipes
