"""Tests of what a fingerprint depends on, and that it needs no array whole."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synth2_jax import fingerprint as fingerprints
from synth2_jax import sharding
from synth2_jax.fingerprint import fingerprint, older_forms, with_settings
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig
from synth2_jax.sharding import MeshConfig


def test_fingerprint_is_of_paths_dtypes_shapes_and_values_only():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = {"a": {"b": np.arange(6, dtype=np.float32)}, "c": np.zeros(2, np.float32)}
    same = {"c": jnp.zeros(2), "a": {"b": jnp.arange(6, dtype=jnp.float32)}}
    same["a"]["b"] = jax.device_put(same["a"]["b"], NamedSharding(mesh, PartitionSpec("fsdp")))
    assert fingerprint(params) == fingerprint(same) and len(fingerprint(params)) == 16
    values = params["a"]["b"]
    others = [values.reshape(2, 3), values.astype(np.int32), values + 1]
    trees = [{"a": {"b": other}, "c": params["c"]} for other in others]
    trees += [{"a": {"d": values}, "c": params["c"]}]
    assert len({fingerprint(tree) for tree in [params, *trees]}) == 5


@pytest.mark.parametrize("part_bytes", [1, 24, 25, 10_000])
def test_a_fingerprint_is_the_same_in_pieces(monkeypatch, part_bytes):
    """24 bytes are two rows; a host never holds a large array whole."""
    array = np.arange(21, dtype=np.float32).reshape(7, 3)
    tree = {"a": array, "scalar": np.float32(3), "none": np.zeros((0, 3), np.float32)}
    whole = fingerprint(tree)
    monkeypatch.setattr(fingerprints, "_PART_BYTES", part_bytes)
    assert fingerprint(tree) == whole == fingerprint(jax.tree.map(jnp.asarray, tree))
    sizes = [part.nbytes for part in fingerprints._parts(array)]
    assert sum(sizes) == array.nbytes and max(sizes) <= max(12, part_bytes)


@pytest.mark.parametrize(
    "part, settings, expected, older",
    [
        ("tokenizer", {}, "0a", "0a"),
        ("tokenizer", {"filters": 64, "dtype": "bfloat16"}, "0a", "0a"),
        ("tokenizer", {"code_choice": "dot_product"}, *["0a+code_choice=dot_product"] * 2),
        ("tokenizer", {"pixel_range": (0.0, 1.0)}, *["0a+pixel_range=(0.0,1.0)"] * 2),
        ("tokenizer", {"activation": "relu"}, "0a+activation=relu", "0a"),
        ("tokenizer", {"norm_groups": 8}, "0a+norm_groups=8", "0a"),
        ("tokenizer", {"l2_normalize_codes": True}, "0a+l2_normalize_codes=True", "0a"),
        (
            "tokenizer",
            {"pixel_range": (0.0, 1.0), "norm_groups": 8},
            "0a+pixel_range=(0.0,1.0)+norm_groups=8",
            "0a+pixel_range=(0.0,1.0)",
        ),
        ("vlm", {"pixel_range": (0.0, 1.0)}, "0a", "0a"),
    ],
)
def test_a_tokenizers_fingerprint_has_what_changes_its_tokens(part, settings, expected, older):
    assert with_settings(part, "0a", VQTokenizerConfig(**settings)) == expected
    assert older_forms(expected) == (older, "0a") and with_settings(part, "0a", None) == "0a"


@pytest.mark.slow
def test_tokens_of_the_same_parameters_differ_if_and_only_if_fingerprints_do():
    sizes = {"image_size": 8, "filters": 32, "channel_multipliers": (1,), "num_res_blocks": 1}
    plain = VQTokenizerConfig(**sizes, embedding_dim=4, codebook_size=64)
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
    init = jax.jit(VQTokenizer(plain).init, static_argnames="deterministic")
    variables = nn.unbox(init(jax.random.key(1), images, deterministic=True))
    spread = jnp.exp(jax.random.normal(jax.random.key(2), (64, 1)))  # codes of unequal lengths
    codebook = variables["params"]["quantizer"]["codebook"] * spread
    variables["params"]["quantizer"]["codebook"] = codebook

    def ids(config):
        return jax.jit(functools.partial(VQTokenizer(config).apply, method="encode"))(
            variables, images
        )

    settings = [
        {"code_choice": "dot_product"},
        {"pixel_range": (0.0, 1.0)},
        {"activation": "relu"},
        {"norm_groups": 2},
        {"l2_normalize_codes": True},
        {"dtype": "bfloat16"},
        {"usage_decay": 0.5, "reservoir_size": 8, "revive_share": 0.5},
    ]
    for setting in settings:
        other = dataclasses.replace(plain, **setting)
        same_tokens = np.array_equal(ids(plain), ids(other))
        assert same_tokens == (with_settings("tokenizer", "0a", other) == "0a"), setting
