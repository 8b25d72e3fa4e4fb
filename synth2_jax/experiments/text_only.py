"""Predicts image tokens from the words of a caption, as a control without a generator.

In Unicorn (arXiv 2503.22655) an embedding of the caption takes the place of the image's. Here a
ridge regression from word counts to the codes of the real images, at each position, predicts an
embedding, and its nearest code is the token: a pair on disk like the others.

Legend: P real pairs, M captions, V words, N image tokens, C codebook width, K codebook size.
"""

import collections
from collections.abc import Sequence

import numpy as np

from synth2_jax.text.words import words

PENALTY = 1.0  # on squared weights, against a sum of squares over pairs; the bias has none
_BLOCK = 256  # captions whose distances to all codes are held at once


def tokens_from_text(
    real_captions: Sequence[str],
    real_tokens_PN: np.ndarray,
    captions: Sequence[str],
    codes_KC: np.ndarray,
) -> np.ndarray:
    """Predicts tokens i32[M,N] of captions from those of the real pairs."""
    real_PV, vocabulary = _word_counts(real_captions)
    targets = codes_KC[real_tokens_PN].reshape(len(real_captions), -1)  # f[P, N * C]
    penalty_VV = PENALTY * np.eye(real_PV.shape[1])
    penalty_VV[0, 0] = 0.0
    weights = np.linalg.solve(real_PV.T @ real_PV + penalty_VV, real_PV.T @ targets)
    counts_MV, _ = _word_counts(captions, vocabulary)
    blocks = range(0, len(captions), _BLOCK)
    return np.concatenate([_nearest(counts_MV[i : i + _BLOCK] @ weights, codes_KC) for i in blocks])


def _word_counts(
    captions: Sequence[str], vocabulary: Sequence[str] | None = None
) -> tuple[np.ndarray, Sequence[str]]:
    """Counts of each word f64[M, 1 + V], a 1 for the bias first, and the words.

    Words that are not in a given vocabulary are not counted.
    """
    counted = [collections.Counter(words(caption)) for caption in captions]
    if vocabulary is None:
        vocabulary = sorted(set().union(*counted))
    rows = [[1.0, *(found[word] for word in vocabulary)] for found in counted]
    return np.array(rows, np.float64), vocabulary


def _nearest(predicted: np.ndarray, codes_KC: np.ndarray) -> np.ndarray:
    """The code nearest to each embedding of f[M, N * C], by squared distance: i32[M,N]."""
    x_MNC = predicted.reshape(len(predicted), -1, codes_KC.shape[1])
    distances_MNK = (codes_KC**2).sum(1) - 2 * x_MNC @ codes_KC.T  # less the same for all codes
    return distances_MNK.argmin(-1).astype(np.int32)
