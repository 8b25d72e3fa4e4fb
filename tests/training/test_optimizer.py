"""Tests of schedules and optimizers."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.paper import generator
from synth2_jax.config import build
from synth2_jax.errors import UserError
from synth2_jax.layers.stack import is_stacked, stack_layers, unstack_layers
from synth2_jax.testing.untrained_runs import MODELS
from synth2_jax.training import train_state
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import (
    NOT_DECAYED,
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


def test_a_restart_begins_the_schedule_again_over_the_steps_to_the_next():
    linear = {"schedule": "linear", "warmup_steps": 2, "restarts": (4, (7, 0.5))}
    expected = [0.5, 1, 1, 0.5] + [0.5, 1, 1] + [0.25, 0.5, 0.5, 0.25] + [0, 0]
    assert rates(range(13), 11, **linear) == expected
    constant = {"warmup_steps": 2, "restarts": ((3, 0.5),)}
    assert rates(range(6), **constant) == [0.5, 1, 1, 0.25, 0.5, 0.5]
    assert make_optimizer(OptimizerConfig(**linear), 11).restarts == (4, 7)


@pytest.mark.parametrize(
    "restarts, message",
    [
        ((0,), r"restarts: found steps \(0,\), expected rising ones from 1 on"),
        ((5, 3), r"restarts: found steps \(5, 3\), expected rising ones from 1 on"),
        (((5, 0.0),), r"restarts: found factors \(0.0,\), expected numbers above 0"),
        ("ab", "restarts: found 'ab', expected a list such as"),
        ((6,), "restarts: found a restart at step 6, expected one below the 6 of --config.train"),
        ((2,), r"warmup_steps: found 2, expected fewer than the 2 from step 0 to 2 \(--config.opt"),
    ],
)
def test_restarts_that_will_not_do_are_named(restarts, message):
    section = {"restarts": restarts, "schedule": "cosine", "warmup_steps": 2}
    with pytest.raises(UserError, match=f"^--config.optimizer.{message}"):
        make_optimizer(build(OptimizerConfig, section, "--config.optimizer"), 6)


def test_warm_up_must_leave_steps_for_the_fall():
    config = OptimizerConfig(schedule="linear", warmup_steps=6)
    make_optimizer(config, 7)
    with pytest.raises(UserError) as error:
        make_optimizer(config, 6, "--config.vlm")
    assert str(error.value) == (
        "--config.vlm.optimizer.warmup_steps: found 6, expected fewer than the 6 of "
        "--config.vlm.train.steps, for the schedule is 'linear'"
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
    with pytest.raises(UserError, match=r"weight_decay_skip: 'bias\$' matches no parameter"):
        tx.init({"a/kernel": jnp.ones(3)})
    with pytest.raises(UserError, match=r"groups\[1\].pattern: 'a' matches no parameter"):
        groups({"pattern": "a/"}, {"pattern": "a"}).init({"a/kernel": jnp.ones(3)})


def test_by_default_matrices_and_tables_decay_and_nothing_else():
    """Of all models; what does not decay has few numbers, and a decay would move it to nowhere."""
    decayed, skipped = set(), set()
    for name, section in MODELS.items():
        for path in make_objective(name, section).boxed_shapes:
            is_skipped = any(re.search(pattern, path) for pattern in NOT_DECAYED)
            (skipped if is_skipped else decayed).add(path.split("/")[-1])
            assert is_skipped or "norm" not in path.split("/")[-2]
    assert decayed == {"kernel", "embedding"}
    vectors = {"scale", "bias", "attention_gate", "mlp_gate", "logits_bias", "embedding"}
    assert skipped == vectors | {"latents", "mask_embedding", "null_caption", "codebook"}
    paths = [
        *("vlm/resampler/positions/embedding", "generator/text_encoder/relpos_bias/embedding"),
        *("vlm/language_model/decoder/layers_0/block/attn/_query_norm/scale",),
    ]
    assert all(any(re.search(one, path) for one in NOT_DECAYED) for path in paths)
    tx = make_optimizer(OptimizerConfig(weight_decay=0.5))
    params = {"net/kernel": jnp.ones(3), "net/norm/scale": jnp.ones(3)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates["net/kernel"].any() and not updates["net/norm/scale"].any()
    tx = make_optimizer(OptimizerConfig(weight_decay=0.5, weight_decay_skip=()))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates["net/norm/scale"].any()


def groups(*sections, **options):
    section = {"learning_rate": 0.1, "groups": sections, **options}
    return make_optimizer(build(OptimizerConfig, section, "--config.optimizer"))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_group_has_its_own_rate_and_decay(name):
    """The first group that matches holds; the others' steps are what they were without groups."""
    params = {f"net/{one}": jnp.array([2.0, -1.0]) for one in ("still", "fast", "plain")}
    grads = {path: jnp.array([0.3, -0.7]) for path in params}
    sections = [
        {"pattern": "still", "learning_rate_factor": 0.0},
        {"pattern": "still|fast", "learning_rate_factor": 3.0, "weight_decay": 0.0},
    ]
    plain, tx = (
        groups(*given, name=name, weight_decay=0.5, clip_norm=0.0) for given in ([], sections)
    )
    expected, _ = plain.update(grads, plain.init(params), params)
    found, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(params["net/still"] + found["net/still"], params["net/still"])
    without_decay = expected["net/fast"] + 0.1 * 0.5 * params["net/fast"]
    np.testing.assert_allclose(found["net/fast"], 3 * without_decay, rtol=1e-5)
    np.testing.assert_array_equal(found["net/plain"], expected["net/plain"])


