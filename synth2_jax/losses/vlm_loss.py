"""Next-token loss of the VLM and of the plain language model.

B batch, I images a text, T text tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp

from synth2_jax.losses.xent import predicts, token_cross_entropy, weighted_sum

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def vlm_loss(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    loss_mask_BT: jax.Array,
    is_synthetic: jax.Array | None = None,
    image_of_text_BT: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Metrics:
    """{name: (sum, count)} over the tokens of `loss_mask_BT`: caption and eos, not the prompt.

    "loss" (nats a token, the one to minimize) and "accuracy"; with `is_synthetic` bool[B], or
    [B, I] with `image_of_text_BT` (1 to I, 0 for none), also "loss_real", "accuracy_real",
    "loss_synthetic" and "accuracy_synthetic", which may count 0. Where an image came from changes
    these metrics only, not the loss.
    """
    xent_BT = token_cross_entropy(logits_BTV, targets_BT, label_smoothing=label_smoothing)
    right_BT = predicts(logits_BTV, targets_BT)
    weights = {"": loss_mask_BT.astype(bool)}
    if is_synthetic is not None:
        if image_of_text_BT is None:
            synthetic_BT = is_synthetic[:, None].astype(bool)
        else:
            index_BT = jnp.maximum(image_of_text_BT - 1, 0)
            synthetic_BT = jnp.take_along_axis(is_synthetic.astype(bool), index_BT, axis=1)
        weights["_real"] = weights[""] & ~synthetic_BT
        weights["_synthetic"] = weights[""] & synthetic_BT
    metrics = {}
    for suffix, weights_BT in weights.items():
        metrics["loss" + suffix] = weighted_sum(xent_BT, weights_BT)
        metrics["accuracy" + suffix] = weighted_sum(right_BT, weights_BT)
    return metrics
