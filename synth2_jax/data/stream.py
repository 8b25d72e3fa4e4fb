"""A stream: which examples to read, for which model, and which rows of a batch are this process's.

Legend: B batch rows of this process, I images a text, T text tokens, E width of stored features.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio

from synth2_jax.data import mixtures
from synth2_jax.data.feature_converters import COMPANIONS, converter_class
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.tensorflow_cpu import of_user_code, one_line, tf
from synth2_jax.errors import UserError
from synth2_jax.sharding import ALL_ROWS, DataLayout

PREFETCH = 2  # batches
Batch = dict[str, np.ndarray]
Provider = seqio.Task | seqio.Mixture


@dataclasses.dataclass(frozen=True)
class Stream:
    """The data to read, and for which model.

    Attributes:
      config: its batch size counts the rows of all processes together.
      provider: the task or mixture of the config.
      model_name: chooses the feature converter.
      layout: which rows of every batch this process reads.
      limits: {feature: limit}; a token at or above its limit is an error.
      text_width: E, if the model reads stored features of the captions; else 0.
    """

    config: DataConfig
    provider: Provider
    model_name: str
    layout: DataLayout = ALL_ROWS
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    text_width: int = 0

    def __post_init__(self):
        if self.config.batch_size % self.layout.num_parts:
            raise UserError(
                f"--config.data.batch_size: found {self.config.batch_size}, expected a multiple of "
                f"the {self.layout.num_parts} parts that the mesh cuts a batch into"
            )
        if self.deals_shards and self.layout.overlaps:
            raise UserError(
                "--config.data.deal: found 'shards' on a mesh where processes share only some "
                "of their rows. Use deal=examples, or another mesh."
            )

    @property
    def label(self) -> str:
        """The beginning of messages about this data."""
        return f"--config.data.mixture={self.provider.name}"

    @property
    def converter(self) -> type[seqio.FeatureConverter]:
        """The class that converts the features of the tasks to the model's."""
        features = self.provider.output_features
        return converter_class(self.model_name, features, encoded=self.text_width > 0)

    @property
    def rows(self) -> np.ndarray:
        """Numbers i64[B] of this process's rows in a batch, rising."""
        return self.layout.rows(self.config.batch_size)

    @property
    def examples(self) -> np.ndarray:
        """Numbers i64[B * I] of the examples in these rows, I of them a row."""
        images_per_text = self.config.images_per_text
        return (self.rows[:, None] * images_per_text + np.arange(images_per_text)).reshape(-1)

    @property
    def deals_shards(self) -> bool:
        """Says whether each data shard reads files of its own."""
        return self.config.deal == "shards" and self.layout.num_shards > 1

    @property
    def reads(self) -> list:
        """[shard, number of shards] with deal "shards"; otherwise ranges of rows.

        A saved position can only be restored exactly where this is the same.
        """
        if self.config.deal == "shards":
            return [self.layout.shard, self.layout.num_shards]
        ranges = np.split(self.rows, np.flatnonzero(np.diff(self.rows) > 1) + 1)
        return [[int(part[0]), int(part[-1]) + 1] for part in ranges]

    def task_lengths(self) -> dict[str, int]:
        """Lengths of the task features that are converted, from the first example of each task.

        Raises:
          UserError: a task has no example, lacks a feature, or has another length than a task
            before it.
        """
        mixtures.check_split(self.provider, self.config.split)
        lengths: dict[str, int] = {}
        for task in mixtures.tasks_of(self.provider):
            label = f"--config.data.mixture: task {task.name!r}"
            (example,) = draw_examples(task, self.config.split, 1, label)
            for feature, spec in self.converter.TASK_FEATURES.items():
                found = example.get(feature)
                if found is None or (found.dtype, found.shape.rank) != (spec.dtype, spec.rank):
                    what = "missing"
                    if found is not None:
                        what = f"{found.dtype.name}, rank {found.shape.rank}"
                    raise UserError(
                        f"{label}: feature {feature!r} is {what}, the {self.model_name} needs "
                        f"{spec.dtype.name}, rank {spec.rank}"
                    )
                length = len(found) if spec.rank else 0
                if lengths.setdefault(feature, length) != length:
                    raise UserError(
                        f"{label}: {feature} of length {length}, the tasks before it have "
                        f"{lengths[feature]}"
                    )
        set_here = {"caption": self.config.text_length, "text_features": self.text_width}
        return lengths | {name: set_here[name] for name in set_here.keys() & lengths.keys()}

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

    def to_numpy(self, tensors: Mapping[str, tf.Tensor]) -> tuple[Batch, Batch]:
        """Returns a batch, not yet packed, and its companions.

        Raises:
          UserError: a token beyond its limit, or a text without a token to learn.
        """
        batch = {name: tensor.numpy() for name, tensor in tensors.items()}
        for name, limit in self.limits.items():
            tokens = batch.get(name)
            if tokens is not None and (tokens.min() < 0 or tokens.max() >= limit):
                row, _ = np.argwhere((tokens < 0) | (tokens >= limit))[0]
                key = f"example {batch['key'][row].decode()!r}" if "key" in batch else self.label
                raise UserError(
                    f"{key}: found {name} {tokens[row].min()} to {tokens[row].max()}, expected 0 "
                    f"to {limit - 1}, as the model has them"
                )
        mask_BT = text_mask(batch)
        if mask_BT is not None and (empty_B := mask_BT.sum(axis=-1) <= 1).any():
            key = batch["key"][np.argmax(empty_B)].decode()
            raise UserError(
                f"example {key!r}: no token of its caption is left to learn (found {empty_B.sum()} "
                f"such examples in a batch). Its caption is empty, or --config.data.text_length="
                f"{self.config.text_length} is too short."
            )
        companions = {name: batch.pop(name) for name in COMPANIONS if name in batch}
        return batch, companions


def text_mask(batch: Batch) -> np.ndarray | None:
    """Which tokens bool[B,T] of a batch count as text; None for data without text."""
    return batch.get("loss_mask", batch.get("text_mask"))


def read(provider: Provider, split: str, **options: Any) -> tf.data.Dataset:
    """The whole examples of a task or mixture; `options` are those of its `get_dataset`."""
    # A cache in memory would be copied into every saved position.
    options = {"trim_output_features": False, "try_in_mem_cache": False, **options}
    return provider.get_dataset(split=split, **options)


def draw_examples(
    provider: Provider, split: str, count: int, label: str, **options: Any
) -> list[Mapping[str, tf.Tensor]]:
    """Returns the task features of the first examples; `options` as for `read`.

    Raises:
      UserError: there is no example; begins with `label`.
    """
    with one_line_errors(label):
        examples = read(provider, split, num_epochs=1, **{"shuffle": False, **options})
        drawn = list(examples.take(count))
    if not drawn:
        raise UserError(f"{label}: no examples in split {split!r}")
    return drawn


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
