"""Tests of the state's creation, its frozen part and pretrained parameters."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from synth2_jax import sharding
from synth2_jax.errors import UserError
from synth2_jax.testing.toy_objective import ToyObjective, toy_state
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer


def test_the_layout_is_that_of_the_created_state():
    layout, state = toy_state()
    as_layout = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    assert as_layout == layout
    assert layout.params["encoder"]["kernel"].sharding.spec == jax.P("fsdp", "tensor")
    assert int(state.step) == 0 and state.rng.dtype == jnp.uint32


def test_parameters_are_those_of_a_plain_init_and_depend_on_the_seed():
    (_, state), (_, other) = toy_state(seed=3), toy_state(seed=4)
    init_key, _ = jax.random.split(jax.random.key(3))
    expected = nn.unbox(ToyObjective().init(init_key))
    jax.tree.map(np.testing.assert_array_equal, state.params, expected["params"])
    jax.tree.map(np.testing.assert_array_equal, state.model_state["usage"], expected["usage"])
    assert not np.array_equal(other.params["head"]["kernel"], state.params["head"]["kernel"])
    assert not np.array_equal(other.rng, state.rng)


def test_frozen_parameters_have_no_optimizer_state():
    layout, state = toy_state(ToyObjective(frozen=["^encoder/"]))
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state)]
    assert any("head/kernel" in path for path in moments)
    assert not any("encoder" in path for path in moments)
    assert "encoder" in layout.params


def test_split_and_join_are_inverse_and_a_pattern_must_match_and_leave_something():
    params = {"a": {"b": 1, "c": 2}, "d": 3}
    trainable, frozen = train_state.split_params(params, ["^a/b$"])
    assert trainable == {"a/c": 2, "d": 3} and frozen == {"a/b": 1}
    assert train_state.join_params(trainable, frozen) == params
    with pytest.raises(UserError, match=r"freeze: '\^langage' matches no parameter, such as \['a'"):
        train_state.split_params({"a": 1}, ["^langage"])
    with pytest.raises(UserError, match="leave none of 1 parameters to train"):
        train_state.split_params({"a": 1}, ["a"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pretrained_parameters_replace_their_part_and_take_its_dtype(dtype):
    """They are copied, though JAX could share their aligned memory: who gave them may change it."""
    expected = np.arange(128, dtype=dtype).reshape(8, 16)
    memory = np.zeros(expected.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    kernel = memory[start : start + expected.nbytes].view(dtype).reshape(8, 16)
    kernel[:] = expected
    layout, state = toy_state(initial_params={"encoder": {"kernel": kernel}})
    kernel[:] = 0
    found = state.params["encoder"]["kernel"]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.float32
    assert found.sharding == layout.params["encoder"]["kernel"].sharding
    jax.tree.map(np.testing.assert_array_equal, state.params["head"], toy_state()[1].params["head"])


def test_without_a_mesh_parameters_are_numpy_in_the_models_dtypes():
    layout = train_state.params_layout(ToyObjective(), None)
    given = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float16), layout)
    found = jax.tree.map(train_state.place, given, layout)
    assert {(type(leaf), leaf.dtype.name) for leaf in jax.tree.leaves(found)} == {
        (np.ndarray, "float32")
    }


PLACE_LAZILY = """
import collections
import jax
import numpy as np
from synth2_jax import sharding
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.sharding import MeshConfig
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer

kernel, reads = np.arange(128.0).reshape(8, 16), collections.Counter()

def read(box):
    reads[tuple((part.start, part.stop) for part in box)] += 1
    return kernel[box]

mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2))
tx = make_optimizer(OptimizerConfig())
layout = train_state.state_layout(ToyObjective(), tx, mesh)
lazy = {"encoder": {"kernel": LazyArray(kernel.shape, kernel.dtype, read)}}
state = train_state.create_train_state(ToyObjective(), tx, layout, 0, lazy)
np.testing.assert_array_equal(state.params["encoder"]["kernel"], kernel)
assert state.params["encoder"]["kernel"].dtype == np.float32
assert reads == {((0, 4), (0, 16)): 1, ((4, 8), (0, 16)): 1}, reads
"""


def test_a_part_that_several_devices_hold_is_read_once():
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", PLACE_LAZILY], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_empty_prefix_replaces_everything():
    _, source = toy_state(seed=1)
    _, state = toy_state(seed=2, initial_params={"": source.params})
    jax.tree.map(np.testing.assert_array_equal, state.params, source.params)


@pytest.mark.parametrize(
    ("initial_params", "message"),
    [
        ({"encodr": {}}, "initial_params['encodr']: the model has no such part; did you mean"),
        ({"head": {"bias": np.zeros(4)}}, "found no 'head/kernel', expected shape (16, 4)"),
        (
            {"encoder": {"kernel": np.zeros((8, 16)), "bais": np.zeros(1)}},
            "the model has no 'encoder/bais'; did you mean 'encoder/kernel'?",
        ),
        (
            {"encoder": {"kernel": np.zeros((16, 8))}},
            "'encoder/kernel' has shape (16, 8), expected (8, 16)",
        ),
    ],
)
def test_pretrained_parameters_that_do_not_fit_are_an_error_of_one_line(initial_params, message):
    with pytest.raises(UserError) as error:
        toy_state(initial_params=initial_params)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("for_training", [True, False])
def test_a_mesh_that_splits_too_little_is_refused(for_training):
    """Three do not divide the 16 hidden features, nor the 4 outputs."""
    mesh, toy = AbstractMesh((1, 1, 3), sharding.MESH_AXES), ToyObjective()
    with pytest.raises(UserError, match=r"\A--config.mesh: tensor=3 does not divide mlp=16.*100%"):
        if for_training:
            train_state.state_layout(toy, make_optimizer(OptimizerConfig()), mesh)
        else:
            train_state.params_layout(toy, mesh)


def test_a_parameter_without_names_is_an_error():
    class Unnamed(ToyObjective):
        def init(self, key):
            return nn.unbox(super().init(key))

    with pytest.raises(ValueError, match="encoder/kernel has no logical axis names"):
        toy_state(Unnamed())
