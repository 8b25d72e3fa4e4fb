"""Feed-forward layers: x_BTD -> [B, T, D].

B batch, T positions, D width, M hidden width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.layers.dropout import Dropout
from synth2_jax.layers.linear import Linear
from synth2_jax.sharding import constrain


def gelu(x: jax.Array) -> jax.Array:
    """GELU with tanh, as T5 1.1 and Gemma have it."""
    return nn.gelu(x, approximate=True)


def squared_relu(x: jax.Array) -> jax.Array:
    """relu(x)^2, the resampler's activation (Flamingo, appendix A.1.1)."""
    return jnp.square(nn.relu(x))


class MLP(nn.Module):
    """activation(x W_in) W_out."""

    mlp_dim: int
    dtype: jnp.dtype = jnp.float32
    activation: Callable[[jax.Array], jax.Array] = gelu
    dropout_rate: float = 0.0
    use_bias: bool = False

    @nn.compact
    def __call__(self, x_BTD: jax.Array, *, deterministic: bool) -> jax.Array:
        linear = functools.partial(Linear, dtype=self.dtype, use_bias=self.use_bias)
        up = linear((self.mlp_dim,), ("embed", "mlp"), name="up")
        down = linear(x_BTD.shape[-1:], ("mlp", "embed"), name="down")
        hidden_BTM = self.activation(constrain(up(x_BTD), "batch", "length", "mlp"))
        hidden_BTM = Dropout(self.dropout_rate)(hidden_BTM, deterministic=deterministic)
        return down(hidden_BTM)


class GatedMLP(nn.Module):
    """(activation(x W_gate) * x W_up) W_down, no biases (T5 1.1, Gemma)."""

    mlp_dim: int
    dtype: jnp.dtype = jnp.float32
    activation: Callable[[jax.Array], jax.Array] = gelu
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: jax.Array, *, deterministic: bool) -> jax.Array:
        gate = Linear((self.mlp_dim,), ("embed", "mlp"), self.dtype, name="gate")
        up = Linear((self.mlp_dim,), ("embed", "mlp"), self.dtype, name="up")
        down = Linear(x_BTD.shape[-1:], ("mlp", "embed"), self.dtype, name="down")
        hidden_BTM = constrain(self.activation(gate(x_BTD)) * up(x_BTD), "batch", "length", "mlp")
        hidden_BTM = Dropout(self.dropout_rate)(hidden_BTM, deterministic=deterministic)
        return down(hidden_BTM)
