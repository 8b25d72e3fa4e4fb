"""From a source's images and captions to batches of pixels, and from their tokens to pairs.

Items flow with the number of their shard, in order; None ends a shard.

Legend: B batch, N image tokens, H W pixels.
"""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from synth2_jax.data.caption_text import CaptionLimits, clean_caption
from synth2_jax.data.images import ImageLimits, decode_image, encode_png, middle_square
from synth2_jax.data.records import Pair
from synth2_jax.data.references import pair_key
from synth2_jax.data.skipped import SkipError, Skipped
from synth2_jax.data.sources.source import ImageText
from synth2_jax.device_stream import in_rows

_MAX_HELD = 1 << 30  # bytes of files that wait to be decoded
Found = tuple[int, ImageText | Skipped | None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image u8[H,W,3] with its clean captions: (number, caption, prompt)."""

    key: str
    pixels: np.ndarray
    captions: Sequence[tuple[int, str, str]]
    skipped: Sequence[Skipped]


Ready = tuple[int, Prepared | Skipped | None]


def prepare(
    item: ImageText | Skipped | None, size: int, image: ImageLimits, caption: CaptionLimits
) -> Prepared | Skipped | None:
    """Reads, decodes and cleans one example; the pixels get the side `size`."""
    if not isinstance(item, ImageText):
        return item
    captions, skipped = [], []
    prompts = item.prompts or [""] * len(item.captions)
    for number, (text, prompt) in enumerate(zip(item.captions, prompts, strict=True)):
        try:
            captions.append((number, clean_caption(text, caption), prompt))
        except SkipError as error:
            skipped.append(error.at(pair_key(item.key, number)))
    try:
        pixels = _pixels(item.image, size, image)
    except SkipError as error:
        return error.at(item.key, len(item.captions))
    return Prepared(item.key, pixels, captions, skipped)


def _pixels(image: bytes | pathlib.Path | np.ndarray, size: int, limits: ImageLimits) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise SkipError("unsupported pixels", f"{image.dtype}{list(image.shape)}")
        return middle_square(Image.fromarray(image), size)
    return decode_image(image if isinstance(image, bytes) else _read(image, limits), size, limits)


def _read(path: pathlib.Path, limits: ImageLimits) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device may have no end
            raise SkipError("image file unreadable", f"{path.name}: not a file")
        if status.st_size > limits.max_bytes:
            raise SkipError("image file too large", f"{status.st_size:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise SkipError("image file missing", path.name) from None
    except OSError as error:
        raise SkipError("image file unreadable", f"{path.name}: {error.strerror}") from error


def in_threads(
    function: Callable, items: Iterable[Found], window: int, num_threads: int = 0
) -> Iterator[tuple[int, Any]]:
    """(shard, function(item)) of each (shard, item) in order; 0 threads for one a processor.

    Up to `window` of them are under way, fewer if their files take more than a gigabyte.
    """
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        futures: collections.deque = collections.deque()
        held = 0
        for shard, item in items:
            parts = (item.image, *item.captions) if isinstance(item, ImageText) else ()
            num_bytes = sum(len(part) for part in parts if isinstance(part, bytes))
            futures.append((shard, pool.submit(function, item), num_bytes))
            held += num_bytes
            while len(futures) > window or held > _MAX_HELD:
                shard, future, num_bytes = futures.popleft()
                yield shard, future.result()
                held -= num_bytes
        for shard, future, _ in futures:
            yield shard, future.result()


def batches(
    items: Iterable[Ready], batch_size: int, size: int
) -> Iterator[tuple[list[Ready], tuple[np.ndarray]]]:
    """(items, (images u8[B,H,W,3],)): up to B images, and what was skipped between them."""
    for part in in_rows(items, batch_size, lambda item: isinstance(item[1], Prepared)):
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        pixels = [item.pixels for _, item in part if isinstance(item, Prepared)]
        if pixels:
            images[: len(pixels)] = pixels
        yield part, (images,)


def pairs(
    item: Prepared | Skipped | None, ids_N: np.ndarray | None
) -> Iterator[Pair | Skipped | None]:
    """An image's captions, each with its tokens, or with the image itself if it has no tokens."""
    if not isinstance(item, Prepared):
        yield item
        return
    yield from item.skipped
    image = b"" if ids_N is not None else encode_png(item.pixels)
    for number, caption, prompt in item.captions:
        yield Pair(pair_key(item.key, number), ids_N, caption, "real", prompt, image)
