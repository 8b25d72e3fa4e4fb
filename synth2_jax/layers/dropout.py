"""Dropout by a quarter of the random numbers: 32 random bits decide for four elements.

Random numbers are most of what dropout costs (benchmarks/NOTES.md).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.errors import UserError

# Fields of a network's config. That of attention weights may be None, for the other one.
RATES = ("dropout_rate", "attention_dropout_rate")


class Dropout(nn.Module):
    """Zeros a share of the elements and scales the others, so that the mean stays.

    A byte decides for an element: the share is `rate` to the nearest 256th, but not 0 or 1. Of rate
    0 nothing is dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x
        dropped = min(max(round(256 * self.rate), 1), 255)
        is_kept = random_bytes(self.make_rng("dropout"), x.shape) >= dropped
        return jnp.where(is_kept, x * (256 / (256 - dropped)), 0)


def random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """u8 values of a shape.

    The four of a draw lie along the last axis but one, which no mesh splits: each chip draws its
    own part, and the parts of a draw are put together without moving anything within a tile.
    """
    axis = max(len(shape) - 2, 0)
    quarter = -(-shape[axis] // 4)
    with jax.named_scope("random_bits"):  # by which `synth2 plan` knows them
        draws = jax.random.bits(key, (*shape[:axis], quarter, *shape[axis + 1 :]), jnp.uint32)
        parts = [(draws >> shift).astype(jnp.uint8) for shift in (0, 8, 16, 24)]
        return jax.lax.slice_in_dim(jnp.concatenate(parts, axis), 0, shape[axis], axis=axis)


def attention_rate(config: Any) -> float:
    """The rate of attention weights."""
    rate = config.attention_dropout_rate
    return config.dropout_rate if rate is None else rate


def without_dropout(config: Any) -> Any:
    """A network's config with every rate that it has at 0."""
    rates = dict.fromkeys([name for name in RATES if hasattr(config, name)], 0.0)
    return dataclasses.replace(config, **rates)


def check_rates(config: Any) -> None:
    """Raises UserError unless each rate that a network's config has is at least 0 and below 1."""
    for name in RATES:
        rate = getattr(config, name, None)
        if rate is not None and not 0 <= rate < 1:
            raise UserError(f"{name}: found {rate}, expected at least 0 and below 1")
