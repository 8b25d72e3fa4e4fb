"""Arrays that are read when, and as far as, they are needed."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax.interop.lazy_array import LazyArray, of_array, stack


class Counted:
    """A lazy array that counts the elements that were read of it."""

    def __init__(self, array: np.ndarray):
        self.elements = 0

        def read(box):
            self.elements += array[box].size
            return array[box]

        self.lazy = LazyArray(array.shape, array.dtype, read)


def boxes(shape):
    """Some boxes of an array: all of it, one element, a middle, nothing."""
    return itertools.product(*(np.s_[0:n, 0:1, n // 2 : n, n:n] for n in shape))


ARRAY = np.arange(2 * 12 * 5).reshape(2, 12, 5)
LAZY = of_array(ARRAY)


@pytest.mark.parametrize(
    "lazy, expected",
    [
        (LAZY, ARRAY),
        (LAZY.transpose(), ARRAY.T),
        (LAZY.transpose(1, 2, 0), ARRAY.transpose(1, 2, 0)),
        (LAZY.reshape((2, 3, 4, 5)), ARRAY.reshape(2, 3, 4, 5)),
        (LAZY.reshape((2, 3, 2, 2, 5)), ARRAY.reshape(2, 3, 2, 2, 5)),
        (LAZY.reshape((1, 2, 12, 1, 5, 1)), ARRAY.reshape(1, 2, 12, 1, 5, 1)),
        (of_array(ARRAY[:1, :, :1]).reshape((3, 1, 4)), ARRAY[:1, :, :1].reshape(3, 1, 4)),
        (
            LAZY.transpose(1, 0, 2).reshape((3, 4, 2, 5)).transpose(2, 3, 1, 0),
            ARRAY.transpose(1, 0, 2).reshape(3, 4, 2, 5).transpose(2, 3, 1, 0),
        ),
        (LAZY.take(1, 7), ARRAY[:, 7]),
        (LAZY.transpose().take(0, 4).take(1, 1), ARRAY.T[4][:, 1]),
        (LAZY.astype(np.float32), ARRAY.astype(np.float32)),
        (stack([LAZY, of_array(ARRAY + 1)]), np.stack([ARRAY, ARRAY + 1])),
        (
            stack([of_array(ARRAY[0]).reshape((3, 4, 5))] * 3),
            np.stack([ARRAY[0].reshape(3, 4, 5)] * 3),
        ),
        (
            stack([of_array(ARRAY[0, 0, 0]), of_array(ARRAY[1, 1, 1])]),
            ARRAY[[0, 1], [0, 1], [0, 1]],
        ),
        (
            stack([of_array(ARRAY.astype(np.float16)), of_array(ARRAY.astype(np.float32))]),
            np.stack([ARRAY, ARRAY]).astype(np.float32),
        ),
    ],
)
def test_every_box_is_that_of_numpy(lazy, expected):
    assert (lazy.shape, lazy.dtype, lazy.ndim) == (expected.shape, expected.dtype, expected.ndim)
    assert (lazy.size, lazy.nbytes) == (expected.size, expected.nbytes)
    np.testing.assert_array_equal(np.asarray(lazy), expected)
    for box in boxes(expected.shape):
        np.testing.assert_array_equal(lazy[box], expected[box])
    for box in (np.s_[1:2], np.s_[2:1], np.s_[:, -2:])[: expected.ndim + 1]:
        np.testing.assert_array_equal(lazy[box], expected[box])


def test_a_box_reads_itself_alone():
    held = [Counted(ARRAY) for _ in range(5)]
    a, b, c, d, e = (one.lazy for one in held)
    a.transpose(2, 1, 0)[1:3, :6, :1]
    stack([b, c])[1:]
    d.take(1, 3)[:, 2:]
    e.reshape((1, 2, 3, 4, 5))[:, :, :, 1:2]
    e.transpose().reshape((5, 3, 1, 4, 2))[:1, :1]
    assert [one.elements for one in held] == [2 * 6, 0, ARRAY.size, 2 * 3, ARRAY.size + 4 * 2]


def test_nothing_is_read_before_it_is_asked_for():
    def fail(box):
        raise AssertionError("read")

    lazy = LazyArray((4, 6), np.float32, fail)
    assert stack([lazy.transpose().reshape((2, 3, 4))] * 2).shape == (2, 2, 3, 4)


def test_a_device_reads_its_own_part():
    held = Counted(ARRAY.astype(np.float32))
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:1]), ("fsdp",)), PartitionSpec("fsdp"))
    placed = jax.make_array_from_callback(held.lazy.shape, sharding, lambda index: held.lazy[index])
    np.testing.assert_array_equal(placed, ARRAY)
    assert held.elements == ARRAY.size


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (24, 5), (2, 12), (2, 12, 5, 2), (12, 2, 5), ()])
def test_shapes_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match=r"\(2, 12, 5\) cannot be split into \("):
        LAZY.reshape(shape)
    with pytest.raises(ValueError, match=r"axis 1 of \(2, 12, 5\) has no position 12"):
        LAZY.take(1, 12)
    with pytest.raises(ValueError, match="cannot stack"):
        stack([LAZY, of_array(ARRAY[0])])


def test_what_is_read_belongs_to_the_reader():
    array = np.zeros(3, ml_dtypes.bfloat16)
    read = of_array(array)[...]
    read[:] = 1
    assert read.dtype == ml_dtypes.bfloat16 and not array.any()
    assert np.asarray(of_array(array), np.float32).dtype == np.float32
