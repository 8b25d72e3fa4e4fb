"""Optimizers and learning-rate schedules, from one config section."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from synth2_jax.errors import UserError, nearest
from synth2_jax.layers.stack import is_stacked
from synth2_jax.training import train_state

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adafactor", "adam", "adamw")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule of one training.

    An update at learning rate r changes a parameter p by `-r * (u + weight_decay * p)`, so decay is
    decoupled from the gradient and proportional to the learning rate (AdamW, Loshchilov & Hutter
    2019; MaskGIT and Muse: 0.045 at 1e-4). u is Adam's update, or Adafactor's (Shazeer & Stern
    2018, as in t5x and optax): the gradient over the root of its factored second moment, scaled
    down to an RMS of at most 1, times `max(RMS(p), 1e-3)` if `multiply_by_parameter_scale`, then
    averaged by `momentum`. Each RMS and each factored moment is that of one layer, whether a stack
    of layers is scanned or looped.

    A network is a top-level part of the parameters. A tokenizer and its discriminator are two: each
    has its own norm to clip and its own count of updates, from its first gradient on.

    Attributes:

    name: "adamw", "adam" or "adafactor".
    warmup_steps: steps of the linear climb at the start.
    final_fraction: the last learning rate, as a share of the highest.
    learning_rate: the highest of the schedule, reached by a linear climb of `warmup_steps`.
    schedule: "constant", or a "cosine" or "linear" fall to `final_fraction * learning_rate` at the
      end of the run, which warm-up is part of.
    beta1, beta2, epsilon: Adam's and AdamW's; adafactor has none of them.
    momentum: adafactor's, a moving average of its updates (Muse: 0.9); 0 keeps none.
    multiply_by_parameter_scale: adafactor's: the learning rate is relative to a parameter's RMS, as
      T5 has it (0.001 to 0.01). With False it is an absolute step size, as Adam's (Muse: 1e-4).
    weight_decay: only "adamw" and "adafactor" have it.
    weight_decay_skip: regular expressions; a parameter with one of them in its path does not decay.
    clip_norm: the gradients of each network are scaled down to this global norm; 0 does not clip.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum: float = 0.0
    multiply_by_parameter_scale: bool = True
    weight_decay: float = 0.0
    weight_decay_skip: tuple[str, ...] = ()
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name: unknown {self.name!r}; {nearest(self.name, OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule: unknown {self.schedule!r}; {nearest(self.schedule, SCHEDULES)}"
            )
        if self.momentum and self.name != "adafactor":
            raise ValueError(
                f"momentum: found {self.momentum}, expected 0 with `name`={self.name}, which has "
                "`beta1`"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: found {self.momentum}, expected 0 to below 1")
        if not self.multiply_by_parameter_scale and self.name != "adafactor":
            raise ValueError(
                f"multiply_by_parameter_scale: found False, expected True with `name`={self.name}: "
                "only adafactor multiplies"
            )
        if self.name == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay: found {self.weight_decay}, expected 0 with `name`=adam. Use adamw."
            )
        if self.weight_decay_skip and not self.weight_decay:
            raise ValueError(
                "weight_decay_skip: found patterns, expected none with `weight_decay`=0"
            )


class Optimizer(NamedTuple):
    """An optax.GradientTransformation that also tells its learning rate: i32[] step -> f32[]."""

    init: Callable[..., optax.OptState]
    update: Callable[..., tuple[Any, optax.OptState]]
    learning_rate: Callable[[jax.Array], jax.Array]


def make_optimizer(
    config: OptimizerConfig, num_steps: int | None = None, where: str = "--config"
) -> Optimizer:
    """Returns the optimizer of the config, for parameters keyed by path.

    Its `init` raises UserError when a pattern of `weight_decay_skip` matches nothing trained.
    Arguments are those of `learning_rate_schedule`.
    """
    rate = learning_rate_schedule(config, num_steps, where)
    decay = config.weight_decay
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adafactor":
        of_one_array = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
        if config.multiply_by_parameter_scale:
            of_one_array += [optax.scale_by_param_block_rms()]
        parts += [_each_layer(optax.chain(*of_one_array))]
        if config.momentum:
            parts += [optax.ema(config.momentum, debias=False)]
    else:
        parts += [optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)]
    parts = [_each_network(part) for part in parts]
    if decay:

        def decays(params: Mapping[str, Any]) -> dict[str, bool]:
            skipped = train_state.select(
                config.weight_decay_skip, params, f"{where}.optimizer.weight_decay_skip"
            )
            return {path: path not in skipped for path in params}

        parts += [optax.add_decayed_weights(decay, mask=decays)]
    parts += [optax.scale_by_learning_rate(rate)]
    return Optimizer(*optax.chain(*parts), learning_rate=rate)


def _each_layer(of_one_array: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs a transformation with statistics of a whole array on every layer's matrices alone.

    Parameters of a scanned stack hold all layers in one array, whose first axis is the layer. An
    array of more than two axes is taken for the matrix of its longest axis and all others, as t5x
    takes a kernel [embed, heads, kv]: what is factored does not depend on the number of heads.
    """

    def init(param: Any) -> optax.OptState:
        return of_one_array.init(jax.tree.map(_matrix, param))  # a box in the layout of the state

    def update(grad: jax.Array, state: optax.OptState, param: jax.Array) -> tuple:
        found, state = of_one_array.update(_matrix(grad), state, _matrix(param))
        return _matrix(found, grad.shape), state

    def each(function: Callable[..., Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
        return {
            path: (jax.vmap(function) if is_stacked(path) else function)(
                *(tree[path] for tree in trees)
            )
            for path in trees[0]
        }

    def update_each(
        updates: Mapping[str, Any], state: Mapping[str, Any], params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        both = each(update, updates, state, params)
        return tuple({path: pair[i] for path, pair in both.items()} for i in (0, 1))

    return optax.GradientTransformation(lambda params: each(init, params), update_each)


def _matrix(x: jax.Array, back: tuple[int, ...] | None = None) -> jax.Array:
    """x [..., longest axis, ...] -> [longest axis, all others]; with `back`, a shape, the inverse.

    Arrays of two axes and fewer stay as they are.
    """
    shape = x.shape if back is None else back
    if len(shape) <= 2:
        return x
    axis = shape.index(max(shape))
    others = shape[:axis] + shape[axis + 1 :]
    if back is None:
        return jnp.moveaxis(x, axis, 0).reshape(shape[axis], -1)
    return jnp.moveaxis(x.reshape(shape[axis], *others), 0, axis)


def _each_network(of_one_network: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs a transformation on each network alone, as an optimizer of its own would.

    A network whose gradients are all 0, as a discriminator's are until it starts, waits: its state
    stays as it is, and the first gradient finds Adam's bias correction at its beginning. The state
    is that of the transformation for one network, {network: state} for several.
    """

    def parts(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, leaf in params.items():
            found.setdefault(path.split("/")[0], {})[path] = leaf
        return found

    def init(params: Mapping[str, Any]) -> optax.OptState:
        if len(parts(params)) == 1:
            return of_one_network.init(params)
        return {network: of_one_network.init(part) for network, part in parts(params).items()}

    def update(
        updates: Mapping[str, Any], state: optax.OptState, params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], optax.OptState]:
        if len(parts(updates)) == 1:
            return of_one_network.update(updates, state, params)
        joined, states = {}, {}
        for network, part in parts(updates).items():
            own = {path: params[path] for path in part}
            changed = of_one_network.update(part, state[network], own)
            waiting = ({path: jnp.zeros_like(leaf) for path, leaf in part.items()}, state[network])
            starts = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in part.values()]))
            pick = functools.partial(jnp.where, starts)
            found, states[network] = jax.tree.map(pick, changed, waiting)
            joined |= found
        return joined, states

    return optax.GradientTransformation(init, update)


def learning_rate_schedule(
    config: OptimizerConfig, num_steps: int | None = None, where: str = "--config"
) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate as a function of the number of updates made before.

    Args:
      config: see OptimizerConfig.
      num_steps: of the whole run; a constant schedule needs none.
      where: the section with `optimizer` and `train` in it, for the error message.

    Raises:
      UserError: the warm-up leaves no step for the fall.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    final = peak * config.final_fraction
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif num_steps is None:
        raise ValueError(f"schedule {config.schedule!r} without num_steps")
    elif num_steps <= warmup:
        raise UserError(
            f"{where}.optimizer.warmup_steps: found {warmup}, expected fewer than the {num_steps} "
            f"of {where}.train.steps, for the schedule is {config.schedule!r}"
        )
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, num_steps - warmup, alpha=config.final_fraction)
    else:
        after = optax.linear_schedule(peak, final, num_steps - warmup)

    def rate(step: jax.Array) -> jax.Array:
        # The first update is already of size peak / warmup: one at rate 0 would be a wasted batch.
        climb = peak * (step + 1) / max(warmup, 1)
        return jnp.where(step < warmup, climb, after(step - warmup)).astype(jnp.float32)

    return rate
