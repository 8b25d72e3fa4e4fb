"""Optimizers and learning-rate schedules, from one config section."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from synth2_jax.config import check_counts, check_patterns
from synth2_jax.errors import nearest
from synth2_jax.layers.stack import is_stacked
from synth2_jax.training import train_state
from synth2_jax.training.learning_rate import check_restarts, learning_rate_schedule, stages

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adafactor", "adam", "adamw")
# Norms, biases and gates, learned positions, vectors that stand for what has none, and codes.
NOT_DECAYED = (
    *("scale$", "bias$", "_gate$", "positions/", "relpos_bias/"),
    *("latents$", "mask_embedding$", "null_caption$", "codebook$"),
)


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """Trained parameters that are updated in a way of their own.

    The learning rate is a factor, so that all groups share one schedule.

    Attributes:
      pattern: regular expression; the group has the parameters with it in their path that are in no
        group before.
      learning_rate_factor: multiplies the learning rate; 0 leaves the parameters as they are.
      weight_decay: of the group; None is the optimizer's. `weight_decay_skip` holds here too.
      clip_norm: the group's gradients are scaled down to this global norm of their own, and 0 does
        not clip them; None counts them to their network.
    """

    pattern: str
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self):
        check_patterns(self, "pattern")
        check_counts(self, "learning_rate_factor", "weight_decay", "clip_norm", least=0)


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
    restarts: rising steps at which the schedule begins again, with its warm-up; the fall before it
      ends there. In the place of a step, (step, factor) multiplies `learning_rate` from there on,
      as in (400, (600, 0.5)). Adam's moments go on.
    beta1, beta2, epsilon: Adam's and AdamW's; adafactor has none of them.
    momentum: adafactor's, a moving average of its updates (Muse: 0.9); 0 keeps none.
    multiply_by_parameter_scale: adafactor's: the learning rate is relative to a parameter's RMS, as
      T5 has it (0.001 to 0.01). With False it is an absolute step size, as Adam's (Muse: 1e-4).
    weight_decay: only "adamw" and "adafactor" have it.
    weight_decay_skip: regular expressions; a parameter with one of them in its path does not decay.
      By default norms, biases, gates, learned positions, latents and codes; () lets all decay.
    clip_norm: the gradients of each network are scaled down to this global norm; 0 does not clip.
    groups: parameters with a learning rate, a decay or a norm of their own; see GroupConfig.
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
    weight_decay_skip: tuple[str, ...] = NOT_DECAYED
    clip_norm: float = 1.0
    groups: tuple[GroupConfig, ...] = ()
    restarts: tuple[int | tuple[int, float], ...] = ()

    def __post_init__(self):
        check_patterns(self, "weight_decay_skip")
        for field, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field}: unknown {value!r}; {nearest(value, known)}")
        check_restarts(self.restarts)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: found {self.momentum}, expected 0 to below 1")
        other, here = self.name != "adafactor", f"with `name`={self.name}"
        for field, is_refused, expected, why in (
            ("momentum", other, 0, f"{here}, which has `beta1`"),
            ("multiply_by_parameter_scale", other, True, f"{here}: only adafactor multiplies"),
            ("weight_decay", self.name == "adam", 0, f"{here}. Use adamw."),
            ("weight_decay_skip", not self.decays, (), "with `weight_decay`=0"),
        ):
            found = getattr(self, field)
            if is_refused and found not in (expected, NOT_DECAYED):
                raise ValueError(f"{field}: found {found}, expected {expected} {why}")
        for number, group in enumerate(self.groups):
            if self.name == "adam" and group.weight_decay:
                found = f"groups[{number}].weight_decay: found {group.weight_decay}"
                raise ValueError(f"{found}, expected 0 {here}. Use adamw.")

    @property
    def decays(self) -> set[float]:
        """All weight decays above 0 that parameters may have."""
        own = {group.weight_decay for group in self.groups}
        return {self.weight_decay, *own} - {None, 0.0}

    def by_group(self, paths: Iterable[str], where: str = "--config") -> dict[str, int]:
        """Returns the number of its group for each trained parameter that is in one.

        Raises:
          UserError: a group without a parameter.
        """
        rest, found = set(paths), {}
        for number, group in enumerate(self.groups):
            key = f"{where}.optimizer.groups[{number}].pattern"
            chosen = train_state.select([group.pattern], rest, key)
            found |= dict.fromkeys(chosen, number)
            rest -= chosen
        return found


class Optimizer(NamedTuple):
    """An optax.GradientTransformation with its learning rate, i32[] step -> f32[], and its groups.

    `groups(paths)` returns words for the group of each trained parameter that is in one.
    `restarts` are the steps at which a training stage begins, but for the first.
    """

    init: Callable[..., optax.OptState]
    update: Callable[..., tuple[Any, optax.OptState]]
    learning_rate: Callable[[jax.Array], jax.Array]
    groups: Callable[[Iterable[str]], Mapping[str, str]] = lambda paths: {}
    restarts: tuple[int, ...] = ()


def make_optimizer(
    config: OptimizerConfig, num_steps: int | None = None, where: str = "--config"
) -> Optimizer:
    """Returns the optimizer of the config, for parameters keyed by path.

    Its `init` raises UserError when a pattern of `weight_decay_skip` or `groups` matches nothing
    trained. Arguments are those of `learning_rate_schedule`.
    """
    rate = learning_rate_schedule(config, num_steps, where)
    by_group = functools.partial(config.by_group, where=where)
    parts = []
    if config.name == "adafactor":
        of_one_array = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
        if config.multiply_by_parameter_scale:
            of_one_array += [optax.scale_by_param_block_rms()]
        parts += [_each_layer(optax.chain(*of_one_array))]
        if config.momentum:
            parts += [optax.ema(config.momentum, debias=False)]
    else:
        parts += [optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)]
    parts = [_each(lambda _, part=part: part) for part in parts]
    if config.clip_norm or any(group.clip_norm for group in config.groups):
        parts = [_clip(config, by_group), *parts]

    def decays(decay: float, params: Mapping[str, Any]) -> dict[str, bool]:
        patterns = config.weight_decay_skip
        if patterns == NOT_DECAYED:  # of all models: one has not all of them
            patterns = [one for one in patterns if any(re.search(one, path) for path in params)]
        skipped = train_state.select(patterns, params, f"{where}.optimizer.weight_decay_skip")
        groups = by_group(params)

        def own(path: str) -> float:
            told = config.groups[groups[path]].weight_decay if path in groups else None
            return config.weight_decay if told is None else told

        return {path: path not in skipped and own(path) == decay for path in params}

    def scaled(updates: Mapping[str, Any], params: Any) -> dict[str, Any]:
        del params
        groups = by_group(updates).items()
        return updates | {p: config.groups[i].learning_rate_factor * updates[p] for p, i in groups}

    for decay in sorted(config.decays):
        parts += [optax.add_decayed_weights(decay, mask=functools.partial(decays, decay))]
    if any(group.learning_rate_factor != 1 for group in config.groups):
        parts += [optax.stateless(scaled)]
    parts += [optax.scale_by_learning_rate(rate)]
    chain = optax.chain(*parts)

    def init(params: Mapping[str, Any]) -> optax.OptState:
        by_group(params)  # a group that selects nothing is an error, whatever it changes
        return chain.init(params)

    words = [f"{one.pattern!r} at {one.learning_rate_factor:g} x the rate" for one in config.groups]

    def groups(paths: Iterable[str]) -> dict[str, str]:
        return {path: words[i] for path, i in by_group(paths).items()}

    restarts = tuple(start for start, _ in stages(config.restarts)[1:])
    return Optimizer(init, chain.update, rate, groups, restarts)


def _clip(config: OptimizerConfig, by_group: Callable[..., Any]) -> optax.GradientTransformation:
    """Clips the gradients of each network, and of each group with a norm of its own."""

    def parts(paths: Iterable[str]) -> dict[str, str]:
        groups = by_group(paths).items()
        own = {path: i for path, i in groups if config.groups[i].clip_norm is not None}
        return _networks(paths) | {path: f"groups[{i}]" for path, i in own.items()}

    def clip(part: str) -> optax.GradientTransformation:
        norms = {f"groups[{i}]": group.clip_norm for i, group in enumerate(config.groups)}
        norm = norms.get(part, config.clip_norm)
        return optax.clip_by_global_norm(norm) if norm else optax.identity()

    return _each(clip, parts)


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

    def update_each(updates: Any, state: Any, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
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


def _networks(paths: Iterable[str]) -> dict[str, str]:
    """Returns the network of each parameter."""
    return {path: path.split("/")[0] for path in paths}


def _each(
    of_one: Callable[[str], optax.GradientTransformation],
    parts_of: Callable[[Iterable[str]], Mapping[str, str]] = _networks,
) -> optax.GradientTransformation:
    """Runs `of_one(name)` on each part of the parameters alone, as an optimizer of its own would.

    `parts_of` names the part of each path. A part whose gradients are all 0, as a discriminator's
    are until it starts, waits: its state stays as it is, and the first gradient finds Adam's bias
    correction at its beginning. The state is that of the transformation for one part, {name: state}
    for several.
    """

    def parts(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, name in parts_of(params).items():
            found.setdefault(name, {})[path] = params[path]
        return found

    def init(params: Mapping[str, Any]) -> optax.OptState:
        states = {name: of_one(name).init(part) for name, part in parts(params).items()}
        return states if len(states) != 1 else states.popitem()[1]

    def update(
        updates: Mapping[str, Any], state: optax.OptState, params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], optax.OptState]:
        found = parts(updates)
        if len(found) == 1:
            return of_one(*found).update(updates, state, params)
        joined, states = {}, {}
        for name, part in found.items():
            own = {path: params[path] for path in part}
            changed = of_one(name).update(part, state[name], own)
            waiting = (jax.tree.map(jnp.zeros_like, part), state[name])
            starts = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in part.values()]))
            pick = functools.partial(jnp.where, starts)
            moved, states[name] = jax.tree.map(pick, changed, waiting)
            joined |= moved
        return joined, states

    return optax.GradientTransformation(init, update)
