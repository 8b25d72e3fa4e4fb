"""Checkpoints: one Orbax step folder holds all that a run needs to go on, or to be used elsewhere.

WORKDIR/checkpoints/STEP/ has the items
  params        the parameter tree; opens alone, on any number of devices
  train         step, optimizer state, model state, key
  iterator      PROCESS-of-PROCESSES.bin, where each process's data iterator stands
  config        the resolved config, JSON
  fingerprints  of what the run depends on (tokenizer, data, ...), JSON
A step folder gets its name only when it is complete: a killed save leaves none that looks whole.
"""

import contextlib
import dataclasses
import hashlib
import logging as python_logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from synth2_jax.errors import UserError, nearest
from synth2_jax.files import FULL_DISK
from synth2_jax.training import train_state
from synth2_jax.training.train_state import Params, TrainState

FOLDER = "checkpoints"
_PART_BYTES = 2**28


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
            good = [saved for saved in _complete_steps(self.folder) if saved != step]
            line = (
                f"{self.folder}: step {step} could not be saved: {full or reason:.300}; last good "
                f"checkpoint: {f'step {good[-1]}' if good else 'none'}"
            )
            if full:
                raise UserError(f"{line}; make room and give the same command") from error
            raise RuntimeError(line) from error

    def _restore_step(self, step: int, layout: TrainState) -> Restored:
        train = _train_item(layout)
        _check_shapes(self.folder / str(step) / "params", layout.params)
        _check_shapes(self.folder / str(step) / "train", train)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=_restore_like(layout.params),
                train=_restore_like(train),
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


def saved_steps(path: str | os.PathLike[str]) -> list[int]:
    """Returns the steps in a workdir or its checkpoints folder, rising; UserError without any.

    The folder of one step stands for that step alone, here and wherever a path is asked for.
    """
    return _steps(path)[1]


def latest_step(path: str | os.PathLike[str]) -> int:
    """Returns the newest of `saved_steps`."""
    return saved_steps(path)[-1]


def saved_arrays(
    path: str | os.PathLike[str], step: int, item: str = "params"
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes by path of one item, "params" or "train"; reads no array.

    Raises:
      UserError: no such checkpoint, or one that cannot be read.
    """
    folder, _ = _steps(path)
    with _readable(folder / str(step)):
        leaves = jax.tree_util.tree_leaves_with_path(_saved_tree(folder / str(step) / item))
        return {
            jax.tree_util.keystr(where, simple=True, separator="/"): jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype
            )
            for where, leaf in leaves
        }


def read_arrays(
    path: str | os.PathLike[str], step: int, names: Iterable[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array) of the parameters named, one at a time; UserError as `saved_arrays`."""
    folder, _ = _steps(path)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    shapes = saved_arrays(path, step)
    for name in names:
        one = train_state.unflatten({name: shapes[name]})
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), one)
        with _readable(folder / str(step)):
            found = checkpointer.restore(
                folder / str(step) / "params",
                args=ocp.args.PyTreeRestore(item=one, restore_args=as_numpy, partial_restore=True),
            )
        yield name, train_state.flatten(found)[name]


def position_files(path: str | os.PathLike[str], step: int) -> list[str]:
    """Returns the names of the files with the data's positions, one a process that saved."""
    folder, _ = _steps(path)
    return sorted(file.name for file in (folder / str(step) / "iterator").glob("*-of-*.bin"))


