import numpy as np

from synth2_jax.layers.masks import causal_mask, key_mask


def test_causal_mask_also_of_a_cache_that_is_not_full_yet():
    np.testing.assert_array_equal(causal_mask(3), [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    cached = causal_mask(2, 5, first_position=2)
    np.testing.assert_array_equal(cached, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def test_key_mask():
    mask = key_mask(np.array([[1, 1, 0], [1, 0, 0]]))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[[[1, 1, 0]]], [[[1, 0, 0]]]])
