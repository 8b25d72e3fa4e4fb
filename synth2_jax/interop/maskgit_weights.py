"""The VQ-GAN and the class-conditional transformer of google-research/maskgit.

The released files (tokenizer_imagenet256_checkpoint, maskgit_imagenet256_checkpoint, and those of
512 pixels) are Flax msgpack. Names below `params` are numbered as Flax does, in the order of use:
convolutions "Conv_I" (the first, those between levels, the last), blocks "ResBlock_I" as ours.
Kernels have our layout. The rows of the transformer's embeddings are codes, classes and one mask;
those of its positions one more than image tokens.
"""

import os
import re
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import assemble, by_names, one
from synth2_jax.interop.tensor_files import Tensors, open_flax_msgpack
from synth2_jax.interop.vq_gan import assemble_tokenizer, check_holds, renamed
from synth2_jax.models import class_conditional_maskgit
from synth2_jax.models.class_conditional_maskgit import ClassConditionalMaskGITConfig
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes

# What no tensor's shape shows.
_FIXED = {
    "shortcut_from_input": False,
    "norm_groups": 32,
    "l2_normalize_codes": False,
    "code_choice": "distance",
    "pixel_range": (0.0, 1.0),
}
_RENAMES = (
    (r"/block_(\d+)/norm_", r"/ResBlock_\1/GroupNorm_"),
    (r"/block_(\d+)/conv_", r"/ResBlock_\1/Conv_"),
    (r"/block_(\d+)/shortcut", r"/ResBlock_\1/Conv_2"),
    (r"/norm_out", "/GroupNorm_0"),
    (r"/conv_in", "/Conv_0"),
    (r"/(?:down|up)sample_(\d+)", lambda found: f"/Conv_{int(found[1]) + 1}"),
)
_LAYER = "params/TransformerLayer_{}"
_MODULES = {
    "token_embedding/embedding": "params/Embed_0/word_embeddings/embedding",
    "positions/embedding": "params/Embed_0/position_embeddings/embedding",
    "logits_bias": "params/MlmLayer_0/mlm_bias/bias",
}
_MODULES |= {
    f"{ours}/{leaf}": f"{theirs}/{leaf}"
    for leaf in ("kernel", "scale", "bias")
    for ours, theirs in {
        "embedding_norm": "params/Embed_0/embeddings_ln",
        "head": "params/MlmLayer_0/mlm_dense",
        "head_norm": "params/MlmLayer_0/mlm_ln",
        **{
            f"decoder/layers_{{}}/attention/{name}": f"{_LAYER}/Attention_0/self_attention/{name}"
            for name in ("query", "key", "value", "out")
        },
        "decoder/layers_{}/attention_norm": f"{_LAYER}/Attention_0/attention_output_ln",
        "decoder/layers_{}/mlp/up": f"{_LAYER}/Mlp_0/intermediate_output",
        "decoder/layers_{}/mlp/down": f"{_LAYER}/Mlp_0/layer_output",
        "decoder/layers_{}/mlp_norm": f"{_LAYER}/Mlp_0/layer_output_ln",
    }.items()
}


