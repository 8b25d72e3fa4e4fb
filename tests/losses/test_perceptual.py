import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.losses.perceptual import perceptual_distance


def _pyramid(image):
    return {"fine": image, "coarse": image[:, ::2, ::2] ** 2}


def test_literal_distance_of_unit_vectors():
    image = jnp.array([[[[2.0, 0.0]], [[0.0, 1.0]]], [[[1.0, 0.0]], [[1.0, 0.0]]]])  # [2,2,1,2]
    other = jnp.array([[[[0.0, 3.0]], [[0.0, 5.0]]], [[[1.0, 0.0]], [[1.0, 0.0]]]])
    # Image 0: |(1,0) - (0,1)|^2 = 2 at one of two positions; image 1: none.
    total, count = perceptual_distance(lambda x: x, image, other)
    np.testing.assert_allclose([total, count], [1.0, 2.0], rtol=1e-6)


def test_zero_for_the_same_image_and_scale_free():
    image = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    other = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    assert float(perceptual_distance(_pyramid, image, image)[0]) == 0.0
    plain = perceptual_distance(_pyramid, image, other)[0]
    louder = perceptual_distance(lambda x: 100.0 * _pyramid(x)["fine"], image, other)[0]
    coarse = perceptual_distance(lambda x: _pyramid(x)["coarse"], image, other)[0]
    np.testing.assert_allclose(plain, louder + coarse, rtol=1e-5)


@pytest.mark.slow
def test_gradient_reaches_the_reconstruction_only():
    image = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    other = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))

    def distance(image, other):
        return perceptual_distance(_pyramid, image, other)[0]

    to_image, to_other = jax.grad(distance, argnums=(0, 1))(image, other)
    np.testing.assert_array_equal(to_image, 0.0)
    assert float(jnp.abs(to_other).sum()) > 0
