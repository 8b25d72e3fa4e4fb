"""Layers of the networks over pixels: convolutions, and halving and doubling a grid.

Legend: B batch, H W pixels (or grid cells), D channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.config import check_counts
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError


def cells_a_side(config: Any) -> int:
    """Cells along one side at the last level: patches, halved at every level after the first.

    `config` has `image_size`, `patch_size` and `channel_multipliers`; UserError unless the patches
    and halvings divide the image evenly.
    """
    check_counts(config, "image_size", "patch_size")
    multipliers = config.channel_multipliers
    if min(multipliers, default=0) < 1:
        raise UserError(
            f"channel_multipliers: found {multipliers}, expected at least one level, each at least "
            "1"
        )
    halvings = len(multipliers) - 1
    factor = config.patch_size * 2**halvings
    if config.image_size % factor:
        raise UserError(
            f"image_size: found {config.image_size}, expected a multiple of {factor} (`patch_size` "
            f"{config.patch_size} and {halvings} halvings)"
        )
    return config.image_size // factor


def space_to_depth(x_BHWD: jax.Array, patch_size: int) -> jax.Array:
    """[B,H,W,D] -> [B,H/p,W/p,p*p*D]; channels in order row, column, D."""
    B, H, W, D = x_BHWD.shape
    p = patch_size
    x = x_BHWD.reshape(B, H // p, p, W // p, p, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H // p, W // p, p * p * D)


def depth_to_space(x_BHWD: jax.Array, patch_size: int) -> jax.Array:
    """[B,H,W,p*p*D] -> [B,H*p,W*p,D], the inverse of `space_to_depth`."""
    B, H, W, D = x_BHWD.shape
    p = patch_size
    x = x_BHWD.reshape(B, H, W, p, p, D // p**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H * p, W * p, D // p**2)


def average_pool(x_BHWD: jax.Array) -> jax.Array:
    """[B,H,W,D] -> [B,H/2,W/2,D], means of 2x2 cells."""
    B, H, W, D = x_BHWD.shape
    return x_BHWD.reshape(B, H // 2, 2, W // 2, 2, D).mean(axis=(2, 4))


def upsample(x_BHWD: jax.Array) -> jax.Array:
    """[B,H,W,D] -> [B,2H,2W,D], every cell repeated 2x2."""
    return jnp.repeat(jnp.repeat(x_BHWD, 2, axis=1), 2, axis=2)


def convolution(
    features: int, kernel_size: int, *, name: str, dtype: str, use_bias: bool, stride: int = 1
) -> nn.Conv:
    """A square convolution whose parameters carry logical axis names.

    The kernel's window gets no name (None, replicated): Flax refuses a name that occurs twice.
    """
    kernel_names = (None, None, "conv_in", "conv_out")
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        use_bias=use_bias,
        dtype=dtype_of(dtype),
        param_dtype=jnp.float32,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), kernel_names),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )


def group_norm(num_groups: int, *, name: str, dtype: str) -> nn.GroupNorm:
    """A group norm whose parameters carry logical axis names."""
    return nn.GroupNorm(
        num_groups,
        dtype=dtype_of(dtype),
        param_dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )
