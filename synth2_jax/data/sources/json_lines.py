"""One JSON object a line, {"image": a path in the folder of images, "caption": text or texts}."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synth2_jax.data.records import Skipped
from synth2_jax.data.rejected import Rejected
from synth2_jax.data.sources.source import (
    Counted,
    ImageText,
    Source,
    SourceConfig,
    Tally,
    describe_files,
    find_files,
    inside,
    looked_for,
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
    folder = pathlib.Path(os.path.expanduser(config.images or paths[0].parent))
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

    def _read(self, shard: int, tally: Tally) -> Iterator[Counted]:
        total = sum(self._sizes)
        start, stop = (total * s // self.num_shards for s in (shard, shard + 1))
        before = 0
        for path, name, size in zip(self._paths, self._names, self._sizes, strict=True):
            for offset, line in _lines(path, start - before, stop - before):
                if not line.strip():
                    continue  # an empty line holds nothing
                tally.found += 1
                try:
                    yield 1, self._example(f"{name}#{offset}", line)
                except Rejected as error:
                    yield 1, Skipped(f"{name}#{offset}", error.reason, error.detail)
            before += size

    def _example(self, where: str, line: bytes) -> ImageText | Skipped:
        if len(line) > _MAX_LINE:
            raise Rejected("line too long", f"{len(line):,} bytes")
        try:
            row = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a mark
        except (ValueError, RecursionError) as error:
            raise Rejected("line not JSON", str(error)) from None
        if not isinstance(row, dict):
            raise Rejected("line not a JSON object", f"{row!r:.40}")
        image, captions = (self._take(row, what) for what in ("image", "caption"))
        captions = captions if isinstance(captions, list) else [captions]
        key = take(row, self._fields["key"])
        if isinstance(key, bool) or not isinstance(key, int | str | None):
            raise Rejected("key not text or a number", f"found {key!r:.40}")
        key = where if key is None else f"{key}@{where}"
        try:
            return ImageText(key, inside(self._folder, image), captions)
        except Rejected as error:
            return Skipped(key, error.reason, error.detail, max(len(captions), 1))

    def _take(self, row: Mapping[str, Any], what: str) -> Any:
        value = take(row, self._fields[what])
        if value is None:
            raise Rejected(f"no {what}", looked_for(self._fields[what], row))
        return value


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
