"""Batches in tests: take some, compare them, and share them out among processes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.sharding import DataLayout


def take(iterator: Iterator[Any], count: int) -> list[Any]:
    """Returns the next `count` items."""
    return list(itertools.islice(iterator, count))


def assert_same(
    found: Sequence[Mapping[str, np.ndarray]], expected: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Asserts that there are batches, and that they have the same names, types and values."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def layouts(count: int) -> list[DataLayout]:
    """Returns the layouts of `count` processes with one device each, which share no rows."""
    return [DataLayout((index,), count, index, count) for index in range(count)]
