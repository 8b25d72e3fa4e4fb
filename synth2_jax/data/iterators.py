"""Batches from SeqIO: the position of a training iterator can be saved, and evaluation ends.

A saved position is a zip of TensorFlow's checkpoint of the iterator (the places in the shards and
the examples that wait in shuffle buffers) and a header that says which data it belongs to.

Several processes share the data in one of two ways. "examples": all of them go through the same
order, and each converts its own rows of every batch, so that the batches are the same on any mesh
and number of processes. "shards": each data shard of the mesh (see `sharding.DataLayout`) reads
files of its own, which is less to read for each of many.

Legend: B batch rows of this process, T text tokens, E width of stored features.
"""

import collections
import contextlib
import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
from absl import logging

from synth2_jax.data import mixtures
from synth2_jax.data.feature_converters import COMPANIONS, converter_class
from synth2_jax.data.tensorflow_cpu import of_user_code, one_line, tf
from synth2_jax.errors import DamagedError, UserError
from synth2_jax.files import temporary_folder
from synth2_jax.sharding import ALL_ROWS, DataLayout

_HEADER = "position.json"
_VERSION = 1
_PREFETCH = 2  # batches
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stream:
    """What to read, and for which model.

    Attributes:
      provider: a task or a mixture.
      split: of each of its tasks.
      model_name: chooses the feature converter.
      text_length: T, for models that take text.
      batch_size: rows of all processes together.
      layout: which rows of every batch this process reads.
      deal: "examples" or "shards", see above.
      schedule: {task: ((step, rate), ...)} in place of a mixture's rates, see `mixtures.scheduled`.
      limits: {feature: limit}; a token that is as large or larger is of other data.
      text_width: E, where the model reads stored features of the captions; else 0.
    """

    provider: seqio.Task | seqio.Mixture
    split: str
    model_name: str
    text_length: int
    batch_size: int
    layout: DataLayout = ALL_ROWS
    deal: str = "examples"
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    text_width: int = 0

    def __post_init__(self):
        if self.batch_size % self.layout.num_parts:
            raise UserError(
                f"config.data.batch_size: found {self.batch_size}, expected a multiple of the "
                f"{self.layout.num_parts} parts that the mesh cuts a batch into"
            )
        if self.deals_shards and self.layout.overlaps:
            raise UserError(
                "config.data.deal: found 'shards' on a mesh where processes share only some "
                "of their rows. Use deal=examples, or another mesh."
            )

    @property
    def label(self) -> str:
        """The beginning of messages about this data."""
        kind = "mixture" if isinstance(self.provider, seqio.Mixture) else "task"
        return f"{kind} {self.provider.name!r}"

    @property
    def converter(self) -> type[seqio.FeatureConverter]:
        """From the features of the tasks to the model's."""
        features = self.provider.output_features
        return converter_class(self.model_name, features, encoded=self.text_width > 0)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.layout.rows(self.batch_size))

    @property
    def deals_shards(self) -> bool:
        """Whether each data shard reads files of its own."""
        return self.deal == "shards" and self.layout.num_shards > 1

    @property
    def reads(self) -> list:
        """[shard, number of shards] where files are shared out, or else ranges of rows.

        A saved position is only good for what it was saved with.
        """
        if self.deal == "shards":
            return [self.layout.shard, self.layout.num_shards]
        rows = self.layout.rows(self.batch_size)
        ranges = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        return [[int(part[0]), int(part[-1]) + 1] for part in ranges]

    def task_lengths(self) -> dict[str, int]:
        """Lengths of the task features that are converted, from the first example of each task.

        Raises:
          UserError: a task has no example, lacks a feature, or disagrees on a length with another.
        """
        mixtures.check_split(self.provider, self.split)
        lengths: dict[str, int] = {}
        for task in mixtures.tasks_of(self.provider):
            example = _first_example(task, self.split)
            for feature, spec in self.converter.TASK_FEATURES.items():
                found = example.get(feature)
                if found is None or (found.dtype, found.shape.rank) != (spec.dtype, spec.rank):
                    what = "missing"
                    if found is not None:
                        what = f"{found.dtype.name}, rank {found.shape.rank}"
                    raise UserError(
                        f"task {task.name!r}: feature {feature!r} is {what}, the {self.model_name} "
                        f"needs {spec.dtype.name}, rank {spec.rank}"
                    )
                length = len(found) if spec.rank else 0
                if lengths.setdefault(feature, length) != length:
                    raise UserError(
                        f"task {task.name!r}: {feature} of length {length}, the tasks before it "
                        f"have {lengths[feature]}"
                    )
        if "caption" in lengths:
            lengths["caption"] = self.text_length
        if "text_features" in lengths:
            lengths["text_features"] = self.text_width
        return lengths

    def convert(self, dataset: tf.data.Dataset, lengths: Mapping[str, int]) -> tf.data.Dataset:
        """Examples with task features -> examples with the model's, and their companions."""
        cls = self.converter
        vocabulary = None
        if "caption" in cls.TASK_FEATURES:
            vocabulary = self.provider.output_features["caption"].vocabulary
        if set(dataset.element_spec) != set(cls.TASK_FEATURES):
            # Others may have lengths of their own, which do not stack into blocks.
            dataset = dataset.map(lambda example: {f: example[f] for f in cls.TASK_FEATURES})
        return cls(vocabulary)(dataset, lengths)


