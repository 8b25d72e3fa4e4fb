"""Normalization over the last axis; statistics in float32, result in the layer's dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
    """x / rms(x) * scale. `axis_name` names the normalized axis of the parameter."""

    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-6
    axis_name: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis_name,))
        scale = self.param("scale", ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * _as_rank(scale, x)).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * scale + bias. `axis_name` names the axis of the parameters."""

    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-6
    axis_name: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis_name,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis_name,))
        scale = self.param("scale", ones, x.shape[-1:])
        bias = self.param("bias", zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * _as_rank(scale, x) + _as_rank(bias, x)).astype(self.dtype)


def _as_rank(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` with leading axes of 1: implicit rank promotion is an error in our tests."""
    return jnp.expand_dims(vector, range(x.ndim - 1))
