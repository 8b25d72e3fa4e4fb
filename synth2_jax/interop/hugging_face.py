"""The encoder of a T5 from a Hugging Face folder.

The folder is what `save_pretrained` of transformers writes for a T5, mT5 or umT5, its encoder
alone or the whole model: config.json, and model.safetensors or several files with their index.
Where there are no .safetensors, pytorch_model.bin or its parts are read by torch (`weights_only`).
Its names, and the shapes of [rows, columns] = [outputs, inputs]:

    shared.weight                                            [V, D]
    encoder.block.I.layer.0.layer_norm.weight                [D]
    encoder.block.I.layer.0.SelfAttention.{q,k,v}.weight     [H K, D]
    encoder.block.I.layer.0.SelfAttention.o.weight           [D, H K]
    encoder.block.I.layer.0.SelfAttention.relative_attention_bias.weight  [buckets, H]
    encoder.block.I.layer.1.layer_norm.weight                [D]
    encoder.block.I.layer.1.DenseReluDense.{wi_0,wi_1}.weight  [M, D], or wi without a gate
    encoder.block.I.layer.1.DenseReluDense.wo.weight         [D, M]
    encoder.final_layer_norm.weight                          [D]

V vocabulary, D width, H heads, K head dim, M hidden width, I layers. T5 and mT5 have the bias in
block 0 alone, for all layers.
"""

import os
import pathlib
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble, one, per_layer
from synth2_jax.interop.json_file import check_types, read_object
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import recognise
from synth2_jax.interop.tensor_files import open_weights
from synth2_jax.models.text_encoder import TextEncoderConfig, parameter_shapes

_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_layers",
    "d_model": "embed_dim",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "feed_forward_proj": "mlp_activation",
    "relative_attention_num_buckets": "relpos_buckets",
    "relative_attention_max_distance": "relpos_max_distance",
}
_ACTIVATIONS = {"relu": "relu", "gated-gelu": "gated_gelu", "gated-silu": "gated_silu"}
# What a config.json need not say.
_T5 = {
    "vocab_size": 32128,
    "num_layers": 6,
    "d_model": 512,
    "num_heads": 8,
    "d_kv": 64,
    "d_ff": 2048,
    "feed_forward_proj": "relu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_MT5 = {
    **_T5,
    "vocab_size": 250112,
    "num_layers": 8,
    "num_heads": 6,
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
}
_DEFAULTS = {"t5": _T5, "mt5": _MT5, "umt5": _MT5}
_BIAS = "SelfAttention.relative_attention_bias.weight"
_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one tensor


def text_encoder_config(path: str | os.PathLike[str], **changes: Any) -> TextEncoderConfig:
    """The config of the encoder in a Hugging Face folder, from its config.json.

    Args:
      path: of the folder.
      **changes: fields of TextEncoderConfig that a checkpoint does not decide, such as dtype.

    Raises:
      UserError: the folder is of another model (it says of which), or of a variant that is not
        known here.
    """
    path = pathlib.Path(path)
    held = _config_json(path)
    kind = held.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise UserError(
            f"{path}: found {recognise(path).description}, expected a Hugging Face folder of "
            f"T5, mT5 or umT5 (model_type {', '.join(_DEFAULTS)}; found {kind!r})"
        )
    held = {**_DEFAULTS[kind], **held}
    where = path / "config.json"
    check_types(held, dict.fromkeys(_KEYS, int) | {"feed_forward_proj": str}, where)
    if held["feed_forward_proj"] not in _ACTIVATIONS:
        raise UserError(
            f"{where}: feed_forward_proj: found {held['feed_forward_proj']!r}, expected one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    if held["layer_norm_epsilon"] != 1e-6:
        raise UserError(
            f"{where}: layer_norm_epsilon: found {held['layer_norm_epsilon']}, expected 1e-06"
        )
    fields = {field: held[key] for key, field in _KEYS.items()}
    fields["mlp_activation"] = _ACTIVATIONS[held["feed_forward_proj"]]
    return build(
        TextEncoderConfig, {**fields, "relpos_per_layer": kind == "umt5", **changes}, str(where)
    )


def _config_json(path: pathlib.Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path}: found {recognise(path).description}, expected a Hugging Face folder with a "
            "config.json"
        )
    return read_object(path / "config.json")


