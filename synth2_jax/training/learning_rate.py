"""The learning rate over the steps of a run, which may have several training stages."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synth2_jax.errors import UserError

Restarts = Sequence[int | tuple[int, float]]


def stages(restarts: Restarts) -> list[tuple[int, float]]:
    """Returns (first step, factor of the learning rate) of each training stage."""
    pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in restarts]
    return [(0, 1.0), *((int(step), float(factor)) for step, factor in pairs)]


def check_restarts(restarts: Restarts) -> None:
    """Raises ValueError unless steps rise from 1 on and factors are above 0."""
    steps, factors = zip(*stages(restarts), strict=True)
    if list(steps) != sorted(set(steps)):
        raise ValueError(f"restarts: found steps {steps[1:]}, expected rising ones from 1 on")
    if not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"restarts: found factors {factors[1:]}, expected numbers above 0")


def learning_rate_schedule(
    config: Any, num_steps: int | None = None, where: str = "--config"
) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate as a function of the number of updates made before.

    Args:
      config: an OptimizerConfig.
      num_steps: those of the whole run; a constant schedule needs none.
      where: the section with `optimizer` and `train` in it.

    Raises:
      UserError: a warm-up that leaves no step for the fall, or a restart after the last step.
    """
    starts, factors = zip(*stages(config.restarts), strict=True)
    if num_steps is not None and starts[-1] >= num_steps > 0:
        raise UserError(
            f"{where}.optimizer.restarts: found a restart at step {starts[-1]}, expected one below "
            f"the {num_steps} of {where}.train.steps"
        )
    ends = (*starts[1:], num_steps)
    each = [
        _one_stage(config, config.learning_rate * factor, start, end, where)
        for start, end, factor in zip(starts, ends, factors, strict=True)
    ]
    return optax.join_schedules(each, list(starts[1:]))


def _one_stage(
    config: Any, peak: float, start: int, end: int | None, where: str
) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate of one training stage, by the number of steps since `start`."""
    warmup, final = config.warmup_steps, peak * config.final_fraction
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif end is None:
        raise ValueError(f"schedule {config.schedule!r} without num_steps")
    elif end - start <= warmup:
        steps = f"{end} of {where}.train.steps"
        if config.restarts:
            steps = f"{end - start} from step {start} to {end} ({where}.optimizer.restarts)"
        raise UserError(
            f"{where}.optimizer.warmup_steps: found {warmup}, expected fewer than the {steps}, for "
            f"the schedule is {config.schedule!r}"
        )
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, end - start - warmup, config.final_fraction)
    else:
        after = optax.linear_schedule(peak, final, end - start - warmup)

    def rate(step: jax.Array) -> jax.Array:
        # The first update is already of size peak / warmup: one at rate 0 would be a wasted batch.
        climb = peak * (step + 1) / max(warmup, 1)
        return jnp.where(step < warmup, climb, after(step - warmup)).astype(jnp.float32)

    return rate
