import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.sampling.batches import in_batches


@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 8, 9])
def test_rows_come_back_in_order_from_batches_of_one_shape(num_rows):
    shapes = []

    def double(x_BX):
        shapes.append(x_BX.shape)
        return 2 * jnp.asarray(x_BX)

    rows = np.arange(2 * num_rows).reshape(num_rows, 2)
    parts = list(in_batches(double, rows, 4))
    assert [len(part) for part in parts] == [4] * (num_rows // 4) + [num_rows % 4][: num_rows % 4]
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, 2)), *parts]), 2 * rows)
    assert set(shapes) <= {(4, 2)}


def test_arrays_are_made_of_the_rows_that_are_there():
    seen = []

    def arrays(names):
        seen.append(list(names))
        return np.array([len(name) for name in names]), np.array([[1.0, 2.0]] * len(names))

    found = in_batches(
        jax.jit(lambda a_B, b_BX: a_B[:, None] * b_BX), ["a", "bb", "ccc"], 2, arrays
    )
    np.testing.assert_array_equal(np.concatenate(list(found)), [[1, 2], [2, 4], [3, 6]])
    assert seen == [["a", "bb"], ["ccc"]]
