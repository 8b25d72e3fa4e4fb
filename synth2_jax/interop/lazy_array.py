"""Arrays that are read when, and as far as, they are needed.

A pretrained model may be larger than a host's memory. Its tensors come as `LazyArray`s, which are
turned and stacked into our parameters' shapes without being read; a device that is to hold a part
of a parameter then reads that part alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Index = tuple[slice, ...]


class LazyArray:
    """Shape and dtype of an array, and how to read any box of it.

    Attributes:
      shape: of the whole.
      dtype: of what is read.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype, read: Callable[[Index], np.ndarray]):
        """`read` takes one slice an axis, with bounds inside the shape and a step of 1."""
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._read = read

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"LazyArray({self.dtype.name}{list(self.shape)})"

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads a box: slices without a step, of the first axes at least; ... for all of it."""
        index = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (self.ndim - len(index))
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        return self._read(tuple(slice(start, max(start, stop)) for start, stop in bounds))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # what is read is nobody else's
        return np.asarray(self[...], dtype)

    def transpose(self, *axes: int) -> "LazyArray":
        """As numpy's; without axes in reverse."""
        axes = axes or tuple(reversed(range(self.ndim)))

        def read(box: Index) -> np.ndarray:
            inner = [slice(0)] * self.ndim
            for part, axis in zip(box, axes, strict=True):
                inner[axis] = part
            return self._read(tuple(inner)).transpose(axes)

        return LazyArray([self.shape[axis] for axis in axes], self.dtype, read)

    def split(self, axis: int, sizes: Sequence[int]) -> "LazyArray":
        """One axis as several, as in a reshape; ValueError where the sizes do not make it up."""
        sizes = tuple(sizes)
        if math.prod(sizes) != self.shape[axis]:
            raise ValueError(f"axis {axis} of {self.shape} cannot be split into {sizes}")
        inner_size = math.prod(sizes[1:])
        last = axis + len(sizes)

        def read(box: Index) -> np.ndarray:
            first, rest = box[axis], box[axis + 1 : last]
            rows = slice(first.start * inner_size, first.stop * inner_size)
            found = self._read((*box[:axis], rows, *box[last:]))
            count = first.stop - first.start
            found = found.reshape(*found.shape[:axis], count, *sizes[1:], *found.shape[axis + 1 :])
            return found[(slice(None),) * (axis + 1) + rest]

        return LazyArray((*self.shape[:axis], *sizes, *self.shape[axis + 1 :]), self.dtype, read)

    def take(self, axis: int, index: int) -> "LazyArray":
        """One position of an axis, which is gone then."""
        if not 0 <= index < self.shape[axis]:
            raise ValueError(f"axis {axis} of {self.shape} has no position {index}")

        def read(box: Index) -> np.ndarray:
            return self._read((*box[:axis], slice(index, index + 1), *box[axis:])).squeeze(axis)

        return LazyArray((*self.shape[:axis], *self.shape[axis + 1 :]), self.dtype, read)

    def astype(self, dtype: np.dtype) -> "LazyArray":
        """As numpy's; each box is cast when it is read."""
        if np.dtype(dtype) == self.dtype:
            return self
        return LazyArray(self.shape, dtype, lambda box: self._read(box).astype(dtype))

    def changed(
        self, shape: Sequence[int], change: Callable[[np.ndarray], np.ndarray]
    ) -> "LazyArray":
        """`change` of the whole array, which has `shape`; it is read whole for any part."""
        return LazyArray(shape, self.dtype, lambda box: change(self[...])[box])


def stack(arrays: Sequence[LazyArray]) -> LazyArray:
    """Arrays of one shape along a new first axis; ValueError where shapes differ."""
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"cannot stack arrays of shapes {sorted(shapes)}")
    (shape,) = shapes
    dtype = np.result_type(*{array.dtype for array in arrays})

    def read(box: Index) -> np.ndarray:
        first, *rest = box
        # Filled one by one: beside the result no more than one of the arrays is held.
        found = np.empty([part.stop - part.start for part in box], dtype)
        for i, array in enumerate(arrays[first]):
            found[i] = array[tuple(rest)]
        return found

    return LazyArray((len(arrays), *shape), dtype, read)


def of_array(array: np.ndarray) -> LazyArray:
    """An array that is there already (or mapped from a file)."""
    return LazyArray(array.shape, array.dtype, lambda box: np.array(array[box]))
