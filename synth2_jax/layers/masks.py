"""Attention masks: bool, True where a query may see a key, broadcastable to [B, H, T, S].

B batch, H heads, T queries, S keys.
"""

import jax
import jax.numpy as jnp


def causal_mask(
    num_queries: int, num_keys: int | None = None, *, first_position: int | jax.Array = 0
) -> jax.Array:
    """bool[T, S]: query t stands at `first_position + t` and sees the keys up to there.

    With `num_keys` the length of a cache and `first_position` its index, it also hides what the
    cache does not hold yet.
    """
    query_T = first_position + jnp.arange(num_queries)
    key_S = jnp.arange(num_queries if num_keys is None else num_keys)
    return key_S[None, :] <= query_T[:, None]


def key_mask(visible_BS: jax.Array) -> jax.Array:
    """bool[B, 1, 1, S]: every query of row b sees the keys that `visible_BS[b]` marks."""
    return visible_BS.astype(bool)[:, None, None, :]
