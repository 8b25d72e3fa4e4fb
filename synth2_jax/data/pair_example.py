"""A pair -> the bytes of a TF Example, checked against the folder's provenance.

Legend: N image tokens of a picture, K codebook size, t text tokens of a caption, E text width.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from synth2_jax.data import records
from synth2_jax.data.records import Pair, Provenance
from synth2_jax.errors import UserError


def example_bytes(pair: Pair, provenance: Provenance) -> bytes:
    """Returns the TF Example of a pair; the same pair is the same bytes in any process.

    Raises:
      UserError: names the key of a pair with other than N tokens, a token outside [0, K), features
        of another shape or not finite, or an unknown source.
    """
    from synth2_jax.data.tensorflow_cpu import tf

    if provenance.image_size:
        values = {records.IMAGE: pair.image}
    else:
        values = {records.IMAGE_TOKENS: _tokens(pair, provenance)}
    if pair.source not in records.SOURCES:
        raise UserError(
            f"pair {pair.key!r}: found source {pair.source!r}, expected one of {records.SOURCES}"
        )
    texts = {"caption": pair.caption, "source": pair.source, "key": pair.key}
    if pair.prompt:
        texts[records.PROMPT] = pair.prompt
    values |= {field: text.encode() for field, text in texts.items()}
    if provenance.text_encoder:
        values[records.TEXT_FEATURES] = _features(pair, provenance.text_encoder)
    feature = {
        field: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for field, value in values.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _tokens(pair: Pair, provenance: Provenance) -> bytes:
    tokens_N = np.asarray(pair.image_tokens)
    if tokens_N.shape != (provenance.num_image_tokens,):
        raise UserError(
            f"pair {pair.key!r}: found image tokens of shape {tokens_N.shape}, expected "
            f"({provenance.num_image_tokens},)"
        )
    if tokens_N.min() < 0 or tokens_N.max() >= provenance.codebook_size:
        raise UserError(
            f"pair {pair.key!r}: found image tokens {tokens_N.min()} to {tokens_N.max()}, expected "
            f"0 to {provenance.codebook_size - 1}"
        )
    return tokens_N.astype("<u2").tobytes()


def _features(pair: Pair, text_encoder: Mapping[str, Any]) -> bytes:
    features_tE = np.asarray(pair.text_features)
    length, width = text_encoder["text_length"], text_encoder["width"]
    found = (features_tE.dtype.name, features_tE.shape)
    if features_tE.dtype != ml_dtypes.bfloat16 or features_tE.shape[1:] != (width,):
        raise UserError(
            f"pair {pair.key!r}: found features {found}, expected bfloat16 of shape (t, {width})"
        )
    if not 1 <= len(features_tE) <= length:
        raise UserError(
            f"pair {pair.key!r}: found features of {len(features_tE)} tokens, expected 1 to "
            f"{length}"
        )
    if not np.isfinite(features_tE).all():
        raise UserError(f"pair {pair.key!r}: found features that are not finite")
    return features_tE.view(np.uint16).astype("<u2").tobytes()
