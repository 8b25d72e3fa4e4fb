"""One JSON object a line, {"image": a path in the folder of images, "caption": text or texts}."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from synth2_jax.data.skipped import SkipError, Skipped
from synth2_jax.data.sources.file_names import describe_files, find_files, inside, short_names
from synth2_jax.data.sources.source import (
    Counted,
    DataSource,
    ImageText,
    SourceConfig,
    Tally,
    Wanted,
    looked_for,
    take,
)
from synth2_jax.errors import UserError

_MAX_LINE = 16 << 20  # bytes


def open_json_lines(config: SourceConfig, wanted: Wanted) -> DataSource:
    """Files of JSON lines. Part i are the lines that begin in the i-th part of their bytes."""
    paths = find_files(config.path, "--config.source.path")
    folder = pathlib.Path(os.path.expanduser(config.images or paths[0].parent))
    if not folder.is_dir():
        raise UserError(f"--config.source.images: no folder {folder}")
    fields = {
        "image": config.image_field or "image;file_name;path",
        "caption": config.caption_field or "captions;caption;text",
        "key": config.key_field or "key;id",
    }
    names = short_names(paths)
    ends = [0, *itertools.accumulate(path.stat().st_size for path in paths)]

    def read_part(shard: int, tally: Tally) -> Iterator[Counted]:
        start, stop = (ends[-1] * s // wanted.num_shards for s in (shard, shard + 1))
        for path, name, before in zip(paths, names, ends, strict=False):
            for offset, line in _lines(path, start - before, stop - before):
                if line.strip():  # an empty line holds nothing
                    tally.found += 1
                    yield 1, _example(f"{name}#{offset}", line, folder, fields)

    return DataSource(
        {**describe_files("json_lines", paths), "max_images": wanted.max_images},
        wanted.num_shards,
        read_part,
        limit=wanted.limit(wanted.num_shards),
    )


def _example(
    key: str, line: bytes, folder: pathlib.Path, fields: Mapping[str, str]
) -> ImageText | Skipped:
    num_pairs = 1
    try:
        if len(line) > _MAX_LINE:
            raise SkipError("line too long", f"{len(line):,} bytes")
        try:
            row = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a mark
        except (ValueError, RecursionError) as error:
            raise SkipError("line not JSON", str(error)) from None
        if not isinstance(row, dict):
            raise SkipError("line not a JSON object", f"{row!r:.40}")
        image, captions = (_value(row, what, fields[what]) for what in ("image", "caption"))
        captions = captions if isinstance(captions, list) else [captions]
        own_key = take(row, fields["key"])
        if isinstance(own_key, bool) or not isinstance(own_key, int | str | None):
            raise SkipError("key not text or a number", f"found {own_key!r:.40}")
        key = key if own_key is None else f"{own_key}@{key}"
        num_pairs = max(len(captions), 1)
        return ImageText(key, inside(folder, image), captions)
    except SkipError as error:
        return error.at(key, num_pairs)


def _value(row: Mapping[str, Any], what: str, field: str) -> Any:
    if (value := take(row, field)) is None:
        raise SkipError(f"no {what}", looked_for(field, row))
    return value


def _lines(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin in bytes `start` to `stop`."""
    if stop <= 0:
        return
    with open(path, "rb") as file:
        if start > 0:
            file.seek(start - 1)
            _skip_line(file)
        while (offset := file.tell()) < stop and (line := file.readline(_MAX_LINE + 1)):
            if len(line) > _MAX_LINE and not line.endswith(b"\n"):
                _skip_line(file)
            yield offset, line


def _skip_line(file) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass
