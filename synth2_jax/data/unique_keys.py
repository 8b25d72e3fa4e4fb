"""Checks that no key is in a folder of pairs twice, with less memory than all keys together take.

Each shard has a file of the sorted digests of its keys.
"""

import hashlib
import pathlib
from collections.abc import Sequence, Set

import numpy as np

from synth2_jax.errors import UserError

_DIGEST_BYTES = 16  # two of a billion keys share a digest with a chance of 1 in 10^21
_KEYS_AT_A_TIME = 1 << 22  # that are compared


def digest_of(key: str) -> bytes:
    """Returns the digest that stands for a key."""
    return hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()


def file_contents(digests: Set[bytes]) -> bytes:
    """Returns the contents of a shard's file."""
    return b"".join(sorted(digests))


def repeated_error(key: str) -> UserError:
    """Returns the error for a key that was found twice."""
    return UserError(f"pair {key!r}: found this key twice, expected a different key for each pair")


def repeated_digest(files: Sequence[tuple[pathlib.Path, int]]) -> bytes | None:
    """Returns a digest that is in two of the files, given as (path, number of digests), or None.

    It is without trailing zero bytes, as numpy gives it. Compares one range of all digests at a
    time.
    """
    num_parts = 1 + sum(count for _, count in files) // _KEYS_AT_A_TIME
    bounds = [(number << 32) // num_parts for number in range(1, num_parts)]
    bounds = np.array([bound.to_bytes(4, "big") for bound in bounds], f"S{_DIGEST_BYTES}")
    cuts = [[0, *np.searchsorted(_digests(path, 0, count), bounds), count] for path, count in files]
    for part in range(num_parts):
        together = [
            _digests(path, cut[part], cut[part + 1])
            for (path, _), cut in zip(files, cuts, strict=True)
        ]
        found = np.sort(np.concatenate(together))
        twice = found[1:][found[1:] == found[:-1]]
        if len(twice):
            return twice[0]
    return None


def _digests(path: pathlib.Path, start: int, stop: int) -> np.ndarray:
    """Reads a range of a file. No file stays open: there may be thousands of shards."""
    dtype, offset = f"S{_DIGEST_BYTES}", int(start) * _DIGEST_BYTES
    return np.fromfile(path, dtype, count=stop - start, offset=offset)
