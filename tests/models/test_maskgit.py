import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.models.maskgit import CodebookEmbedding, Generator, GeneratorConfig, MaskGITConfig
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig

K, N, C = 10, 6, 3
TEXT = dict(num_layers=1, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12)
IMAGE = dict(num_layers=2, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
LEARNED = GeneratorConfig(
    TextEncoderConfig(vocab_size=11, **TEXT), MaskGITConfig(codebook_size=K, num_tokens=N, **IMAGE)
)


def variant(config=LEARNED, **maskgit):
    return dataclasses.replace(config, maskgit=dataclasses.replace(config.maskgit, **maskgit))


CODEBOOK = variant(token_embedding="codebook")
UNTIED = variant(tied_head=False, qk_norm=True)

IDS = jnp.asarray([[K, 1, K, 3, 9, K], [0, K, 2, K, K, K], [K] * N])
TOKENS = jnp.asarray([[4, 7, 3, 9, 1], [5, 6, 1, 0, 0], [8, 2, 7, 1, 0]])
MASK = TOKENS != 0
KEEP = jnp.zeros(3, bool)
VECTORS = jax.random.normal(jax.random.key(9), (K, C)) * 0.01 + 3  # f32[K, C]


@functools.partial(jax.jit, static_argnums=0)
def init(config):
    inputs = (IDS, TOKENS, MASK, KEEP, VECTORS)
    variables = Generator(config).init(jax.random.key(0), *inputs, deterministic=True)
    return nn.unbox(variables)["params"]


PARAMS = {config: init(config) for config in (LEARNED, CODEBOOK, UNTIED)}


@functools.partial(jax.jit, static_argnames=("config", "method", "deterministic"))
def run(config, params, args, *, method=None, deterministic=True, rngs=None):
    generator = Generator(config)
    return generator.apply(
        {"params": params}, *args, method=method, deterministic=deterministic, rngs=rngs
    )


def apply(config, *args, params=None, **kwargs):
    return run(config, PARAMS[config] if params is None else params, args, **kwargs)


def logits(config, ids=IDS, tokens=TOKENS, mask=MASK, drop=KEEP, vectors=VECTORS, params=None):
    output = apply(config, ids, tokens, mask, drop, vectors, params=params)
    assert output.shape == (*ids.shape, K) and output.dtype == jnp.float32
    return np.asarray(output)


ALL = pytest.mark.parametrize(
    "config", [LEARNED, CODEBOOK, UNTIED], ids=["learned", "codebook", "untied"]
)


def test_text_padding_changes_nothing():
    longer = jnp.pad(TOKENS, ((0, 0), (0, 3)), constant_values=6)
    mask = jnp.pad(MASK, ((0, 0), (0, 3)))
    found = logits(LEARNED, tokens=longer, mask=mask)
    np.testing.assert_allclose(found, logits(LEARNED), atol=1e-5)


@ALL
def test_caption_and_every_image_token_matter(config):
    base = logits(config)
    other = logits(config, tokens=TOKENS.at[:, 0].set(10))
    assert (np.abs(other - base).max((1, 2)) > 1e-4).all()
    other = logits(config, ids=IDS.at[0, 4].set(2))
    assert (np.abs(other - base)[0].max(-1) > 1e-5).all()  # bidirectional: all positions see it
    np.testing.assert_allclose(other[1:], base[1:], atol=1e-6)  # rows do not mix


def test_dropped_rows_ignore_the_caption():
    drop = jnp.asarray([True, False, True])
    base, other = logits(LEARNED, drop=drop), logits(LEARNED, tokens=(TOKENS + 3) % 11, drop=drop)
    np.testing.assert_allclose(other[[0, 2]], base[[0, 2]], atol=1e-6)
    assert np.abs(other[1] - base[1]).max() > 1e-4
    assert np.abs(base[0] - logits(LEARNED)[0]).max() > 1e-4
    np.testing.assert_allclose(base[1], logits(LEARNED)[1], atol=1e-5)
    # Nor do they depend on how long it was padded, and a row without text is such a row.
    short = logits(LEARNED, tokens=TOKENS[:, :2], mask=MASK[:, :2], drop=drop)
    np.testing.assert_allclose(short[[0, 2]], base[[0, 2]], atol=1e-6)
    empty = logits(LEARNED, tokens=jnp.zeros_like(TOKENS), mask=jnp.zeros_like(MASK))
    np.testing.assert_allclose(empty[[0, 2]], base[[0, 2]], atol=1e-6)


@pytest.mark.slow
def test_null_caption_is_learned():
    drop = jnp.asarray([True, False, False])

    def loss(params):
        output = apply(LEARNED, IDS, TOKENS, MASK, drop, params=params)
        return jnp.sum(output[0] ** 2)

    grad = jax.grad(loss)(PARAMS[LEARNED])
    assert np.abs(grad["maskgit"]["null_caption"]).max() > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grad["text_encoder"]))


@pytest.mark.parametrize("config", [LEARNED, CODEBOOK], ids=["learned", "codebook"])
def test_keys_and_values_computed_once_give_the_same_logits(config):
    text = apply(config, TOKENS, MASK, KEEP, method="encode_text")
    assert [leaf.shape for leaf in jax.tree.leaves(text)] == [(2, 3, 5, 2, 8)] * 2 + [(3, 5)]
    for ids in (IDS, jnp.where(IDS == K, 5, IDS)):
        cached = apply(config, ids, text, VECTORS, method="logits")
        np.testing.assert_allclose(cached, logits(config, ids=ids), atol=1e-5)


