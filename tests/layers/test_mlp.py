import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.layers.linear import Linear
from synth2_jax.layers.mlp import MLP, GatedMLP, squared_relu

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gated_mlp_against_numpy():
    layer = GatedMLP(8)
    params = nn.unbox(layer.init(jax.random.key(0), X, deterministic=True))["params"]
    gate, up, down = (np.asarray(params[name]["kernel"]) for name in ("gate", "up", "down"))
    y = layer.apply({"params": params}, X, deterministic=True)
    np.testing.assert_allclose(y, (gelu(X @ gate) * (X @ up)) @ down, atol=1e-5)


def test_mlp_against_numpy():
    layer = MLP(8, activation=squared_relu, use_bias=True)
    params = nn.unbox(layer.init(jax.random.key(0), X, deterministic=True))["params"]
    params["up"]["bias"] = jnp.arange(8.0) / 8
    params["down"]["bias"] = jnp.arange(4.0)
    y = layer.apply({"params": params}, X, deterministic=True)
    hidden = np.maximum(X @ np.asarray(params["up"]["kernel"]) + np.arange(8.0) / 8, 0) ** 2
    expected = hidden @ np.asarray(params["down"]["kernel"]) + np.arange(4.0)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("layer", [MLP(8, dropout_rate=0.5), GatedMLP(8, dropout_rate=0.5)])
def test_dropout_only_when_not_deterministic(layer):
    variables = layer.init(jax.random.key(0), X, deterministic=True)
    y = layer.apply(variables, X, deterministic=True)
    rngs = {"dropout": jax.random.key(1)}
    np.testing.assert_array_equal(y, layer.apply(variables, X, deterministic=True, rngs=rngs))
    assert not np.allclose(y, layer.apply(variables, X, deterministic=False, rngs=rngs))


def test_linear_over_two_axes():
    layer = Linear((5, 2), ("heads", "kv", "embed", "mlp"), use_bias=True)
    variables = layer.init(jax.random.key(0), X)
    assert variables["params"]["kernel"].names == ("heads", "kv", "embed", "mlp")
    assert variables["params"]["bias"].names == ("embed", "mlp")
    params = nn.unbox(variables)["params"]
    params["bias"] = jnp.arange(10.0).reshape(5, 2)
    expected = np.einsum("bij,ijkl->bkl", X, params["kernel"]) + np.arange(10.0).reshape(5, 2)
    np.testing.assert_allclose(layer.apply({"params": params}, X), expected, atol=1e-5)


def test_linear_keeps_the_variance():
    layer = Linear((512,), ("embed", "mlp"))
    x = jax.random.normal(jax.random.key(1), (64, 256))
    y = layer.apply(layer.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(np.std(y), 1.0, atol=0.05)
