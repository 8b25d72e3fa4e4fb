"""MaskGIT's class-conditional transformer; tests/interop/test_maskgit_weights.py has its parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.models.class_conditional_maskgit import (
    ClassConditionalMaskGIT,
    ClassConditionalMaskGITConfig,
    parameter_shapes,
)
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, parallel_decode, row_keys

SIZES = dict(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24)
CONFIG = ClassConditionalMaskGITConfig(codebook_size=20, num_classes=3, num_tokens=9, **SIZES)
CLASSES = jnp.array([2, 0])
IDS = jnp.array([[5, 23, 7, 23, 0, 19, 23, 2, 3], [23, 23, 1, 4, 4, 23, 23, 9, 11]])


@pytest.fixture(scope="module")
def params(random_params):
    """Large ones: the class must make a difference."""
    params, rng = (
        random_params(ClassConditionalMaskGIT(CONFIG), IDS, CLASSES),
        np.random.default_rng(0),
    )
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "float32"), params)


def logits(params, ids=IDS, classes=CLASSES):
    model = ClassConditionalMaskGIT(CONFIG)
    return np.asarray(jax.jit(model.apply)({"params": params}, ids, classes))


def test_the_defaults_are_the_released_sizes():
    config = ClassConditionalMaskGITConfig()
    shapes = parameter_shapes(config)
    assert config.mask_id == 2024
    assert shapes["token_embedding/embedding"].shape == (2025, 768)
    assert shapes["positions/embedding"].shape == (257, 768)
    assert shapes["decoder/layers/attention/query/kernel"].shape == (24, 768, 16, 48)
    assert shapes["decoder/layers/mlp/up/kernel"].shape == (24, 768, 3072)


def test_logits_depend_on_the_class_and_on_every_token(params):
    plain = logits(params)
    assert plain.shape == (2, 9, 20) and plain.dtype == np.float32  # of the codes alone
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
    model = ClassConditionalMaskGIT(CONFIG)
    image = {"num_tokens": CONFIG.num_tokens, "mask_id": CONFIG.mask_id}

    @jax.jit
    def sample(keys_B, class_B):
        def logits_fn(ids_BN, step):
            return model.apply({"params": params}, ids_BN, class_B)

        config = ParallelDecodeConfig(num_steps=4)
        return parallel_decode(logits_fn, keys_B, **image, config=config)

    ids = np.asarray(sample(row_keys(jax.random.key(0), 4), jnp.array([0, 1, 2, 0])))
    assert ids.shape == (4, 9)
    assert ids.min() >= 0 and ids.max() < CONFIG.codebook_size
