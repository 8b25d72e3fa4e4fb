"""FLOPs of captions by formula against what XLA compiles, and what they grow with."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from synth2_jax import config as config_lib
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.planning import hlo, model_flops
from synth2_jax.sampling.captions import make_caption
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.stages import train

ROWS, LENGTH = 8, 24
PROMPT = [3, 4]


def vlm_config(scan_layers: bool = False) -> VLMConfig:
    config = config_lib.load_config("configs/scenes/vlm.py:tiny")
    config_lib.override(config, "model.vlm.language_model.scan_layers", str(scan_layers))
    config_lib.override(config, "model.vlm.resampler.scan_layers", str(scan_layers))
    config_lib.override(config, "model.vlm.cross_attention_every", "2")
    return train.build(config)[1].task.vlm


def to_the_end(text: str, rounds: int) -> str:
    """A program whose one loop of unknown length has `rounds`: it may end as soon as all have."""
    unknown = re.compile(r"^(?!.*known_trip_count)(.* while\(.*)$", re.MULTILINE)
    (loop,) = unknown.findall(text)
    return text.replace(loop, f'{loop}, {{"known_trip_count":{{"n":"{rounds}"}}')


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_captions_are_what_is_compiled(method, scan_layers):
    config = vlm_config(scan_layers)
    decode = TextDecodeConfig(method=method, max_length=LENGTH, num_beams=3)
    model = VLM(config)
    images = jax.ShapeDtypeStruct(
        (ROWS, config.num_image_tokens, config.image_embedding_dim), jnp.float32
    )
    text = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(
        lambda key, images: nn.unbox(model.init(key, images, text, deterministic=True)["params"]),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32),
    )
    compiled = jax.jit(make_caption(model, PROMPT, decode)).lower(params, images).compile()
    found = hlo.cost(to_the_end(compiled.as_text(), LENGTH - 1))
    expected = model_flops.caption(config, ROWS, len(PROMPT), decode)
    assert found.unknown_loops == 0 and expected.backward == 0
    assert found.flops == pytest.approx(expected.total, rel=0.02)


def test_captions_cost_by_their_rows_beams_and_length():
    config = vlm_config()
    lm = config.language_model

    def flops(rows, length, method="greedy", beams=3):
        decode = TextDecodeConfig(method=method, max_length=length, num_beams=beams)
        return model_flops.caption(config, rows, 2, decode).total

    assert flops(2, LENGTH) == 2 * flops(1, LENGTH)
    assert flops(1, LENGTH, "beam", 1) == flops(1, LENGTH)
    # The first token comes from the prompt, which no beam has to itself.
    assert flops(1, 1, "beam") == flops(1, 1)
    assert flops(1, 2, "beam") - flops(1, 2) > flops(1, 2) - flops(1, 1)
    # A longer cache makes all tokens dearer: second differences are those of 4 S D a layer and key.
    second = flops(1, 5) - 2 * flops(1, 4) + flops(1, 3)
    assert second == 2 * 4 * lm.num_heads * lm.head_dim * lm.num_layers
