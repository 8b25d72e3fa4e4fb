import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.errors import UserError
from synth2_jax.layers.stack import unstack_layers
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
    table = variables["params"]["positions"]["embedding"]
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = {"params": variables["params"] | {"positions": {"embedding": 10 * table}}}
    both = {"params": variables["params"] | {"positions": {"embedding": 10 * table[order]}}}
    np.testing.assert_allclose(
        apply(cfg, moved), apply(cfg, both, X[:, order]), rtol=1e-4, atol=1e-5
    )
    assert np.abs(apply(cfg, moved) - apply(cfg, moved, X[:, order])).max() > 1e-3


def test_an_image_reads_itself_only():
    cfg = config()
    variables = init(cfg)
    np.testing.assert_allclose(apply(cfg, variables)[:1], apply(cfg, variables, X[:1]), atol=1e-5)


def test_every_token_reaches_every_latent():
    cfg = config()
    variables = init(cfg)

    def latents(x):
        return apply(cfg, variables, x)[0, :, 0]

    jacobian_LBNC = jax.jacrev(latents)(X)
    assert (np.abs(jacobian_LBNC[:, 0]).max(axis=-1) > 1e-6).all()
    np.testing.assert_array_equal(jacobian_LBNC[:, 1], 0.0)


def test_scan_equals_loop():
    cfg = config()
    params = nn.unbox(init(cfg))["params"]
    looped = params | {"encoder": unstack_layers(params["encoder"], 2)}
    np.testing.assert_allclose(
        apply(cfg, {"params": params}),
        apply(config(scan_layers=False), {"params": looped}),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("scan_layers", [True, False])
def test_every_parameter_has_named_axes(scan_layers):
    params = jax.eval_shape(lambda: init(config(scan_layers=scan_layers)))["params"]
    boxes = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned) and None not in box.names
        assert len(box.names) == box.value.ndim and box.value.dtype == jnp.float32
    assert params["positions"]["embedding"].names == ("image_tokens", "embed")
    assert params["latents"].names == ("latents", "embed")


@pytest.mark.parametrize("mistake", [{"remat": "dot"}, {"dtype": "float31"}])
def test_config_mistakes(mistake):
    with pytest.raises(UserError, match="did you mean"):
        config(**mistake)


@pytest.mark.parametrize(
    "size", ["num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim", "num_latents"]
)
def test_a_size_of_0_is_a_mistake(size):
    with pytest.raises(UserError, match=f"{size}: found 0, expected at least 1"):
        config(**{size: 0})
