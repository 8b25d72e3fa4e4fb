"""Caption encoder: the encoder of T5 (arXiv 1910.10683, 2002.05202), so that its weights fit.

RMS norm in float32, relative position buckets, unscaled attention logits and no biases. The
defaults are those of T5 1.1 and mT5; T5 1.0 has `mlp_activation="relu"`, and umT5 and t5x's
scalable_t5 have `relpos_per_layer`.

Legend: B batch, T text tokens, D width, H heads.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax

from synth2_jax.config import check_choices, check_counts
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError
from synth2_jax.layers.dropout import Dropout
from synth2_jax.layers.embeddings import RelativePositionBias, TokenEmbedding
from synth2_jax.layers.masks import key_mask
from synth2_jax.layers.mlp import MLP, GatedMLP, gelu
from synth2_jax.layers.norms import RMSNorm
from synth2_jax.layers.stack import StackConfig
from synth2_jax.models import parameter_shapes as shapes

_MLPS = {
    "gated_gelu": functools.partial(GatedMLP, activation=gelu),
    "gated_silu": functools.partial(GatedMLP, activation=nn.silu),
    "relu": functools.partial(MLP, activation=nn.relu),
}


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig(StackConfig):
    """Sizes of the encoder; `num_heads` times `head_dim` need not be `embed_dim`.

    Attributes:
      vocab_size: rows of the embedding table; T5 has more of them than its vocabulary has pieces.
      mlp_activation: "gated_gelu", "gated_silu", or "relu" without a gate.
      relpos_buckets: buckets of distances between tokens, half of them for each direction.
      relpos_max_distance: all distances from here on share a bucket.
      relpos_per_layer: whether each layer has a bias of its own.
    """

    vocab_size: int
    mlp_activation: Literal["gated_gelu", "gated_silu", "relu"] = "gated_gelu"
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    relpos_per_layer: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "vocab_size")
        check_choices(self, mlp_activation=_MLPS)
        # A quarter of the buckets hold one distance each, the next quarter the rest.
        check_counts(self, "relpos_buckets", least=4)
        if self.relpos_max_distance <= self.relpos_buckets // 4:
            raise UserError(
                f"relpos_max_distance: found {self.relpos_max_distance}, expected "
                f"more than {self.relpos_buckets // 4}, a quarter of `relpos_buckets`"
            )

    @property
    def gated_mlp(self) -> bool:
        """Returns whether an MLP has three matrices, not two."""
        return self.mlp_activation.startswith("gated_")


def parameter_shapes(config: TextEncoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The encoder's parameters by "/"-joined path; computes nothing."""
    inputs = (((1, 1), "int32"), ((1, 1), "bool"))
    return shapes.parameter_shapes(TextEncoder(config), *inputs, deterministic=True)


class TextEncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP; `bias_1HTT` is None where each layer has its own."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(self, x_BTD, scanned, bias_1HTT, mask_B11T, *, deterministic: bool):
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        dropout = Dropout(cfg.dropout_rate)
        if cfg.relpos_per_layer:
            bias_1HTT = _relpos_bias(cfg)(x_BTD.shape[1], x_BTD.shape[1])
        attention = cfg.attention(scale_queries=False, name="attention")
        y_BTD = RMSNorm(dtype, name="attention_norm")(x_BTD)
        y_BTD = attention(y_BTD, mask=mask_B11T, bias=bias_1HTT, deterministic=deterministic)
        x_BTD = x_BTD + dropout(y_BTD, deterministic=deterministic)
        y_BTD = RMSNorm(dtype, name="mlp_norm")(x_BTD)
        mlp = _MLPS[cfg.mlp_activation]
        mlp = mlp(cfg.mlp_dim, dtype, dropout_rate=cfg.dropout_rate, name="mlp")
        y_BTD = mlp(y_BTD, deterministic=deterministic)
        return x_BTD + dropout(y_BTD, deterministic=deterministic), None


class TextEncoder(nn.Module):
    """i32[B, T] token ids -> [B, T, D]."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(
        self, text_tokens_BT: jax.Array, text_mask_BT: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Args: ids; bool, True on tokens (padding is seen by no token); whether dropout is off."""
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        dropout = Dropout(cfg.dropout_rate)
        num_text = text_tokens_BT.shape[1]
        bias_1HTT = None if cfg.relpos_per_layer else _relpos_bias(cfg)(num_text, num_text)
        embedding = TokenEmbedding(cfg.vocab_size, cfg.embed_dim, dtype, name="token_embedding")
        x_BTD = dropout(embedding(text_tokens_BT), deterministic=deterministic)
        stack = cfg.stack(TextEncoderBlock, name="encoder")
        x_BTD, _ = stack(x_BTD, bias_1HTT, key_mask(text_mask_BT), deterministic=deterministic)
        x_BTD = RMSNorm(dtype, name="final_norm")(x_BTD)
        return dropout(x_BTD, deterministic=deterministic)


def _relpos_bias(config: TextEncoderConfig) -> RelativePositionBias:
    return RelativePositionBias(
        config.num_heads, config.relpos_buckets, config.relpos_max_distance, name="relpos_bias"
    )
