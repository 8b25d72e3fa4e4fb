import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.layers.norms import LayerNorm, RMSNorm


def test_norms_against_numpy():
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 3, 8)).astype(np.float32)

    def normalized(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.arange(1.0, 9.0)

    params = {"scale": jnp.arange(1.0, 9.0), "bias": jnp.ones(8)}
    rms = RMSNorm().apply({"params": {"scale": params["scale"]}}, x)
    np.testing.assert_allclose(rms, normalized(x), rtol=1e-5)
    layer_norm = LayerNorm().apply({"params": params}, x)
    expected = normalized(x - x.mean(-1, keepdims=True)) + 1.0
    np.testing.assert_allclose(layer_norm, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_statistics_are_float32_in_a_bfloat16_model(norm):
    # 256 + 1 is not a bfloat16: squares and means taken in bfloat16 would be off by percents.
    x = jnp.linspace(1.0, 300.0, 512, dtype=jnp.bfloat16)[None]
    variables = norm().init(jax.random.key(0), x)
    y = norm(jnp.bfloat16).apply(variables, x)
    assert y.dtype == jnp.bfloat16
    exact = norm().apply(variables, x.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
