"""Tests of what a fingerprint depends on, and that it needs no array whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synth2_jax import sharding
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig
from synth2_jax.sharding import MeshConfig
from synth2_jax.training import fingerprint as fingerprints
from synth2_jax.training.fingerprint import fingerprint, of_parameters, with_settings


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
    "part, settings, expected",
    [
        ("tokenizer", {}, "0a"),
        ("tokenizer", {"filters": 64, "dtype": "bfloat16"}, "0a"),
        ("tokenizer", {"code_choice": "dot_product"}, "0a+code_choice=dot_product"),
        ("tokenizer", {"pixel_range": (0.0, 1.0)}, "0a+pixel_range=(0.0,1.0)"),
        ("vlm", {"pixel_range": (0.0, 1.0)}, "0a"),
    ],
)
def test_a_tokenizers_fingerprint_has_what_changes_its_tokens(part, settings, expected):
    assert with_settings(part, "0a", VQTokenizerConfig(**settings)) == expected
    assert with_settings(part, "0a", None) == of_parameters(expected) == "0a"
