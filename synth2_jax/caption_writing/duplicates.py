"""Finds near-duplicates among many captions by MinHash and locality-sensitive hashing.

A caption is the set of its words and its pairs of neighbouring words. Captions are near-duplicates
when the Jaccard similarity of their sets, |A and B| / |A or B|, reaches a bound. MinHash (Broder,
1997): two sets have the same smallest hash with a probability equal to their similarity. P such
hashes, which the package rensa computes, are split into P / r bands of r. Captions that agree in a
whole band are then compared exactly, so each dropped caption is a near-duplicate; a pair of
similarity s is missed with a probability of (1 - s^r)^(P / r).

Legend: N captions, P hashes, Q captions that agree in a band.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.text.words import words

NUM_HASHES = 120  # divisible by 1 to 6, 8 and 10
_MISSED = 0.01  # largest share of the pairs at the bound that may be missed


def jaccard(a: str, b: str) -> float:
    """Returns the similarity of two captions, 0 to 1; 0 when one has no words."""
    x, y = _features(a), _features(b)
    return len(x & y) / len(x | y) if x and y else 0.0


def num_rows(similarity: float) -> int:
    """Returns the largest size of a band that misses at most 1% of the pairs at the bound."""
    sizes = [rows for rows in range(10, 0, -1) if NUM_HASHES % rows == 0]
    missed = {rows: (1 - similarity**rows) ** (NUM_HASHES // rows) for rows in sizes}
    return next(rows for rows in sizes if missed[rows] <= _MISSED)


class NearDuplicates:
    """Keeps captions that are no near-duplicates of an earlier one that is kept.

    Captions without words are never similar. Raises UserError without the package rensa.
    """

    def __init__(self, similarity: float, seed: int = 0):
        try:
            import rensa
        except ImportError as error:
            raise UserError(
                "--config.filter.duplicates: 'near' needs the package rensa. Run pip install "
                "'synth2-jax[captions]', or set it to 'normalized'."
            ) from error
        self._similarity, self._seed, self._minhash = similarity, seed, rensa.RMinHash
        # Hashes that are three standard deviations too far apart need no exact comparison.
        spread = 3 * (similarity * (1 - similarity) / NUM_HASHES) ** 0.5
        self._least = (similarity - spread) * NUM_HASHES
        self._index = rensa.RMinHashLSH(similarity, NUM_HASHES, NUM_HASHES // num_rows(similarity))
        self._kept: list[str] = []
        self._hashes_NP = np.empty((1024, NUM_HASHES), np.uint32)  # of those kept, and room

    def add(self, captions: Sequence[str]) -> list[bool]:
        """Returns which captions are near-duplicates; the others are kept."""
        return [self._is_near(caption) for caption in captions]

    def _is_near(self, caption: str) -> bool:
        features = _features(caption)
        if not features:
            return False
        hashes = self._minhash(NUM_HASHES, self._seed)
        hashes.update(features)
        hashes_P = np.array(hashes.digest(), np.uint32)
        rows_Q = np.array(self._index.query(hashes), np.int64)
        agree_Q = np.count_nonzero(self._hashes_NP[rows_Q] == hashes_P, axis=1)
        for row in rows_Q[agree_Q >= self._least]:
            other = _features(self._kept[row])
            shared = len(features & other)
            if shared >= self._similarity * (len(features) + len(other) - shared) - 1e-9:
                return True
        num_kept = len(self._kept)
        if num_kept == len(self._hashes_NP):
            self._hashes_NP = np.resize(self._hashes_NP, (2 * num_kept, NUM_HASHES))
        self._hashes_NP[num_kept] = hashes_P
        self._index.insert(num_kept, hashes)
        self._kept.append(caption)
        return False


def _features(caption: str) -> set[str]:
    found = words(caption)
    return {*found, *map(" ".join, itertools.pairwise(found))}
