"""VGG-16's feature maps, in which the tokenizer's perceptual loss compares images.

Configuration D of Simonyan & Zisserman (2014) without its classifier, read out where LPIPS does
(Zhang et al. 2018): after the last ReLU of each stage. It is never trained here; its weights come
from torchvision's `vgg16`.

Legend: B batch, H W pixels (or grid cells), D channels, O I output and input channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError, nearest
from synth2_jax.models.convolutions import convolution

# LPIPS's: torchvision's mean and standard deviation of ImageNet, for pixels in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """Size of a `VGG`; the defaults are VGG-16's.

    Attributes:
      widths: channels of each stage; every stage after the first halves the resolution.
      convs: 3x3 convolutions of each stage. With fewer stages than VGG-16's five, the weights of
        those that are left out are not read.
      dtype: activations; parameters are float32.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    convs: tuple[int, ...] = (2, 2, 3, 3, 3)
    dtype: str = "float32"

    def __post_init__(self):
        dtype_of(self.dtype, "dtype")
        same = len(self.widths) == len(self.convs) > 0
        if not same or min(self.widths) < 1 or min(self.convs) < 1:
            raise UserError(
                f"widths: found {self.widths} and `convs`={self.convs}, expected as many of the "
                "one as of the other, all at least 1"
            )


class VGG(nn.Module):
    """Image -> one feature map a stage, finest first in resolution."""

    config: VGGConfig

    @nn.compact
    def __call__(self, image_BHWD: jax.Array) -> dict[str, jax.Array]:
        """f32[B,H,W,3] in [-1, 1] -> {"relu1_2": f[B,H,W,64], "relu2_2": f[B,H/2,W/2,128], ...}.

        Odd sizes are halved downwards, as in PyTorch. A side of one cell stays one, so that images
        too small for VGG-16 (under 16 pixels) have all of its maps.
        """
        cfg = self.config
        x = (image_BHWD.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)
        x = x.astype(dtype_of(cfg.dtype))
        maps = {}
        for stage, (width, num_convs) in enumerate(zip(cfg.widths, cfg.convs, strict=True), 1):
            if stage > 1:
                window = (min(2, x.shape[1]), min(2, x.shape[2]))
                x = nn.max_pool(x, window, strides=window)
            for i in range(1, num_convs + 1):
                name = f"conv{stage}_{i}"
                x = nn.relu(convolution(width, 3, name=name, dtype=cfg.dtype, use_bias=True)(x))
            maps[f"relu{stage}_{num_convs}"] = x
        return maps


def from_torchvision(
    tensors: Mapping[str, np.ndarray], config: VGGConfig, where: str
) -> dict[str, Any]:
    """Returns the parameters of a `VGG` (numpy, f32) with the weights of torchvision's `vgg16`.

    `tensors` is its `state_dict()`: "features.0.weight" f[O,I,3,3], "features.0.bias" f[O], and so
    on; the classifier's are not read. `where`, such as their file, names them in an error.

    Raises:
      UserError: a tensor is missing or has another shape.
    """

    def tensor(name: str, *shape: int) -> np.ndarray:
        if name not in tensors:
            near = nearest(name, tensors)
            raise UserError(f"{where}: found no {name!r}, expected shape {shape}; {near}")
        if tensors[name].shape != shape:
            raise UserError(f"{where}: {name!r} has shape {tensors[name].shape}, expected {shape}")
        return tensors[name].astype(np.float32)

    params, index, channels = {}, 0, 3
    for stage, (width, num_convs) in enumerate(zip(config.widths, config.convs, strict=True), 1):
        for i in range(1, num_convs + 1):
            kernel_OIHW = tensor(f"features.{index}.weight", width, channels, 3, 3)
            bias = tensor(f"features.{index}.bias", width)
            params[f"conv{stage}_{i}"] = {"kernel": kernel_OIHW.transpose(2, 3, 1, 0), "bias": bias}
            channels = width
            index += 2  # The ReLU is counted too,
        index += 1  # and so is the pooling after each stage.
    return params
