"""What is in a checkpoint on disk, told and read without the run that saved it.

WORKDIR/checkpoints/STEP/ has the items
  params        the parameter tree; opens alone, on any number of devices
  train         step, optimizer state, model state, key
  iterator      SHARD-of-SHARDS.bin, the position of each data shard (`sharding.DataLayout`)
  config        the resolved config, JSON
  fingerprints  "built_on" in the code: those of what the run depends on (tokenizer, ...), JSON
  sums          of the metrics since the last step that was logged, JSON
and checksums.json, of the files of all items (see checksums.py).
A step folder gets its name only when it is complete: a killed save leaves none that looks whole.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from synth2_jax.errors import DamagedError, UserError
from synth2_jax.training import checksums, train_state
from synth2_jax.training.train_state import Params

FOLDER = "checkpoints"
_METADATA_BYTES = 1 << 20  # files with arrays are larger


def saved_steps(path: str | os.PathLike[str]) -> list[int]:
    """Returns the steps in a workdir or its checkpoints folder, rising; UserError without any.

    The folder of one step stands for that step alone, here and wherever a path is asked for.
    """
    return _steps(path)[1]


def latest_step(path: str | os.PathLike[str]) -> int:
    """Returns the newest of `saved_steps`."""
    return saved_steps(path)[-1]


def run_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the workdir of the run whose checkpoints are there; UserError as `saved_steps`."""
    folder, _ = _steps(path)
    return folder.parent if folder.name == FOLDER else folder


def saved_arrays(
    path: str | os.PathLike[str], step: int, item: str = "params"
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes by path of one item, "params" or "train"; reads no array.

    Raises:
      UserError: no such checkpoint, or one that cannot be read.
    """
    folder, _ = _steps(path)
    with _readable(folder / str(step)):
        # TensorStore reports damaged metadata by tracebacks of its own.
        checksums.check(folder / str(step), [item], largest=_METADATA_BYTES)
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
    with _readable(folder / str(step)):
        checksums.check(folder / str(step), ["params"])
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
    """Returns the names of the files with the data's positions, one a data shard."""
    folder, _ = _steps(path)
    return sorted(file.name for file in (folder / str(step) / "iterator").glob("*-of-*.bin"))


def read_description(
    path: str | os.PathLike[str], step: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (config, built_on) as saved; UserError as in `restore_params`."""
    folder, _ = _steps(path)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    items = {name: ocp.args.JsonRestore() for name in ("config", "fingerprints")}
    with _readable(folder / str(step)):
        checksums.check(folder / str(step), list(items))
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
      (params, config as saved, built_on as saved).

    Raises:
      UserError: no such checkpoint, one that cannot be read, or shapes other than `abstract`'s.
    """
    folder, steps = _steps(path)
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"{folder}: found no step {step}, it has {steps}")
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    with _readable(folder / str(step)):
        checksums.check(folder / str(step), ["params", "config", "fingerprints"], shared=True)
        if abstract is None:
            saved = _saved_tree(folder / str(step) / "params")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            params_args = ocp.args.PyTreeRestore(item=saved, restore_args=as_numpy)
        else:
            check_shapes(folder / str(step) / "params", abstract)
            params_args = restore_like(abstract)
        found = checkpointer.restore(
            folder / str(step),
            args=ocp.args.Composite(
                params=params_args,
                config=ocp.args.JsonRestore(),
                fingerprints=ocp.args.JsonRestore(),
            ),
        )
    return found.params, found.config, found.fingerprints


def is_intact(path: str | os.PathLike[str], step: int) -> bool:
    """Returns whether the files of a step are as they were written, as far as checksums tell."""
    folder, _ = _steps(path)
    try:
        checksums.check(folder / str(step))
    except DamagedError:
        return False
    return True


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, rising; [] without any."""
    # Others may name a folder by digits too; a step has parameters.
    entries = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    return sorted(int(entry.name) for entry in entries if (entry / "params").is_dir())


def check_shapes(item_folder: pathlib.Path, expected: Any) -> None:
    """Raises UserError unless the saved tree has the names and shapes of `expected`."""
    saved, wanted = _shapes(_saved_tree(item_folder)), _shapes(expected)
    for path in sorted(saved.keys() | wanted.keys()):
        if saved.get(path) != wanted.get(path):
            raise UserError(
                f"{item_folder}: {path} has shape {saved.get(path, 'missing')}, this run's is "
                f"{wanted.get(path, 'missing')}; another config needs another workdir, and so does "
                "a version with another optimizer state"
            )


def restore_like(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restores onto the shardings of `abstract`, whatever they were when saved."""
    return ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )


def _saved_tree(item_folder: pathlib.Path) -> Any:
    """Returns a saved tree with metadata of shape and dtype as its leaves."""
    return ocp.PyTreeCheckpointHandler().metadata(item_folder).tree


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
    steps = complete_steps(folder)
    if not steps:
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise UserError(f"{folder}: found {found or 'nothing'}, expected checkpoint steps")
    return folder, steps


@contextlib.contextmanager
def _readable(step_folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types on a damaged file.
        reason = " ".join(str(error).split())
        if not isinstance(error, DamagedError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(
            f"{step_folder}: this checkpoint cannot be read ({reason:.200}). The command that "
            "trained it goes on from the one before."
        ) from error
