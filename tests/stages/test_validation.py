"""What `train.eval_every` measures, and what of it is checked before training."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from synth2_jax import sharding
from synth2_jax.data import pipeline
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.evaluation.scorer import EvaluateConfig
from synth2_jax.evaluation.validation import ValidationConfig, Validator
from synth2_jax.stages import train
from synth2_jax.synthesis.stream import StreamConfig
from synth2_jax.testing.user_errors import raises_line, user_error
from synth2_jax.training.train_loop import TrainLoopConfig
from synth2_jax.training.train_state import TrainState
from synth2_jax.training.train_step import step_rngs


def config(**sections):
    data, loop = DataConfig(batch_size=2), TrainLoopConfig(steps=4, eval_every=2)
    given = {"data": data, "stream": None, "validation": ValidationConfig(data, 3), **sections}
    return types.SimpleNamespace(model_name="toy", train=loop, **given)


class RandomLoss:
    """Its loss is a random number of the mask's stream, for each of two rows."""

    task, batches, limits = types.SimpleNamespace(), "toy", {}

    def loss(self, params, batch, rngs, step, *, train):
        total = jnp.sum(jax.random.uniform(rngs["mask"], batch["x"].shape))
        return {"loss": (total, jnp.float32(batch["x"].size))}, {}

    def batch_spec(self, batch_size):
        return {"x": jax.ShapeDtypeStruct((batch_size,), np.int32)}


@pytest.fixture
def held_out(monkeypatch):
    """Three equal batches of two rows in the place of data; the list may be changed."""
    rows = {"x": np.zeros(2, np.int32), "valid": np.ones(2, bool)}
    batches = [rows, rows, rows]
    monkeypatch.setattr(pipeline, "eval_batches", lambda *_, **__: iter(map(dict, batches)))
    return batches


def validator(objective=None):
    cfg, mesh = config(), sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    settings = (cfg.data, {}, None, mesh, sharding.AXIS_RULES)
    return Validator(cfg.validation, objective or RandomLoss(), *settings)


def test_each_batch_has_a_mask_of_its_own_and_the_same_each_time(held_out):
    rng = jax.random.key_data(jax.random.key(7))
    state = TrainState(jnp.int32(2), {}, (), {}, rng)
    masks = [jax.random.uniform(step_rngs(rng, number)["mask"], (2,)) for number in range(3)]
    validate = validator()
    for _ in range(2):
        assert validate(state)["validation/loss"] == pytest.approx(np.mean(masks), rel=1e-6)
    assert len({float(mask[0]) for mask in masks}) == 3


def test_the_moving_average_is_what_is_measured(held_out):
    class Sum(RandomLoss):
        def loss(self, params, batch, rngs, step, *, train):
            return {"loss": (params["trained"] + params["frozen"], jnp.float32(1))}, {}

    rng = jax.random.key_data(jax.random.key(7))
    params = {"trained": jnp.float32(1), "frozen": jnp.float32(10)}
    for average, expected in (({}, 11), ({"trained": jnp.float32(3)}, 13)):
        state = TrainState(jnp.int32(2), params, (), {}, rng, average)
        assert validator(Sum())(state)["validation/loss"] == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"valid": np.array([True, False])}, "fewer examples than"),
        ({"x": np.zeros((2, 3), np.int32)}, r"\['x'\]: found .*\(2, 3\)"),
    ],
)
def test_held_out_data_that_does_not_fit_is_found_before_training(held_out, change, message):
    held_out[0] = {**held_out[0], **change}
    with user_error(f"--config.validation.data.*{message}"):
        validator()


@pytest.mark.parametrize(
    "sections, key",
    [
        ({"data": DataConfig(batch_size=6)}, "data.batch_size: found 6 rows"),
        (
            {"data": DataConfig(batch_size=8), "stream": StreamConfig("g", "c", share=0.25)},
            "stream.share: found 2 rows",
        ),
        (
            {"validation": ValidationConfig(DataConfig(batch_size=10))},
            "validation.data.batch_size: found 10 rows",
        ),
        (
            {"validation": ValidationConfig(captions=EvaluateConfig("f", batch_size=9))},
            "validation.captions.batch_size: found 9 rows",
        ),
    ],
)
def test_every_batch_must_split_over_the_mesh(sections, key):
    mesh = AbstractMesh((2, 2, 1), sharding.MESH_AXES)
    with raises_line(f"--config.{key}, which cannot be split over 4 devices"):
        train._check_rows(config(**{"data": DataConfig(batch_size=4), **sections}), mesh)
