"""The generator's loss: cross-entropy of the masked tokens, none of the visible (MaskGIT, 3.1).

Legend: B batch, N image tokens, V codebook size.
"""

import jax
import jax.numpy as jnp

from synth2_jax.losses.xent import cross_entropy, predicts, token_cross_entropy, weighted_sum
from synth2_jax.models.mask_schedule import mask_ratio

# Shares of masked tokens, upper ends included. A mean over all hides that a young model only copies
# visible tokens.
BUCKETS = ((0, 25), (25, 50), (50, 75), (75, 100))


def sample_mask(key: jax.Array, batch_size: int, num_tokens: int, schedule: str) -> jax.Array:
    """bool[B, N], True where masked: ceil(N * gamma(r)) random positions, r uniform for each row.

    At least one position of each row is masked, and the count is exact: positions are ranked.
    """
    ratio_key, order_key = jax.random.split(key)
    gamma_B = mask_ratio(schedule, jax.random.uniform(ratio_key, (batch_size,)))
    count_B = jnp.clip(jnp.ceil(num_tokens * gamma_B).astype(jnp.int32), 1, num_tokens)
    noise_BN = jax.random.uniform(order_key, (batch_size, num_tokens))
    rank_BN = jnp.argsort(jnp.argsort(noise_BN, axis=1), axis=1)
    return rank_BN < count_B[:, None]


def generator_loss(
    logits_BNV: jax.Array,
    image_tokens_BN: jax.Array,
    masked_BN: jax.Array,
    *,
    label_smoothing: float = 0.0,
    absent_code_weight: float = 1.0,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """{name: (sum, count)}, over masked tokens only.

    loss: cross-entropy with `label_smoothing` (MaskGIT: 0.1), the one to minimize. xent: without
    smoothing; ln(V) at the start of training. accuracy. xent_masked_50_75 and so on: xent of the
    rows of which 50 % < masked <= 75 %.

    `absent_code_weight`, of codes that no image of the batch has in the loss's softmax: at 1 each
    step teaches that they are wrong everywhere, and a code that the pairs never show is never
    drawn, however well the caption describes it.
    """
    weights_V = None
    if absent_code_weight != 1.0:
        weights_V = jnp.full(logits_BNV.shape[-1], absent_code_weight).at[image_tokens_BN].set(1.0)
    xent_BN = token_cross_entropy(logits_BNV, image_tokens_BN)
    right_BN = predicts(logits_BNV, image_tokens_BN)
    metrics = {
        "loss": cross_entropy(logits_BNV, image_tokens_BN, masked_BN, label_smoothing, weights_V),
        "xent": weighted_sum(xent_BN, masked_BN),
        "accuracy": weighted_sum(right_BN, masked_BN),
    }
    # Integers, so that a row on a bucket's edge does not depend on rounding.
    num_tokens = masked_BN.shape[1]
    percent_B1 = 100 * jnp.sum(masked_BN, axis=1, keepdims=True, dtype=jnp.int32)
    for low, high in BUCKETS:
        inside_B1 = (percent_B1 > low * num_tokens) & (percent_B1 <= high * num_tokens)
        metrics[f"xent_masked_{low}_{high}"] = weighted_sum(xent_BN, masked_BN & inside_B1)
    return metrics
