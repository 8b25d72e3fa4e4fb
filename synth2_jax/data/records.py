"""Image-caption pairs on disk: TFRecord shards of TF Examples, and one manifest.

A shard appears under its name only when it is complete, and the manifest appears last, so a folder
with a manifest is whole. An image with several captions is several pairs of distinct keys, such as
"real-000012-0" to "real-000012-4". Folders are on a file system with an atomic rename.

Legend: N image tokens of a picture, K codebook size.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.errors import UserError

FORMAT = "synth2_jax pairs"
VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
SOURCES = ("real", "synthetic")
MAX_CODEBOOK_SIZE = 65536  # image tokens are uint16 on disk
FIELDS = ("image_tokens", "caption", "source", "key")
_READ_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture as tokens int[N], its caption, "real" or "synthetic", and a unique key."""

    key: str
    image_tokens: np.ndarray
    caption: str
    source: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the pairs of a folder come from; all of it is kept in the manifest.

    Attributes:
      tokenizer: fingerprint of the tokenizer whose codebook the image tokens index.
      num_image_tokens: N.
      codebook_size: K, at most 65536.
      split: the name under which a task offers these pairs.
      generator: {"checkpoint": ..., "fingerprint": ...}; None for real pictures.
      sampler: settings of the sampler; None for real pictures.
      captions: who wrote them, such as {"source": "language_model", "prompt": ..., "seed": ...}.
      config: resolved config of the run, for the record only: a resumed run may change it.
    """

    tokenizer: str
    num_image_tokens: int
    codebook_size: int
    split: str = "train"
    generator: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    captions: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise UserError(
                f"pairs: found a codebook of {self.codebook_size}, expected 1 to "
                f"{MAX_CODEBOOK_SIZE}: image tokens are stored as uint16"
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a folder of pairs."""

    name: str
    num_pairs: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`counts` is the number of pairs by source."""

    provenance: Provenance
    counts: Mapping[str, int]
    shards: tuple[Shard, ...]

    @property
    def num_pairs(self) -> int:
        return sum(shard.num_pairs for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Of the contents: equal for folders whose shards are equal byte by byte."""
        digests = json.dumps([dataclasses.asdict(shard) for shard in self.shards])
        return hashlib.sha256(digests.encode()).hexdigest()


