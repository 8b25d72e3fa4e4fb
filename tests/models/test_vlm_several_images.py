"""Several images a text: each word reads the last image before it, with a cache and without."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.models.language_model import LanguageModelConfig, init_cache
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.vlm import VLM, VLMConfig

B, NUM_IMAGES, N, C, T, L = 2, 3, 4, 5, 9, 2
IMAGES_BINC = jax.random.normal(jax.random.key(1), (B, NUM_IMAGES, N, C))
TOKENS_BT = jax.random.randint(jax.random.key(2), (B, T), 0, 11)
# Rows differ: the second begins with words before any image.
IMAGE_OF_TEXT_BT = np.array([[1, 1, 2, 2, 2, 2, 3, 3, 3], [0, 0, 1, 1, 2, 2, 2, 3, 3]], np.int32)


def config():
    sizes = dict(num_heads=2, head_dim=4, mlp_dim=16)
    lm = LanguageModelConfig(vocab_size=11, num_layers=4, embed_dim=8, **sizes)
    resampler = ResamplerConfig(num_layers=1, embed_dim=12, num_latents=L, **sizes)
    return VLMConfig(lm, resampler, C, N, cross_attention_every=2)


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
    variables = jax.tree.map(jnp.asarray, variables)  # a copy
    blocks = variables["params"]["cross_attention"]["layers"]
    blocks["attention_gate"] = blocks["attention_gate"].at[1].set(0.0)
    attention = variables["params"]["language_model"]["decoder"]["layers"]["attention"]
    attention["out"] = jax.tree.map(jnp.zeros_like, attention["out"])
    return variables


def test_a_word_reads_its_own_image_and_hears_of_no_later_one(variables):
    """Without self-attention no word hears of an image from another word."""
    for model, reached in ((first_layers_only(variables), np.equal), (variables, np.less_equal)):
        before = apply(config(), model, IMAGES_BINC, TOKENS_BT, IMAGE_OF_TEXT_BT)
        for image in range(NUM_IMAGES):
            changed = IMAGES_BINC.at[:, image].add(1.0)
            after = apply(config(), model, changed, TOKENS_BT, IMAGE_OF_TEXT_BT)
            moved_BT = np.abs(after - before).max(axis=-1) > 1e-6
            np.testing.assert_array_equal(moved_BT, reached(image + 1, IMAGE_OF_TEXT_BT))


def test_words_that_read_no_image_get_nothing_from_the_attention(variables):
    none_BT = jnp.zeros((B, T), jnp.int32)
    logits = apply(config(), variables, IMAGES_BINC, TOKENS_BT, none_BT)
    others = apply(config(), variables, IMAGES_BINC + 7.0, TOKENS_BT, none_BT)
    np.testing.assert_array_equal(logits, others)
    assert np.abs(logits - apply(config(), variables, None, TOKENS_BT)).max() > 1e-3  # the MLP


def test_one_image_among_several_is_that_image_alone(variables):
    for image in range(NUM_IMAGES):
        which_BT = jnp.full((B, T), image + 1, jnp.int32)
        several = apply(config(), variables, IMAGES_BINC, TOKENS_BT, which_BT)
        alone = apply(config(), variables, IMAGES_BINC[:, image], TOKENS_BT)
        np.testing.assert_allclose(several, alone, atol=1e-5)
    row = apply(config(), variables, IMAGES_BINC[:, image : image + 1], TOKENS_BT)
    np.testing.assert_array_equal(row, alone)


@pytest.mark.parametrize("pieces", [(9,), (4, 5), (1,) * 9], ids=str)
def test_cached_steps_equal_the_full_pass(variables, pieces):
    cfg = config()
    seen = visual(cfg, variables, IMAGES_BINC)
    assert seen[0].shape == (2, B, NUM_IMAGES * L, 2, 4)  # G, B, S, H, K
    cache, parts, first = init_cache(cfg.language_model, B, max_length=T), [], 0
    for length in pieces:
        here = slice(first, first + length)
        text = TOKENS_BT[:, here], cache, seen, IMAGE_OF_TEXT_BT[:, here]
        logits, cache = step(cfg, variables, *text)
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


def test_several_images_need_to_know_who_reads_which(variables):
    with pytest.raises(ValueError, match="need image_of_text_BT"):
        apply(config(), variables, IMAGES_BINC, TOKENS_BT)
    cache = init_cache(config().language_model, B, max_length=T)
    with pytest.raises(ValueError, match="need image_of_text_BT"):
        step(config(), variables, TOKENS_BT, cache, visual(config(), variables, IMAGES_BINC))
