import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.models.mask_schedule import SCHEDULES, masked_counts
from synth2_jax.sampling.parallel_decode import (
    ORDERS,
    ParallelDecodeConfig,
    halton_order,
    keep_masked,
    parallel_decode,
    reveal,
    row_keys,
)

N, V = 16, 7
MASK = V
decode = functools.partial(parallel_decode, num_tokens=N, mask_id=MASK)


def run(logits_fn, config, key=0, batch_size=3, **kwargs):
    sample = functools.partial(decode, logits_fn, config=config, **kwargs)
    return jax.tree.map(np.asarray, jax.jit(sample)(row_keys(jax.random.key(key), batch_size)))


def context_logits(ids_BN, step):
    """Logits that depend on the row's ids and on the step, with exact arithmetic (no matmul)."""
    context_B1 = jnp.sum(ids_BN, axis=1, keepdims=True)
    position_1N = jnp.arange(N)[None]
    code_11V = jnp.arange(V)[None, None]
    return jnp.sin((context_B1 + position_1N)[..., None] * (code_11V + 1.0) + step) * 2


# Every order and every schedule, not every pair of them.
VARIANTS = [(order, "cosine") for order in ORDERS] + [("confidence", s) for s in SCHEDULES[1:]]


# --- a slow reference: plain loops over rows, positions and codes ---


def reference_step(ids, logits, uniform, score_noise, count, temperature):
    ids, out = np.asarray(ids), np.array(ids)
    for b in range(ids.shape[0]):
        scores = []
        for n in range(ids.shape[1]):
            if ids[b, n] != MASK:
                continue
            row = np.asarray(logits[b, n], np.float64)[:V]
            code = int(np.argmax(row))
            if temperature:  # one block of codes, so the block's random number changes nothing
                weights = np.exp(row / temperature)
                sums = np.cumsum(weights)
                code = next(v for v in range(V) if sums[v] > uniform[b, n, 1] * sums[-1])
            log_p = row[code] - np.log(np.exp(row).sum())
            scores.append((np.float32(log_p + score_noise[b, n]), n))
            out[b, n] = code
        for _, n in sorted(scores)[:count]:
            out[b, n] = MASK
    return out


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_reference_with_the_same_noise(temperature, ties):
    rng = np.random.default_rng(3)
    counts = masked_counts("cosine", 6, N)
    fast = slow = np.full((4, N), MASK, np.int32)
    step = jax.jit(reveal, static_argnames=("mask_id", "sample_temperature"))
    for t, count in enumerate(counts):
        logits = np.zeros((4, N, V)) if ties else rng.normal(size=(4, N, V)) * 3
        uniform = rng.uniform(size=(4, N, 2))
        score_noise = np.zeros((4, N)) if ties else rng.gumbel(size=(4, N)) * (1 - (t + 1) / 6)
        logits, uniform, score_noise = (
            x.astype(np.float32) for x in (logits, uniform, score_noise)
        )
        noise = (uniform, score_noise, None)
        fast = step(fast, logits, *noise, count, mask_id=MASK, sample_temperature=temperature)
        slow = reference_step(slow, logits, uniform, score_noise, count, temperature)
        np.testing.assert_array_equal(fast, slow)
        assert ((slow == MASK).sum(1) == count).all()


def test_the_loop_feeds_the_annealed_noise():
    """The scan equals the reference run with the noise that the row keys stand for."""
    config = ParallelDecodeConfig(num_steps=4, choice_temperature=4.5)
    keys = row_keys(jax.random.key(5), 2)
    _, history = run(context_logits, config, key=5, batch_size=2, return_history=True)
    ids = np.full((2, N), MASK, np.int32)
    for t, count in enumerate([14, 11, 6, 0]):
        uniform, score_noise = [], []
        for key in keys:
            a, b = jax.random.split(jax.random.fold_in(jax.random.split(key)[1], t))
            uniform.append(jax.random.uniform(a, (N, 2)))
            score_noise.append(jax.random.gumbel(b, (N,)) * 4.5 * (1 - (t + 1) / 4))
        noise = np.stack(uniform), np.stack(score_noise)
        ids = reference_step(ids, context_logits(ids, t), *noise, count, 1.0)
        np.testing.assert_array_equal(history[t], ids)


