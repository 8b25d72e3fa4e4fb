"""Checkpoints of a run: one Orbax step folder holds all that it needs to go on.

What lies in such a folder stands at the top of checkpoint_reader.py, which reads it for others.
"""

import contextlib
import dataclasses
import logging as python_logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from synth2_jax.errors import UserError, nearest
from synth2_jax.files import FULL_DISK
from synth2_jax.training.checkpoint_reader import (
    FOLDER,
    check_shapes,
    complete_steps,
    restore_like,
)
from synth2_jax.training.train_state import TrainState


class DataIterator(Protocol):
    """Batches of this process's rows, as numpy; its position can be saved.

    One that has `last_keys: list[str]`, the examples of the last batch, gets them named in errors.
    """

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> bytes: ...

    def set_state(self, state: bytes) -> None: ...

    def restart(self, state: bytes, step: int) -> str:
        """Goes on from step `step` after a change of the number of processes.

        `state` is one of those saved. Returns what holds of the order of the data, for the user.
        """
        ...


class BytesHandler(ocp.CheckpointHandler):
    """Saves one bytes object a process. (Orbax's JSON and array handlers save one for all.)"""

    def save(self, directory: os.PathLike[str], args: "BytesSave") -> None:
        (pathlib.Path(directory) / _process_file()).write_bytes(args.item)

    def restore(self, directory: os.PathLike[str], args: "BytesRestore") -> tuple[bytes, int]:
        """(this process's bytes, how many processes saved); the first's, where others saved."""
        del args
        path = pathlib.Path(directory) / _process_file()
        if path.exists():
            return path.read_bytes(), jax.process_count()
        (path,) = path.parent.glob("0-of-*.bin")
        return path.read_bytes(), int(path.stem.split("-")[-1])

    def close(self) -> None:
        pass


@ocp.args.register_with_handler(BytesHandler, for_save=True)
@dataclasses.dataclass
class BytesSave(ocp.args.CheckpointArgs):
    item: bytes


@ocp.args.register_with_handler(BytesHandler, for_restore=True)
@dataclasses.dataclass
class BytesRestore(ocp.args.CheckpointArgs):
    pass


class _FullDiskIsToldOnce(python_logging.Filter):
    """Drops what Orbax's threads log of a full disk, whenever they get to it.

    They write a traceback each, up to the end of the process; `Checkpoints` raises the one line.
    """

    def filter(self, record: python_logging.LogRecord) -> bool:
        told = f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
        return not any(text in told for text in FULL_DISK)


_FULL_DISK_IS_TOLD_ONCE = _FullDiskIsToldOnce()


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` brings back.

    `iterator` is the argument of `set_state`, or of `restart` if others than `num_processes` run.
    """

    state: TrainState
    iterator: bytes
    num_processes: int
    config: dict[str, Any]
    fingerprints: dict[str, str]


class Checkpoints:
    """The checkpoints of one run, as a context manager that waits for the saves.

    Args:
      workdir: of the run.
      keep: the last so many are kept.
      keep_best: and so many of the highest `best_metric`.
      best_metric: one of the metrics given to `save`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep: int = 2,
        keep_best: int = 0,
        best_metric: str = "",
    ):
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        kept = [managers.LatestN(keep)]
        if keep_best:
            kept.append(
                managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )
        for name in ("absl", "asyncio"):
            python_logging.getLogger(name).addFilter(_FULL_DISK_IS_TOLD_ONCE)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._best_metric = best_metric
        self._started: int | None = None  # the step of the newest save

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception_type, *exception_info) -> None:
        if exception_type is None:
            self.close()
        else:  # What failed is on its way up; a save that fails as well must not take its place.
            with contextlib.suppress(Exception):
                self.close()

    def save(
        self,
        state: TrainState,
        iterator: DataIterator,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving; the state may be donated when this returns. A step is saved only once.

        `metrics` are what was measured at this very step, if anything was.

        Raises:
          UserError: the disk is full, now or when an earlier save went on in the background; or
            the metrics lack `best_metric`.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self._best_metric and metrics is not None and self._best_metric not in metrics:
            raise UserError(
                f"train.best_metric: {self._best_metric!r} is not measured; "
                f"{nearest(self._best_metric, metrics)}"
            )
        self.wait()  # one save at a time; an earlier one's failure is told as its own
        with self._saving(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params),
                    train=ocp.args.PyTreeSave(_train_item(state)),
                    iterator=BytesSave(iterator.get_state()),
                    config=ocp.args.JsonSave(dict(config)),
                    fingerprints=ocp.args.JsonSave(dict(fingerprints)),
                ),
                metrics=dict(metrics) if self._best_metric and metrics is not None else None,
                force=True,
            )
            self._started = step

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None when there is none."""
        return self._manager.latest_step()

    def restore(self, layout: TrainState) -> Restored | None:
        """Restores the newest checkpoint that can be read, onto the mesh of `layout`.

        An unreadable one is passed over with a warning, and set aside (renamed) once an older one
        was read, so that its step can be saved again.

        Returns:
          None when there is no checkpoint.

        Raises:
          UserError: none of the checkpoints can be read, or one was saved by a different model.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, error = None, None
            try:
                restored = self._restore_step(step, layout)
            except UserError:
                raise
            except Exception as caught:  # Orbax and TensorStore raise many types on a damaged file.
                error = caught
            if _on_all_processes(restored is not None):
                self._set_aside(unreadable)
                return restored
            logging.warning(
                "%s/%d cannot be read, trying the one before: %s", self.folder, step, error
            )
            unreadable.append(step)
        if unreadable:
            raise UserError(f"{self.folder}: cannot read any of the steps {sorted(unreadable)}")
        return None

    def check_for_errors(self) -> None:
        """Raises what a save in the background has failed with, as `save` does."""
        with self._saving(self._started):
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until every started save is complete, and raises what it failed with."""
        with self._saving(self._started):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and frees the threads."""
        with self._saving(self._started):
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            full = next((text for text in FULL_DISK if text in reason), None)
            good = [saved for saved in complete_steps(self.folder) if saved != step]
            line = (
                f"{self.folder}: step {step} could not be saved: {full or reason:.300}; last good "
                f"checkpoint: {f'step {good[-1]}' if good else 'none'}"
            )
            if full:
                raise UserError(f"{line}; make room and give the same command") from error
            raise RuntimeError(line) from error

    def _restore_step(self, step: int, layout: TrainState) -> Restored:
        train = _train_item(layout)
        check_shapes(self.folder / str(step) / "params", layout.params)
        check_shapes(self.folder / str(step) / "train", train)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=restore_like(layout.params),
                train=restore_like(train),
                iterator=BytesRestore(),
                config=ocp.args.JsonRestore(),
                fingerprints=ocp.args.JsonRestore(),
            ),
        )
        state = layout.replace(params=found.params, **found.train)
        return Restored(state, *found.iterator, found.config, found.fingerprints)

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(self.folder / f"unreadable-{step}")
        if steps:
            _on_all_processes(True)
            self._manager.reload()


def _train_item(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "model_state": state.model_state,
        "rng": state.rng,
    }


def _process_file() -> str:
    return f"{jax.process_index()}-of-{jax.process_count()}.bin"


def _on_all_processes(ok: bool) -> bool:
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.array(ok)).all())
