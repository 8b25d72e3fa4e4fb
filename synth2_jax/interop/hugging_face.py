"""The encoder of a T5 from a Hugging Face folder.

The folder is what `save_pretrained` of transformers writes for a T5, mT5 or umT5, its encoder
alone or the whole model: config.json, and the weights as safetensors or as files of torch. Tensors
are [outputs, inputs], and `_NAMES` has their names. T5 and mT5 have the bias of relative positions
in block 0 alone, for all layers.
"""

import os
import pathlib
from typing import Any

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import assemble, by_names, check_agrees, one
from synth2_jax.interop.json_file import check_types, read_object
from synth2_jax.interop.recognise import recognise
from synth2_jax.interop.tensor_files import open_weights
from synth2_jax.models.text_encoder import TextEncoderConfig, parameter_shapes

# By keys of config.json: our field, and the values that T5, mT5 and umT5 have if it lacks the key.
_KEYS = {
    "vocab_size": ("vocab_size", 32128, 250112),
    "num_layers": ("num_layers", 6, 8),
    "d_model": ("embed_dim", 512, 512),
    "num_heads": ("num_heads", 8, 6),
    "d_kv": ("head_dim", 64, 64),
    "d_ff": ("mlp_dim", 2048, 1024),
    "feed_forward_proj": ("mlp_activation", "relu", "gated-gelu"),
    "relative_attention_num_buckets": ("relpos_buckets", 32, 32),
    "relative_attention_max_distance": ("relpos_max_distance", 128, 128),
}
_KINDS = ("t5", "mt5", "umt5")
_ACTIVATIONS = {"relu": "relu", "gated-gelu": "gated_gelu", "gated-silu": "gated_silu"}
_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one tensor
_BLOCK = "encoder.block.{}.layer"
_NAMES = {
    "final_norm/scale": "encoder.final_layer_norm.weight",
    "relpos_bias/embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    **{
        f"encoder/layers_{{}}/{ours}": f"{_BLOCK}.{theirs}.weight"
        for ours, theirs in {
            "relpos_bias/embedding": "0.SelfAttention.relative_attention_bias",
            "attention_norm/scale": "0.layer_norm",
            "attention/query/kernel": "0.SelfAttention.q",
            "attention/key/kernel": "0.SelfAttention.k",
            "attention/value/kernel": "0.SelfAttention.v",
            "attention/out/kernel": "0.SelfAttention.o",
            "mlp_norm/scale": "1.layer_norm",
            "mlp/gate/kernel": "1.DenseReluDense.wi_0",
            "mlp/up/kernel": "1.DenseReluDense.wi_1",
            "mlp/down/kernel": "1.DenseReluDense.wo",
        }.items()
    },
}
_WITHOUT_GATE = {"encoder/layers_{}/mlp/up/kernel": f"{_BLOCK}.1.DenseReluDense.wi.weight"}


def text_encoder_config(path: str | os.PathLike[str], **changes: Any) -> TextEncoderConfig:
    """The config of the encoder in a Hugging Face folder, from its config.json.

    `changes` are fields of TextEncoderConfig that a checkpoint does not decide, such as dtype.

    Raises:
      UserError: the folder is of another model, or of a variant that is not known here.
    """
    where = pathlib.Path(path) / "config.json"
    if not where.is_file():
        raise UserError(
            f"{path}: found {recognise(path).description}, expected a Hugging Face folder with a "
            "config.json"
        )
    held = read_object(where)
    kind = held.get("model_type")
    if kind not in _KINDS:
        raise UserError(
            f"{path}: found {recognise(path).description}, expected a Hugging Face folder of "
            f"T5, mT5 or umT5 (model_type {', '.join(_KINDS)}; found {kind!r})"
        )
    column = 1 if kind == "t5" else 2
    held = {key: row[column] for key, row in _KEYS.items()} | {"layer_norm_epsilon": 1e-6} | held
    check_types(held, dict.fromkeys(_KEYS, int) | {"feed_forward_proj": str}, where)
    for key, known in (("feed_forward_proj", [*_ACTIVATIONS]), ("layer_norm_epsilon", [1e-6])):
        if held[key] not in known:
            raise UserError(
                f"{where}: {key}: found {held[key]!r}, expected {' or '.join(map(str, known))}"
            )
    fields = {row[0]: held[key] for key, row in _KEYS.items()}
    fields["mlp_activation"] = _ACTIVATIONS[held["feed_forward_proj"]]
    fields["relpos_per_layer"] = kind == "umt5"
    return build(TextEncoderConfig, {**fields, **changes}, str(where))


def load_text_encoder(path: str | os.PathLike[str], config: TextEncoderConfig) -> dict[str, Any]:
    """The parameters of models.text_encoder.TextEncoder, as LazyArrays: nothing is read yet.

    A .safetensors file alone will do as well, though nothing then says whether its activation is
    the config's. A decoder is skipped.

    Raises:
      UserError: the folder is of another model, its config.json differs from `config` (all that
        differs is listed), a file is missing or cut short, or tensors do not fit (all are listed).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        found = text_encoder_config(path)
        decided = [*(row[0] for row in _KEYS.values()), "relpos_per_layer"]
        expected = {name: getattr(found, name) for name in decided}
        where = f"{path}: its config.json differs from the config of the text encoder"
        check_agrees(config, expected, where)
    tensors = open_weights(path)
    embedding, *others = [name for name in _EMBEDDING if name in tensors] or _EMBEDDING[:1]
    shapes = parameter_shapes(config)
    names = _NAMES | {"token_embedding/embedding": embedding}
    names |= {} if config.gated_mlp else _WITHOUT_GATE
    recipes = by_names(shapes, names, lambda weight: weight.transpose())
    recipes["token_embedding/embedding"] = one(embedding)
    ignored = (r"^decoder\.", r"^lm_head\.", *(rf"^{name}$" for name in others))
    return assemble(recipes, tensors, shapes, str(path), ignored)
