"""Scores of agreement against slow references, on toy logits and on small models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.models.maskgit import Generator, GeneratorConfig, MaskGITConfig
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.scoring import alignment
from synth2_jax.scoring.alignment import LikelihoodRatioConfig, likelihood_ratio, retrieve

B, N, V, T, C = 3, 8, 5, 6, 4
MASK_ID = V
WIDTH = {"embed_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8}
WIDTH |= {"num_layers": 1, "scan_layers": False}
TEXT = jnp.array([[3, 4, 5, 1, 0, 0], [6, 7, 1, 0, 0, 0], [3, 3, 6, 7, 4, 1]])
LOSS_MASK = (TEXT != 0).at[:, 0].set(False)
IMAGES = jax.random.randint(jax.random.key(1), (B, N), 0, V)
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(B))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def toy_logits(captions_BN, strength=4.0):
    """A generator that wants token captions_BN[b, n] at n, and none in particular unconditionally.

    It sees nothing of what is not masked but how much it is.
    """

    def logits_fn2(ids):
        wanted = strength * jax.nn.one_hot(captions_BN, V)
        logits = jnp.concatenate([wanted, jnp.zeros_like(wanted)])
        return logits * jnp.mean(ids == MASK_ID, axis=1)[:, None, None]

    return logits_fn2


def ratio(logits_fn2, images=IMAGES, keys=KEYS, **config):
    config = LikelihoodRatioConfig(**{"mask_ratios": (0.25, 0.5, 1.0), **config})
    return likelihood_ratio(logits_fn2, images, keys, config, mask_id=MASK_ID)


# --- likelihood ratio ---


def test_the_ratio_is_that_of_a_loop_over_draws_rows_and_tokens():
    table_CNV = np.asarray(jax.random.normal(jax.random.key(5), (2, B, N, V)))
    seen = []

    def logits_fn2(ids):
        jax.debug.callback(lambda ids: seen.append(np.asarray(ids)), ids, ordered=True)
        logits = jnp.asarray(table_CNV.reshape(2 * B, N, V))
        return logits + 0.1 * jnp.sum(ids == MASK_ID, axis=1)[:, None, None] * jnp.arange(V)

    found = ratio(logits_fn2, draws_per_ratio=2)
    jax.effects_barrier()
    assert [(ids == MASK_ID).sum(1).tolist() for ids in seen] == [
        [count] * 2 * B for count in (2, 2, 4, 4, 8, 8)
    ]
    total = np.zeros(B)
    for ids in seen:
        np.testing.assert_array_equal(ids[:B], ids[B:])  # the same masks, with caption and without
        for row in range(B):
            (masked,) = np.nonzero(ids[row] == MASK_ID)
            differences = []
            for n in masked:
                token = IMAGES[row, n]
                shift = 0.1 * len(masked) * np.arange(V)
                with_caption = log_softmax(table_CNV[0, row, n] + shift)[token]
                without = log_softmax(table_CNV[1, row, n] + shift)[token]
                differences.append(with_caption - without)
            total[row] += np.mean(differences)
    np.testing.assert_allclose(found, total / len(seen), atol=1e-5)
    visible = [ids[:B] != MASK_ID for ids in seen]
    assert all((ids[:B] == IMAGES)[v].all() for ids, v in zip(seen, visible, strict=True))
    assert (visible[0] != visible[1]).any() and (visible[0][0] != visible[0][1]).any()


def test_swapped_captions_score_lower_and_captions_that_are_ignored_zero():
    matched, swapped = ratio(toy_logits(IMAGES)), ratio(toy_logits(IMAGES[::-1]))
    assert (matched > 0).all() and (matched[jnp.array([0, 2])] > swapped[jnp.array([0, 2])]).all()
    same = jax.random.normal(jax.random.key(2), (B, N, V))
    np.testing.assert_array_equal(ratio(lambda ids: jnp.concatenate([same, same])), np.zeros(B))


@pytest.mark.parametrize("ratios", [(), (0.0,), (0.5, 1.1)])
def test_unfit_mask_ratios(ratios):
    with pytest.raises(UserError, match="mask_ratios: found"):
        LikelihoodRatioConfig(mask_ratios=ratios)


@pytest.fixture(scope="module")
def generator():
    model = Generator(
        GeneratorConfig(
            TextEncoderConfig(vocab_size=9, **WIDTH),
            MaskGITConfig(codebook_size=V, num_tokens=N, **WIDTH),
        )
    )
    init = jax.jit(functools.partial(model.init, deterministic=True))
    params = init(jax.random.key(0), IMAGES, TEXT, TEXT != 0, jnp.zeros(B, bool))["params"]
    # Random first logits are all about alike; these are not.
    return model, jax.tree.map(lambda x: x * 3, params)


def test_a_pairs_ratio_depends_on_caption_image_and_number_alone(generator):
    model, params = generator
    score = jax.jit(
        alignment.make_likelihood_ratio(model, LikelihoodRatioConfig(mask_ratios=(0.5,)))
    )
    numbers = jnp.array([4, 9, 2], jnp.uint32)
    whole = np.asarray(score(params, None, TEXT, IMAGES, numbers))
    order = np.array([2, 0, 0])
    part = score(params, None, TEXT[order], IMAGES[order], numbers[order])
    np.testing.assert_allclose(part, whole[order], atol=1e-5)
    others = score(params, None, TEXT, IMAGES, numbers + 1)  # other masks
    assert (np.abs(np.asarray(others) - whole) > 1e-4).all()


# --- likelihood of the caption ---


def test_caption_log_likelihood_is_a_mean_over_caption_and_eos():
    logits = np.asarray(jax.random.normal(jax.random.key(3), (B, T, 9))) * 2
    found = alignment.caption_log_likelihood(jnp.asarray(logits), TEXT, LOSS_MASK)
    for row in range(B):
        values = [log_softmax(logits[row, t])[TEXT[row, t]] for t in range(T) if LOSS_MASK[row, t]]
        np.testing.assert_allclose(found[row], np.mean(values), rtol=1e-5)
    other = jnp.where(LOSS_MASK[..., None], logits, jnp.nan)  # what is outside does not count
    np.testing.assert_array_equal(alignment.caption_log_likelihood(other, TEXT, LOSS_MASK), found)
    nothing = alignment.caption_log_likelihood(logits, TEXT, jnp.zeros_like(LOSS_MASK))
    np.testing.assert_array_equal(nothing, np.zeros(B))


@pytest.fixture(scope="module")
def vlm():
    model = VLM(
        VLMConfig(
            LanguageModelConfig(vocab_size=9, **WIDTH),
            ResamplerConfig(num_latents=2, **WIDTH),
            image_embedding_dim=C,
            num_image_tokens=N,
        )
    )
    embeddings = jax.random.normal(jax.random.key(4), (B, N, C))
    init = jax.jit(functools.partial(model.init, deterministic=True))
    params = init(jax.random.key(0), embeddings, TEXT)["params"]
    # Gates of 0 would hide the image.
    params = jax.tree.map(lambda x: jnp.ones_like(x) if x.ndim == 0 else 2 * x, params)
    return model, params, embeddings


@pytest.mark.slow
def test_the_pools_matrix_is_every_caption_with_every_image(vlm):
    model, params, embeddings = vlm
    one = jax.jit(alignment.make_caption_likelihood(model))
    pool = jax.jit(alignment.make_pool_likelihood(model))(params, embeddings, TEXT, LOSS_MASK)
    for image in range(B):
        same = jnp.repeat(embeddings[image][None], B, axis=0)
        np.testing.assert_allclose(
            pool[:, image], one(params, same, TEXT, LOSS_MASK), rtol=1e-4, atol=1e-5
        )
    assert np.ptp(np.asarray(pool), axis=1).min() > 1e-3  # it does see the images


def test_without_an_image_it_is_the_language_models_likelihood(vlm):
    model, params, embeddings = vlm
    one = jax.jit(alignment.make_caption_likelihood(model))
    bare = one(params, None, TEXT, LOSS_MASK)
    closed = jax.tree.map(lambda x: jnp.zeros_like(x) if x.ndim == 0 else x, params)
    np.testing.assert_allclose(one(closed, embeddings, TEXT, LOSS_MASK), bare, atol=1e-5)
    assert (np.abs(np.asarray(one(params, embeddings, TEXT, LOSS_MASK) - bare)) > 1e-3).all()


# --- retrieval ---

POOL = jnp.array([[1], [2], [3], [4]])  # four images of one token
ALL = jnp.ones(4, bool)


def test_retrieval_by_eye():
    scores = jnp.array(
        [
            [9.0, 1.0, 2.0, 3.0],  # finds its own
            [5.0, 4.0, 6.0, 1.0],  # image 2 fits best, 0 better than its own
            [1.0, 7.0, 7.0, 0.0],  # a tie is no better image
            [8.0, 0.0, 0.0, 7.5],
        ]
    )
    found = retrieve(scores, POOL, ALL)
    np.testing.assert_array_equal(found.rank_P, [0, 2, 0, 1])
    np.testing.assert_array_equal(found.best_P, [0, 2, 2, 0])
    np.testing.assert_array_equal(found.margin_P, [6.0, -2.0, 0.0, -0.5])


@pytest.mark.parametrize(
    "scores, images, margin",
    [
        # Real images have five captions each, one after the other: the same image is no rival.
        ([[1.0, 1.1, 0.0, -2.0]] * 4, [[1], [1], [3], [4]], 1.0),
        ([[0.0]], [[1]], np.inf),
    ],
)
def test_a_pair_without_better_rivals_is_its_own(scores, images, margin):
    found = retrieve(jnp.array(scores), jnp.array(images), ALL[: len(images)])
    assert (found.rank_P[0], found.best_P[0], found.margin_P[0]) == (0, 0, margin)


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    size = 7
    scores, images = rng.integers(0, 5, (size, size)), rng.integers(0, 3, (size, 2))
    valid = np.arange(size) < 6
    found = jax.jit(retrieve)(jnp.asarray(scores, jnp.float32), jnp.asarray(images), valid)
    for i in range(6):
        rivals = [j for j in range(6) if (images[j] != images[i]).any()]
        better = [j for j in rivals if scores[i, j] > scores[i, i]]
        best = max(better, key=lambda j: (scores[i, j], -j), default=i)
        assert (found.rank_P[i], found.best_P[i]) == (len(better), best)
        assert found.margin_P[i] == scores[i, i] - max(scores[i, j] for j in rivals)
