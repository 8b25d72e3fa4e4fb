"""MaskGIT's class-conditional transformer; tests/interop/test_maskgit_weights.py has its parity."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.layers.stack import unstack_layers
from synth2_jax.models.class_conditional_maskgit import (
    ClassConditionalMaskGIT,
    ClassConditionalMaskGITConfig,
    parameter_shapes,
)
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, parallel_decode, row_keys
from synth2_jax.sharding import AXIS_RULES

CONFIG = ClassConditionalMaskGITConfig(
    codebook_size=20,
    num_classes=3,
    num_tokens=9,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    mlp_dim=24,
)
CLASSES = jnp.array([2, 0])
IDS = jnp.array([[5, 23, 7, 23, 0, 19, 23, 2, 3], [23, 23, 1, 4, 4, 23, 23, 9, 11]])


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    model = ClassConditionalMaskGIT(CONFIG)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), IDS, CLASSES))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "float32"), shapes)


def logits(params, ids=IDS, classes=CLASSES, config=CONFIG):
    model = ClassConditionalMaskGIT(config)
    return np.asarray(jax.jit(model.apply)({"params": params}, ids, classes))


def test_the_defaults_are_the_released_sizes():
    config = ClassConditionalMaskGITConfig()
    shapes = parameter_shapes(config)
    assert config.mask_id == 2024
    assert shapes["token_embedding/embedding"].shape == (2025, 768)
    assert shapes["positions/embedding"].shape == (257, 768)
    assert shapes["decoder/layers/attention/query/kernel"].shape == (24, 768, 16, 48)
    assert shapes["decoder/layers/mlp/up/kernel"].shape == (24, 768, 3072)


def test_every_parameter_has_logical_names_of_its_rank():
    model = ClassConditionalMaskGIT(CONFIG)
    boxed = jax.eval_shape(model.init, jax.random.key(0), IDS, CLASSES)["params"]
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= dict(AXIS_RULES).keys()


def test_logits_are_of_the_codes_alone(params):
    found = logits(params)
    assert found.shape == (2, 9, 20) and found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_loop_over_layers_equals_the_scan(params):
    looped = dataclasses.replace(CONFIG, scan_layers=False)
    unstacked = {**params, "decoder": unstack_layers(params["decoder"], CONFIG.num_layers)}
    np.testing.assert_allclose(logits(unstacked, config=looped), logits(params), atol=1e-4)


def test_logits_depend_on_the_class_and_on_every_token(params):
    plain = logits(params)
    other_class = logits(params, classes=jnp.array([1, 0]))
    assert np.abs(other_class - plain)[0].max() > 1e-2
    np.testing.assert_allclose(other_class[1], plain[1], atol=1e-4)
    other_token = logits(params, ids=IDS.at[1, 8].set(12))
    assert np.abs(other_token - plain)[1].max(axis=-1).min() > 1e-4
    np.testing.assert_allclose(other_token[0], plain[0], atol=1e-4)


def test_classes_and_the_mask_are_rows_behind_the_codes(params):
    rows = params["token_embedding"]["embedding"]
    plain = logits(params)
    of_rows = {20: [False, True], 21: [False, False], 22: [True, False], 23: [True, True]}
    for row, seen_by in of_rows.items():
        moved = {**params, "token_embedding": {"embedding": rows.at[row].multiply(-1.0)}}
        changed = np.abs(logits(moved) - plain).max(axis=(1, 2)) > 1e-4
        assert changed.tolist() == seen_by, row


def test_it_can_be_sampled_from(params):
    config = ParallelDecodeConfig(num_steps=4)
    model = ClassConditionalMaskGIT(CONFIG)

    @jax.jit
    def sample(keys_B, class_B):
        return parallel_decode(
            lambda ids_BN, step: model.apply({"params": params}, ids_BN, class_B),
            keys_B,
            num_tokens=CONFIG.num_tokens,
            mask_id=CONFIG.mask_id,
            config=config,
        )

    ids = np.asarray(sample(row_keys(jax.random.key(0), 4), jnp.array([0, 1, 2, 0])))
    assert ids.shape == (4, 9)
    assert ids.min() >= 0 and ids.max() < CONFIG.codebook_size


@pytest.mark.parametrize(
    "change, text",
    [
        ({"num_layers": 0}, "num_layers: found 0, expected at least 1"),
        ({"num_heads": 3}, "num_heads: found 3, expected a divisor of `embed_dim`, 16"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_bad_configs_are_user_errors(change, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(CONFIG, **change)
