"""A data source: images with captions in somebody's format, and `open_source`, which finds one."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.data.skipped import Skipped
from synth2_jax.data.sources.file_names import describe_files, find_files, short_names
from synth2_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class ImageText:
    """An image with its captions, as found.

    Attributes:
      key: unique in its data source.
      image: bytes of an image file, a path to one, or pixels u8[H,W,3].
      captions: as found, at least one: `clean_caption` says which are text.
      prompts: one for each caption, such as its question; or none.
    """

    key: str
    image: bytes | pathlib.Path | np.ndarray
    captions: Sequence[Any]
    prompts: Sequence[str] = ()


Counted = tuple[int, ImageText | Skipped]  # with the number of rows it was made from


@dataclasses.dataclass
class Tally:
    """`found` counts rows of a data source: lines, records, files in an archive, captions."""

    found: int = 0


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Images with captions, in parts that are read separately; each part becomes one shard.

    Attributes:
      description: identifies the data source in the manifest; JSON values.
      num_shards: number of parts.
      read_part: (part, tally) -> its examples, always in the same order; adds to `tally` the rows
        that it finds.
      num_images: of all parts; None if it is not known before reading.
      limit: most examples of a part to read.
    """

    description: Mapping[str, Any]
    num_shards: int
    read_part: Callable[[int, Tally], Iterator[Counted]]
    num_images: int | None = None
    limit: int | None = None

    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        """Reads one part. Raises AssertionError if rows were found that are in no example."""
        tally, accounted = Tally(), 0
        for number, (num_rows, item) in enumerate(self.read_part(shard, tally), start=1):
            accounted += num_rows
            yield _checked(item)
            if number == self.limit:
                return
        _check_sum(self.description, accounted, tally.found)


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which images and captions to read. `{split}` in a path is replaced by the split's name.

    Attributes:
      format: coco, karpathy, flickr30k, nocaps, vqa, json_lines, webdataset, tfrecord, tfds or
        scenes.
      path: the file of annotations; for webdataset, tfrecord and json_lines one or more files, as
        "cc3m-{00000..00331}.tar" or "*.tar"; for tfds the name of the data set.
      images: the folder of images, or a template such as
        "COCO_train2014_{image_id:012d}.jpg" (vqa).
      questions: the file of questions (vqa).
      image_field, caption_field: names of the image and the caption: endings in webdataset,
        features in tfrecord and tfds, keys in json_lines. "" is the format's usual name, "a;b" the
        first of them that exists, "json/caption" the caption in a webdataset's JSON.
      key_field: name of a field that becomes a part of each example's key (json_lines, tfds).
      answers: "most_common" or "all" answers of a question (vqa).
    """

    format: str = "scenes"
    path: str = ""
    images: str = ""
    questions: str = ""
    image_field: str = ""
    caption_field: str = ""
    key_field: str = ""
    answers: str = "most_common"

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format: unknown {self.format!r}; {nearest(self.format, FORMATS)}")
        if self.answers not in ("most_common", "all"):
            raise ValueError(f"answers: found {self.answers!r}, expected most_common or all")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The images to read of a data source, see `open_source`."""

    split: str
    num_shards: int
    max_images: int | None

    def limit(self, num_parts: int) -> int | None:
        """Returns the most examples to read of each part; None for all."""
        return None if self.max_images is None else -(-self.max_images // num_parts)


_ANNOTATIONS = ("coco", "karpathy", "flickr30k", "nocaps", "vqa")
# Modules of the functions `open_FORMAT(config, wanted)`; imported when used.
FORMATS = {
    **{name: name for name in ("scenes", "json_lines", "webdataset", "tfrecord", "tfds")},
    **dict.fromkeys(_ANNOTATIONS, "annotations"),
}


def open_source(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None = None
) -> DataSource:
    """Opens a split of the data source that a config names.

    Data sources of many files have one part for each file, whatever `num_shards`. `max_images`
    reads only the first images, the same number from each of many files.

    Raises:
      UserError: files that are missing or not what they should be.
    """
    paths = {
        name: getattr(config, name).replace("{split}", split)
        for name in ("path", "images", "questions")
    }
    module = importlib.import_module(f"synth2_jax.data.sources.{FORMATS[config.format]}")
    opened = getattr(module, f"open_{config.format}")
    wanted = Wanted(split, num_shards, max_images)
    return opened(dataclasses.replace(config, **paths), wanted)


def from_list(
    examples: Iterable[Counted],
    num_found: int,
    description: Mapping[str, Any],
    wanted: Wanted,
) -> DataSource:
    """Cuts examples that fit in memory, made from `num_found` rows, into parts of equal size."""
    examples = list(examples)
    _check_sum(description, sum(num_rows for num_rows, _ in examples), num_found)
    examples = list(_first_of_each_key(examples[: wanted.max_images]))
    bounds = np.linspace(0, len(examples), wanted.num_shards + 1).astype(int)

    def read_part(shard: int, tally: Tally) -> Iterator[Counted]:
        for num_rows, example in examples[bounds[shard] : bounds[shard + 1]]:
            tally.found += num_rows
            yield num_rows, example

    # The number of images decides which images each shard holds.
    description = {**description, "images": len(examples)}
    return DataSource(description, wanted.num_shards, read_part, len(examples))


def from_files(
    config: SourceConfig,
    wanted: Wanted,
    read_file: Callable[[pathlib.Path, str, Tally], Iterator[Counted]],
) -> DataSource:
    """Makes each file of `config.path` a part; `read_file` gets a short name for its keys."""
    paths = find_files(config.path, "--config.source.path")
    names = short_names(paths)
    return DataSource(
        {**describe_files(config.format, paths), "max_images": wanted.max_images},
        len(paths),
        lambda shard, tally: read_file(paths[shard], names[shard], tally),
        limit=wanted.limit(len(paths)),
    )


def check_split(split: str, known: Iterable[str], where: str) -> None:
    """Raises UserError unless a data source, named `where`, has the split."""
    if split not in known:
        raise UserError(f"--config.splits: {where} has no split {split!r}; {nearest(split, known)}")


def num_pairs(item: ImageText | Skipped) -> int:
    """Returns the number of pairs that an example gives, or that are lost with it."""
    return len(item.captions) if isinstance(item, ImageText) else item.num_pairs


def _checked(item: ImageText | Skipped) -> ImageText | Skipped:
    """Returns the example if it has captions and a key that can be stored."""
    # JSON, and names in archives, can hold halves of characters.
    key = item.key.encode("utf-8", "backslashreplace").decode()
    if isinstance(item, Skipped):
        return dataclasses.replace(item, key=key)
    if not item.captions:
        return Skipped(key, "no caption")
    return item if key == item.key else Skipped(key, "key not UTF-8", "", num_pairs(item))


def _check_sum(description: Mapping[str, Any], accounted: int, found: int) -> None:
    if accounted != found:
        raise AssertionError(
            f"{description['source']}: found {found:,} rows, but {accounted:,} are kept or skipped"
        )


def _first_of_each_key(examples: Iterable[Counted]) -> Iterator[Counted]:
    seen = set()
    for num_rows, example in examples:
        if isinstance(example, ImageText) and example.key in seen:
            example = Skipped(example.key, "duplicate key", "", num_pairs(example))
        seen.add(example.key)
        yield num_rows, example


def take(values: Mapping[str, Any], names: str) -> Any:
    """Returns the value of the first of "a;b/c" that is there, or None; b/c may be c inside b."""
    for name in names.split(";"):
        if (value := values.get(name)) is None:
            value = values
            for part in name.split("/"):
                value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def looked_for(names: str, found: Iterable[str]) -> str:
    """Describes what was looked for and what is there, for when `take` returns None."""
    shown = sorted(found)
    more = ", ..." if len(shown) > 10 else ""
    return f"looked for {names}, found {', '.join(shown[:10]) or 'nothing'}{more}"
