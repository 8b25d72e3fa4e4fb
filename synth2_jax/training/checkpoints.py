"""Checkpoints of a run: one Orbax step folder holds all that it needs to go on.

What lies in such a folder stands at the top of checkpoint_reader.py, which reads it for others.
"""

import contextlib
import dataclasses
import functools
import glob
import itertools
import logging as python_logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as managers

from synth2_jax.errors import UserError, nearest
from synth2_jax.files import FULL_DISK
from synth2_jax.sharding import ALL_ROWS, DataLayout
from synth2_jax.training import checksums
from synth2_jax.training.checkpoint_reader import (
    FOLDER,
    check_shapes,
    complete_steps,
    restore_like,
)
from synth2_jax.training.metrics import Sums
from synth2_jax.training.train_state import TrainState


class DataIterator(Protocol):
    """Batches of this process's rows (`sharding.DataLayout`), as numpy; it saves its position.

    One that has `last_keys: list[str]`, the examples of the last batch, gets them named in errors.
    """

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> bytes: ...

    def set_state(self, state: bytes) -> None:
        """Goes on where `state` was saved.

        Raises:
          UserError: it is a position of other data.
          Exception: of any other type; the position is damaged.
        """
        ...

    def restart(self, state: bytes, step: int) -> str:
        """Goes on from step `step` after a change of the number of data shards.

        `state` is one of those saved. Returns what holds of the order of the data, for the user.
        """
        ...


class BytesHandler(ocp.CheckpointHandler):
    """Saves one bytes object a data shard. (Orbax's JSON and array handlers save one for all.)"""

    def save(self, directory: os.PathLike[str], args: "BytesSave") -> None:
        if args.layout.is_first:
            (pathlib.Path(directory) / _shard_file(args.layout)).write_bytes(args.item)

    def restore(self, directory: os.PathLike[str], args: "BytesRestore") -> tuple[bytes, int]:
        """Returns this shard's bytes (shard 0's, if their number changed), and their number."""
        path = pathlib.Path(directory) / _shard_file(args.layout)
        if path.exists():
            return path.read_bytes(), args.layout.num_shards
        (path,) = path.parent.glob("0-of-*.bin")
        return path.read_bytes(), int(path.stem.split("-")[-1])

    def close(self) -> None:
        pass


@ocp.args.register_with_handler(BytesHandler, for_save=True)
@dataclasses.dataclass
class BytesSave(ocp.args.CheckpointArgs):
    item: bytes
    layout: DataLayout


@ocp.args.register_with_handler(BytesHandler, for_restore=True)
@dataclasses.dataclass
class BytesRestore(ocp.args.CheckpointArgs):
    layout: DataLayout


class _FullDiskIsToldOnce(python_logging.Filter):
    """Drops what Orbax's threads log of a full disk, whenever they get to it.

    They write a traceback each, up to the end of the process; `Checkpoints` raises the one line.
    """

    def filter(self, record: python_logging.LogRecord) -> bool:
        told = f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
        return not any(text in told for text in FULL_DISK)


@functools.cache
def _report_failed_saves_once() -> None:
    """Silences what libraries print in the background of a save that fails; we raise its error.

    After the first failed write Orbax closes its event loop; each further one that TensorStore
    reports there is then a traceback of its own.
    """
    for name in ("absl", "asyncio"):
        python_logging.getLogger(name).addFilter(_FullDiskIsToldOnce())
    print_error = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            print_error(unraisable)

    sys.unraisablehook = hook