def load_text_encoder(path: str | os.PathLike[str], config: TextEncoderConfig) -> dict[str, Any]:
    """The parameters of models.text_encoder.TextEncoder, as LazyArrays: nothing is read yet.

    Args:
      path: of a Hugging Face folder; a decoder in it is let be. A .safetensors file alone will do
        as well, though nothing then says whether its activation is the config's.
      config: of the encoder that is to hold the parameters.

    Raises:
      UserError: the folder is of another model, its config.json differs from `config` (all that
        differs is listed), a file is missing or cut short, or tensors do not fit (all are listed).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        _check_config(path, config)
    tensors = open_weights(path)
    embeddings = [name for name in _EMBEDDING if name in tensors] or [_EMBEDDING[0]]
    return assemble(
        _recipes(config, embeddings[0]),
        tensors,
        parameter_shapes(config),
        str(path),
        ignored=(r"^decoder\.", r"^lm_head\.", *(rf"^{name}$" for name in embeddings[1:])),
    )


def _check_config(path: pathlib.Path, config: TextEncoderConfig) -> None:
    found = text_encoder_config(path)
    names = [*_KEYS.values(), "relpos_per_layer"]
    differences = [
        f"{name} is {getattr(config, name)!r}, there {getattr(found, name)!r}"
        for name in names
        if getattr(config, name) != getattr(found, name)
    ]
    if differences:
        raise UserError(
            f"{path}: its config.json differs from the config of the text encoder: "
            f"{'; '.join(differences)}"
        )


def _recipes(config: TextEncoderConfig, embedding: str) -> dict[str, Recipe]:
    heads = (config.num_heads, config.head_dim)

    def transposed(weight: LazyArray) -> LazyArray:
        return weight.transpose()

    def to_heads(weight: LazyArray) -> LazyArray:
        return weight.transpose().split(1, heads)

    def from_heads(weight: LazyArray) -> LazyArray:
        return weight.transpose().split(0, heads)

    def layer(i: int) -> dict[str, Recipe]:
        attention, mlp = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
        up = "wi_1" if config.gated_mlp else "wi"
        recipes = {
            "attention_norm/scale": one(f"{attention}.layer_norm.weight"),
            "attention/query/kernel": one(f"{attention}.SelfAttention.q.weight", to_heads),
            "attention/key/kernel": one(f"{attention}.SelfAttention.k.weight", to_heads),
            "attention/value/kernel": one(f"{attention}.SelfAttention.v.weight", to_heads),
            "attention/out/kernel": one(f"{attention}.SelfAttention.o.weight", from_heads),
            "mlp_norm/scale": one(f"{mlp}.layer_norm.weight"),
            "mlp/up/kernel": one(f"{mlp}.DenseReluDense.{up}.weight", transposed),
            "mlp/down/kernel": one(f"{mlp}.DenseReluDense.wo.weight", transposed),
        }
        if config.gated_mlp:
            recipes["mlp/gate/kernel"] = one(f"{mlp}.DenseReluDense.wi_0.weight", transposed)
        if config.relpos_per_layer:
            recipes["relpos_bias/embedding"] = one(f"{attention}.{_BIAS}", transposed)
        return recipes

    recipes = {
        "token_embedding/embedding": one(embedding),
        "final_norm/scale": one("encoder.final_layer_norm.weight"),
        **per_layer("encoder", config.num_layers, config.scan_layers, layer),
    }
    if not config.relpos_per_layer:
        recipes["relpos_bias/embedding"] = one(f"encoder.block.0.layer.0.{_BIAS}", transposed)
    return recipes
