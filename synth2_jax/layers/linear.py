"""A linear map over one or several axes, its kernel axes named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_STDDEV_AT_2 = 0.87962566  # of a standard normal that is cut off at 2


class Linear(nn.Module):
    """`y[..., *features] = x[..., *inputs] . kernel[*inputs, *features] (+ bias[*features])`.

    `names` are the logical axes of the kernel, inputs first; the number of input axes is
    `len(names) - len(features)`. The product has `output_dtype` (by default `dtype`) without a
    detour: a bfloat16 model gets float32 logits with `output_dtype=jnp.float32`.
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    dtype: jnp.dtype = jnp.float32
    output_dtype: jnp.dtype | None = None
    use_bias: bool = False
    init_scale: float = 1.0  # variance of the kernel, times the number of inputs

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_inputs = len(self.names) - len(self.features)
        shape = x.shape[-num_inputs:] + self.features
        fan_in = int(np.prod(shape[:num_inputs]))
        stddev = np.sqrt(self.init_scale / fan_in) / _STDDEV_AT_2
        init = nn.initializers.truncated_normal(stddev)
        kernel = self.param("kernel", nn.with_logical_partitioning(init, self.names), shape)
        output_dtype = self.output_dtype or self.dtype
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jnp.tensordot(x, kernel, axes=num_inputs, preferred_element_type=output_dtype)
        if self.use_bias:
            names = self.names[num_inputs:]
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), names)
            bias = self.param("bias", zeros, self.features).astype(output_dtype)
            y = y + jnp.expand_dims(bias, range(y.ndim - bias.ndim))
        return y
