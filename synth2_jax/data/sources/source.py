"""The base classes of all sources of images with captions."""

import abc
import dataclasses
import glob
import hashlib
import importlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.data.records import Skipped, sha256_of
from synth2_jax.data.rejected import Rejected
from synth2_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class ImageText:
    """An image with its captions, as found.

    Attributes:
      key: unique in its source.
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
    """`found` counts rows of a source's files: lines, records, files in an archive, captions."""

    found: int = 0


class Source(abc.ABC):
    """Images with captions, in parts that are read separately; each part becomes one shard.

    Attributes:
      num_shards: the number of parts.
      num_images: number of images; None if it is not known before reading.
      description: identifies the source in the manifest.
    """

    num_shards: int
    num_images: int | None = None
    description: Mapping[str, Any]
    _limit: int | None = None  # examples of a part

    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        """Reads the examples of one part, always in the same order.

        Raises:
          AssertionError: rows were found that are in no example.
        """
        tally, accounted = Tally(), 0
        for number, (num_rows, item) in enumerate(self._read(shard, tally), start=1):
            accounted += num_rows
            yield _checked(item)
            if number == self._limit:
                return
        _check_sum(self.description, accounted, tally.found)

    @abc.abstractmethod
    def _read(self, shard: int, tally: Tally) -> Iterator[Counted]:
        """Yields (number of rows, example); adds the rows that it finds to `tally`."""


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
      key_field: name of a field that each example's key shall hold (json_lines, tfds).
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

    def at(self, split: str) -> "SourceConfig":
        """Returns the config with the split's name in its paths."""
        paths = ("path", "images", "questions")
        return dataclasses.replace(
            self, **{name: getattr(self, name).replace("{split}", split) for name in paths}
        )


# Modules of the functions `open_FORMAT(config, split, num_shards, max_images)`; imported when used.
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
    """Opens the source that a config names.

    Args:
      config: names it.
      split: of the data set.
      num_shards: number of parts; sources of many files have one part for each file instead.
      max_images: read only so many images, the first ones; sources of many files read the same
        number from each file.

    Raises:
      UserError: files that are missing or not what they should be.
    """
    module = importlib.import_module(f"synth2_jax.data.sources.{FORMATS[config.format]}")
    opened = getattr(module, f"open_{config.format}")
    return opened(config.at(split), split, num_shards, max_images)


class ListSource(Source):
    """Examples that fit in memory, cut into ranges of about equal size.

    Args:
      examples: all of them, each with how many rows of the files are in it.
      num_found: rows of the files.
      description: see Source.
      num_shards: parts.
      max_images: the first so many.

    Raises:
      AssertionError: rows were found that are in no example.
    """

    def __init__(
        self,
        examples: Iterable[Counted],
        num_found: int,
        description: Mapping[str, Any],
        num_shards: int,
        max_images: int | None,
    ):
        examples = list(examples)
        _check_sum(description, sum(num_rows for num_rows, _ in examples), num_found)
        self._examples = list(_first_of_each_key(examples[:max_images]))
        self.num_shards = num_shards
        self.num_images = len(self._examples)
        # The number of images decides which images each shard holds.
        self.description = {**description, "images": self.num_images}

    def _read(self, shard: int, tally: Tally) -> Iterator[Counted]:
        bounds = np.linspace(0, self.num_images, self.num_shards + 1).astype(int)
        for num_rows, example in self._examples[bounds[shard] : bounds[shard + 1]]:
            tally.found += num_rows
            yield num_rows, example


