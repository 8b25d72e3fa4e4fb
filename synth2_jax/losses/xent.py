"""Cross-entropy over a vocabulary.

... any leading axes, V vocabulary.
"""

import jax
import jax.numpy as jnp


def token_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    label_smoothing: float = 0.0,
    id_weights_V: jax.Array | None = None,
) -> jax.Array:
    """f32[...], in nats, of logits [..., V] and targets i32[...].

    With smoothing e the target distribution is 1 - e on the target plus e / V on every id.
    With weights w, f32[V] of 0 and more, the softmax's sum is of w exp(logits), and the e of
    smoothing is spread in proportion to w; the weight of a target must be 1.
    """
    logits = logits.astype(jnp.float32)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1, b=id_weights_V)
    expected_logit = (1.0 - label_smoothing) * target_logit
    if label_smoothing:
        if id_weights_V is None:
            mean_logit = jnp.mean(logits, axis=-1)
        else:
            mean_logit = jnp.sum(logits * (id_weights_V / jnp.sum(id_weights_V)), axis=-1)
        expected_logit = expected_logit + label_smoothing * mean_logit
    return log_normalizer - expected_logit


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
    id_weights_V: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(sum, count), f32[] each: weighted nats and the sum of `weights` (bool or float, [...])."""
    options = {"label_smoothing": label_smoothing, "id_weights_V": id_weights_V}
    return weighted_sum(token_cross_entropy(logits, targets, **options), weights)


def predicts(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """bool[...]: whether argmax(logits [..., V]) is the target, i32[...].

    By maxima alone: a reduction of pairs, as an argmax is, is not vectorized on a CPU.
    """
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    before = ids < targets[..., None]
    # Of equal logits the first is the prediction.
    ahead = jnp.max(jnp.where(before, logits, -jnp.inf), axis=-1, keepdims=True) < target_logit
    rest = jnp.max(jnp.where(before, -jnp.inf, logits), axis=-1, keepdims=True) <= target_logit
    return (ahead & rest)[..., 0]


def weighted_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of values * weights, sum of weights), f32[] each.

    Where the weight is 0 the value may be anything, NaN included.
    """
    weights = weights.astype(jnp.float32)
    values = jnp.where(weights == 0.0, 0.0, values.astype(jnp.float32))
    return jnp.sum(values * weights), jnp.sum(weights)
