"""Pixels <-> image tokens by a trained tokenizer.

Legend: B batch, H W pixels, N image tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig, normalized


def make_encode(config: VQTokenizerConfig) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns `(params, images u8[B,H,W,3]) -> ids i32[B,N]`, to be jitted."""
    model = VQTokenizer(config)

    def encode(params: Any, images: jax.Array) -> jax.Array:
        return model.apply({"params": params}, normalized(images), method="encode")

    return encode


def make_decode(config: VQTokenizerConfig) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns `(params, ids i32[B,N]) -> images u8[B,H,W,3]`, to be jitted."""
    model = VQTokenizer(config)

    def decode(params: Any, ids_BN: jax.Array) -> jax.Array:
        pixels = model.apply({"params": params}, ids_BN, method="decode")
        return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return decode
