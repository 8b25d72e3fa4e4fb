import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.models.resampler import Resampler, ResamplerConfig

X = jax.random.normal(jax.random.key(1), (2, 6, 5))  # B=2, N=6, C=5
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles fastest


def config(**kwargs):
    sizes = dict(num_layers=2, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_latents=3)
    return ResamplerConfig(**(sizes | kwargs))


@functools.partial(jax.jit, static_argnums=0)
def init(cfg):
    return Resampler(cfg).init(KEY, X, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, variables, x=X):
    return Resampler(cfg).apply(variables, x, deterministic=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shape_dtype_and_finite(dtype):
    cfg = config(dtype=dtype)
    latents = apply(cfg, init(cfg))
    assert latents.shape == (2, 3, 8) and latents.dtype == dtype
    assert np.isfinite(latents.astype(jnp.float32)).all()
    large = apply(cfg, init(cfg), 1e4 * X)
    assert np.isfinite(large.astype(jnp.float32)).all()


def test_the_order_of_tokens_counts_only_through_their_positions():
    cfg = config()
    variables = nn.unbox(init(cfg))
    table = 10 * variables["params"]["positions"]["embedding"]
    order = np.array([3, 0, 5, 1, 4, 2])
    moved, both = (
        {"params": variables["params"] | {"positions": {"embedding": rows}}}
        for rows in (table, table[order])
    )
    found = apply(cfg, both, X[:, order])
    np.testing.assert_allclose(apply(cfg, moved), found, rtol=1e-4, atol=1e-5)
    assert np.abs(apply(cfg, moved) - apply(cfg, moved, X[:, order])).max() > 1e-3


def test_every_token_of_an_image_and_no_other_reaches_every_latent():
    cfg = config()
    variables = init(cfg)

    def latents(x):
        return apply(cfg, variables, x)[0, :, 0]

    jacobian_LBNC = jax.jacrev(latents)(X)
    assert (np.abs(jacobian_LBNC[:, 0]).max(axis=-1) > 1e-6).all()
    np.testing.assert_array_equal(jacobian_LBNC[:, 1], 0.0)