_READ_BACK_BYTES = 2**30  # of arrays that are read back at a time


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` brings back.

    `iterator` is the argument of `set_state`, or of `restart` if the data has another number of
    shards now.
    `sums` is {} in a checkpoint of an older version.
    """

    state: TrainState
    iterator: bytes
    num_shards: int
    config: dict[str, Any]
    built_on: dict[str, str]
    sums: dict[str, list[float]]


class Checkpoints:
    """The checkpoints of one run, as a context manager that waits for the saves.

    Args:
      workdir: of the run.
      keep: the last so many are kept.
      keep_best: and so many of the highest `best_metric`.
      best_metric: one of the metrics given to `save`.
      data_layout: whose position of the data is saved and restored.

    Raises:
      UserError: Orbax cannot read what it writes to a folder of this name.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep: int = 2,
        keep_best: int = 0,
        best_metric: str = "",
        data_layout: DataLayout = ALL_ROWS,
    ):
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        if glob.escape(str(self.folder)) != str(self.folder):
            raise UserError(
                f"--workdir={workdir}: found '*', '?' or '[' in {str(self.folder.parent)!r}, which "
                "the checkpoint library takes for patterns. Train in a folder without them."
            )
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
            preservation_policy=managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            # Called when all items are written, before the step gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        _report_failed_saves_once()
        self._manager = self._open(options)
        self._best_metric = best_metric
        self.data_layout = data_layout
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
        built_on: Mapping[str, str],
        metrics: Mapping[str, float] | None = None,
        sums: Sums | None = None,
    ) -> None:
        """Starts saving; the state may be donated when this returns. A step is saved only once.

        The first save is waited for and read back: what cannot work comes to light here.

        `metrics` are what was measured at this very step, if anything was; `sums` those of the
        metrics since the last step that was logged, so that a run that goes on logs the same mean.

        Raises:
          UserError: the disk is full, now or when an earlier save went on in the background; or
            the metrics lack `best_metric`.
          RuntimeError: the save failed, or it does not read back as it was.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self._best_metric and metrics is not None and self._best_metric not in metrics:
            raise UserError(
                f"--config.train.best_metric: {self._best_metric!r} is not measured; "
                f"{nearest(self._best_metric, metrics)}"
            )
        self.wait()  # one save at a time; an earlier one's failure is told as its own
        is_first, self._started = self._started is None, step
        with self._saving(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params),
                    train=ocp.args.PyTreeSave(_train_item(state)),
                    iterator=BytesSave(iterator.get_state(), self.data_layout),
                    config=ocp.args.JsonSave(dict(config)),
                    fingerprints=ocp.args.JsonSave(dict(built_on)),
                    sums=ocp.args.JsonSave(dict(sums or {})),
                ),
                metrics=dict(metrics) if self._best_metric and metrics is not None else None,
                force=True,
            )
        if is_first:
            self.read_back(state)

    def read_back(self, state: TrainState) -> None:
        """Waits for the save of this very state, and compares what is on the disk with it.

        Raises:
          RuntimeError: they differ, or it cannot be read.
        """
        self.wait()
        step = int(state.step)
        checksums.sync_folder(self.folder)  # the step's name
        saved = {"params": state.params, "train": _train_item(state)}
        with self._saving(step):
            for group in _groups(saved):
                args = {name: restore_like(item) for name, item in group.items()}
                found = self._manager.restore(step, args=ocp.args.Composite(**args))
                same = jax.tree.map(_equal_on_this_process, group, dict(found.items()))
                for path, is_same in jax.tree_util.tree_leaves_with_path(same):
                    if not is_same:
                        raise ValueError(f"{jax.tree_util.keystr(path)} reads back changed")

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None when there is none."""
        return self._manager.latest_step()

    def restore(
        self, layout: TrainState, accept: Callable[[Restored], None] = lambda restored: None
    ) -> Restored | None:
        """Restores the newest checkpoint that can be read, onto the mesh of `layout`.

        A damaged one is passed over with a warning, and set aside (renamed) once an older one was
        read, so that its step can be saved again.

        Args:
          layout: the state that is expected.
          accept: called with what was restored, to go on from it; if it raises anything but
            UserError, the checkpoint is damaged.

        Returns:
          None when there is no checkpoint.

        Raises:
          UserError: none of the checkpoints can be read, or one was saved by a different model.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, error = None, None
            try:
                checksums.check(self.folder / str(step), shared=True)
                restored = self._restore_step(step, layout)
                accept(restored)
            except UserError:
                raise
            except Exception as caught:  # Orbax and TensorStore raise many types on a damaged file.
                restored, error = None, " ".join(f"{caught}".split()) or type(caught).__name__
            if checksums.on_all_processes(restored is not None):
                self._set_aside(unreadable)
                return restored
            error = error or "another process cannot read it"
            logging.warning(
                "%s/%d cannot be read, trying the one before: %.300s", self.folder, step, error
            )
            unreadable.append(step)
        if unreadable:
            raise UserError(
                f"{self.folder}: cannot read any of the steps {sorted(unreadable)} ({error:.300}). "
                "Train in another workdir, or move this folder away."
            )
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
            if isinstance(error, UserError):  # it says itself what is full, such as TMPDIR
                full = str(error)
            good = [saved for saved in complete_steps(self.folder) if saved != step]
            line = (
                f"{self.folder}: step {step} could not be saved: {(full or reason)[:300]}; "
                f"last good checkpoint: {f'step {good[-1]}' if good else 'none'}"
            )
            if full:
                raise UserError(f"{line}; make room and give the same command") from error
            raise RuntimeError(line) from error

    def _restore_step(self, step: int, layout: TrainState) -> Restored:
        train = _train_item(layout)
        check_shapes(self.folder / str(step) / "params", layout.params)
        check_shapes(self.folder / str(step) / "train", train)
        items = {
            "params": restore_like(layout.params),
            "train": restore_like(train),
            "iterator": BytesRestore(self.data_layout),
            "config": ocp.args.JsonRestore(),
            "fingerprints": ocp.args.JsonRestore(),
        }
        if (self.folder / str(step) / "sums").is_dir():  # an older version saved none
            items["sums"] = ocp.args.JsonRestore()
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = layout.replace(params=found.params, **found.train)
        return Restored(
            state, *found.iterator, found.config, found.fingerprints, found.get("sums") or {}
        )

    def _write_checksums(self) -> None:
        """Orbax calls this on the first process, in its background thread."""
        prefix = f"{self._started}."  # of the temporary name
        (folder,) = (path for path in self.folder.iterdir() if path.name.startswith(prefix))
        checksums.write(folder)

    def _open(self, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
        """Returns Orbax's manager; steps whose metadata it cannot read are set aside."""
        manager, error = None, None
        try:
            manager = ocp.CheckpointManager(self.folder, options=options)
        except Exception as caught:  # of many types, from any step's file
            error = caught
        if checksums.on_all_processes(manager is not None):
            return manager
        metadata = ocp.Checkpointer(ocp.CompositeCheckpointHandler()).metadata
        damaged = []
        for step in complete_steps(self.folder):
            try:
                metadata(self.folder / str(step))
            except Exception as caught:
                logging.warning("%s/%d cannot be read: %.300s", self.folder, step, caught)
                damaged.append(step)
        if not damaged:
            raise error or RuntimeError(f"{self.folder}: another process cannot open it")
        self._rename(damaged)
        return ocp.CheckpointManager(self.folder, options=options)

    def _set_aside(self, steps: list[int]) -> None:
        self._rename(steps)
        if steps:
            self._manager.reload()

    def _rename(self, steps: list[int]) -> None:
        for step in steps:
            if jax.process_index() == 0:
                name = f"unreadable-{step}"
                taken = {path.name for path in self.folder.iterdir()}
                free = (f"{name}-{n}" if n > 1 else name for n in itertools.count(1))
                free_name = next(name for name in free if name not in taken)
                (self.folder / str(step)).rename(self.folder / free_name)
        if steps:
            checksums.on_all_processes(True)


def _train_item(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "model_state": state.model_state,
        "rng": state.rng,
    }


def _groups(tree: Any) -> Iterator[Any]:
    """Yields the tree with some of its arrays at a time, which do not need much memory at once."""
    leaves, structure = jax.tree.flatten(tree)
    start = 0
    while start < len(leaves):
        stop, size = start + 1, leaves[start].nbytes
        while stop < len(leaves) and size + leaves[stop].nbytes <= _READ_BACK_BYTES:
            size += leaves[stop].nbytes
            stop += 1
        here = range(start, stop)
        chosen = [leaf if i in here else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
        yield jax.tree.unflatten(structure, chosen)
        start = stop


def _equal_on_this_process(left: Any, right: Any) -> bool:
    """Returns whether all bits of two arrays are equal, as far as this process holds them."""

    def bits(shard: jax.Shard) -> np.ndarray:
        return np.ascontiguousarray(shard.data).reshape(-1).view(np.uint8)

    if left is ocp.PLACEHOLDER:
        return True
    parts = zip(left.addressable_shards, right.addressable_shards, strict=True)
    return all(np.array_equal(bits(a), bits(b)) for a, b in parts if a.replica_id == 0)


def _shard_file(layout: DataLayout) -> str:
    return f"{layout.shard}-of-{layout.num_shards}.bin"
