"""Checkpoints of a run: one Orbax step folder holds all that it needs to go on.

The top of checkpoint_reader.py, which reads such a folder for others, lists what is in it.
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
from synth2_jax.files import FULL_DISK, sync_folder
from synth2_jax.sharding import ALL_ROWS, DataLayout
from synth2_jax.training import checkpoint_reader as reader
from synth2_jax.training import checksums
from synth2_jax.training.metrics import Sums
from synth2_jax.training.train_state import TrainState, start_average

_READ_BACK_BYTES = 2**30  # of arrays that are read back at a time, and at most one array more


class DataIterator(Protocol):
    """Batches of this process's rows (`sharding.DataLayout`), as numpy; it saves its position.

    It may have `last_keys: list[str]`, the examples of the last batch, to be named in errors, and
    `totals: dict[str, int]`, what it has given until now, to be logged.
    """

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> bytes: ...

    def set_state(self, state: bytes) -> None:
        """Goes on where `state` was saved.

        It raises UserError for a position of other data, any other type for a damaged one.
        """
        ...

    def restart(self, state: bytes, step: int) -> str:
        """Goes on from step `step` after a change of the number of data shards.

        `state` is one of those saved. Returns what holds of the order of the data, for the user.
        """
        ...


class BytesHandler(ocp.CheckpointHandler):
    """Saves one bytes object a data shard. (Orbax's JSON and array handlers save one for all.)"""

    def save(self, directory: os.PathLike[str], args: "ShardBytes") -> None:
        if args.layout.is_first:
            args.file(directory).write_bytes(args.item)

    def restore(self, directory: os.PathLike[str], args: "ShardBytes") -> tuple[bytes, int]:
        """Returns this shard's bytes (shard 0's, if their number changed), and their number."""
        path = args.file(directory)
        if not path.exists():
            (path,) = path.parent.glob("0-of-*.bin")
        return path.read_bytes(), int(path.stem.split("-")[-1])


@ocp.args.register_with_handler(BytesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class ShardBytes(ocp.args.CheckpointArgs):
    """The bytes of one data shard; `item` is what is saved."""

    layout: DataLayout
    item: bytes = b""

    def file(self, directory: os.PathLike[str]) -> pathlib.Path:
        return pathlib.Path(directory) / f"{self.layout.shard}-of-{self.layout.num_shards}.bin"


@functools.cache
def _report_failed_saves_once() -> None:
    """Silences what libraries print in the background of a save that fails; we raise its error.

    Orbax's threads log a full disk with a traceback each, up to the end of the process. After the
    first failed write Orbax closes its event loop; each further one that TensorStore reports there
    is then a traceback of its own.
    """

    def is_news(record: python_logging.LogRecord) -> bool:
        text = f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
        return not any(full in text for full in FULL_DISK)

    for name in ("absl", "asyncio"):
        python_logging.getLogger(name).addFilter(is_news)
    print_error = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            print_error(unraisable)

    sys.unraisablehook = hook


@dataclasses.dataclass(frozen=True)
class Restored:
    """The result of `Checkpoints.restore`.

    `iterator` is the argument of `set_state`, or of `restart` if the data has another number of
    shards now. `sums` is {} in a checkpoint of an older version. `had_average` says whether the
    checkpoint holds a moving average; if the layout has one and it does not, a new one begins.
    """

    state: TrainState
    iterator: bytes
    num_shards: int
    config: dict[str, Any]
    built_on: dict[str, str]
    sums: dict[str, list[float]]
    had_average: bool


class Checkpoints:
    """The checkpoints of one run, as a context manager that waits for the saves.

    The newest `keep` are kept, and the `keep_best` with the highest `best_metric` in `save`.

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
        self.folder = pathlib.Path(workdir).absolute() / reader.FOLDER
        if glob.escape(str(self.folder)) != str(self.folder):
            raise UserError(
                f"--workdir={workdir}: found '*', '?' or '[' in {str(self.folder.parent)!r}, which "
                "the checkpoint library takes for patterns. Train in a folder without them."
            )
        best = managers.BestN(
            get_metric_fn=lambda metrics: metrics[best_metric],
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept = [managers.LatestN(keep), *([best] if keep_best else [])]
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

        The first save is waited for and read back: what cannot work comes to light here. `metrics`
        were measured at this very step; `sums` are those of the metrics since the last step that
        was logged, so that a resumed run logs the same mean.

        Raises:
          UserError: the disk is full, now or when an earlier save went on in the background; or
            the metrics lack `best_metric`.
          RuntimeError: the save failed, or it does not read back as it was.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if not self._best_metric:
            metrics = None
        if metrics is not None and self._best_metric not in metrics:
            raise UserError(
                f"--config.train.best_metric: {self._best_metric!r} is not measured; "
                f"{nearest(self._best_metric, metrics)}"
            )
        self.wait()  # one save at a time; an earlier one's failure is told as its own
        is_first, self._started = self._started is None, step
        with self._saving(step):
            items = ocp.args.Composite(
                **{name: ocp.args.PyTreeSave(tree) for name, tree in _trees(state).items()},
                iterator=ShardBytes(self.data_layout, iterator.get_state()),
                config=ocp.args.JsonSave(dict(config)),
                fingerprints=ocp.args.JsonSave(dict(built_on)),
                sums=ocp.args.JsonSave(dict(sums or {})),
            )
            self._manager.save(step, args=items, metrics=metrics and dict(metrics), force=True)
        if is_first:
            self.read_back(state)

    def read_back(self, state: TrainState) -> None:
        """Waits for the save of this very state, and compares what is on the disk with it.

        Raises:
          RuntimeError: they differ, or it cannot be read.
        """
        self.wait()
        step = int(state.step)
        sync_folder(self.folder)  # the step's name
        with self._saving(step):
            for group in _groups(_trees(state)):
                args = {name: reader.restore_like(item) for name, item in group.items()}
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
        """Restores the newest checkpoint that can be read onto the mesh of `layout`; None if none.

        A damaged one is passed over with a warning, and set aside (renamed) once an older one was
        read, so that its step can be saved again. `accept` goes on from what was restored; if it
        raises anything but UserError, the checkpoint is damaged.

        Raises:
          UserError: none of the checkpoints can be read, or one was saved by a different model.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, error = None, "another process cannot read it"
            try:
                checksums.check(self.folder / str(step), shared=True)
                restored = self._restore_step(step, layout)
                accept(restored)
            except UserError:
                raise
            except Exception as caught:  # Orbax and TensorStore raise many types on a damaged file.
                restored, error = None, " ".join(f"{caught}".split()) or type(caught).__name__
            if checksums.on_all_processes(restored is not None):
                if unreadable:
                    self._set_aside(unreadable)
                    self._manager.reload()
                return restored
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
            good = [saved for saved in reader.complete_steps(self.folder) if saved != step]
            line = (
                f"{self.folder}: step {step} could not be saved: {(full or reason)[:300]}; "
                f"last good checkpoint: {f'step {good[-1]}' if good else 'none'}"
            )
            if full:
                raise UserError(f"{line}; make room and give the same command") from error
            raise RuntimeError(line) from error

    def _restore_step(self, step: int, layout: TrainState) -> Restored:
        folder, trees = self.folder / str(step), _trees(layout)
        has_average = (folder / reader.AVERAGE).is_dir()
        if not has_average:
            trees.pop(reader.AVERAGE, None)
        trees["train"] = reader.in_saved_places(folder / "train", trees["train"])
        reader.check_shapes(folder, trees)
        items = {name: reader.restore_like(tree) for name, tree in trees.items()}
        names = ("config", "fingerprints", *["sums"] * (folder / "sums").is_dir())  # older: none
        items |= {name: ocp.args.JsonRestore() for name in names}
        items |= {"iterator": ShardBytes(self.data_layout)}
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        average = found.get(reader.AVERAGE) or start_average(found.params, layout)
        own, leaves = jax.tree.structure(_trees(layout)["train"]), jax.tree.leaves(found.train)
        state = layout.replace(params=found.params, average=average, **own.unflatten(leaves))
        rest = (found.config, found.fingerprints, found.get("sums") or {}, has_average)
        return Restored(state, *found.iterator, *rest)

    def _write_checksums(self) -> None:
        """Orbax calls this on the first process, in its background thread."""
        (folder,) = self.folder.glob(f"{self._started}.*")  # the temporary name
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
        for step in reader.complete_steps(self.folder):
            try:
                metadata(self.folder / str(step))
            except Exception as caught:
                logging.warning("%s/%d cannot be read: %.300s", self.folder, step, caught)
                damaged.append(step)
        if not damaged:
            raise error or RuntimeError(f"{self.folder}: another process cannot open it")
        self._set_aside(damaged)
        return ocp.CheckpointManager(self.folder, options=options)

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps if jax.process_index() == 0 else ():
            endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
            names = (self.folder / f"unreadable-{step}{ending}" for ending in endings)
            (self.folder / str(step)).rename(next(name for name in names if not name.exists()))
        checksums.on_all_processes(True)


def _trees(state: TrainState) -> dict[str, Any]:
    """Returns the state, or its layout, by the items that hold it."""
    rest = {name: getattr(state, name) for name in ("step", "opt_state", "model_state", "rng")}
    items = {reader.PARAMS: state.params, "train": rest, reader.AVERAGE: state.average}
    return {name: tree for name, tree in items.items() if tree}


def _groups(tree: Any) -> Iterator[Any]:
    """Yields the tree with some of its arrays at a time, which do not need much memory at once."""
    leaves, structure = jax.tree.flatten(tree)
    groups = np.cumsum([0] + [leaf.nbytes for leaf in leaves])[:-1] // _READ_BACK_BYTES
    for group in sorted({*groups}):
        chosen = (
            leaf if own == group else ocp.PLACEHOLDER
            for leaf, own in zip(leaves, groups, strict=True)
        )
        yield jax.tree.unflatten(structure, chosen)


def _equal_on_this_process(left: Any, right: Any) -> bool:
    """Returns whether all bits of two arrays are equal, as far as this process holds them."""

    def bits(shard: jax.Shard) -> np.ndarray:
        return np.ascontiguousarray(shard.data).reshape(-1).view(np.uint8)

    if left is ocp.PLACEHOLDER:
        return True
    parts = zip(left.addressable_shards, right.addressable_shards, strict=True)
    return all(np.array_equal(bits(a), bits(b)) for a, b in parts if a.replica_id == 0)