class FileSource(Source):
    """A list of files; each file is a part. A subclass reads one file.

    Args:
      config: `path` names the files, see `find_files`; the fields default to the format's.
      max_images: images of all files together, the same number from each.

    Attributes:
      name: of the format; subclasses set it.
      image_field, caption_field: where to look, as in SourceConfig; subclasses set the defaults.
    """

    name: str
    image_field: str
    caption_field: str

    @classmethod
    def open(
        cls, config: SourceConfig, split: str, num_shards: int, max_images: int | None
    ) -> Source:
        """Opens the files of a config. Their number decides the number of parts."""
        del split, num_shards
        return cls(config, max_images)

    def __init__(self, config: SourceConfig, max_images: int | None):
        self.image_field = config.image_field or self.image_field
        self.caption_field = config.caption_field or self.caption_field
        self._paths = find_files(config.path, self.name)
        self._names = short_names(self._paths)
        self._limit = None if max_images is None else -(-max_images // len(self._paths))
        self.num_shards = len(self._paths)
        self.description = {**describe_files(self.name, self._paths), "max_images": max_images}

    def _read(self, shard: int, tally: Tally) -> Iterator[Counted]:
        return self._examples(self._paths[shard], self._names[shard], tally)

    @abc.abstractmethod
    def _examples(self, path: pathlib.Path, name: str, tally: Tally) -> Iterator[Counted]:
        """The examples of one file, whose keys begin with its name; see `Source._read`."""


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


def find_files(pattern: str, what: str) -> list[pathlib.Path]:
    """Files of a pattern in order: `*`, `?` and `[...]` as in a shell, `{000..331}`, `{a,b}`.

    A file or folder whose name is exactly the pattern, special characters included, comes first.

    Raises:
      UserError: there is none, or one that braces name is missing.
    """
    if not pattern:
        raise UserError(f"{what}: no path given, expected files such as data-{{000..099}}.tar")
    folder, rest = _literal_folder(os.path.expanduser(pattern))
    paths = []
    for name in [rest] if os.path.isfile(os.path.join(folder, rest)) else _expand_braces(rest):
        found = [os.path.join(folder, name)]
        if not os.path.isfile(found[0]) and glob.has_magic(name):
            found = sorted(glob.glob(os.path.join(glob.escape(folder), name), recursive=True))
        files = [path for path in found if not os.path.isdir(path)]
        if missing := [path for path in files if not os.path.isfile(path)]:  # such as a dead link
            raise UserError(f"{what}: no file {missing[0]}")
        if not files and found and os.path.isdir(found[0]):
            raise UserError(f"{what}: {found[0]} is a folder, expected files. Name those in it")
        if not files:
            raise UserError(f"{what}: no file {os.path.join(folder, name)}")
        paths += files
    if not paths:  # such as of {9..0}
        raise UserError(f"{what}: no file {pattern}")
    return [pathlib.Path(path) for path in {os.path.abspath(path): path for path in paths}.values()]


def _literal_folder(pattern: str) -> tuple[str, str]:
    """Returns (the longest beginning of the pattern that is a folder, the rest)."""
    folder, rest = os.path.split(pattern)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
        rest = os.path.join(name, rest)
    return folder, rest


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    first, last, choices = match.groups()
    if choices is None:
        parts = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    else:
        parts = choices.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    for part in parts:
        yield from _expand_braces(f"{head}{part}{tail}")


def describe_annotations(name: str, paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Identifies files of annotations by their contents, for `Source.description`."""
    return {"source": name, "sha256": [sha256_of(path) for path in paths]}


def describe_files(name: str, paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Identifies files by their names and sizes, without reading them."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.name) + f" {path.stat().st_size}\n".encode())
    return {"source": name, "files": len(paths), "files_sha256": digest.hexdigest()}


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns distinct names of files, without their common folder, if possible without endings.

    No name is the beginning of another name before a "/", so that keys of two files never collide.
    """
    common = os.path.commonpath([path.parent.absolute() for path in paths])
    names = [os.path.relpath(path, common) for path in paths]
    short = [name.removesuffix(path.suffix) for name, path in zip(names, paths, strict=True)]
    taken = set(short)
    meet = len(taken) < len(short) or any(
        str(folder) in taken for name in short for folder in pathlib.PurePath(name).parents
    )
    return names if meet else short


def inside(folder: pathlib.Path, name: Any) -> pathlib.Path:
    """Returns the path of a file in the folder, from its name in a file of annotations.

    An absolute name is allowed if it leads into the folder.

    Raises:
      Rejected: not a name, or one that leads out of the folder.
    """
    if not isinstance(name, str) or not name:
        raise Rejected("image name not text", f"found {name!r:.40}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise Rejected("image name not UTF-8", str(error)) from None
    root = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(root, name))
    if "\0" in name or path == root or os.path.commonpath([root, path]) != root:
        raise Rejected("image outside of the folder", f"{name!r:.80} leads out of {folder}")
    return pathlib.Path(path)


def take(values: Mapping[str, Any], names: str) -> Any:
    """Returns the value of the first of "a;b" that is there, or None."""
    return next((values[name] for name in names.split(";") if values.get(name) is not None), None)


def looked_for(names: str, found: Iterable[str]) -> str:
    """Describes what was looked for and what is there, for when `take` returns None."""
    shown = sorted(found)
    more = ", ..." if len(shown) > 10 else ""
    return f"looked for {names}, found {', '.join(shown[:10]) or 'nothing'}{more}"