class PairWriter:
    """Writes a folder of pairs shard by shard; what was finished survives a kill.

    Run again with the same arguments, it knows the shards already there. Several processes may
    share a folder, each with its own shards; one of them calls `finish` when all are written.

        writer = PairWriter(folder, provenance, num_shards=4)
        for index in writer.missing():
            writer.write_shard(index, pairs_of(index))
        manifest = writer.finish()

    Raises:
      UserError: the folder holds pairs of other provenance (but for `config`), name or shards.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        provenance: Provenance,
        *,
        num_shards: int,
        name: str = "pairs",
    ):
        if num_shards < 1:
            raise UserError(f"pairs {folder}: found {num_shards} shards, expected at least 1")
        self._folder = pathlib.Path(folder)
        self._provenance = provenance
        self._names = [f"{name}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards)]
        self._folder.mkdir(parents=True, exist_ok=True)
        work = _json({"shards": self._names, **_comparable(provenance)})
        self._check_same_work(work)
        if not (self._folder / MANIFEST).exists():
            _write_atomically(self._folder / PROGRESS, work.encode())

    def missing(self) -> list[int]:
        """The shards not yet written."""
        return [i for i, name in enumerate(self._names) if not (self._folder / name).exists()]

    def write_shard(self, index: int, pairs: Iterable[Pair]) -> None:
        """Writes one shard under a temporary name and renames it when it is on the disk.

        Raises:
          UserError: naming the key of a pair with other than N tokens, a token outside [0, K), an
            unknown source, or a key that the shard already has.
        """
        from synth2_jax.data.tensorflow_cpu import tf

        keys = set()
        with (
            _temporary(self._folder / self._names[index]) as path,
            tf.io.TFRecordWriter(str(path)) as file,
        ):
            for pair in pairs:
                if pair.key in keys:
                    raise UserError(f"pair {pair.key!r}: this key is there twice")
                keys.add(pair.key)
                file.write(_example(pair, self._provenance))

    def finish(self) -> Manifest:
        """Reads all shards back, checks that no key is there twice, and writes the manifest."""
        if missing := self.missing():
            raise UserError(
                f"pairs {self._folder}: {len(missing)} of {len(self._names)} shards are missing, "
                f"the first is {self._names[missing[0]]}"
            )
        counts = dict.fromkeys(SOURCES, 0)
        shards, keys = [], set()
        for name in self._names:
            num_before = len(keys)
            for pair in _read_shard(self._folder / name):
                # 16 bytes a key hold a hundred million of them in memory.
                digest = hashlib.blake2b(pair.key.encode(), digest_size=16).digest()
                if digest in keys:
                    raise UserError(f"pair {pair.key!r}: this key is there twice")
                keys.add(digest)
                counts[pair.source] += 1
            shards.append(_describe(self._folder / name, len(keys) - num_before))
        manifest = Manifest(self._provenance, counts, tuple(shards))
        _write_atomically(self._folder / MANIFEST, _manifest_json(manifest).encode())
        (self._folder / PROGRESS).unlink(missing_ok=True)
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        return manifest

    def _check_same_work(self, work: str) -> None:
        if (self._folder / MANIFEST).exists():
            manifest = read_manifest(self._folder)
            names = [shard.name for shard in manifest.shards]
            found = _json({"shards": names, **_comparable(manifest.provenance)})
        elif (self._folder / PROGRESS).exists():
            found = (self._folder / PROGRESS).read_text()
        else:
            return
        found, work = json.loads(found), json.loads(work)
        for key in work:
            if found.get(key) != work[key]:
                raise UserError(
                    f"pairs {self._folder}: found pairs of {key} {found.get(key)!r}, expected "
                    f"{work[key]!r}; delete the folder or choose another"
                )


def write_pairs(
    folder: str | os.PathLike[str],
    pairs: Sequence[Pair],
    provenance: Provenance,
    *,
    num_shards: int = 1,
    name: str = "pairs",
) -> Manifest:
    """Writes pairs that fit in memory, in order, to `num_shards` shards of about equal size."""
    writer = PairWriter(folder, provenance, num_shards=num_shards, name=name)
    bounds = np.linspace(0, len(pairs), num_shards + 1).astype(int)
    for index in writer.missing():
        writer.write_shard(index, pairs[bounds[index] : bounds[index + 1]])
    return writer.finish()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Reads a folder's manifest and checks that each shard is there with its size.

    Raises:
      UserError: no manifest, a malformed one, a shard missing or of another size.
    """
    folder = pathlib.Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        why = "its writing has not finished" if (folder / PROGRESS).exists() else "no pairs here"
        raise UserError(f"pairs {folder}: no {MANIFEST} ({why})")
    try:
        manifest = _manifest_from_json(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a manifest of pairs: {type(error).__name__}: {reason}"
        ) from error
    for shard in manifest.shards:
        if not (folder / shard.name).is_file():
            raise UserError(f"pairs {folder}: shard {shard.name} is listed but missing")
        num_bytes = (folder / shard.name).stat().st_size
        if num_bytes != shard.num_bytes:
            raise UserError(
                f"pairs {folder}: shard {shard.name} has {num_bytes} bytes, expected "
                f"{shard.num_bytes}"
            )
    return manifest


