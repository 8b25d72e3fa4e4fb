import numpy as np

from synth2_jax.losses.vlm_loss import vlm_loss
from synth2_jax.losses.xent import token_cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
TARGETS = np.array([[2, 3, 1, 0], [4, 1, 0, 0], [2, 4, 3, 1]])
LOSS_MASK = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
IS_SYNTHETIC = np.array([False, True, True])


def test_loss_and_its_split_against_numpy():
    metrics = vlm_loss(LOGITS, TARGETS, LOSS_MASK, IS_SYNTHETIC)
    xent = np.asarray(token_cross_entropy(LOGITS, TARGETS))
    np.testing.assert_allclose(metrics["loss"], (xent[LOSS_MASK].sum(), 4), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_real"], (xent[0, 1:3].sum(), 2), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_synthetic"], (xent[1, :2].sum(), 2), rtol=1e-6)


def test_accuracy_counts_masked_tokens_only():
    logits = np.eye(5)[TARGETS].astype(np.float32)
    logits[1, 0] = np.eye(5)[0]  # one wrong, of a synthetic image
    logits[0, 0] = np.eye(5)[0]  # one wrong, in the prompt
    metrics = vlm_loss(logits, TARGETS, LOSS_MASK, IS_SYNTHETIC)
    assert metrics["accuracy"] == (3, 4)
    assert metrics["accuracy_real"] == (2, 2)
    assert metrics["accuracy_synthetic"] == (1, 2)


def test_where_an_image_came_from_does_not_change_the_loss():
    plain = vlm_loss(LOGITS, TARGETS, LOSS_MASK)
    assert set(plain) == {"loss", "accuracy"}
    for is_synthetic in (IS_SYNTHETIC, ~IS_SYNTHETIC):
        assert vlm_loss(LOGITS, TARGETS, LOSS_MASK, is_synthetic)["loss"] == plain["loss"]
    metrics = vlm_loss(LOGITS, TARGETS, LOSS_MASK, np.zeros(3, bool))
    assert metrics["loss_synthetic"] == (0, 0) and metrics["loss_real"] == metrics["loss"]


def test_label_smoothing_reaches_the_loss():
    sharp, smooth = (
        vlm_loss(LOGITS, TARGETS, LOSS_MASK, label_smoothing=share) for share in (0.0, 0.3)
    )
    xent = np.asarray(token_cross_entropy(LOGITS, TARGETS, label_smoothing=0.3))
    np.testing.assert_allclose(smooth["loss"][0], xent[LOSS_MASK].sum(), rtol=1e-6)
    assert smooth["loss"][0] != sharp["loss"][0]
    assert smooth["accuracy"] == sharp["accuracy"]
