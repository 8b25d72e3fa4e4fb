"""The `VQModel` of diffusers, from the folder that its `save_pretrained` writes.

The network is taming-transformers' under other names (`interop.taming` lists those), aMUSEd's and
latent diffusion's among them: config.json says which levels have attention. Neither `sample_size`
nor anything else in it is the image's size. `scaling_factor`, `force_upcast` and
`lookup_from_codebook` change nothing that encodes to ids or decodes them: they say how a diffusion
model's latents are scaled, that float16 is too coarse, and what `decode` takes.
"""

import os
import pathlib
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop import taming
from synth2_jax.interop.json_file import check_types, read_object
from synth2_jax.interop.recognise import KINDS, recognise
from synth2_jax.interop.tensor_files import open_safetensors, open_torch
from synth2_jax.interop.vq_gan import assemble_tokenizer
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig

_FILE = "diffusion_pytorch_model"
# What a config.json need not say.
_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "norm_type": "group",
    "mid_block_add_attention": True,
    "lookup_from_codebook": False,
}
_TYPES = {
    key: list if isinstance(value, tuple) else (int, type(None)) if value is None else type(value)
    for key, value in _DEFAULTS.items()
}
# What this network can be: "spatial" norms look at the codes too (MoVQ).
_KNOWN = {
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
_RENAMES = (
    (r"\.(down|up)\.", r".\1_blocks."),
    (r"\.mid\.block_(\d+)", lambda found: f".mid_block.resnets.{int(found[1]) - 1}"),
    (r"\.mid\.attn_(\d+)", lambda found: f".mid_block.attentions.{int(found[1]) - 1}"),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
)
_ATTENTION = ((r"\.([qkv])\.", r".to_\1."), (r"\.proj_out\.", ".to_out.0."))
_ATTENTION_BEFORE_2023 = (
    *((rf"\.{name[0]}\.", f".{name}.") for name in ("query", "key", "value")),
    (r"\.proj_out\.", ".proj_attn."),
)


def tokenizer_config(path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
    """The config of a folder's tokenizer, from its config.json.

    `changes` are fields that the file does not tell: image_size (default 256), and pixel_range. Its
    default is (0, 1) if `lookup_from_codebook` is set, as aMUSEd's pipelines alone set it, and
    (-1, 1) else.

    Raises:
      UserError: the folder is of another model, or of a variant that is not known here (all that is
        strange is listed).
    """
    path = pathlib.Path(path)
    held = {**_DEFAULTS, **_config_json(path)}
    widths, down, up = (
        tuple(held[key]) for key in ("block_out_channels", "down_block_types", "up_block_types")
    )
    strange = [
        f"{key} is {held[key]!r}, expected {' or '.join(map(str, known))}"
        for key, known in _KNOWN.items()
        if not {*(held[key] if isinstance(held[key], list | tuple) else [held[key]])} <= {*known}
    ]
    fits = 0 < len(widths) == len(down) == len(up) and min(widths) > 0
    if not fits or any(width % widths[0] for width in widths):
        strange.append(
            f"block_out_channels is {widths}, expected one for each of {len(down)} blocks down and "
            f"{len(up)} up, and multiples of the first"
        )
    attention = [kind.startswith("Attn") for kind in down]
    if attention != [kind.startswith("Attn") for kind in reversed(up)]:
        strange.append(f"attention stands at other levels in {down} than in {up}")
    if strange:
        raise UserError(f"{path / 'config.json'}: {'; '.join(strange)}")
    fields = {
        **taming.ARCHITECTURE,
        **taming.FIXED,
        "filters": widths[0],
        "channel_multipliers": tuple(width // widths[0] for width in widths),
        "num_res_blocks": held["layers_per_block"],
        "attention_levels": tuple(level for level, there in enumerate(attention) if there),
        "middle_attention": held["mid_block_add_attention"],
        "latent_channels": held["latent_channels"],
        "embedding_dim": held["vq_embed_dim"] or held["latent_channels"],
        "codebook_size": held["num_vq_embeddings"],
        "norm_groups": held["norm_num_groups"],
        "pixel_range": (0.0, 1.0) if held["lookup_from_codebook"] else (-1.0, 1.0),
    }
    return build(VQTokenizerConfig, {**fields, **changes}, str(path))


def load_tokenizer(path: str | os.PathLike[str], config: VQTokenizerConfig) -> dict[str, Any]:
    """The parameters of VQTokenizer, as LazyArrays; raises as `assemble_tokenizer`."""
    path = pathlib.Path(path)
    fixed = {**taming.FIXED, "norm_groups": tokenizer_config(path).norm_groups}
    if (path / f"{_FILE}.safetensors").is_file():  # there may be one of float16 too
        tensors = open_safetensors(path / f"{_FILE}.safetensors")
    elif (path / f"{_FILE}.bin").is_file():
        tensors = open_torch(path / f"{_FILE}.bin")
    else:
        tensors = open_safetensors(path)
    before_2023 = any(name.endswith(".proj_attn.weight") for name in tensors)
    renames = (*_RENAMES, *(_ATTENTION_BEFORE_2023 if before_2023 else _ATTENTION))
    recipes = taming.tokenizer_recipes(config, renames, ups_in_order_of_use=True)
    return assemble_tokenizer(recipes, tensors, config, path, "diffusers_vq", fixed)


def _config_json(path: pathlib.Path) -> dict[str, Any]:
    found = recognise(path)
    if found.kind != "diffusers_vq" or not path.is_dir():
        raise UserError(
            f"{path}: found {found.description}, expected a folder with the config.json of "
            f"{KINDS['diffusers_vq']}"
        )
    held = read_object(path / "config.json")
    check_types(held, _TYPES, path / "config.json")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        kind = int if key == "block_out_channels" else str
        for value in held.get(key, ()):
            check_types({key: value}, {key: kind}, path / "config.json")
    return held
