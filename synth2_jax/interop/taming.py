"""The VQGAN of taming-transformers (Esser et al. 2021), from its checkpoint.

A file is what Lightning saved, {"state_dict": ...}, or .safetensors of the same names; those of
`vqgan_imagenet_f16_1024` and `_16384`, and of others trained with that code. Level I has block J at
"encoder.down.I.block.J", its attention at "encoder.down.I.attn.J"; the decoder applies "up.I" from
the last level on. Convolutions are [out, in, rows, columns]. "loss.*" is not read.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, one
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import split_prefix
from synth2_jax.interop.tensor_files import Tensors, open_weights
from synth2_jax.interop.vq_gan import Renames, assemble_tokenizer, check_holds, renamed
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
# Below a block or an attention, and where there are no levels.
_MODULES = {
    **{"norm_0": "norm1", "conv_0": "conv1", "norm_1": "norm2", "conv_1": "conv2"},
    **{"shortcut": "nin_shortcut", "norm": "norm", "self_attention/out": "proj_out"},
    **{f"self_attention/{name}": name[0] for name in ("query", "key", "value")},
    **{"encoder/quant_conv": "quant_conv", "decoder/post_quant_conv": "post_quant_conv"},
    "quantizer": "quantize.embedding",
}


def open_file(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a checkpoint that holds one set of parameters.

    Raises:
      UserError: as `open_weights`; or a file that holds moving averages too.
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
    """A VQ-GAN with this network, under names that follow from taming-transformers'.

    Attributes:
      kind: a key of recognise.KINDS.
      architecture: fields of VQTokenizerConfig that all sizes share and that tensors show.
      fixed: fields that no tensor's shape shows.
      pixel_range: of the pictures it was trained with.
      renames: from taming-transformers' names to those in the file.
      ups_in_order_of_use: whether "up.0" is the first level that the decoder applies.
      ignored: patterns of names in the file that are not read.
      open: function from a path to its tensors.
    """

    kind: str
    architecture: Mapping[str, Any]
    fixed: Mapping[str, Any]
    pixel_range: tuple[float, float]
    renames: Renames = ()
    ups_in_order_of_use: bool = False
    ignored: tuple[str, ...] = ()
    open: Callable[[str | os.PathLike[str]], Tensors] = open_file

    def tokenizer_config(self, path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
        """The config of a checkpoint's tokenizer, from its tensors' shapes.

        `changes` are fields that the file does not tell: image_size (default 256), and pixel_range
        if it was trained with another. Raises UserError as `open`, and on another model.
        """
        tensors = self.open(path)

        def theirs(name: str) -> str:
            return renamed(f"{name}.weight", self.renames)

        def count(name: str) -> int:
            return next(i for i in itertools.count() if theirs(name.format(i)) not in tensors)

        levels = range(count("encoder.down.{}.block.0.conv1"))
        firsts = [theirs(f"encoder.down.{level}.block.0.conv1") for level in levels]
        conv_in, conv_out = theirs("encoder.conv_in"), theirs("encoder.conv_out")
        ranks = dict.fromkeys([conv_in, conv_out, *firsts], 4)
        check_holds({**ranks, "quantize.embedding.weight": 2}, tensors, path, self.kind)
        filters = tensors[conv_in].shape[0]
        codebook_size, embedding_dim = tensors["quantize.embedding.weight"].shape
        with_bottleneck = theirs("quant_conv") in tensors
        fields = {
            **self.architecture,
            **self.fixed,
            "pixel_range": self.pixel_range,
            "norm_groups": 32,
            "filters": filters,
            "channel_multipliers": tuple(tensors[name].shape[0] // filters for name in firsts),
            "num_res_blocks": count("encoder.down.0.block.{}.conv1"),
            "attention_levels": tuple(
                level for level in levels if theirs(f"encoder.down.{level}.attn.0.q") in tensors
            ),
            "middle_attention": theirs("encoder.mid.attn_1.q") in tensors,
            "latent_channels": tensors[conv_out].shape[0] if with_bottleneck else None,
            "embedding_dim": embedding_dim,
            "codebook_size": codebook_size,
        }
        return build(VQTokenizerConfig, {**fields, **changes}, str(path))

    def load_tokenizer(
        self, path: str | os.PathLike[str], config: VQTokenizerConfig
    ) -> dict[str, Any]:
        """The parameters of VQTokenizer, as LazyArrays; raises as `open`, `assemble_tokenizer`."""
        recipes = tokenizer_recipes(config, self.renames, self.ups_in_order_of_use)
        fixed = {**self.fixed, "norm_groups": 32}
        tensors = self.open(path)
        return assemble_tokenizer(recipes, tensors, config, path, self.kind, fixed, self.ignored)


TAMING = TamingLayout("taming", ARCHITECTURE, FIXED, (-1.0, 1.0), ignored=(r"^loss\.",))


def tokenizer_recipes(
    config: VQTokenizerConfig, renames: Renames, ups_in_order_of_use: bool
) -> dict[str, Recipe]:
    """Every parameter from its tensor; see TamingLayout."""
    last = len(config.channel_multipliers) - 1
    num_down = config.num_res_blocks
    num_up = num_down + config.extra_decoder_blocks
    ups = [level if ups_in_order_of_use else last - level for level in range(last + 1)]
    middle = [f"mid.block_{i + 1}" for i in range(config.num_middle_blocks or num_down)]
    down = [f"down.{i}.block.{j}" for i in range(last + 1) for j in range(num_down)]
    up = [f"up.{i}.block.{j}" for i in ups for j in range(num_up)]
    blocks = {"encoder": down + middle, "decoder": middle + up}  # in the order of use

    def module_name(module: str) -> str:
        part, _, rest = module.partition("/")
        if found := re.fullmatch(r"(block|attention)_(\d+)/(.+)", rest):
            block = blocks[part][int(found[2])]
            if found[1] == "attention":  # behind a block
                block = block.replace("block", "attn")
            return f"{part}.{block}.{_MODULES[found[3]]}"
        if found := re.fullmatch(r"downsample_(\d+)", rest):
            return f"encoder.down.{found[1]}.downsample.conv"
        if found := re.fullmatch(r"upsample_(\d+)", rest):
            return f"decoder.up.{ups[int(found[1])]}.upsample.conv"
        return _MODULES.get(module, f"{part}.{rest}")

    recipes = {}
    for path in parameter_shapes(config):
        module, _, leaf = path.rpartition("/")
        name = f"{module_name(module)}.{'bias' if leaf == 'bias' else 'weight'}"
        recipe = one(renamed(name, renames))
        recipes[path] = dataclasses.replace(recipe, change=_kernel) if leaf == "kernel" else recipe
    return recipes


def _kernel(weight: LazyArray) -> LazyArray:
    """Converts a convolution; an attention may have linear maps."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.transpose()
