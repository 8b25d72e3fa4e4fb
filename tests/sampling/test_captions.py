"""Captions with caches against full forward passes without any."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.models.language_model import LanguageModel, LanguageModelConfig, shift_right
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.sampling.captions import make_caption, make_prompted_caption, make_write
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.vocabulary import EOS_ID, PAD_ID
from synth2_jax.training import train_state

B, N, C, V, LENGTH = 3, 4, 6, 24, 5
WIDTH = {"num_layers": 2, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16}
WIDTH["scan_layers"] = False  # compiles faster
# A head of its own: a tied one would repeat its last input for ever.
LM = LanguageModel(LanguageModelConfig(vocab_size=V, tie_embeddings=False, **WIDTH))
RESAMPLER = ResamplerConfig(num_latents=2, **WIDTH)
MODEL = VLM(VLMConfig(LM.config, RESAMPLER, C, N, cross_attention_every=2))
IMAGES_BNC = jax.random.normal(jax.random.key(3), (B, N, C))
PROMPT = [5, 9]
GREEDY = TextDecodeConfig(method="greedy", max_length=LENGTH)


@pytest.fixture(scope="module")
def params():
    """Large random parameters and open gates: the image must make a difference."""

    def init(key):
        text = jnp.zeros((B, 3), jnp.int32)
        return nn.unbox(MODEL.init(key, IMAGES_BNC, text, deterministic=True))

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path.endswith("_gate"):
            return jnp.float32(1)
        scale = 3 * np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 1
        return jnp.float32(scale * rng.normal(size=leaf.shape))

    shapes = jax.eval_shape(init, jax.random.key(0))["params"]
    flat = {path: draw(path, leaf) for path, leaf in train_state.flatten(shapes).items()}
    return train_state.unflatten(flat)


@pytest.fixture(scope="module")
def caption():
    return jax.jit(make_caption(MODEL, PROMPT, GREEDY))


@pytest.fixture(scope="module")
def prompted():
    return jax.jit(make_prompted_caption(MODEL, GREEDY))


def uncached(forward, prompts, length=LENGTH):
    """Greedy decoding by a full pass for every token: rows of ids, padded after eos."""
    texts = [list(prompt) for prompt in prompts]
    total = len(texts[0]) + length
    for _ in range(length):
        padded = np.array([text + [PAD_ID] * (total - len(text)) for text in texts], np.int32)
        best_BT = np.argmax(forward(shift_right(padded)), axis=-1)
        for text, best in zip(texts, best_BT, strict=True):
            ended = EOS_ID in text[len(prompts[0]) :]
            text.append(PAD_ID if ended else int(best[len(text)]))
    return np.array([text[len(prompts[0]) :] for text in texts])


@pytest.mark.parametrize("prompt", [PROMPT, pytest.param([], marks=pytest.mark.slow)])
def test_captions_with_a_cache_are_those_without(params, prompted, prompt):
    ids_BT, scores_B = jax.jit(make_caption(MODEL, prompt, GREEDY))(params, IMAGES_BNC)

    @jax.jit
    def forward(inputs_BT):
        return MODEL.apply({"params": params}, IMAGES_BNC, inputs_BT, deterministic=True)

    np.testing.assert_array_equal(ids_BT, uncached(forward, [prompt] * B))
    assert len(np.unique(ids_BT, axis=0)) > 1
    assert scores_B.shape == (B,)
    inputs_BP = np.array([[PAD_ID, *prompt]] * B, np.int32)  # a prompt of its own for each image
    prompt = (inputs_BP, np.ones_like(inputs_BP), inputs_BP.shape[1])
    own = prompted(params, IMAGES_BNC[:, None], *prompt)
    np.testing.assert_array_equal(own[0], ids_BT)
    np.testing.assert_allclose(own[1], scores_B, atol=1e-4)


def test_a_caption_is_of_its_own_image(params, caption):
    ids_BT, scores_B = caption(params, IMAGES_BNC)
    swapped_BT, swapped_B = caption(params, IMAGES_BNC[::-1])
    np.testing.assert_array_equal(swapped_BT, ids_BT[::-1])
    np.testing.assert_allclose(swapped_B, scores_B[::-1], atol=1e-5)
    others_BT, _ = caption(params, IMAGES_BNC.at[1:].add(1.0))
    np.testing.assert_array_equal(others_BT[0], ids_BT[0])


def test_beam_search_finds_nothing_less_likely_than_greedy(params, caption):
    beam = TextDecodeConfig(method="beam", max_length=LENGTH, num_beams=4, length_penalty=0.0)
    _, greedy_B = caption(params, IMAGES_BNC)
    _, beam_B = jax.jit(make_caption(MODEL, PROMPT, beam))(params, IMAGES_BNC)
    assert (beam_B >= greedy_B - 1e-4).all()


# Rows of two images; the second is read from the third input on.
PAIRS_BINC = jax.random.normal(jax.random.key(4), (B, 2, N, C))
INPUTS_BP = np.array([[0, 5, 0, 9, 7], [0, 8, 0, 3, 9], [0, 6, 0, 7, 7]], np.int32)
IMAGE_OF_TEXT_BP = np.array([[1, 1, 2, 2, 2]] * B, np.int32)


def padded(rows, length):
    return np.pad(rows, ((0, 0), (0, length - rows.shape[1])), constant_values=2)


def test_captions_after_images_with_a_cache_are_those_without(params, prompted):
    num_inputs = INPUTS_BP.shape[1]
    ids_BT, _ = prompted(params, PAIRS_BINC, INPUTS_BP, IMAGE_OF_TEXT_BP, num_inputs)

    @jax.jit
    def forward(inputs_BT):
        image_of_text = np.full(inputs_BT.shape, 2, np.int32)
        image_of_text[:, :num_inputs] = IMAGE_OF_TEXT_BP
        return MODEL.apply(
            {"params": params}, PAIRS_BINC, inputs_BT, image_of_text, deterministic=True
        )

    # `uncached` puts the start token in front, which is the first input here.
    np.testing.assert_array_equal(ids_BT, uncached(forward, INPUTS_BP[:, 1:].tolist()))
    assert len(np.unique(ids_BT, axis=0)) > 1


def test_a_caption_after_examples_is_of_its_own_row_and_of_what_counts(params, prompted):
    def caption(rows=slice(None), images=PAIRS_BINC, length=INPUTS_BP.shape[1]):
        prompt = [padded(x, length)[rows] for x in (INPUTS_BP, IMAGE_OF_TEXT_BP)]
        return prompted(params, images[rows], *prompt, INPUTS_BP.shape[1])

    ids_BT, scores_B = caption()
    longer_BT, longer_B = caption(length=8)  # what is behind a prompt changes nothing
    np.testing.assert_array_equal(longer_BT, ids_BT)
    np.testing.assert_allclose(longer_B, scores_B, atol=1e-4)
    for row in range(B):
        one = slice(row, row + 1)
        alone_BT, alone_B = caption(one)
        np.testing.assert_array_equal(alone_BT, ids_BT[one])
        np.testing.assert_allclose(alone_B, scores_B[one], atol=1e-4)
    changed = caption(images=PAIRS_BINC.at[0, 0].add(1.0))
    assert changed[1][0] != scores_B[0]  # an example's image counts, by the words that read it
    np.testing.assert_array_equal(changed[0][1:], ids_BT[1:])


@pytest.mark.parametrize("prompts_BP", [np.array([[4, 7], [11, 3], [6, 6]]), np.zeros((B, 0), int)])
def test_writing_without_an_image_is_the_bare_language_model(params, prompts_BP):
    bare = params["language_model"]
    write = jax.jit(make_write(LM, GREEDY))
    keys_B = jax.random.split(jax.random.key(0), B)
    ids_BT, _ = write(bare, prompts_BP, keys_B)

    @jax.jit
    def forward(inputs_BT):
        return LM.apply({"params": bare}, inputs_BT, deterministic=True)

    np.testing.assert_array_equal(ids_BT, uncached(forward, prompts_BP.tolist()))


def test_each_draft_depends_on_its_own_key_and_prompt(params):
    nucleus = TextDecodeConfig(method="nucleus", max_length=LENGTH, temperature=3.0, top_p=1.0)
    write = jax.jit(make_write(LM, nucleus))
    keys_B = jax.random.split(jax.random.key(0), B)
    prompts_BP = np.array([[4, 7]] * B)
    ids_BT, _ = write(params["language_model"], prompts_BP, keys_B)
    assert len(np.unique(ids_BT, axis=0)) == B
    order = np.array([2, 0, 1])
    moved_BT, _ = write(params["language_model"], prompts_BP, keys_B[order])
    np.testing.assert_array_equal(moved_BT, ids_BT[order])


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_what_ends_a_text_may_be_another_token(params, method):
    config = TextDecodeConfig(method=method, max_length=LENGTH, num_beams=1)
    keys_B = jax.random.split(jax.random.key(0), B)
    prompts_BP = np.array([[4, 7], [11, 3], [6, 6]])

    def written(eos_id):
        write = jax.jit(make_write(LM, config, eos_id))
        return np.asarray(write(params["language_model"], prompts_BP, keys_B)[0])

    never = written(V + 1)
    end = int(never[0, 2])
    row = written(end)[0].tolist()
    stop = row.index(end)
    assert not any(row[stop + 1 :]) and (never != 0).all()
    assert row[: stop + 1] == never[0, : stop + 1].tolist()
