import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.layers.stack import unstack_layers
from synth2_jax.models.language_model import (
    LanguageModel,
    LanguageModelConfig,
    init_cache,
    shift_right,
)

TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles fastest


def config(**kwargs):
    sizes = dict(vocab_size=11, num_layers=2, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16)
    return LanguageModelConfig(**(sizes | kwargs))


@functools.partial(jax.jit, static_argnums=0)
def init(cfg):
    return LanguageModel(cfg).init(KEY, TOKENS, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, variables, tokens=TOKENS):
    return LanguageModel(cfg).apply(variables, tokens, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def step(cfg, variables, tokens, cache):
    return LanguageModel(cfg).apply(variables, tokens, cache, method="step")


@pytest.fixture(scope="module")
def variables():
    return nn.unbox(init(config()))


def test_shift_right():
    shifted = shift_right(jnp.array([[5, 6, 1], [7, 1, 0]]))
    np.testing.assert_array_equal(shifted, [[0, 5, 6], [0, 7, 1]])


def test_logits_are_float32_in_a_bfloat16_model_start_small_and_do_not_see_padding(variables):
    for tie_embeddings in (True, False):
        cfg = config(dtype="bfloat16", tie_embeddings=tie_embeddings)
        logits = apply(cfg, variables if tie_embeddings else init(cfg))
        assert logits.shape == (2, 6, 11) and logits.dtype == jnp.float32
        # Logits that went through bfloat16 would all survive the round trip.
        assert (logits != logits.astype(jnp.bfloat16).astype(jnp.float32)).any()
    # A tied head on unit-variance embeddings would start with logits of variance D.
    assert np.std(apply(config(), variables)) < 2
    padded = jnp.pad(TOKENS, ((0, 0), (0, 3)))  # padding on the right changes nothing before it
    found = apply(config(), variables, padded)[:, :6]
    np.testing.assert_allclose(found, apply(config(), variables), atol=1e-5)


def test_causality_through_gradients(variables):
    """The logits of position t depend on tokens 0 .. t, on all of them, and on no later one."""
    cfg, params = config(tie_embeddings=False), variables["params"]
    head = {"kernel": params["embed"]["embedding"].T}
    tokens = jnp.arange(6)[None]  # one row of the table each, so its gradient tells them apart

    def logits(table):
        changed = params | {"embed": {"embedding": table}, "head": head}
        return apply(cfg, {"params": changed}, tokens)[0].sum(axis=-1)

    jacobian_TVD = jax.jacrev(logits)(params["embed"]["embedding"])
    influence_TT = np.abs(jacobian_TVD).max(axis=-1)[:, :6]
    np.testing.assert_array_equal(influence_TT > 0, np.tri(6, dtype=bool))


def test_the_order_of_earlier_tokens_counts(variables):
    tokens = jnp.array([[2, 3, 4, 5], [3, 2, 4, 5]])
    logits = apply(config(), variables, tokens)
    assert np.abs(logits[0, -1] - logits[1, -1]).max() > 1e-3


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("prompt_length", [1, 4])
def test_cached_steps_equal_the_full_pass(variables, scan_layers, prompt_length):
    cfg = config(scan_layers=scan_layers)
    if not scan_layers:
        params = variables["params"]
        variables = {"params": params | {"decoder": unstack_layers(params["decoder"], 2)}}
    cache = init_cache(cfg, 2, max_length=8)
    logits, cache = step(cfg, variables, TOKENS[:, :prompt_length], cache)
    assert cache.index == prompt_length
    parts = [logits]
    for t in range(prompt_length, 6):
        logits, cache = step(cfg, variables, TOKENS[:, t : t + 1], cache)
        parts.append(logits)
    found, expected = jnp.concatenate(parts, axis=1), apply(cfg, variables)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
