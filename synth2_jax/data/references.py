"""Images with all their captions, put together again from pairs: what captions are scored against.

Legend: N image tokens.
"""

import dataclasses
import os

import numpy as np

from synth2_jax.data import records
from synth2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReferencedImage:
    """Image tokens i32[N] and the image's captions, in the order of their keys."""

    key: str
    image_tokens: np.ndarray
    references: tuple[str, ...]


def pair_key(image_key: str, caption_index: int) -> str:
    """The key of one caption of an image."""
    return f"{image_key}-{caption_index}"


def read_references(
    folder: str | os.PathLike[str], tokenizer_fingerprint: str, max_images: int | None = None
) -> list[ReferencedImage]:
    """The images of a folder of pairs in the order they were written.

    Raises:
      UserError: no pairs there, or pairs of another tokenizer.
    """
    records.check_tokenizer(records.read_manifest(folder), tokenizer_fingerprint, folder)
    images: dict[str, tuple[np.ndarray, list[str]]] = {}
    for pair in records.read_pairs(folder):
        key = pair.key.rsplit("-", 1)[0]
        if key not in images and max_images is not None and len(images) == max_images:
            break
        images.setdefault(key, (np.asarray(pair.image_tokens, np.int32), []))[1].append(
            pair.caption
        )
    if not images:
        raise UserError(f"pairs {folder}: found none, expected images with references")
    return [ReferencedImage(key, ids, tuple(refs)) for key, (ids, refs) in images.items()]