def test_features_made_before_take_the_place_of_the_text_encoder():
    encoder = TextEncoder(LEARNED.text_encoder)
    variables = {"params": PARAMS[LEARNED]["text_encoder"]}
    features = encoder.apply(variables, TOKENS, MASK, deterministic=True)
    drop = jnp.asarray([False, False, True])
    expected = logits(LEARNED, drop=drop)
    alone = {"maskgit": PARAMS[LEARNED]["maskgit"]}
    for beyond in (0, 7):  # what lies beyond the captions is not seen
        given = jnp.where(MASK[..., None], features, beyond)
        found = apply(LEARNED, IDS, TOKENS, MASK, drop, None, given, params=alone)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    init = functools.partial(Generator(LEARNED).init, deterministic=True)
    args = (IDS, TOKENS, MASK, KEEP, None, features.astype(jnp.bfloat16))
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), *args))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, alone)


def test_layers_start_different():
    layers, others = (
        PARAMS[config]["maskgit"]["decoder"]["layers"]["cross_attention"]
        for config in (LEARNED, UNTIED)
    )
    kernel = layers["key"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    assert others.keys() - layers.keys() == {"query_norm", "key_norm"}  # its qk_norm


@ALL
def test_first_cross_entropy_is_ln_k(config):
    """Averaged over all codes as targets; and yet every code has a logit of its own."""
    log_probs = jax.nn.log_softmax(logits(config))
    assert -np.mean(log_probs) == pytest.approx(np.log(K), abs=0.08)
    assert np.std(log_probs, axis=-1).min() > 0.05


@pytest.mark.parametrize("width", [8, 64, 512])
def test_first_codebook_logits_have_the_same_size_at_any_width(width):
    embedding = CodebookEmbedding(width, 2 * width, 0.0, 0.25 * width**-0.5, jnp.float32)
    x_BND = jax.random.normal(jax.random.key(0), (2, 8, width))
    vectors = jax.random.normal(jax.random.key(1), (64, 16)) * 1e-3
    attend = {"deterministic": True, "method": "attend"}
    output, _ = embedding.init_with_output(jax.random.key(2), x_BND, vectors, **attend)
    assert 0.15 < np.std(output) < 0.4


def test_codebook_vectors_decide_alone_what_a_code_is():
    """Renaming the codes permutes the logits, and two equal vectors are one code to the model."""
    base = logits(CODEBOOK)
    order = np.asarray(jax.random.permutation(jax.random.key(4), K))
    inverse = np.append(np.argsort(order), K)
    renamed = logits(CODEBOOK, ids=jnp.asarray(inverse)[IDS], vectors=VECTORS[order])
    np.testing.assert_allclose(renamed, base[..., order], atol=1e-5)
    twins = logits(CODEBOOK, vectors=VECTORS.at[7].set(VECTORS[2]))
    np.testing.assert_allclose(twins[..., 7], twins[..., 2], atol=1e-6)
    assert np.abs(twins[..., 3] - twins[..., 2]).max() > 1e-3
    # The scale and the mean of a codebook carry nothing.
    np.testing.assert_allclose(logits(CODEBOOK, vectors=VECTORS * 50 - 7), base, atol=1e-3)
    with pytest.raises(ValueError, match="codebook_KC"):
        logits(CODEBOOK, vectors=None)


def test_codebook_logits_can_prefer_any_code():
    """One-dimensional codes: no logits that are linear in the vector prefer the middle one."""
    embedding = CodebookEmbedding(8, 16, 0.0, 0.1, jnp.float32)
    vectors, x_BND = jnp.asarray([[-1.0], [0.0], [1.0]]), jnp.ones((1, 1, 8))
    attend = {"deterministic": True, "method": "attend"}

    @jax.jit
    def step(params):
        def loss(params):
            output = embedding.apply({"params": params}, x_BND, vectors, **attend)
            return -jax.nn.log_softmax(output)[0, 0, 1]

        value, grad = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)

    params = nn.unbox(embedding.init(jax.random.key(0), x_BND, vectors, **attend))["params"]
    for _ in range(100):
        value, params = step(params)
    assert value < 0.1


def test_noise_on_the_codebook_is_for_training_only():
    embedding = CodebookEmbedding(8, 16, 0.5, 0.1, jnp.float32)
    x_BND = jnp.ones((1, 1, 8))
    attend = functools.partial(embedding.apply, method="attend")
    init = functools.partial(embedding.init, deterministic=True, method="attend")
    variables = init(jax.random.key(0), x_BND, VECTORS)

    def output(deterministic, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        return attend(variables, x_BND, VECTORS, deterministic=deterministic, rngs=rngs)

    np.testing.assert_array_equal(output(True, 0), output(True, 1))
    assert np.abs(output(False, 0) - output(False, 1)).max() > 1e-3
    noise = output(False)[0, 0] - output(True)[0, 0]
    assert np.abs(noise).max() < 10 * np.abs(output(True)).max()  # a blur, not another codebook
