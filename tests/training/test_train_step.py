"""Tests of one update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.testing.toy_objective import ToyObjective, one_device_mesh
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import Optimizer
from synth2_jax.training.train_step import (
    RNG_STREAMS,
    _split_rows,
    check_batch,
    make_train_step,
    step_rngs,
)


def one_step(toy, rows=3, microbatches=1):
    """(state before, batch, state after, metrics) of gradient descent at a rate of 0.5."""
    tx = Optimizer(*optax.sgd(0.5), learning_rate=lambda step: jnp.float32(0.5))
    layout = train_state.state_layout(toy, tx, one_device_mesh())
    before = train_state.create_train_state(toy, tx, layout, seed=0)
    batch = next(FakeBatches(toy.batch_spec(rows)))
    after, metrics = jax.jit(make_train_step(toy, tx, microbatches))(before, batch)
    return before, batch, after, metrics


def test_an_update_is_sgd_on_sum_over_count():
    before, batch, after, metrics = one_step(ToyObjective(noise=0.0))
    encoder, head = (jax.tree.map(np.asarray, before.params[k]) for k in ("encoder", "head"))
    hidden = batch["x"] @ encoder["kernel"]
    error = hidden @ head["kernel"] + head["bias"] - batch["y"]
    total, count = metrics["loss"]
    np.testing.assert_allclose(total, np.sum(error**2), rtol=1e-5)
    assert count == error.size
    gradient = 2 * hidden.T @ error / error.size
    np.testing.assert_allclose(
        after.params["head"]["kernel"], head["kernel"] - 0.5 * gradient, atol=1e-6
    )
    usage = after.model_state["usage"]["target_sum"]
    np.testing.assert_allclose(usage, batch["y"].sum(axis=0), rtol=1e-6)
    assert int(after.step) == 1 and float(metrics["learning_rate"][0]) == 0.5


def test_frozen_parameters_do_not_move_nor_count_in_the_gradient_norm():
    before, _, after, metrics = one_step(ToyObjective(frozen=["^encoder/"], noise=0.0))
    np.testing.assert_array_equal(
        before.params["encoder"]["kernel"], after.params["encoder"]["kernel"]
    )
    moved = jax.tree.map(lambda a, b: a - b, before.params["head"], after.params["head"])
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved))) / 0.5
    np.testing.assert_allclose(metrics["grad_norm"][0], norm, rtol=1e-4)


def test_nothing_counted_is_a_zero_gradient_not_a_nan():
    class Nothing(ToyObjective):
        def loss(self, *args, **kwargs):
            metrics, seen = super().loss(*args, **kwargs)
            return jax.tree.map(jnp.zeros_like, metrics), seen

    before, _, after, _ = one_step(Nothing())
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_after_update_has_the_last_word():
    class Revived(ToyObjective):
        def after_update(self, params, model_state, seen, rng):
            noise = jax.random.normal(rng, (4,))
            return params | {"head": params["head"] | {"bias": noise}}, {"usage": {}}

    before, _, after, _ = one_step(Revived())
    expected = jax.random.normal(step_rngs(before.rng, before.step)["after_update"], (4,))
    np.testing.assert_allclose(after.params["head"]["bias"], expected, rtol=1e-6)
    assert after.model_state == {"usage": {}}


def test_streams_differ_from_each_other_and_from_step_to_step_and_repeat():
    rng = jax.random.key_data(jax.random.key(0))
    draws = {
        (name, step): float(jax.random.uniform(key))
        for step in (0, 1)
        for name, key in step_rngs(rng, jnp.int32(step)).items()
    }
    assert len(set(draws.values())) == 2 * len(RNG_STREAMS)
    again = step_rngs(rng, jnp.int32(1))["mask"]
    assert float(jax.random.uniform(again)) == draws["mask", 1]
    quiet, loud = (one_step(ToyObjective(noise=n))[3]["loss"][0] for n in (0.0, 1.0))
    assert float(quiet) != pytest.approx(float(loud))  # one of them reaches the loss


# --- microbatches ---


class Weighted(ToyObjective):
    """Rows count differently, as captions of different lengths do."""

    def loss(self, params, batch, *args, **kwargs):
        metrics, seen = super().loss(params, batch, *args, **kwargs)
        total, _ = metrics["loss"]
        return {"loss": (total, jnp.sum(jnp.abs(batch["x"])))}, seen


@pytest.mark.parametrize("microbatches", [2, 3, 6])
def test_microbatches_make_the_update_of_the_whole_batch(microbatches):
    """Of its sum over its count: not a mean of means."""
    _, _, whole, of_whole = one_step(Weighted(noise=0.0), rows=6)
    before, _, parts, of_parts = one_step(Weighted(noise=0.0), rows=6, microbatches=microbatches)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, parts.params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of_whole, of_parts)


def test_each_microbatch_has_random_numbers_of_its_own():
    class Drawing(ToyObjective):
        def loss(self, params, batch, rngs, *args, **kwargs):
            metrics, seen = super().loss(params, batch, rngs, *args, **kwargs)
            drawn = jax.random.uniform(rngs["noise"])
            # The sum of squares tells two equal numbers from two different ones.
            return metrics | {"drawn": (drawn, drawn**2)}, seen

    total, squares = one_step(Drawing(), rows=4, microbatches=2)[3]["drawn"]
    assert 2 * squares > total**2 + 1e-3


def test_rows_are_dealt_out_together_or_named():
    parts = _split_rows({"a": jnp.arange(6), "b": 10 * jnp.arange(6)[:, None]}, 3)
    assert parts["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    np.testing.assert_array_equal(10 * parts["a"][..., None], parts["b"])
    batch = next(FakeBatches(ToyObjective().batch_spec(6)))
    check_batch(batch, ToyObjective(), one_device_mesh(), 3)
    with pytest.raises(UserError, match=r"found 6 rows, .* in each of 4 microbatches"):
        check_batch(batch, ToyObjective(), one_device_mesh(), 4)
