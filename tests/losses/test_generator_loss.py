import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.losses import generator_loss as module
from synth2_jax.losses.generator_loss import BUCKETS

generator_loss = jax.jit(
    module.generator_loss, static_argnames=("label_smoothing", "absent_code_weight")
)
sample_mask = jax.jit(module.sample_mask, static_argnums=(1, 2, 3))

B, N, V = 4, 8, 5
LOGITS = jax.random.normal(jax.random.key(0), (B, N, V)) * 2
TARGETS = jax.random.randint(jax.random.key(1), (B, N), 0, V)
# Masked: 2, 4, 6 and 8 of 8, one row at the upper end of each bucket.
MASKED = jnp.arange(N)[None] < jnp.asarray([2, 4, 6, 8])[:, None]


def xent_BN():
    log_probs = np.asarray(jax.nn.log_softmax(LOGITS))
    return -np.take_along_axis(log_probs, np.asarray(TARGETS)[..., None], axis=-1)[..., 0]


def test_sums_and_counts_by_hand():
    metrics = generator_loss(LOGITS, TARGETS, MASKED)
    per_row = (xent_BN() * np.asarray(MASKED)).sum(1)
    np.testing.assert_allclose(metrics["loss"], (per_row.sum(), 20), rtol=1e-5)
    np.testing.assert_allclose(metrics["xent"], metrics["loss"], rtol=1e-6)
    right = (np.asarray(LOGITS).argmax(-1) == np.asarray(TARGETS)) & np.asarray(MASKED)
    np.testing.assert_allclose(metrics["accuracy"], (right.sum(), 20))
    for row, (low, high) in enumerate(BUCKETS):
        expected = per_row[row], 2 * (row + 1)
        np.testing.assert_allclose(metrics[f"xent_masked_{low}_{high}"], expected, rtol=1e-5)
    uniform, count = generator_loss(jnp.zeros((B, N, V)), TARGETS, MASKED)["xent"]
    assert uniform / count == pytest.approx(np.log(V), rel=1e-6)


def test_visible_tokens_are_ignored():
    scrambled = jnp.where(MASKED[..., None], LOGITS, 7 * LOGITS[::-1] + 3)
    targets = jnp.where(MASKED, TARGETS, (TARGETS + 1) % V)
    before = generator_loss(LOGITS, TARGETS, MASKED, label_smoothing=0.1)
    after = generator_loss(scrambled, targets, MASKED, label_smoothing=0.1)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    grad = jax.grad(lambda x: generator_loss(x, TARGETS, MASKED)["loss"][0])(LOGITS)
    np.testing.assert_array_equal(jnp.any(grad != 0, axis=-1), MASKED)


def test_buckets_add_up_to_the_whole():
    mask = sample_mask(jax.random.key(3), B, N, "cosine")
    metrics = generator_loss(LOGITS, TARGETS, mask)
    parts = [metrics[f"xent_masked_{low}_{high}"] for low, high in BUCKETS]
    np.testing.assert_allclose(np.sum(parts, axis=0), metrics["xent"], rtol=1e-5)


def test_label_smoothing_changes_the_loss_only():
    plain = generator_loss(LOGITS, TARGETS, MASKED)
    smooth = generator_loss(LOGITS, TARGETS, MASKED, label_smoothing=0.1)
    expected = 0.9 * xent_BN() - 0.1 * np.asarray(jax.nn.log_softmax(LOGITS)).mean(-1)
    expected = (expected * np.asarray(MASKED)).sum()
    np.testing.assert_allclose(smooth["loss"], (expected, 20), rtol=1e-5)
    np.testing.assert_array_equal(smooth["xent"], plain["xent"])


def test_absent_codes_are_pushed_down_less():
    targets = jnp.where(TARGETS == 3, 0, TARGETS)  # no image of the batch has code 3

    def gradient(weight):
        def loss(logits):
            return generator_loss(logits, targets, MASKED, absent_code_weight=weight)["loss"][0]

        return np.asarray(jax.grad(loss)(LOGITS))[np.asarray(MASKED)]

    full, tenth, none = (gradient(weight) for weight in (1.0, 0.1, 0.0))
    assert (full[:, 3] > tenth[:, 3]).all() and (tenth[:, 3] > 0).all()
    np.testing.assert_array_equal(none[:, 3], 0.0)
    np.testing.assert_allclose(none.sum(-1), 0.0, atol=1e-6)  # still one softmax
    plain, weighted = (
        generator_loss(LOGITS, targets, MASKED, absent_code_weight=weight) for weight in (1.0, 0.1)
    )
    assert weighted["loss"][0] < plain["loss"][0]
    np.testing.assert_array_equal(weighted["xent"], plain["xent"])  # a measure stays a measure


def test_mask_counts_follow_the_schedule():
    mask = np.asarray(sample_mask(jax.random.key(0), 4000, 16, "cosine"))
    counts = mask.sum(1)
    assert counts.min() == 1 and counts.max() == 16
    # ceil(16 cos(pi r / 2)) = 16 as long as r < 2 / pi * acos(15 / 16).
    assert (counts == 16).mean() == pytest.approx(2 / np.pi * np.arccos(15 / 16), abs=0.02)
    np.testing.assert_allclose(mask.mean(0), mask.mean(), atol=0.03)  # no position is special
    assert len({row.tobytes() for row in mask[counts == 8]}) > 50
    assert np.asarray(sample_mask(jax.random.key(0), 100, 1, "sqrt")).all()
