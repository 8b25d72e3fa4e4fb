"""The VQ-GAN and the class-conditional transformer of google-research/maskgit.

The released files (tokenizer_imagenet256_checkpoint, maskgit_imagenet256_checkpoint, and those of
512 pixels) are Flax msgpack. A tokenizer's names below `params`, numbered as Flax does, in the
order of use:

    {encoder,decoder}/Conv_I/{kernel,bias}           the first, those between levels, the last
    {encoder,decoder}/ResBlock_I/Conv_{0,1}/kernel   and Conv_2 for the shortcut
    {encoder,decoder}/ResBlock_I/GroupNorm_{0,1}/{scale,bias}
    {encoder,decoder}/GroupNorm_0/{scale,bias}
    quantizer/codebook                               [K, C]

K codebook size, C codebook width. Blocks are numbered as ours, and kernels have our layout. Those
of a transformer:

    Embed_0/{word,position}_embeddings/embedding     [V, D], [1 + N, D]
    Embed_0/embeddings_ln/{scale,bias}
    TransformerLayer_I/Attention_0/self_attention/{query,key,value,out}/{kernel,bias}
    TransformerLayer_I/Attention_0/attention_output_ln/{scale,bias}
    TransformerLayer_I/Mlp_0/{intermediate_output,layer_output}/{kernel,bias}
    TransformerLayer_I/Mlp_0/layer_output_ln/{scale,bias}
    MlmLayer_0/{mlm_dense/{kernel,bias}, mlm_ln/{scale,bias}, mlm_bias/bias}

V codes, classes and one mask; N image tokens; D width.
"""

import os
import re
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble, one, per_layer
from synth2_jax.interop.tensor_files import Tensors, open_flax_msgpack
from synth2_jax.interop.vq_gan import assemble_tokenizer, check_holds, check_kind
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
_IN_BLOCK = {
    "norm_0": "GroupNorm_0",
    "conv_0": "Conv_0",
    "norm_1": "GroupNorm_1",
    "conv_1": "Conv_1",
    "shortcut": "Conv_2",
}


