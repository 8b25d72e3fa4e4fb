"""One JSON object a line, {"image": a path in the folder of images, "caption": text or texts}."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence

from synth2_jax.data.records import Skipped
from synth2_jax.data.sources.source import (
    ImageText,
    Source,
    SourceConfig,
    describe_files,
    find_files,
    inside,
    short_names,
    take,
)
from synth2_jax.errors import UserError

_MAX_LINE = 16 << 20  # bytes


def open_json_lines(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> Source:
    """Files of JSON lines, cut into parts of equal length wherever lines end."""
    del split
    paths = find_files(config.path, "json_lines")
    folder = pathlib.Path(config.images or paths[0].parent).expanduser()
    if not folder.is_dir():
        raise UserError(f"json_lines: no folder of images {folder}")
    return JsonLines(paths, folder, config, num_shards, max_images)


class JsonLines(Source):
    """See `open_json_lines`. Part i are the lines that begin in the i-th part of the bytes."""

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        folder: pathlib.Path,
        config: SourceConfig,
        num_shards: int,
        max_images: int | None,
    ):
        self._paths, self._names = paths, short_names(paths)
        self._folder = folder
        self._fields = {
            "image": config.image_field or "image;file_name;path",
            "caption": config.caption_field or "captions;caption;text",
            "key": config.key_field or "key;id",
        }
        self._limit = None if max_images is None else -(-max_images // num_shards)
        self._sizes = [path.stat().st_size for path in paths]
        self.num_shards = num_shards
        self.description = {**describe_files("json_lines", paths), "max_images": max_images}

    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        total = sum(self._sizes)
        start, stop = (total * s // self.num_shards for s in (shard, shard + 1))
        return itertools.islice(self._examples(start, stop), self._limit)

    def _examples(self, start: int, stop: int) -> Iterator[ImageText | Skipped]:
        before = 0
        for path, name, size in zip(self._paths, self._names, self._sizes, strict=True):
            for offset, line in _lines(path, start - before, stop - before):
                if line.strip():
                    yield self._example(f"{name}#{offset}", line)
            before += size

    def _example(self, where: str, line: bytes) -> ImageText | Skipped:
        if len(line) > _MAX_LINE:
            return Skipped(where, "line too long", f"{len(line):,} bytes")
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            return Skipped(where, "line not JSON", str(error))
        if not isinstance(row, dict):
            return Skipped(where, "line not a JSON object", f"{row!r:.40}")
        image, captions = take(row, self._fields["image"]), take(row, self._fields["caption"])
        if isinstance(captions, str):
            captions = [captions]
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            return Skipped(where, "no caption", f"{self._fields['caption']} is {captions!r:.40}")
        if not isinstance(image, str):
            return Skipped(where, "no image", f"{self._fields['image']} is {image!r:.40}")
        path = inside(self._folder, image)
        if path is None:
            return Skipped(where, "image outside of the folder", image)
        key = take(row, self._fields["key"])
        key = where if key is None else f"{key}@{where}"
        return ImageText(key, path, captions)


def _lines(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin in bytes `start` to `stop`."""
    if stop <= 0:
        return
    with open(path, "rb") as file:
        if start > 0:
            file.seek(start - 1)
            _skip_line(file)
        while (offset := file.tell()) < stop:
            line = file.readline(_MAX_LINE + 1)
            if not line:
                return
            if len(line) > _MAX_LINE and not line.endswith(b"\n"):
                _skip_line(file)
            yield offset, line


def _skip_line(file) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass
