"""What stands around the kernel; XLA's attention takes its place, for tests run on CPUs."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.layers import fused_attention
from synth2_jax.layers.attention import dot_product_attention

B, T, S, H, K = 2, 6, 4, 3, 8
KEYS = jax.random.split(jax.random.key(0), 4)
Q = jax.random.normal(KEYS[0], (B, T, H, K))
KEY = jax.random.normal(KEYS[1], (B, S, H, K))
VALUE = jax.random.normal(KEYS[2], (B, S, H, K))
MASKS = {
    "none": None,
    "keys": jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)[:, None, None],
    "queries and keys": jax.random.bernoulli(KEYS[3], 0.5, (T, S)),
    "heads": jax.random.bernoulli(KEYS[3], 0.5, (1, H, T, S)),
    "a query that sees nothing": jnp.ones((T, S), bool).at[2].set(False),
    "a row that sees nothing": jnp.array([[0, 0, 0, 0], [1, 1, 1, 1]], bool)[:, None, None],
}


@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_attention_it_stands_for_and_so_are_its_gradients(name):
    def loss(attend, q, k, v):
        out = attend(q, k, v, mask=MASKS[name])
        return jnp.sum(jnp.sin(out)), out

    fused = functools.partial(fused_attention.fused_attention, implementation="xla")
    (found, expected) = (
        jax.value_and_grad(functools.partial(loss, attend), (0, 1, 2), has_aux=True)(Q, KEY, VALUE)
        for attend in (fused, dot_product_attention)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_where_it_fits(monkeypatch):
    def fits(q=(B, T, H, K), k=(B, S, H, K), dtype=jnp.bfloat16):
        return fused_attention.fits(jnp.zeros(q, dtype), jnp.zeros(k, dtype))

    def on(**device):
        monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(**device)])

    assert not fits()  # tests run on CPUs
    for capability in ("7.5", "gfx90a"):  # of Turing, of an AMD card
        on(compute_capability=capability)
        assert not fits()
    on(compute_capability="9.0")
    assert fits()
    assert not fits(dtype=jnp.float32)
    assert not fits(q=(B, 37, H, K))  # cuDNN refuses odd lengths
    assert not fits(k=(B, 37, H, K))
    assert not fits(q=(B, T, H, 12), k=(B, S, H, 12))
    assert not fits(q=(B, T, H, 256), k=(B, S, H, 256))


def test_bias_and_active_dropout_keep_it_away(monkeypatch):
    used = []
    monkeypatch.setattr(fused_attention, "fits", lambda q, k: True)
    fused = lambda q, k, v, mask: used.append(mask is not None) or q  # noqa: E731
    monkeypatch.setattr(fused_attention, "fused_attention", fused)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, rate=0.5, **options):
            return dot_product_attention(Q, KEY, VALUE, dropout=nn.Dropout(rate), **options)

    def uses(**settings):
        used.clear()
        Model().apply({}, **settings, rngs={"dropout": jax.random.key(0)})
        return used == [False]

    assert uses() and uses(rate=0.0, deterministic=False)
    assert not uses(bias=jnp.zeros((T, S)))
    assert not uses(deterministic=False)
