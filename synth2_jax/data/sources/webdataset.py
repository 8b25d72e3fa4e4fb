"""WebDataset: tar files in which the files of one example follow each other under one name.

    000000017.jpg  000000017.txt  000000017.json  000000018.jpg  ...

Members are read, never unpacked: names with `..`, absolute names, links and devices do nothing.
"""

import dataclasses
import itertools
import json
import pathlib
import tarfile
from collections.abc import Iterator

from synth2_jax.data.records import Skipped
from synth2_jax.data.sources.source import (
    FileSource,
    ImageText,
    Source,
    SourceConfig,
    take,
)

_IMAGES = "jpg;jpeg;png;webp;gif;bmp;tif;tiff"
_CAPTIONS = "txt;text;caption;json/caption;json/text"  # json/x: x of the JSON object
_MAX_MEMBER = 256 << 20  # bytes


def open_webdataset(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> Source:
    """Each tar file is a part."""
    del split, num_shards
    return WebDataset("webdataset", config, max_images)


class WebDataset(FileSource):
    """See `open_webdataset`. Keys are the tar file's name and the example's."""

    def __init__(self, name: str, config: SourceConfig, max_images: int | None):
        super().__init__(name, config, max_images)
        self._image_field = config.image_field or _IMAGES
        self._caption_field = config.caption_field or _CAPTIONS

    def _examples(self, path: pathlib.Path, tar_name: str) -> Iterator[ImageText | Skipped]:
        names = f"{self._image_field};{self._caption_field}".split(";")
        wanted = {name.partition("/")[0] for name in names}
        seen: set[str] = set()
        for name, group in itertools.groupby(_members(path, wanted), _name):
            key = f"{tar_name}/{name}"
            found: dict[str, bytes] = {}
            for member in group:
                if isinstance(member, Skipped):
                    yield dataclasses.replace(member, key=key)
                else:
                    _, ending, contents = member
                    found.setdefault(ending, contents)
            if found and name in seen:
                yield Skipped(key, "duplicate key")
            elif found:
                yield self._example(key, found)
            seen.add(name)

    def _example(self, key: str, found: dict[str, bytes]) -> ImageText | Skipped:
        image = take(found, self._image_field)
        if image is None:
            return Skipped(key, "no image", f"expected one of {self._image_field}")
        for name in self._caption_field.split(";"):
            ending, _, field = name.partition("/")
            if ending not in found:
                continue
            if not field:
                return ImageText(key, image, [found[ending]])
            try:
                row = json.loads(found[ending].decode("utf-8"))
            except (ValueError, RecursionError) as error:
                return Skipped(key, "caption not JSON", str(error))
            caption = row.get(field) if isinstance(row, dict) else None
            captions = caption if isinstance(caption, list) else [caption]
            if captions and all(isinstance(text, str) for text in captions):
                return ImageText(key, image, captions)
        return Skipped(key, "no caption", f"expected one of {self._caption_field}")


def _members(path: pathlib.Path, wanted: set[str]) -> Iterator[tuple[str, str, bytes] | Skipped]:
    """(name, ending, contents) of the regular files with a wanted ending, and what is amiss."""
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                tar.members = []  # it would keep every header
                name, _, ending = member.name.rpartition("/")[2].partition(".")
                folder = member.name.rpartition("/")[0]
                if member.isdir():
                    continue
                if not member.isreg():
                    yield Skipped(member.name, "tar member not a file", _kind(member))
                elif ".." in folder.split("/") or member.name.startswith("/"):
                    yield Skipped(member.name, "tar member outside of the archive")
                elif ending.lower() not in wanted:
                    continue
                elif member.size > _MAX_MEMBER:
                    yield Skipped(member.name, "tar member too large", f"{member.size:,} bytes")
                else:
                    contents = tar.extractfile(member).read()
                    yield f"{folder}/{name}".lstrip("/"), ending.lower(), contents
            # tarfile stops without a word at anything that is no header; an archive ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                detail = f"{path.name} from byte {tar.offset}"
                yield Skipped("", "truncated or damaged tar", detail)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        # Also what the decompressors raise.
        yield Skipped("", "truncated or damaged tar", f"{path.name}: {error}")


def _name(member: tuple[str, str, bytes] | Skipped) -> str:
    return member.key if isinstance(member, Skipped) else member[0]


def _kind(member: tarfile.TarInfo) -> str:
    return "a link" if member.issym() or member.islnk() else "a device"
