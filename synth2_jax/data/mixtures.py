"""SeqIO mixtures: tasks drawn from at given rates, and how a config names them."""

import importlib
import math
import os
import sys
from collections.abc import Mapping, Sequence

import seqio

from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import UserError, nearest

_DRAWS = 512  # choices of a task made by one call


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register a user's tasks and mixtures; also from the current folder.

    Raises:
      UserError: there is no such module, or it fails while it is imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise UserError(f"module {module!r}: it needs {error.name!r}, not found") from error
            raise UserError(
                f"module {module!r}: not found in the Python path or in {os.getcwd()}"
            ) from error
        except Exception as error:  # whatever a user's module does wrong is the user's to mend
            reason = " ".join(str(error).split())
            raise UserError(f"module {module!r}: {type(error).__name__}: {reason}") from error


def sample_in_blocks(
    datasets: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int | None = None
) -> tf.data.Dataset:
    """Draws examples from datasets in proportion to `rates`, until one of them ends.

    The same distribution as `tf.data.Dataset.sample_from_datasets`, SeqIO's default, which spends
    more on each choice than all the rest of this pipeline on an example. A `sample_fn` of
    `seqio.MixtureRegistry.add`. `seed` None is 0.
    """
    logits = tf.math.log(tf.constant([rates], tf.float32))
    seed = 0 if seed is None else seed

    def choose(block: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(seed, tf.int64), block])
        return tf.random.stateless_categorical(logits, _DRAWS, seed=key, dtype=tf.int64)[0]

    choices = tf.data.Dataset.counter().map(choose).unbatch()
    return tf.data.Dataset.choose_from_datasets(datasets, choices, stop_on_empty_dataset=True)


def add_mixture(name: str, rates: Mapping[str, float], *, replace: bool = False) -> seqio.Mixture:
    """Registers a mixture that draws from each task (or mixture) in proportion to its rate.

    Raises:
      UserError: no rates, a rate of 0 or less, an unknown task, or another mixture or task of this
        name (a mixture gives way when `replace` is true).
    """
    if not rates:
        raise UserError(f"mixture {name!r}: found no rates, expected {{task: rate}}")
    for task, rate in rates.items():
        if not 0 < rate < math.inf:
            raise UserError(
                f"mixture {name!r}: task {task!r} has rate {rate}, expected a number above 0"
            )
    if name in seqio.TaskRegistry.names():
        raise UserError(f"mixture {name!r}: a task has this name; choose another")
    parts = [(resolve(task), float(rate)) for task, rate in rates.items()]
    if name in seqio.MixtureRegistry.names():
        found = seqio.MixtureRegistry.get(name)
        same_rates = dict(found.rate_per_task_name) == {part.name: rate for part, rate in parts}
        if same_rates and set(found.tasks) == {task for p, _ in parts for task in tasks_of(p)}:
            return found
        if not replace:
            raise UserError(
                f"mixture {name!r}: already registered with {dict(found.rate_per_task_name)}, now "
                f"asked for with {dict(rates)}; choose another name"
            )
        seqio.MixtureRegistry.remove(name)
    try:
        return seqio.MixtureRegistry.add(name, parts, sample_fn=sample_in_blocks)
    except ValueError as error:
        raise UserError(f"mixture {name!r}: {' '.join(str(error).split())}") from error


def resolve(name: str) -> seqio.Task | seqio.Mixture:
    """The task or mixture of this name; UserError with the nearest name when there is none."""
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise UserError(
            f"mixture {name!r}: no task or mixture of this name; {nearest(name, known)}"
        )
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    mixture = seqio.MixtureRegistry.get(name)
    for task in mixture.tasks:
        if task.name not in seqio.TaskRegistry.names():
            continue
        if seqio.TaskRegistry.get(task.name) is not task:
            raise UserError(
                f"mixture {name!r}: its task {task.name!r} was registered anew since; start a new "
                "process"
            )
    return mixture


def tasks_of(provider: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """The tasks of a mixture by name, or the task itself."""
    return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def check_split(provider: seqio.Task | seqio.Mixture, split: str) -> None:
    """Raises UserError unless every task has the split (SeqIO would leave the others out)."""
    for task in tasks_of(provider):
        if split not in task.splits:
            raise UserError(
                f"task {task.name!r}: no split {split!r}; {nearest(split, task.splits)}"
            )
