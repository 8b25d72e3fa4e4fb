"""LoRA: nothing changes at first, merging changes nothing, and targets alone are adapted."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.layers import lora
from synth2_jax.layers.linear import Linear
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.models.language_model import LanguageModelConfig, init_cache
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.training import train_state

TOKENS = jnp.array([[0, 3, 5, 7], [0, 2, 4, 6]])
IMAGES = jax.random.normal(jax.random.key(1), (2, 3, 5))
WIDTH = {"embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24, "num_layers": 2}
OURS = LanguageModelConfig(vocab_size=11, scan_layers=False, **WIDTH)
GEMMA = GemmaConfig(
    vocab_size=11, num_kv_heads=1, sliding_window=3, local_layers=1, dtype="float32", **WIDTH
)
LANGUAGE_MODELS = {
    "looped": OURS,
    "scanned": dataclasses.replace(OURS, scan_layers=True),
    "gemma": GEMMA,
}


def vlm(language_model, **options):
    resampler = ResamplerConfig(num_latents=2, scan_layers=language_model.scan_layers, **WIDTH)
    config = VLMConfig(language_model, resampler, 5, 3, cross_attention_every=2)
    return dataclasses.replace(config, **options)


def initialized(config):
    init = functools.partial(VLM(config).init, deterministic=True)
    boxed = jax.jit(init)(jax.random.key(0), IMAGES, TOKENS)["params"]
    names = {path: box.names for path, box in train_state.flatten(boxed).items()}
    return train_state.flatten(nn.unbox(boxed)), names


def logits(config, flat, images=IMAGES):
    params = {"params": train_state.unflatten(flat)}
    return jax.jit(functools.partial(VLM(config).apply, deterministic=True))(params, images, TOKENS)


def drawn(flat):
    """With gates that are open and adapters that do something."""
    rng = np.random.default_rng(0)
    moved = lambda path: path.endswith("_gate") or lora.is_adapter(path)  # noqa: E731
    return {p: jnp.float32(rng.normal(size=x.shape)) if moved(p) else x for p, x in flat.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, targets",
    [
        ("looped", None),
        ("scanned", ("attention/", "mlp/")),
        pytest.param("gemma", None, marks=pytest.mark.interop),
        pytest.param("gemma", ("attn/.*/w$", "mlp/"), marks=pytest.mark.interop),
    ],
)
def test_it_starts_as_the_bare_model_and_merged_it_computes_the_same(kind, targets):
    bare = vlm(LANGUAGE_MODELS[kind])
    section = lora.LoRAConfig(rank=2, alpha=3.0)
    if targets:
        section = dataclasses.replace(section, targets=targets)
    config = dataclasses.replace(bare, lora=section)
    flat, names = initialized(config)
    without = {path: leaf for path, leaf in flat.items() if not lora.is_adapter(path)}
    plain, _ = initialized(bare)
    assert without.keys() == plain.keys() and len(flat) > len(without)
    assert {path.split("/")[0] for path in flat.keys() - without.keys()} == {"language_model"}
    np.testing.assert_array_equal(logits(config, flat), logits(bare, without))
    flat = drawn(flat)
    expected = logits(config, flat)
    opened = {path: flat[path] for path in without}
    assert float(jnp.abs(expected - logits(bare, opened)).max()) > 0.05
    # Without an image it is the bare language model: the adapters were never trained so.
    found = logits(config, flat, images=None)
    np.testing.assert_array_equal(found, logits(bare, opened, images=None))
    merged = {}
    for path in without:
        pair = lora.adapters_of(path, flat)
        paths = (path, *(pair or ()))
        leaves, axes = [flat[one] for one in paths], [names[one] for one in paths]
        merged[path] = lora.merge(*leaves, axes, 1.5) if pair else leaves[0]
    np.testing.assert_allclose(logits(bare, merged), expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(with_a_cache(config, flat), expected, rtol=2e-4, atol=2e-5)


def with_a_cache(config, flat):
    """Logits of the same text, token by token."""
    model, variables = VLM(config), {"params": train_state.unflatten(flat)}

    @jax.jit
    def run(variables):
        visual = model.apply(variables, IMAGES, method="visual")
        cache, found = init_cache(config.language_model, 2, 4), []
        for t in range(4):
            token = TOKENS[:, t : t + 1]
            logits_BTV, cache = model.apply(variables, token, cache, visual, method="step")
            found.append(logits_BTV)
        return jnp.concatenate(found, axis=1)

    return run(variables)


def test_a_layer_is_its_equation():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Linear((2, 2), ("embed", "heads", "kv"), name="query")(x)

    class Model(nn.Module):
        def setup(self):
            self.layer = Layer()

        def __call__(self, x):
            with lora.adapted(lora.LoRAConfig(1, 4.0, ("query",)), self.layer):
                return self.layer(x)

    x = jnp.array([[1.0, 2.0, 3.0]])
    boxed = Model().init(jax.random.key(0), x)["params"]["layer"]["query"]
    assert boxed["kernel_lora_a"].names == ("embed", "lora_rank")
    assert boxed["kernel_lora_b"].names == ("lora_rank", "heads", "kv")
    w = np.arange(12.0, dtype=np.float32).reshape(3, 2, 2)
    a, b = np.float32([[1], [0], [2]]), np.float32([[[1, 2], [3, 4]]])
    params = {"query": {"kernel": w, "kernel_lora_a": a, "kernel_lora_b": b}}
    found = Model().apply({"params": {"layer": params}}, x)
    # x A = 1 + 6, and alpha / rank is 4.
    np.testing.assert_allclose(found, np.tensordot(x, w, 1) + 4 * 7 * b, rtol=1e-6)


def test_merging_rounds_nothing():
    """A change smaller than the last bit of a bfloat16 is kept: who needs that dtype casts."""
    kernel = jnp.ones((2, 3), jnp.bfloat16)
    a, b = jnp.float32([[1.0], [2.0]]), jnp.float32([[1e-4, 2e-4, 3e-4]])
    merged = lora.merge(kernel, a, b, (("in", "out"), ("in", "r"), ("r", "out")), 2.0)
    assert merged.dtype == jnp.float32
    np.testing.assert_allclose(merged - 1, 2 * np.asarray(a) @ np.asarray(b), rtol=1e-3)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"rank": 0}, "rank: found 0, expected at least 1"),
        ({"alpha": 0.0}, "alpha: found 0.0, expected above 0"),
        ({"targets": ()}, "targets: found (), expected a pattern at least"),
        ({"targets": ("(",)}, "targets: '(' is not a regular expression"),
        ({"rnak": 4}, "rnak: unknown key; did you mean 'rank'?"),
    ],
)
def test_mistakes_in_the_config(section, message):
    with pytest.raises(UserError) as error:
        config_lib.build(lora.LoRAConfig, section, "--config.model.vlm.lora")
    assert str(error.value).startswith(f"--config.model.vlm.lora.{message}")
