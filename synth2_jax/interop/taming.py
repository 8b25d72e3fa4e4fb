"""The VQGAN of taming-transformers (Esser et al. 2021), from its checkpoint.

A file is what Lightning saved, {"state_dict": ...}, or .safetensors of the same names; those of
`vqgan_imagenet_f16_1024` and `_16384`, and of others trained with that code:

    encoder.conv_in, decoder.conv_in
    encoder.down.I.block.J.{norm1,conv1,norm2,conv2,nin_shortcut}   level I, block J
    encoder.down.I.attn.J.{norm,q,k,v,proj_out}                     of 1x1 convolutions
    encoder.down.I.downsample.conv
    {encoder,decoder}.mid.{block_1,attn_1,block_2}
    decoder.up.I.{block.J, attn.J, upsample.conv}                   applied from the last level on
    {encoder,decoder}.{norm_out,conv_out}
    quant_conv, post_quant_conv
    quantize.embedding                                              [K, C]
    loss.*                                                          not read

each with `weight` and, but for the last two, `bias`; convolutions are [out, in, rows, columns].
K codebook size, C codebook width.
"""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from synth2_jax.config import build
from synth2_jax.interop.assemble import Recipe, one
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.tensor_files import Tensors, open_safetensors, open_torch
from synth2_jax.interop.vq_gan import assemble_tokenizer, check_holds
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes

# Where this architecture differs from MaskGIT's whatever the sizes, and what no shape shows.
ARCHITECTURE = {
    "num_middle_blocks": 2,
    "extra_decoder_blocks": 1,
    "use_bias": True,
    "downsampling": "conv_3x3",
}
FIXED = {"shortcut_from_input": True, "l2_normalize_codes": False, "activation": "swish"}
_FIXED = {**FIXED, "norm_groups": 32, "pixel_range": (-1.0, 1.0)}
_IN_BLOCK = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "nin_shortcut",
}
_IN_ATTENTION = {
    "norm": "norm",
    "self_attention/query": "q",
    "self_attention/key": "k",
    "self_attention/value": "v",
    "self_attention/out": "proj_out",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "codebook": "weight"}


def tokenizer_config(path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
    """The config of a checkpoint's tokenizer, from its tensors' shapes.

    Args:
      path: of the file.
      **changes: fields that the file does not tell: image_size (default 256).

    Raises:
      UserError: no such file, one of another model, or one that holds more than tensors.
    """
    tensors = _open(path)
    num_levels = _count(tensors, r"encoder\.down\.(\d+)\.block\.")
    firsts = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(num_levels)]
    names = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight")
    check_holds([*names, *firsts], tensors, path, "taming")
    filters = tensors["encoder.conv_in.weight"].shape[0]
    codebook_size, embedding_dim = tensors["quantize.embedding.weight"].shape
    fields = {
        **ARCHITECTURE,
        **_FIXED,
        "filters": filters,
        "channel_multipliers": tuple(tensors[name].shape[0] // filters for name in firsts),
        "num_res_blocks": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "attention_levels": tuple(
            level
            for level in range(num_levels)
            if f"encoder.down.{level}.attn.0.q.weight" in tensors
        ),
        "middle_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "latent_channels": tensors["encoder.conv_out.weight"].shape[0],
        "embedding_dim": embedding_dim,
        "codebook_size": codebook_size,
    }
    return build(VQTokenizerConfig, {**fields, **changes}, str(path))


def load_tokenizer(path: str | os.PathLike[str], config: VQTokenizerConfig) -> dict[str, Any]:
    """The parameters of models.vq_tokenizer.VQTokenizer, as LazyArrays.

    Raises:
      UserError: no such file, one of another model, cut short or holding more than tensors, a
        config that cannot be its own (all that differs is listed), or tensors that do not fit (all
        are listed).
    """
    recipes, tensors = tokenizer_recipes(config), _open(path)
    return assemble_tokenizer(
        recipes, tensors, config, path, "taming", _FIXED, ignored=(r"^loss\.",)
    )


def tokenizer_recipes(
    config: VQTokenizerConfig, rename: Callable[[str], str] = lambda name: name
) -> dict[str, Recipe]:
    """Every parameter from its tensor; `rename` takes a name of this layout to another's."""
    modules = _modules(config)
    recipes = {}
    for path in parameter_shapes(config):
        module, _, leaf = path.rpartition("/")
        name = f"{modules[module]}.{_LEAVES[leaf]}"
        recipes[path] = one(rename(name), _change(module, leaf))
    return recipes


def _modules(config: VQTokenizerConfig) -> dict[str, str]:
    """Their modules by ours."""
    levels = range(len(config.channel_multipliers))
    num_middle = config.num_middle_blocks or config.num_res_blocks
    # Residual blocks in the order of use; the attention behind one is called "attn" for "block".
    middle = [f"mid.block_{i + 1}" for i in range(num_middle)]
    down = [f"down.{level}.block.{i}" for level in levels for i in range(config.num_res_blocks)]
    up = [
        f"up.{level}.block.{i}"
        for level in reversed(levels)
        for i in range(config.num_res_blocks + config.extra_decoder_blocks)
    ]
    modules = {
        "quantizer": "quantize.embedding",
        "encoder/quant_conv": "quant_conv",
        "decoder/post_quant_conv": "post_quant_conv",
    }
    for part, blocks in (("encoder", down + middle), ("decoder", middle + up)):
        for name in ("conv_in", "norm_out", "conv_out"):
            modules[f"{part}/{name}"] = f"{part}.{name}"
        for i, block in enumerate(blocks):
            attention = block.replace("block", "attn")
            for ours, theirs in _IN_BLOCK.items():
                modules[f"{part}/block_{i}/{ours}"] = f"{part}.{block}.{theirs}"
            for ours, theirs in _IN_ATTENTION.items():
                modules[f"{part}/attention_{i}/{ours}"] = f"{part}.{attention}.{theirs}"
    for i in levels[1:]:
        modules[f"encoder/downsample_{i - 1}"] = f"encoder.down.{i - 1}.downsample.conv"
        modules[f"decoder/upsample_{i - 1}"] = f"decoder.up.{len(levels) - i}.upsample.conv"
    return modules


def _change(module: str, leaf: str) -> Callable[[LazyArray], LazyArray]:
    """From their layout to ours."""
    if "self_attention" not in module:
        return _convolution if leaf == "kernel" else lambda tensor: tensor
    if module.endswith("/out"):
        return _from_one_head if leaf == "kernel" else lambda tensor: tensor
    return _to_one_head if leaf == "kernel" else lambda bias: bias.split(0, (1, bias.size))


def _convolution(weight: LazyArray) -> LazyArray:
    return weight.transpose(2, 3, 1, 0)


def _to_one_head(weight: LazyArray) -> LazyArray:
    matrix = _matrix(weight)
    return matrix.split(1, (1, matrix.shape[1]))


def _from_one_head(weight: LazyArray) -> LazyArray:
    matrix = _matrix(weight)
    return matrix.split(0, (1, matrix.shape[0]))


def _matrix(weight: LazyArray) -> LazyArray:
    """[in, out] of a convolution of 1x1 or of a linear map."""
    if weight.shape[2:] == (1, 1):
        weight = weight.take(3, 0).take(2, 0)
    return weight.transpose()


def _count(tensors: Tensors, pattern: str) -> int:
    """How many numbers its group finds in the names."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _open(path: str | os.PathLike[str]) -> Tensors:
    path = pathlib.Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return open_safetensors(path)
    return open_torch(path)