def test_a_group_is_clipped_by_its_own_norm_and_does_not_count_for_its_network():
    rng = np.random.default_rng(0)
    grads = {path: rng.normal(size=4) for path in ("net/a", "net/b", "net/c", "other/a")}
    sections = [{"pattern": "net/c", "clip_norm": 0.3}, {"pattern": "other", "clip_norm": 0.0}]
    tx = groups(*sections, clip_norm=0.5, beta1=0.0, beta2=0.5)
    as_jax = {path: jnp.asarray(leaf) for path, leaf in grads.items()}
    _, state = tx.update(as_jax, tx.init(as_jax), as_jax)
    adam = next(part for part in state if part and hasattr(part.get("net"), "nu"))
    norm = np.sqrt(np.sum(grads["net/a"] ** 2) + np.sum(grads["net/b"] ** 2))
    scales = {"net/a": 0.5 / norm, "net/b": 0.5 / norm, "other/a": 1.0}
    scales["net/c"] = 0.3 / np.linalg.norm(grads["net/c"])
    for path, scale in scales.items():
        nu = adam[path.split("/")[0]].nu[path]
        np.testing.assert_allclose(nu, 0.5 * (scale * grads[path]) ** 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_without_groups_the_state_has_the_tree_that_older_runs_saved(name):
    def paths(*parts):
        tx = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1))
        state = jax.eval_shape(tx.init, {f"{part}/kernel": jnp.ones((2, 3)) for part in parts})
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

    of = {
        "adamw": ["1/{}count", "1/{}mu/{}/kernel", "1/{}nu/{}/kernel", "3/count"],
        "adafactor": [
            *(f"1/{{}}{{}}/kernel/0/{one}" for one in ("count", "v_row", "v_col", "v")),
            "3/count",
        ],
    }[name]
    last = of.pop()
    assert paths("net") == [*(path.replace("{}", "", 1).format("net") for path in of), last]
    several = [p.replace("{}", f"{net}/", 1).format(net) for net in ("judge", "net") for p in of]
    assert paths("net", "judge") == [*several, last]


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


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (128, 130)])
def test_adafactor_is_its_equations(shape, scale):
    """Of a matrix that is too small to be factored, and of one that is not, as t5x has them."""
    config = OptimizerConfig(
        name="adafactor",
        learning_rate=0.1,
        weight_decay=0.5,
        clip_norm=0.0,
        multiply_by_parameter_scale=scale,
    )
    tx = make_optimizer(config)
    w, grads = np.full(shape, 0.2), np.random.default_rng(0).normal(size=(3, *shape))
    params = {"w": jnp.array(w)}
    state, v, row, column = tx.init(params), 0, 0, 0
    for t, grad in enumerate(grads, start=1):
        updates, state = tx.update({"w": jnp.array(grad)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        v, row, column = (
            (1 - t**-0.8) * mean + t**-0.8 * np.mean(grad**2, axis=axes, keepdims=True)
            for mean, axes in ((v, ()), (row, 1), (column, 0))
        )
        if min(shape) >= 128:
            v = row * column / np.mean(row)
        u = grad / np.sqrt(v)
        u = u / max(1, np.sqrt(np.mean(u**2)))
        w = w - 0.1 * (u * (np.sqrt(np.mean(w**2)) if scale else 1) + 0.5 * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "adam"},
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "adafactor", "weight_decay": 0.1},
        {"name": "adafactor", "momentum": 0.9, "multiply_by_parameter_scale": False},
    ],
    ids=str,
)
def test_scanned_layers_train_as_looped_ones(section):
    """Their RMS differ a hundredfold, and their kernels are large enough to be factored."""
    rng = np.random.default_rng(0)
    tx = make_optimizer(OptimizerConfig(learning_rate=0.01, **section))

    def draw(*shape):
        sizes = np.array([0.01, 0.1, 1.0]).reshape(3, *(1 for _ in shape))
        return np.float32(sizes * rng.normal(size=(3, *shape)))

    scanned = {"layers": {"kernel": draw(128, 2, 130), "scale": draw(130), "gate": draw()}}
    wanted = jax.tree.map(lambda leaf: leaf + draw(*leaf.shape[1:]), scanned)

    def ten_steps(params, wanted):
        """Of a half of the squared distance, whose gradient is the difference."""
        params, wanted = train_state.flatten({"net": params}), train_state.flatten({"net": wanted})

        def step(_, carry):
            params, state = carry
            grads = {path: params[path] - wanted[path] for path in params}
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        run = jax.jit(lambda params: jax.lax.fori_loop(0, 10, step, (params, tx.init(params)))[0])
        return train_state.unflatten(run(params))["net"]

    looped = ten_steps(unstack_layers(scanned, 3), unstack_layers(wanted, 3))
    found = ten_steps(scanned, wanted)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        found,
        stack_layers(looped, 3),
    )
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), found, scanned)))


