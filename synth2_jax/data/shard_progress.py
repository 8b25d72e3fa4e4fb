"""The folder `progress/` of a folder of pairs: which shards are finished, until the manifest is.

It holds the settings of the run, and for each finished shard a summary for the manifest and the
digests of its keys.
"""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Mapping, Sequence, Set
from typing import Any

from synth2_jax.data import records, unique_keys
from synth2_jax.data.records import Shard
from synth2_jax.errors import UserError
from synth2_jax.files import read_json, write_bytes
from synth2_jax.side_files import read_as

_WORK = "work.json"


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """The part of the manifest that describes one shard, see Manifest.

    `keys_sha256` is the hash of its file of digests, `digest` that of all other fields. Both are
    "" in summaries of older versions.
    """

    shard: Shard
    counts: Mapping[str, int]
    skipped: Mapping[str, int]
    skipped_examples: tuple[Mapping[str, str], ...]
    captions_cut: int
    keys_sha256: str = ""
    digest: str = ""

    def __post_init__(self):
        if sum(self.counts.values()) != self.shard.num_pairs:
            raise ValueError(
                f"found {self.shard.num_pairs} pairs in the shard, expected {dict(self.counts)}"
            )
        if self.digest not in ("", self.found_digest()):
            raise ValueError(f"found the digest {self.digest:.64}, expected {self.found_digest()}")

    def found_digest(self) -> str:
        """Computes what `digest` should be."""
        others = {**dataclasses.asdict(self), "digest": ""}
        return hashlib.sha256(records.to_json(others).encode()).hexdigest()


class ShardProgress:
    """Reads and writes `progress/` in the folder `pairs`.

    `names` are the shards' files, `works` a hash for each of all that determines its contents.
    """

    def __init__(self, pairs: pathlib.Path, names: Sequence[str], works: Sequence[str]):
        self._pairs, self._names, self._works = pairs, names, works
        self._folder = pairs / records.PROGRESS
        self._summaries = [self._folder / f"{name}.json" for name in names]
        self._written: set[int] = set()  # by this object

    def begin(self, work: str) -> None:
        """Writes the settings of this run, JSON."""
        write_bytes(self._folder / _WORK, work.encode())

    def work(self) -> Any:
        """Reads the settings of the run that is there; None if there is none."""
        path = self._folder / _WORK
        return read_json(path, records.MADE_BY) if path.exists() else None

    def remove(self) -> None:
        """Deletes the folder, once the manifest is written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def missing(self) -> list[int]:
        """Lists the shards that are not finished."""
        return [index for index, path in enumerate(self._summaries) if not path.exists()]

    def add(self, index: int, summary: ShardSummary, keys: Set[bytes]) -> None:
        """Notes that a shard is finished; `keys` are the digests of its keys."""
        path, digests = self._summaries[index], b"".join(sorted(keys))
        write_bytes(path.with_suffix(".keys"), digests)
        summary = dataclasses.replace(summary, keys_sha256=hashlib.sha256(digests).hexdigest())
        summary = dataclasses.replace(summary, digest=summary.found_digest())
        # Last: a shard is finished when its summary is there.
        write_bytes(path, records.to_json(dataclasses.asdict(summary)).encode())
        self._written.add(index)

    def finished(self) -> list[ShardSummary]:
        """Reads the summaries of the finished shards, in order.

        Raises:
          UserError: a summary is damaged, or of a run with other settings.
        """
        found = []
        for path, work in zip(self._summaries, self._works, strict=True):
            if not path.exists():
                continue
            try:
                summary = read_as(ShardSummary, path, records.MADE_BY)
            except UserError as error:
                raise UserError(
                    f"{error}. Delete it: the same command writes the shard again"
                ) from error
            if summary.shard.work != work:
                raise UserError(
                    f"pairs {self._pairs}: shard {path.stem} was written by another run, with "
                    "other settings; delete the folder or choose another"
                )
            found.append(summary)
        return found

    def check_finished(self) -> None:
        """Raises UserError unless all shards are as their summaries say, and no key is twice."""
        summaries = self.finished()
        for index, summary in enumerate(summaries):
            if index not in self._written:
                self._check(self._summaries[index], summary)
        keys = [path.with_suffix(".keys") for path in self._summaries]
        counts = [summary.shard.num_pairs for summary in summaries]
        twice = unique_keys.repeated_digest(list(zip(keys, counts, strict=True)))
        if twice is not None:
            raise unique_keys.repeated_error(self._key_of(twice))

    def forget_empty_shards(self) -> bool:
        """Removes the shards of other runs, if no shard has a pair; returns whether none has.

        Those of this run may be there already.
        """
        paths = sorted(self._folder.glob("[!.]*.tfrecord.json"))
        summaries = [read_as(ShardSummary, path, records.MADE_BY) for path in paths]
        if any(summary.shard.num_pairs for summary in summaries):
            return False
        for path, summary in zip(paths, summaries, strict=True):
            if summary.shard.work not in self._works:
                for file in (path, path.with_suffix(".keys"), self._pairs / path.stem):
                    file.unlink(missing_ok=True)
        return True

    def _check(self, path: pathlib.Path, summary: ShardSummary) -> None:
        """Raises UserError unless the files of a shard are as its summary, in `path`, says."""
        expected = {
            self._pairs / path.stem: summary.shard.sha256,
            path.with_suffix(".keys"): summary.keys_sha256,
        }
        for file, sha256 in expected.items():
            found = records.sha256_of(file) if file.is_file() else "no such file"
            if sha256 and found != sha256:
                raise UserError(
                    f"{file}: damaged (sha256: {found}, expected {sha256}). Delete {path}, and the "
                    "same command writes the shard again"
                )
        if not records.is_there(self._pairs, summary.shard):
            raise UserError(
                f"{path}: found num_bytes {summary.shard.num_bytes}, but the shard has another "
                "size. Delete this file, and the same command writes the shard again"
            )

    def _key_of(self, digest: bytes) -> str:
        for name in self._names:
            for pair in records.read_shard(self._pairs / name):
                if unique_keys.digest_of(pair.key).rstrip(b"\0") == digest:
                    return pair.key
        raise AssertionError(f"no key of digest {digest.hex()}")