class TrainIterator:
    """Shuffled, mixed batches whose position can be saved and restored exactly.

    `source_counts` and `source_tokens` are the numbers of examples and of text tokens that this
    process was given so far by source ("real", "synthetic"), a part of the saved position; empty
    for data without a source. `last_keys` are those of the examples of the last batch; empty for
    data without keys.

    Args:
      stream: what to read.
      seed: of shuffling and mixing.
      num_epochs: None reads for ever.
      identity: what tells this data from other data, besides `stream` and `seed`; JSON values. A
        position can only be restored into an iterator of the same identity.

    Raises:
      UserError: no examples, unfitting features, and in `__next__` unreadable ones.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        seed: int,
        num_epochs: int | None = None,
        identity: Mapping[str, object] | None = None,
    ):
        self._stream = stream
        self._seed = seed
        self._num_epochs = num_epochs
        self._identity = {
            "mixture": stream.provider.name,
            "split": stream.split,
            "model": stream.model_name,
            "text_length": stream.text_length,
            "batch_size": stream.batch_size,
            "reads": stream.reads,
            "deal": stream.deal,
            "schedule": stream.schedule,
            "seed": seed,
            "num_epochs": num_epochs,
            **(identity or {}),
        }
        self._num_batches = 0  # since the order began
        self._restarted_at = 0  # the step at which the order began
        self._skipped = 0  # batches that are gone through at the start, unread
        self.last_keys: list[str] = []
        self._counts: collections.Counter[str] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()
        self._lengths = stream.task_lengths()
        self._iterator = self._start()

    def _start(self) -> Iterator[Mapping[str, tf.Tensor]]:
        stream = self._stream
        with _one_line_errors(stream.label):
            provider, shard_info, rows = stream.provider, None, stream.batch_size
            if stream.deals_shards:
                shard_info = seqio.ShardInfo(stream.layout.shard, stream.layout.num_shards)
                rows = stream.rows
            if stream.schedule:
                provider = mixtures.scheduled(provider, stream.schedule, rows, self._restarted_at)
            examples = provider.get_dataset(
                split=stream.split,
                shuffle=True,
                seed=self._seed + self._restarted_at,
                num_epochs=self._num_epochs,
                shard_info=shard_info,
                trim_output_features=False,
                # A cache in memory would be copied into every saved position.
                try_in_mem_cache=False,
            )
            if self._skipped:
                examples = examples.skip(self._skipped * rows)
            if stream.rows < rows:
                examples = _own_rows(examples, stream)
            batches = stream.convert(examples, self._lengths)
            batches = batches.batch(stream.rows, drop_remainder=True).prefetch(_PREFETCH)
            return iter(batches.with_options(_options()))

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
        with _one_line_errors(self._stream.label):
            try:
                tensors = next(self._iterator)
            except StopIteration:
                if self._num_batches == 0:
                    raise UserError(
                        f"{self._stream.label}: fewer examples than the "
                        f"{self._stream.rows} of one batch"
                    ) from None
                raise
        batch = {name: tensor.numpy() for name, tensor in tensors.items()}
        _check_batch(batch, self._stream)
        companions = {name: batch.pop(name) for name in COMPANIONS if name in batch}
        self._num_batches += 1
        sources = [source.decode() for source in companions.get("source", ())]
        self._counts.update(sources)
        if (mask_BT := batch.get("loss_mask", batch.get("text_mask"))) is not None:
            for source, count in zip(sources, mask_BT.sum(axis=-1).tolist(), strict=False):
                self._tokens[source] += count
        self.last_keys = [key.decode() for key in companions.get("key", ())]
        return batch

    def get_state(self) -> bytes:
        """The position after the last batch delivered."""
        header = {
            "version": _VERSION,
            "identity": self._identity,
            "num_batches": self._num_batches,
            "source_counts": self.source_counts,
            "source_tokens": self.source_tokens,
            "restarted_at": self._restarted_at,
            "skipped": self._skipped,
        }
        packed = io.BytesIO()
        with (
            temporary_folder() as folder,
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            archive.writestr(_HEADER, json.dumps(header))
            tf.train.Checkpoint(iterator=self._iterator).write(f"{folder}/iterator")
            for path in sorted(pathlib.Path(folder).iterdir()):
                archive.write(path, path.name)
        return packed.getvalue()

    def set_state(self, state: bytes) -> None:
        """Goes on exactly where `get_state` was called, in this or another process.

        Where this process has other rows of the batches than the one that saved, it goes through
        the order again.

        Raises:
          UserError: a position of other data; it names what differs.
          Exception: of any other type; the position is damaged.
        """
        archive, header = self._open(state)
        if header["identity"]["reads"] != self._identity["reads"]:
            logging.warning("%s: %s", self._stream.label, self._go_through(header))
            return
        restarted_at, skipped = header.get("restarted_at", 0), header.get("skipped", 0)
        if self._num_batches or (restarted_at, skipped) != (self._restarted_at, self._skipped):
            self._restarted_at, self._skipped = restarted_at, skipped
            # The seeds of epochs live outside of TensorFlow's iterator, and have moved on.
            self._iterator = self._start()
        # First: after damage below, the next position finds that this iterator has moved.
        self._num_batches = header["num_batches"]
        if self._num_batches > skipped:
            with archive, temporary_folder() as folder:
                archive.extractall(folder)
                restored = tf.train.Checkpoint(iterator=self._iterator).read(f"{folder}/iterator")
                restored.assert_consumed()
        self._take_counts(header)

    def restart(self, state: bytes, step: int) -> str:
        """Goes on at step `step` after a change of the number of data shards; says what holds.

        With deal "examples" the data goes on exactly: the order is gone through again up to here.
        With "shards" it is unknown what the others had read, so that a new order begins, drawn
        from the seed and the step.

        Raises:
          UserError: as `set_state`.
        """
        _, header = self._open(state)
        if self._stream.deal == "examples":
            return self._go_through(header)
        self._take_counts(header)
        self._restarted_at, self._num_batches, self._skipped = step, 0, 0
        self._iterator = self._start()
        return (
            "a new order of the data starts here, so examples of the current epoch may be seen "
            "twice or not at all (config.data.deal=examples goes on exactly)"
        )

    def _go_through(self, header: Mapping[str, Any]) -> str:
        """Starts the order again and skips what was read."""
        self._take_counts(header)
        self._restarted_at = header.get("restarted_at", 0)
        self._num_batches = self._skipped = header["num_batches"]
        self._iterator = self._start()
        examples = self._skipped * self._stream.batch_size
        return f"resuming the data exactly: skipping {examples:,} examples"

    def _open(self, state: bytes) -> tuple[zipfile.ZipFile, Mapping[str, Any]]:
        """The archive and its header; raises as `set_state` does."""
        try:
            archive = zipfile.ZipFile(io.BytesIO(state))
            header = json.loads(archive.read(_HEADER))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DamagedError("data position: these bytes are not one of this pipeline") from error
        if header["version"] != _VERSION:
            raise UserError(f"data position: version {header['version']}, expected {_VERSION}")
        saved, now = header["identity"], json.loads(json.dumps(self._identity))
        # Positions from before there was a choice, and from before meshes decided who reads what.
        index, count = saved.pop("processes", (0, 1))
        saved.setdefault("deal", "examples" if count == 1 else "shards")
        saved.setdefault("schedule", {})
        if "vocabulary" in now:
            saved.setdefault("vocabulary", now["vocabulary"])
        rows = saved["batch_size"] // count
        by_examples = saved["deal"] == "examples"
        saved.setdefault(
            "reads", [[index * rows, (index + 1) * rows]] if by_examples else [index, count]
        )
        for key in sorted({*now, *saved} - {"reads"}):
            if now.get(key) != saved.get(key):
                raise UserError(
                    f"data position: saved with {key} {saved.get(key)!r}, this run has "
                    f"{now.get(key)!r}; to change data, start from the parameters alone"
                )
        return archive, header

    def _take_counts(self, header: Mapping[str, Any]) -> None:
        self._counts = collections.Counter(header["source_counts"])
        self._tokens = collections.Counter(header.get("source_tokens", {}))


def evaluation_batches(stream: Stream, *, with_keys: bool = False) -> Iterator[Batch]:
    """Every example once, in order, task after task.

    Each process reads all and takes its rows of each batch, so that all see the same number of
    batches and no row is counted twice. Rows that fill up the last batch repeat its last example,
    with nothing in `loss_mask`.

    Args:
      stream: what to read.
      with_keys: adds `key`, an array of str; only for data that has keys.

    Yields:
      the model's batch and `valid` bool[B], false on rows that fill up.
    """
    lengths = stream.task_lengths()
    with _one_line_errors(stream.label):
        parts = [
            task.get_dataset(
                split=stream.split,
                shuffle=False,
                num_epochs=1,
                trim_output_features=False,
                try_in_mem_cache=False,
            )
            for task in mixtures.tasks_of(stream.provider)
        ]
        batches = [stream.convert(part, lengths) for part in parts]
        examples = batches[0]
        for part in batches[1:]:
            examples = examples.concatenate(part)
        iterator = iter(examples.batch(stream.batch_size).prefetch(_PREFETCH))
    mine = stream.layout.rows(stream.batch_size)
    while True:
        with _one_line_errors(stream.label):
            tensors = next(iterator, None)
        if tensors is None:
            return
        batch = {name: tensor.numpy() for name, tensor in tensors.items()}
        _check_batch(batch, stream)
        num_valid = len(next(iter(batch.values())))
        rows, valid = np.minimum(mine, num_valid - 1), mine < num_valid
        keys = batch.get("key")
        batch = {name: array[rows] for name, array in batch.items() if name not in COMPANIONS}
        batch["valid"] = valid
        if "loss_mask" in batch:
            batch["loss_mask"] &= valid[:, None]
        if with_keys:
            batch["key"] = np.array([keys[row].decode() for row in rows])
        yield batch


def draw_examples(
    provider: seqio.Task | seqio.Mixture, split: str, seed: int, count: int
) -> list[dict[str, Any]]:
    """{task feature: array, or str} of the first shuffled and mixed examples."""
    with _one_line_errors(f"{provider.name!r}"):
        examples = provider.get_dataset(
            split=split,
            shuffle=True,
            seed=seed,
            num_epochs=1,
            trim_output_features=False,
            try_in_mem_cache=False,
        )
        drawn = list(examples.take(count).as_numpy_iterator())
    if not drawn:
        raise UserError(f"{provider.name!r}: no examples in split {split!r}")
    return [
        {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in row.items()}
        for row in drawn
    ]


def _first_example(task: seqio.Task, split: str) -> Mapping[str, tf.Tensor]:
    with _one_line_errors(f"task {task.name!r}"):
        examples = task.get_dataset(
            split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
        )
        example = next(iter(examples.take(1)), None)
    if example is None:
        raise UserError(f"task {task.name!r}: no examples in split {split!r}")
    return example


def _own_rows(examples: tf.data.Dataset, stream: Stream) -> tf.data.Dataset:
    """This process's rows of each batch; a last batch that is not full is left out by all."""
    mine = stream.layout.rows(stream.batch_size)
    names = stream.converter.TASK_FEATURES  # others may not stack
    batches = examples.map(lambda example: {name: example[name] for name in names})
    batches = batches.batch(stream.batch_size, drop_remainder=True)
    return batches.map(lambda batch: {k: tf.gather(v, mine) for k, v in batch.items()}).unbatch()


