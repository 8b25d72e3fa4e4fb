import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.layers.embeddings import relative_position_bucket
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig, parameter_shapes

CONFIG = TextEncoderConfig(
    vocab_size=11, num_layers=2, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12,
    relpos_buckets=8, relpos_max_distance=16,
)  # fmt: skip
TOKENS = jnp.asarray([[4, 7, 3, 9, 1], [5, 6, 1, 0, 0]])
MASK = TOKENS != 0


def init(config):
    create = functools.partial(TextEncoder(config).init, deterministic=True)
    params = nn.unbox(jax.jit(create)(jax.random.key(0), TOKENS, MASK))["params"]
    # Norm scales of 1 would hide a norm in the wrong place.
    return jax.tree.map(lambda x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape), params)


PARAMS = init(CONFIG)


@functools.partial(jax.jit, static_argnames="config")
def apply(params, tokens=TOKENS, mask=MASK, config=CONFIG):
    return TextEncoder(config).apply({"params": params}, tokens, mask, deterministic=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp_activation": "gated_silu"},
        {"mlp_activation": "relu"},
        {"relpos_per_layer": True},
        {"relpos_buckets": 4, "relpos_max_distance": 2},
    ],
    ids=str,
)
def test_equals_t5_written_in_numpy(changes):
    """T5 as in its papers and t5x, one row, plain numpy."""
    config = dataclasses.replace(CONFIG, **changes)
    params = init(config)
    p = jax.tree.map(np.asarray, params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    activation = {
        "gated_gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "gated_silu": lambda x: x / (1 + np.exp(-x)),
        "relu": lambda x: np.maximum(x, 0),
    }[config.mlp_activation]

    tokens = np.asarray(TOKENS[0])
    distance = np.arange(5)[None, :] - np.arange(5)[:, None]
    bucket = relative_position_bucket(
        distance, config.relpos_buckets, config.relpos_max_distance, True
    )
    x = p["token_embedding"]["embedding"][tokens]
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["encoder"]["layers"])
        bias = (layer if config.relpos_per_layer else p)["relpos_bias"]["embedding"][:, bucket]
        h = norm(x, layer["attention_norm"]["scale"])
        q, k, v = (
            np.einsum("td,dhk->htk", h, layer["attention"][n]["kernel"])
            for n in ("query", "key", "value")
        )
        logits = q @ k.transpose(0, 2, 1) + bias  # not divided by sqrt(head_dim)
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        x = x + np.einsum("htk,hkd->td", probs @ v, layer["attention"]["out"]["kernel"])
        h = norm(x, layer["mlp_norm"]["scale"])
        mlp = {n: layer["mlp"][n]["kernel"] for n in layer["mlp"]}
        if config.gated_mlp:
            hidden = activation(h @ mlp["gate"]) * (h @ mlp["up"])
        else:
            hidden = activation(h @ mlp["up"])
        x = x + hidden @ mlp["down"]
    expected = norm(x, p["final_norm"]["scale"])
    np.testing.assert_allclose(apply(params, config=config)[0], expected, rtol=2e-4, atol=2e-5)


def test_padding_changes_nothing():
    short = apply(PARAMS, TOKENS[1:, :3], MASK[1:, :3])
    np.testing.assert_allclose(apply(PARAMS)[1:, :3], short, atol=1e-5)
    other = apply(PARAMS, TOKENS.at[1, 3:].set(8))
    np.testing.assert_allclose(other[1, :3], short[0], atol=1e-5)


@pytest.mark.parametrize("mlp_activation", ["gated_gelu", "relu"])
def test_shapes_are_those_of_its_parameters(mlp_activation):
    config = dataclasses.replace(CONFIG, mlp_activation=mlp_activation)
    shapes = {
        "/".join(key.key for key in path): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(init(config))
    }
    found = parameter_shapes(config)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == shapes
    assert ("encoder/layers/mlp/gate/kernel" in found) == config.gated_mlp
