import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn


@pytest.fixture(scope="session")
def random_params():
    """(model, *inputs, **options) -> parameters; compiling real initializers takes seconds."""

    def make(model, *inputs, **options):
        rng = np.random.default_rng(0)

        def draw(leaf):
            scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
            return jnp.asarray(rng.normal(size=leaf.shape) * scale + (leaf.ndim == 1), jnp.float32)

        init = jax.eval_shape(lambda key: model.init(key, *inputs, **options), jax.random.key(0))
        return jax.tree.map(draw, nn.unbox(init)["params"])

    return make
