import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.layers.embeddings import (
    LearnedPositions,
    RelativePositionBias,
    TokenEmbedding,
    apply_rope,
    relative_position_bucket,
)


def test_token_embedding_looks_up_and_attends():
    table = jnp.arange(12.0).reshape(4, 3)
    variables = {"params": {"embedding": table}}
    layer = TokenEmbedding(4, 3, jnp.bfloat16)
    x = layer.apply(variables, jnp.array([[2, 0]]))
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x, table[jnp.array([[2, 0]])])
    logits = layer.apply(variables, x, method="attend")
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, np.asarray(table)[[[2, 0]]] @ np.asarray(table).T)


def test_learned_positions_serve_shorter_inputs_and_refuse_longer_ones():
    layer = LearnedPositions(4)
    variables = nn.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 4, 3))))
    table = variables["params"]["embedding"]
    np.testing.assert_array_equal(layer.apply(variables, jnp.ones((2, 2, 3)))[1], 1 + table[:2])
    with pytest.raises(ValueError, match="5 positions, but only 4"):
        layer.apply(variables, jnp.zeros((1, 5, 3)))


def rope(x, positions):
    return apply_rope(x, jnp.asarray(positions)[None])


def test_rope_dot_products_depend_on_the_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 8))
    dot = jnp.einsum("BTHK,BSHK->BHTS", rope(q, [0, 1, 5]), rope(k, [2, 3, 4]))
    moved = jnp.einsum("BTHK,BSHK->BHTS", rope(q, [9, 10, 14]), rope(k, [11, 12, 13]))
    np.testing.assert_allclose(dot, moved, atol=1e-5)
    other = jnp.einsum("BTHK,BSHK->BHTS", rope(q, [1, 2, 6]), rope(k, [2, 3, 4]))
    assert np.abs(dot - other).max() > 0.1


def test_rope_turns_pairs_by_their_position_and_keeps_lengths():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
    y = rope(x, [0, 7, 100])
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    norm = jnp.linalg.norm
    np.testing.assert_allclose(norm(y, axis=-1), norm(x, axis=-1), rtol=1e-5)
    # head_dim 2 is one plane turned by the position in radians.
    x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(rope(x, [2]).ravel(), [np.cos(2), np.sin(2)], atol=1e-6)
    with pytest.raises(ValueError, match="even head_dim, found 3"):
        rope(jnp.zeros((1, 1, 1, 3)), [0])


def test_relative_position_buckets_by_hand():
    # 8 buckets, half for each direction: distances 0 and 1 exactly, 2-3 and 4+ (max 8) in logs.
    distance = np.array([-9, -5, -3, -2, -1, 0, 1, 2, 3, 5, 9])
    bidirectional = relative_position_bucket(distance, 8, 8, bidirectional=True)
    np.testing.assert_array_equal(bidirectional, [3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7])
    causal = relative_position_bucket(distance, 4, 8, bidirectional=False)
    np.testing.assert_array_equal(causal, [3, 3, 2, 2, 1, 0, 0, 0, 0, 0, 0])


def test_relative_position_bias_reads_the_bucket_of_each_pair():
    layer = RelativePositionBias(num_heads=2, num_buckets=8, max_distance=8)
    variables = layer.init(jax.random.key(0), 3, 4)
    assert variables["params"]["embedding"].names == ("heads", "relpos_buckets")
    variables = {"params": {"embedding": jnp.array([np.arange(8.0), 10 + np.arange(8.0)])}}
    bias = layer.apply(variables, 3, 4)
    expected = np.array([[0, 5, 6, 6], [1, 0, 5, 6], [2, 1, 0, 5]])
    np.testing.assert_array_equal(bias, [[expected, 10 + expected]])
