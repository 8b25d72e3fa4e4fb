"""A function of a batch, applied to any number of rows: one shape, so that it is compiled once.

Legend: B rows of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from synth2_jax.device_stream import on_device


def in_batches(
    function: Callable[..., jax.Array],
    rows: Sequence[Any],
    batch_size: int,
    arrays: Callable[[Sequence[Any]], Sequence[np.ndarray]] = lambda rows: (np.asarray(rows),),
) -> Iterator[np.ndarray]:
    """Yields function's rows for each batch of `rows`, in order.

    `arrays` makes the function's arguments, arrays of B rows each, from up to B of `rows`. The last
    batch is filled up with its last row, which is dropped from the result. Jitted, the function
    works on a batch while the next one's arrays are made.
    """

    def batches():
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            filled = np.minimum(np.arange(batch_size), len(part) - 1)
            yield len(part), [array[filled] for array in arrays(part)]

    for count, result in on_device(function, batches()):
        yield result[:count]
