"""Parallel decoding: from all tokens masked to none, over any `logits_fn` (MaskGIT, 3.2).

Counts are exact because positions are ranked, not compared with a threshold (ties cannot
under-mask); a revealed id is never written again; and every row has its own random stream, so a
batch of 1 and a batch of 512 give the same row.

Legend: B batch, N image tokens, V codebook size (logits), S sampling steps, Y X rows and columns of
the token grid.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.config import check_choices, check_counts
from synth2_jax.errors import UserError
from synth2_jax.models.mask_schedule import SCHEDULES, masked_counts
from synth2_jax.sampling.categorical import categorical

LogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
ORDERS = ("confidence", "halton", "random")


@dataclasses.dataclass(frozen=True)
class ParallelDecodeConfig:
    """Sampler settings.

    Attributes:
      num_steps: steps S, at most the number of tokens.
      schedule: name of the mask schedule (`mask_schedule.SCHEDULES`).
      order: which positions are revealed first. "confidence": the most probable samples, blurred by
        Gumbel noise (MaskGIT). "halton": a low-discrepancy walk over the token grid (as a torus),
        with a random start for each row (after Halton-MaskGIT, 2503.17076). "random".
      choice_temperature: Gumbel noise on the confidence, annealed linearly to 0 at the last step.
      sample_temperature: temperature of the draw of an id; 0 takes the most probable id. The
        confidence is always the log-probability at temperature 1.
      grid: rows and columns of the token grid for "halton"; None when it is square.
    """

    num_steps: int = 12
    schedule: str = "cosine"
    order: str = "confidence"
    choice_temperature: float = 4.5
    sample_temperature: float = 1.0
    grid: tuple[int, int] | None = None

    def __post_init__(self):
        check_choices(self, schedule=SCHEDULES, order=ORDERS)
        check_counts(self, "choice_temperature", "sample_temperature", least=0)


def row_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key for each row. Row b's key depends on `key` and b only, never on the batch size."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def halton_order(rows: int, columns: int) -> np.ndarray:
    """The order in which a Halton sequence (bases 2 and 3) first visits the cells of a grid.

    int32[rows * columns], a permutation: entry i is the flat position (row-major) that comes i-th.
    """

    def radical_inverse(index: int, base: int) -> tuple[int, int]:
        # An exact fraction: floor(fraction * rows) must not depend on rounding.
        numerator, denominator = 0, 1
        while index:
            index, digit = divmod(index, base)
            numerator, denominator = numerator * base + digit, denominator * base
        return numerator, denominator

    seen: dict[int, None] = {}
    index = 0
    while len(seen) < rows * columns:
        (y, y_scale), (x, x_scale) = radical_inverse(index, 2), radical_inverse(index, 3)
        seen.setdefault((y * rows // y_scale) * columns + x * columns // x_scale)
        index += 1
    return np.fromiter(seen, np.int32)


def keep_masked(score_BN: jax.Array, masked_BN: jax.Array, count) -> jax.Array:
    """bool[B,N]: of the masked positions, exactly the `count` with the lowest score stay masked.

    Ties go to the lower position. Positions that are not masked stay so whatever their score is;
    `count` is at most the number of masked positions of each row.
    """
    position_BN = jax.lax.broadcasted_iota(jnp.int32, masked_BN.shape, 1)
    # Masked positions first, whatever the score, NaN and infinities included; then by score, then
    # by position.
    *_, order_BN = jax.lax.sort(
        (~masked_BN, score_BN, position_BN), dimension=1, num_keys=3, is_stable=True
    )
    rank_BN = jnp.argsort(order_BN, axis=1)
    return masked_BN & (rank_BN < count)


def reveal(
    ids_BN: jax.Array,
    logits_BNV: jax.Array,
    uniform_BN2: jax.Array | None,
    score_noise_BN: jax.Array,
    fixed_score_BN: jax.Array | None,
    count,
    *,
    mask_id: int,
    sample_temperature: float,
) -> jax.Array:
    """One step with its noise given: samples every masked position, then masks `count` again.

    `uniform_BN2` in [0, 1) is for `categorical`, unused at temperature 0 (argmax). `score_noise_BN`
    is added to the confidence; `fixed_score_BN`, high first, is an order decided beforehand, None
    ranks by confidence. `mask_id` is never sampled, even when the logits have an entry for it.
    """
    logits_BNV = logits_BNV.astype(jnp.float32)
    if logits_BNV.shape[-1] > mask_id:
        logits_BNV = logits_BNV.at[..., mask_id].set(-jnp.inf)
    if sample_temperature > 0:
        sampled_BN = categorical(logits_BNV / sample_temperature, uniform_BN2)
    else:
        sampled_BN = jnp.argmax(logits_BNV, axis=-1).astype(jnp.int32)
    masked_BN = ids_BN == mask_id
    score_BN = fixed_score_BN
    if score_BN is None:
        chosen_BN = jnp.take_along_axis(logits_BNV, sampled_BN[..., None], axis=-1)[..., 0]
        score_BN = chosen_BN - jax.nn.logsumexp(logits_BNV, axis=-1) + score_noise_BN
    still_BN = keep_masked(score_BN, masked_BN, count)
    return jnp.where(masked_BN & ~still_BN, sampled_BN, ids_BN)


def parallel_decode(
    logits_fn: LogitsFn | Sequence[LogitsFn],
    keys_B: jax.Array,
    *,
    num_tokens: int,
    mask_id: int,
    config: ParallelDecodeConfig,
    return_history: bool = False,
):
    """Samples ids, i32[B,N], with `config.num_steps` calls of `logits_fn` in one `lax.scan`.

    Args:
      logits_fn: (ids_BN i32 with `mask_id` where masked, step i32[]) -> logits_BNV. It should
        compute what does not change between steps (text keys and values) beforehand. Or a list of
        such functions, one for each step: every run of equal ones is one scan.
      keys_B: one random key for each row, such as `row_keys`; row b depends on its own only.
      return_history: also return the ids after each step, i32[S,B,N].

    Raises:
      UserError: more steps than tokens, or a grid that does not fit the tokens.
    """
    counts_S = masked_counts(config.schedule, config.num_steps, num_tokens)
    steps_S = np.arange(config.num_steps, dtype=np.int32)
    noise_scale_S = config.choice_temperature * (1 - (steps_S + 1) / config.num_steps)
    batch_size = keys_B.shape[0]
    functions_S = [logits_fn] * config.num_steps if callable(logits_fn) else logits_fn

    order_keys_B, step_keys_B = jnp.moveaxis(jax.vmap(jax.random.split)(keys_B), 1, 0)
    fixed_score_BN = _fixed_score(order_keys_B, num_tokens, config)

    def noise(key, step):
        sample_key, score_key = jax.random.split(jax.random.fold_in(key, step))
        uniform_N2 = jax.random.uniform(sample_key, (num_tokens, 2))
        return uniform_N2, jax.random.gumbel(score_key, (num_tokens,))

    def body(logits_fn, ids_BN, scanned):
        step, count, noise_scale = scanned
        logits_BNV = logits_fn(ids_BN, step)
        uniform_BN2, score_noise_BN = jax.vmap(noise, (0, None))(step_keys_B, step)
        ids_BN = reveal(
            ids_BN,
            logits_BNV,
            uniform_BN2,
            noise_scale * score_noise_BN,
            fixed_score_BN,
            count,
            mask_id=mask_id,
            sample_temperature=config.sample_temperature,
        )
        return ids_BN, (ids_BN if return_history else None)

    ids_BN = jnp.full((batch_size, num_tokens), mask_id, jnp.int32)
    scanned_S = (steps_S, counts_S, noise_scale_S.astype(np.float32))
    histories = []
    for function, run in itertools.groupby(range(config.num_steps), functions_S.__getitem__):
        rows = list(run)
        scanned = tuple(jnp.asarray(x_S[rows]) for x_S in scanned_S)
        ids_BN, history = jax.lax.scan(functools.partial(body, function), ids_BN, scanned)
        histories.append(history)
    return (ids_BN, jnp.concatenate(histories)) if return_history else ids_BN


def _fixed_score(keys_B, num_tokens: int, config: ParallelDecodeConfig):
    """Score of each position, high first, for an order decided before the first step; or None."""
    if config.order == "confidence":
        return None
    if config.order == "random":
        return jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys_B)
    side = math.isqrt(num_tokens)
    rows, columns = config.grid or (side, side)
    if rows * columns != num_tokens:
        raise UserError(
            f"sampler grid: found {rows} x {columns}, expected a grid of {num_tokens} tokens; "
            "set `grid`"
        )
    rank_YX = np.argsort(halton_order(rows, columns)).reshape(rows, columns)
    score_YX = -jnp.asarray(rank_YX, jnp.float32)

    def shifted(key):
        shift_Y, shift_X = jax.random.randint(key, (2,), 0, jnp.asarray([rows, columns]))
        return jnp.roll(score_YX, (shift_Y, shift_X), (0, 1)).reshape(num_tokens)

    return jax.vmap(shifted)(keys_B)
