"""The training loop. Order is load-bearing in it: see the comments."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.config import check_counts, check_seeds
from synth2_jax.stop_signal import StopSignal
from synth2_jax.training import train_state
from synth2_jax.training.checkpoints import Checkpoints, DataIterator
from synth2_jax.training.metrics import Writer
from synth2_jax.training.optimizer import Optimizer
from synth2_jax.training.resume import new_run_from, resume
from synth2_jax.training.train_state import Objective, Params, TrainState, create_train_state
from synth2_jax.training.train_step import check_batch, compile_train_step
from synth2_jax.training.watch import Watch
from synth2_jax.training.watchdog import Watchdog
from synth2_jax.training.what_is_trained import what_is_trained


@dataclasses.dataclass(frozen=True)
class TrainLoopConfig:
    """The length of a training, and its periods, in steps.

    Attributes:
      steps: where the training ends, resumed or not.
      seed: of initial parameters, masks and dropout.
      log_every: steps between two lines of metrics.
      eval_every: steps between two evaluations on `validation`; 0 for none.
      checkpoint_every: steps between two checkpoints; the last step always saves.
      ema_decay: d of a moving average of the trained parameters, from update t on (the first is 0)
        `a = e * a + (1 - e) * parameters` with e = min(d, (1 + t) / (10 + t)), as TensorFlow's
        ExponentialMovingAverage has it, so that the random start is soon forgotten. Later stages
        and `validation` take the average. 0 keeps none. A tokenizer's discriminator, which only
        the training reads, has one too.
      microbatches: a batch's rows go through the model in so many parts, one after the other, for
        one update: less memory for activations (see train_step.py).
      keep: the newest so many checkpoints are kept.
      keep_best: besides, so many that were best by `best_metric`; 0 for none. Only checkpoints of
        steps that were evaluated before they were saved count, so `eval_every` should divide
        `checkpoint_every`.
      best_metric: a name that evaluation gives, such as "validation/cider"; the higher the better.
      watchdog_seconds: a run that finishes no step for so long (it may compile, evaluate or save)
        prints its stack traces and ends with code 1; 0 waits for ever.
    """

    steps: int
    seed: int = 0
    log_every: int = 100
    eval_every: int = 0
    checkpoint_every: int = 1000
    ema_decay: float = 0.0
    microbatches: int = 1
    keep: int = 2
    keep_best: int = 0
    best_metric: str = ""
    watchdog_seconds: float = 1800.0

    def __post_init__(self):
        check_seeds(self, "seed")
        check_counts(self, "steps", "log_every", "checkpoint_every", "microbatches", "keep")
        for name in ("keep_best", "watchdog_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: found {self.ema_decay}, expected 0 to below 1")
        found = f"keep_best: found {self.keep_best}"
        if bool(self.keep_best) != bool(self.best_metric):
            raise ValueError(
                f"{found} with `best_metric`={self.best_metric!r}, expected both or neither"
            )
        if self.keep_best and not self.eval_every:
            raise ValueError(f"{found}, expected 0 with `eval_every`=0, which measures nothing")


def train(
    objective: Objective,
    tx: Optimizer,
    mesh: Mesh,
    train_iterator: DataIterator,
    config: TrainLoopConfig,
    workdir: str | os.PathLike[str],
    writers: Sequence[Writer] = (),
    *,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    initial_params: Mapping[str, Params] | None = None,
    resolved_config: Mapping[str, Any] = MappingProxyType({}),
    built_on: Mapping[str, str] = MappingProxyType({}),
    rules: sharding.AxisRules = sharding.AXIS_RULES,
) -> TrainState:
    """Trains until `config.steps` or the end of the data, from the newest checkpoint in `workdir`.

    The iterator gives the rows of `sharding.data_layout(mesh)`. Writers also get what `evaluate`
    returns, every `eval_every` steps and at the end. What resumes must be `built_on` the same.
    Raises UserError if the loss is not finite or a batch or checkpoint does not fit, SystemExit
    after a signal (SIGTERM: 143) and a save.
    """
    layout = train_state.state_layout(objective, tx, mesh, rules, with_average=config.ema_decay > 0)
    _say_what_is_trained(objective, tx, layout)
    kept = (config.keep, config.keep_best, config.best_metric)
    with (
        StopSignal() as stop,
        Watchdog(config.watchdog_seconds) as watchdog,
        Checkpoints(workdir, *kept, sharding.data_layout(mesh)) as checkpoints,
    ):
        state, sums = resume(checkpoints, layout, train_iterator, built_on, resolved_config)
        state = state or create_train_state(objective, tx, layout, config.seed, initial_params)
        watch = Watch(writers, checkpoints, stop, config.log_every, sums, tx.restarts)
        settings = (config.microbatches, config.ema_decay)
        train_step = compile_train_step(objective, tx, layout, mesh, rules, *settings)
        first = step = int(state.step)
        measured: dict[int, Mapping[str, float]] = {}  # by step
        evaluate_every = config.eval_every if evaluate else 0

        def measure() -> None:
            watch.settle()
            with watch.aside():
                measured[step] = evaluate(state)
                watch.write(step, measured[step])

        def save() -> None:
            watch.settle()  # A step whose loss was not checked may hold NaNs.
            about = (resolved_config, built_on, measured.get(step), watch.sums())
            checkpoints.save(state, train_iterator, *about)

        while step < config.steps:
            # Saved before the iterator moves: state and data position are of the same step.
            if step > first and step % config.checkpoint_every == 0:
                save()
            if stop.requested():
                save()
                checkpoints.read_back(state)
                stop.exit(f"step {step} is saved in {checkpoints.folder}; the same command goes on")
            with watch.input():
                batch = next(train_iterator, None)
            if batch is None:
                break
            if step == first:
                check_batch(batch, objective, mesh, config.microbatches)
            state, metrics = train_step(state, sharding.put_batch(batch, mesh))
            step += 1
            # The device now works on this step, while the host looks at the one before.
            watch.settle()
            watch.add(step, metrics, train_iterator)
            watchdog.beat()
            if evaluate_every and step % evaluate_every == 0:
                measure()
        _warn_of_an_early_end(first, step, config.steps, workdir)
        if step > first or step < config.steps:  # or what a kill at the data's end prevented
            watch.finish(step)
            if evaluate_every and step not in measured:
                measure()
            save()
            checkpoints.read_back(state)
    return state


def _say_what_is_trained(objective: Objective, tx: Optimizer, layout: TrainState) -> None:
    if jax.process_index() == 0:
        trained, _ = train_state.split_params(layout.params, objective.frozen)
        line = what_is_trained(layout.params, objective.frozen, tx.groups(trained))
        with contextlib.suppress(OSError):  # nothing reads it any more; the first metrics say so
            print(line, file=sys.stderr, flush=True)


def _warn_of_an_early_end(
    first: int, step: int, steps: int, workdir: str | os.PathLike[str]
) -> None:
    """Says that there was nothing to train, or not enough data."""
    if first >= steps:
        news = (
            f"--config.train.steps: found {steps}, and {workdir} has trained {first}: "
            f"nothing is left to do. Give more steps, or {new_run_from(workdir)}"
        )
    elif step < steps:
        news = f"the data ends after step {step} of {steps}"
        if step == first:
            news += f", and none was left. To train further, {new_run_from(workdir)}"
    else:
        return
    logging.warning("%s", news)
