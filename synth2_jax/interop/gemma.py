"""The language model of a Gemma 3 checkpoint, without its vision encoder where it has one.

From Orbax folders of the package `gemma`, those that it saves and those that were released, whose
arrays are, by their names in the package's parameters:

    embedder/input_embedding          [V, D]
    layer_I/attn/q_einsum/w           [H, D, K]
    layer_I/attn/kv_einsum/w          [2, G, D, K]
    layer_I/attn/qkv_einsum/w         [3, H, D, K], in the place of both if G is H
    layer_I/attn/attn_vec_einsum/w    [H, K, D]
    layer_I/mlp/gating_einsum         [2, M, D]
    layer_I/mlp/linear                [M, D]

Released ones begin with "transformer/" and have /w behind names of the MLP; some hold all layers of
one kind stacked, "transformer/stacked_layers/attention_type_A/..." for layers A, A + 6, A + 12...

From Hugging Face folders (`save_pretrained` of a Gemma3ForCausalLM, or the whole model), whose
weights are [outputs, inputs], and whose names are in `_BLOCK`, behind "model." or the like.

V vocabulary, D width, H heads, G heads of keys and values, K head dim, M hidden width, I layers.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble, one
from synth2_jax.interop.json_file import check_types, read_object
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import recognise
from synth2_jax.interop.tensor_files import Tensors, open_safetensors
from synth2_jax.interop.zarr_arrays import open_orbax
from synth2_jax.models.gemma import RELEASED, GemmaConfig, parameter_shapes

_STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/")
_IN_LAYER = re.compile(r"^decoder/layers_(\d+)/block/")  # of our names
# By our names in a block; two or more are stacked.
_BLOCK = {
    "attn/q_einsum/w": ("self_attn.q_proj",),
    "attn/kv_einsum/w": ("self_attn.k_proj", "self_attn.v_proj"),
    "attn/qkv_einsum/w": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn/attn_vec_einsum/w": ("self_attn.o_proj",),
    "attn/_query_norm/scale": ("self_attn.q_norm",),
    "attn/_key_norm/scale": ("self_attn.k_norm",),
    "mlp/gating_einsum": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp/linear": ("mlp.down_proj",),
    "pre_attention_norm/scale": ("input_layernorm",),
    "post_attention_norm/scale": ("post_attention_layernorm",),
    "pre_ffw_norm/scale": ("pre_feedforward_layernorm",),
    "post_ffw_norm/scale": ("post_feedforward_layernorm",),
}
_OTHERS = {
    "embedder/input_embedding": "embed_tokens.weight",
    "final_norm/scale": "norm.weight",
}
_VISION = r"vision_(encoder|tower)|SigLiP|embedder/mm_|multi_modal_projector"

# By our fields: the key of config.json, and its value if it is missing (transformers'
# Gemma3TextConfig).
_SIZES = {
    "vocab_size": ("vocab_size", 262_208),
    "num_layers": ("num_hidden_layers", 26),
    "embed_dim": ("hidden_size", 2304),
    "num_heads": ("num_attention_heads", 8),
    "num_kv_heads": ("num_key_value_heads", 4),
    "head_dim": ("head_dim", 256),
    "mlp_dim": ("intermediate_size", 9216),
    "sliding_window": ("sliding_window", 4096),
    "query_dim": ("query_pre_attn_scalar", 256),
    "bos_id": ("bos_token_id", 2),
}
_NUMBER, _OPTIONAL = (int, float), (dict, type(None))
_TYPES = {
    **{key: int for key, _ in _SIZES.values()},
    "rope_parameters": _OPTIONAL,
    "rope_scaling": _OPTIONAL,
    "rope_theta": _NUMBER,
    "rope_local_base_freq": _NUMBER,
    "sliding_window_pattern": int,
    "_sliding_window_pattern": int,
    "layer_types": (list, type(None)),
}
# What must be as it is in every Gemma 3.
_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}


def language_model_config(path: str | os.PathLike[str], **changes: Any) -> GemmaConfig:
    """The config of the language model at `path`.

    A Hugging Face folder has it in its config.json. An Orbax folder holds shapes alone: its config
    is that of the released size with these shapes. `changes` are fields of GemmaConfig that a
    checkpoint does not decide, such as dtype.

    Raises:
      UserError: the folder is of another model, of a variant that is not known here, or of sizes
        that were not released.
    """
    path = pathlib.Path(path)
    if _is_hugging_face(path):
        sizes = _sizes_of_json(path / "config.json")
        return build(GemmaConfig, {**sizes, **changes}, str(path))
    sizes = _sizes_of_tensors(_open_orbax(path), path)
    for released in RELEASED.values():
        if sizes.items() <= dataclasses.asdict(released).items():
            return dataclasses.replace(released, **changes)
    raise UserError(f"{path}: found {sizes}, expected a size that was released: {[*RELEASED]}")


def load_language_model(path: str | os.PathLike[str], config: GemmaConfig) -> dict[str, Any]:
    """The parameters of models.gemma.Gemma, as LazyArrays: nothing is read yet.

    Raises:
      UserError: the folder is of another model or not whole, or its tensors do not fit the config
        (all that do not are listed).
    """
    path = pathlib.Path(path)
    expected = parameter_shapes(config)
    if _is_hugging_face(path):
        tensors = open_safetensors(path)
        # "model.", "model.language_model." or "language_model.model."
        ends = [name for name in tensors if name.endswith("embed_tokens.weight")]
        start = ends[0].removesuffix("embed_tokens.weight") if ends else "model."
        tensors = {name.removeprefix(start): tensor for name, tensor in tensors.items()}
        recipes = {name: _hugging_face(name, config) for name in expected}
    else:
        tensors = _open_orbax(path)
        recipes = {name: one(_IN_LAYER.sub(r"layer_\1/", name)) for name in expected}
    ignored = (_VISION, r"^lm_head\.weight$")  # the head is the embedding, by another name
    return assemble(recipes, tensors, expected, str(path), ignored)


def _is_hugging_face(path: pathlib.Path) -> bool:
    """If it is not, it is opened as an Orbax folder, which has errors of its own."""
    if not (path / "config.json").is_file():
        return False
    found = recognise(path)
    if found.kind != "hugging_face_gemma":
        raise _no_gemma(path, found.description)
    return True


def _no_gemma(path: pathlib.Path, found: str) -> UserError:
    return UserError(
        f"{path}: found {found}, expected a Gemma 3: a folder of the package gemma (Orbax), or of "
        "Hugging Face with .safetensors"
    )


def _open_orbax(path: pathlib.Path) -> Tensors:
    """By the package's names, one tensor a layer."""
    if not path.is_dir():
        raise _no_gemma(path, recognise(path).description)  # or it says that nothing is there
    tensors: dict[str, LazyArray] = {}
    opened = {
        re.sub(r"(/mlp/\w+)/w$", r"\1", name.removeprefix("transformer/")): tensor
        for name, tensor in open_orbax(path).items()
    }
    if "embedder/input_embedding" not in opened:
        raise _no_gemma(path, recognise(path).description)
    kinds = [int(match[1]) for name in opened if (match := _STACKED.match(name))]
    for name, tensor in opened.items():
        if not (match := _STACKED.match(name)):
            tensors[name] = tensor
            continue
        if not tensor.shape:
            raise UserError(f"{path}: {name} has no axes, expected one of layers first")
        for i in range(tensor.shape[0]):
            layer = i * (max(kinds) + 1) + int(match[1])
            tensors[_STACKED.sub(f"layer_{layer}/", name)] = tensor.take(0, i)
    return tensors


