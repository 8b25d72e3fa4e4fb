"""Tests of schedules and optimizers."""

import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)


def rates(steps, num_steps=None, **kwargs):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, **kwargs), num_steps)
    return [round(float(schedule(jnp.int32(step))), 4) for step in steps]


def test_schedules_are_these_curves():
    assert rates(range(6), warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    linear = {"schedule": "linear", "warmup_steps": 2, "final_fraction": 0.2}
    assert rates(range(8), 6, **linear) == [0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]
    cosine = {"schedule": "cosine", "final_fraction": 0.5}
    assert rates([0, 1, 2, 4, 9], 4, **cosine) == [1, 0.9268, 0.75, 0.5, 0.5]


def test_warm_up_must_leave_steps_for_the_fall():
    config = OptimizerConfig(schedule="linear", warmup_steps=6)
    make_optimizer(config, 7)
    with pytest.raises(UserError) as error:
        make_optimizer(config, 6, "config.vlm")
    assert str(error.value) == (
        "config.vlm.optimizer.warmup_steps: found 6, expected fewer than the 6 of "
        "config.vlm.train.steps, for the schedule is 'linear'"
    )
    with pytest.raises(ValueError, match="schedule 'linear' without num_steps"):
        make_optimizer(config)
    make_optimizer(OptimizerConfig(warmup_steps=6), 6)  # a constant schedule ends nowhere


def test_adamw_is_its_equations():
    config = OptimizerConfig(
        learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.5, clip_norm=0.0
    )
    tx = make_optimizer(config)
    w, g = np.array([1.0, -2.0]), [np.array([0.3, 4.0]), np.array([-1.0, 0.5])]
    params = {"w": jnp.array(w)}
    state, m, v = tx.init(params), np.zeros(2), np.zeros(2)
    for t, grad in enumerate(g, start=1):
        updates, state = tx.update({"w": jnp.array(grad)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
        step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
        w = w - 0.1 * (step + 0.5 * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_skipped_parameters_do_not_decay(name):
    config = OptimizerConfig(name=name, weight_decay=0.5, weight_decay_skip=("bias$",))
    tx = make_optimizer(config)
    params = {"a/kernel": jnp.ones(3), "a/bias": jnp.ones(3)}
    zeros = {path: jnp.zeros(3) for path in params}
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["a/kernel"], -0.5e-3 * np.ones(3), rtol=1e-6)
    np.testing.assert_array_equal(updates["a/bias"], np.zeros(3))


def test_adafactor_with_momentum_averages_its_updates():
    """The update grows to that of no momentum as the average fills: 1 - 0.9^t of it."""
    plain, smooth = (
        make_optimizer(OptimizerConfig(name="adafactor", clip_norm=0.0, momentum=momentum))
        for momentum in (0.0, 0.9)
    )
    params, grads = {"a": jnp.ones(3)}, {"a": jnp.array([1.0, -2.0, 3.0])}
    states = [tx.init(params) for tx in (plain, smooth)]
    for t in range(1, 4):
        (expected, states[0]), (found, states[1]) = (
            tx.update(grads, state, params)
            for tx, state in zip((plain, smooth), states, strict=True)
        )
        np.testing.assert_allclose(found["a"], (1 - 0.9**t) * expected["a"], rtol=1e-5)


def test_a_skip_that_matches_nothing_is_an_error():
    tx = make_optimizer(OptimizerConfig(weight_decay=0.5, weight_decay_skip=("bais$",)))
    with pytest.raises(UserError, match=r"weight_decay_skip: 'bais\$' matches no parameter"):
        tx.init({"a/bias": jnp.ones(3)})


def test_gradients_are_clipped_by_their_global_norm():
    """Adam's first step does not see the scale of a gradient, its second moment does."""
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    for clip_norm, scale in [(5.0, 0.1), (100.0, 1.0), (0.0, 1.0)]:
        tx = make_optimizer(OptimizerConfig(beta1=0.0, beta2=0.5, clip_norm=clip_norm))
        _, state = tx.update(grads, tx.init(grads), grads)
        adam = next(part for part in state if hasattr(part, "nu"))
        np.testing.assert_allclose(adam.nu["b"], 0.5 * (40 * scale) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adamm"}, "config.optimizer: unknown name 'adamm'; did you mean 'adam'?"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ({"total_steps": 5}, "config.optimizer.total_steps: unknown key"),
        ({"name": "adam", "weight_decay": 0.1}, "use adamw"),
        ({"momentum": 0.9}, "adamw with momentum=0.9, expected 0; it has beta1"),
        ({"name": "adafactor", "momentum": 1.0}, "found momentum 1.0, expected 0 to below 1"),
        ({"weight_decay_skip": ["bias"]}, "weight_decay_skip without weight_decay"),
    ],
)
def test_mistakes_in_the_config(section, message):
    with pytest.raises(UserError) as error:
        build(OptimizerConfig, section, "config.optimizer")
    assert message in str(error.value)
