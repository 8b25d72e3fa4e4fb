"""What holds for the parameters and the outputs of every model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.layers.stack import unstack_layers
from synth2_jax.models.class_conditional_maskgit import (
    ClassConditionalMaskGIT,
    ClassConditionalMaskGITConfig,
)
from synth2_jax.models.discriminator import Discriminator, DiscriminatorConfig
from synth2_jax.models.language_model import LanguageModel, LanguageModelConfig
from synth2_jax.models.maskgit import Generator, GeneratorConfig, MaskGITConfig
from synth2_jax.models.resampler import Resampler, ResamplerConfig
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from synth2_jax.models.vgg import VGG, VGGConfig
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig, initial_model_state
from synth2_jax.sharding import AXIS_RULES

SIZES = dict(num_layers=2, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16)
TEXT = jax.random.randint(jax.random.key(0), (2, 5), 1, 11)
MASK = TEXT > 2
IDS = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
EMBEDDINGS = jax.random.normal(jax.random.key(2), (2, 6, 5))
CODES = jax.random.normal(jax.random.key(3), (10, 3))
IMAGES = jax.random.uniform(jax.random.key(4), (2, 16, 16, 3), minval=-1.0)
CAPTIONS = (IDS, TEXT, MASK, jnp.array([True, False]), CODES)


TEXT_ENCODER = TextEncoderConfig(vocab_size=11, **SIZES)
MASKGIT = MaskGITConfig(codebook_size=10, num_tokens=6, **SIZES)
LANGUAGE_MODEL = LanguageModelConfig(vocab_size=11, **SIZES)
RESAMPLER = ResamplerConfig(num_latents=3, **SIZES)
CLASS_CONDITIONAL = ClassConditionalMaskGITConfig(
    **dict(codebook_size=10, num_classes=3, num_tokens=6),
    **dict(num_layers=2, embed_dim=8, num_heads=2, mlp_dim=16),
)
LEVELS = dict(image_size=16, channel_multipliers=(1, 2), filters=16)
TOKENIZER = VQTokenizerConfig(**LEVELS, norm_groups=4)


def changed(config, **changes):
    """The config with these fields changed, also in its sections."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own = {name: value for name, value in changes.items() if name in fields}
    sections = {k: changed(x, **changes) for k, x in fields.items() if dataclasses.is_dataclass(x)}
    return dataclasses.replace(config, **own, **sections)


def generator(**changes):
    return Generator, GeneratorConfig(TEXT_ENCODER, changed(MASKGIT, **changes)), CAPTIONS


TRANSFORMERS = {
    "text encoder": (TextEncoder, TEXT_ENCODER, (TEXT, MASK)),
    "a bias a layer": (TextEncoder, changed(TEXT_ENCODER, relpos_per_layer=True), (TEXT, MASK)),
    "generator": generator(),
    "generator, untied": generator(tied_head=False, qk_norm=True),
    "generator of codes": generator(token_embedding="codebook"),
    "language model": (LanguageModel, LANGUAGE_MODEL, (TEXT,)),
    "untied": (LanguageModel, changed(LANGUAGE_MODEL, tie_embeddings=False), (TEXT,)),
    "resampler": (Resampler, RESAMPLER, (EMBEDDINGS,)),
    "vlm": (VLM, VLMConfig(LANGUAGE_MODEL, RESAMPLER, 5, 6, 2), (EMBEDDINGS, TEXT)),
}
LAYERED = TRANSFORMERS | {
    "class-conditional": (ClassConditionalMaskGIT, CLASS_CONDITIONAL, (IDS, jnp.array([2, 0])))
}
TAMING = dict(latent_channels=5, attention_levels=(1,), middle_attention=True, use_bias=True)
NETWORKS = {
    "tokenizer": (VQTokenizer, TOKENIZER, (IMAGES,)),
    "convolutions": (VQTokenizer, changed(TOKENIZER, downsampling="conv"), (IMAGES,)),
    "taming": (VQTokenizer, changed(TOKENIZER, **TAMING), (IMAGES,)),
    "discriminator": (Discriminator, DiscriminatorConfig(**LEVELS), (IMAGES,)),
    "VGG": (VGG, VGGConfig(), (IMAGES,)),
}
VARIANTS = ("generator, untied", "generator of codes")  # that take long
every_transformer = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in VARIANTS else []) for n in TRANSFORMERS],
)