def check_tokenizer(
    manifest: Manifest, fingerprint: str, folder: str | os.PathLike[str] = ""
) -> None:
    """Raises UserError, naming both, unless `fingerprint` is the tokenizer of the pairs."""
    if manifest.provenance.tokenizer != fingerprint:
        raise UserError(
            f"pairs {folder}: found image tokens of tokenizer {manifest.provenance.tokenizer}, "
            f"expected tokenizer {fingerprint}"
        )


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Reads every byte; UserError names the first shard that is not what the manifest says."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        found = _sha256(pathlib.Path(folder) / shard.name)
        if found != shard.sha256:
            raise UserError(
                f"pairs {folder}: shard {shard.name} has sha256 {found}, expected {shard.sha256}"
            )
    return manifest


def read_pairs(folder: str | os.PathLike[str]) -> Iterator[Pair]:
    """All pairs of a folder in the order of writing, `image_tokens` as i32[N]."""
    for shard in read_manifest(folder).shards:
        yield from _read_shard(pathlib.Path(folder) / shard.name)


def _read_shard(path: pathlib.Path) -> Iterator[Pair]:
    from synth2_jax.data.tensorflow_cpu import tf

    try:
        for record in tf.data.TFRecordDataset(str(path)):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            tokens, caption, source, key = (feature[f].bytes_list.value[0] for f in FIELDS)
            image_tokens = np.frombuffer(tokens, "<u2").astype(np.int32)
            yield Pair(key.decode(), image_tokens, caption.decode(), source.decode())
    except tf.errors.DataLossError as error:
        raise UserError(f"pairs: shard {path} is damaged; write it again") from error


def _example(pair: Pair, provenance: Provenance) -> bytes:
    from synth2_jax.data.tensorflow_cpu import tf

    tokens_N = np.asarray(pair.image_tokens)
    if tokens_N.shape != (provenance.num_image_tokens,):
        raise UserError(
            f"pair {pair.key!r}: found image tokens of shape {tokens_N.shape}, expected "
            f"({provenance.num_image_tokens},)"
        )
    if tokens_N.min() < 0 or tokens_N.max() >= provenance.codebook_size:
        raise UserError(
            f"pair {pair.key!r}: found image tokens {tokens_N.min()} to {tokens_N.max()}, expected "
            f"0 to {provenance.codebook_size - 1}"
        )
    if pair.source not in SOURCES:
        raise UserError(
            f"pair {pair.key!r}: found source {pair.source!r}, expected one of {SOURCES}"
        )
    values = (tokens_N.astype("<u2").tobytes(), pair.caption, pair.source, pair.key)
    feature = {
        field: tf.train.Feature(
            bytes_list=tf.train.BytesList(
                value=[value.encode() if isinstance(value, str) else value]
            )
        )
        for field, value in zip(FIELDS, values, strict=True)
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(
        deterministic=True  # the same pairs are the same bytes, whichever process writes them
    )


def _comparable(provenance: Provenance) -> dict[str, Any]:
    """What must be equal for a run to go on with another's shards."""
    return {k: v for k, v in dataclasses.asdict(provenance).items() if k != "config"}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _manifest_json(manifest: Manifest) -> str:
    return _json(
        {
            "format": FORMAT,
            "version": VERSION,
            "num_pairs": manifest.num_pairs,
            "counts": dict(manifest.counts),
            "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
            **dataclasses.asdict(manifest.provenance),
        }
    )


def _manifest_from_json(text: str) -> Manifest:
    values = json.loads(text)
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if values[key] != expected:
            raise ValueError(f"found {key} {values[key]!r}, expected {expected!r}")
    fields = [field.name for field in dataclasses.fields(Provenance)]
    shards = tuple(Shard(**shard) for shard in values["shards"])
    return Manifest(Provenance(**{f: values[f] for f in fields}), values["counts"], shards)


def _describe(path: pathlib.Path, num_pairs: int) -> Shard:
    return Shard(path.name, num_pairs, path.stat().st_size, _sha256(path))


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name to write to; `path` appears if the body ends well and its bytes are on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself survives a power cut
    finally:
        os.close(folder)


def _write_atomically(path: pathlib.Path, contents: bytes) -> None:
    with _temporary(path) as temporary:
        temporary.write_bytes(contents)
