"""SeqIO mixtures: draw from tasks at given rates, and find tasks and mixtures by name."""

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import seqio

from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import UnknownNameError, UserError, nearest

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
                raise UserError(
                    f"--config.data.modules: module {module!r}: imports {error.name!r}, not found"
                ) from error
            raise UserError(
                f"--config.data.modules: module {module!r}: not found in the Python path or in "
                f"{os.getcwd()}"
            ) from error
        except Exception as error:  # the user's code, which fails in any way
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"--config.data.modules: module {module!r}: {reason}") from error


def sample_in_blocks(
    datasets: Sequence[tf.data.Dataset],
    rates: Sequence[float] | Callable[[tf.Tensor], tf.Tensor],
    seed: int | None = None,
) -> tf.data.Dataset:
    """Draws examples from datasets in proportion to `rates`, until one of them ends.

    A `sample_fn` for `seqio.MixtureRegistry.add`. It draws from the same distribution as SeqIO's
    default, `tf.data.Dataset.sample_from_datasets`, which takes more time for each choice than the
    rest of this pipeline takes for an example. `seed` None is 0. Rates that change are a function
    of the numbers of examples, i64[D] -> f32[D, tasks].
    """
    seed = 0 if seed is None else seed
    rates_of = rates if callable(rates) else lambda numbers_D: tf.constant([rates], tf.float32)

    def choose(block: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(seed, tf.int64), block])
        logits = tf.math.log(rates_of(block * _DRAWS + tf.range(_DRAWS, dtype=tf.int64)))
        num_samples = _DRAWS // (logits.shape[0] or _DRAWS)
        drawn = tf.random.stateless_categorical(logits, num_samples, seed=key, dtype=tf.int64)
        return tf.reshape(drawn, [_DRAWS])

    choices = tf.data.Dataset.counter().map(choose).unbatch()
    return tf.data.Dataset.choose_from_datasets(datasets, choices, stop_on_empty_dataset=True)


def scheduled(
    mixture: seqio.Task | seqio.Mixture,
    schedule: Mapping[str, Sequence[tuple[int, float]]],
    rows: int,
    first_step: int = 0,
) -> seqio.Mixture:
    """Returns the mixture with rates that change with the training step; does not register it.

    Between two points of a task its rate changes linearly; at two points of one step it jumps from
    the first to the second. Before the first point and after the last it is constant. Tasks without
    a schedule keep their rate. A step has `rows` examples; `first_step` is that of the first
    example.

    Raises:
      UserError: not a mixture, or a scheduled task is not in it, or all rates are 0 at a step.
    """
    if not isinstance(mixture, seqio.Mixture):
        raise UserError(
            f"--config.data.rates: a schedule needs a mixture, {mixture.name!r} is a task"
        )
    names = [task.name for task in mixture.tasks]
    for name in schedule:
        if name not in names:
            raise UserError(
                f"--config.data.rates.{name}: no such task in the mixture; {nearest(name, names)}"
            )
    if all(name in schedule for name in names):
        for step in sorted({0, *(step for points in schedule.values() for step, _ in points)}):
            if not any(_interpolate(schedule[name], tf.constant([step])) for name in names):
                raise UserError(
                    f"--config.data.rates: found a rate of 0 for every task at step {step}"
                )

    def sample(datasets, rates, seed=None):
        points = [schedule.get(n, ((0, rate),)) for n, rate in zip(names, rates, strict=True)]

        def rates_of(numbers_D: tf.Tensor) -> tf.Tensor:
            steps_D = first_step + numbers_D // rows
            return tf.stack([_interpolate(p, steps_D) for p in points], axis=-1)

        return sample_in_blocks(datasets, rates_of, seed)

    parts = [(task, mixture.get_rate(task)) for task in mixture.tasks]
    return seqio.Mixture(mixture.name, parts, sample_fn=sample)


