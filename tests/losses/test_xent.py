import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.losses.xent import cross_entropy, predicts, token_cross_entropy, weighted_sum

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
TARGETS = np.array([[0, 4, 2], [1, 1, 3]])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_against_the_expectation_over_a_smoothed_distribution(label_smoothing):
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    distribution = (1 - label_smoothing) * np.eye(5)[TARGETS] + label_smoothing / 5
    expected = -(distribution * log_probs).sum(-1)
    xent = token_cross_entropy(LOGITS, TARGETS, label_smoothing=label_smoothing)
    np.testing.assert_allclose(xent, expected, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_id_weights_against_the_weighted_softmax(label_smoothing):
    weights = np.array([1, 1, 1, 1, 1], np.float32)
    weights[3] = 0.2
    targets = np.array([[0, 4, 2], [1, 1, 0]])
    log_probs = LOGITS - np.log((weights * np.exp(LOGITS)).sum(-1, keepdims=True))
    distribution = (1 - label_smoothing) * np.eye(5)[targets]
    distribution = distribution + label_smoothing * weights / weights.sum()
    expected = -(distribution * log_probs).sum(-1)
    xent = functools.partial(token_cross_entropy, LOGITS, targets, label_smoothing=label_smoothing)
    np.testing.assert_allclose(xent(id_weights_V=jnp.asarray(weights)), expected, rtol=1e-5)
    np.testing.assert_allclose(xent(id_weights_V=jnp.ones(5)), xent(), rtol=1e-6)


def test_sum_and_count_leave_out_weight_zero():
    weights = np.array([[1, 0, 1], [0, 0, 0.5]], np.float32)
    xent = np.asarray(token_cross_entropy(LOGITS, TARGETS))
    total, count = cross_entropy(LOGITS, TARGETS, weights)
    np.testing.assert_allclose(total, xent[0, 0] + xent[0, 2] + 0.5 * xent[1, 2], rtol=1e-6)
    assert count == 2.5
    whole = cross_entropy(LOGITS, TARGETS, np.ones((2, 3)))
    parts = [cross_entropy(LOGITS[i], TARGETS[i], np.ones(3)) for i in range(2)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32_and_large_ones_stay_finite():
    logits = jnp.zeros((1, 1000), jnp.bfloat16)
    xent = token_cross_entropy(logits, jnp.zeros((1,), jnp.int32))
    assert xent.dtype == jnp.float32
    np.testing.assert_allclose(xent, np.log(1000), rtol=1e-6)
    logits = jnp.array([[1e4, 0.0]])
    np.testing.assert_allclose(token_cross_entropy(logits, jnp.array([1])), [1e4], rtol=1e-6)


def test_nothing_weighted_is_zero_of_zero_even_for_nan():
    total, count = weighted_sum(jnp.array([jnp.nan, 1.0]), jnp.array([False, True]))
    assert (total, count) == (1.0, 1.0)

    def loss(logits):
        return cross_entropy(logits, jnp.array([0, 0]), jnp.zeros(2))[0]

    gradient = jax.grad(loss)(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_what_a_model_predicts_is_its_argmax_also_where_logits_are_equal():
    """Of three values, so that most rows have ties; and with ids that are ruled out."""
    logits = jax.random.randint(jax.random.key(0), (200, 5), -1, 2).astype(jnp.float32)
    logits = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.2, logits.shape), -jnp.inf, logits)
    logits = logits.at[:, 4].set(0.0)
    for target in range(5):
        targets = jnp.full(200, target)
        expected = jnp.argmax(logits, axis=-1) == target
        assert expected.any() and not expected.all()
        np.testing.assert_array_equal(predicts(logits, targets), expected)
    np.testing.assert_array_equal(
        predicts(logits[:4].reshape(2, 2, 5), jnp.array([[0, 1], [2, 3]])),
        jnp.argmax(logits[:4], axis=-1).reshape(2, 2) == jnp.array([[0, 1], [2, 3]]),
    )
