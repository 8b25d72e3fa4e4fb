"""Captions as vectors: a bag of hashed n-grams, which is always there, or a sentence model.

Legend: N captions, V distinct words, U distinct n-grams, F hash buckets, D embedding width.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from synth2_jax.errors import UserError
from synth2_jax.progress import Progress
from synth2_jax.scoring import n_grams

Embed = Callable[[Sequence[str]], np.ndarray]  # captions -> f32[N,D], rows of length 1 or 0
Bags = Callable[[int, int], scipy.sparse.csr_array]  # start, stop -> n-grams of those captions

_BLOCK = 4096  # captions whose n-grams are held as a sparse matrix at once


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Sizes of the built-in caption embedding."""

    dim: int = 256
    num_buckets: int = 1 << 14
    word_orders: tuple[int, ...] = (1, 2)
    char_orders: tuple[int, ...] = (3, 4)
    seed: int = 0


def embed_captions(
    captions: Sequence[str], config: EmbeddingConfig = EmbeddingConfig()
) -> np.ndarray:
    """Bag-of-n-grams embedding: f32[N,D], rows of length 1 (0 for a caption without words).

    Word n-grams and character n-grams are hashed to buckets, weighted by tf-idf, brought to equal
    length so that the many character n-grams do not drown the words, and projected by a fixed
    random matrix. The idf comes from `captions`, so embeddings compare only within one call.
    """
    tokens = n_grams.tokenize(captions)
    shape = config.num_buckets, config.dim
    projection_FD = np.random.default_rng(config.seed).standard_normal(shape).astype(np.float32)
    embeddings_ND = np.zeros((tokens.num_captions, config.dim), np.float32)
    for bags in (_word_bags(tokens, config), _char_bags(tokens, config)):
        _add_projected(embeddings_ND, bags, projection_FD)
    return _unit_rows(embeddings_ND)


def _word_bags(tokens: n_grams.TokenizedCaptions, config: EmbeddingConfig) -> Bags:
    """Word n-grams by bucket."""
    rows, buckets = [], []
    for order in config.word_orders:
        found = tokens.n_grams(order)
        spelled = (f"w{tokens.spelled(ids)}" for ids in found.word_ids_Un.tolist())
        bucket_U = np.array([_bucket(n_gram, config) for n_gram in spelled], np.int32)
        rows.append(found.captions_G)
        buckets.append(bucket_U[found.ids_G])
    shape = tokens.num_captions, config.num_buckets
    bags_NF = _counts(np.concatenate(rows), np.concatenate(buckets), shape)
    return lambda start, stop: bags_NF[start:stop]


def _char_bags(tokens: n_grams.TokenizedCaptions, config: EmbeddingConfig) -> Bags:
    """Character n-grams by bucket, which are those of the words: N x V times V x F."""
    rows, buckets = [], []
    for row, word in enumerate(tokens.vocabulary):
        marked = f"<{word}>"
        for order in config.char_orders:
            for i in range(len(marked) - order + 1):
                rows.append(row)
                buckets.append(_bucket(f"c{marked[i : i + order]}", config))
    size = len(tokens.vocabulary)
    words_NV = _counts(tokens.captions_T, tokens.ids_T, (tokens.num_captions, size))
    chars_VF = _counts(rows, buckets, (size, config.num_buckets))
    return lambda start, stop: words_NV[start:stop] @ chars_VF


def _bucket(feature: str, config: EmbeddingConfig) -> int:
    # Not hash(): that one differs from process to process. JSON may hold half of a surrogate pair.
    return zlib.crc32(feature.encode("utf-8", "surrogatepass")) % config.num_buckets


def _counts(rows, columns, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    """Counts how often each (row, column) is listed, f32."""
    ones = np.ones(len(rows), np.float32)
    counts = scipy.sparse.csr_array((ones, (rows, columns)), shape=shape)
    counts.sum_duplicates()
    return counts


def _add_projected(embeddings_ND: np.ndarray, bags: Bags, projection_FD: np.ndarray) -> None:
    """Adds each bag's tf-idf weights, scaled to length 1, times the projection."""
    num_captions = len(embeddings_ND)
    blocks = [(i, min(i + _BLOCK, num_captions)) for i in range(0, num_captions, _BLOCK)]
    bags_with_F = np.zeros(len(projection_FD))
    for block in blocks:
        bags_with_F += np.bincount(bags(*block).indices, minlength=len(projection_FD))
    idf_F = 1 + np.log(num_captions / np.maximum(bags_with_F, 1))
    for start, stop in blocks:
        bags_BF = bags(start, stop)
        bags_BF.data *= idf_F[bags_BF.indices].astype(np.float32)
        norm_B = np.sqrt(bags_BF.power(2).sum(axis=1))
        embeddings_ND[start:stop] += bags_BF @ projection_FD / np.maximum(norm_B, 1e-30)[:, None]


def _unit_rows(x_ND: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.divide(x_ND, norm_N1, out=np.zeros_like(x_ND), where=norm_N1 > 0)


def sentence_transformer(model: str, *, batch_size: int = 256) -> Embed:
    """The embedding of a Sentence-Transformers model, by its name or its folder.

    Raises:
      UserError: the package is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"embedding {model!r}: {error}; expected Sentence-Transformers: "
            "pip install sentence-transformers"
        ) from error
    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"embedding {model!r}: cannot be loaded, expected the name or the folder of a "
            f"Sentence-Transformers model: {reason}"
        ) from error

    def embed(captions: Sequence[str]) -> np.ndarray:
        # JSON may hold half of a surrogate pair, which tokenizers refuse.
        texts = [caption.encode("utf-8", "replace").decode() for caption in captions]
        parts = []
        with Progress("embed", len(texts), "captions") as progress:
            for start in range(0, len(texts), 16 * batch_size):
                block = texts[start : start + 16 * batch_size]
                parts.append(encoder.encode(block, batch_size=batch_size, show_progress_bar=False))
                progress.add(len(block))
        return _unit_rows(np.concatenate(parts).astype(np.float32))

    return embed