def test_the_papers_generator_takes_absolute_steps():
    """Of 1e-4, and a decay of 0.045 times as much, however small the parameters are."""
    section = generator.get_config().optimizer.to_dict()
    config = build(OptimizerConfig, {**section, "warmup_steps": 0, "momentum": 0.0}, "optimizer")
    tx = make_optimizer(config, 1_000_000)
    params, grads = {"net/kernel": jnp.full((2, 2), 0.028)}, {"net/kernel": -jnp.eye(2)}
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = -1e-4 * 0.045 * 0.028 + 1e-4 * np.eye(2)
    np.testing.assert_allclose(updates["net/kernel"], moved, rtol=1e-5)


def test_the_layer_axis_is_never_factored():
    """Of 128 layers a vector each is an array that optax alone takes for a matrix."""
    tx = make_optimizer(OptimizerConfig(name="adafactor", clip_norm=0.0))
    params = {
        "net/layers/norm/scale": jnp.ones((128, 130)),
        "net/head/kernel": jnp.ones((128, 130)),
    }
    state = tx.init(params)[0]
    assert state["net/layers/norm/scale"][0].v.shape == (128, 130)
    assert state["net/head/kernel"][0].v_row.shape == (128,)


@pytest.mark.parametrize("shape", [(256, 2, 128), (256, 16, 16), (8, 32, 256)])
def test_a_kernel_of_several_heads_trains_as_the_matrix_it_is(shape):
    tx = make_optimizer(OptimizerConfig(name="adafactor", clip_norm=0.0))
    draws = np.random.default_rng(0).normal(size=(4, 256, 256)).astype(np.float32)
    kernels = [{"net/kernel": jnp.asarray(draws[0]).reshape(s)} for s in ((256, 256), shape)]
    states = [tx.init(params) for params in kernels]
    assert states[1][0]["net/kernel"][0].v_row.size == 256
    for draw in draws[1:]:
        grads = [{"net/kernel": draw.reshape(kernel["net/kernel"].shape)} for kernel in kernels]
        (matrix, states[0]), (heads, states[1]) = (
            tx.update(*args) for args in zip(grads, states, kernels, strict=True)
        )
        found = heads["net/kernel"].reshape(256, 256)
        np.testing.assert_allclose(found, matrix["net/kernel"], rtol=1e-4)


