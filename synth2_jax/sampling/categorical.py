"""Draws from a categorical distribution with two random numbers, however many classes it has.

Gumbel noise needs a random number for each class: over a codebook of 8192, a small transformer's
logits take less time on a CPU than their noise. The inverse of the distribution function needs one.
Here it takes two, for a block of neighbouring classes and for a class of that block, so that
probabilities are only summed, block by block, and never accumulated over all classes.

Legend: X any leading axes, V classes, W classes of a block, K blocks.
"""

import jax
import jax.numpy as jnp

_BLOCK = 128  # a row of a TPU's vector registers


def categorical(logits_XV: jax.Array, uniform_X2: jax.Array) -> jax.Array:
    """Classes, i32[X], with probabilities softmax(logits); `uniform_X2` is f32 in [0, 1).

    A class at -inf is never drawn; not all may be.
    """
    *rows, num_classes = logits_XV.shape
    width = min(_BLOCK, num_classes)
    padding = [(0, 0)] * len(rows) + [(0, -num_classes % width)]
    logits_XV = jnp.pad(logits_XV, padding, constant_values=-jnp.inf)
    logits_XV = logits_XV - jnp.max(logits_XV, axis=-1, keepdims=True)
    logits_XKW = logits_XV.reshape(*rows, -1, width)
    block_X = _inverse(jnp.sum(jnp.exp(logits_XKW), axis=-1), uniform_X2[..., 0])
    logits_XW = jnp.take_along_axis(logits_XKW, block_X[..., None, None], axis=-2)[..., 0, :]
    return block_X * width + _inverse(jnp.exp(logits_XW), uniform_X2[..., 1])


def _inverse(weights_XV: jax.Array, uniform_X: jax.Array) -> jax.Array:
    """The first class at which the sum of the weights exceeds that share of their total."""
    sum_XV = jnp.cumsum(weights_XV, axis=-1)
    # Below the total for any number below 1, so that a class of weight 0 is never the first.
    threshold_X1 = uniform_X[..., None] * sum_XV[..., -1:]
    return jnp.sum(sum_XV <= threshold_X1, axis=-1, dtype=jnp.int32)
