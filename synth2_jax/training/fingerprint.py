"""Fingerprints of parameters: whether two trees are the same, in 16 hex digits."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from synth2_jax.training import train_state
from synth2_jax.training.train_state import Params

_PART_BYTES = 2**28


def fingerprint(params: Params) -> str:
    """Returns 16 hex digits of a sha256 over a tree: sorted paths, dtypes, shapes and bytes.

    It does not depend on the mesh. With several processes all must call it.
    """
    return fingerprint_arrays(sorted(train_state.flatten(params).items()))


def fingerprint_arrays(arrays: Iterable[tuple[str, Any]]) -> str:
    """`fingerprint` of (path, array) by rising path, of which one at a time is needed."""
    digest = hashlib.sha256()
    for path, leaf in arrays:
        digest.update(f"{path} {np.dtype(leaf.dtype).name} {np.shape(leaf)}\n".encode())
        for part in _parts(leaf):
            if isinstance(part, jax.Array) and not part.is_fully_addressable:
                part = multihost_utils.process_allgather(part, tiled=True)
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _parts(leaf: Any) -> Iterator[Any]:
    """An array in pieces along its first axis, so that a host need not hold a large one whole."""
    rows = leaf.shape[0] if np.ndim(leaf) else 0
    at_once = max(1, _PART_BYTES * rows // max(1, leaf.nbytes))
    if rows <= at_once:
        yield leaf
    else:
        yield from (leaf[start : start + at_once] for start in range(0, rows, at_once))
