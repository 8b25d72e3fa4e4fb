"""Many copies of one block, as a scan or as a loop, with or without rematerialization.

A block's method takes `(x_BTD, scanned, *broadcast, **static)` and returns `(x_BTD, output)`:
`scanned` is what each layer has for itself (its cache, its keys and values), `broadcast` are arrays
all layers share (masks, positions; None is allowed), `static` are Python values such as
`deterministic`. Scanned inputs and outputs have a leading layer axis, in a scan and in a loop.

B batch, T positions, D width, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.layers.attention import MultiHeadAttention
from synth2_jax.layers.dropout import attention_rate, check_rates
from synth2_jax.sharding import constrain, traced_platform

PyTree = Any

# What a block's backward pass does not compute again. full: nothing; dots: products with weights.
_REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def check_stack(config: Any, *counts: str) -> None:
    """Raises UserError unless a config, such as a StackConfig, makes a stack of transformer blocks.

    `counts` are more fields that must be 1 or more.
    """
    config_lib.dtype(config.dtype, "dtype")
    config_lib.check_choices(config, remat=_REMAT_POLICIES)
    config_lib.check_counts(config, "embed_dim", "num_heads", "head_dim", "mlp_dim", *counts)
    config_lib.check_layers(config, "num_layers")
    check_rates(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Sizes of a stack of transformer blocks; each model's config adds its own."""

    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float | None = None  # `dropout_rate`
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"

    def __post_init__(self):
        check_stack(self)

    def attention(self, **options: Any) -> MultiHeadAttention:
        """A block's attention."""
        sizes = (self.num_heads, self.head_dim, self.embed_dim, config_lib.dtype(self.dtype))
        return MultiHeadAttention(*sizes, dropout_rate=attention_rate(self), **options)

    def stack(self, block: Callable[..., nn.Module], name: str | None = None) -> "Stack":
        """A stack of `block(config)`."""
        make = functools.partial(block, self)
        return Stack(make, self.num_layers, self.scan_layers, self.remat, name=name)


class Stack(nn.Module):
    """`num_layers` blocks on a residual stream [B, T, D].

    Parameters: "layers" with a leading logical axis "layers" when `scan_layers`, else "layers_0",
    "layers_1", ... `stack_layers` and `unstack_layers` convert between the two.
    """

    block: Callable[..., nn.Module]  # makes one block: functools.partial(Block, config)
    num_layers: int
    scan_layers: bool
    remat: str = "none"

    def setup(self):
        if self.scan_layers:
            self.layers = self.block()
        else:
            self.layers = [self.block() for _ in range(self.num_layers)]

    def __call__(
        self, x_BTD: jax.Array, *broadcast: PyTree, scanned: PyTree = None, **static: Any
    ) -> tuple[jax.Array, PyTree]:
        """(x_BTD, outputs) after all layers; outputs have a leading layer axis."""
        body = self._lifted(**static)
        if self.scan_layers:
            return self._scan(body, len(broadcast))(self.layers, x_BTD, scanned, *broadcast)
        outputs = []
        for i, layer in enumerate(self.layers):
            x_BTD, output = body(layer, x_BTD, take_layer(scanned, i), *broadcast)
            outputs.append(output)
        return x_BTD, _stack_trees(outputs)

    def map(self, method: str, *broadcast: PyTree, **static: Any) -> PyTree:
        """Every layer's `method(*broadcast, **static)`, with a leading layer axis."""

        def body(layer, carry, scanned, *broadcast):
            return carry, getattr(layer, method)(*broadcast, **static)

        if self.scan_layers:
            return self._scan(body, len(broadcast))(self.layers, (), None, *broadcast)[1]
        return _stack_trees([body(layer, (), None, *broadcast)[1] for layer in self.layers])

    def _scan(self, body: Callable, num_broadcast: int) -> Callable:
        return nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0,) + (nn.broadcast,) * num_broadcast,
            length=self.num_layers,
            unroll=_unroll(self.num_layers, self),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    def _lifted(self, **static: Any) -> Callable:
        """body(layer, x_BTD, scanned, *broadcast) of a bound layer."""

        def body(layer, x_BTD, scanned, *broadcast):
            return layer(_constrain(x_BTD), scanned, *broadcast, **static)

        if self.remat == "none":
            return body
        # Inside a scan XLA cannot merge the two computations anyway.
        policy = _REMAT_POLICIES[self.remat]
        return nn.remat(body, policy=policy, prevent_cse=not self.scan_layers)

    def _pure(self, **static: Any) -> tuple[Callable, PyTree]:
        """(run(layer, x_BTD, scanned, *broadcast), layers) for an initialized scanned stack.

        `layers` holds every layer's parameters and dropout key as plain arrays with a leading
        layer axis, to be sliced at will; `run` is remat-wrapped.
        """
        block = self.block(parent=None)
        layers = {"params": nn.unbox(self.layers.variables["params"]), "keys": {}}
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), self.num_layers)
            layers["keys"] = {"dropout": keys}

        def run(layer, x_BTD, scanned, *broadcast):
            options = {**static, "rngs": layer["keys"]}
            variables = {"params": layer["params"]}
            return block.apply(variables, _constrain(x_BTD), scanned, *broadcast, **options)

        if self.remat != "none":
            run = jax.checkpoint(run, policy=_REMAT_POLICIES[self.remat], prevent_cse=False)
        return run, layers


