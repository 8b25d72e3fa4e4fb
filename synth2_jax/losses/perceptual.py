"""Perceptual distance: how far two images are apart in the features of some fixed network.

Legend: B batch, H W pixels, D channels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def perceptual_distance(
    features: Callable[[jax.Array], Any], image_BHWD: jax.Array, reconstruction_BHWD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(sum over images, number of images) of the distance, f32.

    The distance of one image is, summed over feature maps, the mean squared difference of the
    features after each position's vector was put to unit length (LPIPS without learnt weights,
    Zhang et al. 2018): channels then count alike whatever the scale of the network's layers.

    `features` takes f32[B,H,W,3] in [-1, 1] and returns an array or a pytree of arrays [B, ..., D],
    with its parameters bound; gradients reach the reconstruction only.
    """
    originals = jax.tree.leaves(features(jax.lax.stop_gradient(image_BHWD)))
    reconstructed = jax.tree.leaves(features(reconstruction_BHWD))
    total = jnp.float32(0.0)
    for x, y in zip(originals, reconstructed, strict=True):
        difference = _unit(y) - jax.lax.stop_gradient(_unit(x))
        # The squared distance of two unit vectors, averaged over positions.
        squares = jnp.sum(difference**2, axis=-1)
        total += jnp.sum(jnp.mean(squares.reshape(squares.shape[0], -1), axis=-1))
    return total, jnp.float32(image_BHWD.shape[0])


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-10)
