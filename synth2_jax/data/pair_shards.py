"""Writes a folder of pairs with one or several processes, for every stage that writes pairs."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
from absl import logging
from jax.experimental import multihost_utils

from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Manifest, Pair, read_manifest
from synth2_jax.data.skipped import Skipped, reasons
from synth2_jax.device_stream import BusyClock
from synth2_jax.errors import UserError
from synth2_jax.progress import Progress
from synth2_jax.stop_signal import StopSignal

Result = tuple[int, Pair | Skipped | None]
_MIN_FOUND = 1000  # pairs; a share of fewer says little


class SkipBudget:
    """Stops a run that skips too many pairs, before it wastes hours.

    Errors begin with `label` and name `key`, the config key of `max_share`.
    """

    def __init__(self, label: str, max_share: float, key: str):
        self._label, self._max_share, self._key = label, max_share, key
        self._num_pairs = 0
        self._skipped: dict[str, int] = collections.Counter()

    def add(self, item: Pair | Skipped) -> None:
        """Counts one pair; raises UserError if too many of at least a thousand were skipped."""
        if isinstance(item, Pair):
            self._num_pairs += 1
            return
        self._skipped[item.reason] += item.num_pairs
        if self._num_pairs + sum(self._skipped.values()) >= _MIN_FOUND:
            self.check(self._num_pairs, self._skipped, f"the last is {item.key}: {item.detail}")

    def check(self, num_pairs: int, skipped: Mapping[str, int], detail: str = "") -> None:
        """Raises UserError if too many are skipped."""
        num_skipped = sum(skipped.values())
        found = num_pairs + num_skipped
        if num_skipped > self._max_share * found:
            raise UserError(
                f"{self._label}: {num_skipped:,} of {found:,} pairs are skipped "
                f"({reasons(skipped)}), expected at most {self._max_share:.0%}, {self._key}"
                + (f"; {detail}" if detail else "")
            )


def make_pairs(
    writer: PairWriter,
    label: str,
    size: Callable[[list[int]], tuple[int, str]],
    results: Callable[[list[int], BusyClock, Progress], Iterable[Result]],
    max_skipped: float = 1.0,
) -> Manifest:
    """Makes the shards that are missing, in any number of processes; returns the manifest.

    `size` gives the number of items in some shards and their unit, `results` what `write_shards`
    takes. After a signal finished shards stay, and SystemExit is raised.

    Raises:
      UserError: a larger share of the pairs is skipped than `config.max_skipped`.
    """
    budget = SkipBudget(label, max_skipped, "--config.max_skipped")
    if shards := my_shards(writer):
        with StopSignal() as stop, BusyClock() as clock, Progress(label, *size(shards)) as progress:
            write_shards(writer, _watched(results(shards, clock, progress), stop, budget))
        logging.info("%s: the device was busy %.1f %% of the time", label, 100 * clock.share)
    budget.check(*writer.written())
    return finish(writer)


def my_shards(writer: PairWriter) -> list[int]:
    """Lists the missing shards that this process writes."""
    count, mine = jax.process_count(), jax.process_index()
    return [index for index in writer.missing() if index % count == mine]


def write_shards(writer: PairWriter, results: Iterable[Result]) -> None:
    """Writes (shard, pair) results; those of a shard follow each other and end in (shard, None).

    Raises:
      AssertionError: the results end inside a shard, which is then not written.
    """
    results = iter(results)

    def until_none(shard: int, item: Pair | Skipped | None) -> Iterator[Pair | Skipped]:
        while item is not None:
            yield item
            if (result := next(results, None)) is None:
                raise AssertionError(f"the results end inside shard {shard}")
            _, item = result

    for shard, first in results:
        writer.write_shard(shard, until_none(shard, first))


def _watched(results: Iterable[Result], stop: StopSignal, budget: SkipBudget) -> Iterator[Result]:
    for shard, item in results:
        if stop.received:
            stop.exit("finished shards are kept; the same command goes on")
        if item is not None:
            budget.add(item)
        yield shard, item


def finish(writer: PairWriter) -> Manifest:
    """Returns the manifest, which process 0 writes when all have written their shards."""
    wait_for_all("pairs: all shards are there")
    manifest = writer.finish() if jax.process_index() == 0 else None
    wait_for_all("pairs: the manifest is there")
    return manifest or read_manifest(writer.folder)


def wait_for_all(where: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
