"""One update: gradients of sum / count with respect to the trainable parameters.

A batch may be gone through in microbatches, one after the other, whose gradients add up: less
memory for activations, at the price that among several devices each microbatch gathers parameters
and reduces gradients of its own.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax import sharding
from synth2_jax.errors import UserError
from synth2_jax.training import train_state
from synth2_jax.training.metrics import Metrics, mean
from synth2_jax.training.optimizer import Optimizer
from synth2_jax.training.train_state import FlatParams, Objective, Params, TrainState

# Named streams of randomness. A stream's place is part of what a checkpoint resumes: append only.
RNG_STREAMS = ("dropout", "mask", "drop", "noise", "after_update")

StepFn = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]


def step_rngs(rng: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
    """Returns one key a stream. They depend on (rng, step) alone, so a resumed run repeats them.

    `rng` is u32[2], that of the TrainState; `step` is i32[].
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(rng), step)
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(RNG_STREAMS)}


def make_train_step(
    objective: Objective, tx: Optimizer, microbatches: int = 1, ema_decay: float = 0.0
) -> StepFn:
    """Returns `(state, batch) -> (state, {name: (sum, count)})`, to be jitted by the caller.

    The metrics are the objective's, of the parameters before the update, with "grad_norm" (before
    clipping, trainable parameters only) and "learning_rate". The gradient is that of the whole
    batch's sum / count however many microbatches there are, as far as the sum is one over rows (a
    tokenizer's entropy and a generator's `absent_code_weight` look at a microbatch each, and so do
    the metrics `perplexity` and `codes_used`); their random numbers differ. `after_update` changes
    the model's state once a batch.

    The state's moving average, where it has one, follows the trainable parameters by `ema_decay`:
    see `_next_average`.
    """

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        trainable, frozen = train_state.split_params(state.params, objective.frozen)
        rngs = step_rngs(state.rng, state.step)

        def loss_sum(trainable: FlatParams, batch, rngs):
            params = train_state.join_params(trainable, frozen)
            metrics, seen = objective.loss(params, batch, rngs, state.step, train=True)
            return metrics["loss"][0], (metrics, seen)

        gradient = jax.grad(loss_sum, has_aux=True)

        def add_one(grads, numbered):
            number, rows = numbered
            keys = {name: jax.random.fold_in(key, number) for name, key in rngs.items()}
            more, found = gradient(trainable, rows, keys)
            return jax.tree.map(jnp.add, grads, more), found

        if microbatches == 1:
            grads, (metrics, seen) = gradient(trainable, batch, rngs)
            seen = jax.tree.map(lambda one: one[None], seen)
        else:
            nothing = jax.tree.map(jnp.zeros_like, trainable)
            numbered = (jnp.arange(microbatches), _split_rows(batch, microbatches))
            grads, (each, seen) = jax.lax.scan(add_one, nothing, numbered)
            metrics = jax.tree.map(lambda values: jnp.sum(values, axis=0), each)
        count = metrics["loss"][1]
        grads = jax.tree.map(lambda total: mean((total, count)), grads)
        with jax.named_scope("optimizer"):  # by which `synth2 plan` knows it
            updates, opt_state = tx.update(grads, state.opt_state, trainable)
            trained = optax.apply_updates(trainable, updates)
        learned = train_state.join_params(trained, frozen)
        params, model_state = objective.after_update(
            learned, state.model_state, seen, rngs["after_update"]
        )
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        metrics = metrics | {
            "grad_norm": (optax.tree.norm(grads), jnp.float32(1)),
            "learning_rate": (tx.learning_rate(state.step), jnp.float32(1)),
        }
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            model_state=model_state,
            average=_next_average(state, learned, params, decay),
        )
        return state, metrics

    return train_step


def _next_average(state: TrainState, learned: Params, params: Params, decay: jax.Array) -> Params:
    """Returns the moving average after an update: d * average + (1 - d) * params, in float32.

    What `after_update` changed (from `learned` to `params`) is no step of learning: a dead code
    became one of the encoder's vectors. A mixture of both would be a code of neither, so there the
    average begins again, from the new value.
    """
    before, learned, params = map(train_state.flatten, (state.params, learned, params))

    def follow(path: str, mean: jax.Array) -> jax.Array:
        now = params[path].astype(jnp.float32)
        # Written so that what does not move stays as it is, to the last bit.
        followed = mean + (1 - decay) * (now - mean)
        if params[path] is learned[path]:
            return followed
        # A compiler may compute `learned` twice, with other roundings: they are no change.
        size = jnp.abs(before[path]) + jnp.abs(learned[path])
        rounding = 8 * jnp.finfo(learned[path].dtype).eps * size
        return jnp.where(jnp.abs(params[path] - learned[path]) > rounding, now, followed)

    flat = train_state.flatten(state.average)
    return train_state.unflatten({path: follow(path, mean) for path, mean in flat.items()})


def _split_rows(batch: Mapping[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """[B, ...] -> [parts, B / parts, ...], dealt out in turn: so no row leaves its device."""
    return {
        name: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)
        for name, rows in batch.items()
    }


def compile_train_step(
    objective: Objective,
    tx: Optimizer,
    layout: TrainState,
    mesh: Mesh,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
    microbatches: int = 1,
    ema_decay: float = 0.0,
) -> StepFn:
    """Returns the jitted step, which takes the state's memory; `synth2 plan` lowers the very same.

    `layout` is of `state_layout` with the same objective, optimizer, mesh and rules.
    """
    step = make_train_step(objective, tx, microbatches, ema_decay)
    places = train_state.shardings(layout)

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        with sharding.constraints(mesh, rules):
            return step(state, batch)

    return jax.jit(
        train_step,
        in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(places, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def check_batch(
    batch: Mapping[str, np.ndarray],
    objective: Objective,
    mesh: Mesh,
    microbatches: int = 1,
    where: str = "batch",
) -> None:
    """Raises UserError, which begins with `where`, unless the rows fit the model and the mesh."""
    rows = len(next(iter(batch.values()))) if batch else 0
    spec = objective.batch_spec(rows)
    if "image" in batch and "image_tokens" in spec:
        spec = objective.batch_spec(rows, from_images=True)
    found, expected = (
        {name: (leaf.shape, np.dtype(leaf.dtype).name) for name, leaf in arrays.items()}
        for arrays in (batch, spec)
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{where}[{name!r}]: found {found.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}"
            )
    whole = sharding.data_layout(mesh).batch_size(rows)
    sharding.check_rows(whole, mesh, where, microbatches)
