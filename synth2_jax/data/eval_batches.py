"""Batches for evaluation: one pass over all examples, in order.

Legend: B batch rows of this process.
"""

import functools
from collections.abc import Iterator

import numpy as np

from synth2_jax.data import mixtures
from synth2_jax.data.packing import pack
from synth2_jax.data.stream import PREFETCH, Batch, Stream, one_line_errors, read
from synth2_jax.data.tensorflow_cpu import tf


def evaluation_batches(stream: Stream, *, with_keys: bool = False) -> Iterator[Batch]:
    """Yields every example once, in order, task after task.

    Each process reads all examples and takes its rows of each batch, so that all processes see the
    same number of batches and no row is counted twice. The last batch is filled up with copies of
    its last example, whose `loss_mask` is false.

    Yields:
      the model's batch and `valid` bool[B], false on the rows that have a copy; `with_keys` adds
      `key`, an array of str with a key for each example, for data that has keys.
    """
    lengths = stream.task_lengths()
    with one_line_errors(stream.label):
        parts = [
            stream.convert(read(task, stream.config.split, shuffle=False, num_epochs=1), lengths)
            for task in mixtures.tasks_of(stream.provider)
        ]
        examples = functools.reduce(tf.data.Dataset.concatenate, parts)
        batch_size, per_row = stream.config.batch_size, stream.config.images_per_text
        iterator = iter(examples.batch(batch_size * per_row).prefetch(PREFETCH))
    while True:
        with one_line_errors(stream.label):
            tensors = next(iterator, None)
        if tensors is None:
            return
        batch, companions = stream.to_numpy(tensors)
        num_valid = len(next(iter(batch.values())))
        own, valid = np.minimum(stream.examples, num_valid - 1), stream.examples < num_valid
        batch = {name: array[own] for name, array in batch.items()}
        if "loss_mask" in batch:
            batch["loss_mask"] &= valid[:, None]
        batch = pack(batch, per_row)
        batch["valid"] = valid.reshape(-1, per_row).all(axis=1)
        if with_keys:
            batch["key"] = np.array([companions["key"][example].decode() for example in own])
        yield batch
