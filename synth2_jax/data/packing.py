"""Packs several pairs into one text, as the prompts of few-shot evaluation are written.

    Output: a dog. <end> <start> Output: two cats. <end>

Each text holds the next I pairs of the data, after shuffling and mixing: the first caption is
written as in training on one image a text, the second after one example, and so on. Each word reads
the image of its own caption (Flamingo, arXiv 2204.14198, section 2.4).

Legend: B texts, I images a text, T text tokens of a pair, P of a text: I * (T + 1) - 1.
"""

from collections.abc import Mapping

import numpy as np

from synth2_jax.text.vocabulary import PAD_ID


def pack(pairs: Mapping[str, np.ndarray], images_per_text: int) -> dict[str, np.ndarray]:
    """A VLM's batch of B * I pairs -> that of B texts; with one image a text the same batch.

    `image_tokens` or `image` become [B, I, ...], `is_synthetic` bool[B, I], `text_tokens` and
    `loss_mask` [B, P]. New is `image_of_text` i32[B, P]: which image each token's input reads, 1 to
    I, or 0 behind the last caption.
    """
    if images_per_text == 1:
        return dict(pairs)
    packed = {
        name: array.reshape(-1, images_per_text, *array.shape[1:]) for name, array in pairs.items()
    }
    # Each pair with the start token that comes after it.
    texts_BIT, mask_BIT = (
        np.pad(packed[name], ((0, 0), (0, 0), (0, 1))) for name in ("text_tokens", "loss_mask")
    )
    longest = texts_BIT.shape[-1]
    ends_BI = np.cumsum((texts_BIT != PAD_ID).sum(axis=-1) + 1, axis=1)
    starts_BI = np.pad(ends_BI, ((0, 0), (1, 0)))[:, :-1]
    places_P = np.arange(images_per_text * longest - 1)
    image_BP = (places_P >= ends_BI[..., None]).sum(axis=1)  # I behind the last caption
    is_padding_BP = image_BP == images_per_text
    image_BP = np.minimum(image_BP, images_per_text - 1)
    within_BP = places_P - np.take_along_axis(starts_BI, image_BP, axis=1)
    index_BP = image_BP * longest + np.where(is_padding_BP, longest - 1, within_BP)
    for name, array in {"text_tokens": texts_BIT, "loss_mask": mask_BIT}.items():
        flat = array.reshape(len(array), -1)
        packed[name] = np.take_along_axis(flat, index_BP, axis=1)
    packed["image_of_text"] = np.where(is_padding_BP, 0, image_BP + 1).astype(np.int32)
    return packed
