"""Work that flows through a device: the next batches are prepared while one is computed.

`on_device(function, in_background(prepare(), ahead=4))`: a thread reads and decodes.
"""

import collections
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

Item = TypeVar("Item")
Tag = TypeVar("Tag")
_END = object()


def in_background(items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """The items, made in a thread of their own, up to `ahead` of them before they are asked for.

    What the thread raises is raised here. Closing the iterator ends the thread.
    """
    iterator, pool = iter(items), ThreadPoolExecutor(max_workers=1)
    try:
        made = collections.deque(pool.submit(next, iterator, _END) for _ in range(ahead))
        while (item := made.popleft().result()) is not _END:
            made.append(pool.submit(next, iterator, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def in_rows(
    items: Iterable[Item], batch_size: int, is_row: Callable[[Item], bool]
) -> Iterator[list[Item]]:
    """Cuts items into lists of `batch_size` rows, and not too many of what is no row."""
    part, num_rows = [], 0
    for item in items:
        part.append(item)
        num_rows += is_row(item)
        if num_rows == batch_size or len(part) > 16 * batch_size:
            yield part
            part, num_rows = [], 0
    if part:
        yield part


def on_device(
    function: Callable[..., jax.Array],
    batches: Iterable[tuple[Tag, tuple[Any, ...]]],
    clock: "BusyClock | None" = None,
) -> Iterator[tuple[Tag, np.ndarray]]:
    """(tag, result) of each (tag, arguments) in order; the next is under way while one is used.

    `function` is jitted: it returns before the device has finished. `clock` watches each batch.
    """
    pending: collections.deque[tuple[Tag, jax.Array]] = collections.deque()
    for tag, arguments in batches:
        pending.append((tag, function(*arguments)))
        if clock:
            clock.watch(pending[-1][1])
        if len(pending) > 2:
            tag, result = pending.popleft()
            yield tag, np.asarray(result)
    for tag, result in pending:
        yield tag, np.asarray(result)


class BusyClock:
    """The share of time that a device was busy, from the end of its first batch on."""

    def __init__(self):
        self._watched: queue.Queue = queue.Queue()
        self._busy = self._total = 0.0
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> "BusyClock":
        self._thread.start()
        return self

    def __exit__(self, *exception_info) -> None:
        self._watched.put(None)
        self._thread.join()

    def watch(self, result: jax.Array) -> None:
        """Notes a result that the device was asked for just now."""
        self._watched.put((time.perf_counter(), result))

    @property
    def share(self) -> float:
        """0 to 1; 1 before there were two batches."""
        return self._busy / self._total if self._total else 1.0

    def _wait(self) -> None:
        first = before = None
        while (watched := self._watched.get()) is not None:
            asked, result = watched
            jax.block_until_ready(result)
            done = time.perf_counter()
            if before is not None:
                # A device computes one batch after another.
                self._busy += done - max(asked, before)
                self._total = done - first
            first, before = first or done, done