def test_a_function_for_each_step_is_the_loop_of_one_that_chooses():
    config = ParallelDecodeConfig(num_steps=5)

    def other_logits(ids_BN, step):
        return -context_logits(ids_BN, step)

    def either_logits(ids_BN, step):
        return jnp.where((step == 1) | (step == 4), 1, -1) * context_logits(ids_BN, step)

    one, other = context_logits, other_logits
    expected = run(either_logits, config, return_history=True)
    found = run([other, one, other, other, one], config, return_history=True)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(run([one] * 5, config), run(one, config))


def test_a_run_of_the_same_function_is_one_scan():
    keys_B = row_keys(jax.random.key(0), 2)

    def num_scans(logits_fn):
        sample = functools.partial(decode, logits_fn, config=ParallelDecodeConfig(num_steps=4))
        return sum(eqn.primitive.name == "scan" for eqn in jax.make_jaxpr(sample)(keys_B).eqns)

    def other(ids_BN, step):
        return context_logits(ids_BN, step)

    assert num_scans(context_logits) == num_scans([context_logits] * 4) == 1
    assert num_scans([other, context_logits, context_logits, other]) == 3


@pytest.mark.parametrize(("order", "schedule"), VARIANTS)
def test_counts_are_exact_and_revealed_ids_never_change(order, schedule):
    config = ParallelDecodeConfig(num_steps=5, schedule=schedule, order=order)
    ids, history = run(context_logits, config, batch_size=6, return_history=True)
    masked = history == MASK
    expected = masked_counts(schedule, 5, N)
    np.testing.assert_array_equal(masked.sum(-1), np.tile(expected[:, None], (1, 6)))
    for before, after in zip(history[:-1], history[1:], strict=True):
        np.testing.assert_array_equal(after[before != MASK], before[before != MASK])
    np.testing.assert_array_equal(ids, history[-1])
    assert (ids >= 0).all() and (ids < V).all()


@pytest.mark.parametrize(
    ("order", "schedule", "num_steps"),
    [(*v, 7) for v in VARIANTS] + [("confidence", "cosine", 1), ("halton", "linear", 16)],
)
def test_oracle_is_decoded_exactly(order, schedule, num_steps):
    truth = np.random.default_rng(0).integers(0, V, (3, N))
    config = ParallelDecodeConfig(num_steps=num_steps, schedule=schedule, order=order)
    ids = run(lambda ids, step: 1e3 * jax.nn.one_hot(truth, V), config)
    np.testing.assert_array_equal(ids, truth)


def test_mask_id_is_never_sampled_even_when_the_logits_ask_for_it():
    def wants_mask(ids, step):
        return jnp.zeros((*ids.shape, V + 1)).at[..., MASK].set(100.0)

    for temperature in (0.0, 1.0):
        ids = run(wants_mask, ParallelDecodeConfig(num_steps=4, sample_temperature=temperature))
        assert (ids < V).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_row_is_the_same_at_any_batch_size(order):
    config = ParallelDecodeConfig(num_steps=6, order=order)
    eight = run(context_logits, config, batch_size=8)
    for size in (1, 3):
        np.testing.assert_array_equal(run(context_logits, config, batch_size=size), eight[:size])
    # Row b depends on its own key only: rows in another order give the same rows in that order.
    keys = row_keys(jax.random.key(0), 8)[jnp.asarray([5, 0, 7])]
    picked = decode(context_logits, keys, config=config)
    np.testing.assert_array_equal(picked, eight[[5, 0, 7]])
    assert len({tuple(row) for row in eight}) == 8


