"""Views: some pairs of a folder, with their own images or each other's, without a copy of either.

A view is a folder with `view.json`, which names the pairs' folder and its fingerprint, and one file
SHARD.rows for each of its shards: little-endian i32[M, 2], in ascending order the rows that are
kept, and the row whose image each takes. Both lie in one block of `block` rows, so that a reader
holds no more than a block. `view.json` appears last: a folder with one is whole.

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
_LENT = "+"  # between the key of a caption's pair and that of its image's


@dataclasses.dataclass(frozen=True)
class ViewShard:
    """What is kept of one shard: `num_repaired` of the `num_pairs` take another row's image."""

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
            raise ValueError(f"found a block of {self.block} rows, expected 1 or more")
        if self.num_pairs != sum(shard.num_pairs for shard in self.shards):
            raise ValueError(f"num_pairs is {self.num_pairs}, expected the sum of the shards")


@dataclasses.dataclass(frozen=True)
class View:
    """A view that was opened; tasks and pipelines take it as they take a `records.Manifest`.

    Attributes:
      folder: of the view.
      pairs: folder of the pairs.
      manifest: of the pairs.
      block: rows among which images may change places.
      chosen: how, for the record; JSON values.
      shards: one for each of the pairs'.
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
        """Of the contents: equal for views of equal rows of equal pairs, wherever they lie."""
        contents = [self.manifest.fingerprint, self.block]
        contents += [dataclasses.asdict(shard) for shard in self.shards]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def rows(self, shard: str) -> np.ndarray:
        """i32[M, 2]: the rows of a shard that are kept, and the row whose image each takes."""
        return np.fromfile(self.folder / _rows_name(shard), "<i4").reshape(-1, 2)


def open_pairs(folder: str | os.PathLike[str]) -> records.Manifest | View:
    """The manifest of a folder of pairs, or the view in a folder of one.

    Raises:
      UserError: neither is there, or it is not whole.
    """
    if (pathlib.Path(folder) / VIEW).is_file():
        return open_view(folder)
    return records.read_manifest(folder)


def open_view(folder: str | os.PathLike[str]) -> View:
    """Reads `view.json` and checks that the pairs are those that it was made of.

    Raises:
      UserError: no view, a malformed one, rows missing or of another number, no pairs where it
        says, or other pairs there.
    """
    folder = pathlib.Path(folder)
    path = folder / VIEW
    if not path.is_file():
        raise UserError(f"view {folder}: no {VIEW}; expected what `synth2 filter` leaves there")
    found = read_as(_ViewFile, path, "filter")
    # From the folder itself, whichever link leads to it; a view may also hold the way from the
    # link by which it was made.
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
        _check_as_written(view, shard, of_pairs)
    return view


def _check_as_written(view: View, shard: ViewShard, of_pairs: records.Shard) -> None:
    """Raises UserError unless the rows of a shard are those that `write_view` wrote."""
    path = view.folder / _rows_name(shard.name)
    size = path.stat().st_size if path.is_file() else 0
    if size != shard.num_pairs * _ROW_BYTES:
        raise UserError(
            f"{path}: found {size} bytes, expected {shard.num_pairs * _ROW_BYTES}; make the view "
            "again"
        )
    sha256 = records.sha256_of(path)
    if sha256 != shard.sha256:
        raise UserError(
            f"{path}: damaged (found sha256 {sha256}, expected {shard.sha256}); make the view again"
        )
    rows_M2 = view.rows(shard.name)
    _check_rows(rows_M2, of_pairs, view.block)
    if (rows_M2[:, 0] != rows_M2[:, 1]).sum() != shard.num_repaired:
        raise UserError(
            f"{view.folder / VIEW}: num_repaired of {shard.name} is not that of its rows"
        )


def write_view(
    folder: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
    rows: Iterable[np.ndarray],
    *,
    block: int,
    chosen: Mapping[str, Any],
) -> View:
    """Writes a view; the same view, begun or finished before, is written over.

    Args:
      folder: where to.
      pairs: folder of the pairs; noted relative to `folder`, so that both may move together.
      rows: for each shard int[M, 2], as `View.rows` gives them.
      block: how far images may move; see the top of this file.
      chosen: how the rows were chosen; JSON values.

    Raises:
      UserError: rows that a shard lacks, that are not in ascending order, or whose image lies in
        another block; the folder holds another view.
    """
    folder = pathlib.Path(folder)
    manifest = records.read_manifest(pairs)
    check_same_view(folder, manifest, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for shard, rows_M2 in zip(manifest.shards, rows, strict=True):
        rows_M2 = np.asarray(rows_M2, np.int64).reshape(-1, 2)
        _check_rows(rows_M2, shard, block)
        contents = rows_M2.astype("<i4").tobytes()
        write_bytes(folder / _rows_name(shard.name), contents)
        num_repaired = int((rows_M2[:, 0] != rows_M2[:, 1]).sum())
        digest = hashlib.sha256(contents).hexdigest()
        shards.append(ViewShard(shard.name, len(rows_M2), num_repaired, digest))
    write_json(
        folder / VIEW,
        {
            "format": FORMAT,
            "version": VERSION,
            "pairs": _way(folder, pathlib.Path(pairs)),
            "fingerprint": manifest.fingerprint,
            "block": block,
            "num_pairs": sum(shard.num_pairs for shard in shards),
            "chosen": dict(chosen),
            "shards": [dataclasses.asdict(shard) for shard in shards],
        },
    )
    return open_view(folder)


def _way(folder: pathlib.Path, pairs: pathlib.Path) -> str:
    """The relative path from a view's folder, without links, to its pairs.

    It is as short as the user's own spelling where that leads there, so that both may move together
    with a link between them.
    """
    given = os.path.relpath(os.path.abspath(pairs), os.path.abspath(folder))
    leads = os.path.normpath(folder.resolve() / given)
    if os.path.exists(leads) and os.path.samefile(leads, pairs):
        return given
    return os.path.relpath(pairs.resolve(), folder.resolve())


def check_same_view(
    folder: str | os.PathLike[str], manifest: records.Manifest, chosen: Mapping[str, Any]
) -> None:
    """Raises UserError when the folder holds a view of other pairs, or one chosen otherwise."""
    path = pathlib.Path(folder) / VIEW
    if not path.exists():
        return
    found = read_json(path, "filter")
    expected = {"fingerprint": manifest.fingerprint, "chosen": dict(chosen)}
    values = json.loads(json.dumps(expected))
    difference = first_difference({key: found.get(key) for key in values}, values)
    if difference:
        raise UserError(
            f"view {folder}: found one of {difference[0]}, expected {difference[1]}; delete the "
            "folder or choose another"
        )


def read_view(folder: str | os.PathLike[str]) -> Iterator[records.Pair]:
    """All pairs of a view in order; one with another row's image has a key made of both keys."""
    view = open_view(folder)
    for shard in view.shards:
        yield from _read_shard(view, shard.name)


