"""Finds near-duplicates among many captions by MinHash and locality-sensitive hashing.

A caption is the set of its words and its pairs of neighbouring words. Captions are near-duplicates
when the Jaccard similarity of their sets, |A and B| / |A or B|, reaches a bound. MinHash (Broder,
1997): two sets have the same smallest hash with a probability equal to their similarity. P such
hashes are split into P / r bands of r. Captions that agree in a whole band are then compared
exactly, so each dropped caption is a near-duplicate; a pair of similarity s is missed with a
probability of (1 - s^r)^(P / r).

Legend: N captions, F features (those of all captions in one array), P hashes, B bands, Q pairs of
captions.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from synth2_jax.text.words import words

NUM_HASHES = 120  # divisible by 1 to 6, 8 and 10
_MISSED = 0.01  # largest share of the pairs at the bound that may be missed
_MAX_HEADS = 16  # most captions of its band that a caption is compared with
_CHUNK = 1 << 13  # captions at a time: their features stay in the cache
_PAIRS_CHUNK = 1 << 16
_FEATURE_BITS = 48  # the other 16 bits hold the number of a row in its chunk


def jaccard(a: str, b: str) -> float:
    """Returns the similarity of two captions, 0 to 1; 0 when one has no words."""
    x, y = _feature_set(a), _feature_set(b)
    return len(x & y) / len(x | y) if x and y else 0.0


def num_rows(similarity: float) -> int:
    """Returns the largest size of a band that misses at most 1% of the pairs at the bound."""
    fitting = (
        rows
        for rows in (10, 8, 6, 5, 4, 3, 2, 1)
        if (1 - similarity**rows) ** (NUM_HASHES // rows) <= _MISSED
    )
    return next(fitting)


class NearDuplicates:
    """Keeps captions that are no near-duplicates of each other, and finds those of new captions.

        near = NearDuplicates(similarity=0.8)
        dropped_N = near.add(captions)

    Each dropped caption is similar to a kept one. If captions are added one by one, that is an
    earlier one. If many are added at once, which is much faster, it may also be a later one.
    Captions without words are never similar. A kept caption takes about 500 bytes.
    """

    def __init__(self, similarity: float, seed: int = 0):
        self._similarity = similarity
        self._hashes = _Hashes(num_rows(similarity), seed)
        self._kept = self._hashes.describe([])

    def add(self, captions: Sequence[str]) -> np.ndarray:
        """Returns which captions, bool[N], are near-duplicates; the others are kept."""
        new = self._hashes.describe(captions)
        dropped_N = np.zeros(len(captions), bool)
        rows_N = np.arange(len(captions))
        while len(rows_N):
            table = _joined(self._kept, new.take(rows_N))
            num_kept = len(self._kept)
            found, undecided = self._resolve(self._similar(table, num_kept), len(table))
            dropped_N[rows_N[found[num_kept:]]] = True
            self._kept = table.take(np.flatnonzero(~found & ~undecided))
            # Captions similar only to a dropped one are compared again.
            rows_N = rows_N[undecided[num_kept:]]
        return dropped_N

    def _similar(self, table: "_Table", num_kept: int) -> dict[int, int]:
        """Returns {row: an earlier row similar to it}, for rows from `num_kept` on."""
        open_N = table.counts_N > 0
        like: dict[int, int] = {}
        for band_N in table.bands_BN:
            rows_N = np.flatnonzero(open_N)
            rows_N = rows_N[np.argsort(band_N[rows_N], kind="stable")]
            for _ in range(_MAX_HEADS):
                rows_N, first_N = _groups(rows_N, band_N, num_kept)
                if not len(rows_N):
                    break
                heads_N = rows_N[first_N][np.cumsum(first_N) - 1]
                asked_Q = np.flatnonzero(~first_N & (rows_N >= num_kept))
                heads_Q, members_Q = heads_N[asked_Q], rows_N[asked_Q]
                similar_Q = table.similar(heads_Q, members_Q, self._similarity)
                members_Q, heads_Q = members_Q[similar_Q], heads_Q[similar_Q]
                like.update(zip(members_Q.tolist(), heads_Q.tolist(), strict=True))
                open_N[members_Q] = False
                stay_N = ~first_N
                stay_N[asked_Q[similar_Q]] = False
                rows_N = rows_N[stay_N]
        return like

    def _resolve(self, like: dict[int, int], num: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (dropped bool[N], undecided bool[N]): similar to a kept row, or to neither."""
        dropped_N, undecided_N = np.zeros(num, bool), np.zeros(num, bool)
        for row in sorted(like):  # the similar row is an earlier one
            gone = dropped_N[like[row]] or undecided_N[like[row]]
            (undecided_N if gone else dropped_N)[row] = True
        return dropped_N, undecided_N


