"""Views: a selection of a folder's pairs, which may swap images, without copying any data.

A view is a folder with `view.json`, which names the pairs' folder and its fingerprint, and one file
SHARD.rows for each of its shards: little-endian i32[M, 2], in ascending order the rows that are
kept, and for each the row whose image it takes. Both rows are in the same block of `block` rows, so
that a reader holds only one block. `view.json` is written last: a folder with one is complete.

Legend: M rows kept of a shard, B rows of a block, N image tokens.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from synth2_jax.data import records
from synth2_jax.errors import UserError
from synth2_jax.files import read_json, write_bytes, write_json
from synth2_jax.side_files import first_difference, read_as

if TYPE_CHECKING:
    import tensorflow as tf

FORMAT = "synth2_jax view"
VERSION = 1
VIEW = "view.json"
_ROW_BYTES = 8
_LENT = "+"  # joins the keys of the caption's pair and the image's pair


@dataclasses.dataclass(frozen=True)
class ViewShard:
    """The rows kept of one shard; `num_repaired` of `num_pairs` take the image of another row."""

    name: str
    num_pairs: int
    num_repaired: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class _ViewFile:
    """The contents of VIEW."""

    format: Literal[FORMAT]
    version: Literal[VERSION]
    pairs: str
    fingerprint: str
    block: int
    num_pairs: int
    chosen: Mapping[str, Any]
    shards: tuple[ViewShard, ...]

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"found a block of {self.block} rows, expected at least 1")
        if self.num_pairs != sum(shard.num_pairs for shard in self.shards):
            raise ValueError(f"num_pairs is {self.num_pairs}, expected the sum of the shards")


@dataclasses.dataclass(frozen=True)
class View:
    """An open view of `pairs`; tasks and pipelines accept it in place of a `records.Manifest`.

    Images are only swapped inside a block of `block` rows. `chosen` says how the rows were chosen,
    for the record; JSON values. There is one shard for each shard of the pairs.
    """

    folder: pathlib.Path
    pairs: pathlib.Path
    manifest: records.Manifest
    block: int
    chosen: Mapping[str, Any]
    shards: tuple[ViewShard, ...]

    @property
    def provenance(self) -> records.Provenance:
        return self.manifest.provenance

    @property
    def num_pairs(self) -> int:
        return sum(shard.num_pairs for shard in self.shards)

    @property
    def num_repaired(self) -> int:
        return sum(shard.num_repaired for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """A hash of the contents: equal for the same rows of the same pairs, in any folder."""
        contents = [self.manifest.fingerprint, self.block]
        contents += [dataclasses.asdict(shard) for shard in self.shards]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def rows(self, shard: str) -> np.ndarray:
        """Reads i32[M, 2]: the rows of a shard that are kept, and the row of the image of each."""
        return np.fromfile(self.folder / _rows_name(shard), "<i4").reshape(-1, 2)


def open_pairs(folder: str | os.PathLike[str]) -> records.Manifest | View:
    """Opens a folder of pairs, or of a view; UserError unless one is there and complete."""
    if (pathlib.Path(folder) / VIEW).is_file():
        return open_view(folder)
    return records.read_manifest(folder)


def open_view(folder: str | os.PathLike[str]) -> View:
    """Reads `view.json` and checks that its pairs have not changed.

    Raises:
      UserError: no view, a malformed one, missing or damaged rows, or the pairs are missing or
        different.
    """
    folder = pathlib.Path(folder)
    path = folder / VIEW
    if not path.is_file():
        raise UserError(f"view {folder}: no {VIEW}; expected what `synth2 filter` leaves there")
    found = read_as(_ViewFile, path, "filter")
    # The path starts at the folder itself, not at a link to it; in views of older versions it may
    # start at the link.
    ways = [pathlib.Path(os.path.normpath(at / found.pairs)) for at in (folder.resolve(), folder)]
    pairs = next((way for way in ways if (way / records.MANIFEST).exists()), ways[0])
    manifest = records.read_manifest(pairs)
    if manifest.fingerprint != found.fingerprint:
        raise UserError(
            f"view {folder}: {pairs} has pairs of fingerprint {manifest.fingerprint}, expected "
            f"{found.fingerprint}, which the view was made from; make it again"
        )
    names = [shard.name for shard in manifest.shards]
    if names != [shard.name for shard in found.shards]:
        raise UserError(f"{path}: expected the shards {', '.join(names)}; make the view again")
    view = View(folder, pairs, manifest, found.block, found.chosen, found.shards)
    for shard, of_pairs in zip(view.shards, manifest.shards, strict=True):
        rows = folder / _rows_name(shard.name)
        size, expected = rows.stat().st_size if rows.is_file() else 0, shard.num_pairs * _ROW_BYTES
        if size != expected:
            raise UserError(f"{rows}: found {size} bytes, expected {expected}; make the view again")
        if (sha256 := records.sha256_of(rows)) != shard.sha256:
            raise UserError(
                f"{rows}: damaged (found sha256 {sha256}, expected {shard.sha256}); make the view "
                "again"
            )
        if _num_repaired(view.rows(shard.name), of_pairs, view.block) != shard.num_repaired:
            raise UserError(f"{path}: damaged (num_repaired of {shard.name} does not fit its rows)")
    return view


def write_view(
    folder: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
    rows: Iterable[np.ndarray],
    *,
    block: int,
    chosen: Mapping[str, Any],
) -> View:
    """Writes a view; overwrites the same view, finished or not.

    The path of `pairs` is stored relative to `folder`, so that both may move together. `rows` are
    int[M, 2] for each shard, as `View.rows` returns them; `chosen` says how they were chosen.

    Raises:
      UserError: rows that are not in the shard, not in ascending order, or with an image of another
        block; or the folder holds another view.
    """
    folder = pathlib.Path(folder)
    manifest = records.read_manifest(pairs)
    check_same_view(folder, manifest, chosen)
    shards = []
    for shard, rows_M2 in zip(manifest.shards, rows, strict=True):
        rows_M2 = np.asarray(rows_M2, np.int64).reshape(-1, 2)
        num_repaired = _num_repaired(rows_M2, shard, block)
        contents = rows_M2.astype("<i4").tobytes()
        write_bytes(folder / _rows_name(shard.name), contents)
        digest = hashlib.sha256(contents).hexdigest()
        shards.append(ViewShard(shard.name, len(rows_M2), num_repaired, digest))
    contents = _ViewFile(
        format=FORMAT,
        version=VERSION,
        pairs=_way(folder, pathlib.Path(pairs)),
        fingerprint=manifest.fingerprint,
        block=block,
        num_pairs=sum(shard.num_pairs for shard in shards),
        chosen=dict(chosen),
        shards=tuple(shards),
    )
    write_json(folder / VIEW, dataclasses.asdict(contents))
    return open_view(folder)


def _way(folder: pathlib.Path, pairs: pathlib.Path) -> str:
    """Returns the relative path from a view's folder, with links resolved, to its pairs.

    It keeps the user's path if that leads there, so that both may move together with a link between
    them.
    """
    given = os.path.relpath(os.path.abspath(pairs), os.path.abspath(folder))
    leads = os.path.normpath(folder.resolve() / given)
    if os.path.exists(leads) and os.path.samefile(leads, pairs):
        return given
    return os.path.relpath(pairs.resolve(), folder.resolve())


def check_same_view(
    folder: str | os.PathLike[str], manifest: records.Manifest, chosen: Mapping[str, Any]
) -> None:
    """Raises UserError if the folder holds a view of other pairs or with other choices."""
    path = pathlib.Path(folder) / VIEW
    if not path.exists():
        return
    found = read_json(path, "filter")
    expected = {"fingerprint": manifest.fingerprint, "chosen": dict(chosen)}
    values = json.loads(json.dumps(expected))
    if difference := first_difference({key: found.get(key) for key in values}, values):
        raise UserError(
            f"view {folder}: found one of {difference[0]}, expected {difference[1]}; delete the "
            "folder or choose another"
        )


def read_view(folder: str | os.PathLike[str]) -> Iterator[records.Pair]:
    """Reads all pairs of a view in order; a pair that swapped its image has a key of both keys."""
    view = open_view(folder)
    for shard in view.shards:
        yield from read_shard(view, view.folder, shard.name)


def read_shard(
    opened: records.Manifest | View, folder: pathlib.Path, name: str
) -> Iterator[records.Pair]:
    """Reads the pairs of one shard in order; `opened` is from `open_pairs(folder)`."""
    if not isinstance(opened, View):
        yield from records.read_shard(folder / name)
        return
    pairs = list(records.read_shard(opened.pairs / name))
    for row, image_row in opened.rows(name).tolist():
        own, lender = pairs[row], pairs[image_row]
        key = own.key if own is lender else f"{own.key}{_LENT}{lender.key}"
        yield dataclasses.replace(own, key=key, image_tokens=lender.image_tokens)


def reader(view: View) -> "Callable[[tf.Tensor], tf.data.Dataset]":
    """Returns a `read_file_fn` for SeqIO: shard name -> serialized pairs.

    Each is string[2]: the pair with the caption, the pair with the image. A saved position holds an
    offset and a block of pairs for each shard.
    """
    from synth2_jax.data.tensorflow_cpu import tf

    def path(folder: pathlib.Path, name: tf.Tensor) -> tf.Tensor:
        return tf.strings.join([str(folder.resolve()), name], separator="/")

    def read(name: tf.Tensor) -> tf.data.Dataset:
        rows = tf.io.read_file(path(view.folder, _rows_name(name)))
        rows_M2 = tf.reshape(tf.io.decode_raw(rows, tf.int32, little_endian=True), [-1, 2])

        def take(number: tf.Tensor, serialized_B: tf.Tensor) -> tf.Tensor:
            first = tf.cast(number, tf.int32) * view.block
            start, stop = tf.unstack(
                tf.searchsorted(rows_M2[:, 0], tf.stack([first, first + view.block]))
            )
            return tf.gather(serialized_B, rows_M2[start:stop] - first)

        blocks = tf.data.TFRecordDataset(path(view.pairs, name)).batch(view.block)
        return blocks.enumerate().map(take).unbatch()

    return read


def decode_pairs(
    dataset: "tf.data.Dataset", *, prompt: str, text_features: bool = False
) -> "tf.data.Dataset":
    """Serialized pairs from `reader` -> the features of `preprocessors.decode_pairs`."""
    from synth2_jax.data import preprocessors
    from synth2_jax.data.tensorflow_cpu import tf

    def lend(features_B2: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        own, lender = ({name: x[:, i] for name, x in features_B2.items()} for i in (0, 1))
        both_B = tf.strings.join([own["key"], lender["key"]], separator=_LENT)
        key_B = tf.where(own["key"] == lender["key"], own["key"], both_B)
        return {**own, "image_tokens": lender["image_tokens"], "key": key_B}

    features = preprocessors.decode_pairs(
        dataset.unbatch(), prompt=prompt, text_features=text_features
    )
    return preprocessors.map_blocks(features.batch(2, drop_remainder=True), lend)


def _rows_name(shard: "str | tf.Tensor") -> "str | tf.Tensor":
    return shard + ".rows"


def _num_repaired(rows_M2: np.ndarray, shard: records.Shard, block: int) -> int:
    """Counts the rows with the image of another row; UserError on rows that do not fit."""
    in_range = np.all((rows_M2 >= 0) & (rows_M2 < shard.num_pairs))
    ascending = np.all(np.diff(rows_M2[:, 0]) > 0)
    if not (in_range and ascending and np.all(np.diff(rows_M2 // block, axis=1) == 0)):
        raise UserError(
            f"view of {shard.name}: expected ascending rows below {shard.num_pairs}, each with an "
            f"image of the same {block} rows"
        )
    return int((rows_M2[:, 0] != rows_M2[:, 1]).sum())
