"""What the sources of images with captions have in common."""

import abc
import dataclasses
import glob
import hashlib
import importlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.data.records import Skipped, sha256_of
from synth2_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class ImageText:
    """An image with its captions, as found.

    Attributes:
      key: unique in its source.
      image: bytes of an image file, a path to one, or pixels u8[H,W,3].
      captions: text, or bytes that should be UTF-8.
      prompts: one for each caption, such as its question; or none.
    """

    key: str
    image: bytes | pathlib.Path | np.ndarray
    captions: Sequence[str | bytes]
    prompts: Sequence[str] = ()


class Source(abc.ABC):
    """Images with captions in parts that can be read alone, each the work of one shard.

    Attributes:
      num_shards: the number of parts.
      num_images: how many there are, None where nobody knows before reading.
      description: what the manifest says of it; it tells this source from others.
    """

    num_shards: int
    num_images: int | None = None
    description: Mapping[str, Any]

    @abc.abstractmethod
    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        """The examples of one part, always the same in the same order."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which images and captions to read. `{split}` in a path stands for the split's name.

    Attributes:
      format: a key of FORMATS.
      path: the file of annotations; for webdataset, tfrecord and json_lines one or more files, as
        "cc3m-{00000..00331}.tar" or "*.tar"; for tfds the name of the data set.
      images: the folder of images, or a template such as
        "COCO_train2014_{image_id:012d}.jpg" (vqa).
      questions: the file of questions (vqa).
      image_field, caption_field: what they are called: endings in webdataset, features in tfrecord
        and tfds, keys in json_lines. "" is the format's usual name, "a;b" the first that is there,
        "json/caption" the caption in a webdataset's JSON.
      key_field: a name of each example to be kept in its key (json_lines, tfds).
      answers: "most_common" of a question's answers, or "all" of them (vqa).
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
            raise ValueError(f"unknown format {self.format!r}; {nearest(self.format, FORMATS)}")
        if self.answers not in ("most_common", "all"):
            raise ValueError(f"answers: found {self.answers!r}, expected most_common or all")

    def at(self, split: str) -> "SourceConfig":
        """With the split's name in its paths."""
        paths = ("path", "images", "questions")
        return dataclasses.replace(
            self, **{name: getattr(self, name).replace("{split}", split) for name in paths}
        )


# Where the function `open_FORMAT(config, split, num_shards, max_images)` is, imported when needed.
FORMATS = {
    "scenes": "scenes",
    "coco": "annotations",
    "karpathy": "annotations",
    "flickr30k": "annotations",
    "nocaps": "annotations",
    "vqa": "annotations",
    "json_lines": "json_lines",
    "webdataset": "webdataset",
    "tfrecord": "tfrecord",
    "tfds": "tfds",
}


def open_source(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None = None
) -> Source:
    """The source that a config names.

    Args:
      config: which one.
      split: of the data set.
      num_shards: parts, for sources that can be parted anywhere; others have one for each file.
      max_images: the first so many; of sources of many files, as many of each as make this sum.

    Raises:
      UserError: files that are missing or not what they should be.
    """
    module = importlib.import_module(f"synth2_jax.data.sources.{FORMATS[config.format]}")
    opened = getattr(module, f"open_{config.format}")
    return opened(config.at(split), split, num_shards, max_images)


class ListSource(Source):
    """Examples of which a list fits in memory, parted into ranges of about equal size."""

    def __init__(
        self,
        examples: Sequence[ImageText],
        description: Mapping[str, Any],
        num_shards: int,
        max_images: int | None,
    ):
        self._examples = list(_first_of_each_key(examples[:max_images]))
        self.num_shards = num_shards
        self.num_images = len(self._examples)
        # The number is part of what the shards are: with another one they hold other images.
        self.description = {**description, "images": self.num_images}
        if not self._examples:
            raise UserError(f"{description['source']}: found no images with captions")

    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        bounds = np.linspace(0, self.num_images, self.num_shards + 1).astype(int)
        yield from self._examples[bounds[shard] : bounds[shard + 1]]


class FileSource(Source):
    """Files that each are a part; a subclass reads one.

    Args:
      name: of the format.
      config: `path` names the files, see `find_files`.
      max_images: of all files, as many of each.
    """

    def __init__(self, name: str, config: SourceConfig, max_images: int | None):
        self._paths = find_files(config.path, name)
        self._names = short_names(self._paths)
        self._limit = None if max_images is None else -(-max_images // len(self._paths))
        self.num_shards = len(self._paths)
        self.description = {**describe_files(name, self._paths), "max_images": max_images}

    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        examples = self._examples(self._paths[shard], self._names[shard])
        return itertools.islice(examples, self._limit)

    @abc.abstractmethod
    def _examples(self, path: pathlib.Path, name: str) -> Iterator[ImageText | Skipped]:
        """Those of one file, whose keys begin with its name."""


def _first_of_each_key(examples: Sequence[ImageText]) -> Iterator[ImageText | Skipped]:
    seen = set()
    for example in examples:
        if example.key in seen:
            yield Skipped(example.key, "duplicate key", num_pairs=len(example.captions))
        else:
            seen.add(example.key)
            yield example


def find_files(pattern: str, what: str) -> list[pathlib.Path]:
    """Files of a pattern in order: `*`, `?` and `[...]` as in a shell, `{000..331}`, `{a,b}`.

    Raises:
      UserError: there is none, or one that braces name is missing.
    """
    if not pattern:
        raise UserError(f"{what}: no path given, expected files such as data-{{000..099}}.tar")
    paths = []
    for name in _expand_braces(os.path.expanduser(pattern)):
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        if not found or not os.path.isfile(found[0]):
            raise UserError(f"{what}: no file {name}")
        paths += [pathlib.Path(path) for path in found if os.path.isfile(path)]
    return list(dict.fromkeys(paths))


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        return [pattern]
    first, last, choices = match.groups()
    if choices is None:
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        parts = choices.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for part in parts for name in _expand_braces(f"{head}{part}{tail}")]


def describe_annotations(name: str, paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """What tells files of annotations from others: their contents."""
    return {"source": name, "sha256": [sha256_of(path) for path in paths]}


def describe_files(name: str, paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """What tells these files from others without reading them: their names and sizes."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return {"source": name, "files": len(paths), "files_sha256": digest.hexdigest()}


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Names that tell files apart: without their common folder and their endings."""
    common = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, common).removesuffix(path.suffix) for path in paths]


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """`folder/name`, or None where the name leads out of the folder."""
    if "\0" in name or os.path.isabs(name):
        return None
    path = os.path.normpath(folder / name)
    return pathlib.Path(path) if path.startswith(os.path.normpath(folder) + os.sep) else None


def take(values: Mapping[str, Any], names: str) -> Any:
    """The value of the first of "a;b" that is there; None when none is."""
    return next((values[name] for name in names.split(";") if values.get(name) is not None), None)
