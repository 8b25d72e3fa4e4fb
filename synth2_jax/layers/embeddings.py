"""Embeddings of tokens and of positions.

B batch, T positions, S keys, V vocabulary, D width, H heads, K head dim.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.sharding import constrain


class TokenEmbedding(nn.Module):
    """ids -> rows of a table; `attend` gives the logits of the same table (tied head)."""

    vocab_size: int
    embed_dim: int
    dtype: jnp.dtype = jnp.float32
    init_stddev: float = 1.0
    axis_name: str = "vocab"

    def setup(self):
        init = nn.initializers.normal(self.init_stddev)
        names = (self.axis_name, "embed")
        shape = (self.vocab_size, self.embed_dim)
        self.embedding = self.param("embedding", nn.with_logical_partitioning(init, names), shape)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """i32[B, T] -> [B, T, D]."""
        x_BTD = jnp.take(self.embedding.astype(self.dtype), ids_BT, axis=0)
        return constrain(x_BTD, "batch", "length", None)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> f32[B, T, V]."""
        x_BTD, table_VD = x_BTD.astype(self.dtype), self.embedding.astype(self.dtype)
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
        return constrain(logits_BTV, "batch", "length", self.axis_name)


class LearnedPositions(nn.Module):
    """Adds one learned vector a position: x_BTD -> [B, T, D], T at most `length`."""

    length: int
    dtype: jnp.dtype = jnp.float32
    init_stddev: float = 0.02
    axis_name: str = "length"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        num_positions, embed_dim = x_BTD.shape[1:]
        if num_positions > self.length:
            raise ValueError(f"{num_positions} positions, but only {self.length} are learned")
        init = nn.initializers.normal(self.init_stddev)
        init = nn.with_logical_partitioning(init, (self.axis_name, "embed"))
        embedding_TD = self.param("embedding", init, (self.length, embed_dim))[:num_positions]
        x_BTD = x_BTD.astype(self.dtype) + embedding_TD[None].astype(self.dtype)
        return constrain(x_BTD, "batch", "length", None)


def apply_rope(
    x_BTHK: jax.Array, positions_BT: jax.Array, *, max_wavelength: float = 10_000.0
) -> jax.Array:
    """Rotary positions (arXiv 2104.09864), halves rotated against each other as in Gemma.

    `positions_BT` may have one row for all. The dot product of a rotated query and a rotated key
    depends on the difference of their positions only. Angles are float32, the result has x's dtype.
    """
    half = x_BTHK.shape[-1] // 2
    if x_BTHK.shape[-1] != 2 * half:
        raise ValueError(f"RoPE needs an even head_dim, found {x_BTHK.shape[-1]}")
    frequency_K = max_wavelength ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_K[None, None, None]
    sin, cos = jnp.sin(angle_BT1K), jnp.cos(angle_BT1K)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)


class RelativePositionBias(nn.Module):
    """T5's learned attention bias a bucket of distances (arXiv 1910.10683, section 2.1).

    Half of the buckets hold one distance each, the others grow logarithmically up to
    `max_distance`; a bidirectional bias gives half of all buckets to keys after the query.
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    @nn.compact
    def __call__(self, num_queries: int, num_keys: int) -> jax.Array:
        """f32[1, H, T, S], to be added to attention logits."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        init = nn.with_logical_partitioning(init, ("heads", "relpos_buckets"))
        embedding = self.param("embedding", init, (self.num_heads, self.num_buckets))
        distance_TS = np.arange(num_keys)[None, :] - np.arange(num_queries)[:, None]
        bucket_TS = relative_position_bucket(
            distance_TS, self.num_buckets, self.max_distance, self.bidirectional
        )
        return jnp.take(embedding, bucket_TS, axis=1)[None]


def relative_position_bucket(
    distance: np.ndarray, num_buckets: int, max_distance: int, bidirectional: bool
) -> np.ndarray:
    """T5's bucket of `distance` = key position - query position, in [0, num_buckets)."""
    if bidirectional:
        num_buckets //= 2
        bucket = np.where(distance > 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        bucket = np.zeros_like(distance)
        distance = np.maximum(-distance, 0)
    num_exact = num_buckets // 2
    # float32, as T5 computes it: in float64 a distance on a bucket's edge may fall on its other
    # side, and pretrained biases would be read from the wrong row.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / num_exact)
    ratio = ratio / np.log(max_distance / num_exact, dtype=np.float32)
    far = num_exact + (ratio * (num_buckets - num_exact)).astype(np.int32)
    far = np.minimum(far, num_buckets - 1)
    return (bucket + np.where(distance < num_exact, distance, far)).astype(np.int32)