def read_shard(
    opened: records.Manifest | View, folder: pathlib.Path, name: str
) -> Iterator[records.Pair]:
    """The pairs of one shard of what `open_pairs` has opened in `folder`, in order."""
    if isinstance(opened, View):
        return _read_shard(opened, name)
    return records.read_shard(folder / name)


def _read_shard(view: View, name: str) -> Iterator[records.Pair]:
    pairs = list(records.read_shard(view.pairs / name))
    for row, image_row in view.rows(name).tolist():
        pair = pairs[row]
        if image_row != row:
            pair = dataclasses.replace(
                pair,
                key=f"{pair.key}{_LENT}{pairs[image_row].key}",
                image_tokens=pairs[image_row].image_tokens,
            )
        yield pair


def reader(view: View) -> "Callable[[tf.Tensor], tf.data.Dataset]":
    """For SeqIO: name of a shard -> serialized pairs, string[2] each: the caption's, the image's.

    What is read may be saved as a position: of each shard it holds a place and a block of pairs.
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
    """What `reader` reads -> features, as `preprocessors.decode_pairs` gives them."""
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


def _check_rows(rows_M2: np.ndarray, shard: records.Shard, block: int) -> None:
    in_range = np.all((rows_M2 >= 0) & (rows_M2 < shard.num_pairs))
    ascending = np.all(np.diff(rows_M2[:, 0]) > 0)
    if not (in_range and ascending and np.all(np.diff(rows_M2 // block, axis=1) == 0)):
        raise UserError(
            f"view of {shard.name}: expected ascending rows below {shard.num_pairs}, each with an "
            f"image of the same {block} rows"
        )
