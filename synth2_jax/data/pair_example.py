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

    if pair.source not in records.SOURCES:
        raise _unfit(pair, f"source {pair.source!r}", f"one of {records.SOURCES}")
    if provenance.image_size:
        values = {records.IMAGE: pair.image}
    else:
        values = {records.IMAGE_TOKENS: _tokens(pair, provenance)}
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
    tokens_N, shape = np.asarray(pair.image_tokens), (provenance.num_image_tokens,)
    if tokens_N.shape != shape:
        raise _unfit(pair, f"image tokens of shape {tokens_N.shape}", shape)
    if tokens_N.min() < 0 or tokens_N.max() >= provenance.codebook_size:
        expected = f"0 to {provenance.codebook_size - 1}"
        raise _unfit(pair, f"image tokens {tokens_N.min()} to {tokens_N.max()}", expected)
    return tokens_N.astype("<u2").tobytes()


def _features(pair: Pair, text_encoder: Mapping[str, Any]) -> bytes:
    features_tE, width = np.asarray(pair.text_features), text_encoder["width"]
    if features_tE.dtype != ml_dtypes.bfloat16 or features_tE.shape[1:] != (width,):
        found = f"features {(features_tE.dtype.name, features_tE.shape)}"
        raise _unfit(pair, found, f"bfloat16 of shape (t, {width})")
    if not 1 <= len(features_tE) <= text_encoder["text_length"]:
        expected = f"1 to {text_encoder['text_length']}"
        raise _unfit(pair, f"features of {len(features_tE)} tokens", expected)
    if not np.isfinite(features_tE).all():
        raise _unfit(pair, "features that are not finite", "finite ones")
    return features_tE.view(np.uint16).astype("<u2").tobytes()


def _unfit(pair: Pair, found: str, expected: object) -> UserError:
    return UserError(f"pair {pair.key!r}: found {found}, expected {expected}")
