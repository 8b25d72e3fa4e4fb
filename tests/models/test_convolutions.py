import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.models.convolutions import (
    average_pool,
    convolution,
    depth_to_space,
    space_to_depth,
    upsample,
)


def test_space_to_depth_of_a_literal_image():
    image = jnp.arange(16).reshape(1, 4, 4, 1)
    patches = space_to_depth(image, 2)
    np.testing.assert_array_equal(patches[0, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(depth_to_space(patches, 2), image)
    colours = jax.random.normal(jax.random.key(0), (2, 6, 12, 3))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(colours, 3), 3), colours)


def test_pooling_and_upsampling_of_a_literal_grid():
    grid = jnp.array([[0.0, 2.0], [4.0, 10.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(average_pool(grid), [[[[4.0]]]])
    np.testing.assert_array_equal(upsample(grid)[0, :2, :, 0], [[0, 0, 2, 2], [0, 0, 2, 2]])
    np.testing.assert_array_equal(average_pool(upsample(grid)), grid)


def test_a_convolution_of_stride_2_is_padded_to_the_right_and_below():
    conv = convolution(1, 3, name="conv", dtype="float32", use_bias=False, stride=2)
    kernel = jnp.ones((3, 3, 1, 1))
    found = conv.apply({"params": {"kernel": kernel}}, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(found[0, :, :, 0], [[9, 6], [6, 4]])
