"""Writing folders of pairs (see `records`) shard by shard; what is finished survives a kill.

A shard appears under its name only when it is complete, and the manifest appears last. Until then
`progress/` says what is being written, and of each finished shard what the manifest will say of it.

Legend: N image tokens of a picture, K codebook size, t text tokens of a caption, E text width.
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

import ml_dtypes
import numpy as np

from synth2_jax.data import records
from synth2_jax.data.records import Manifest, Pair, Provenance, Shard, Skipped
from synth2_jax.data.rejected import reasons
from synth2_jax.errors import UserError
from synth2_jax.files import FULL_DISK, read_json, write_bytes, written_whole
from synth2_jax.side_files import first_difference, read_as

_DIGEST_BYTES = 16  # two of a billion keys share a digest with a chance of 1 in 10^21
_KEYS_AT_A_TIME = 1 << 22  # that are compared
_WORK = "work.json"
_SHOWN_SKIPS = 20  # examples a shard
# Hashes that determine a part of the provenance, whatever else it says. `pictures` are those that
# captions were paired with in place of the generator's.
_DETERMINED_BY = {"generator": ("fingerprint",), "captions": ("sha256", "pictures")}


@dataclasses.dataclass(frozen=True)
class _Sidecar:
    """What the manifest will say of one shard, see Manifest.

    `keys_sha256` is that of its keys' file, `digest` that of all the other fields.
    """

    shard: Shard
    counts: Mapping[str, int]
    skipped: Mapping[str, int]
    skipped_examples: tuple[Mapping[str, str], ...]
    captions_cut: int
    keys_sha256: str = ""  # this and the next: of runs that were begun before they were noted
    digest: str = ""

    def __post_init__(self):
        if sum(self.counts.values()) != self.shard.num_pairs:
            raise ValueError(
                f"found {self.shard.num_pairs} pairs in the shard, expected {dict(self.counts)}"
            )
        if self.digest not in ("", self._found_digest()):
            raise ValueError(f"found the digest {self.digest:.64}, expected {self._found_digest()}")

    def with_digest(self) -> "_Sidecar":
        return dataclasses.replace(self, digest=self._found_digest())

    def _found_digest(self) -> str:
        others = {**dataclasses.asdict(self), "digest": ""}
        return hashlib.sha256(records.to_json(others).encode()).hexdigest()


class PairWriter:
    """Writes a folder of pairs shard by shard; what was finished survives a kill.

    Run again with the same arguments, it knows the shards already there. Several processes may
    share a folder, each with its own shards; one of them calls `finish` when all are written.

        writer = PairWriter(folder, provenance, num_shards=4)
        for index in writer.missing():
            writer.write_shard(index, pairs_of(index))
        manifest = writer.finish()

    Raises:
      UserError: the folder holds pairs that something else determines, or of other name or shards.
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
        self._progress = self._folder / records.PROGRESS
        self._provenance = provenance
        self._names = [f"{name}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards)]
        work = records.to_json({"shards": self._names, **_comparable(provenance)})
        self._works = [
            hashlib.sha256(f"{i} {work}".encode()).hexdigest() for i in range(num_shards)
        ]
        self._written: set[int] = set()  # by this object
        self._check_same_work(work)
        if not self._is_finished():
            self._progress.mkdir(parents=True, exist_ok=True)
            write_bytes(self._progress / _WORK, work.encode())

    def missing(self) -> list[int]:
        """The shards not yet written; of a finished folder, those that are lost or cut short."""
        if self._is_finished():
            shards = records.parse_manifest(self._folder).shards
            return [
                i for i, shard in enumerate(shards) if not records.is_there(self._folder, shard)
            ]
        return [i for i in range(len(self._names)) if not self._sidecar(i).exists()]

    def write_shard(self, index: int, pairs: Iterable[Pair | Skipped]) -> None:
        """Writes one shard under a temporary name and renames it when it is on the disk.

        Raises:
          UserError: naming the key of a pair with other than N tokens, a token outside [0, K),
            features of another shape or not finite, an unknown source, or a key that the shard
            already has; a lost shard of a finished folder that does not come out as it was.
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
        with written_whole(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as file:
            for pair in pairs:
                if isinstance(pair, Skipped):
                    skipped[pair.reason] += pair.num_pairs
                    if len(examples) < _SHOWN_SKIPS:
                        shown = {"key": pair.key, "reason": pair.reason, "detail": pair.detail}
                        examples.append({name: _writable(text) for name, text in shown.items()})
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
                self._check_as_before(index, records.sha256_of(temporary))
        if self._is_finished():
            return
        shard = Shard(
            path.name,
            counts.total(),
            path.stat().st_size,
            records.sha256_of(path),
            self._works[index],
        )
        digests = b"".join(sorted(keys))
        write_bytes(self._keys(index), digests)
        # Last: a shard is finished when its sidecar is there.
        sidecar = _Sidecar(
            shard,
            dict(counts),
            dict(skipped),
            tuple(examples),
            captions_cut,
            hashlib.sha256(digests).hexdigest(),
        ).with_digest()
        write_bytes(self._sidecar(index), records.to_json(dataclasses.asdict(sidecar)).encode())
        self._written.add(index)

    def written(self) -> tuple[int, dict[str, int], str]:
        """The pairs in the finished shards, those skipped by reason, and one of these in words."""
        if self._is_finished():
            manifest = records.parse_manifest(self._folder)
            return manifest.num_pairs, dict(manifest.skipped), _shown(manifest.skipped_examples)
        skipped, examples = collections.Counter(), []
        num_pairs = 0
        for index in range(len(self._names)):
            if self._sidecar(index).exists():
                sidecar = self._read_sidecar(index)
                num_pairs += sidecar.shard.num_pairs
                skipped.update(sidecar.skipped)
                examples += sidecar.skipped_examples
        return num_pairs, dict(skipped), _shown(examples)

    def finish(self) -> Manifest:
        """Writes the manifest, when all shards are there, with a pair in one, and no key twice."""
        if self._is_finished():
            self._clean_up()
            return records.read_manifest(self._folder)
        if missing := self.missing():
            raise UserError(
                f"pairs {self._folder}: {len(missing)} of {len(self._names)} shards are missing, "
                f"the first is {self._names[missing[0]]}"
            )
        num_pairs, skipped, shown = self.written()
        if not num_pairs:
            lost = f"all {sum(skipped.values()):,} are skipped ({reasons(skipped)}); {shown}"
            raise UserError(
                f"pairs {self._folder}: no pairs, " + (lost if skipped else "the source is empty")
            )
        sidecars = [self._read_sidecar(index) for index in range(len(self._names))]
        for index, sidecar in enumerate(sidecars):
            if index not in self._written:
                self._check_as_noted(index, sidecar)
        self._check_keys([sidecar.shard.num_pairs for sidecar in sidecars])
        counts = collections.Counter(dict.fromkeys(records.SOURCES, 0))
        for sidecar in sidecars:
            counts.update(sidecar.counts)
        manifest = Manifest(
            self._provenance,
            dict(counts),
            tuple(sidecar.shard for sidecar in sidecars),
            skipped,
            tuple(itertools.chain.from_iterable(s.skipped_examples for s in sidecars))[:100],
            sum(sidecar.captions_cut for sidecar in sidecars),
        )
        write_bytes(self._folder / records.MANIFEST, records.manifest_json(manifest).encode())
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
        expected = records.parse_manifest(self._folder).shards[index].sha256
        if sha256 != expected:
            raise UserError(
                f"pairs {self._folder}: shard {self._names[index]} was lost and comes out with "
                f"sha256 {sha256}, expected {expected}; delete the folder or restore the shard"
            )

    def _is_finished(self) -> bool:
        return (self._folder / records.MANIFEST).exists()

    def _sidecar(self, index: int) -> pathlib.Path:
        return self._progress / f"{self._names[index]}.json"

    def _keys(self, index: int) -> pathlib.Path:
        return self._progress / f"{self._names[index]}.keys"

    def _read_sidecar(self, index: int) -> _Sidecar:
        path = self._sidecar(index)
        try:
            sidecar = read_as(_Sidecar, path, records.MADE_BY)
        except UserError as error:
            raise UserError(
                f"{error}. Delete it: the same command writes the shard again"
            ) from error
        if sidecar.shard.work != self._works[index]:
            raise UserError(
                f"pairs {self._folder}: shard {self._names[index]} was written by another run, "
                "with other settings; delete the folder or choose another"
            )
        return sidecar

    def _check_as_noted(self, index: int, sidecar: _Sidecar) -> None:
        """Raises UserError unless the files of a shard that others wrote are as they noted."""
        expected = [(self._folder / self._names[index], sidecar.shard.sha256)]
        expected.append((self._keys(index), sidecar.keys_sha256))
        for path, sha256 in expected:
            found = records.sha256_of(path) if path.is_file() else "no such file"
            if sha256 and found != sha256:
                raise UserError(
                    f"{path}: damaged (sha256: {found}, expected {sha256}). Delete "
                    f"{self._sidecar(index)}, and the same command writes the shard again"
                )
        if not records.is_there(self._folder, sidecar.shard):
            raise UserError(
                f"{self._sidecar(index)}: found num_bytes {sidecar.shard.num_bytes}, which the "
                "shard has not. Delete this file, and the same command writes the shard again"
            )

    def _check_keys(self, nums_pairs: Sequence[int]) -> None:
        """Raises UserError on a key of two shards; compares a part of all digests at a time."""
        num_parts = 1 + sum(nums_pairs) // _KEYS_AT_A_TIME
        bounds = [(number << 32) // num_parts for number in range(1, num_parts)]
        bounds = np.array([bound.to_bytes(4, "big") for bound in bounds], f"S{_DIGEST_BYTES}")
        cuts = [
            [0, *np.searchsorted(self._digests(index, 0, count), bounds), count]
            for index, count in enumerate(nums_pairs)
        ]
        for part in range(num_parts):
            together = [
                self._digests(index, cut[part], cut[part + 1]) for index, cut in enumerate(cuts)
            ]
            found = np.sort(np.concatenate(together))
            twice = found[1:][found[1:] == found[:-1]]
            if len(twice):
                raise UserError(f"pair {self._key_of(twice[0])!r}: this key is there twice")

    def _digests(self, index: int, start: int, stop: int) -> np.ndarray:
        """Of a shard's keys, sorted. No file stays open: there may be thousands of shards."""
        return np.fromfile(
            self._keys(index),
            f"S{_DIGEST_BYTES}",
            count=stop - start,
            offset=int(start) * _DIGEST_BYTES,
        )

    def _key_of(self, digest: bytes) -> str:
        for name in self._names:
            for pair in records.read_shard(self._folder / name):
                found = hashlib.blake2b(pair.key.encode(), digest_size=_DIGEST_BYTES).digest()
                if found.rstrip(b"\0") == digest:  # as numpy gives it
                    return pair.key
        raise AssertionError(f"no key of digest {digest.hex()}")

    def _check_same_work(self, work: str) -> None:
        if (self._folder / records.MANIFEST).exists():
            manifest = records.parse_manifest(self._folder)
            names = [shard.name for shard in manifest.shards]
            found = json.loads(
                records.to_json({"shards": names, **_comparable(manifest.provenance)})
            )
        elif (self._progress / _WORK).exists():
            found = read_json(self._progress / _WORK, records.MADE_BY)
        else:
            return
        difference = first_difference(found, json.loads(work))
        if difference is None:
            return
        if not self._is_finished() and not self._holds_pairs():
            self._forget_others()
            return
        raise UserError(
            f"pairs {self._folder}: found pairs of {difference[0]}, expected {difference[1]}; "
            "delete the folder or choose another"
        )

    def _sidecars(self) -> list[tuple[pathlib.Path, _Sidecar]]:
        """Lists the sidecars that are there, of any run."""
        paths = sorted(self._progress.glob("[!.]*.tfrecord.json"))
        return [(path, read_as(_Sidecar, path, records.MADE_BY)) for path in paths]

    def _holds_pairs(self) -> bool:
        """Tells whether a finished shard, of any run, has a pair."""
        return any(sidecar.shard.num_pairs for _, sidecar in self._sidecars())

    def _forget_others(self) -> None:
        """Removes empty shards of another run; those of this run may be there already."""
        for path, sidecar in self._sidecars():
            if sidecar.shard.work not in self._works:
                path.unlink(missing_ok=True)
                path.with_suffix(".keys").unlink(missing_ok=True)
                (self._folder / path.stem).unlink(missing_ok=True)


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


def _writable(text: str) -> str:
    """A text of unknown origin, cut, with escapes for what UTF-8 does not hold."""
    return text[:500].encode("utf-8", "backslashreplace").decode()


def _example(pair: Pair, provenance: Provenance) -> bytes:
    from synth2_jax.data.tensorflow_cpu import tf

    if provenance.image_size:
        values = {records.IMAGE: pair.image}
    else:
        values = {records.IMAGE_TOKENS: _tokens(pair, provenance)}
    if pair.source not in records.SOURCES:
        raise UserError(
            f"pair {pair.key!r}: found source {pair.source!r}, expected one of {records.SOURCES}"
        )
    texts = {"caption": pair.caption, "source": pair.source, "key": pair.key}
    if pair.prompt:
        texts[records.PROMPT] = pair.prompt
    values |= {field: text.encode() for field, text in texts.items()}
    if provenance.text_encoder:
        values[records.TEXT_FEATURES] = _features(pair, provenance.text_encoder)
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


def _features(pair: Pair, text_encoder: Mapping[str, Any]) -> bytes:
    features_tE = np.asarray(pair.text_features)
    length, width = text_encoder["text_length"], text_encoder["width"]
    found = (features_tE.dtype.name, features_tE.shape)
    if features_tE.dtype != ml_dtypes.bfloat16 or features_tE.shape[1:] != (width,):
        raise UserError(
            f"pair {pair.key!r}: found features {found}, expected bfloat16 of shape (t, {width})"
        )
    if not 1 <= len(features_tE) <= length:
        raise UserError(
            f"pair {pair.key!r}: found features of {len(features_tE)} tokens, expected 1 to "
            f"{length}"
        )
    if not np.isfinite(features_tE).all():
        raise UserError(f"pair {pair.key!r}: found features that are not finite")
    return features_tE.view(np.uint16).astype("<u2").tobytes()


def _comparable(provenance: Provenance) -> dict[str, Any]:
    """What determines the pairs: it must be equal for a run to go on with finished shards.

    The rest is for the record: the name of a generator's folder, what captions have cost.
    """
    values = {k: v for k, v in records.provenance_values(provenance).items() if k != "config"}
    for key, names in _DETERMINED_BY.items():
        found = values[key] or {}
        if isinstance(found.get(names[0]), str):
            values[key] = {name: found[name] for name in names if name in found}
    return values


def _shown(examples: Sequence[Mapping[str, str]]) -> str:
    """The first of what was skipped, in words."""
    if not examples:
        return ""
    first = examples[0]
    return f"the first is {first['key']}: {first['detail'] or first['reason']}"
