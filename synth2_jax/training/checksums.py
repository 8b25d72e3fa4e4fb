"""Checksums of the files of a checkpoint: a bit that changed on the disk is found, not trained on.

STEP/checksums.json is {"xxh3_64": {"params/d/0a1b...": [checksum, bytes], ...}}, over the files of
all items. It is the last file written before the step gets its name.
"""

import concurrent.futures
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import xxhash
from absl import logging
from jax.experimental import multihost_utils

from synth2_jax.errors import DamagedError
from synth2_jax.files import sync_folder

FILE = "checksums.json"
_ALGORITHM = "xxh3_64"  # a quarter of the time of zlib's CRC-32
_CHUNK = 2**20  # bytes; stays in a core's cache


def write(step_folder: pathlib.Path) -> None:
    """Writes the checksums of all items; when it returns, every file is on the disk itself."""
    files = {
        path.relative_to(step_folder).as_posix(): path
        for path in sorted(step_folder.rglob("*"))
        if path.is_file() and path.parent != step_folder
    }
    found = _in_threads(functools.partial(_read, sync=True), files.values())
    path = step_folder / FILE
    path.write_text(json.dumps({_ALGORITHM: dict(zip(files, found, strict=True))}))
    _read(path, sync=True)
    for folder in {step_folder, *(path.parent for path in step_folder.rglob("*"))}:
        sync_folder(folder)


def check(
    step_folder: pathlib.Path,
    items: Sequence[str] | None = None,
    *,
    shared: bool = False,
    largest: float = math.inf,
) -> None:
    """Compares files with their checksums. A checkpoint of an older version has none: a warning.

    Args:
      items: whose files; None for all.
      largest: bytes of the largest file that is read; larger ones are left out.
      shared: all processes call this; each reads a share of the files, and all raise if one does.

    Raises:
      DamagedError: names the files that are gone or changed.
    """
    damaged = _damaged(step_folder, items, jax.process_count() if shared else 1, largest)
    if shared and not on_all_processes(not damaged):
        damaged = damaged or ["files that another process read"]
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise DamagedError(f"damaged: {', '.join(damaged[:3])}{more}")


def on_all_processes(ok: bool) -> bool:
    """Returns whether it is so on every process; all must call it alike."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.array(ok)).all())


def _damaged(
    step_folder: pathlib.Path, items: Sequence[str] | None, num_shares: int, largest: float
) -> list[str]:
    path = step_folder / FILE
    if not path.exists():
        _warn_once(step_folder)
        return []
    try:
        saved = json.loads(path.read_bytes())[_ALGORITHM]
        expected = {str(name): [int(number) for number in pair] for name, pair in saved.items()}
        sizes = {name: size for name, (_, size) in sorted(expected.items()) if size <= largest}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [FILE]
    chosen = [name for name in sizes if items is None or name.split("/")[0] in items]
    # The largest first, dealt out in turn: each process gets about as many bytes.
    chosen.sort(key=lambda name: -sizes[name])
    chosen = chosen[jax.process_index() % num_shares :: num_shares]

    def is_as_written(name: str) -> bool:
        try:
            return _read(step_folder / name) == expected[name]
        except OSError:
            return False

    good = _in_threads(is_as_written, chosen)
    return sorted(name for name, is_good in zip(chosen, good, strict=True) if not is_good)


@functools.cache
def _warn_once(step_folder: pathlib.Path) -> None:
    if jax.process_index() == 0:
        logging.warning(
            "%s: saved by an older version without checksums; damage may go unseen", step_folder
        )


def _in_threads(function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))


def _read(path: pathlib.Path, sync: bool = False) -> list[int]:
    """Returns [checksum, bytes] of a file."""
    checksum, size, chunk = xxhash.xxh3_64(), 0, bytearray(_CHUNK)
    with open(path, "rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while count := file.readinto(chunk):
            checksum.update(memoryview(chunk)[:count])
            size += count
    return [checksum.intdigest(), size]
