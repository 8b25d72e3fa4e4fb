"""Captions -> the ids that models read: what data/feature_converters.py makes in TensorFlow.

Legend: B captions, T text tokens.
"""

from collections.abc import Sequence

import numpy as np

from synth2_jax.text.vocabulary import EOS_ID, Vocabulary


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