def _check_batch(batch: Batch, stream: Stream) -> None:
    """Raises UserError on a token beyond its limit, and on a text of which nothing is to learn."""
    for name, limit in stream.limits.items():
        tokens = batch.get(name)
        if tokens is not None and (tokens.min() < 0 or tokens.max() >= limit):
            row, _ = np.argwhere((tokens < 0) | (tokens >= limit))[0]
            key = f"example {batch['key'][row].decode()!r}" if "key" in batch else stream.label
            raise UserError(
                f"{key}: found {name} {tokens[row].min()} to {tokens[row].max()}, expected 0 to "
                f"{limit - 1}, as the model has them"
            )
    mask_BT = batch.get("loss_mask", batch.get("text_mask"))
    if mask_BT is None:
        return
    empty_B = mask_BT.sum(axis=-1) <= 1
    if empty_B.any():
        key = batch["key"][np.argmax(empty_B)].decode()
        raise UserError(
            f"example {key!r}: no token of its caption is left to learn ({empty_B.sum()} such in a "
            f"batch); its caption is empty or text_length {stream.text_length} is too short"
        )


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    return options


@contextlib.contextmanager
def _one_line_errors(label: str) -> Iterator[None]:
    """Raises UserError on bad examples, and on what a function of the user's pipeline raises."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        raise UserError(f"{label}: a shard is damaged or gone: {one_line(error)}") from error
    except UserError:
        raise
    except Exception as error:  # the user's code, which fails in any way
        line = of_user_code(error)
        if line is None and not isinstance(error, ValueError | tf.errors.OpError):
            raise
        raise UserError(f"{label}: {line or one_line(error)}") from error
