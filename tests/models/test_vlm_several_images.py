"""Several images a text: each word reads the last image before it, with a cache and without."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.layers.stack import unstack_layers
from synth2_jax.models.language_model import LanguageModelConfig, init_cache
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.vlm import VLM, VLMConfig

B, NUM_IMAGES, N, C, T, L = 2, 3, 4, 5, 9, 2
IMAGES_BINC = jax.random.normal(jax.random.key(1), (B, NUM_IMAGES, N, C))
TOKENS_BT = jax.random.randint(jax.random.key(2), (B, T), 0, 11)
# Rows differ: the second begins with words before any image.
IMAGE_OF_TEXT_BT = np.array([[1, 1, 2, 2, 2, 2, 3, 3, 3], [0, 0, 1, 1, 2, 2, 2, 3, 3]], np.int32)


def config(scan_layers=True):
    sizes = dict(num_heads=2, head_dim=4, mlp_dim=16, scan_layers=scan_layers)
    return VLMConfig(
        LanguageModelConfig(vocab_size=11, num_layers=4, embed_dim=8, **sizes),
        ResamplerConfig(num_layers=1, embed_dim=12, num_latents=L, **sizes),
        image_embedding_dim=C,
        num_image_tokens=N,
        cross_attention_every=2,
    )


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, variables, images, tokens, image_of_text=None):
    return VLM(cfg).apply(variables, images, tokens, image_of_text, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def visual(cfg, variables, images):
    return VLM(cfg).apply(variables, images, method="visual")


@functools.partial(jax.jit, static_argnums=0)
def step(cfg, variables, tokens, cache, visual, image_of_text=None):
    return VLM(cfg).apply(variables, tokens, cache, visual, image_of_text, method="step")


@pytest.fixture(scope="module")
def variables():
    """Gates as after training: no two alike."""
    init = jax.jit(functools.partial(VLM(config()).init, deterministic=True))
    params = nn.unbox(init(jax.random.key(0), IMAGES_BINC[:, 0], TOKENS_BT))["params"]
    gates = {"attention_gate": jnp.array([0.9, -0.7]), "mlp_gate": jnp.array([0.8, 0.6])}
    blocks = params["cross_attention"]["layers"] | gates
    return {"params": params | {"cross_attention": {"layers": blocks}}}


def first_layers_only(variables):
    """The second cross-attention reads what words before it have read; without it, none do."""
    params = variables["params"]
    blocks = params["cross_attention"]["layers"]
    gate = blocks["attention_gate"].at[1].set(0.0)
    lm = params["language_model"]
    out = lm["decoder"]["layers"]["attention"]["out"]
    silent = jax.tree.map(jnp.zeros_like, out)
    layers = lm["decoder"]["layers"]
    layers = layers | {"attention": layers["attention"] | {"out": silent}}
    return {
        "params": params
        | {"cross_attention": {"layers": blocks | {"attention_gate": gate}}}
        | {"language_model": lm | {"decoder": {"layers": layers}}}
    }


def test_a_word_reads_its_own_image_and_no_other(variables):
    """Words without self-attention, so that no word hears of an image from another word."""
    deaf = first_layers_only(variables)
    before = apply(config(), deaf, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT)
    for image in range(NUM_IMAGES):
        changed = IMAGES_BINC.at[:, image].add(1.0)
        after = apply(config(), deaf, changed, TOKENS_BT, IMAGE_OF_TEXT_BT)
        moved_BT = np.abs(after - before).max(axis=-1) > 1e-6
        np.testing.assert_array_equal(moved_BT, image + 1 == IMAGE_OF_TEXT_BT)


def test_words_before_an_image_cannot_know_it(variables):
    """With self-attention: only what stands at and behind an image's first word changes."""
    before = apply(config(), variables, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT)
    for image in range(NUM_IMAGES):
        changed = IMAGES_BINC.at[:, image].add(1.0)
        after = apply(config(), variables, changed, TOKENS_BT, IMAGE_OF_TEXT_BT)
        moved_BT = np.abs(after - before).max(axis=-1) > 1e-6
        np.testing.assert_array_equal(moved_BT, image + 1 <= IMAGE_OF_TEXT_BT)


