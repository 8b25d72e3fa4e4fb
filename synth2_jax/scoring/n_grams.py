"""A caption set as word ids, its n-grams, and how much they repeat.

Captions are read once; everything after is arithmetic on arrays, so that sets of 100,000 captions
take seconds.

Legend: N captions, T words of all captions in a row, V distinct words, n words of an n-gram,
G n-grams in a row, U distinct n-grams.
"""

import array
import dataclasses
from collections.abc import Iterable

import numpy as np

from synth2_jax.scoring import words

ORDERS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class NGrams:
    """The n-grams of one order; none reaches over the end of a caption.

    Attributes:
      word_ids_Un: i32, the words of each distinct n-gram.
      counts_U: i64, how often each occurs.
      ids_G: i64, the n-gram at each place, in the captions' order.
      captions_G: i64, the caption that it is in.
    """

    word_ids_Un: np.ndarray
    counts_U: np.ndarray
    ids_G: np.ndarray
    captions_G: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenizedCaptions:
    """Captions as the ids of their words; `words.tokenize` says what a word is.

    Attributes:
      vocabulary: V words in the order of first occurrence.
      ids_T: i32, index in `vocabulary`.
      captions_T: i64, index of the caption that the word is in.
      num_captions: N, those without a word included.
    """

    vocabulary: tuple[str, ...]
    ids_T: np.ndarray
    captions_T: np.ndarray
    num_captions: int

    @property
    def lengths_N(self) -> np.ndarray:
        """Words of each caption, i64."""
        return np.bincount(self.captions_T, minlength=self.num_captions)

    def n_grams(self, order: int) -> NGrams:
        """The n-grams of `order` words."""
        codes = self.ids_T.astype(np.int64)
        for shift in range(1, order):
            # Numbered again at each step, so that a code stays below T times V.
            codes = np.unique(
                codes[:-1] * len(self.vocabulary) + self.ids_T[shift:], return_inverse=True
            )[1]
        (first_word,) = np.nonzero(
            self.captions_T[: len(codes)] == self.captions_T[order - 1 :][: len(codes)]
        )
        _, at_U, ids_G, counts_U = np.unique(
            codes[first_word], return_index=True, return_inverse=True, return_counts=True
        )
        word_ids_Un = self.ids_T[first_word[at_U][:, None] + np.arange(order)]
        return NGrams(word_ids_Un, counts_U, ids_G, self.captions_T[first_word])

    def spelled(self, word_ids: Iterable[int]) -> str:
        """Words separated by spaces."""
        return " ".join(self.vocabulary[i] for i in word_ids)


@dataclasses.dataclass(frozen=True)
class NGramStatistics:
    """Figures of how much a caption set repeats itself.

    Attributes:
      distinct: {n: distinct n-grams over all n-grams} (Li et al., arXiv 1510.03055); 0 when there
        are none. It falls as a set grows: compare sets of equal size.
      most_frequent: {n: ((n-gram, how often), ...)}, the most frequent one first.
    """

    distinct: dict[int, float]
    most_frequent: dict[int, tuple[tuple[str, int], ...]]


def tokenize(captions: Iterable[str]) -> TokenizedCaptions:
    """Reads captions into word ids."""
    id_of: dict[str, int] = {}
    ids, lengths = array.array("i"), array.array("i")
    for caption in captions:
        tokens = words.tokenize(caption)
        ids.extend([id_of.setdefault(token, len(id_of)) for token in tokens])
        lengths.append(len(tokens))
    captions_T = np.repeat(np.arange(len(lengths)), lengths)
    return TokenizedCaptions(tuple(id_of), np.array(ids, np.int32), captions_T, len(lengths))


def n_gram_statistics(captions: TokenizedCaptions, top: int = 10) -> NGramStatistics:
    """Counts n-grams of 1 to 4 words; the `top` most frequent of each are spelled out."""
    distinct, most_frequent = {}, {}
    for order in ORDERS:
        found = captions.n_grams(order)
        distinct[order] = len(found.counts_U) / max(1, len(found.ids_G))
        largest = np.argsort(-found.counts_U, kind="stable")[:top]
        most_frequent[order] = tuple(
            (captions.spelled(found.word_ids_Un[u]), int(found.counts_U[u])) for u in largest
        )
    return NGramStatistics(distinct, most_frequent)
