"""A stream: which examples to read, for which model, and which rows of a batch are this process's.

Legend: B batch rows of this process, T text tokens, E width of stored features.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio

from synth2_jax.data import mixtures
from synth2_jax.data.feature_converters import converter_class
from synth2_jax.data.tensorflow_cpu import of_user_code, one_line, tf
from synth2_jax.errors import UserError
from synth2_jax.sharding import ALL_ROWS, DataLayout

PREFETCH = 2  # batches
Batch = dict[str, np.ndarray]
Provider = seqio.Task | seqio.Mixture


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
      deal: "examples" or "shards", see `train_batches`.
      schedule: {task: ((step, rate), ...)} in place of a mixture's rates, see `mixtures.scheduled`.
      limits: {feature: limit}; a token at or above its limit is an error.
      text_width: E, if the model reads stored features of the captions; else 0.
    """

    provider: Provider
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
                f"--config.data.batch_size: found {self.batch_size}, expected a multiple of the "
                f"{self.layout.num_parts} parts that the mesh cuts a batch into"
            )
        if self.deals_shards and self.layout.overlaps:
            raise UserError(
                "--config.data.deal: found 'shards' on a mesh where processes share only some "
                "of their rows. Use deal=examples, or another mesh."
            )

    @property
    def label(self) -> str:
        """The beginning of messages about this data."""
        kind = "mixture" if isinstance(self.provider, seqio.Mixture) else "task"
        return f"{kind} {self.provider.name!r}"

    @property
    def converter(self) -> type[seqio.FeatureConverter]:
        """The class that converts the features of the tasks to the model's."""
        features = self.provider.output_features
        return converter_class(self.model_name, features, encoded=self.text_width > 0)

    @property
    def rows(self) -> np.ndarray:
        """Numbers i64[B] of this process's rows in a batch, rising."""
        return self.layout.rows(self.batch_size)

    @property
    def deals_shards(self) -> bool:
        """Whether each data shard reads files of its own."""
        return self.deal == "shards" and self.layout.num_shards > 1

    @property
    def reads(self) -> list:
        """[shard, number of shards] with deal "shards"; otherwise ranges of rows.

        A saved position can only be restored exactly where this is the same.
        """
        if self.deal == "shards":
            return [self.layout.shard, self.layout.num_shards]
        ranges = np.split(self.rows, np.flatnonzero(np.diff(self.rows) > 1) + 1)
        return [[int(part[0]), int(part[-1]) + 1] for part in ranges]

    def task_lengths(self) -> dict[str, int]:
        """Lengths of the task features that are converted, from the first example of each task.

        Raises:
          UserError: a task has no example, lacks a feature, or has another length than a task
            before it.
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
            dataset = self.needed(dataset)
        return cls(vocabulary)(dataset, lengths)

    def needed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Drops the features that the converter does not read: their lengths may differ."""
        names = self.converter.TASK_FEATURES
        return dataset.map(lambda example: {name: example[name] for name in names})

    def check(self, batch: Batch) -> None:
        """Raises UserError on a token beyond its limit, and on a text without a token to learn."""
        for name, limit in self.limits.items():
            tokens = batch.get(name)
            if tokens is not None and (tokens.min() < 0 or tokens.max() >= limit):
                row, _ = np.argwhere((tokens < 0) | (tokens >= limit))[0]
                key = f"example {batch['key'][row].decode()!r}" if "key" in batch else self.label
                raise UserError(
                    f"{key}: found {name} {tokens[row].min()} to {tokens[row].max()}, expected 0 "
                    f"to {limit - 1}, as the model has them"
                )
        if (mask_BT := text_mask(batch)) is None:
            return
        empty_B = mask_BT.sum(axis=-1) <= 1
        if empty_B.any():
            key = batch["key"][np.argmax(empty_B)].decode()
            raise UserError(
                f"example {key!r}: no token of its caption is left to learn (found {empty_B.sum()} "
                f"such examples in a batch). Its caption is empty, or --config.data.text_length="
                f"{self.text_length} is too short."
            )


def text_mask(batch: Batch) -> np.ndarray | None:
    """Which tokens bool[B,T] of a batch count as text; None for data without text."""
    return batch.get("loss_mask", batch.get("text_mask"))


def read(provider: Provider, split: str, **options: Any) -> tf.data.Dataset:
    """The whole examples of a task or mixture; `options` are those of its `get_dataset`."""
    # A cache in memory would be copied into every saved position.
    options = {"trim_output_features": False, "try_in_mem_cache": False, **options}
    return provider.get_dataset(split=split, **options)


def draw_examples(provider: Provider, split: str, seed: int, count: int) -> list[dict[str, Any]]:
    """{task feature: array, or str} of the first shuffled and mixed examples."""
    with one_line_errors(f"{provider.name!r}"):
        examples = read(provider, split, shuffle=True, seed=seed, num_epochs=1)
        drawn = list(examples.take(count).as_numpy_iterator())
    if not drawn:
        raise UserError(f"{provider.name!r}: no examples in split {split!r}")
    return [
        {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in row.items()}
        for row in drawn
    ]


def _first_example(task: seqio.Task, split: str) -> Mapping[str, tf.Tensor]:
    with one_line_errors(f"task {task.name!r}"):
        examples = read(task, split, shuffle=False, num_epochs=1)
        example = next(iter(examples.take(1)), None)
    if example is None:
        raise UserError(f"task {task.name!r}: no examples in split {split!r}")
    return example


@contextlib.contextmanager
def one_line_errors(label: str) -> Iterator[None]:
    """Raises UserError on bad examples, and on what a function of the user's pipeline raises."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        raise UserError(f"{label}: a shard is damaged or missing: {one_line(error)}") from error
    except UserError:
        raise
    except Exception as error:  # the user's code, which fails in any way
        line = of_user_code(error)
        if line is None and not isinstance(error, ValueError | tf.errors.OpError):
            raise
        raise UserError(f"{label}: {line or one_line(error)}") from error
