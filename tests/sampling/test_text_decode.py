import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.sampling.text_decode import TextDecodeConfig, decode, nucleus_mask

PAD, EOS, A, B = range(4)


def chain(table):
    """(step_fn, logits, cache) of sequences whose next token depends on the last two.

    table: logits [B, V, V, V] by row, last but one and last token; row and memory are in the cache,
    rows on axis 1, so beams that are not reordered with their cache read the wrong logits.
    """
    table = jnp.asarray(table, jnp.float32)
    rows = jnp.arange(table.shape[0])
    cache = {"row": rows[None], "last": jnp.zeros_like(rows)[None], "steps": jnp.zeros((), int)}

    def step_fn(tokens, cache):
        logits = table[cache["row"][0], cache["last"][0], tokens]
        return logits, {**cache, "last": tokens[None], "steps": cache["steps"] + 1}

    return step_fn, table[rows, PAD, PAD], cache


def random_chain(num_rows=3, seed=0):
    return 2 * np.random.default_rng(seed).normal(size=(num_rows, 4, 4, 4)).astype(np.float32)


def run(table, method, max_length=5, keys_B=None, **options):
    config = TextDecodeConfig(method, max_length, **options)
    return jax.jit(lambda keys_B: decode(*chain(table), config, keys_B=keys_B))(keys_B)


def keys(num_rows):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(num_rows))


def log_probs(table, row, ids):
    """The log probability of `ids`, token by token in numpy, pad left out."""
    total, last, token = 0.0, PAD, PAD
    for chosen in ids:
        logits = np.array(table[row, last, token], np.float64)
        logits[PAD] = -np.inf
        total += logits[chosen] - np.log(np.exp(logits).sum())
        last, token = token, chosen
    return total


def generated(ids):
    """`ids` up to eos; checks that only pads come after it."""
    ids = [int(i) for i in ids]
    length = ids.index(EOS) + 1 if EOS in ids else len(ids)
    assert PAD not in ids[:length] and set(ids[length:]) <= {PAD}
    return ids[:length]


def assert_scores_are_log_probs(table, ids, scores):
    expected = [log_probs(table, row, generated(one)) for row, one in enumerate(ids)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_greedy_takes_the_likeliest_token_each_time():
    table = random_chain()
    ids, scores = run(table, "greedy")
    for row in range(3):
        expected, last, token = [], PAD, PAD
        while len(expected) < 5 and token != EOS:
            last, token = token, 1 + int(np.argmax(table[row, last, token, 1:]))
            expected.append(token)
        assert generated(ids[row]) == expected
    assert_scores_are_log_probs(table, ids, scores)


def test_beam_finds_the_best_path_by_hand_where_greedy_does_not():
    """A leads (0.6) at first, but ends badly (0.4 at best); B (0.4) surely ends."""
    table = np.full((1, 4, 4, 4), 1e-6)
    table[0, PAD, PAD] = [1e-6, 1e-6, 0.6, 0.4]
    table[0, PAD, A] = [1e-6, 0.4, 0.3, 0.3]
    table[0, PAD, B] = [1e-6, 1.0, 1e-6, 1e-6]
    beam = {"num_beams": 2, "length_penalty": 0.0}
    for method, options, path, share in (("greedy", {}, A, 0.6 * 0.4), ("beam", beam, B, 0.4)):
        ids, scores = run(np.log(table), method, max_length=2, **options)
        assert ids.tolist() == [[path, EOS]]
        np.testing.assert_allclose(scores, [np.log(share)], atol=1e-4)


# All that fits into 4 tokens: with eos, or cut.
PATHS = [
    body + (EOS,) for length in range(4) for body in itertools.product((A, B), repeat=length)
] + list(itertools.product((A, B), repeat=4))


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 3.0])
def test_wide_beam_equals_exhaustive_search(length_penalty):
    table = random_chain()
    ids, scores = run(table, "beam", 4, num_beams=32, length_penalty=length_penalty)
    for row in range(3):
        best = max(
            (log_probs(table, row, path) / ((5 + len(path)) / 6) ** length_penalty, path)
            for path in PATHS
        )
        assert generated(ids[row]) == list(best[1])
        np.testing.assert_allclose(scores[row], best[0], rtol=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_one_beam_is_greedy(length_penalty):
    table = random_chain(num_rows=16, seed=1)
    ids, scores = run(table, "greedy")
    beam_ids, beam_scores = run(table, "beam", num_beams=1, length_penalty=length_penalty)
    np.testing.assert_array_equal(ids, beam_ids)
    lengths = np.array([len(generated(row)) for row in ids])
    assert {EOS in row for row in ids.tolist()} == {True, False}  # ended and cut ones
    scores = scores / ((5 + lengths) / 6) ** length_penalty
    np.testing.assert_allclose(beam_scores, scores, rtol=1e-5)


def test_beam_scores_are_those_of_its_ids_and_rows_do_not_depend_on_each_other():
    table = random_chain(num_rows=8, seed=2)
    ids, scores = run(table, "beam", max_length=6, length_penalty=0.0)
    assert_scores_are_log_probs(table, ids, scores)
    for row in range(3):
        alone = run(table[row : row + 1], "beam", max_length=6, length_penalty=0.0)
        np.testing.assert_array_equal(ids[row], alone[0][0])
        np.testing.assert_allclose(scores[row], alone[1][0], rtol=1e-6)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_without_eos_all_are_cut_and_pad_is_never_generated(method):
    table = random_chain()
    table[..., PAD] = 50.0
    ids, scores = run(table, method)
    assert [generated(row) for row in ids] and np.isfinite(scores).all()
    table[..., EOS] = -1e9
    ids, _ = run(table, method, 3)
    assert ids.shape == (3, 3) and set(np.unique(ids)) <= {A, B}


def test_decoding_stops_once_all_rows_have_ended():
    calls = []

    def step_fn(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.zeros((1, 4)).at[:, EOS].set(9.0), cache + 1

    logits = jnp.zeros((1, 4)).at[:, A].set(9.0)
    ids, _ = decode(step_fn, logits, jnp.zeros(()), TextDecodeConfig("greedy", max_length=50))
    jax.effects_barrier()
    assert generated(ids[0]) == [A, EOS] and len(calls) == 1


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.4, [0, 1, 0, 0]), (0.5, [0, 1, 0, 0]), (0.7, [0, 1, 1, 0]), (1.0, [1, 1, 1, 1])],
)
def test_nucleus_mask(top_p, expected):
    logits = jnp.log(jnp.array([[0.125, 0.5, 0.25, 0.125]]))
    np.testing.assert_array_equal(nucleus_mask(logits, top_p), [expected])
    np.testing.assert_array_equal(nucleus_mask(jnp.zeros((1, 4)), 0.5), [[1, 1, 0, 0]])  # ties


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_nucleus_mask_equals_numpy_with_ties_and_impossible_ids(top_p):
    logits = np.random.default_rng(0).integers(-8, 8, (50, 40)).astype(np.float32) / 2
    logits[:, ::7] = -np.inf
    expected = np.zeros(logits.shape, bool)
    for row, keep in zip(logits, expected, strict=True):
        probs, mass = np.exp(row, dtype=np.float64) / np.exp(row, dtype=np.float64).sum(), 0.0
        for token in np.argsort(-row, kind="stable"):
            keep[token] = mass < top_p and probs[token] > 0
            mass += probs[token]
    # Ids that cannot come up are neither here nor there.
    np.testing.assert_array_equal(nucleus_mask(logits, top_p) & (logits > -np.inf), expected)


