"""The schedule of the masked share of an image, which training and sampling share.

A schedule is a decreasing function gamma of r in [0, 1] with gamma(0) = 1 and gamma(1) = 0
(MaskGIT, section 3.3). Training draws r and masks gamma(r) of the tokens; the sampler walks r from
0 to 1 and keeps gamma(r) of them masked.

Legend: N image tokens, S sampling steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.errors import UserError, nearest

# floor(10 * (1 - 0.9)) is 0 in floating point; a count that is an integer on paper must stay one.
_COUNT_SLACK = 1e-6

_SCHEDULES = {
    # cos(pi r / 2), written so that both ends are exact: sin(pi / 2) = 1 and sin(0) = 0.
    "cosine": lambda xp, r: xp.sin(np.pi / 2 * (1 - r)),
    "linear": lambda xp, r: 1 - r,
    "square": lambda xp, r: 1 - r * r,
    "cubic": lambda xp, r: 1 - r * r * r,
    "sqrt": lambda xp, r: 1 - xp.sqrt(r),
}
SCHEDULES = tuple(_SCHEDULES)


def mask_ratio(name: str, r):
    """gamma(r), the share of tokens that is masked: 1 at r = 0, 0 at r = 1, decreasing.

    Works on traced values as well as on numbers and numpy arrays (then in float64, on the host).
    UserError unless `name` is one of `SCHEDULES`.
    """
    if name not in _SCHEDULES:
        raise UserError(f"unknown mask schedule {name!r}; {nearest(name, SCHEDULES)}")
    xp = jnp if isinstance(r, jax.Array) else np
    return xp.clip(_SCHEDULES[name](xp, xp.asarray(r)), 0.0, 1.0)


def masked_counts(name: str, num_steps: int, num_tokens: int) -> np.ndarray:
    """Returns the tokens still masked after each step: int32[S], strictly decreasing to 0.

    After step t this is floor(N * gamma((t + 1) / S)), moved only as far as needed for every step
    to reveal at least one token and for every step but the last to leave at least one masked.
    UserError on more steps than tokens.
    """
    if not 1 <= num_steps <= num_tokens:
        raise UserError(
            f"sampling steps: found {num_steps}, expected 1 to {num_tokens}, "
            "the number of image tokens"
        )
    gamma = mask_ratio(name, np.arange(1, num_steps + 1) / num_steps)
    wanted = np.floor(num_tokens * gamma + _COUNT_SLACK).astype(np.int32)
    counts, before = [], num_tokens
    for step in range(num_steps):
        steps_left = num_steps - 1 - step
        # Each later step needs a token of its own, so `steps_left` must stay masked (0 after the
        # last step).
        before = steps_left if steps_left == 0 else max(steps_left, min(before - 1, wanted[step]))
        counts.append(before)
    return np.asarray(counts, np.int32)
