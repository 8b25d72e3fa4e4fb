"""MaskGIT's class-conditional transformer (Chang et al. 2022), so that its weights fit.

A BERT (arXiv 1810.04805) over a class token and the image tokens: norms after the residual sums,
biases everywhere, and logits from the table of the input embeddings. It is here to be sampled from,
so that our sampler can be compared with the published one; there is no dropout to train it with.

Legend: B batch, N image tokens, T = 1 + N tokens, D width, V codebook size (logits).
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.config import check_counts, check_layers
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import MultiHeadAttention
from synth2_jax.layers.embeddings import LearnedPositions, TokenEmbedding
from synth2_jax.layers.linear import Linear
from synth2_jax.layers.mlp import MLP, gelu
from synth2_jax.layers.norms import LayerNorm
from synth2_jax.layers.stack import Stack
from synth2_jax.models import parameter_shapes as shapes

_EPSILON = 1e-12  # BERT's
_STDDEV = 0.02


@dataclasses.dataclass(frozen=True)
class ClassConditionalMaskGITConfig:
    """Sizes; the defaults are those of the released weights for 256 pixels.

    Attributes:
      codebook_size: V; image token ids are 0 .. V - 1.
      num_classes: rows of the embeddings behind those of the codes.
      num_tokens: N; 1024 for 512 pixels.
    """

    codebook_size: int = 1024
    num_classes: int = 1000
    num_tokens: int = 256
    num_layers: int = 24
    embed_dim: int = 768
    num_heads: int = 16
    mlp_dim: int = 3072
    dtype: str = "float32"
    scan_layers: bool = True

    def __post_init__(self):
        dtype_of(self.dtype, "dtype")
        sizes = ("num_tokens", "embed_dim", "num_heads", "mlp_dim")
        check_counts(self, "codebook_size", "num_classes", *sizes)
        check_layers(self, "num_layers")
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"num_heads: found {self.num_heads}, expected a divisor of `embed_dim`, "
                f"{self.embed_dim}"
            )

    @property
    def mask_id(self) -> int:
        """The input id of a masked position: the last row of the embeddings."""
        return self.codebook_size + self.num_classes


def parameter_shapes(config: ClassConditionalMaskGITConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The model's parameters by "/"-joined path; computes nothing."""
    inputs = (((1, config.num_tokens), jnp.int32), ((1,), jnp.int32))
    return shapes.parameter_shapes(ClassConditionalMaskGIT(config), *inputs)


class ClassConditionalBlock(nn.Module):
    """Self-attention and an MLP, each with its norm after the sum."""

    config: ClassConditionalMaskGITConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, scanned: None):
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        sizes = (cfg.num_heads, cfg.embed_dim // cfg.num_heads, cfg.embed_dim, dtype)
        attention = MultiHeadAttention(*sizes, use_bias=True, name="attention")
        y_BTD = attention(x_BTD, deterministic=True)
        x_BTD = LayerNorm(dtype, _EPSILON, name="attention_norm")(x_BTD + y_BTD)
        y_BTD = MLP(cfg.mlp_dim, dtype, use_bias=True, name="mlp")(x_BTD, deterministic=True)
        return LayerNorm(dtype, _EPSILON, name="mlp_norm")(x_BTD + y_BTD), None


class ClassConditionalMaskGIT(nn.Module):
    """Partly masked image tokens and a class -> logits of every image token."""

    config: ClassConditionalMaskGITConfig

    @nn.compact
    def __call__(self, ids_BN: jax.Array, class_B: jax.Array) -> jax.Array:
        """f32[B, N, V] of ids (i32, `config.mask_id` where masked) and classes (i32, from 0)."""
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        num_rows = cfg.mask_id + 1
        embedding = TokenEmbedding(num_rows, cfg.embed_dim, dtype, _STDDEV, name="token_embedding")
        tokens_BT = jnp.concatenate([cfg.codebook_size + class_B[:, None], ids_BN], axis=1)
        positions = LearnedPositions(1 + cfg.num_tokens, dtype, _STDDEV, name="positions")
        x_BTD = positions(embedding(tokens_BT))
        x_BTD = LayerNorm(dtype, _EPSILON, name="embedding_norm")(x_BTD)
        block = functools.partial(ClassConditionalBlock, cfg)
        x_BTD, _ = Stack(block, cfg.num_layers, cfg.scan_layers, name="decoder")(x_BTD)
        # The kernel's two widths need two names; "mlp" is the one that splits over the tensor axis.
        head = Linear((cfg.embed_dim,), ("mlp", "embed"), dtype, use_bias=True, name="head")
        x_BND = LayerNorm(dtype, _EPSILON, name="head_norm")(gelu(head(x_BTD[:, 1:])))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("vocab",))
        bias = self.param("logits_bias", zeros, (num_rows,))
        # An image has no token that is a class or a mask.
        return (embedding.attend(x_BND) + bias[None, None])[..., : cfg.codebook_size]
