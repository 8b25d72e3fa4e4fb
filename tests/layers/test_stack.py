import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.errors import UserError
from synth2_jax.layers import stack as stack_lib
from synth2_jax.layers.mlp import GatedMLP
from synth2_jax.layers.stack import Stack, StackConfig, interleave, stack_layers, unstack_layers

X = jax.random.normal(jax.random.key(1), (2, 3, 4))
SCANNED = jnp.arange(4.0) / 10
SHIFT = jnp.asarray(0.5)


class Block(nn.Module):
    """tanh(x + mlp(x) + scanned + shift); its output is the mean of x."""

    dropout_rate: float = 0.0

    def setup(self):
        self.mlp = GatedMLP(8, dropout_rate=self.dropout_rate)

    def __call__(self, x, scanned, shift, *, deterministic):
        x = jnp.tanh(x + self.mlp(x, deterministic=deterministic) + scanned + shift)
        return x, x.mean()

    def double_mlp(self, x, *, deterministic):
        return 2 * self.mlp(x, deterministic=deterministic)


def dropout(seed):
    return {"dropout": jax.random.key(seed, impl="unsafe_rbg")}  # compiles fastest


def make(scan_layers=True, remat="none", num_layers=4, dropout_rate=0.0):
    return Stack(functools.partial(Block, dropout_rate), num_layers, scan_layers, remat)


def run(stack, params, deterministic=True):
    options = {"deterministic": deterministic, "rngs": {} if deterministic else dropout(0)}
    apply = functools.partial(stack.apply, scanned=SCANNED, **options)
    return jax.jit(lambda params: apply({"params": params}, X, SHIFT))(params)


def init(stack):
    create = functools.partial(stack.init, scanned=SCANNED, deterministic=True)
    return nn.unbox(jax.jit(lambda key: create(key, X, SHIFT))(jax.random.key(0)))["params"]


def assert_remat_equals_plain(loss, variables, remat):
    """loss(variables, remat) and its gradients."""
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradients = value_and_grad(variables, "none")
    remat_value, remat_gradients = value_and_grad(variables, remat)
    np.testing.assert_allclose(value, remat_value, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, gradients, remat_gradients)


REMATS = pytest.mark.parametrize(
    ("scan_layers", "remat"), [(True, "full"), (True, "dots"), (False, "full")]
)


def test_scan_equals_loop_equals_blocks_one_by_one():
    params = init(make())
    x, outputs = run(make(), params)
    looped = unstack_layers(params, 4)
    assert jax.tree.structure(looped) == jax.tree.structure(init(make(scan_layers=False)))
    loop_x, loop_outputs = run(make(scan_layers=False), looped)
    np.testing.assert_allclose(x, loop_x, rtol=1e-5)
    np.testing.assert_allclose(outputs, loop_outputs, rtol=1e-5)

    y = X
    for i in range(4):
        block_params = {"params": looped[f"layers_{i}"]}
        y, output = Block().apply(block_params, y, SCANNED[i], SHIFT, deterministic=True)
        np.testing.assert_allclose(outputs[i], output, rtol=1e-5)
    np.testing.assert_allclose(x, y, rtol=1e-5)


def test_layers_are_unrolled_for_gpus_and_stay_stacked(monkeypatch):
    """The same parameters, numbers and outputs; dropout has the same keys."""
    stack, pair = make(dropout_rate=0.5), Pair(True, num_outer=2)
    params, pair_params = init(stack), jax.jit(pair.init)(jax.random.key(0), X)
    results = []
    for platform, unroll in (("tpu", 1), ("gpu", 4)):
        monkeypatch.setattr(stack_lib, "traced_platform", lambda name=platform: name)
        assert jax.tree.structure(init(stack)) == jax.tree.structure(params)
        both = jax.jit(lambda params: pair.apply(params, X))(pair_params)
        results.append((run(stack, params), run(stack, params, deterministic=False), both))
        traced = str(jax.make_jaxpr(lambda params: run(stack, params))(params))
        assert "length=4" in traced and f"unroll={unroll}" in traced
        traced = str(jax.make_jaxpr(lambda params: pair.apply(params, X))(pair_params))
        assert traced.count(f"unroll={1 if unroll == 1 else 2}") == 2  # 2 groups of 2
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)
    # What is computed again in the same round would be merged with what is there.
    remat = make(remat="full")
    assert "unroll=1" in str(jax.make_jaxpr(lambda params: run(remat, params))(params))


def test_layers_start_different_and_stack_layers_inverts_unstack_layers():
    params = init(make())
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unstack_layers(params, 4), 4), params)


@REMATS
def test_remat_equals_plain(scan_layers, remat):
    params = init(make(scan_layers))

    def loss(params, remat):
        stack = make(scan_layers, remat, dropout_rate=0.5)
        return (run(stack, params, deterministic=False)[0] ** 2).mean()

    assert_remat_equals_plain(loss, params, remat)