def tokenizer_config(path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
    """The config of a released tokenizer, from its tensors' shapes.

    `changes` are fields that the file does not tell: image_size (default 256) and, for a tokenizer
    of one's own, activation (default "swish").

    Raises:
      UserError: no such file, or one of another model.
    """
    tensors = open_flax_msgpack(path)
    needed = ("encoder/Conv_0", "encoder/ResBlock_0/Conv_0", "decoder/Conv_0")
    ranks = {f"params/{name}/kernel": 4 for name in needed}
    check_holds({**ranks, "params/quantizer/codebook": 2}, tensors, path, "maskgit_tokenizer")
    # A first and a last convolution, and in the decoder one between two levels.
    num_levels = _count(tensors, "decoder/Conv") - 1
    num_blocks, rest = divmod(_count(tensors, "encoder/ResBlock"), num_levels + 1)
    if rest or not num_blocks:
        raise UserError(
            f"{path}: found {_count(tensors, 'encoder/ResBlock')} residual blocks in an encoder of "
            f"{num_levels} levels, expected as many at each and once more at the lowest"
        )
    firsts = [
        f"params/encoder/ResBlock_{level * num_blocks}/Conv_0/kernel" for level in range(num_levels)
    ]
    check_holds(dict.fromkeys(firsts, 4), tensors, path, "maskgit_tokenizer")
    filters = tensors["params/encoder/Conv_0/kernel"].shape[-1]
    codebook_size, embedding_dim = tensors["params/quantizer/codebook"].shape
    fields = {
        **_FIXED,
        "filters": filters,
        "channel_multipliers": tuple(tensors[name].shape[-1] // filters for name in firsts),
        "num_res_blocks": num_blocks,
        "embedding_dim": embedding_dim,
        "codebook_size": codebook_size,
        "downsampling": "conv" if _count(tensors, "encoder/Conv") > 2 else "average_pool",
    }
    return build(VQTokenizerConfig, {**fields, **changes}, str(path))


def load_tokenizer(path: str | os.PathLike[str], config: VQTokenizerConfig) -> dict[str, Any]:
    """The parameters of VQTokenizer, as LazyArrays; raises as `assemble_tokenizer`."""
    num_levels = len(config.channel_multipliers)
    encoder_last = 1 if config.downsampling == "average_pool" else num_levels
    renames = (
        *_RENAMES,
        (r"encoder/conv_out", f"encoder/Conv_{encoder_last}"),
        (r"decoder/conv_out", f"decoder/Conv_{num_levels}"),
    )
    recipes = {name: one(renamed(f"params/{name}", renames)) for name in parameter_shapes(config)}
    tensors = open_flax_msgpack(path)
    return assemble_tokenizer(recipes, tensors, config, path, "maskgit_tokenizer", _FIXED)


def class_conditional_config(
    path: str | os.PathLike[str], *, codebook_size: int = 1024, **changes: Any
) -> ClassConditionalMaskGITConfig:
    """The config of a released transformer, from its tensors' shapes.

    `codebook_size` is its tokenizer's, `changes` are fields that the file does not tell, as dtype.
    Raises UserError on a missing file, and one of another model or tokenizer.
    """
    tensors = open_flax_msgpack(path)
    words, positions = (_MODULES[f"{name}/embedding"] for name in ("token_embedding", "positions"))
    query, mlp = (
        _MODULES[f"decoder/layers_{{}}/{name}/kernel"].format(0)
        for name in ("attention/query", "mlp/up")
    )
    ranks = {words: 2, positions: 2, query: 3, mlp: 2}
    check_holds(ranks, tensors, path, "maskgit_transformer")
    rows, embed_dim = tensors[words].shape
    if rows < codebook_size + 2:
        raise UserError(
            f"{path}: found {rows} rows of embeddings, expected more than {codebook_size + 1}: the "
            f"{codebook_size} of the tokenizer's codebook, a class at least and the mask"
        )
    fields = {
        "codebook_size": codebook_size,
        "num_classes": rows - codebook_size - 1,
        "num_tokens": tensors[positions].shape[0] - 1,
        "num_layers": _count(tensors, "TransformerLayer"),
        "embed_dim": embed_dim,
        "num_heads": tensors[query].shape[1],
        "mlp_dim": tensors[mlp].shape[1],
    }
    return build(ClassConditionalMaskGITConfig, {**fields, **changes}, str(path))


def load_class_conditional(
    path: str | os.PathLike[str], config: ClassConditionalMaskGITConfig
) -> dict[str, Any]:
    """The parameters of ClassConditionalMaskGIT, as LazyArrays; raises as `assemble`."""
    expected = class_conditional_maskgit.parameter_shapes(config)
    recipes = by_names(expected, _MODULES)
    tensors = open_flax_msgpack(path)
    return assemble(recipes, tensors, expected, str(path), kind="maskgit_transformer")


def _count(tensors: Tensors, module: str) -> int:
    """Counts the modules of an automatic name such as "encoder/Conv"."""
    pattern = re.compile(rf"params/{module}_(\d+)/")
    return len({match[1] for name in tensors if (match := pattern.match(name))})
