"""A function of a batch, applied to any number of rows: one shape, so that it is compiled once.

Legend: B rows of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np


def in_batches(
    function: Callable[..., jax.Array],
    rows: Sequence[Any],
    batch_size: int,
    arrays: Callable[[Sequence[Any]], Sequence[np.ndarray]] = lambda rows: (np.asarray(rows),),
) -> Iterator[np.ndarray]:
    """Yields function's rows for each batch of `rows`, in order.

    Args:
      function: of arrays of B rows each; a row of the result depends on its own alone. Jitted, it
        works on a batch while the next one's arrays are made.
      rows: what to apply it to.
      batch_size: B. The last batch is filled up by its last row, which is dropped from the result.
      arrays: makes the function's arguments of up to B of `rows`.
    """
    pending: list[tuple[jax.Array, int]] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        filled = [_filled(array, batch_size) for array in arrays(part)]
        pending.append((function(*filled), len(part)))
        if len(pending) > 1:
            result, count = pending.pop(0)
            yield np.asarray(result)[:count]
    for result, count in pending:
        yield np.asarray(result)[:count]


def _filled(rows_BX: np.ndarray, batch_size: int) -> np.ndarray:
    missing = batch_size - len(rows_BX)
    return np.concatenate([rows_BX, np.repeat(rows_BX[-1:], missing, axis=0)])
