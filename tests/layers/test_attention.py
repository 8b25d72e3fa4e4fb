import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.layers.attention import MultiHeadAttention, dot_product_attention, write_keys_values
from synth2_jax.layers.masks import key_mask

ATTENTION = MultiHeadAttention(num_heads=2, head_dim=4, embed_dim=8)
X = jax.random.normal(jax.random.key(1), (2, 3, 8))
SOURCE = jax.random.normal(jax.random.key(2), (2, 5, 8))


def init(layer):
    return nn.unbox(layer.init(jax.random.key(0), X, deterministic=True))


def attend(layer, variables, x, source=None, **kwargs):
    keys_values = None
    if source is not None:
        keys_values = layer.apply(variables, source, method="keys_values")
    return layer.apply(variables, x, keys_values=keys_values, deterministic=True, **kwargs)


def reference(params, x, source, bias, scale):
    kernel = {name: np.asarray(value["kernel"]) for name, value in params.items()}
    q = np.einsum("btd,dhk->bhtk", x, kernel["query"])
    k = np.einsum("bsd,dhk->bhsk", source, kernel["key"])
    v = np.einsum("bsd,dhk->bhsk", source, kernel["value"])
    logits = q @ k.swapaxes(-1, -2) * scale + bias
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs = probs / probs.sum(-1, keepdims=True)
    return np.einsum("bhtk,hkd->btd", probs @ v, kernel["out"])


@pytest.mark.parametrize("scale_queries", [True, False])
def test_cross_attention_against_numpy(scale_queries):
    layer = MultiHeadAttention(2, 4, 8, scale_queries=scale_queries)
    variables = init(layer)
    bias = np.random.default_rng(0).normal(size=(1, 2, 3, 5)).astype(np.float32)
    out = attend(layer, variables, X, SOURCE, bias=bias)
    scale = 0.5 if scale_queries else 1.0
    expected = reference(variables["params"], X, SOURCE, bias, scale)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_unscaled_queries_start_smaller_instead():
    def stddev(**options):
        layer, x = MultiHeadAttention(8, 64, 256, **options), jnp.zeros((1, 1, 256))
        params = nn.unbox(layer.init(jax.random.key(0), x, deterministic=True))["params"]
        return np.std(params["query"]["kernel"])

    np.testing.assert_allclose(stddev() / stddev(scale_queries=False), 8.0, rtol=1e-4)


def test_hidden_keys_change_nothing():
    variables = init(ATTENTION)
    visible = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
    changed = jnp.where(visible[:, :, None], SOURCE, 100.0)
    out, other = (
        attend(ATTENTION, variables, X, source, mask=key_mask(visible))
        for source in (SOURCE, changed)
    )
    np.testing.assert_array_equal(out, other)
    alone = attend(ATTENTION, variables, X[:1], SOURCE[:1, :3])
    np.testing.assert_allclose(out[:1], alone, atol=1e-6)


def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients():
    variables = init(ATTENTION)
    mask = np.ones((2, 1, 3, 5), bool)
    mask[0, :, 1] = False

    def run(source):
        return attend(ATTENTION, variables, X, source, mask=mask)

    out = run(SOURCE)
    np.testing.assert_array_equal(out[0, 1], np.zeros(8))
    assert np.abs(np.delete(np.asarray(out).reshape(6, 8), 1, axis=0)).min(axis=-1).max() > 0
    gradient = jax.grad(lambda source: run(source)[0, 1].sum())(SOURCE)
    np.testing.assert_array_equal(gradient, np.zeros_like(SOURCE))


def test_self_attention_is_attention_over_its_own_keys_and_values():
    layer = MultiHeadAttention(2, 4, 8, qk_norm=True)
    variables = init(layer)
    positions = jnp.arange(3)[None]
    keys_values = layer.apply(variables, X, positions_BS=positions, method="keys_values")
    out, other, unplaced = (
        layer.apply(variables, X, **options, deterministic=True)
        for options in (
            {"positions_BT": positions},
            {"positions_BT": positions, "keys_values": keys_values},
            {},
        )
    )
    np.testing.assert_array_equal(out, other)
    assert not np.allclose(out, unplaced, atol=1e-3)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm_ignores_the_length_of_queries(qk_norm):
    layer = MultiHeadAttention(2, 4, 8, qk_norm=qk_norm)
    variables = init(layer)
    out, longer = (attend(layer, variables, scale * X, SOURCE) for scale in (1, 50))
    assert np.allclose(out, longer, atol=1e-4 if qk_norm else 1e-2) == qk_norm


def test_write_keys_values_touches_its_positions_only():
    held = (jnp.zeros((2, 5, 1, 1), jnp.bfloat16),) * 2
    new = (jnp.ones((2, 2, 1, 1)), 2 * jnp.ones((2, 2, 1, 1)))
    keys, values = write_keys_values(held, new, jnp.asarray(1))
    assert keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(keys[:, :, 0, 0], 2 * [[0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(values[:, :, 0, 0], 2 * [[0, 2, 2, 0, 0]])


def test_softmax_is_float32_in_a_bfloat16_model():
    # 256 + 1 rounds to 256 in bfloat16: only float32 logits can tell the two keys apart.
    q = jnp.array([16.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.array([[16.0, 1.0], [16.0, 0.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.array([[1.0, 0.0], [0.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    out = dot_product_attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    sigmoid = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(out.astype(jnp.float32).ravel(), [sigmoid, 1 - sigmoid], atol=4e-3)


def test_attention_dropout():
    layer = MultiHeadAttention(2, 4, 8, dropout_rate=0.5)
    variables = init(layer)
    out = layer.apply(variables, X, deterministic=True)
    np.testing.assert_array_equal(out, attend(ATTENTION, variables, X))
    dropped = layer.apply(variables, X, deterministic=False, rngs={"dropout": jax.random.key(3)})
    assert not np.allclose(out, dropped)