def interleave(
    outer: Stack,
    inner: Stack,
    x_BTD: jax.Array,
    *inner_broadcast: PyTree,
    outer_scanned: PyTree = None,
    inner_scanned: PyTree = None,
    **static: Any,
) -> tuple[jax.Array, PyTree]:
    """One outer layer, then k inner layers, and so on; k = inner.num_layers / outer.num_layers.

    (x_BTD, outputs of the inner layers). Each stack keeps the parameters it has on its own, so an
    inner stack trained alone fits. Both stacks scan or both loop.
    """
    every, rest = divmod(inner.num_layers, outer.num_layers)
    if rest or outer.scan_layers != inner.scan_layers:
        raise ValueError(
            f"cannot interleave {outer.num_layers} layers (scan_layers={outer.scan_layers}) with "
            f"{inner.num_layers} (scan_layers={inner.scan_layers})"
        )
    if outer.is_initializing():  # only creates parameters; shapes do not depend on the order
        x_BTD, _ = outer(x_BTD, scanned=outer_scanned, **static)
        return inner(x_BTD, *inner_broadcast, scanned=inner_scanned, **static)
    # A lifted scan slices every parameter along one axis of one length, which two stacks of
    # different depth do not have; their parameters are only arrays here, so a plain scan can.
    if outer.scan_layers:
        run_outer, outer_layers = outer._pure(**static)
        run_inner, inner_layers = inner._pure(**static)

        def one_inner(x_BTD, one):
            return run_inner(one[0], x_BTD, one[1], *inner_broadcast)

        def group(x_BTD, slices):
            (outer_layer, outer_scanned), inner_slices = slices
            x_BTD, _ = run_outer(outer_layer, x_BTD, outer_scanned)
            return jax.lax.scan(one_inner, x_BTD, inner_slices, unroll=_unroll(every, outer, inner))

        in_groups = jax.tree.map(
            lambda leaf: leaf.reshape((outer.num_layers, every) + leaf.shape[1:]),
            (inner_layers, inner_scanned),
        )
        slices = ((outer_layers, outer_scanned), in_groups)
        unroll = _unroll(outer.num_layers, outer, inner)
        x_BTD, outputs = jax.lax.scan(group, x_BTD, slices, unroll=unroll)
        return x_BTD, jax.tree.map(lambda leaf: leaf.reshape((-1,) + leaf.shape[2:]), outputs)

    run_outer, run_inner = outer._lifted(**static), inner._lifted(**static)
    outputs = []
    for i, layer in enumerate(inner.layers):
        if i % every == 0:
            group = i // every
            x_BTD, _ = run_outer(outer.layers[group], x_BTD, take_layer(outer_scanned, group))
        x_BTD, output = run_inner(layer, x_BTD, take_layer(inner_scanned, i), *inner_broadcast)
        outputs.append(output)
    return x_BTD, _stack_trees(outputs)


def take_layer(stacked: PyTree, index: int) -> PyTree:
    """Layer `index` of a tree whose leaves have a leading layer axis."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def is_stacked(path: str) -> bool:
    """Returns whether a parameter's path is in a scanned stack: its first axis is layers."""
    return "layers" in path.split("/")


def stack_layers(params: PyTree, num_layers: int) -> PyTree:
    """The parameters of a looped stack ("layers_0", ...), unboxed, as a scanned one has them."""
    return {"layers": _stack_trees([params[f"layers_{i}"] for i in range(num_layers)])}


def unstack_layers(params: PyTree, num_layers: int) -> PyTree:
    """The inverse of `stack_layers`."""
    return {f"layers_{i}": take_layer(params["layers"], i) for i in range(num_layers)}


def _stack_trees(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unroll(num_layers: int, *stacks: Stack) -> int:
    """Layers of a round of a scan: all for GPUs, where slicing and stacking go through memory.

    On an H200 that is 40 % of a training step (benchmarks/NOTES.md). With rematerialization a scan
    stays one: without it, XLA would merge what is computed again with the forward pass.
    """
    plain = all(stack.remat == "none" for stack in stacks)
    return num_layers if plain and traced_platform() == "gpu" else 1


def _constrain(x_BTD: jax.Array) -> jax.Array:
    """Between blocks the stream is split by rows; the blocks gather their weights, not the rows."""
    return constrain(x_BTD, "batch", "length", None)