def test_words_that_read_no_image_get_nothing_from_the_attention(variables):
    none_BT = jnp.zeros((B, T), jnp.int32)
    logits = apply(config(), variables, IMAGES_BINC, TOKENS_BT, none_BT)
    np.testing.assert_array_equal(
        logits, apply(config(), variables, IMAGES_BINC + 7.0, TOKENS_BT, none_BT)
    )
    assert np.abs(logits - apply(config(), variables, None, TOKENS_BT)).max() > 1e-3  # the MLP


def test_one_image_among_several_is_that_image_alone(variables):
    for image in range(NUM_IMAGES):
        several = apply(
            config(), variables, IMAGES_BINC, TOKENS_BT, jnp.full((B, T), image + 1, jnp.int32)
        )
        alone = apply(config(), variables, IMAGES_BINC[:, image], TOKENS_BT)
        np.testing.assert_allclose(several, alone, atol=1e-5)


def test_a_row_of_one_image_is_exactly_an_image_without_a_row(variables):
    np.testing.assert_array_equal(
        apply(config(), variables, IMAGES_BINC[:, :1], TOKENS_BT),
        apply(config(), variables, IMAGES_BINC[:, 0], TOKENS_BT),
    )


def test_rows_do_not_influence_each_other(variables):
    together = apply(config(), variables, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT)
    for row in range(B):
        one = slice(row, row + 1)
        alone = apply(config(), variables, IMAGES_BINC[one], TOKENS_BT[one], IMAGE_OF_TEXT_BT[one])
        np.testing.assert_allclose(together[one], alone, atol=1e-5)


@pytest.mark.parametrize("pieces", [(9,), (4, 5), (1,) * 9], ids=str)
def test_cached_steps_equal_the_full_pass(variables, pieces):
    cfg = config()
    seen = visual(cfg, variables, IMAGES_BINC)
    assert seen[0].shape == (2, B, NUM_IMAGES * L, 2, 4)  # G, B, S, H, K
    cache, parts, first = init_cache(cfg.language_model, B, max_length=T), [], 0
    for length in pieces:
        here = slice(first, first + length)
        logits, cache = step(
            cfg, variables, TOKENS_BT[:, here], cache, seen, IMAGE_OF_TEXT_BT[:, here]
        )
        parts.append(logits)
        first += length
    whole = apply(cfg, variables, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)


def test_several_rows_of_text_share_the_images(variables):
    """As the beams of a search do."""
    cfg, beams = config(), 3
    seen = visual(cfg, variables, IMAGES_BINC)
    tokens = jnp.repeat(TOKENS_BT, beams, axis=0)
    image_of_text = jnp.repeat(IMAGE_OF_TEXT_BT, beams, axis=0)
    cache = init_cache(cfg.language_model, B * beams, max_length=T)
    logits, _ = step(cfg, variables, tokens, cache, seen, image_of_text)
    whole = apply(cfg, variables, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT)
    np.testing.assert_allclose(logits, np.repeat(whole, beams, axis=0), atol=1e-5)


@pytest.mark.slow
def test_scan_equals_loop(variables):
    params = variables["params"]
    lm, resampler = params["language_model"], params["resampler"]
    looped = {
        "language_model": lm | {"decoder": unstack_layers(lm["decoder"], 4)},
        "cross_attention": unstack_layers(params["cross_attention"], 2),
        "resampler": resampler | {"encoder": unstack_layers(resampler["encoder"], 1)},
    }
    np.testing.assert_allclose(
        apply(config(False), {"params": looped}, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT),
        apply(config(), variables, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT),
        atol=1e-5,
    )


def test_several_images_of_which_nobody_says_who_reads_which_are_refused(variables):
    with pytest.raises(ValueError, match="no image_of_text_BT says who reads which"):
        apply(config(), variables, IMAGES_BINC, TOKENS_BT)
    cache = init_cache(config().language_model, B, max_length=T)
    with pytest.raises(ValueError, match="no image_of_text_BT says who reads which"):
        step(config(), variables, TOKENS_BT, cache, visual(config(), variables, IMAGES_BINC))