def check_schedule(task: str, points: Sequence[Sequence[float]]) -> None:
    """Raises UserError unless steps rise from point to point and rates are 0 or more.

    Two points, but no more, may be of one step.
    """
    key = f"--config.data.rates.{task}"
    try:
        steps, rates = zip(*((int(step), float(rate)) for step, rate in points), strict=True)
    except (TypeError, ValueError):
        raise UserError(
            f"{key}: found {points!r}, expected a rate or ((step, rate), ...)"
        ) from None
    if list(steps) != sorted(steps) or steps[0] < 0 or max(map(steps.count, steps)) > 2:
        raise UserError(
            f"{key}: found steps {steps}, expected rising ones from 0 on, or twice the same for a "
            "jump"
        )
    if not all(0 <= rate < math.inf for rate in rates):
        raise UserError(f"{key}: found rates {rates}, expected numbers of 0 or more")


def _interpolate(points: Sequence[tuple[int, float]], steps_D: tf.Tensor) -> tf.Tensor:
    """Returns the rate of a task at each step, i64[D] -> f32[D]."""
    (_, rate), *_ = points
    rates_D = tf.fill(tf.shape(steps_D), tf.constant(rate, tf.float32))
    for (start, before), (stop, after) in zip(points, points[1:], strict=False):
        # The end of the line itself, not a sum that is off it by a rounding: a rate of 0 is 0.
        share_D = tf.cast(steps_D - start, tf.float32) / max(stop - start, 1)
        rates_D = tf.where(steps_D >= start, before + share_D * (after - before), rates_D)
        rates_D = tf.where(steps_D >= stop, float(after), rates_D)
    return rates_D


def add_mixture(name: str, rates: Mapping[str, float], *, replace: bool = False) -> seqio.Mixture:
    """Registers a mixture that draws from each task (or mixture) in proportion to its rate.

    Raises:
      UserError: no rates, a rate of 0 or less, an unknown task, or another mixture or task of this
        name (`replace` allows another mixture).
    """
    if not rates:
        raise UserError("--config.data.rates: found none, expected {task: rate}")
    for task, rate in rates.items():
        if not 0 < rate < math.inf:
            raise UserError(f"--config.data.rates.{task}: found {rate}, expected a number above 0")
    key = f"--config.data.mixture={name}"
    if name in seqio.TaskRegistry.names():
        raise UserError(f"{key}: a task has this name. Choose another.")
    parts = [(resolve(task, "--config.data.rates"), float(rate)) for task, rate in rates.items()]
    if name in seqio.MixtureRegistry.names():
        found = seqio.MixtureRegistry.get(name)
        found_rates = dict(found.rate_per_task_name)
        all_tasks = {task for part, _ in parts for task in tasks_of(part)}
        if found_rates == {part.name: rate for part, rate in parts} and all_tasks == set(
            found.tasks
        ):
            return found
        if not replace:
            raise UserError(
                f"{key}: already registered with {found_rates}, now asked for with {dict(rates)}. "
                "Choose another name."
            )
        seqio.MixtureRegistry.remove(name)
    try:
        return seqio.MixtureRegistry.add(name, parts, sample_fn=sample_in_blocks)
    except ValueError as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from error


def resolve(name: str, key: str = "--config.data.mixture") -> seqio.Task | seqio.Mixture:
    """Finds a task or mixture by name; the UserError for an unknown one has the nearest name."""
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    if name not in seqio.MixtureRegistry.names():
        known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
        raise UnknownNameError(f"{key}: no task or mixture {name!r}; {nearest(name, known)}")
    mixture = seqio.MixtureRegistry.get(name)
    registered = set(seqio.TaskRegistry.names())
    for task in mixture.tasks:
        if task.name in registered and seqio.TaskRegistry.get(task.name) is not task:
            raise UserError(
                f"{key}={name}: its task {task.name!r} was registered again since. Start a new "
                "process."
            )
    return mixture


def tasks_of(provider: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """Returns the tasks of a mixture, or the task itself in a list."""
    return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def check_split(provider: seqio.Task | seqio.Mixture, split: str) -> None:
    """Raises UserError unless every task has the split (SeqIO would skip tasks without it)."""
    for task in tasks_of(provider):
        if split not in task.splits:
            raise UserError(
                f"--config.data.split: task {task.name!r} has no split {split!r}; "
                f"{nearest(split, task.splits)}"
            )
