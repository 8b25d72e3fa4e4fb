"""The benchmark of captions: what it counts, on a tiny VLM."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from synth2_jax import config as config_lib
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.planning import model_flops
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.training.train_state import flatten

ROOT = pathlib.Path(__file__).resolve().parent.parent
DECODE = TextDecodeConfig(method="greedy", max_length=5)


@pytest.fixture(scope="module")
def captioning():
    spec = importlib.util.spec_from_file_location(
        "benchmarks_captioning", ROOT / "benchmarks" / "captioning.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config():
    sizes = {"num_layers": 2, "embed_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 16}
    return config_lib.build(
        VLMConfig,
        {
            "language_model": {**sizes, "vocab_size": 16, "scan_layers": False},
            "resampler": {**sizes, "num_layers": 1, "num_latents": 3, "scan_layers": False},
            "image_embedding_dim": 4,
            "num_image_tokens": 6,
            "cross_attention_every": 2,
        },
    )


def check(captioning, config, decode, batch_sizes):
    rows = captioning.measure(config, batch_sizes, decode, repeats=1)
    assert [row["batch_size"] for row in rows] == batch_sizes
    for row in rows:
        assert row["tokens"] == row["batch_size"] * decode.max_length
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(row["tokens"])
        flops = model_flops.caption(config, row["batch_size"], len(captioning.PROMPT), decode)
        assert row["flops"] == flops.total


@pytest.mark.slow
def test_every_caption_has_its_full_length(captioning, config):
    check(captioning, config, DECODE, [3])


@pytest.mark.slow
def test_so_has_the_best_of_a_beam_search(captioning, config):
    check(captioning, config, dataclasses.replace(DECODE, method="beam"), [1, 3])


def test_bytes_are_the_weights_and_the_cache(captioning, config):
    inputs = jnp.zeros((1, 6, 4)), jnp.zeros((1, 2), jnp.int32)
    params = jax.eval_shape(
        lambda key: VLM(config).init(key, *inputs, deterministic=True)["params"], jax.random.key(0)
    )
    params = jax.tree.map(lambda box: box.value, params, is_leaf=lambda x: hasattr(x, "value"))

    def numbers(rows, length):
        decode = TextDecodeConfig(method="greedy", max_length=length)
        return captioning.least_bytes(params, config, rows, decode) // 4

    every = sum(leaf.size for leaf in flatten(params).values())
    # The first token comes with the prompt, which reads nothing that is kept.
    assert numbers(1, 1) == numbers(9, 1) == every
    once = flatten(params["resampler"]).values()
    keys_values = 2 * 8 * 8  # of one block
    again = every - sum(leaf.size for leaf in once) - keys_values
    # Keys and values: 3 latents in one block; start token, prompt and token itself in two layers.
    assert numbers(1, 2) == every + again + 2 * 8 * (3 + 2 * 4)
    assert numbers(2, 3) == every + 2 * again + 2 * 2 * 8 * (2 * 3 + 2 * (4 + 5))
    bfloat16 = dataclasses.replace(
        config, language_model=dataclasses.replace(config.language_model, dtype="bfloat16")
    )
    assert captioning.least_bytes(params, bfloat16, 1, DECODE) == 2 * numbers(1, 5)