def tokenizer_config(path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
    """The config of a released tokenizer, from its tensors' shapes.

    Args:
      path: of the file.
      **changes: fields that the file does not tell: image_size (default 256) and, for a tokenizer
        of one's own, activation (default "swish").

    Raises:
      UserError: no such file, or one of another model.
    """
    tensors = open_flax_msgpack(path)
    needed = ("encoder/Conv_0/kernel", "encoder/ResBlock_0/Conv_0/kernel", "decoder/Conv_0/kernel")
    ranks = {f"params/{name}": 4 for name in needed}
    check_holds({**ranks, "params/quantizer/codebook": 2}, tensors, path, "maskgit_tokenizer")
    # A first and a last convolution, and in the decoder one between two levels.
    num_levels = _count(tensors, "decoder/Conv") - 1
    num_blocks, rest = divmod(_count(tensors, "encoder/ResBlock"), num_levels + 1)
    if rest or not num_blocks:
        raise UserError(
            f"{path}: found {_count(tensors, 'encoder/ResBlock')} residual blocks in an encoder of "
            f"{num_levels} levels, expected as many at each and once more at the lowest"
        )
    filters = tensors["params/encoder/Conv_0/kernel"].shape[-1]
    firsts = [
        f"params/encoder/ResBlock_{level * num_blocks}/Conv_0/kernel" for level in range(num_levels)
    ]
    check_holds(dict.fromkeys(firsts, 4), tensors, path, "maskgit_tokenizer")
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
    """The parameters of models.vq_tokenizer.VQTokenizer, as LazyArrays.

    Raises:
      UserError: no such file, one of another model or cut short, a config that cannot be its own
        (all that differs is listed), or tensors that do not fit (all are listed).
    """
    modules = _modules(config)
    recipes = {}
    for parameter in parameter_shapes(config):
        module, _, leaf = parameter.rpartition("/")
        recipes[parameter] = one(f"params/{modules.get(module, module)}/{leaf}")
    tensors = open_flax_msgpack(path)
    return assemble_tokenizer(recipes, tensors, config, path, "maskgit_tokenizer", _FIXED)


def _modules(config: VQTokenizerConfig) -> dict[str, str]:
    """Their modules by ours."""
    num_levels = len(config.channel_multipliers)
    num_middle = config.num_middle_blocks or config.num_res_blocks
    num_decoder = config.num_res_blocks + config.extra_decoder_blocks
    between = range(1, num_levels)  # numbers of the convolutions between two levels
    pooled = config.downsampling == "average_pool"
    modules = {"quantizer": "quantizer"}
    for part, num_blocks, last in (
        ("encoder", config.num_res_blocks * num_levels, 1 if pooled else num_levels),
        ("decoder", num_decoder * num_levels, num_levels),
    ):
        modules |= {
            f"{part}/conv_in": f"{part}/Conv_0",
            f"{part}/norm_out": f"{part}/GroupNorm_0",
            f"{part}/conv_out": f"{part}/Conv_{last}",
        }
        for i in range(num_blocks + num_middle):
            for ours, theirs in _IN_BLOCK.items():
                modules[f"{part}/block_{i}/{ours}"] = f"{part}/ResBlock_{i}/{theirs}"
    modules |= {f"encoder/downsample_{i - 1}": f"encoder/Conv_{i}" for i in between}
    return modules | {f"decoder/upsample_{i - 1}": f"decoder/Conv_{i}" for i in between}


def class_conditional_config(
    path: str | os.PathLike[str], *, codebook_size: int = 1024, **changes: Any
) -> ClassConditionalMaskGITConfig:
    """The config of a released transformer, from its tensors' shapes.

    Args:
      path: of the file.
      codebook_size: of its tokenizer; the other rows of the embeddings are classes and the mask.
      **changes: fields that the file does not tell, such as dtype.

    Raises:
      UserError: no such file, or one of another model or tokenizer.
    """
    tensors = open_flax_msgpack(path)
    first = "TransformerLayer_0"
    needed = {
        "words": "Embed_0/word_embeddings/embedding",
        "positions": "Embed_0/position_embeddings/embedding",
        "query": f"{first}/Attention_0/self_attention/query/kernel",
        "mlp": f"{first}/Mlp_0/intermediate_output/kernel",
    }
    needed = {key: f"params/{name}" for key, name in needed.items()}
    ranks = {name: 3 if key == "query" else 2 for key, name in needed.items()}
    check_holds(ranks, tensors, path, "maskgit_transformer")
    rows, embed_dim = tensors[needed["words"]].shape
    if rows < codebook_size + 2:
        raise UserError(
            f"{path}: found {rows} rows of embeddings, expected more than {codebook_size + 1}: the "
            f"{codebook_size} of the tokenizer's codebook, a class at least and the mask"
        )
    fields = {
        "codebook_size": codebook_size,
        "num_classes": rows - codebook_size - 1,
        "num_tokens": tensors[needed["positions"]].shape[0] - 1,
        "num_layers": _count(tensors, "TransformerLayer"),
        "embed_dim": embed_dim,
        "num_heads": tensors[needed["query"]].shape[1],
        "mlp_dim": tensors[needed["mlp"]].shape[1],
    }
    return build(ClassConditionalMaskGITConfig, {**fields, **changes}, str(path))


def load_class_conditional(
    path: str | os.PathLike[str], config: ClassConditionalMaskGITConfig
) -> dict[str, Any]:
    """The parameters of models.class_conditional_maskgit.ClassConditionalMaskGIT, as LazyArrays.

    Raises:
      UserError: no such file, one of another model or cut short, or tensors that do not fit the
        config (all are listed).
    """

    def norm(path: str, theirs: str) -> dict[str, Recipe]:
        return {f"{path}/{leaf}": one(f"params/{theirs}/{leaf}") for leaf in ("scale", "bias")}

    def linear(path: str, theirs: str) -> dict[str, Recipe]:
        return {f"{path}/{leaf}": one(f"params/{theirs}/{leaf}") for leaf in ("kernel", "bias")}

    def layer(i: int) -> dict[str, Recipe]:
        attention, mlp = (f"TransformerLayer_{i}/{name}_0" for name in ("Attention", "Mlp"))
        recipes = {}
        for name in ("query", "key", "value", "out"):
            recipes |= linear(f"attention/{name}", f"{attention}/self_attention/{name}")
        return {
            **recipes,
            **norm("attention_norm", f"{attention}/attention_output_ln"),
            **linear("mlp/up", f"{mlp}/intermediate_output"),
            **linear("mlp/down", f"{mlp}/layer_output"),
            **norm("mlp_norm", f"{mlp}/layer_output_ln"),
        }

    recipes = {
        "token_embedding/embedding": one("params/Embed_0/word_embeddings/embedding"),
        "positions/embedding": one("params/Embed_0/position_embeddings/embedding"),
        **norm("embedding_norm", "Embed_0/embeddings_ln"),
        **per_layer("decoder", config.num_layers, config.scan_layers, layer),
        **linear("head", "MlmLayer_0/mlm_dense"),
        **norm("head_norm", "MlmLayer_0/mlm_ln"),
        "logits_bias": one("params/MlmLayer_0/mlm_bias/bias"),
    }
    tensors = open_flax_msgpack(path)
    check_kind(recipes, tensors, path, "maskgit_transformer")
    expected = class_conditional_maskgit.parameter_shapes(config)
    return assemble(recipes, tensors, expected, str(path))


def _count(tensors: Tensors, module: str) -> int:
    """How many modules there are of an automatic name such as "encoder/Conv"."""
    pattern = re.compile(rf"params/{module}_(\d+)/")
    return len({match[1] for name in tensors if (match := pattern.match(name))})
