"""VGG against a network in numpy in torchvision's layout, and the mapping from it.

Legend: B batch, H W pixels (or grid cells), D channels, O I output and input channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.errors import UserError
from synth2_jax.models.vgg import VGG, VGGConfig, from_torchvision

TINY = VGGConfig(widths=(4, 5), convs=(2, 1))
# Where torchvision's vgg16 has its convolutions.
INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def torchvision_tensors(config, indices, seed=0):
    """Random weights in torchvision's layout, with a classifier behind them."""
    rng = np.random.default_rng(seed)
    widths = [w for w, n in zip(config.widths, config.convs, strict=True) for _ in range(n)]
    tensors = {"classifier.0.weight": np.zeros((4096, 1), np.float32)}
    for index, channels, width in zip(indices, (3, *widths), widths, strict=False):
        kernel_OIHW = rng.normal(size=(width, channels, 3, 3)) * (9 * channels) ** -0.5
        tensors[f"features.{index}.weight"] = kernel_OIHW.astype(np.float32)
        tensors[f"features.{index}.bias"] = rng.normal(size=width).astype(np.float32)
    return tensors


TENSORS = torchvision_tensors(TINY, (0, 2, 5))
PARAMS = from_torchvision(TENSORS, TINY, "TENSORS")


def features(params, image, config=TINY):
    return jax.jit(lambda image: VGG(config).apply({"params": params}, image))(image)


def shapes(config, size):
    image = jnp.zeros((2, size, size, 3))
    run = VGG(config).init_with_output
    maps, _ = jax.eval_shape(lambda key: run(key, image), jax.random.key(0))
    return {name: (leaf.shape, leaf.dtype.name) for name, leaf in maps.items()}


# --- the reference ---


def convolve(x_BDHW, kernel_OIHW, bias_O):
    """3x3, a border of zeros, and the ReLU."""
    padded = np.pad(x_BDHW, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows_BDHWYX = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    out_BOHW = np.einsum("bdhwyx,odyx->bohw", windows_BDHWYX, kernel_OIHW)
    return np.maximum(out_BOHW + bias_O[:, None, None], 0)


def pool(x_BDHW):
    """Largest of each 2x2 cells; an odd last row or column is dropped."""
    B, D, H, W = x_BDHW.shape
    even = x_BDHW[:, :, : H // 2 * 2, : W // 2 * 2]
    return even.reshape(B, D, H // 2, 2, W // 2, 2).max(axis=(3, 5))


def reference(image_BHWD, tensors):
    """TINY's maps, from torchvision's layout and its preprocessing of pixels in [0, 1]."""
    pixels = (np.float64(image_BHWD) + 1) / 2
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = pixels.transpose(0, 3, 1, 2)

    def conv(x, index):
        return convolve(x, tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"])

    first = conv(conv(x, 0), 2)
    second = conv(pool(first), 5)
    return {"relu1_2": first.transpose(0, 2, 3, 1), "relu2_1": second.transpose(0, 2, 3, 1)}


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_the_maps_are_those_of_numpy(size):
    image = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    expected = reference(image, TENSORS)
    found = features(PARAMS, image)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert (expected[name] > 0).mean() > 0.2  # ReLU has left something to compare
        np.testing.assert_allclose(x, expected[name], atol=1e-5)


# --- shapes ---


@pytest.mark.parametrize(
    "size, sides",
    [
        (256, (256, 128, 64, 32, 16)),
        (36, (36, 18, 9, 4, 2)),
        (32, (32, 16, 8, 4, 2)),
        (16, (16, 8, 4, 2, 1)),
        (8, (8, 4, 2, 1, 1)),
        (1, (1, 1, 1, 1, 1)),
    ],
)
def test_maps_of_vgg16(size, sides):
    names = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    expected = zip(names, sides, (64, 128, 256, 512, 512), strict=True)
    found = {name: ((2, side, side, width), "float32") for name, side, width in expected}
    assert shapes(VGGConfig(), size) == found


def test_activations_have_the_dtype():
    config = VGGConfig(widths=(4,), convs=(1,), dtype="bfloat16")
    assert shapes(config, 4) == {"relu1_1": ((2, 4, 4, 4), "bfloat16")}


# --- torchvision's layout ---


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_tensor_of_vgg16_has_its_place(dtype):
    config = VGGConfig(widths=(2, 3, 4, 5, 6))
    tensors = torchvision_tensors(config, INDICES)
    params = from_torchvision({n: x.astype(dtype) for n, x in tensors.items()}, config, "file")
    image = jnp.zeros((1, 32, 32, 3))
    expected = jax.eval_shape(lambda key: VGG(config).init(key, image), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, nn.unbox(expected)["params"])
    names = [f"conv{s}_{i}" for s, n in enumerate(config.convs, 1) for i in range(1, n + 1)]
    for name, index in zip(names, INDICES, strict=True):
        kernel_HWIO, bias_O = params[name]["kernel"], params[name]["bias"]
        assert kernel_HWIO.dtype == bias_O.dtype == np.float32
        kernel_OIHW = tensors[f"features.{index}.weight"].astype(dtype)
        for o, i, h, w in ((0, 0, 0, 0), (1, 0, 0, 2), (0, 1, 2, 0), (1, 1, 1, 2)):
            assert kernel_HWIO[h, w, i, o] == kernel_OIHW[o, i, h, w]
        np.testing.assert_array_equal(bias_O, tensors[f"features.{index}.bias"].astype(dtype))


@pytest.mark.parametrize(
    "change, text",
    [
        # Of a network with a convolution where this one pools, as VGG-19 to VGG-16.
        (
            {"features.5.weight": None, "features.4.weight": np.zeros((5, 4, 3, 3))},
            "x.safetensors: found no 'features.5.weight', expected shape (5, 4, 3, 3); did you "
            "mean 'features.4.weight'? one of: classifier.0.weight, features.0.bias,",
        ),
        ({"features.2.bias": None}, "found no 'features.2.bias', expected shape (4,); did you"),
        (
            {"features.0.weight": np.zeros((3, 3, 3, 4))},
            "x.safetensors: 'features.0.weight' has shape (3, 3, 3, 4), expected (4, 3, 3, 3)",
        ),
        ({"features.0.bias": np.zeros(3)}, "'features.0.bias' has shape (3,), expected (4,)"),
    ],
)
def test_tensors_of_another_network_are_named(change, text):
    tensors = {name: x for name, x in (TENSORS | change).items() if x is not None}
    with pytest.raises(UserError) as error:
        from_torchvision(tensors, TINY, "x.safetensors")
    assert text in str(error.value) and "\n" not in str(error.value)
