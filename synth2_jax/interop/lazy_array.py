"""Arrays that are read when, and as far as, they are needed.

A pretrained model may be larger than a host's memory. Its tensors come as `LazyArray`s, which are
transposed, reshaped and stacked into our parameters without being read; a device that is to hold a
part of a parameter then reads that part alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Index = tuple[slice, ...]


class LazyArray:
    """Shape and dtype of an array, and how to read any box of it."""

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
        del copy  # what is read belongs to the reader
        return np.asarray(self[...], dtype)

    def transpose(self, *axes: int) -> "LazyArray":
        """Transposes as numpy does; without axes in reverse."""
        axes = axes or tuple(reversed(range(self.ndim)))

        def read(box: Index) -> np.ndarray:
            inner = [slice(0)] * self.ndim
            for part, axis in zip(box, axes, strict=True):
                inner[axis] = part
            return self._read(tuple(inner)).transpose(axes)

        return LazyArray([self.shape[axis] for axis in axes], self.dtype, read)

    def reshape(self, shape: Sequence[int]) -> "LazyArray":
        """Splits axes into several, as numpy's; axes of size 1 may come and go.

        Raises:
          ValueError: a shape that joins axes, or has another size.
        """
        shape = tuple(shape)
        left = [axis for axis, size in enumerate(shape) if size != 1]
        groups: list[list[int]] = []  # for each of our axes, the axes of `shape` that it becomes
        for size in self.shape:
            groups.append([])
            while math.prod(shape[axis] for axis in groups[-1]) != size and left:
                groups[-1].append(left.pop(0))
        made = tuple(math.prod(shape[axis] for axis in group) for group in groups)
        if left or made != self.shape:
            raise ValueError(f"{self.shape} cannot be split into {shape}")

        def read(box: Index) -> np.ndarray:
            lengths = [part.stop - part.start for part in box]
            if 0 in lengths:
                return np.empty(lengths, self.dtype)
            inner, sizes, rest = [], [], []
            for first, *others in filter(None, groups):
                row = math.prod(shape[axis] for axis in others)
                inner.append(slice(box[first].start * row, box[first].stop * row))
                sizes += [lengths[first], *(shape[axis] for axis in others)]
                rest += [slice(None), *(box[axis] for axis in others)]
            parts = iter(inner)
            whole = tuple(next(parts) if group else slice(0, 1) for group in groups)
            return self._read(whole).reshape(sizes)[tuple(rest)].reshape(lengths)

        return self if shape == self.shape else LazyArray(shape, self.dtype, read)

    def take(self, axis: int, index: int) -> "LazyArray":
        """One position of an axis, which is gone then."""
        if not 0 <= index < self.shape[axis]:
            raise ValueError(f"axis {axis} of {self.shape} has no position {index}")

        def read(box: Index) -> np.ndarray:
            return self._read((*box[:axis], slice(index, index + 1), *box[axis:])).squeeze(axis)

        return LazyArray((*self.shape[:axis], *self.shape[axis + 1 :]), self.dtype, read)

    def astype(self, dtype: np.dtype) -> "LazyArray":
        """Casts as numpy does; each box is cast when it is read."""
        if np.dtype(dtype) == self.dtype:
            return self
        return LazyArray(self.shape, dtype, lambda box: self._read(box).astype(dtype))


def stack(arrays: Sequence[LazyArray]) -> LazyArray:
    """Arrays of one shape along a new first axis; ValueError where shapes differ."""
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"cannot stack arrays of shapes {sorted(shapes)}")
    dtype = np.result_type(*{array.dtype for array in arrays})

    def read(box: Index) -> np.ndarray:
        # Filled one by one: beside the result no more than one of the arrays is held.
        found = np.empty([part.stop - part.start for part in box], dtype)
        for i, array in enumerate(arrays[box[0]]):
            found[i] = array[box[1:]]
        return found

    return LazyArray((len(arrays), *shapes.pop()), dtype, read)


def of_array(array: np.ndarray) -> LazyArray:
    """An array that is there already (or mapped from a file)."""
    return LazyArray(array.shape, array.dtype, lambda box: np.array(array[box]))