def _hugging_face(path: str, config: GemmaConfig) -> Recipe:
    """The recipe of our parameter at `path`."""
    if path in _OTHERS:
        return one(_OTHERS[path])
    layer = _IN_LAYER.match(path)
    ours = path[layer.end() :]
    names = tuple(f"layers.{layer[1]}.{name}.weight" for name in _BLOCK[ours])

    def change(weight: LazyArray) -> LazyArray:
        if ours in ("attn/attn_vec_einsum/w", "mlp/linear"):
            return weight.transpose()
        if ours.startswith("attn/") and weight.ndim == 2:
            num_heads = weight.shape[0] // config.head_dim
            heads = weight.reshape((num_heads, config.head_dim, weight.shape[1]))
            return heads.transpose(0, 2, 1)
        return weight

    return Recipe(names, change, stacked=len(names) > 1)


def _sizes_of_json(path: pathlib.Path) -> dict[str, Any]:
    held = read_object(path)
    check_types(held, {"text_config": dict}, path)
    held = {**dict(_SIZES.values()), **held.get("text_config", held)}
    check_types(held, _TYPES, path)
    for key, expected in _FIXED.items():
        if held.get(key, expected) != expected:
            raise UserError(f"{path}: {key}: found {held[key]!r}, expected {expected!r}")
    return {
        **{ours: held[theirs] for ours, (theirs, _) in _SIZES.items()},
        **_positions(held, path),
        "local_layers": _local_layers(held, path),
    }


