"""Captions -> image tokens: the whole against its parts put together by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.models.maskgit import Generator, GeneratorConfig, MaskGITConfig
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, parallel_decode, row_keys

B, N, T, K, C = 3, 4, 5, 12, 6
WIDTH = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16}
CONFIG = GeneratorConfig(
    TextEncoderConfig(vocab_size=20, **WIDTH),
    MaskGITConfig(codebook_size=K, num_tokens=N, token_embedding="codebook", **WIDTH),
)
MODEL = Generator(CONFIG)
SAMPLER = ParallelDecodeConfig(num_steps=3)
CODEBOOK_KC = jax.random.normal(jax.random.key(1), (K, C))
TEXT_BT = jnp.array([[3, 4, 5, 1, 0], [7, 8, 1, 0, 0], [9, 10, 11, 12, 1]])
KEYS_B = row_keys(jax.random.key(2), B)


@pytest.fixture(scope="module")
def params():
    """Large random parameters: the caption must make a difference."""

    def init(key):
        ids_BN, drop_B = jnp.zeros((B, N), jnp.int32), jnp.zeros(B, bool)
        return MODEL.init(
            key, ids_BN, TEXT_BT, TEXT_BT != 0, drop_B, CODEBOOK_KC, deterministic=True
        )

    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
    return jax.tree.map(lambda leaf: jnp.float32(0.5 * rng.normal(size=leaf.shape)), shapes)


def generate(params, scale, text_BT=TEXT_BT, keys_B=KEYS_B, sampler=SAMPLER, interval=(0.0, 1.0)):
    guidance = GuidanceConfig(scale=scale, ramp="constant", interval=interval)
    run = jax.jit(make_generate(MODEL, sampler, guidance))
    return np.asarray(run(params, CODEBOOK_KC, text_BT, text_BT != 0, keys_B))


@pytest.fixture(scope="module")
def guided(params):
    return generate(params, 2.0)


def test_every_token_is_a_code(guided):
    assert guided.shape == (B, N) and guided.dtype == np.int32
    assert guided.min() >= 0 and guided.max() < K  # no mask id is left
    assert len(np.unique(guided, axis=0)) == B


@pytest.mark.parametrize(
    "scale, interval",
    [
        (0.0, (0.0, 1.0)),
        pytest.param(2.0, (0.0, 1.0), marks=pytest.mark.slow),
        (2.0, (0.3, 0.6)),
    ],
)
def test_guidance_is_two_separate_passes_put_together(params, scale, interval):
    scale_S = jnp.array([scale * (interval[0] <= step / 3 < interval[1]) for step in range(3)])
    variables = {"params": params}

    @jax.jit
    def by_hand():
        def logits(ids_BN, drop):
            drop_B = jnp.full(B, drop)
            text = MODEL.apply(
                variables, TEXT_BT, TEXT_BT != 0, drop_B, method="encode_text", deterministic=True
            )
            return MODEL.apply(variables, ids_BN, text, CODEBOOK_KC, method="logits")

        def logits_fn(ids_BN, step):
            t = scale_S[step]
            return (1 + t) * logits(ids_BN, False) - t * logits(ids_BN, True)

        return parallel_decode(
            logits_fn, KEYS_B, num_tokens=N, mask_id=CONFIG.maskgit.mask_id, config=SAMPLER
        )

    np.testing.assert_array_equal(generate(params, scale, interval=interval), by_hand())


def test_a_row_is_the_same_in_any_batch(params, guided):
    order = np.array([2, 0])
    np.testing.assert_array_equal(
        generate(params, 2.0, TEXT_BT[order], KEYS_B[order]), guided[order]
    )


def test_caption_and_key_decide(params, guided):
    other_text = generate(params, 2.0, TEXT_BT.at[0, 0].set(15))
    np.testing.assert_array_equal(other_text[1:], guided[1:])
    sharp = dataclasses.replace(SAMPLER, sample_temperature=0.0, choice_temperature=0.0)
    by_text = generate(params, 2.0, jnp.tile(TEXT_BT[:1], (B, 1)), sampler=sharp)
    np.testing.assert_array_equal(by_text[0], by_text[1])  # without noise keys do not matter
    assert (generate(params, 2.0, sampler=sharp)[1] != by_text[1]).any()
    hot = dataclasses.replace(SAMPLER, sample_temperature=50.0)  # the logits are large too
    same_text = generate(params, 2.0, jnp.tile(TEXT_BT[:1], (B, 1)), sampler=hot)
    assert len(np.unique(same_text, axis=0)) > 1
