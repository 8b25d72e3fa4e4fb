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
    """What the manifest will say of one shard, see Manifest.

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
    """Reads and writes `progress/`.

    Args:
      folder: of the pairs.
      names: of the shards' files.
      works: a hash for each shard of all that determines its contents.
    """

    def __init__(self, folder: pathlib.Path, names: Sequence[str], works: Sequence[str]):
        self._pairs = folder
        self._folder = folder / records.PROGRESS
        self._names = names
        self._works = works
        self._written: set[int] = set()  # by this object

    def begin(self, work: str) -> None:
        """Writes the settings of this run, JSON."""
        self._folder.mkdir(parents=True, exist_ok=True)
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
        return [i for i in range(len(self._names)) if not self._path(i).exists()]

    def add(self, index: int, summary: ShardSummary, keys: Set[bytes]) -> None:
        """Notes that a shard is finished; `keys` are the digests of its keys."""
        digests = unique_keys.file_contents(keys)
        write_bytes(self._keys(index), digests)
        summary = dataclasses.replace(summary, keys_sha256=hashlib.sha256(digests).hexdigest())
        summary = dataclasses.replace(summary, digest=summary.found_digest())
        # Last: a shard is finished when its summary is there.
        write_bytes(self._path(index), records.to_json(dataclasses.asdict(summary)).encode())
        self._written.add(index)

    def finished(self) -> list[ShardSummary]:
        """Reads the summaries of the finished shards, in order.

        Raises:
          UserError: a summary is damaged, or of a run with other settings.
        """
        return [self._read(i) for i in range(len(self._names)) if self._path(i).exists()]

    def check_finished(self) -> None:
        """Raises UserError unless all shards are as their summaries say, and no key is twice."""
        summaries = self.finished()
        for index, summary in enumerate(summaries):
            if index not in self._written:
                self._check(index, summary)
        twice = unique_keys.repeated_digest(
            [
                (self._keys(index), summary.shard.num_pairs)
                for index, summary in enumerate(summaries)
            ]
        )
        if twice is not None:
            raise unique_keys.repeated_error(self._key_of(twice))

    def holds_pairs(self) -> bool:
        """Returns whether a finished shard, of any run, has a pair."""
        return any(summary.shard.num_pairs for _, summary in self._of_any_run())

    def forget_other_runs(self) -> None:
        """Removes the shards of other runs; those of this run may be there already."""
        for path, summary in self._of_any_run():
            if summary.shard.work not in self._works:
                path.unlink(missing_ok=True)
                path.with_suffix(".keys").unlink(missing_ok=True)
                (self._pairs / path.stem).unlink(missing_ok=True)

    def _path(self, index: int) -> pathlib.Path:
        return self._folder / f"{self._names[index]}.json"

    def _keys(self, index: int) -> pathlib.Path:
        return self._folder / f"{self._names[index]}.keys"

    def _of_any_run(self) -> list[tuple[pathlib.Path, ShardSummary]]:
        paths = sorted(self._folder.glob("[!.]*.tfrecord.json"))
        return [(path, read_as(ShardSummary, path, records.MADE_BY)) for path in paths]

    def _read(self, index: int) -> ShardSummary:
        try:
            summary = read_as(ShardSummary, self._path(index), records.MADE_BY)
        except UserError as error:
            raise UserError(
                f"{error}. Delete it: the same command writes the shard again"
            ) from error
        if summary.shard.work != self._works[index]:
            raise UserError(
                f"pairs {self._pairs}: shard {self._names[index]} was written by another run, "
                "with other settings; delete the folder or choose another"
            )
        return summary

    def _check(self, index: int, summary: ShardSummary) -> None:
        """Raises UserError unless the files of a shard are as its summary says."""
        expected = {
            self._pairs / self._names[index]: summary.shard.sha256,
            self._keys(index): summary.keys_sha256,
        }
        for path, sha256 in expected.items():
            found = records.sha256_of(path) if path.is_file() else "no such file"
            if sha256 and found != sha256:
                raise UserError(
                    f"{path}: damaged (sha256: {found}, expected {sha256}). Delete "
                    f"{self._path(index)}, and the same command writes the shard again"
                )
        if not records.is_there(self._pairs, summary.shard):
            raise UserError(
                f"{self._path(index)}: found num_bytes {summary.shard.num_bytes}, but the shard "
                "has another size. Delete this file, and the same command writes the shard again"
            )

    def _key_of(self, digest: bytes) -> str:
        for name in self._names:
            for pair in records.read_shard(self._pairs / name):
                if unique_keys.digest_of(pair.key).rstrip(b"\0") == digest:
                    return pair.key
        raise AssertionError(f"no key of digest {digest.hex()}")
