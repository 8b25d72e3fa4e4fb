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
        x = self._normalized(x.astype(jnp.float32))
        return (x * self._vector("scale", nn.initializers.ones_init(), x)).astype(self.dtype)

    def _normalized(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)

    def _vector(self, name: str, init: nn.initializers.Initializer, x: jax.Array) -> jax.Array:
        """A parameter with leading axes of 1: implicit rank promotion is an error in our tests."""
        init = nn.with_logical_partitioning(init, (self.axis_name,))
        return jnp.expand_dims(self.param(name, init, x.shape[-1:]), range(x.ndim - 1))


class LayerNorm(RMSNorm):
    """(x - mean(x)) / std(x) * scale + bias. `axis_name` names the axis of the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = self._normalized(x - jnp.mean(x, axis=-1, keepdims=True))
        x = x * self._vector("scale", nn.initializers.ones_init(), x)
        return (x + self._vector("bias", nn.initializers.zeros_init(), x)).astype(self.dtype)
