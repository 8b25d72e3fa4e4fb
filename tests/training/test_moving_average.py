"""Tests of the moving average of the parameters: how it moves, and how it is saved and read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.testing.toy_objective import ToyObjective, one_device_mesh
from synth2_jax.testing.untrained_runs import MODELS, STEP, write_untrained_run
from synth2_jax.training import train_state
from synth2_jax.training.checkpoint_reader import read_arrays, restore_params, saved_arrays
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_loop import TrainLoopConfig, train
from synth2_jax.training.train_state import flatten
from synth2_jax.training.train_step import compile_train_step

pytestmark = pytest.mark.usefixtures("compilation_cache")


def steps_of(objective, decay, batches, microbatches=1, learning_rate=0.1):
    """The states from the first to the last, as numpy; the step takes the memory of each."""
    tx = make_optimizer(OptimizerConfig(learning_rate=learning_rate))
    mesh = one_device_mesh()
    layout = train_state.state_layout(objective, tx, mesh, with_average=True)
    state = train_state.create_train_state(objective, tx, layout, seed=0)
    step = compile_train_step(
        objective, tx, layout, mesh, microbatches=microbatches, ema_decay=decay
    )
    states = [jax.tree.map(np.array, state)]  # copies
    for batch in batches:
        state, _ = step(state, batch)
        states.append(jax.tree.map(np.array, state))
    return states


def toy_batches(count, rows=8):
    data = FakeBatches(ToyObjective().batch_spec(rows))
    return [next(data) for _ in range(count)]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_average_follows_the_trainable_parameters_with_a_decay_that_warms_up(microbatches):
    toy = ToyObjective(frozen=["^encoder/"])
    states = steps_of(toy, 0.25, toy_batches(4), microbatches)
    expected = np.array(states[0].params["head"]["kernel"])
    for state, decay in zip(states[1:], [1 / 10, 2 / 11, 3 / 12, 0.25], strict=True):
        expected = decay * expected + (1 - decay) * state.params["head"]["kernel"]
        np.testing.assert_allclose(state.average["head"]["kernel"], expected, rtol=1e-5, atol=1e-7)
        assert flatten(state.average).keys() == {"head/kernel", "head/bias"}
        given_out = state.averaged_params()
        np.testing.assert_array_equal(given_out["head"]["kernel"], state.average["head"]["kernel"])
        np.testing.assert_array_equal(
            given_out["encoder"]["kernel"], state.params["encoder"]["kernel"]
        )


def test_the_average_is_float32_and_given_out_as_the_parameters_are():
    toy = ToyObjective()
    init = toy.init
    toy.init = lambda key: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), init(key))
    *_, last = steps_of(toy, 0.999, toy_batches(2))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(last.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(last.average)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(last.averaged_params())} == {"bfloat16"}


def test_what_after_update_changes_begins_again_in_the_average():
    class Reset(ToyObjective):
        """Sets the first number of the bias."""

        def after_update(self, params, model_state, seen, rng):
            bias = params["head"]["bias"].at[0].set(jax.random.uniform(rng))
            return {**params, "head": {**params["head"], "bias": bias}}, model_state

    for state in steps_of(Reset(), 0.9, toy_batches(3))[1:]:
        same = state.average["head"]["bias"] == state.params["head"]["bias"]
        assert same.tolist() == [True, False, False, False]


@pytest.mark.slow
def test_a_revived_code_is_itself_in_the_average_and_a_living_one_an_average():
    """Also in the compiled step, where a number may not differ from itself by a rounding."""
    section = {"tokenizer": {**MODELS["tokenizer"]["tokenizer"], "revive_share": 0.5}}
    objective = make_objective("tokenizer", section)
    data = FakeBatches(objective.batch_spec(4))
    states = steps_of(objective, 0.9, [next(data) for _ in range(6)], learning_rate=1e-4)
    revived = living = 0
    for before, after in zip(states, states[1:], strict=False):
        old, new, average = (
            tree["tokenizer"]["quantizer"]["codebook"]
            for tree in (before.params, after.params, after.average)
        )
        jumped_K = np.abs(new - old).max(axis=-1) > 1e-2  # far more than the learning rate
        np.testing.assert_array_equal(average[jumped_K], new[jumped_K])
        moved_K = ~jumped_K & (np.abs(new - old).max(axis=-1) > 0)
        living += np.sum((average != new).any(axis=-1) & moved_K)
        revived += jumped_K.sum()
        assert ((average != new).any(axis=-1) | ~moved_K).all()
    assert revived > 10 and living > 10


# --- saved and resumed ---


def run(workdir, steps, ema_decay=0.9, **settings):
    config = TrainLoopConfig(steps=steps, checkpoint_every=100, ema_decay=ema_decay, **settings)
    toy = ToyObjective(frozen=["^encoder/"])
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1))
    batches = FakeBatches(toy.batch_spec(8))
    resolved = {"train": {"ema_decay": ema_decay}}
    return train(toy, tx, one_device_mesh(), batches, config, workdir, resolved_config=resolved)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_resumed_run_has_the_average_of_the_straight_one_bit_by_bit(tmp_path):
    straight = run(tmp_path / "straight", 6, microbatches=2)
    run(tmp_path / "resumed", 3, microbatches=2)
    assert_equal(run(tmp_path / "resumed", 6, microbatches=2), straight)
    # Without an average the parameters are the same: it only looks at them.
    without = run(tmp_path / "without", 6, ema_decay=0.0, microbatches=2)
    assert_equal(without.params, straight.params)
    assert without.average == {}


def test_an_average_that_is_turned_on_begins_at_the_checkpoint_and_one_turned_off_ends(
    tmp_path, caplog
):
    start = run(tmp_path, 3, ema_decay=0.0)
    on = run(tmp_path, 4, ema_decay=0.25)
    assert "ema_decay: a moving average begins at the parameters of step 3\n" in caplog.text
    assert "--config.train.ema_decay=0.25 (0.0 before)" in caplog.text
    before, after = (state.params["head"]["kernel"] for state in (start, on))
    expected = 0.25 * before + 0.75 * after
    np.testing.assert_allclose(on.average["head"]["kernel"], expected, rtol=1e-5)
    assert_equal(restore_params(tmp_path), on.averaged_params())
    caplog.clear()
    off = run(tmp_path, 5, ema_decay=0.0)
    assert "later stages take the parameters of the next steps\n" in caplog.text
    assert_equal(restore_params(tmp_path), off.params)
    assert_equal(off.params, run(tmp_path / "without", 5, ema_decay=0.0).params)


def test_what_a_run_gives_out_is_its_average_unless_the_parameters_are_asked_for(tmp_path):
    state = run(tmp_path, 3)
    layout = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        state.params,
    )
    step = tmp_path / "checkpoints" / "3"
    for path, expected in (
        (tmp_path, state.averaged_params()),
        (step, state.averaged_params()),
        (step / "average", state.averaged_params()),
        (step / "params", state.params),
    ):
        assert_equal(restore_params(path), expected)
        assert_equal(restore_params(path, abstract=layout), expected)
        assert_equal(dict(read_arrays(path, 3, saved_arrays(path, 3))), flatten(expected))
    assert (state.params["head"]["kernel"] != state.average["head"]["kernel"]).all()


def test_the_average_of_a_checkpoint_without_one_is_one_line(tmp_path):
    write_untrained_run(tmp_path, "tokenizer")
    step = tmp_path / "checkpoints" / str(STEP)
    with pytest.raises(UserError) as error:
        restore_params(step / "average")
    assert str(error.value) == (
        f"{step}/average: found a checkpoint without a moving average, expected one of a run with "
        f"--config.train.ema_decay. Give {step} for the parameters themselves"
    )
    assert_equal(restore_params(step / "params"), restore_params(tmp_path))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_will_not_do_is_named(decay):
    with pytest.raises(ValueError, match=f"ema_decay: found {decay}, expected 0 to below 1"):
        TrainLoopConfig(steps=1, ema_decay=decay)
