"""Batches for training, shuffled and mixed: the position in them can be saved and restored.

Several processes share the data in one of two ways. "examples": all of them go through the same
order, and each converts its own rows of every batch, so that the batches are the same on any mesh
and number of processes. "shards": each data shard of the mesh (see `sharding.DataLayout`) reads
files of its own, so that each of many processes reads less.

Legend: B batch rows of this process, T text tokens.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import seqio
from absl import logging

from synth2_jax.data import mixtures, saved_position
from synth2_jax.data.packing import pack
from synth2_jax.data.stream import PREFETCH, Batch, Stream, one_line_errors, read, text_mask
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import UserError

# Fields of a config that decide which data is read, and how.
_IDENTITY = ("split", "text_length", "batch_size", "deal", "schedule", "seed")
_IDENTITY += ("num_epochs", "shuffle_buffer", "prompt", "images_per_text")


class TrainIterator:
    """Shuffled, mixed batches whose position can be saved and restored exactly.

    A position can only be restored into an iterator of the same `stream` and the same `identity`,
    JSON values that tell this data from other data.

    Attributes:
      source_counts: examples that this process read so far, by source ("real", "synthetic"); empty
        for data without a source. Part of the saved position.
      source_tokens: the text tokens of these examples, likewise.
      last_keys: keys of the examples of the last batch; empty for data without keys.

    Raises:
      UserError: no examples, unfitting features, and in `__next__` unreadable ones.
    """

    def __init__(self, stream: Stream, identity: Mapping[str, object]):
        self._stream, self._config = stream, stream.config
        self._identity = {
            **identity,
            **{name: getattr(stream.config, name) for name in _IDENTITY},
            "rates": dict(stream.config.rates),
            "mixture": stream.provider.name,
            "model": stream.model_name,
            "reads": stream.reads,
        }
        self._num_batches = 0  # since the order began
        self._restarted_at = 0  # the step at which the order began
        self._skipped = 0  # batches that are skipped at the start of the order
        self.last_keys: list[str] = []
        self._counts: collections.Counter[str] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()
        self._lengths = stream.task_lengths()
        self._iterator = self._start()

    def _start(self) -> Iterator[Mapping[str, tf.Tensor]]:
        stream, config = self._stream, self._config
        with one_line_errors(stream.label):
            provider, shard_info = stream.provider, None
            examples_per_batch = config.batch_size * config.images_per_text
            if stream.deals_shards:
                shard_info = seqio.ShardInfo(stream.layout.shard, stream.layout.num_shards)
                examples_per_batch = len(stream.examples)
            if config.schedule:
                provider = mixtures.scheduled(
                    provider, config.schedule, examples_per_batch, self._restarted_at
                )
            examples = read(
                provider,
                config.split,
                shuffle=True,
                seed=config.seed + self._restarted_at,
                num_epochs=config.num_epochs,
                shard_info=shard_info,
            )
            if self._skipped:
                examples = examples.skip(self._skipped * examples_per_batch)
            if len(stream.examples) < examples_per_batch:
                examples = _own_examples(examples, stream, examples_per_batch)
            batches = stream.convert(examples, self._lengths)
            batches = batches.batch(len(stream.examples), drop_remainder=True).prefetch(PREFETCH)
            options = tf.data.Options()
            options.deterministic = True
            return iter(batches.with_options(options))

    @property
    def source_counts(self) -> dict[str, int]:
        return dict(self._counts)

    @property
    def source_tokens(self) -> dict[str, int]:
        return dict(self._tokens)

    @property
    def totals(self) -> dict[str, int]:
        """`source_counts` and `source_tokens` under the names that they are logged by."""
        examples = {f"data/{source}_examples": count for source, count in self._counts.items()}
        return examples | {f"data/{source}_tokens": n for source, n in self._tokens.items()}

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Batch:
        with one_line_errors(self._stream.label):
            try:
                tensors = next(self._iterator)
            except StopIteration:
                if self._num_batches:
                    raise
                needed = len(self._stream.examples)
                raise UserError(
                    f"{self._stream.label}: fewer examples than the {needed} of one batch"
                ) from None
        batch, companions = self._stream.to_numpy(tensors)
        self._num_batches += 1
        sources = [source.decode() for source in companions.get("source", ())]
        self._counts.update(sources)
        if (mask_BT := text_mask(batch)) is not None:
            for source, count in zip(sources, mask_BT.sum(axis=-1).tolist(), strict=False):
                self._tokens[source] += count
        self.last_keys = [key.decode() for key in companions.get("key", ())]
        return pack(batch, self._config.images_per_text)

    def get_state(self) -> bytes:
        """The position after the last batch delivered; see `saved_position`."""
        header = {
            "num_batches": self._num_batches,
            "source_counts": self.source_counts,
            "source_tokens": self.source_tokens,
            "restarted_at": self._restarted_at,
            "skipped": self._skipped,
        }
        return saved_position.pack(self._iterator, self._identity, header)

    def set_state(self, state: bytes) -> None:
        """Resumes exactly where `get_state` was called, in this or another process.

        If the process that saved had other rows of the batches, this reads the same order from its
        start and skips what was used. Raises UserError, naming what differs, on a position of other
        data; any other exception means that the position is damaged.
        """
        header = saved_position.read_header(state, self._identity)
        if header["identity"]["reads"] != self._identity["reads"]:
            logging.warning("%s: %s", self._stream.label, self._skip_to(header))
            return
        start = (header["restarted_at"], header["skipped"])
        if self._num_batches or start != (self._restarted_at, self._skipped):
            self._restarted_at, self._skipped = start
            # TensorFlow's iterator does not hold the seeds of epochs, which have moved on.
            self._iterator = self._start()
        # First: after damage below, the next position finds that this iterator has moved.
        self._num_batches = header["num_batches"]
        if self._num_batches > self._skipped:
            saved_position.restore(state, self._iterator)
        self._take_counts(header)

    def restart(self, state: bytes, step: int) -> str:
        """Resumes at step `step` if the number of data shards changed; returns how, in words.

        With deal "examples" the data resumes exactly. With "shards" it is unknown what the other
        processes had read, so a new order begins, drawn from the seed and the step. Raises as
        `set_state`.
        """
        header = saved_position.read_header(state, self._identity)
        if self._config.deal == "examples":
            return self._skip_to(header)
        self._take_counts(header)
        self._restarted_at, self._num_batches, self._skipped = step, 0, 0
        self._iterator = self._start()
        return (
            "a new order of the data starts here, so examples of the current epoch may be seen "
            "twice or not at all (--config.data.deal=examples resumes exactly)"
        )

    def _skip_to(self, header: Mapping[str, Any]) -> str:
        """Starts the order of a position again and skips what was used; returns so, in words."""
        self._take_counts(header)
        self._restarted_at = header["restarted_at"]
        self._num_batches = self._skipped = header["num_batches"]
        self._iterator = self._start()
        examples = self._skipped * self._config.batch_size * self._config.images_per_text
        return f"resuming the data exactly: skipping {examples:,} examples"

    def _take_counts(self, header: Mapping[str, Any]) -> None:
        self._counts = collections.Counter(header["source_counts"])
        self._tokens = collections.Counter(header["source_tokens"])


def _own_examples(
    examples: tf.data.Dataset, stream: Stream, examples_per_batch: int
) -> tf.data.Dataset:
    """Takes this process's part of each batch; all processes leave out an incomplete last batch."""
    batches = stream.needed(examples).batch(examples_per_batch, drop_remainder=True)
    own = stream.examples
    return batches.map(lambda batch: {k: tf.gather(v, own) for k, v in batch.items()}).unbatch()
