"""Dropout: its share, its mean, and independence of the elements that one draw decides for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.layers.dropout import Dropout, random_bytes, without_dropout
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.testing.user_errors import raises_line


def drop(rate, x, seed=0, **options):
    return Dropout(rate).apply({}, x, rngs={"dropout": jax.random.key(seed)}, **options)


@pytest.mark.parametrize("rate, share", [(0.1, 26), (0.5, 128), (1e-4, 1), (0.9999, 255)])
def test_a_share_is_dropped_and_the_mean_stays(rate, share):
    """The share is a whole number of 256ths; four standard deviations of 262,144 elements."""
    x = jnp.full((4, 256, 256), 3.0)
    found = np.asarray(drop(rate, x, deterministic=False))
    share /= 256
    assert abs((found == 0).mean() - share) < 4 * (share * (1 - share) / x.size) ** 0.5
    np.testing.assert_allclose(found[found != 0], 3.0 / (1 - share), rtol=1e-6)


@pytest.mark.parametrize("options", [{"deterministic": True}, {"deterministic": False}])
def test_nothing_is_dropped_where_nothing_should(options):
    x = jnp.arange(6.0).reshape(1, 2, 3)
    rate = 0.5 if options["deterministic"] else 0.0
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, **options), x)  # and needs no key


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 7, 4), (1, 1, 2), (5, 3), (9,)])
def test_bytes_of_every_shape(shape):
    found = np.asarray(random_bytes(jax.random.key(1), shape))
    assert found.shape == shape and found.min() >= 0 and found.max() < 256
    np.testing.assert_array_equal(found, random_bytes(jax.random.key(1), shape))
    assert shape == (1, 1, 2) or (found != random_bytes(jax.random.key(2), shape)).any()


def test_the_bytes_of_a_draw_are_uniform_and_independent():
    """Chi squared of the values, and of the pairs of any two of a draw's four bytes."""
    rows = np.asarray(random_bytes(jax.random.key(3), (1, 4, 2**16)), np.int64)[0]
    for values, cells in [(rows.ravel(), 256)] + [
        (16 * (rows[i] // 16) + rows[j] // 16, 256) for i in range(4) for j in range(i)
    ]:
        expected = values.size / cells
        chi = ((np.bincount(values, minlength=cells) - expected) ** 2 / expected).sum()
        assert abs(chi - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


def test_dropout_keeps_the_dtype():
    assert drop(0.5, jnp.ones((1, 4, 2), jnp.bfloat16), deterministic=False).dtype == jnp.bfloat16


def test_rates_of_a_network():
    sizes = dict(vocab_size=8, num_layers=1, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4)
    config = LanguageModelConfig(**sizes, dropout_rate=0.1, attention_dropout_rate=0.2)
    assert config.attention().dropout_rate == 0.2
    assert LanguageModelConfig(**sizes, dropout_rate=0.1).attention().dropout_rate == 0.1
    quiet = without_dropout(config)
    assert (quiet.dropout_rate, quiet.attention_dropout_rate) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["dropout_rate", "attention_dropout_rate"])
@pytest.mark.parametrize("rate", [1.0, 10, -0.1, float("nan")])
def test_a_rate_is_a_share(name, rate):
    sizes = dict(vocab_size=8, num_layers=1, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4)
    with raises_line(f"{name}: found {rate}, expected at least 0 and below 1"):
        LanguageModelConfig(**sizes, **{name: rate})
