"""Captions -> the text that models read, as they were trained on it.

The same as data/feature_converters.py makes in TensorFlow, where pairs do not come from there.

Legend: B captions, T text tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.vocabulary import EOS_ID, Vocabulary


def caption_decode(
    section: Mapping[str, Any] | None, data: DataConfig, vocabulary: Vocabulary, where: str
) -> TextDecodeConfig:
    """How a VLM writes captions: by default at most as long as those that it was trained on.

    Args:
      section: of a config; it may leave anything out.
      data: what the VLM was trained on.
      vocabulary: of the VLM.
      where: see `config.build`.

    Raises:
      UserError: an unknown key, or a value that will not do.
    """
    decode = config_lib.build(TextDecodeConfig, section, where)
    if section and "max_length" in section:
        return decode
    longest = data.text_length - len(vocabulary.encode(data.prompt))
    return dataclasses.replace(decode, max_length=max(1, longest))


def text_ids(captions: Sequence[str], vocabulary: Vocabulary, length: int) -> np.ndarray:
    """i32[B, T] for a generator: caption and end of sentence, padded with 0."""
    rows = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(rows, captions, strict=True):
        ids = [*vocabulary.encode(caption)[: length - 1], EOS_ID]
        row[: len(ids)] = ids
    return rows


def vlm_text(
    captions: Sequence[str], prompts: Sequence[str], vocabulary: Vocabulary, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """For a VLM: (text_tokens i32[B, T], loss_mask bool[B, T] of caption and its end)."""
    text_BT = np.zeros((len(captions), length), np.int32)
    mask_BT = np.zeros((len(captions), length), bool)
    for text_T, mask_T, caption, prompt in zip(text_BT, mask_BT, captions, prompts, strict=True):
        before = vocabulary.encode(prompt)
        end = vocabulary.end_id(before)
        ids = [*[*before, *vocabulary.encode(caption)][: length - 1], end]
        text_T[: len(ids)] = ids
        mask_T[len(before) : len(ids)] = True
    return text_BT, mask_BT