def make(name, **changes):
    """(model, inputs, options); what has no dropout takes no `deterministic`."""
    model, config, inputs = (LAYERED | NETWORKS)[name]
    plain = model in (ClassConditionalMaskGIT, Discriminator, VGG)
    return model(changed(config, **changes)), inputs, {} if plain else {"deterministic": True}


@functools.cache
def params_of(name, random_params):
    model, inputs, options = make(name)
    return random_params(model, *inputs, **options)


def shapes_of(name, **changes):
    model, inputs, options = make(name, **changes)
    init = functools.partial(model.init, **options)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def run(name, params, changes, **more):
    model, inputs, options = make(name, **changes)
    apply = functools.partial(model.apply, **{**options, **more})
    return np.asarray(jax.jit(apply)({"params": params}, *inputs), np.float32)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", [*LAYERED, *NETWORKS])
def test_every_parameter_is_float32_with_names_of_its_rank(name, scan_layers):
    variables = {"params": shapes_of(name, scan_layers=scan_layers)}
    model, config, _ = (LAYERED | NETWORKS)[name]
    if model is VQTokenizer:
        variables |= jax.eval_shape(lambda: initial_model_state(config))
        assert set(variables) == {"params", "codebook_stats"}
    boxes = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned) and box.value.dtype == jnp.float32
        assert len(box.names) == box.value.ndim
        names = [axis for axis in box.names if axis]
        assert set(names) <= dict(AXIS_RULES).keys()
        # A name twice in one parameter cannot be mapped to a mesh, and only convolutions' windows,
        # and the rows of a tokenizer's reservoir, go without.
        assert len(set(names)) == len(names)
        assert None not in box.names or model is VQTokenizer or box.value.ndim == 4
    assert any("layers" in box.names for box in boxes) == (name in LAYERED and scan_layers)


def unstacked(params):
    """The parameters as a model without scan_layers has them."""
    if "layers" in params:
        return unstack_layers(params, len(jax.tree.leaves(params["layers"])[0]))
    return {k: unstacked(x) if isinstance(x, dict) else x for k, x in params.items()}


@pytest.mark.parametrize("name", LAYERED)
def test_scan_equals_loop(name, random_params):
    params = params_of(name, random_params)
    shapes = nn.unbox(shapes_of(name, scan_layers=False))
    assert jax.tree.map(jnp.shape, unstacked(params)) == jax.tree.map(jnp.shape, shapes)
    found = run(name, unstacked(params), {"scan_layers": False})
    np.testing.assert_allclose(found, run(name, params, {}), rtol=1e-5, atol=1e-4)


@every_transformer
def test_dropout_acts_in_training_only_and_bfloat16_is_near_float32(name, random_params):
    params, drops = params_of(name, random_params), {"dropout_rate": 0.3}
    plain = run(name, params, {})
    np.testing.assert_array_equal(run(name, params, drops), plain)
    noisy = [
        run(name, params, drops, deterministic=False, rngs={"dropout": jax.random.key(seed)})
        for seed in range(2)
    ]
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-2
    half = run(name, params, {"dtype": "bfloat16"})
    assert 0 < np.abs(half - plain).max() < 0.05 * np.abs(plain).max()


@every_transformer
def test_remat_reaches_the_layers(name, random_params):
    """Its values are tested with the stack."""

    def program(remat):
        model, inputs, options = make(name, remat=remat)
        apply = functools.partial(model.apply, **options)
        return str(jax.make_jaxpr(apply)({"params": params_of(name, random_params)}, *inputs))

    assert "nothing_saveable" in program("full") and "nothing_saveable" not in program("none")
