"""Patch discriminator for the adversarial loss of the VQ-GAN tokenizer.

Residual levels as in StyleGAN2 and MaskGIT, but with plain average pooling for the blur, and a map
of logits (Isola et al. 2017) for the single one: each judges the window of the image it can see.

Legend: B batch, H W pixels (or grid cells), D channels.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.config import check_counts
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError
from synth2_jax.models.convolutions import average_pool, cells_a_side, convolution, space_to_depth


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Size of a `Discriminator`.

    Attributes:
      image_size: height and width in pixels.
      patch_size: factor of a first space-to-depth stage; 1 for none.
      filters: channels at the first level.
      channel_multipliers: channels of each level, in `filters`; each level after the first halves
        the resolution. The default is for 256 pixels and gives an 8x8 map.
      dtype: activations; parameters and logits are float32.
    """

    image_size: int = 256
    patch_size: int = 1
    filters: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 8, 8, 8)
    dtype: str = "float32"

    def __post_init__(self):
        dtype_of(self.dtype, "dtype")
        check_counts(self, "filters")
        cells_a_side(self)

    @property
    def grid_size(self) -> int:
        """Logits along one side of the map."""
        return cells_a_side(self)


class Discriminator(nn.Module):
    """Image -> map of logits, positive where it looks real.

    No batch statistics and no dropout: the R1 penalty needs each image's own gradient.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, image_BHWD: jax.Array) -> jax.Array:
        """f32[B,H,W,3] in [-1, 1] -> f32[B,grid,grid]."""
        cfg = self.config
        if image_BHWD.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            raise UserError(
                f"--config.model.discriminator.image_size: found {cfg.image_size}, expected that "
                f"of the images, which are {image_BHWD.shape[1:]}"
            )
        x = space_to_depth(image_BHWD.astype(dtype_of(cfg.dtype)), cfg.patch_size)
        filters = [cfg.filters * multiplier for multiplier in cfg.channel_multipliers]
        conv = functools.partial(convolution, dtype=cfg.dtype, use_bias=True)
        leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)
        x = leaky_relu(conv(filters[0], 3, name="conv_in")(x))
        for i, features in enumerate(filters[1:]):
            y = leaky_relu(conv(x.shape[-1], 3, name=f"level_{i}_conv_0")(x))
            y = leaky_relu(conv(features, 3, name=f"level_{i}_conv_1")(average_pool(y)))
            shortcut = conv(features, 1, name=f"level_{i}_shortcut", use_bias=False)
            x = (shortcut(average_pool(x)) + y) * 0.5**0.5
        x = leaky_relu(conv(filters[-1], 3, name="conv_out")(x))
        return conv(1, 1, name="logits")(x)[..., 0].astype(jnp.float32)