def test_legacy_keys_and_bfloat16_logits_give_the_same():
    config = ParallelDecodeConfig(num_steps=4)
    ids = decode(context_logits, row_keys(jax.random.PRNGKey(0), 3), config=config)
    np.testing.assert_array_equal(ids, run(context_logits, config))

    def rounded(dtype):
        return lambda ids, step: context_logits(ids, step).astype(jnp.bfloat16).astype(dtype)

    found, expected = (run(rounded(dtype), config) for dtype in (jnp.bfloat16, jnp.float32))
    np.testing.assert_array_equal(found, expected)


def test_samples_follow_the_model():
    probs = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0])
    logits = jnp.log(jnp.asarray(probs) + 1e-9)
    config = ParallelDecodeConfig(num_steps=4, order="random")
    ids = run(lambda ids, step: jnp.broadcast_to(logits, (*ids.shape, V)), config, batch_size=512)
    np.testing.assert_allclose(np.bincount(ids.ravel(), minlength=V) / ids.size, probs, atol=0.02)


def test_confidence_reveals_the_surest_first_without_noise():
    # Sure enough to differ, not so sure that log p rounds to 0.
    sureness_N1 = 1 + jnp.arange(N, dtype=jnp.float32)[::-1, None] / 4
    logits_NV = sureness_N1 * jax.nn.one_hot(jnp.array([2]), V)
    quiet = {"choice_temperature": 0.0, "sample_temperature": 0.0}
    config = ParallelDecodeConfig(num_steps=N, schedule="linear", **quiet)
    _, history = run(lambda ids, step: jnp.tile(logits_NV, (3, 1, 1)), config, return_history=True)
    for t in range(N):
        np.testing.assert_array_equal(history[t] == MASK, np.tile(np.arange(N) > t, (3, 1)))


def test_keep_masked_literal():
    masked = jnp.array([[True, True, False, True], [True, True, True, True]])
    score = jnp.array([[0.0, -1.0, -9.0, 0.0], [jnp.nan, 3.0, -jnp.inf, jnp.inf]])
    expected = [[True, True, False, False], [False, True, True, False]]
    np.testing.assert_array_equal(keep_masked(score, masked, 2), expected)
    np.testing.assert_array_equal(keep_masked(score, masked, 0), np.zeros((2, 4), bool))


def test_halton_order_literal():
    # Base 2 picks the row (0, 1/2, 1/4, 3/4, ...), base 3 the column (0, 1/3, 2/3, 1/9, ...).
    np.testing.assert_array_equal(halton_order(2, 2), [0, 2, 1, 3])
    expected = [0, 9, 6, 12, 1, 11, 4, 14, 3, 8, 5, 7, 13, 2, 15, 10]
    np.testing.assert_array_equal(halton_order(4, 4), expected)
    for y, x in [(1, 1), (3, 5), (8, 8), (16, 16)]:
        np.testing.assert_array_equal(np.sort(halton_order(y, x)), np.arange(y * x))


def test_halton_rows_are_shifted_walks_of_the_grid():
    config = ParallelDecodeConfig(num_steps=N, schedule="linear", order="halton")
    _, history = run(context_logits, config, batch_size=8, return_history=True)
    reveal_step = (history == MASK).sum(0).reshape(8, 4, 4)
    base = np.argsort(halton_order(4, 4)).reshape(4, 4)
    shifts = set()
    for row in reveal_step:
        y, x = np.argwhere(row == 0)[0]
        np.testing.assert_array_equal(row, np.roll(base, (y, x), (0, 1)))
        shifts.add((y, x))
    assert len(shifts) > 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"order": "confidance"}, "confidence"),
        ({"schedule": "cosin"}, "cosine"),
        ({"choice_temperature": -1}, "choice_temperature: found -1"),
        ({"num_steps": 17}, "expected 1 to 16"),
        ({"order": "halton", "grid": (3, 5)}, "3 x 5"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        run(context_logits, ParallelDecodeConfig(**kwargs))
