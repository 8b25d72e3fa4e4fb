import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.models.discriminator import Discriminator, DiscriminatorConfig

SMALL = DiscriminatorConfig(image_size=32, patch_size=4, filters=8, channel_multipliers=(1, 2))


@pytest.mark.parametrize(
    "config, grid",
    [
        (DiscriminatorConfig(), 8),
        (SMALL, 4),
        (DiscriminatorConfig(image_size=32, filters=8, channel_multipliers=(1, 2, 4)), 8),
        (DiscriminatorConfig(image_size=32, patch_size=8, channel_multipliers=(1,)), 4),
        (DiscriminatorConfig(image_size=64, filters=8, dtype="bfloat16"), 2),
    ],
)
def test_map_of_logits(config, grid):
    image = jnp.zeros((2, config.image_size, config.image_size, 3))
    model = Discriminator(config)
    logits, _ = jax.eval_shape(lambda key: model.init_with_output(key, image), jax.random.key(0))
    assert config.grid_size == grid
    assert logits.shape == (2, grid, grid) and logits.dtype == jnp.float32


def test_an_image_has_its_own_logits_and_a_logit_its_own_window(random_params):
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    config = DiscriminatorConfig(image_size=32, filters=8, channel_multipliers=(1, 2))
    model = Discriminator(config)
    params = {"params": random_params(model, image)}

    def corner_logit(image):
        logits = model.apply(params, image)
        return logits[0, 0, 0], logits

    gradient, logits = jax.jit(jax.grad(corner_logit, has_aux=True))(image)
    alone = jax.jit(model.apply)(params, image[1:])
    np.testing.assert_allclose(alone, logits[1:], atol=1e-5)
    assert float(jnp.abs(gradient[0, :8, :8]).sum()) > 0
    np.testing.assert_array_equal(gradient[0, 16:, 16:], 0.0)
    np.testing.assert_array_equal(gradient[1], 0.0)


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (2, 32, 16, 3), (2, 32, 32, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"discriminator.image_size: found 32, .* which are \("):
        jax.eval_shape(Discriminator(SMALL).init, jax.random.key(0), jnp.zeros(shape))


def test_the_gradient_reaches_every_parameter_and_every_pixel(random_params):
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    model = Discriminator(SMALL)
    params = {"params": random_params(model, image)}

    def total(params, image):
        return model.apply(params, image).sum()

    by_params, by_image = jax.jit(jax.grad(total, argnums=(0, 1)))(params, image)
    for path, leaf in jax.tree_util.tree_leaves_with_path(by_params):
        assert float(jnp.abs(leaf).sum()) > 0, jax.tree_util.keystr(path)
    assert (np.abs(by_image).sum(axis=-1) > 0).all()
