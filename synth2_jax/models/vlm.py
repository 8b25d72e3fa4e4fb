"""Visual language model: image embeddings and text to logits (Flamingo, arXiv 2204.14198).

A Perceiver resampler turns the image into latents; blocks of gated cross-attention between the
layers of a language model read them. The image is an embedding, never pixels: whether a VQ encoder
or a generator made its tokens cannot be seen here (Synth2, arXiv 2403.07750).

B batch, N image tokens, C image embedding width, L latents, T text tokens, D width of the language
model, V vocabulary, G cross-attention blocks, H heads, K head dim.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import KeysValues, KVCache, MultiHeadAttention
from synth2_jax.layers.mlp import MLP, squared_relu
from synth2_jax.layers.norms import RMSNorm
from synth2_jax.layers.stack import Stack
from synth2_jax.models.language_model import LanguageModel, LanguageModelConfig
from synth2_jax.models.resampler import Resampler, ResamplerConfig


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Cross-attention has the heads, widths, dtype, scan and remat of the language model.

    Raises UserError when `cross_attention_every` does not divide the language model's layers.
    """

    language_model: LanguageModelConfig
    resampler: ResamplerConfig
    image_embedding_dim: int
    num_image_tokens: int
    cross_attention_every: int = 1
    dropout_rate: float = 0.0  # of the cross-attention blocks

    def __post_init__(self):
        config_lib.check_counts(self, "vlm", "image_embedding_dim", "num_image_tokens")
        every, num_layers = self.cross_attention_every, self.language_model.num_layers
        if every < 1 or num_layers % every:
            raise UserError(
                f"cross_attention_every: found {every}, expected a divisor of the language model's "
                f"{num_layers} layers"
            )


class GatedCrossAttention(nn.Module):
    """x + tanh(a) attention(x, image), then + tanh(b) MLP; a = b = 0 at first (Flamingo, fig. 4).

    At initialization the block is the identity, so the language model starts as it was.
    """

    config: VLMConfig

    def setup(self):
        cfg, lm = self.config, self.config.language_model
        dtype = config_lib.dtype(lm.dtype)
        self.attention_norm = RMSNorm(dtype)
        self.attention = MultiHeadAttention(
            lm.num_heads, lm.head_dim, lm.embed_dim, dtype, dropout_rate=cfg.dropout_rate
        )
        self.mlp_norm = RMSNorm(dtype)
        self.mlp = MLP(lm.mlp_dim, dtype, squared_relu, cfg.dropout_rate)
        self.dropout = nn.Dropout(cfg.dropout_rate)
        zero = nn.with_logical_partitioning(nn.initializers.zeros_init(), ())
        self.attention_gate = self.param("attention_gate", zero, ())
        self.mlp_gate = self.param("mlp_gate", zero, ())

    def keys_values(self, latents_BLD: jax.Array) -> KeysValues:
        """k_BLHK, v_BLHK of the image's latents."""
        return self.attention.keys_values(latents_BLD)

    def __call__(
        self, x_BTD: jax.Array, keys_values: KeysValues, *, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """(x_BTD, None)."""
        y_BTD = self.attention(
            self.attention_norm(x_BTD), keys_values=keys_values, deterministic=deterministic
        )
        y_BTD = self.dropout(y_BTD, deterministic=deterministic)
        x_BTD = x_BTD + jnp.tanh(self.attention_gate).astype(x_BTD.dtype) * y_BTD
        y_BTD = self.mlp(self.mlp_norm(x_BTD), deterministic=deterministic)
        y_BTD = self.dropout(y_BTD, deterministic=deterministic)
        return x_BTD + jnp.tanh(self.mlp_gate).astype(x_BTD.dtype) * y_BTD, None


class VLM(nn.Module):
    """Parameters: "language_model" (those of a bare `LanguageModel`), "resampler" and
    "cross_attention". Initialize with image embeddings, or the last two are not created.
    """

    config: VLMConfig

    def setup(self):
        cfg, lm = self.config, self.config.language_model
        self.language_model = LanguageModel(lm)
        self.resampler = Resampler(cfg.resampler)
        self.cross_attention = Stack(
            functools.partial(GatedCrossAttention, cfg),
            lm.num_layers // cfg.cross_attention_every,
            lm.scan_layers,
            lm.remat,
        )

    def __call__(
        self,
        image_embeddings_BNC: jax.Array | None,
        input_tokens_BT: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """logits f32[B, T, V]; without an image those of the bare language model (captions only).

        `input_tokens_BT` are already shifted right.
        """
        if image_embeddings_BNC is None:
            return self.language_model(input_tokens_BT, deterministic=deterministic)
        return self.language_model(
            input_tokens_BT,
            cross_attention=self.cross_attention,
            visual=self.visual(image_embeddings_BNC, deterministic=deterministic),
            deterministic=deterministic,
        )

    def visual(self, image_embeddings_BNC: jax.Array, *, deterministic: bool = True) -> KeysValues:
        """k_GBLHK, v_GBLHK: all that the text will ever read of an image, once per image."""
        expected = (self.config.num_image_tokens, self.config.image_embedding_dim)
        if image_embeddings_BNC.shape[1:] != expected:
            raise UserError(
                f"image embeddings: found [tokens, width] {image_embeddings_BNC.shape[1:]}, "
                f"expected {expected} (num_image_tokens, image_embedding_dim)"
            )
        latents_BLD = self.resampler(image_embeddings_BNC, deterministic=deterministic)
        return self.cross_attention.map("keys_values", latents_BLD)

    def step(
        self, input_tokens_BT: jax.Array, cache: KVCache, visual: KeysValues | None = None
    ) -> tuple[jax.Array, KVCache]:
        """(logits f32[B, T, V], cache) of the next T inputs: a whole prompt, or one token.

        `cache` is `language_model.init_cache`'s, `visual` the result of `self.visual`. There may be
        several rows of text an image, one after the other, as in a beam search.
        """
        if visual is None:
            return self.language_model.step(input_tokens_BT, cache)
        num_rows, num_images = input_tokens_BT.shape[0], visual[0].shape[1]
        if num_rows % num_images:
            raise ValueError(f"{num_rows} rows of text cannot share {num_images} images evenly")
        visual = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_rows // num_images, axis=1), visual)
        return self.language_model.step(
            input_tokens_BT, cache, cross_attention=self.cross_attention, visual=visual
        )
