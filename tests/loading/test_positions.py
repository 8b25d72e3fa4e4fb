"""Learned positions of another number of image tokens than the checkpoint's."""

import numpy as np

from synth2_jax.loading.init_from import interpolated


def test_positions_are_interpolated():
    rng = np.random.default_rng(0)
    positions_ND = rng.normal(size=(9, 5)).astype(np.float32)
    np.testing.assert_allclose(interpolated(positions_ND, 9), positions_ND, atol=1e-6)
    constant = np.full((4, 3), 2.5, np.float32)
    for number in (1, 9, 16):
        np.testing.assert_allclose(interpolated(constant, number), 2.5, atol=1e-6)


def test_a_grid_of_four_becomes_one_of_sixteen():
    grid = np.array([[0, 10], [20, 30]], np.float32).reshape(4, 1)
    expected = [
        [0, 2.5, 7.5, 10],
        [5, 7.5, 12.5, 15],
        [15, 17.5, 22.5, 25],
        [20, 22.5, 27.5, 30],
    ]
    found = interpolated(grid, 16).reshape(4, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
