"""`synth2 tokenize`: turns images with captions into folders of pairs by a trained tokenizer.

Writes WORKDIR/SPLIT for each split that the config names. A shard is the unit of work, of any
number of processes: after a kill, the same command makes only the shards that are missing. What is
found and not used is counted by reason in the manifest, and too much of it stops the run.

With `--on-the-fly` pairs hold the images themselves, at the tokenizer's size, and the training step
makes the tokens: for a tokenizer that is still being chosen, and to see what storing tokens saves.

Legend: B batch, N image tokens, H W pixels.
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data import image_pairs
from synth2_jax.data.caption_text import CaptionLimits
from synth2_jax.data.image_pairs import Found, Prepared
from synth2_jax.data.images import ImageLimits
from synth2_jax.data.pair_shards import Result, make_pairs
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Manifest, Provenance
from synth2_jax.data.skipped import Skipped, reasons
from synth2_jax.data.sources.source import DataSource, SourceConfig, num_pairs, open_source
from synth2_jax.device_stream import BusyClock, in_background, on_device
from synth2_jax.errors import naming
from synth2_jax.loading.run import Trained
from synth2_jax.loading.tokenizing import make_encoder
from synth2_jax.loading.trained import load_tokenizer
from synth2_jax.progress import Progress

_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class TokenizeConfig:
    """Attributes:

    tokenizer: workdir or export of a tokenizer, or of a VLM or generator for its tokenizer; or a
        third-party VQ-GAN (docs/other_models.md).
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
        config_lib.check_counts(self, "num_threads", least=0)


def run(config: Any, workdir: str, on_the_fly: bool = False) -> dict[str, Manifest]:
    """Tokenizes every split; returns the manifests. A split that is already there is left alone."""
    cfg = config_lib.build(TokenizeConfig, config)
    cfg = dataclasses.replace(cfg, on_the_fly=cfg.on_the_fly or on_the_fly)
    told = {"image_size": cfg.image_size, "pixel_range": cfg.pixel_range}
    with naming("--config.tokenizer", cfg.tokenizer):
        trained = load_tokenizer(cfg.tokenizer, **told)
    folder = pathlib.Path(workdir)
    return {split: _tokenize(split, trained, cfg, folder / split) for split in cfg.splits}


def _tokenize(split: str, trained: Trained, cfg: TokenizeConfig, folder: pathlib.Path) -> Manifest:
    source = open_source(cfg.source, split, cfg.num_shards, cfg.max_images)
    config = dataclasses.asdict(cfg)
    description = dict(source.description)
    if cfg.source.format != "scenes":  # whose pictures and captions are never skipped
        description["limits"] = {name: config[name] for name in ("image", "caption")}
        fields = ("image_field", "caption_field", "key_field")
        description["fields"] = {name: config["source"][name] for name in fields}
    tokenizer = trained.objective.task.tokenizer
    contents = {
        "tokenizer": trained.fingerprint("tokenizer"),
        "num_image_tokens": tokenizer.num_tokens,
        "codebook_size": tokenizer.codebook_size,
    }
    if cfg.on_the_fly:
        contents = {"tokenizer": "", "num_image_tokens": 0, "codebook_size": 0}
        contents["image_size"] = tokenizer.image_size
    provenance = Provenance(**contents, captions=description, config=config)
    label = f"tokenize {split}"
    manifest = make_pairs(
        PairWriter(folder, provenance, num_shards=source.num_shards),
        label,
        functools.partial(_size, source),
        functools.partial(tokenized, source, trained, cfg),
        cfg.max_skipped,
    )
    num_skipped = sum(manifest.skipped.values())
    print(
        f"{label}: found {manifest.num_pairs + num_skipped:,} pairs, kept {manifest.num_pairs:,}, "
        f"skipped {num_skipped:,} ({reasons(manifest.skipped)})"
    )
    return manifest


def tokenized(
    source: DataSource,
    trained: Trained,
    cfg: TokenizeConfig,
    shards: Sequence[int],
    clock: BusyClock,
    progress: Progress,
) -> Iterator[Result]:
    """The pairs of the shards, each shard ended by None.

    Raises:
      AssertionError: at the end of a shard, pairs were found that are neither kept nor skipped.
    """
    # A counter for each thread: `found` runs in the one that reads.
    num_found, num_accounted = collections.Counter(), collections.Counter()

    def found() -> Iterator[Found]:
        for shard in shards:
            for item in source.read(shard):
                num_found[shard] += num_pairs(item)
                yield shard, item
            yield shard, None

    for shard, item, ids_N in _with_ids(found(), trained, cfg, clock):
        for pair in image_pairs.pairs(item, ids_N):
            if pair is not None:
                num_accounted[shard] += pair.num_pairs if isinstance(pair, Skipped) else 1
            elif num_lost := num_found[shard] - num_accounted[shard]:
                raise AssertionError(f"shard {shard}: lost {num_lost:,} pairs")
            yield shard, pair
        # Images if their number is known, else shards; None ends a shard.
        progress.add((item is None) == (source.num_images is None))


def _with_ids(
    found: Iterable[Found], trained: Trained, cfg: TokenizeConfig, clock: BusyClock
) -> Iterator[tuple[int, Prepared | Skipped | None, np.ndarray | None]]:
    """(shard, example, image tokens i32[N] of an image); no tokens with `on_the_fly`."""
    size = trained.objective.task.tokenizer.image_size
    prepare = functools.partial(
        image_pairs.prepare, size=size, image=cfg.image, caption=cfg.caption
    )
    ready = image_pairs.in_threads(prepare, found, 2 * cfg.batch_size, cfg.num_threads)
    if cfg.on_the_fly:
        yield from ((*item, None) for item in ready)
        return
    batches = in_background(image_pairs.batches(ready, cfg.batch_size, size), _BATCHES_AHEAD)
    with contextlib.closing(batches):
        for items, ids_BN in on_device(make_encoder(trained), batches, clock):
            rows = iter(ids_BN)
            for shard, item in items:
                yield shard, item, next(rows) if isinstance(item, Prepared) else None


def _size(source: DataSource, shards: Sequence[int]) -> tuple[int, str]:
    if source.num_images is None:
        return len(shards), "shards"
    return round(source.num_images * len(shards) / source.num_shards), "images"
