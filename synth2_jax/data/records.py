"""Image-caption pairs on disk: TFRecord shards of TF Examples, and one manifest.

A shard appears under its name only when it is complete, and the manifest appears last, so a folder
with a manifest is whole. Until then `progress/` says what is being written, and of each finished
shard what the manifest will say of it. An image with several captions is several pairs of distinct
keys, such as "real-000012-0" to "real-000012-4". Folders are on a file system with atomic renames.

Legend: N image tokens of a picture, K codebook size.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.files import FULL_DISK

FORMAT = "synth2_jax pairs"
VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress"
SOURCES = ("real", "synthetic")
MAX_CODEBOOK_SIZE = 65536  # image tokens are uint16 on disk
IMAGE_TOKENS, IMAGE = "image_tokens", "image"  # of which a pair has one
FIELDS = ("caption", "source", "key")  # that all have
PROMPT = "prompt"  # of pairs that have a prompt of their own
_READ_BYTES = 1 << 20
_READ_RECORDS = 512
_DIGEST_BYTES = 16  # two of a billion keys share a digest with a chance of 1 in 10^21
_WORK = "work.json"
_SHOWN_SKIPS = 20  # examples a shard


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture as tokens int[N], its caption, "real" or "synthetic", and a unique key.

    In a folder of images, `image` is a PNG file in place of the tokens, which are None.

    `prompt` is the pair's own, such as a question, in place of the one that its task puts before
    every caption. `caption_cut` says that the picture was made of the caption's beginning alone; it
    is counted, not written.
    """

    key: str
    image_tokens: np.ndarray | None
    caption: str
    source: str
    prompt: str = ""
    image: bytes = b""
    caption_cut: bool = False


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An example that was found and gives no pairs: why, in words that many share, and in detail.

    `num_pairs` is how many pairs are lost with it.
    """

    key: str
    reason: str
    detail: str = ""
    num_pairs: int = 1


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the pairs of a folder come from; all of it is kept in the manifest.

    Attributes:
      tokenizer: fingerprint of the tokenizer whose codebook the image tokens index.
      num_image_tokens: N.
      codebook_size: K, at most 65536.
      image_size: 0; or the side in pixels of images that are stored in place of tokens, for a
        tokenizer inside of the training step. `tokenizer` is "", N and K are 0 then.
      split: the name under which a task offers these pairs.
      generator: {"checkpoint": ..., "fingerprint": ...}; None for real pictures.
      sampler: settings of the sampler; None for real pictures.
      captions: who wrote them, such as {"source": "language_model", "prompt": ..., "seed": ...}.
      config: resolved config of the run, for the record only: a resumed run may change it.
    """

    tokenizer: str
    num_image_tokens: int
    codebook_size: int
    image_size: int = 0
    split: str = "train"
    generator: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    captions: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.image_size:
            return
        if not 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise UserError(
                f"pairs: found a codebook of {self.codebook_size}, expected 1 to "
                f"{MAX_CODEBOOK_SIZE}: image tokens are stored as uint16"
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a folder of pairs.

    `work` is a hash of everything that determines what is in it: the provenance, and which of how
    many shards it is.
    """

    name: str
    num_pairs: int
    num_bytes: int
    sha256: str
    work: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`counts` is the number of pairs by source, `skipped` of those left out by reason.

    `skipped_examples` are some of the latter, [{"key", "reason", "detail"}]; `captions_cut` is how
    many captions were too long for the generator.
    """

    provenance: Provenance
    counts: Mapping[str, int]
    shards: tuple[Shard, ...]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skipped_examples: Sequence[Mapping[str, str]] = ()
    captions_cut: int = 0

    @property
    def num_pairs(self) -> int:
        return sum(shard.num_pairs for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Of the contents: equal for folders whose shards are equal byte by byte."""
        fields = ("name", "num_pairs", "num_bytes", "sha256")
        digests = json.dumps([{f: getattr(shard, f) for f in fields} for shard in self.shards])
        return hashlib.sha256(digests.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Sidecar:
    """What the manifest will say of one shard; see Manifest."""

    shard: Shard
    counts: Mapping[str, int]
    skipped: Mapping[str, int]
    skipped_examples: Sequence[Mapping[str, str]]
    captions_cut: int


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
        self._progress = self._folder / PROGRESS
        self._provenance = provenance
        self._names = [f"{name}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards)]
        work = _json({"shards": self._names, **_comparable(provenance)})
        self._works = [
            hashlib.sha256(f"{i} {work}".encode()).hexdigest() for i in range(num_shards)
        ]
        self._check_same_work(work)
        if not self._is_finished():
            self._progress.mkdir(parents=True, exist_ok=True)
            write_atomically(self._progress / _WORK, work.encode())

    def missing(self) -> list[int]:
        """The shards not yet written; of a finished folder, those that are lost or cut short."""
        if self._is_finished():
            shards = _parse_manifest(self._folder).shards
            return [i for i, shard in enumerate(shards) if not _is_there(self._folder, shard)]
        return [i for i in range(len(self._names)) if not self._sidecar(i).exists()]

    def write_shard(self, index: int, pairs: Iterable[Pair | Skipped]) -> None:
        """Writes one shard under a temporary name and renames it when it is on the disk.

        Raises:
          UserError: naming the key of a pair with other than N tokens, a token outside [0, K), an
            unknown source, or a key that the shard already has; a lost shard of a finished folder
            that does not come out as it was.
        """
        with self._full_disk_in_one_line():
            self._write_shard(index, pairs)

    def _write_shard(self, index: int, pairs: Iterable[Pair | Skipped]) -> None:
        from synth2_jax.data.tensorflow_cpu import tf

        keys: set[bytes] = set()
        counts, skipped = collections.Counter(), collections.Counter()
        examples: list[dict[str, str]] = []
        captions_cut = 0
        path = self._folder / self._names[index]
        with _temporary(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as file:
            for pair in pairs:
                if isinstance(pair, Skipped):
                    skipped[pair.reason] += pair.num_pairs
                    if len(examples) < _SHOWN_SKIPS:
                        shown = {"key": pair.key, "reason": pair.reason, "detail": pair.detail}
                        examples.append(shown)
                    continue
                digest = hashlib.blake2b(pair.key.encode(), digest_size=_DIGEST_BYTES).digest()
                if digest in keys:
                    raise UserError(f"pair {pair.key!r}: this key is there twice")
                keys.add(digest)
                counts[pair.source] += 1
                captions_cut += pair.caption_cut
                file.write(_example(pair, self._provenance))
            file.close()
            if self._is_finished():
                self._check_as_before(index, _sha256(temporary))
        if self._is_finished():
            return
        shard = Shard(
            path.name, counts.total(), path.stat().st_size, _sha256(path), self._works[index]
        )
        write_atomically(self._keys(index), b"".join(sorted(keys)))
        # Last: a shard is finished when its sidecar is there.
        sidecar = _Sidecar(shard, dict(counts), dict(skipped), tuple(examples), captions_cut)
        write_atomically(self._sidecar(index), _json(dataclasses.asdict(sidecar)).encode())

    def written(self) -> tuple[int, dict[str, int]]:
        """The number of pairs in the finished shards, and of those skipped by reason."""
        if self._is_finished():
            manifest = _parse_manifest(self._folder)
            return manifest.num_pairs, dict(manifest.skipped)
        skipped = collections.Counter()
        num_pairs = 0
        for index in range(len(self._names)):
            if self._sidecar(index).exists():
                sidecar = self._read_sidecar(index)
                num_pairs += sidecar.shard.num_pairs
                skipped.update(sidecar.skipped)
        return num_pairs, dict(skipped)

    def finish(self) -> Manifest:
        """Checks that all shards are there and no key is there twice, and writes the manifest."""
        if self._is_finished():
            self._clean_up()
            return read_manifest(self._folder)
        if missing := self.missing():
            raise UserError(
                f"pairs {self._folder}: {len(missing)} of {len(self._names)} shards are missing, "
                f"the first is {self._names[missing[0]]}"
            )
        sidecars = [self._read_sidecar(index) for index in range(len(self._names))]
        self._check_keys([sidecar.shard.num_pairs for sidecar in sidecars])
        counts = collections.Counter(dict.fromkeys(SOURCES, 0))
        skipped = collections.Counter()
        for sidecar in sidecars:
            counts.update(sidecar.counts)
            skipped.update(sidecar.skipped)
        manifest = Manifest(
            self._provenance,
            dict(counts),
            tuple(sidecar.shard for sidecar in sidecars),
            dict(skipped),
            tuple(itertools.chain.from_iterable(s.skipped_examples for s in sidecars))[:100],
            sum(sidecar.captions_cut for sidecar in sidecars),
        )
        write_atomically(self._folder / MANIFEST, _manifest_json(manifest).encode())
        self._clean_up()
        return manifest

    def _clean_up(self) -> None:
        shutil.rmtree(self._progress, ignore_errors=True)
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _full_disk_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorFlow has its own classes for what the system says
            reason = next((text for text in FULL_DISK if text in str(error)), None)
            if reason is None:
                raise
            finished = len(self._names) - len(self.missing())
            raise UserError(
                f"pairs {self._folder}: {reason}; {finished} of {len(self._names)} shards are "
                "finished and stay, the same command makes the others"
            ) from error

    def _check_as_before(self, index: int, sha256: str) -> None:
        expected = _parse_manifest(self._folder).shards[index].sha256
        if sha256 != expected:
            raise UserError(
                f"pairs {self._folder}: shard {self._names[index]} was lost and comes out with "
                f"sha256 {sha256}, expected {expected}; delete the folder or restore the shard"
            )

    def _is_finished(self) -> bool:
        return (self._folder / MANIFEST).exists()

    def _sidecar(self, index: int) -> pathlib.Path:
        return self._progress / f"{self._names[index]}.json"

    def _keys(self, index: int) -> pathlib.Path:
        return self._progress / f"{self._names[index]}.keys"

    def _read_sidecar(self, index: int) -> _Sidecar:
        values = json.loads(self._sidecar(index).read_text())
        sidecar = _Sidecar(**{**values, "shard": Shard(**values["shard"])})
        if sidecar.shard.work != self._works[index]:
            raise UserError(
                f"pairs {self._folder}: shard {self._names[index]} was written by another run, "
                "with other settings; delete the folder or choose another"
            )
        return sidecar

    def _check_keys(self, nums_pairs: Sequence[int]) -> None:
        """Raises UserError on a key of two shards. Memory is that of a 256th of the digests."""
        digests = []
        for index, num_pairs in enumerate(nums_pairs):
            if num_pairs:
                path = self._keys(index)
                digests.append(np.memmap(path, f"S{_DIGEST_BYTES}", "r", shape=(num_pairs,)))
        bounds = [first.to_bytes(1, "big") for first in range(1, 256)]
        cuts = [[0, *np.searchsorted(d, bounds), len(d)] for d in digests]
        for part in range(256):
            together = [d[cut[part] : cut[part + 1]] for d, cut in zip(digests, cuts, strict=True)]
            found = np.sort(np.concatenate(together)) if together else np.zeros(0)
            twice = found[1:][found[1:] == found[:-1]]
            if len(twice):
                raise UserError(f"pair {self._key_of(twice[0])!r}: this key is there twice")

    def _key_of(self, digest: bytes) -> str:
        for name in self._names:
            for pair in read_shard(self._folder / name):
                found = hashlib.blake2b(pair.key.encode(), digest_size=_DIGEST_BYTES).digest()
                if found.rstrip(b"\0") == digest:  # as numpy gives it
                    return pair.key
        raise AssertionError(f"no key of digest {digest.hex()}")

    def _check_same_work(self, work: str) -> None:
        if (self._folder / MANIFEST).exists():
            manifest = _parse_manifest(self._folder)
            names = [shard.name for shard in manifest.shards]
            found = _json({"shards": names, **_comparable(manifest.provenance)})
        elif (self._progress / _WORK).exists():
            found = (self._progress / _WORK).read_text()
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
    manifest = _parse_manifest(folder)
    for shard in manifest.shards:
        if not _is_there(folder, shard):
            path = folder / shard.name
            found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
            raise UserError(
                f"pairs {folder}: shard {shard.name}: {found}, expected {shard.num_bytes} bytes; "
                "run the stage that made it again"
            )
    return manifest


def _is_there(folder: pathlib.Path, shard: Shard) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.num_bytes


def _parse_manifest(folder: pathlib.Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        why = "its writing has not finished" if (folder / PROGRESS).exists() else "no pairs here"
        raise UserError(f"pairs {folder}: no {MANIFEST} ({why})")
    try:
        return _manifest_from_json(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a manifest of pairs: {type(error).__name__}: {reason}"
        ) from error


def check_tokenizer(
    manifest: Manifest, fingerprint: str, folder: str | os.PathLike[str] = ""
) -> None:
    """Raises UserError, naming both, unless `fingerprint` is the tokenizer of the pairs."""
    if manifest.provenance.image_size:
        raise UserError(
            f"pairs {folder}: found images, expected image tokens of tokenizer {fingerprint}; run "
            "`synth2 tokenize` without --on-the-fly"
        )
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
        yield from read_shard(pathlib.Path(folder) / shard.name)


def read_shard(path: pathlib.Path) -> Iterator[Pair]:
    from synth2_jax.data.tensorflow_cpu import one_line, tf

    try:
        records = tf.data.TFRecordDataset(str(path), buffer_size=_READ_BYTES)
        for block in records.batch(_READ_RECORDS):
            for record in block.numpy():
                feature = tf.train.Example.FromString(record).features.feature
                values = {name: b"".join(f.bytes_list.value) for name, f in feature.items()}
                tokens = values.get(IMAGE_TOKENS)
                yield Pair(
                    values["key"].decode(),
                    None if tokens is None else np.frombuffer(tokens, "<u2").astype(np.int32),
                    values["caption"].decode(),
                    values["source"].decode(),
                    values.get(PROMPT, b"").decode(),
                    values.get(IMAGE, b""),
                )
    except tf.errors.DataLossError as error:
        raise UserError(
            f"pairs: shard {path} is damaged, {one_line(error)}; write it again"
        ) from error


def _example(pair: Pair, provenance: Provenance) -> bytes:
    from synth2_jax.data.tensorflow_cpu import tf

    if provenance.image_size:
        values = {IMAGE: pair.image}
    else:
        values = {IMAGE_TOKENS: _tokens(pair, provenance)}
    if pair.source not in SOURCES:
        raise UserError(
            f"pair {pair.key!r}: found source {pair.source!r}, expected one of {SOURCES}"
        )
    texts = {"caption": pair.caption, "source": pair.source, "key": pair.key}
    if pair.prompt:
        texts[PROMPT] = pair.prompt
    values |= {field: text.encode() for field, text in texts.items()}
    feature = {
        field: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for field, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(
        deterministic=True  # the same pairs are the same bytes, whichever process writes them
    )


def _tokens(pair: Pair, provenance: Provenance) -> bytes:
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
    return tokens_N.astype("<u2").tobytes()


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
            "skipped": dict(manifest.skipped),
            "skipped_examples": [dict(example) for example in manifest.skipped_examples],
            "captions_cut": manifest.captions_cut,
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
    return Manifest(
        Provenance(**{f: values[f] for f in fields if f != "image_size" or f in values}),
        values["counts"],
        shards,
        values.get("skipped", {}),
        tuple(values.get("skipped_examples", ())),
        values.get("captions_cut", 0),
    )


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


def write_atomically(path: pathlib.Path, contents: bytes) -> None:
    with _temporary(path) as temporary:
        temporary.write_bytes(contents)
