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
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import KeysValues, KVCache, MultiHeadAttention
from synth2_jax.layers.dropout import Dropout, attention_rate, check_rates
from synth2_jax.layers.lora import LoRAConfig, adapted
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
      language_model: ours or a Gemma; frozen by default.
      resampler: turns the image embedding into latents.
      image_embedding_dim: C, as the tokenizer's.
      num_image_tokens: N, as the tokenizer's.
      cross_attention_every: one block of cross-attention before so many layers.
      dropout_rate: dropout of the cross-attention blocks.
      attention_dropout_rate: that of their attention weights; None for `dropout_rate`.
      lora: adapters of the frozen language model, which are trained; None for none. An export has
        them merged into the language model.
    """

    language_model: LanguageModelConfig | GemmaConfig
    resampler: ResamplerConfig
    image_embedding_dim: int
    num_image_tokens: int
    cross_attention_every: int = 1
    dropout_rate: float = 0.0
    attention_dropout_rate: float | None = None
    lora: LoRAConfig | None = None

    def __post_init__(self):
        config_lib.check_counts(self, "image_embedding_dim", "num_image_tokens")
        check_rates(self)
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
            *(lm.num_heads, lm.head_dim, lm.embed_dim, dtype),
            dropout_rate=attention_rate(cfg),
        )
        self.mlp_norm = RMSNorm(dtype)
        self.mlp = MLP(lm.mlp_dim, dtype, squared_relu, cfg.dropout_rate)
        self.dropout = Dropout(cfg.dropout_rate)
        zero = nn.with_logical_partitioning(nn.initializers.zeros_init(), ())
        self.attention_gate = self.param("attention_gate", zero, ())
        self.mlp_gate = self.param("mlp_gate", zero, ())

    def keys_values(self, latents_BLD: jax.Array) -> KeysValues:
        return self.attention.keys_values(latents_BLD)

    def __call__(
        self, x_BTD: jax.Array, visual: Visual, *, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """(x_BTD, None)."""
        keys_values, image_of_text_BT = visual
        mask = None
        if image_of_text_BT is not None:
            num_latents = self.config.resampler.num_latents
            image_of_latent_S = jnp.arange(keys_values[0].shape[1]) // num_latents + 1
            mask = image_of_text_BT[:, None, :, None] == image_of_latent_S
        image = {"keys_values": keys_values, "mask": mask}
        for norm, layer, arguments, gate in (
            (self.attention_norm, self.attention, image, self.attention_gate),
            (self.mlp_norm, self.mlp, {}, self.mlp_gate),
        ):
            y_BTD = layer(norm(x_BTD), **arguments, deterministic=deterministic)
            y_BTD = self.dropout(y_BTD, deterministic=deterministic)
            x_BTD = x_BTD + jnp.tanh(gate).astype(x_BTD.dtype) * y_BTD
        return x_BTD, None


class VLM(nn.Module):
    """Parameters: "language_model" (those of a bare `LanguageModel` or `Gemma`), "resampler" and
    "cross_attention". Initialize with image embeddings, or the last two are not created.
    """

    config: VLMConfig

    def setup(self):
        cfg, lm = self.config, self.config.language_model
        self.language_model = lm.make()
        self.resampler = Resampler(cfg.resampler)
        block = functools.partial(GatedCrossAttention, cfg)
        num_blocks = lm.num_layers // cfg.cross_attention_every
        self.cross_attention = Stack(block, num_blocks, lm.scan_layers, lm.remat)

    def __call__(
        self,
        image_embeddings: jax.Array | None,
        input_tokens_BT: jax.Array,
        image_of_text_BT: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """logits f32[B, T, V]; without an image those of the bare language model (captions only).

        `image_embeddings` are [B, N, C], or [B, I, N, C] of several images a text;
        `input_tokens_BT` are already shifted right. `image_of_text_BT`, i32, says which image each
        token reads: 1 to I, or 0 for none. Without it all read the only image.
        """
        visual = None
        if image_embeddings is not None:
            visual = self.visual(image_embeddings, deterministic=deterministic)
        options = {"deterministic": deterministic}
        return self.step(input_tokens_BT, None, visual, image_of_text_BT, **options)[0]

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
        images = image_embeddings.reshape((-1, *expected))
        latents = self.resampler(images, deterministic=deterministic)
        latents_BSD = latents.reshape((image_embeddings.shape[0], -1, latents.shape[-1]))
        return self.cross_attention.map("keys_values", latents_BSD)

    def step(
        self,
        input_tokens_BT: jax.Array,
        cache: KVCache | None,
        visual: KeysValues | None = None,
        image_of_text_BT: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """(logits f32[B, T, V], cache) of the next T inputs: a whole prompt, or one token.

        `cache` is `language_model.init_cache`'s, `visual` the result of `self.visual`. There may be
        several rows of text for a row of images, one after the other, as in a beam search.
        """

        lora = None if visual is None else self.config.lora  # adapters only learned with images

        def step(**hook: Any) -> tuple[jax.Array, KVCache | None]:
            with adapted(lora, self.language_model):
                return self.language_model.step(
                    input_tokens_BT, cache, **hook, deterministic=deterministic
                )

        if visual is None:
            return step()
        if cache is not None:
            num_rows, num_images = input_tokens_BT.shape[0], visual[0].shape[1]
            if num_rows % num_images:
                raise ValueError(f"{num_rows} rows of text cannot share {num_images} images evenly")
            repeat = functools.partial(jnp.repeat, repeats=num_rows // num_images, axis=1)
            visual = jax.tree.map(repeat, visual)
        all_blocks = self._all_blocks(visual, image_of_text_BT)
        return step(cross_attention=self.cross_attention, visual=all_blocks)

    def _all_blocks(self, keys_values: KeysValues, image_of_text_BT: jax.Array | None) -> Visual:
        """Returns what each block gets; a Stack scans it, so all of it has a leading axis G."""
        if image_of_text_BT is None:
            if keys_values[0].shape[2] != self.config.resampler.num_latents:
                raise ValueError("several images a text need image_of_text_BT: who reads which")
            return keys_values, None
        shape = (keys_values[0].shape[0], *image_of_text_BT.shape)
        return keys_values, jnp.broadcast_to(image_of_text_BT, shape)
