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

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, one
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import split_prefix
from synth2_jax.interop.tensor_files import Tensors, open_weights
from synth2_jax.interop.vq_gan import assemble_tokenizer, check_holds
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes

# Where this architecture differs from MaskGIT's whatever the sizes, and what no shape shows.
ARCHITECTURE = {
    "num_middle_blocks": 2,
    "extra_decoder_blocks": 1,
    "use_bias": True,
    "downsampling": "conv_3x3",
}
FIXED = {
    "shortcut_from_input": True,
    "l2_normalize_codes": False,
    "code_choice": "distance",
    "activation": "swish",
}
AVERAGES = "model_ema."  # what Lightning's modules with an exponential moving average call it
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


def open_file(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a checkpoint that holds one set of parameters.

    Raises:
      UserError: no such file, one that is damaged or holds more than tensors, or one that holds
        moving averages too.
    """
    tensors = open_weights(split_prefix(path)[1])
    if any(name.startswith(AVERAGES) for name in tensors):
        raise UserError(
            f"{path}: holds averaged parameters too ({AVERAGES}*), which this kind of checkpoint "
            "does not have. Write ibq: in front of the path if it is of IBQ, whose averages are "
            "used; else save the parameters that you want in a file of their own"
        )
    return tensors


@dataclasses.dataclass(frozen=True)
class TamingLayout:
    """Whose VQ-GAN has this network, under names that follow from taming-transformers'.

    Attributes:
      kind: a key of recognise.KINDS.
      architecture: fields of VQTokenizerConfig that all sizes share and that tensors show.
      fixed: fields that no tensor's shape shows.
      pixel_range: what it was trained with.
      rename: (name, number of levels) -> the name in the file.
      ignored: patterns of names in the file that are not read.
      open: the tensors at a path.
    """

    kind: str
    architecture: Mapping[str, Any]
    fixed: Mapping[str, Any]
    pixel_range: tuple[float, float]
    rename: Callable[[str, int], str] = lambda name, num_levels: name
    ignored: tuple[str, ...] = ()
    open: Callable[[str | os.PathLike[str]], Tensors] = open_file

    def tokenizer_config(self, path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
        """The config of a checkpoint's tokenizer, from its tensors' shapes.

        Args:
          path: of the file or folder.
          **changes: fields that the file does not tell: image_size (default 256), and pixel_range
            where it was trained with another.

        Raises:
          UserError: no such file, one of another model, or one that holds more than tensors.
        """
        tensors = self.open(path)

        def shape(name: str) -> tuple[int, ...]:
            return tensors[self.rename(name, 0)].shape

        def count(name: Callable[[int], str]) -> int:
            return next(i for i in itertools.count() if self.rename(name(i), 0) not in tensors)

        levels = range(count(lambda level: f"encoder.down.{level}.block.0.conv1.weight"))
        firsts = [f"encoder.down.{level}.block.0.conv1.weight" for level in levels]
        convolutions = ["encoder.conv_in.weight", "encoder.conv_out.weight", *firsts]
        ranks = {self.rename(name, 0): 4 for name in convolutions}
        check_holds({**ranks, "quantize.embedding.weight": 2}, tensors, path, self.kind)
        filters = shape("encoder.conv_in.weight")[0]
        codebook_size, embedding_dim = shape("quantize.embedding.weight")
        with_bottleneck = self.rename("quant_conv.weight", 0) in tensors
        fields = {
            **self.architecture,
            **self.fixed,
            "pixel_range": self.pixel_range,
            "norm_groups": 32,
            "filters": filters,
            "channel_multipliers": tuple(shape(name)[0] // filters for name in firsts),
            "num_res_blocks": count(lambda i: f"encoder.down.0.block.{i}.conv1.weight"),
            "attention_levels": tuple(
                level
                for level in levels
                if self.rename(f"encoder.down.{level}.attn.0.q.weight", 0) in tensors
            ),
            "middle_attention": self.rename("encoder.mid.attn_1.q.weight", 0) in tensors,
            "latent_channels": shape("encoder.conv_out.weight")[0] if with_bottleneck else None,
            "embedding_dim": embedding_dim,
            "codebook_size": codebook_size,
        }
        return build(VQTokenizerConfig, {**fields, **changes}, str(path))

    def load_tokenizer(
        self, path: str | os.PathLike[str], config: VQTokenizerConfig
    ) -> dict[str, Any]:
        """The parameters of models.vq_tokenizer.VQTokenizer, as LazyArrays.

        Raises:
          UserError: no such file, one of another model, cut short or holding more than tensors, a
            config that cannot be its own (all that differs is listed), or tensors that do not fit
            (all are listed).
        """
        num_levels = len(config.channel_multipliers)
        recipes = tokenizer_recipes(config, lambda name: self.rename(name, num_levels))
        fixed = {**self.fixed, "norm_groups": 32}
        return assemble_tokenizer(
            recipes, self.open(path), config, path, self.kind, fixed, self.ignored
        )


TAMING = TamingLayout("taming", ARCHITECTURE, FIXED, (-1.0, 1.0), ignored=(r"^loss\.",))


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
