"""Images with all their captions, collected from pairs: the references for scoring captions.

Legend: N image tokens.
"""

import collections
import dataclasses
import os

import numpy as np

from synth2_jax.data import records
from synth2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReferencedImage:
    """Image tokens i32[N] and the image's captions, in the order of their keys.

    `prompt` is the image's prompt, such as a question that its captions answer; or "".
    """

    key: str
    image_tokens: np.ndarray
    references: tuple[str, ...]
    prompt: str = ""


def pair_key(image_key: str, caption_index: int) -> str:
    """Returns the key of one caption of an image."""
    return f"{image_key}-{caption_index}"


def image_key(key: str) -> str:
    """Returns the image's key from a pair's key, the inverse of `pair_key`."""
    return key.rsplit("-", 1)[0]


def read_references(
    folder: str | os.PathLike[str], tokenizer_fingerprint: str, max_images: int | None = None
) -> list[ReferencedImage]:
    """Reads the images of a folder of pairs in the order they were written.

    Raises:
      UserError: no pairs, pairs of another tokenizer, or an image with several prompts.
    """
    records.check_tokenizer(records.read_manifest(folder), tokenizer_fingerprint, folder)
    images: dict[str, ReferencedImage] = {}
    captions: dict[str, list[str]] = collections.defaultdict(list)
    for pair in records.read_pairs(folder):
        key = image_key(pair.key)
        if key not in images:
            if max_images is not None and len(images) == max_images:
                break
            images[key] = ReferencedImage(key, pair.image_tokens, (), pair.prompt)
        if pair.prompt != images[key].prompt:
            raise UserError(
                f"pairs {folder}: image {key!r} has the prompts {images[key].prompt!r} and "
                f"{pair.prompt!r}, expected one; give each question a key of its own"
            )
        captions[key].append(pair.caption)
    if not images:
        raise UserError(f"pairs {folder}: found none, expected images with references")
    return [
        dataclasses.replace(image, references=tuple(captions[key])) for key, image in images.items()
    ]
