"""Caption encoder: the encoder of T5 1.1 (arXiv 1910.10683, 2002.05202), so that its weights fit.

RMS norm in float32, relative position buckets shared by all layers, gated GELU, unscaled attention
logits and no biases. It is trained with the generator, or holds pretrained weights and is frozen.

Legend: B batch, T text tokens, D width.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from synth2_jax.config import check_counts
from synth2_jax.config import dtype as dtype_of
from synth2_jax.layers.attention import MultiHeadAttention
from synth2_jax.layers.embeddings import RelativePositionBias, TokenEmbedding
from synth2_jax.layers.masks import key_mask
from synth2_jax.layers.mlp import GatedMLP
from synth2_jax.layers.norms import RMSNorm
from synth2_jax.layers.stack import Stack, check_remat


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the encoder; `relpos_*` are T5's, `remat` is none, full or dots."""

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    dropout_rate: float = 0.0
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"

    def __post_init__(self):
        dtype_of(self.dtype, "text_encoder.dtype")
        check_remat(self.remat)
        sizes = ("vocab_size", "num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim")
        check_counts(self, "text_encoder", *sizes)


class TextEncoderBlock(nn.Module):
    """Pre-norm self-attention and gated MLP."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(self, x_BTD, scanned, bias_1HTT, mask_B11T, *, deterministic: bool):
        del scanned
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        dropout = nn.Dropout(cfg.dropout_rate)
        attention = MultiHeadAttention(
            cfg.num_heads,
            cfg.head_dim,
            cfg.embed_dim,
            dtype,
            scale_queries=False,
            dropout_rate=cfg.dropout_rate,
            name="attention",
        )
        y_BTD = RMSNorm(dtype, name="attention_norm")(x_BTD)
        y_BTD = attention(y_BTD, mask=mask_B11T, bias=bias_1HTT, deterministic=deterministic)
        x_BTD = x_BTD + dropout(y_BTD, deterministic=deterministic)
        y_BTD = RMSNorm(dtype, name="mlp_norm")(x_BTD)
        mlp = GatedMLP(cfg.mlp_dim, dtype, dropout_rate=cfg.dropout_rate, name="mlp")
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
        dropout = nn.Dropout(cfg.dropout_rate)
        num_text = text_tokens_BT.shape[1]
        bias_1HTT = RelativePositionBias(
            cfg.num_heads, cfg.relpos_buckets, cfg.relpos_max_distance, name="relpos_bias"
        )(num_text, num_text)
        embedding = TokenEmbedding(cfg.vocab_size, cfg.embed_dim, dtype, name="token_embedding")
        x_BTD = dropout(embedding(text_tokens_BT), deterministic=deterministic)
        stack = Stack(
            functools.partial(TextEncoderBlock, cfg),
            cfg.num_layers,
            cfg.scan_layers,
            cfg.remat,
            name="encoder",
        )
        x_BTD, _ = stack(x_BTD, bias_1HTT, key_mask(text_mask_BT), deterministic=deterministic)
        x_BTD = RMSNorm(dtype, name="final_norm")(x_BTD)
        return dropout(x_BTD, deterministic=deterministic)
