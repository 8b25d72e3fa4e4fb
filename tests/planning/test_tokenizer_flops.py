"""FLOPs of a tokenizer by formula against what XLA compiles for it, and literal small cases."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs.imagenet import models as imagenet
from configs.paper import models as paper
from configs.scenes import models as scenes
from synth2_jax import config as config_lib
from synth2_jax.config import load_config
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig
from synth2_jax.planning import hlo, model_flops
from synth2_jax.sampling.pixels import make_decode, make_encode
from synth2_jax.stages import train
from synth2_jax.testing.toy_objective import one_device_mesh
from synth2_jax.training import train_state
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import make_optimizer
from synth2_jax.training.train_step import compile_train_step

ROWS = 2
# The public layouts, with few channels over 64 pixels.
SMALL = {
    **{"image_size": 64, "filters": 16, "norm_groups": 8, "embedding_dim": 24},
    **{"codebook_size": 300, "dtype": "float32"},
}


def section(known: dict, **changes) -> VQTokenizerConfig:
    return config_lib.build(VQTokenizerConfig, {**known, **changes}, "tokenizer")


CONFIGS = {
    "scenes": section(scenes.tokenizer()),
    "3x3 on patches": section(scenes.tokenizer(), patch_size=4, kernel_size=3, filters=32),
    "patches and a level": section(
        scenes.tokenizer(), patch_size=4, filters=32, channel_multipliers=(1, 2)
    ),
    "paper": section(paper.tokenizer(), **SMALL),
    "no residual blocks": section(paper.tokenizer(), **SMALL, num_res_blocks=0),
    "shortcut from the input": section(paper.tokenizer(), **SMALL, shortcut_from_input=True),
    "4x4 of stride 2": section(paper.tokenizer(), **SMALL, downsampling="conv"),
    "taming": section(imagenet.taming(), **SMALL, latent_channels=40),
    "attention at two levels": section(imagenet.taming(), **SMALL, attention_levels=(3, 4)),
    "amused": section(imagenet.amused(), **{**SMALL, "filters": 8}),
}


def compiled_flops(make, config, argument) -> float:
    init = functools.partial(VQTokenizer(config).init, deterministic=True)
    image = jnp.zeros((1, config.image_size, config.image_size, 3))
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0), image))["params"]
    found = hlo.cost(jax.jit(make(config)).lower(params, argument).compile().as_text())
    assert found.unknown_loops == 0
    return found.flops


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_and_decoding_are_what_is_compiled(name):
    config = CONFIGS[name]
    images = jax.ShapeDtypeStruct((ROWS, config.image_size, config.image_size, 3), jnp.uint8)
    found = compiled_flops(make_encode, config, images)
    assert found == pytest.approx(model_flops.encode_images(config, ROWS).total)
    ids = jax.ShapeDtypeStruct((ROWS, config.num_tokens), jnp.int32)
    found = compiled_flops(make_decode, config, ids)
    assert found == pytest.approx(model_flops.decode_images(config, ROWS).total)


@pytest.mark.slow
def test_a_training_step_in_pixel_space_is_what_is_compiled():
    config = load_config("configs/scenes/vlm.py:tiny")
    config_lib.override(config, "model.image_space", "pixel")
    cfg, objective = train.build(config)
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    layout = train_state.state_layout(objective, tx, one_device_mesh())
    step = compile_train_step(objective, tx, layout, one_device_mesh())
    found = hlo.cost(step.lower(layout, objective.batch_spec(ROWS)).compile().as_text())
    expected = model_flops.train_step(objective.task, ROWS).total
    assert found.flops == pytest.approx(expected, rel=0.02)


def test_pixel_space_costs_a_forward_pass_of_the_tokenizer():
    cfg, _ = train.build(load_config("configs/scenes/vlm.py:tiny"))
    embedding, pixel = (
        model_flops.train_step(make_objective("vlm", {**cfg.model, "image_space": space}).task, 3)
        for space in ("embedding", "pixel")
    )
    tokenizer = section(scenes.tokenizer())
    both = model_flops.decode_images(tokenizer, 3) + model_flops.encode_images(tokenizer, 3)
    assert pixel.forward == pytest.approx(embedding.forward + both.forward)
    assert pixel.backward == embedding.backward and both.backward == 0


# A tokenizer of one level with one residual block there and one in the middle.
ONE_LEVEL = {
    **{"filters": 8, "channel_multipliers": (1,), "num_res_blocks": 1},
    **{"embedding_dim": 4, "codebook_size": 16, "norm_groups": 1},
}


def test_patches_and_1x1_convolutions_by_hand():
    """4 pixels in 2x2 patches of 12 values, 8 channels, codes of 4 values."""
    config = section(ONE_LEVEL, image_size=4, patch_size=2, kernel_size=1)
    blocks = 2 * (8 * 8 + 8 * 8)
    encode = 4 * (12 * 8 + blocks + 8 * 4 + 4 * 16)
    decode = 4 * (4 * 8 + blocks + 8 * 12)
    assert model_flops.encode_images(config, 5).total == 5 * 2 * encode
    assert model_flops.decode_images(config, 5).total == 5 * 2 * decode


def test_what_falls_on_the_padding_is_no_work():
    """Of a 3x3 kernel at each of 2x2 cells, all four values around it are met and no more."""
    config = section(ONE_LEVEL, image_size=2, filters=2)
    convolutions = 4 * 4 * (3 * 2 + 4 * 2 * 2)
    assert model_flops.encode_images(config, 1).total == 2 * (convolutions + 4 * (2 * 4 + 4 * 16))


def test_attention_by_hand():
    config = section(ONE_LEVEL, image_size=2)
    plain, middle, level = (
        model_flops.encode_images(dataclasses.replace(config, **changes), 1).total
        for changes in ({}, {"middle_attention": True}, {"attention_levels": (0,)})
    )
    projections, products = 2 * 4 * 4 * 8 * 8, 2 * 2 * 4 * 4 * 8
    assert middle - plain == level - plain == projections + products
