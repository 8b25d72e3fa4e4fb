"""Writing folders of pairs (see `records`) shard by shard; what is finished survives a kill.

A shard appears under its name only when it is complete, and the manifest appears last. Until then
`shard_progress` says which shards are finished.
"""

import collections
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from synth2_jax.data import records, unique_keys
from synth2_jax.data.pair_example import example_bytes
from synth2_jax.data.records import Manifest, Pair, Provenance, Shard
from synth2_jax.data.shard_progress import ShardProgress, ShardSummary
from synth2_jax.data.skipped import Skipped, reasons
from synth2_jax.errors import UserError
from synth2_jax.files import FULL_DISK, write_bytes, written_whole
from synth2_jax.fingerprint import older_forms
from synth2_jax.side_files import first_difference

_SHOWN_SKIPS = 20  # examples a shard
_SHOWN_SKIPS_OF_ALL = 100
# Hashes that determine a part of the provenance, whatever else it says. `pictures` are those that
# captions were paired with in place of the generator's.
_DETERMINED_BY = {"generator": ("fingerprint",), "captions": ("sha256", "pictures")}


class PairWriter:
    """Writes a folder of pairs shard by shard; what was finished survives a kill.

    Run again with the same arguments, it finds the shards that are already there. Several processes
    may share a folder, each with its own shards; one of them calls `finish` when all are written.

        writer = PairWriter(folder, provenance, num_shards=4)
        for index in writer.missing():
            writer.write_shard(index, pairs_of(index))
        manifest = writer.finish()

    Raises:
      UserError: the folder holds pairs of other settings, or of another name or number of shards.
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
        self.folder, self._provenance = pathlib.Path(folder), provenance
        self._names = [f"{name}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards)]
        work = _work(self._names, provenance)
        self._works = [
            hashlib.sha256(f"{i} {work}".encode()).hexdigest() for i in range(num_shards)
        ]
        self._progress = ShardProgress(self.folder, self._names, self._works)
        self._check_same_work(work)
        if not self._finished():
            self._progress.begin(work)

    def missing(self) -> list[int]:
        """The shards not yet written; of a finished folder, those that are lost or cut short."""
        if not (manifest := self._finished()):
            return self._progress.missing()
        return [
            i for i, shard in enumerate(manifest.shards) if not records.is_there(self.folder, shard)
        ]

    def write_shard(self, index: int, pairs: Iterable[Pair | Skipped]) -> None:
        """Writes one shard under a temporary name and renames it when it is on the disk.

        Raises:
          UserError: a pair that does not fit (see `example_bytes`), a key that the shard already
            has, a full disk, or a lost shard of a finished folder that would now be different.
        """
        try:
            self._write_shard(index, pairs)
        except Exception as error:  # TensorFlow has its own classes for the system's errors
            reason = next((text for text in FULL_DISK if text in str(error)), None)
            if reason is None:
                raise
            num_finished = len(self._names) - len(self.missing())
            raise UserError(
                f"pairs {self.folder}: {reason}; {num_finished} of {len(self._names)} shards are "
                "finished and stay, the same command makes the others"
            ) from error

    def _write_shard(self, index: int, pairs: Iterable[Pair | Skipped]) -> None:
        from synth2_jax.data.tensorflow_cpu import tf

        keys: set[bytes] = set()
        counts, skipped = collections.Counter(), collections.Counter()
        examples: list[dict[str, str]] = []
        captions_cut = 0
        path, manifest = self.folder / self._names[index], self._finished()
        with written_whole(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as file:
            for pair in pairs:
                if isinstance(pair, Skipped):
                    skipped[pair.reason] += pair.num_pairs
                    if len(examples) < _SHOWN_SKIPS:
                        shown = {"key": pair.key, "reason": pair.reason, "detail": pair.detail}
                        examples.append({name: _writable(text) for name, text in shown.items()})
                    continue
                digest = unique_keys.digest_of(pair.key)
                if digest in keys:
                    raise unique_keys.repeated_error(pair.key)
                keys.add(digest)
                counts[pair.source] += 1
                captions_cut += pair.caption_cut
                file.write(example_bytes(pair, self._provenance))
            file.close()
            sha256 = records.sha256_of(temporary)
            if manifest and sha256 != (expected := manifest.shards[index].sha256):
                raise UserError(
                    f"pairs {self.folder}: shard {path.name} was lost and comes out with sha256 "
                    f"{sha256}, expected {expected}; delete the folder or restore the shard"
                )
        if not manifest:
            num_bytes, work = path.stat().st_size, self._works[index]
            shard = Shard(path.name, counts.total(), num_bytes, sha256, work)
            summary = (shard, dict(counts), dict(skipped), tuple(examples), captions_cut)
            self._progress.add(index, ShardSummary(*summary), keys)

    def written(self) -> tuple[int, dict[str, int], str]:
        """The pairs in the finished shards, those skipped by reason, and one of these in words."""
        manifest = self._finished() or self._manifest_so_far()
        return manifest.num_pairs, dict(manifest.skipped), _shown(manifest.skipped_examples)

    def finish(self) -> Manifest:
        """Writes the manifest.

        Raises:
          UserError: a shard is missing or damaged, no shard has a pair, or a key is there twice.
        """
        if self._finished():
            self._clean_up()
            return records.read_manifest(self.folder)
        if missing := self.missing():
            raise UserError(
                f"pairs {self.folder}: {len(missing)} of {len(self._names)} shards are missing, "
                f"the first is {self._names[missing[0]]}"
            )
        manifest = self._manifest_so_far()
        if not manifest.num_pairs:
            why = "the source is empty"
            if manifest.skipped:
                why = f"all {sum(manifest.skipped.values()):,} are skipped "
                why += f"({reasons(manifest.skipped)}); {_shown(manifest.skipped_examples)}"
            raise UserError(f"pairs {self.folder}: no pairs, {why}")
        self._progress.check_finished()
        write_bytes(self.folder / records.MANIFEST, records.manifest_json(manifest).encode())
        self._clean_up()
        return manifest

    def _finished(self) -> Manifest | None:
        """The manifest, once it is written."""
        if (self.folder / records.MANIFEST).exists():
            return records.parse_manifest(self.folder)
        return None

    def _manifest_so_far(self) -> Manifest:
        summaries = self._progress.finished()
        counts = collections.Counter(dict.fromkeys(records.SOURCES, 0))
        skipped = collections.Counter()
        for summary in summaries:
            counts.update(summary.counts)
            skipped.update(summary.skipped)
        examples = itertools.chain.from_iterable(one.skipped_examples for one in summaries)
        return Manifest(
            self._provenance,
            dict(counts),
            tuple(summary.shard for summary in summaries),
            dict(skipped),
            tuple(itertools.islice(examples, _SHOWN_SKIPS_OF_ALL)),
            sum(summary.captions_cut for summary in summaries),
        )

    def _clean_up(self) -> None:
        self._progress.remove()
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def _check_same_work(self, work: str) -> None:
        if manifest := self._finished():
            names = [shard.name for shard in manifest.shards]
            found = json.loads(_work(names, manifest.provenance))
        else:
            found = self._progress.work()
        difference = None if found is None else first_difference(found, json.loads(work))
        if difference and (manifest or not self._progress.forget_empty_shards()):
            raise UserError(
                f"pairs {self.folder}: found pairs of {difference[0]}, expected {difference[1]}; "
                "delete the folder or choose another"
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


def _writable(text: str) -> str:
    """Cuts a text of unknown origin, and escapes what UTF-8 cannot hold."""
    return text[:500].encode("utf-8", "backslashreplace").decode()


def _work(names: Sequence[str], provenance: Provenance) -> str:
    """JSON of what determines the pairs: a run only resumes where it is equal.

    The rest is for the record, such as the name of a generator's folder or what captions have cost.
    """
    values = {k: v for k, v in records.provenance_values(provenance).items() if k != "config"}
    # A folder that an older version began goes on: the parameters decide, see fingerprint.py.
    values["tokenizer"], _ = older_forms(values["tokenizer"])
    for key, fields in _DETERMINED_BY.items():
        found = values[key] or {}
        if isinstance(found.get(fields[0]), str):
            values[key] = {field: found[field] for field in fields if field in found}
    return records.to_json({"shards": names, **values})


def _shown(examples: Sequence[Mapping[str, str]]) -> str:
    """Names the first example that was skipped, and why."""
    if not examples:
        return ""
    first = examples[0]
    return f"the first is {first['key']}: {first['detail'] or first['reason']}"
