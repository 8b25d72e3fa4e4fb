"""Checks that no key is in a folder of pairs twice, with less memory than all keys together take.

Each shard has a file of the sorted digests of its keys.
"""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from synth2_jax.errors import UserError

_DIGEST_BYTES = 16  # two of a billion keys share a digest with a chance of 1 in 10^21
_DIGEST = f"S{_DIGEST_BYTES}"  # numpy gives its values without trailing zero bytes
_KEYS_AT_A_TIME = 1 << 22  # that are compared


def digest_of(key: str) -> bytes:
    """Returns the digest of a key."""
    return hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()


def repeated_error(key: str) -> UserError:
    """Returns the error for a key that was found twice."""
    return UserError(f"pair {key!r}: found this key twice, expected a different key for each pair")


def repeated_digest(files: Sequence[tuple[pathlib.Path, int]]) -> bytes | None:
    """Returns a digest, without trailing zero bytes, that is in two of the files, or None.

    Files are given as (path, number of digests). Compares one range of all digests at a time.
    """
    num_parts = 1 + sum(count for _, count in files) // _KEYS_AT_A_TIME
    bounds = [(number << 32) // num_parts for number in range(1, num_parts)]
    bounds = np.array([bound.to_bytes(4, "big") for bound in bounds], _DIGEST)
    cuts = [[0, *np.searchsorted(_digests(path, 0, count), bounds), count] for path, count in files]
    for part in range(num_parts):
        together = [
            _digests(path, *cut[part : part + 2])
            for (path, _), cut in zip(files, cuts, strict=True)
        ]
        found = np.sort(np.concatenate(together))
        if len(twice := found[1:][found[1:] == found[:-1]]):
            return twice[0]
    return None


def _digests(path: pathlib.Path, start: int, stop: int) -> np.ndarray:
    """Reads a range of a file. No file stays open: there may be thousands of shards."""
    return np.fromfile(path, _DIGEST, count=stop - start, offset=int(start) * _DIGEST_BYTES)