def _positions(held: Mapping[str, Any], path: pathlib.Path) -> dict[str, float]:
    """Reads transformers 5's rope_parameters, or the keys of versions before it."""
    told = held.get("rope_parameters") or {
        "sliding_attention": {"rope_theta": held.get("rope_local_base_freq", 10_000.0)},
        "full_attention": {
            "rope_theta": held.get("rope_theta", 1_000_000.0),
            **(held.get("rope_scaling") or {}),
        },
    }
    for part, known in (("sliding_attention", "default"), ("full_attention", "default or linear")):
        kind = told.get(part)
        if not isinstance(kind, dict) or "rope_theta" not in kind:
            raise UserError(
                f"{path}: {part}: found {kind!r:.60}, expected an object with rope_theta"
            )
        check_types(kind, {"rope_theta": _NUMBER, "rope_type": str, "factor": _NUMBER}, path)
        if kind.get("rope_type", "default") not in known.split(" or "):
            raise UserError(f"{path}: rope_type: found {kind['rope_type']!r}, expected {known}")
        if not kind.get("factor", 1.0) >= 1:
            raise UserError(f"{path}: factor: found {kind['factor']}, expected at least 1")
    return {
        "local_rope_max_wavelength": float(told["sliding_attention"]["rope_theta"]),
        "global_rope_max_wavelength": float(told["full_attention"]["rope_theta"]),
        "global_rope_scale": float(told["full_attention"].get("factor", 1.0)),
    }


def _local_layers(held: Mapping[str, Any], path: pathlib.Path) -> int:
    pattern = held.get("sliding_window_pattern", held.get("_sliding_window_pattern", 6))
    kinds = held.get("layer_types")
    if kinds is None:
        return pattern - 1
    found = [kind == "full_attention" for kind in kinds]
    local_layers = found.index(True) if any(found) else len(found)
    if found != [i % (local_layers + 1) == local_layers for i in range(len(found))]:
        raise UserError(
            f"{path}: layer_types: found {kinds}, expected a full_attention after every so many "
            "sliding_attention"
        )
    return local_layers


def _sizes_of_tensors(tensors: Tensors, path: pathlib.Path) -> dict[str, int]:
    layers = [int(match[1]) for name in tensors if (match := re.match(r"layer_(\d+)/", name))]
    sizes = {"num_layers": max(layers, default=-1) + 1}
    try:
        sizes["vocab_size"], sizes["embed_dim"] = tensors["embedder/input_embedding"].shape
        sizes["num_heads"], _, sizes["head_dim"] = tensors["layer_0/attn/q_einsum/w"].shape
        _, sizes["num_kv_heads"], _, _ = tensors["layer_0/attn/kv_einsum/w"].shape
        _, sizes["mlp_dim"], _ = tensors["layer_0/mlp/gating_einsum"].shape
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its tensors are of no Gemma 3 that is known: {error}") from error
    return sizes
