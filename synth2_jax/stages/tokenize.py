"""`synth2 tokenize`: turns images with captions into folders of pairs by a trained tokenizer.

Writes WORKDIR/SPLIT for each split that the config names. A shard is the
unit of work, of any number of processes: after a kill, the same command makes only the shards that
are missing. What is found and not used is counted by reason in the manifest, and too much of it
stops the run.

With `--on-the-fly` pairs hold the images themselves, at the tokenizer's size, and the training step
makes the tokens: for a tokenizer that is still being chosen, and to see what storing tokens saves.

Legend: B batch, N image tokens, H W pixels.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from synth2_jax import config as config_lib
from synth2_jax.data import pair_shards
from synth2_jax.data.caption_text import CaptionLimits, clean_caption
from synth2_jax.data.images import ImageLimits, decode_image, encode_png, middle_square
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Manifest, Pair, Provenance
from synth2_jax.data.references import pair_key
from synth2_jax.data.skipped import SkipError, Skipped, reasons
from synth2_jax.data.sources.source import (
    DataSource,
    ImageText,
    SourceConfig,
    num_pairs,
    open_source,
)
from synth2_jax.errors import naming
from synth2_jax.loading.run import Trained
from synth2_jax.loading.tokenizing import make_encoder
from synth2_jax.loading.trained import load_tokenizer
from synth2_jax.progress import Progress
from synth2_jax.sampling.device_stream import BusyClock, in_background, on_device
from synth2_jax.stop_signal import StopSignal

_BATCHES_AHEAD = 2
_MAX_HELD = 1 << 30  # bytes of files that wait to be decoded


@dataclasses.dataclass(frozen=True)
class TokenizeConfig:
    """Attributes:

    tokenizer: workdir or export of a tokenizer, or a third-party VQ-GAN (docs/other_models.md).
    image_size: side in pixels of the images of a third-party VQ-GAN; None for 256.
    pixel_range: black and white of a third-party VQ-GAN's network; None for what is usual for it.
    source: where images and captions are.
    splits: splits of the source to read; each becomes a folder.
    max_images: reads only the first so many images of each split; None for all.
    batch_size: images a batch.
    num_shards: files a folder; a source of many files makes one for each.
    image: which images are skipped.
    caption: which captions are skipped.
    max_skipped: the run stops when a larger share of the pairs is skipped.
    on_the_fly: whether pairs hold images in place of tokens.
    num_threads: threads that read and decode images; 0 for one a processor.
    """

    tokenizer: str
    image_size: int | None = None
    pixel_range: tuple[float, float] | None = None
    source: SourceConfig = SourceConfig()
    splits: tuple[str, ...] = ("real", "validation", "test")
    max_images: int | None = None
    batch_size: int = 256
    num_shards: int = 4
    image: ImageLimits = ImageLimits()
    caption: CaptionLimits = CaptionLimits()
    max_skipped: float = 0.05
    on_the_fly: bool = False
    num_threads: int = 0

    def __post_init__(self):
        config_lib.check_counts(self, "max_images", "batch_size", "num_shards")
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped: found {self.max_skipped}, expected 0 to 1")
        if self.num_threads < 0:
            raise ValueError(f"num_threads: found {self.num_threads}, expected at least 0")


def run(config: Any, workdir: str, on_the_fly: bool = False) -> dict[str, Manifest]:
    """Tokenizes every split; returns the manifests. A split that is already there is left alone."""
    cfg = config_lib.build(TokenizeConfig, config)
    cfg = dataclasses.replace(cfg, on_the_fly=cfg.on_the_fly or on_the_fly)
    told = {"image_size": cfg.image_size, "pixel_range": cfg.pixel_range}
    with naming("--config.tokenizer", cfg.tokenizer):
        trained = load_tokenizer(cfg.tokenizer, **told)
    return {
        split: _tokenize(split, trained, cfg, pathlib.Path(workdir) / split) for split in cfg.splits
    }


def _tokenize(split: str, trained: Trained, cfg: TokenizeConfig, folder: pathlib.Path) -> Manifest:
    source = open_source(cfg.source, split, cfg.num_shards, cfg.max_images)
    description = dict(source.description)
    if cfg.source.format != "scenes":  # whose pictures and captions are never skipped
        limits = {"image": cfg.image, "caption": cfg.caption}
        description["limits"] = {k: dataclasses.asdict(limit) for k, limit in limits.items()}
        fields = ("image_field", "caption_field", "key_field")
        description["fields"] = {name: getattr(cfg.source, name) for name in fields}
    tokenizer = trained.objective.task.tokenizer
    contents = {
        "tokenizer": trained.fingerprint("tokenizer"),
        "num_image_tokens": tokenizer.num_tokens,
        "codebook_size": tokenizer.codebook_size,
    }
    if cfg.on_the_fly:
        contents = {"tokenizer": "", "num_image_tokens": 0, "codebook_size": 0}
        contents["image_size"] = tokenizer.image_size
    writer = PairWriter(
        folder,
        Provenance(
            **contents,
            captions=description,
            config=dataclasses.asdict(cfg),
        ),
        num_shards=source.num_shards,
    )
    label = f"tokenize {split}"
    budget = pair_shards.SkipBudget(label, cfg.max_skipped, "--config.max_skipped")
    shards = pair_shards.my_shards(writer)
    if shards:
        with (
            StopSignal() as stop,
            BusyClock() as clock,
            Progress(label, *_size(source, shards)) as p,
        ):
            results = tokenized(source, shards, trained, cfg, clock, p)
            pair_shards.write_shards(writer, pair_shards.watched(results, stop, budget))
        logging.info("%s: the device was busy %.1f %% of the time", label, 100 * clock.share)
    budget.check(*writer.written())
    manifest = pair_shards.finish(str(folder), writer)
    num_skipped = sum(manifest.skipped.values())
    print(
        f"{label}: found {manifest.num_pairs + num_skipped:,} pairs, kept {manifest.num_pairs:,}, "
        f"skipped {num_skipped:,} ({reasons(manifest.skipped)})"
    )
    return manifest


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """An image u8[H,W,3] with its clean captions: (number, caption, prompt)."""

    key: str
    pixels: np.ndarray
    captions: Sequence[tuple[int, str, str]]
    skipped: Sequence[Skipped]


def tokenized(
    source: DataSource,
    shards: Sequence[int],
    trained: Trained,
    cfg: TokenizeConfig,
    clock: BusyClock,
    progress: Progress,
) -> Iterator[pair_shards.Result]:
    """The pairs of the shards, each shard ended by None; see `pair_shards.write_shards`.

    Raises:
      AssertionError: at the end of a shard, pairs were found that are neither kept nor skipped.
    """
    num_found, num_accounted = collections.Counter(), collections.Counter()

    def found() -> Iterator[tuple[int, ImageText | Skipped | None]]:
        for shard in shards:
            for item in source.read(shard):
                num_found[shard] += num_pairs(item)
                yield shard, item
            yield shard, None

    for shard, item in _tokenized(found(), source, trained, cfg, clock, progress):
        if item is not None:
            num_accounted[shard] += item.num_pairs if isinstance(item, Skipped) else 1
        elif num_accounted[shard] != num_found[shard]:
            raise AssertionError(
                f"shard {shard}: found {num_found[shard]:,} pairs, but {num_accounted[shard]:,} "
                "are kept or skipped"
            )
        yield shard, item


def _tokenized(
    found: Iterable[tuple[int, ImageText | Skipped | None]],
    source: DataSource,
    trained: Trained,
    cfg: TokenizeConfig,
    clock: BusyClock,
    progress: Progress,
) -> Iterator[pair_shards.Result]:
    size = trained.objective.task.tokenizer.image_size
    prepare = functools.partial(_prepare, size=size, image=cfg.image, caption=cfg.caption)
    with concurrent.futures.ThreadPoolExecutor(cfg.num_threads or os.cpu_count()) as pool:
        prepared = _ordered_map(pool, prepare, found, 2 * cfg.batch_size)
        if cfg.on_the_fly:
            for shard, item in prepared:
                yield from _expanded(shard, item, None)
                progress.add(_counts(source, item))
            return
        batches = in_background(_batches(prepared, cfg.batch_size, size), _BATCHES_AHEAD)
        with contextlib.closing(batches):
            for items, ids_BN in on_device(make_encoder(trained), batches, clock):
                rows = iter(ids_BN)
                for shard, item in items:
                    ids_N = next(rows) if isinstance(item, _Prepared) else None
                    yield from _expanded(shard, item, ids_N)
                    progress.add(_counts(source, item))


def _prepare(
    item: ImageText | Skipped | None, *, size: int, image: ImageLimits, caption: CaptionLimits
) -> _Prepared | Skipped | None:
    """Reads, decodes and cleans one example."""
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
        if isinstance(item.image, np.ndarray):
            pixels = _square_of_array(item.image, size)
        elif isinstance(item.image, bytes):
            pixels = decode_image(item.image, size, image)
        else:
            pixels = decode_image(_read_image(item.image, image), size, image)
    except SkipError as error:
        return error.at(item.key, len(item.captions))
    return _Prepared(item.key, pixels, captions, skipped)


def _square_of_array(image: np.ndarray, size: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise SkipError("unsupported pixels", f"{image.dtype}{list(image.shape)}")
    return middle_square(Image.fromarray(image), size)


def _read_image(path: pathlib.Path, limits: ImageLimits) -> bytes:
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


def _ordered_map(
    pool: concurrent.futures.Executor, function: Callable, items: Iterable, window: int
) -> Iterator[tuple[int, Any]]:
    """(shard, function(item)) of each (shard, item) in order.

    Up to `window` of them are under way, fewer where their files take more than _MAX_HELD bytes.
    """
    futures: collections.deque = collections.deque()
    held = 0
    for shard, item in items:
        futures.append((shard, pool.submit(function, item), _num_bytes(item)))
        held += futures[-1][2]
        while len(futures) > window or held > _MAX_HELD:
            shard, future, num_bytes = futures.popleft()
            yield shard, future.result()
            held -= num_bytes
    for shard, future, _ in futures:
        yield shard, future.result()


def _num_bytes(item: ImageText | Skipped | None) -> int:
    """Returns the size of the files that an example holds in memory."""
    if not isinstance(item, ImageText):
        return 0
    return sum(len(part) for part in (item.image, *item.captions) if isinstance(part, bytes))


def _batches(
    prepared: Iterable[tuple[int, _Prepared | Skipped | None]], batch_size: int, size: int
) -> Iterator[tuple[list, tuple[np.ndarray]]]:
    """(items, (images u8[B,H,W,3],)): up to B images, and what was skipped between them."""
    for items in _cut(prepared, batch_size):
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        pixels = [item.pixels for _, item in items if isinstance(item, _Prepared)]
        if pixels:
            images[: len(pixels)] = pixels
        yield items, (images,)


def _cut(prepared: Iterable[tuple[int, Any]], batch_size: int) -> Iterator[list]:
    items, num_images = [], 0
    for shard, item in prepared:
        items.append((shard, item))
        num_images += isinstance(item, _Prepared)
        if num_images == batch_size or len(items) > 16 * batch_size:
            yield items
            items, num_images = [], 0
    if items:
        yield items


def _expanded(
    shard: int, item: _Prepared | Skipped | None, ids_N: np.ndarray | None
) -> Iterator[pair_shards.Result]:
    """An image's captions, each with its tokens, or with the image itself where there are none."""
    if not isinstance(item, _Prepared):
        yield shard, item
        return
    for skipped in item.skipped:
        yield shard, skipped
    image = b"" if ids_N is not None else encode_png(item.pixels)
    for number, caption, prompt in item.captions:
        key = pair_key(item.key, number)
        yield shard, Pair(key, ids_N, caption, "real", prompt, image)


def _size(source: DataSource, shards: Sequence[int]) -> tuple[int, str]:
    """Of the work: images where their number is known, or else shards."""
    if source.num_images is None:
        return len(shards), "shards"
    return round(source.num_images * len(shards) / source.num_shards), "images"


def _counts(source: DataSource, item: _Prepared | Skipped | None) -> bool:
    """Whether an item is one of those that `_size` tells; None is a shard's end."""
    return (item is None) == (source.num_images is None)