def test_nucleus_rows_depend_on_their_own_key_only():
    table = np.repeat(random_chain(num_rows=1), 6, axis=0)
    ids, scores = run(table, "nucleus", keys_B=keys(6))
    assert len({tuple(row) for row in ids.tolist()}) > 1
    assert_scores_are_log_probs(table, ids, scores)
    alone_ids, alone_scores = run(table[:2], "nucleus", keys_B=keys(6)[3:5])
    np.testing.assert_array_equal(ids[3:5], alone_ids)
    np.testing.assert_allclose(scores[3:5], alone_scores, rtol=1e-6)


def test_nucleus_draws_by_temperature_within_the_nucleus():
    num_rows = 4000
    table = np.broadcast_to(np.log([0.05, 0.15, 0.6, 0.2]), (num_rows, 1, 1, 4))
    options = {"temperature": 2.0, "top_p": 0.7}
    ids, _ = run(table, "nucleus", max_length=1, keys_B=keys(num_rows), **options)
    share = np.bincount(np.asarray(ids[:, 0]), minlength=4) / num_rows
    # The square root makes the shares 0.24, 0.48 and 0.28: the last two reach 0.7.
    expected = np.sqrt([0.6, 0.2]) / np.sqrt([0.6, 0.2]).sum()
    assert share[PAD] == share[EOS] == 0
    np.testing.assert_allclose(share[[A, B]], expected, atol=0.03)


def test_low_temperature_is_greedy():
    table = random_chain()
    ids, _ = run(table, "nucleus", keys_B=keys(3), temperature=1e-3, top_p=1.0)
    np.testing.assert_array_equal(ids, run(table, "greedy")[0])
    with pytest.raises(ValueError, match="keys_B"):
        run(table, "nucleus")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "beem"}, "did you mean 'beam'"),
        ({"temperature": 0.0}, "^temperature: found 0.0, expected more than 0"),
        ({"temperature": float("nan")}, "^temperature: found nan"),
        ({"top_p": 1.5}, "^top_p: found 1.5"),
        ({"num_beams": 0}, "^num_beams: found 0, expected at least 1"),
        ({"max_length": 0}, "^max_length: found 0, expected at least 1"),
    ],
)
def test_config_mistakes(kwargs, message):
    with pytest.raises(UserError, match=message):
        TextDecodeConfig(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({}, "beam of 3, length penalty 0.6, up to 64 tokens"),
        ({"method": "greedy", "max_length": 4}, "greedy, up to 4 tokens"),
        ({"method": "nucleus"}, "nucleus of 0.9 at temperature 1, up to 64 tokens"),
    ],
)
def test_a_config_describes_itself(kwargs, line):
    assert TextDecodeConfig(**kwargs).describe() == line