@pytest.mark.parametrize("name", ["language_model", "generator", "vlm"])
def test_stacked_parameters_are_those_with_a_layer_axis(name):
    scanned = json.dumps(MODELS[name]).replace('"scan_layers": false', '"scan_layers": true')
    objective = make_objective(name, json.loads(scanned))
    params = jax.eval_shape(lambda key: objective.init(key)["params"], jax.random.key(0))
    axes = {path: box.names for path, box in train_state.flatten(params).items()}
    stacked = {path for path, names in axes.items() if names[:1] == ("layers",)}
    assert stacked == {path for path in axes if is_stacked(path)} != set()
    assert not any("layers" in names[1:] for names in axes.values())


def test_gradients_are_clipped_by_the_global_norm_of_their_network():
    """Adam's first step does not see the scale of a gradient, its second moment does."""
    grads = {"net/a": jnp.array([30.0]), "net/b": jnp.array([40.0]), "other/a": jnp.array([1e6])}
    for clip_norm, scale in [(5.0, 0.1), (100.0, 1.0), (0.0, 1.0)]:
        tx = make_optimizer(OptimizerConfig(beta1=0.0, beta2=0.5, clip_norm=clip_norm))
        _, state = tx.update(grads, tx.init(grads), grads)
        adam = next(part for part in state if part and hasattr(part.get("net"), "nu"))["net"]
        np.testing.assert_allclose(adam.nu["net/b"], 0.5 * (40 * scale) ** 2, rtol=1e-5)


def test_a_network_that_starts_late_starts_as_if_alone():
    """Adam's count of a discriminator begins with its first gradient: its steps are not 1 / (1 -
    beta2)^0.5 times as large."""
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1, beta1=0.0, beta2=0.99))
    params = {"net/a": jnp.ones(2), "judge/a": jnp.ones(2)}
    state = tx.init(params)
    # At last it is not moved on by what came before.
    for judge, moved in [(0.0, 0.0)] * 3 + [(0.5, -0.1), (0.0, 0.0)]:
        grads = {"net/a": jnp.full(2, 0.1), "judge/a": jnp.full(2, judge)}
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(updates["judge/a"], [moved, moved], rtol=1e-5, atol=0)
        np.testing.assert_allclose(updates["net/a"], [-0.1, -0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adamm"}, "name: unknown 'adamm'; did you mean 'adam'?"),
        ({"schedule": "cosin"}, "schedule: unknown 'cosin'; did you mean 'cosine'?"),
        ({"total_steps": 5}, "total_steps: unknown key"),
        (
            {"name": "adam", "weight_decay": 0.1},
            "weight_decay: found 0.1, expected 0 with --config.optimizer.name=adam. Use adamw",
        ),
        (
            {"momentum": 0.9},
            "momentum: found 0.9, expected 0 with --config.optimizer.name=adamw, which has "
            "--config.optimizer.beta1",
        ),
        ({"multiply_by_parameter_scale": False}, "multiply_by_parameter_scale: found False"),
        ({"name": "adafactor", "momentum": 1.0}, "momentum: found 1.0, expected 0 to below 1"),
        (
            {"weight_decay_skip": ["bias"]},
            "weight_decay_skip: found ('bias',), expected () with --config.optimizer.weight_decay",
        ),
        ({"weight_decay_skip": ["("]}, "weight_decay_skip: '(' is not a regular expression"),
        ({"groups": [{"pattern": "["}]}, "groups[0].pattern: '[' is not a regular expression"),
        ({"groups": [{"patern": "a"}]}, "groups[0].patern: unknown key; did you mean 'pattern'?"),
        (
            {"groups": [{"pattern": "a", "learning_rate_factor": -1}]},
            "groups[0].learning_rate_factor: found -1.0, expected at least 0",
        ),
        (
            {"name": "adam", "groups": [{"pattern": "a", "weight_decay": 0.1}]},
            "groups[0].weight_decay: found 0.1, expected 0 with --config.optimizer.name=adam",
        ),
    ],
)
def test_mistakes_in_the_config(section, message):
    with pytest.raises(UserError) as error:
        build(OptimizerConfig, section, "--config.optimizer")
    assert str(error.value).startswith(f"--config.optimizer.{message}")
