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
    parts = [
        (slice(0, size), slice(0, 1), slice(size // 2, size), slice(size, size)) for size in shape
    ]
    return itertools.product(*parts)


ARRAY = np.arange(2 * 12 * 5).reshape(2, 12, 5)


@pytest.mark.parametrize(
    "lazy, expected",
    [
        (of_array(ARRAY), ARRAY),
        (of_array(ARRAY).transpose(), ARRAY.T),
        (of_array(ARRAY).transpose(1, 2, 0), ARRAY.transpose(1, 2, 0)),
        (of_array(ARRAY).split(1, (3, 4)), ARRAY.reshape(2, 3, 4, 5)),
        (of_array(ARRAY).split(1, (3, 2, 2)), ARRAY.reshape(2, 3, 2, 2, 5)),
        (
            of_array(ARRAY).transpose(1, 0, 2).split(0, (3, 4)).transpose(2, 3, 1, 0),
            ARRAY.transpose(1, 0, 2).reshape(3, 4, 2, 5).transpose(2, 3, 1, 0),
        ),
        (of_array(ARRAY).take(1, 7), ARRAY[:, 7]),
        (of_array(ARRAY).transpose().take(0, 4).take(1, 1), ARRAY.T[4][:, 1]),
        (of_array(ARRAY).astype(np.float32), ARRAY.astype(np.float32)),
        (of_array(ARRAY).changed((12, 5), lambda array: array.sum(0)), ARRAY.sum(0)),
        (stack([of_array(ARRAY), of_array(ARRAY + 1)]), np.stack([ARRAY, ARRAY + 1])),
        (
            stack([of_array(ARRAY[0]).split(0, (3, 4))] * 3),
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
    np.testing.assert_array_equal(lazy[1:2], expected[1:2])
    if expected.ndim > 1:
        np.testing.assert_array_equal(lazy[:, -2:], expected[:, -2:])
    np.testing.assert_array_equal(lazy[2:1], expected[2:1])


def test_a_box_reads_itself_alone():
    held = Counted(ARRAY)
    held.lazy.transpose(2, 1, 0)[1:3, :6, :1]
    assert held.elements == 2 * 6
    held = [Counted(ARRAY), Counted(ARRAY)]
    stack([one.lazy for one in held])[1:]
    assert [one.elements for one in held] == [0, ARRAY.size]
    held = Counted(ARRAY)
    held.lazy.take(1, 3)[:, 2:]
    assert held.elements == 2 * 3
    held = Counted(ARRAY)
    held.lazy.split(1, (3, 4))[:, 1:2]
    assert held.elements == ARRAY.size // 3


def test_nothing_is_read_before_it_is_asked_for():
    def fail(box):
        raise AssertionError("read")

    lazy = LazyArray((4, 6), np.float32, fail)
    assert stack([lazy.transpose().split(0, (2, 3))] * 2).shape == (2, 2, 3, 4)


def test_a_device_reads_its_own_part():
    held = Counted(ARRAY.astype(np.float32))
    devices = np.asarray(jax.devices()[:1])
    sharding = NamedSharding(Mesh(devices, ("fsdp",)), PartitionSpec("fsdp"))
    placed = jax.make_array_from_callback(held.lazy.shape, sharding, lambda index: held.lazy[index])
    np.testing.assert_array_equal(placed, ARRAY)
    index = sharding.devices_indices_map(ARRAY.shape)[jax.devices()[0]]
    assert held.lazy[index].shape == ARRAY.shape


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"axis 1 of \(2, 12, 5\) cannot be split into \(3, 5\)"):
        of_array(ARRAY).split(1, (3, 5))
    with pytest.raises(ValueError, match=r"axis 1 of \(2, 12, 5\) has no position 12"):
        of_array(ARRAY).take(1, 12)
    with pytest.raises(ValueError, match="cannot stack"):
        stack([of_array(ARRAY), of_array(ARRAY[0])])


def test_what_is_read_belongs_to_the_reader():
    array = np.zeros(3, ml_dtypes.bfloat16)
    read = of_array(array)[...]
    read[:] = 1
    assert read.dtype == ml_dtypes.bfloat16 and not array.any()
    assert np.asarray(of_array(array), np.float32).dtype == np.float32