def read_description(
    path: str | os.PathLike[str], step: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (config, fingerprints) as saved; UserError as in `restore_params`."""
    folder, _ = _steps(path)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    items = {name: ocp.args.JsonRestore() for name in ("config", "fingerprints")}
    with _readable(folder / str(step)):
        found = checkpointer.restore(folder / str(step), args=ocp.args.Composite(**items))
    return found.config, found.fingerprints


def restore_params(
    path: str | os.PathLike[str], step: int | None = None, abstract: Params | None = None
) -> tuple[Params, dict[str, Any], dict[str, str]]:
    """Reads the parameters of a checkpoint and nothing of its optimizer; any device count will do.

    Args:
      path: the workdir of a training run, its checkpoints folder, or the folder of one step.
      step: which one; None takes the newest.
      abstract: tree of ShapeDtypeStructs with shardings, to get jax.Arrays placed by it; None gets
        numpy arrays, whole on every process.

    Returns:
      (params, config as saved, fingerprints as saved).

    Raises:
      UserError: no such checkpoint, one that cannot be read, or shapes other than `abstract`'s.
    """
    folder, steps = _steps(path)
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"{folder}: found no step {step}, it has {steps}")
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    with _readable(folder / str(step)):
        if abstract is None:
            saved = _saved_tree(folder / str(step) / "params")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            params_args = ocp.args.PyTreeRestore(item=saved, restore_args=as_numpy)
        else:
            _check_shapes(folder / str(step) / "params", abstract)
            params_args = _restore_like(abstract)
        found = checkpointer.restore(
            folder / str(step),
            args=ocp.args.Composite(
                params=params_args,
                config=ocp.args.JsonRestore(),
                fingerprints=ocp.args.JsonRestore(),
            ),
        )
    return found.params, found.config, found.fingerprints


def fingerprint(params: Params) -> str:
    """Returns 16 hex digits of a sha256 over a tree: sorted paths, dtypes, shapes and bytes.

    It does not depend on the mesh. With several processes all must call it.
    """
    return fingerprint_arrays(sorted(train_state.flatten(params).items()))


def fingerprint_arrays(arrays: Iterable[tuple[str, Any]]) -> str:
    """`fingerprint` of (path, array) by rising path, of which one at a time is needed."""
    digest = hashlib.sha256()
    for path, leaf in arrays:
        digest.update(f"{path} {np.dtype(leaf.dtype).name} {np.shape(leaf)}\n".encode())
        for part in _parts(leaf):
            if isinstance(part, jax.Array) and not part.is_fully_addressable:
                part = multihost_utils.process_allgather(part, tiled=True)
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _parts(leaf: Any) -> Iterator[Any]:
    """An array in pieces along its first axis, so that a host need not hold a large one whole."""
    rows = leaf.shape[0] if np.ndim(leaf) else 0
    at_once = max(1, _PART_BYTES * rows // max(1, leaf.nbytes))
    if rows <= at_once:
        yield leaf
    else:
        yield from (leaf[start : start + at_once] for start in range(0, rows, at_once))


def _train_item(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "model_state": state.model_state,
        "rng": state.rng,
    }


def _restore_like(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restores onto the shardings of `abstract`, whatever they were when saved."""
    return ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )


def _saved_tree(item_folder: pathlib.Path) -> Any:
    """Returns a saved tree with metadata of shape and dtype as its leaves."""
    return ocp.PyTreeCheckpointHandler().metadata(item_folder).tree


def _check_shapes(item_folder: pathlib.Path, expected: Any) -> None:
    """Raises UserError unless the saved tree has the names and shapes of `expected`."""
    saved, wanted = _shapes(_saved_tree(item_folder)), _shapes(expected)
    for path in sorted(saved.keys() | wanted.keys()):
        if saved.get(path) != wanted.get(path):
            raise UserError(
                f"{item_folder}: {path} has shape {saved.get(path, 'missing')}, this run's is "
                f"{wanted.get(path, 'missing')}; another config needs another workdir"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns shapes by path; a saved named tuple is a dict, but its paths are the same."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _steps(path: str | os.PathLike[str]) -> tuple[pathlib.Path, list[int]]:
    """Returns the folder of the steps and the complete steps in it, rising."""
    path = pathlib.Path(path).absolute()
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if path.name.isdecimal() and (path / "params").is_dir():
        return path.parent, [int(path.name)]
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder, expected the workdir of a training run")
    steps = _complete_steps(folder)
    if not steps:
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise UserError(f"{folder}: found {found or 'nothing'}, expected checkpoint steps")
    return folder, steps


def _complete_steps(folder: pathlib.Path) -> list[int]:
    # Others may name a folder by digits too; a step has parameters.
    entries = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    return sorted(int(entry.name) for entry in entries if (entry / "params").is_dir())


@contextlib.contextmanager
def _readable(step_folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types on a damaged file.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{step_folder}: this checkpoint cannot be read: {type(error).__name__}: {reason:.200}"
        ) from error


def _process_file() -> str:
    return f"{jax.process_index()}-of-{jax.process_count()}.bin"


def _on_all_processes(ok: bool) -> bool:
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.array(ok)).all())
