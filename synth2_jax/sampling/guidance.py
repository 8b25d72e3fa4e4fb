"""Classifier-free guidance, (1 + t) conditional - t unconditional, in one batch (Muse, 2.7).

Steps outside an interval run the conditional rows alone: guidance there costs time and, early on,
diversity (Kynkäänniemi et al., arXiv 2404.07724).

Legend: B batch, N image tokens, V codebook size, S sampling steps.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.config import check_choices
from synth2_jax.errors import UserError
from synth2_jax.sampling.parallel_decode import LogitsFn

RAMPS = ("constant", "linear")


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """Settings of how strongly samples follow the caption.

    Attributes:
      scale: t in (1 + t) conditional - t unconditional; 0 is plain conditional sampling.
      ramp: "constant", or "linear": step s of S uses scale * (s + 1) / S, so that early tokens stay
        diverse (Muse).
      interval: (start, end) in fractions of the steps: step s is guided when start <= s / S < end,
        and is plainly conditional outside.
    """

    scale: float = 3.0
    ramp: str = "linear"
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check_choices(self, ramp=RAMPS)
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UserError(f"interval: found {self.interval}, expected 0 <= start <= end <= 1")


def guidance_scales(config: GuidanceConfig, num_steps: int) -> np.ndarray:
    """The scale t of each step, float32[S]; 0 outside the interval."""
    steps_S = np.arange(num_steps)
    scale_S = np.full(num_steps, config.scale)
    if config.ramp == "linear":
        scale_S = scale_S * (steps_S + 1) / num_steps
    start, end = config.interval
    inside_S = (start <= steps_S / num_steps) & (steps_S / num_steps < end)
    return np.where(inside_S, scale_S, 0.0).astype(np.float32)


def guided(
    both_fn: Callable[[jax.Array], jax.Array],
    conditional_fn: Callable[[jax.Array], jax.Array],
    config: GuidanceConfig,
    *,
    num_steps: int,
) -> list[LogitsFn]:
    """The sampler's `logits_fn` for each step, (ids_BN, step) -> f32 logits_BNV.

    A step whose scale is 0 costs B rows, any other 2B. `both_fn` takes 2B rows: the first B see the
    caption, the last B the null caption (`Generator.encode_text_and_null` makes their keys and
    values, once, before the loop). `conditional_fn` takes B rows, which see the caption.
    """
    scale_S = guidance_scales(config, num_steps)

    def combined(ids_BN, step):
        logits = both_fn(jnp.concatenate([ids_BN, ids_BN])).astype(jnp.float32)
        conditional_BNV, unconditional_BNV = jnp.split(logits, 2)
        scale = jnp.asarray(scale_S)[step]
        return (1 + scale) * conditional_BNV - scale * unconditional_BNV

    def conditional(ids_BN, step):
        return conditional_fn(ids_BN).astype(jnp.float32)

    return [combined if scale else conditional for scale in scale_S]
