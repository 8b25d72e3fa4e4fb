"""Decoder-only language model with a hook for gated cross-attention.

RMSNorm before each part, rotary positions, gated GELU. Alone it writes captions; inside the VLM the
same parameters, usually frozen, read the image through the hook. `models.gemma` has one that others
have trained, in its place.

B batch, T text tokens, D width, V vocabulary, S cache length, G cross-attention blocks.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import KeysValues, KVCache, write_keys_values
from synth2_jax.layers.dropout import Dropout
from synth2_jax.layers.embeddings import TokenEmbedding
from synth2_jax.layers.linear import Linear
from synth2_jax.layers.masks import causal_mask
from synth2_jax.layers.mlp import GatedMLP
from synth2_jax.layers.norms import RMSNorm
from synth2_jax.layers.stack import Stack, StackConfig, interleave
from synth2_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(StackConfig):
    """Sizes of the language model.

    Attributes:
      tie_embeddings: whether the table of the input gives the logits, too.
      rope_max_wavelength: longest wavelength of rotary positions, in tokens.
    """

    vocab_size: int
    tie_embeddings: bool = True
    rope_max_wavelength: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        config_lib.check_counts(self, "vocab_size")
        check_rotary(self)

    @property
    def num_kv_heads(self) -> int:
        """Heads of the cache."""
        return self.num_heads

    def check_vocabulary(self, vocabulary: Vocabulary, where: str) -> None:
        """Raises UserError where the vocabulary has more pieces than there are embeddings."""
        vocabulary.check_rows(self.vocab_size, where)

    def make(self) -> "LanguageModel":
        """The model; each kind of language model has a config of its own that makes it."""
        return LanguageModel(self)


def check_rotary(config: Any) -> None:
    """Raises UserError on an odd `head_dim`."""
    if config.head_dim % 2:
        raise UserError(
            f"head_dim: found {config.head_dim}, expected an even number: rotary positions turn "
            "pairs"
        )


def shift_right(targets_BT: jax.Array) -> jax.Array:
    """The decoder's inputs: targets moved one to the right behind the start token 0.

    A model that was trained with another start token puts that in its place.
    """
    return jnp.pad(targets_BT, ((0, 0), (1, 0)))[:, :-1]


def init_cache(config: LanguageModelConfig, batch_size: int, max_length: int) -> KVCache:
    """An empty cache for `max_length` input tokens (start token and prompt included).

    `config` is of any language model that has a `KVCache`.
    """
    shape = (config.num_layers, batch_size, max_length, config.num_kv_heads, config.head_dim)
    keys, values = (jnp.zeros(shape, config_lib.dtype(config.dtype)) for _ in range(2))
    return KVCache(keys, values, index=jnp.zeros((), jnp.int32))


class DecoderBlock(nn.Module):
    """Causal self-attention, then a gated GELU MLP."""

    config: LanguageModelConfig

    def setup(self):
        cfg = self.config
        dtype = config_lib.dtype(cfg.dtype)
        self.attention_norm = RMSNorm(dtype)
        self.attention = cfg.attention(rope_max_wavelength=cfg.rope_max_wavelength)
        self.mlp_norm = RMSNorm(dtype)
        self.mlp = GatedMLP(cfg.mlp_dim, dtype, dropout_rate=cfg.dropout_rate)
        self.dropout = Dropout(cfg.dropout_rate)

    def __call__(
        self,
        x_BTD: jax.Array,
        cached: KeysValues | None,
        mask: jax.Array,
        positions_1T: jax.Array,
        *,
        deterministic: bool,
    ) -> tuple[jax.Array, KeysValues | None]:
        """(x_BTD, this layer's cache with the new tokens, None without a cache)."""
        y_BTD = self.attention_norm(x_BTD)
        keys_values = self.attention.keys_values(y_BTD, positions_BS=positions_1T)
        if cached is not None:
            cached = keys_values = write_keys_values(cached, keys_values, positions_1T[0, 0])
        sees = {"keys_values": keys_values, "mask": mask, "positions_BT": positions_1T}
        y_BTD = self.attention(y_BTD, **sees, deterministic=deterministic)
        x_BTD = x_BTD + self.dropout(y_BTD, deterministic=deterministic)
        y_BTD = self.mlp(self.mlp_norm(x_BTD), deterministic=deterministic)
        return x_BTD + self.dropout(y_BTD, deterministic=deterministic), cached


class LanguageModel(nn.Module):
    """Text tokens to logits of the next ones.

    The hook: `cross_attention`, a bound `Stack` of G blocks `(x_BTD, visual) -> (x_BTD, None)` that
    belongs to the caller, runs block g before layer g * num_layers / G on slice g of `visual`. This
    model's own parameters are the same with it and without it.
    """

    config: LanguageModelConfig

    def setup(self):
        cfg = self.config
        dtype = config_lib.dtype(cfg.dtype)
        stddev = cfg.embed_dim**-0.5
        self.embed = TokenEmbedding(cfg.vocab_size, cfg.embed_dim, dtype, init_stddev=stddev)
        self.decoder = cfg.stack(DecoderBlock)
        self.norm = RMSNorm(dtype)
        self.dropout = Dropout(cfg.dropout_rate)
        if not cfg.tie_embeddings:
            names = ("embed", "vocab")
            self.head = Linear((cfg.vocab_size,), names, dtype, output_dtype=jnp.float32)

    def __call__(
        self,
        input_tokens_BT: jax.Array,
        *,
        cross_attention: Stack | None = None,
        visual: Any = None,
        deterministic: bool,
    ) -> jax.Array:
        """logits f32[B, T, V] of inputs that are already shifted right.

        Position t sees tokens 0 .. t only, so padding on the right changes nothing before it.
        """
        hook = {"cross_attention": cross_attention, "visual": visual}
        return self.step(input_tokens_BT, None, **hook, deterministic=deterministic)[0]

    def step(
        self,
        input_tokens_BT: jax.Array,
        cache: KVCache | None,
        *,
        cross_attention: Stack | None = None,
        visual: Any = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """(logits f32[B, T, V], cache) of the next T inputs: a whole prompt, or one token.

        All rows are equally long: the cache has one index. The caller keeps index + T within
        `cache.max_length`. Without a cache they are the first inputs.
        """
        num_tokens = input_tokens_BT.shape[1]
        first = 0 if cache is None else cache.index
        positions_1T = (first + jnp.arange(num_tokens))[None]
        num_keys = num_tokens if cache is None else cache.max_length
        mask_TS = causal_mask(num_tokens, num_keys, first_position=first)
        cached = None if cache is None else (cache.keys_LBSHK, cache.values_LBSHK)

        x_BTD = self._embedded(input_tokens_BT, deterministic)
        streams = (x_BTD, mask_TS, positions_1T)
        if cross_attention is None:
            x_BTD, cached = self.decoder(*streams, scanned=cached, deterministic=deterministic)
        else:
            scanned = {"outer_scanned": visual, "inner_scanned": cached}
            stacks = (cross_attention, self.decoder)
            x_BTD, cached = interleave(*stacks, *streams, **scanned, deterministic=deterministic)
        if cache is not None:
            cache = KVCache(*cached, index=cache.index + num_tokens)
        return self._logits(x_BTD), cache

    def _embedded(self, input_tokens_BT: jax.Array, deterministic: bool) -> jax.Array:
        """x_BTD, what the first layer gets."""
        x_BTD = self.embed(input_tokens_BT) * self.config.embed_dim**0.5
        return self.dropout(x_BTD, deterministic=deterministic)

    def _logits(self, x_BTD: jax.Array) -> jax.Array:
        """f32[B, T, V] of what the last layer gives."""
        x_BTD = self.norm(x_BTD)
        return self.embed.attend(x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
