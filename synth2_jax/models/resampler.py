"""Perceiver resampler: N image embeddings to L latents (Flamingo, arXiv 2204.14198, section 2.1).

B batch, N image tokens, C image embedding width, L latents, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.layers.dropout import Dropout
from synth2_jax.layers.embeddings import LearnedPositions
from synth2_jax.layers.linear import Linear
from synth2_jax.layers.mlp import MLP, squared_relu
from synth2_jax.layers.norms import LayerNorm
from synth2_jax.layers.stack import StackConfig


@dataclasses.dataclass(frozen=True)
class ResamplerConfig(StackConfig):
    """Sizes of the resampler.

    Attributes:
      num_latents: L, the vectors that stand for an image in the language model (Flamingo: 64).
    """

    num_latents: int

    def __post_init__(self):
        super().__post_init__()
        config_lib.check_counts(self, "num_latents")


class ResamplerBlock(nn.Module):
    """Latents attend to the features and to themselves, then a squared-ReLU MLP."""

    config: ResamplerConfig

    def setup(self):
        cfg = self.config
        dtype = config_lib.dtype(cfg.dtype)
        self.features_norm = LayerNorm(dtype)
        self.latents_norm = LayerNorm(dtype)
        self.attention = cfg.attention()
        self.mlp_norm = LayerNorm(dtype)
        self.mlp = MLP(cfg.mlp_dim, dtype, squared_relu, cfg.dropout_rate)
        self.dropout = Dropout(cfg.dropout_rate)

    def __call__(
        self, latents_BLD: jax.Array, scanned: None, features_BND: jax.Array, *, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """(latents_BLD, None)."""
        x_BLD = self.latents_norm(latents_BLD)
        source_BSD = jnp.concatenate([self.features_norm(features_BND), x_BLD], axis=1)
        keys_values = self.attention.keys_values(source_BSD)
        x_BLD = self.attention(x_BLD, keys_values=keys_values, deterministic=deterministic)
        latents_BLD = latents_BLD + self.dropout(x_BLD, deterministic=deterministic)
        x_BLD = self.mlp(self.mlp_norm(latents_BLD), deterministic=deterministic)
        return latents_BLD + self.dropout(x_BLD, deterministic=deterministic), None


class Resampler(nn.Module):
    """x_BNC -> latents_BLD. N and C are fixed by the input at initialization."""

    config: ResamplerConfig

    @nn.compact
    def __call__(self, x_BNC: jax.Array, *, deterministic: bool) -> jax.Array:
        """[B, L, D] in the config's dtype."""
        cfg = self.config
        dtype = config_lib.dtype(cfg.dtype)
        # Image embeddings are a codebook's channels: a 1x1 convolution over tokens.
        features_BND = Linear((cfg.embed_dim,), ("conv_in", "embed"), dtype, name="project")(x_BNC)
        positions = LearnedPositions(
            x_BNC.shape[1], dtype, axis_name="image_tokens", name="positions"
        )
        features_BND = positions(features_BND)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("latents", "embed"))
        latents_LD = self.param("latents", init, (cfg.num_latents, cfg.embed_dim))
        latents_BLD = jnp.broadcast_to(
            latents_LD[None].astype(dtype), (x_BNC.shape[0], *latents_LD.shape)
        )
        stack = cfg.stack(ResamplerBlock, name="encoder")
        latents_BLD, _ = stack(latents_BLD, features_BND, deterministic=deterministic)
        return LayerNorm(dtype, name="norm")(latents_BLD)