def _groups(rows_N: np.ndarray, band_N: np.ndarray, num_kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that share a band with another, and which are the first of their band.

    The rows are sorted by band. Bands of kept captions only are left out: those were compared
    before.
    """
    if not len(rows_N):
        return rows_N, np.zeros(0, bool)
    band_N = band_N[rows_N]
    first_N = np.concatenate([[True], band_N[1:] != band_N[:-1]])
    asked_N = ~first_N & (rows_N >= num_kept)
    wanted_N = np.add.reduceat(asked_N, np.flatnonzero(first_N), dtype=np.int64) > 0
    stay_N = wanted_N[np.cumsum(first_N) - 1]
    return rows_N[stay_N], first_N[stay_N]


@dataclasses.dataclass(frozen=True)
class _Table:
    """Features and hashes of captions.

    Attributes:
      features_F: u64, the hashed features, distinct and sorted within each caption.
      counts_N: i64, features of each caption.
      bands_BN: u64, equal for captions that agree in all hashes of a band.
      bytes_NP: u8, one byte of each hash.
    """

    features_F: np.ndarray
    counts_N: np.ndarray
    bands_BN: np.ndarray
    bytes_NP: np.ndarray

    def __len__(self) -> int:
        return len(self.counts_N)

    @functools.cached_property
    def _starts_N(self) -> np.ndarray:
        return np.cumsum(self.counts_N) - self.counts_N

    def take(self, rows_N: np.ndarray) -> "_Table":
        return _Table(
            self.features_F[_ranges(self._starts_N[rows_N], self.counts_N[rows_N])],
            self.counts_N[rows_N],
            self.bands_BN[:, rows_N],
            self.bytes_NP[rows_N],
        )

    def similar(self, a_Q: np.ndarray, b_Q: np.ndarray, similarity: float) -> np.ndarray:
        """Returns bool[Q]: whether captions a and b are at least this similar (Jaccard)."""
        similar_Q = np.zeros(len(a_Q), bool)
        # Hashes that are three standard deviations too far apart need no exact comparison.
        spread = 3 * (similarity * (1 - similarity) / NUM_HASHES) ** 0.5
        for start in range(0, len(a_Q), _PAIRS_CHUNK):
            a, b = a_Q[start : start + _PAIRS_CHUNK], b_Q[start : start + _PAIRS_CHUNK]
            agree = np.count_nonzero(self.bytes_NP[a] == self.bytes_NP[b], axis=1)
            near = np.flatnonzero(agree >= (similarity - spread) * NUM_HASHES)
            a, b = a[near], b[near]
            shared = self._shared(a, b)
            both = self.counts_N[a] + self.counts_N[b] - shared
            similar_Q[start + near] = shared >= similarity * both - 1e-9
        return similar_Q

    def _shared(self, a_Q: np.ndarray, b_Q: np.ndarray) -> np.ndarray:
        """Returns i64[Q], the number of features that a and b share."""
        pairs_Q = np.arange(len(a_Q), dtype=np.uint64) << np.uint64(_FEATURE_BITS)
        both = []
        for side_Q in (a_Q, b_Q):
            counts_Q = self.counts_N[side_Q]
            features = self.features_F[_ranges(self._starts_N[side_Q], counts_Q)]
            both.append(features | np.repeat(pairs_Q, counts_Q))
        sorted_features = np.sort(np.concatenate(both))
        # A feature of both captions is there twice.
        twice = sorted_features[1:][sorted_features[1:] == sorted_features[:-1]]
        pair = (twice >> np.uint64(_FEATURE_BITS)).astype(np.int64)
        return np.bincount(pair, minlength=len(a_Q))


class _Hashes:
    """Makes tables of captions. The same captions have the same hashes in every process."""

    def __init__(self, rows: int, seed: int):
        rng = np.random.default_rng(seed)
        self._rows = rows
        self._xor_P = rng.integers(0, 2**64, NUM_HASHES, np.uint64)
        self._factor_P = rng.integers(0, 2**64, NUM_HASHES, np.uint64) | np.uint64(1)
        self._fold_P = rng.integers(0, 2**64, NUM_HASHES, np.uint64) | np.uint64(1)

    def describe(self, captions: Sequence[str]) -> _Table:
        starts = range(0, max(1, len(captions)), _CHUNK)
        return _joined(*(self._describe(captions[start : start + _CHUNK]) for start in starts))

    def _describe(self, captions: Sequence[str]) -> _Table:
        features_F, counts_N = _features(captions)
        hashes_PN = np.zeros((NUM_HASHES, len(captions)), np.uint64)
        filled_N = np.flatnonzero(counts_N)
        starts_N = (np.cumsum(counts_N) - counts_N)[filled_N]
        if len(filled_N):
            for i in range(NUM_HASHES):
                hashed_F = (features_F ^ self._xor_P[i]) * self._factor_P[i]
                hashes_PN[i, filled_N] = np.minimum.reduceat(hashed_F, starts_N)
        folded_PN = hashes_PN * self._fold_P[:, None]
        shape = (NUM_HASHES // self._rows, self._rows, len(captions))
        bytes_NP = (hashes_PN >> np.uint64(24)).astype(np.uint8).T.copy()
        return _Table(features_F, counts_N, folded_PN.reshape(shape).sum(axis=1), bytes_NP)


def _joined(*tables: _Table) -> _Table:
    if len(tables) == 1:
        return tables[0]
    return _Table(
        np.concatenate([table.features_F for table in tables]),
        np.concatenate([table.counts_N for table in tables]),
        np.concatenate([table.bands_BN for table in tables], axis=1),
        np.concatenate([table.bytes_NP for table in tables]),
    )


def _feature_set(caption: str) -> set[str | tuple[str, str]]:
    found = words(caption)
    return {*found, *itertools.pairwise(found)}


def _features(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns features_F and counts_N of `_Table`, for a chunk of captions."""
    texts = [words(caption) for caption in captions]
    num_words_N = np.array([len(text) for text in texts], np.int64)
    word_ids = np.fromiter(
        map(_word_id, itertools.chain.from_iterable(texts)), np.uint64, num_words_N.sum()
    )
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), num_words_N)
    pair_ids = _mixed(word_ids[:-1] * np.uint64(0x9E3779B97F4A7C15) + word_ids[1:])
    paired = row[:-1] == row[1:]
    ids = np.concatenate([word_ids, pair_ids[paired]]) >> np.uint64(64 - _FEATURE_BITS)
    rows = np.concatenate([row, row[:-1][paired]])
    numbered = np.unique(ids | rows << np.uint64(_FEATURE_BITS))
    counts_N = np.bincount(
        (numbered >> np.uint64(_FEATURE_BITS)).astype(np.int64), minlength=len(texts)
    )
    return numbered & np.uint64(2**_FEATURE_BITS - 1), counts_N


@functools.lru_cache(maxsize=1 << 18)
def _word_id(word: str) -> int:
    # Not hash(), which differs from process to process.
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())


def _mixed(values: np.ndarray) -> np.ndarray:
    """Mixes the bits of u64 values (the last steps of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def _ranges(starts_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, ..., start + count - 1 of each row, concatenated."""
    before_N = np.cumsum(counts_N) - counts_N
    return np.repeat(starts_N - before_N, counts_N) + np.arange(counts_N.sum())
