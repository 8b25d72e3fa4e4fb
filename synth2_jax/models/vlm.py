"""Visual language model: image embeddings and text to logits (Flamingo, arXiv 2204.14198).

A Perceiver resampler turns the image into latents; blocks of gated cross-attention between the
layers of a language model read them. The image is an embedding, never pixels: whether a VQ encoder
or a generator made its tokens cannot be seen here (Synth2, arXiv 2403.07750).

A text may have several images between its words, as few-shot prompts have: each token reads the
latents of the last image before it and of no other (Flamingo, section 2.4).

B batch, I images a text, N image tokens, C image embedding width, L latents, S latents of all its
images, T text tokens, D width of the language model, V vocabulary, G cross-attention blocks,
H heads, K head dim.
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
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.models.resampler import Resampler, ResamplerConfig

# Of one block: k_BSHK and v_BSHK, and i32[B, T] of `VLM.__call__` or None. Of all, with G in front.
Visual = tuple[KeysValues, jax.Array | None]


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Cross-attention has the heads, widths, dtype, scan and remat of the language model.

    Attributes:
      language_model: ours or a Gemma; frozen.
      resampler: turns the image embedding into latents.
      image_embedding_dim: C, as the tokenizer's.
      num_image_tokens: N, as the tokenizer's.
      cross_attention_every: one block of cross-attention before so many layers.
      dropout_rate: of the cross-attention blocks.

    Raises:
      UserError: `cross_attention_every` does not divide the language model's layers.
    """

    language_model: LanguageModelConfig | GemmaConfig
    resampler: ResamplerConfig
    image_embedding_dim: int
    num_image_tokens: int
    cross_attention_every: int = 1
    dropout_rate: float = 0.0

    def __post_init__(self):
        config_lib.check_counts(self, "image_embedding_dim", "num_image_tokens")
        every, num_layers = self.cross_attention_every, self.language_model.num_layers
        if every < 1 or num_layers % every:
            raise UserError(
                f"cross_attention_every: found {every}, expected a divisor of "
                f"`language_model.num_layers`, {num_layers}"
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
        self, x_BTD: jax.Array, visual: Visual, *, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """(x_BTD, None)."""
        keys_values, image_of_text_BT = visual
        mask = None
        if image_of_text_BT is not None:
            image_of_latent_S = (
                jnp.arange(keys_values[0].shape[1]) // self.config.resampler.num_latents + 1
            )
            mask = image_of_text_BT[:, None, :, None] == image_of_latent_S
        y_BTD = self.attention(
            self.attention_norm(x_BTD),
            keys_values=keys_values,
            mask=mask,
            deterministic=deterministic,
        )
        y_BTD = self.dropout(y_BTD, deterministic=deterministic)
        x_BTD = x_BTD + jnp.tanh(self.attention_gate).astype(x_BTD.dtype) * y_BTD
        y_BTD = self.mlp(self.mlp_norm(x_BTD), deterministic=deterministic)
        y_BTD = self.dropout(y_BTD, deterministic=deterministic)
        return x_BTD + jnp.tanh(self.mlp_gate).astype(x_BTD.dtype) * y_BTD, None


class VLM(nn.Module):
    """Parameters: "language_model" (those of a bare `LanguageModel` or `Gemma`), "resampler" and
    "cross_attention". Initialize with image embeddings, or the last two are not created.
    """

    config: VLMConfig

    def setup(self):
        cfg, lm = self.config, self.config.language_model
        self.language_model = lm.make()
        self.resampler = Resampler(cfg.resampler)
        self.cross_attention = Stack(
            functools.partial(GatedCrossAttention, cfg),
            lm.num_layers // cfg.cross_attention_every,
            lm.scan_layers,
            lm.remat,
        )

    def __call__(
        self,
        image_embeddings: jax.Array | None,
        input_tokens_BT: jax.Array,
        image_of_text_BT: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """logits f32[B, T, V]; without an image those of the bare language model (captions only).

        Args:
          image_embeddings: [B, N, C], or [B, I, N, C] of several images a text.
          input_tokens_BT: already shifted right.
          image_of_text_BT: i32, which image each token reads: 1 to I, or 0 for none. May be left
            out with one image a text, which all tokens read then.
        """
        if image_embeddings is None:
            return self.language_model(input_tokens_BT, deterministic=deterministic)
        keys_values = self.visual(image_embeddings, deterministic=deterministic)
        return self.language_model(
            input_tokens_BT,
            cross_attention=self.cross_attention,
            visual=self._all_blocks(keys_values, image_of_text_BT),
            deterministic=deterministic,
        )

    def visual(self, image_embeddings: jax.Array, *, deterministic: bool = True) -> KeysValues:
        """k_GBSHK, v_GBSHK: all that the text will ever read of its images, once per image.

        `image_embeddings` are [B, N, C], so that S is L, or [B, I, N, C], and S is I * L.
        """
        expected = (self.config.num_image_tokens, self.config.image_embedding_dim)
        if image_embeddings.shape[-2:] != expected:
            raise UserError(
                f"image embeddings: found [tokens, width] {image_embeddings.shape[-2:]}, "
                f"expected {expected} (num_image_tokens, image_embedding_dim)"
            )
        num_texts = image_embeddings.shape[0]
        latents = self.resampler(
            image_embeddings.reshape((-1, *expected)), deterministic=deterministic
        )
        latents_BSD = latents.reshape((num_texts, -1, latents.shape[-1]))
        return self.cross_attention.map("keys_values", latents_BSD)

    def step(
        self,
        input_tokens_BT: jax.Array,
        cache: KVCache,
        visual: KeysValues | None = None,
        image_of_text_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """(logits f32[B, T, V], cache) of the next T inputs: a whole prompt, or one token.

        `cache` is `language_model.init_cache`'s, `visual` the result of `self.visual`,
        `image_of_text_BT` as in `__call__`, of these T inputs. There may be several rows of text
        for a row of images, one after the other, as in a beam search.
        """
        if visual is None:
            return self.language_model.step(input_tokens_BT, cache)
        num_rows, num_images = input_tokens_BT.shape[0], visual[0].shape[1]
        if num_rows % num_images:
            raise ValueError(f"{num_rows} rows of text cannot share {num_images} images evenly")
        visual = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_rows // num_images, axis=1), visual)
        return self.language_model.step(
            input_tokens_BT,
            cache,
            cross_attention=self.cross_attention,
            visual=self._all_blocks(visual, image_of_text_BT),
        )

    def _all_blocks(self, keys_values: KeysValues, image_of_text_BT: jax.Array | None) -> Visual:
        """What each block gets; a Stack scans it, so all of it has a leading axis G."""
        if image_of_text_BT is None:
            if keys_values[0].shape[2] != self.config.resampler.num_latents:
                raise ValueError(
                    "several images a text, and no image_of_text_BT says who reads which"
                )
            return keys_values, None
        num_blocks = keys_values[0].shape[0]
        return keys_values, jnp.broadcast_to(
            image_of_text_BT, (num_blocks, *image_of_text_BT.shape)
        )