def test_remat_keeps_less_for_the_backward_pass():
    params = init(make())

    def kept(remat):
        _, backward = jax.vjp(lambda params: run(make(remat=remat), params)[0], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("full") < kept("dots") < kept("none")


def test_a_config_makes_a_stack_and_names_what_it_cannot_make():
    sizes = {"num_layers": 2, "embed_dim": 4, "num_heads": 1, "head_dim": 4, "mlp_dim": 8}
    stack = StackConfig(**sizes, remat="dots").stack(Block)
    assert (stack.num_layers, stack.scan_layers, stack.remat) == (2, True, "dots")
    for wrong, message in (
        ({"remat": "ful"}, "remat: unknown 'ful'; did you mean 'full'"),
        ({"dtype": "bf16"}, "dtype: unknown dtype 'bf16'; did you mean 'bfloat16'"),
        ({"num_layers": 1001}, "num_layers: found 1001, expected at most 1000"),
        *(({size: 0}, f"{size}: found 0, expected at least 1") for size in sizes),
    ):
        with pytest.raises(UserError, match=message):
            StackConfig(**{**sizes, **wrong})


@pytest.mark.parametrize("scan_layers", [True, False])
def test_map_runs_every_layer_on_the_same_input(scan_layers):
    params = init(make(scan_layers))
    mapped = make(scan_layers).apply(
        {"params": params}, "double_mlp", X, deterministic=True, method="map"
    )
    looped = unstack_layers(params, 4) if scan_layers else params
    for i in range(4):
        one = {"params": looped[f"layers_{i}"]}
        expected = Block().apply(one, X, deterministic=True, method="double_mlp")
        np.testing.assert_allclose(mapped[i], expected, atol=1e-6)


class Outer(Block):
    """A block without broadcast arguments."""

    def __call__(self, x, scanned, *, deterministic):
        return x * 0.5 + self.mlp(x, deterministic=deterministic) - scanned, None


class Pair(nn.Module):
    scan_layers: bool
    remat: str = "none"
    num_outer: int = 2
    dropout_rate: float = 0.0

    def setup(self):
        outer, inner = (functools.partial(block, self.dropout_rate) for block in (Outer, Block))
        self.outer = Stack(outer, self.num_outer, self.scan_layers, self.remat)
        self.inner = Stack(inner, 4, self.scan_layers, self.remat)

    def __call__(self, x, *, deterministic=True):
        scanned = {"outer_scanned": 3 * SCANNED[: self.num_outer], "inner_scanned": SCANNED}
        stacks = (self.outer, self.inner)
        return interleave(*stacks, x, SHIFT, **scanned, deterministic=deterministic)


@pytest.mark.parametrize("num_outer", [1, 2, 4])
def test_interleave_runs_an_outer_block_before_every_kth_inner_one(num_outer):
    scanned, looped = Pair(True, num_outer=num_outer), Pair(False, num_outer=num_outer)
    params = nn.unbox(jax.jit(scanned.init)(jax.random.key(0), X))["params"]
    assert jax.tree.map(jnp.shape, params["inner"]) == jax.tree.map(jnp.shape, init(make()))
    depths = {"outer": num_outer, "inner": 4}
    blocks = {name: unstack_layers(params[name], depth) for name, depth in depths.items()}
    y, expected_outputs = X, []
    for i in range(4):
        group, rest = divmod(i, 4 // num_outer)
        if rest == 0:
            one = {"params": blocks["outer"][f"layers_{group}"]}
            y, _ = Outer().apply(one, y, 3 * SCANNED[group], deterministic=True)
        one = {"params": blocks["inner"][f"layers_{i}"]}
        y, output = Block().apply(one, y, SCANNED[i], SHIFT, deterministic=True)
        expected_outputs.append(output)
    for model, model_params in ((scanned, params), (looped, blocks)):
        x, outputs = jax.jit(model.apply)({"params": model_params}, X)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs, jnp.stack(expected_outputs), rtol=1e-5)


@pytest.mark.slow
@REMATS
def test_interleave_remat_equals_plain(scan_layers, remat):
    variables = nn.unbox(jax.jit(Pair(scan_layers).init)(jax.random.key(0), X))

    def loss(variables, remat):
        model = Pair(scan_layers, remat, dropout_rate=0.5)
        x, _ = model.apply(variables, X, deterministic=False, rngs=dropout(0))
        return jnp.tanh(x).mean()

    assert_remat_equals_plain(loss, variables, remat)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_dropout_differs_between_keys_and_repeats_with_one(scan_layers):
    model = Pair(scan_layers, dropout_rate=0.5)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    jitted = jax.jit(model.apply, static_argnames="deterministic")

    def apply(seed):
        return jitted(variables, X, deterministic=False, rngs=dropout(seed))[0]

    np.testing.assert_array_equal(apply(0), apply(0))
    assert not np.allclose(apply(0), apply(1))
    assert not np.allclose(apply(0), model.apply(variables, X)[0])


def test_interleave_refuses_depths_that_do_not_divide():
    with pytest.raises(ValueError, match="cannot interleave 3 layers"):
        Pair(True, num_outer=3).init(jax.random.key(0), X)
