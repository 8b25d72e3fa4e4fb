import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.errors import UserError
from synth2_jax.layers.stack import unstack_layers
from synth2_jax.models.language_model import LanguageModel, LanguageModelConfig, init_cache
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig, decode

IMAGES = jax.random.normal(jax.random.key(1), (2, 6, 5))  # B=2, N=6, C=5
TOKENS = jax.random.randint(jax.random.key(2), (2, 6), 0, 11)
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles fastest


def config(every=2, num_layers=4, dropout_rate=0.0, **kwargs):
    sizes = dict(num_heads=2, head_dim=4, mlp_dim=16) | kwargs
    lm = LanguageModelConfig(vocab_size=11, num_layers=num_layers, embed_dim=8, **sizes)
    resampler = ResamplerConfig(num_layers=2, embed_dim=12, num_latents=3, **sizes)
    return VLMConfig(lm, resampler, 5, 6, cross_attention_every=every, dropout_rate=dropout_rate)


@functools.partial(jax.jit, static_argnums=0)
def init(cfg):
    return VLM(cfg).init(KEY, IMAGES, TOKENS, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, variables, images=IMAGES, tokens=TOKENS):
    return VLM(cfg).apply(variables, images, tokens, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def apply_lm(cfg, variables, tokens=TOKENS):
    params = variables["params"]["language_model"]
    return LanguageModel(cfg.language_model).apply({"params": params}, tokens, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def run_visual(cfg, variables):
    return VLM(cfg).apply(variables, IMAGES, method="visual")


@functools.partial(jax.jit, static_argnums=0)
def step(cfg, variables, tokens, cache, visual=None):
    return VLM(cfg).apply(variables, tokens, cache, visual, method="step")


def unstack(variables):
    """The parameters as a model without scan_layers has them."""
    params = variables["params"]
    lm, resampler = params["language_model"], params["resampler"]
    parts = {
        "language_model": lm | {"decoder": unstack_layers(lm["decoder"], 4)},
        "cross_attention": unstack_layers(params["cross_attention"], 2),
        "resampler": resampler | {"encoder": unstack_layers(resampler["encoder"], 2)},
    }
    return {"params": parts}


@pytest.fixture(scope="module")
def closed():
    """As initialized: gates at 0."""
    return nn.unbox(init(config()))


@pytest.fixture(scope="module")
def opened(closed):
    """The gates at values as after training: no two alike."""
    gates = {"attention_gate": jnp.array([0.9, -0.7]), "mlp_gate": jnp.array([0.8, 0.6])}
    blocks = closed["params"]["cross_attention"]["layers"] | gates
    return {"params": closed["params"] | {"cross_attention": {"layers": blocks}}}


def test_parameter_tree_holds_the_bare_language_model(closed):
    assert set(closed["params"]) == {"language_model", "resampler", "cross_attention"}
    bare = LanguageModel(config().language_model)
    shapes = jax.eval_shape(lambda: nn.unbox(bare.init(KEY, TOKENS, deterministic=True)))["params"]
    found = closed["params"]["language_model"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, found)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_at_first_the_logits_are_the_bare_language_models(closed, scan_layers, dtype):
    cfg = config(scan_layers=scan_layers, dtype=dtype)
    variables = closed if scan_layers else unstack(closed)
    with jax.disable_jit():  # exactly, once XLA does not fuse the two programs differently
        logits = apply(cfg, variables)
        np.testing.assert_array_equal(logits, apply_lm(cfg, variables))
    assert logits.shape == (2, 6, 11) and logits.dtype == jnp.float32
    if dtype == "float32":
        np.testing.assert_allclose(apply(cfg, variables), logits, atol=1e-5)


def test_without_an_image_the_logits_are_the_bare_language_models(opened):
    logits = apply(config(), opened, images=None)
    np.testing.assert_array_equal(logits, apply_lm(config(), opened))
    assert np.abs(logits - apply(config(), opened)).max() > 1e-2
    only_lm = {"params": {"language_model": opened["params"]["language_model"]}}
    np.testing.assert_array_equal(apply(config(), only_lm, images=None), logits)
    cache = init_cache(config().language_model, 2, max_length=6)
    np.testing.assert_allclose(step(config(), opened, TOKENS, cache)[0], logits, atol=1e-5)


def test_each_gate_opens_its_part(closed):
    logits = apply(config(), closed)
    params = closed["params"]
    for gate in ("attention_gate", "mlp_gate"):
        for block in range(2):
            layers = params["cross_attention"]["layers"]
            layers = layers | {gate: layers[gate].at[block].set(0.5)}
            variables = {"params": params | {"cross_attention": {"layers": layers}}}
            assert np.abs(apply(config(), variables) - logits).max() > 1e-3


@pytest.mark.slow
def test_gates_learn_from_zero(closed):
    gradients = jax.grad(lambda variables: jnp.mean(apply(config(), variables) ** 2))(closed)
    gradients = gradients["params"]["cross_attention"]["layers"]
    for gate in ("attention_gate", "mlp_gate"):
        assert (np.abs(gradients[gate]) > 0).all()


def test_text_depends_on_its_own_image_and_on_no_other(opened):
    def per_row(images):
        return jnp.sum(apply(config(), opened, images) ** 2, axis=(1, 2))

    reached_BBN = np.abs(jax.jacrev(per_row)(IMAGES)).max(axis=-1) > 0
    for row in range(2):
        assert reached_BBN[row, row].all()  # every token of its own image
        assert not reached_BBN[row, 1 - row].any()


def test_padding_on_the_right_changes_nothing_before_it(opened):
    padded = apply(config(), opened, tokens=jnp.pad(TOKENS, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded[:, :6], apply(config(), opened), atol=1e-5)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_cached_steps_equal_the_full_pass(opened, scan_layers):
    cfg = config(scan_layers=scan_layers)
    variables = opened if scan_layers else unstack(opened)
    visual = run_visual(cfg, variables)
    assert visual[0].shape == (2, 2, 3, 2, 4)  # G, B, L, H, K
    cache = init_cache(cfg.language_model, 2, max_length=7)
    logits, cache = step(cfg, variables, TOKENS[:, :3], cache, visual)
    parts = [logits]
    for t in range(3, 6):
        logits, cache = step(cfg, variables, TOKENS[:, t : t + 1], cache, visual)
        parts.append(logits)
    found, expected = jnp.concatenate(parts, axis=1), apply(cfg, variables)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_beam_search_scores_are_the_full_models(opened):
    """Beams share their image's keys and values and carry their own text's."""
    cfg, prompt = config(), jnp.array([[0, 5], [0, 5]])
    search = TextDecodeConfig(max_length=4, length_penalty=0.0)
    visual = run_visual(cfg, opened)
    cache = init_cache(cfg.language_model, 2, max_length=2 + search.max_length - 1)
    logits, cache = step(cfg, opened, prompt, cache, visual)

    def step_fn(tokens, cache):
        logits, cache = step(cfg, opened, tokens[:, None], cache, visual)
        return logits[:, 0], cache

    ids, scores = jax.jit(lambda: decode(step_fn, logits[:, -1], cache, search))()
    logits = apply(cfg, opened, tokens=jnp.concatenate([prompt, ids[:, :-1]], axis=1))[:, 1:]
    log_probs = jax.nn.log_softmax(logits.at[..., 0].set(-jnp.inf))
    picked = jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(scores, jnp.where(ids == 0, 0.0, picked).sum(-1), atol=1e-4)


def test_rows_that_cannot_share_the_images_are_refused(opened):
    visual = run_visual(config(), opened)
    cache = init_cache(config().language_model, 3, max_length=1)
    with pytest.raises(ValueError, match="3 rows of text cannot share 2 images"):
        step(config(), opened, jnp.zeros((3, 1), int), cache, visual)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["dropout_rate", "attention_dropout_rate"])
def test_dropout_of_the_cross_attention_alone(opened, rate):
    """A frozen language model keeps its own dropout at 0."""
    model = VLM(dataclasses.replace(config(), **{rate: 0.5}))

    def apply_dropped(images):
        rngs = {"dropout": jax.random.key(0, impl="unsafe_rbg")}
        return model.apply(opened, images, TOKENS, deterministic=False, rngs=rngs)

    assert not np.allclose(apply_dropped(IMAGES), apply(config(), opened), atol=1e-2)
    np.testing.assert_allclose(apply_dropped(None), apply_lm(config(), opened), atol=1e-5)


def test_image_embeddings_of_another_tokenizer_are_refused(opened):
    with pytest.raises(UserError, match=r"found \[tokens, width\] \(4, 5\), expected \(6, 5\)"):
        apply(config(), opened, images=IMAGES[:, :4])
