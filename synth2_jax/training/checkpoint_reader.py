"""Reads a checkpoint on disk without the run that saved it.

WORKDIR/checkpoints/STEP/ has the items
  params        the parameter tree; opens alone, on any number of devices
  train         step, optimizer state, model state, key
  average       the moving average of the trained parameters, of runs with `train.ema_decay`
  iterator      SHARD-of-SHARDS.bin, the position of each data shard (`sharding.DataLayout`)
  config        the resolved config, JSON
  fingerprints  of what the model depends on (`built_on` in the code), JSON
  sums          of the metrics since the last step that was logged, JSON
and checksums.json, of the files of all items (see checksums.py).
A step folder gets its name only when it is complete: a killed save leaves none that looks whole.

A `path` is a workdir, its checkpoints folder or the folder of one step, which is then the only one.
Parameters are read with their moving average where there is one. The path of an item of a step,
STEP/params or STEP/average, asks for the one or the other.
Whatever reads one raises UserError if nothing is there or it cannot be read.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from synth2_jax.errors import ChangedError, DamagedError, UserError
from synth2_jax.training import checksums, train_state
from synth2_jax.training.train_state import Params

FOLDER = "checkpoints"
PARAMS, AVERAGE = "params", "average"
_METADATA_BYTES = 1 << 20  # files with arrays are larger
Path = str | os.PathLike[str]


def saved_steps(path: Path) -> list[int]:
    """Returns the steps there, rising; there is at least one."""
    return _steps(path)[1]


def latest_step(path: Path) -> int:
    """Returns the newest of `saved_steps`."""
    return saved_steps(path)[-1]


def own_steps(workdir: Path) -> list[int]:
    """Returns the steps that a training in this workdir resumes from, rising; [] of a new one."""
    folder = pathlib.Path(workdir, FOLDER)
    return complete_steps(folder) if workdir and folder.is_dir() else []


def run_folder(path: Path) -> pathlib.Path:
    """Returns the workdir of the run whose checkpoints are there."""
    folder, _ = _steps(path)
    return folder.parent if folder.name == FOLDER else folder


def saved_arrays(path: Path, step: int, item: str = PARAMS) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes by path of one item, "params" or "train"; reads no array."""
    with _readable(path, step) as folder:
        # TensorStore reports damaged metadata by tracebacks of its own.
        checksums.check(folder, [item], largest=_METADATA_BYTES)
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in _by_path(_saved_tree(folder / item)).items()
        }


def saved_average(path: Path, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes by path of the moving average; {} without one."""
    has_one = (_step_folder(path, step) / AVERAGE).is_dir()
    return saved_arrays(path, step, AVERAGE) if has_one else {}


def read_arrays(path: Path, step: int, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array) of the parameters named, one at a time."""
    with _readable(path, step) as folder:
        averaged = _averaged(path, folder)
        checksums.check(folder, [PARAMS, *[AVERAGE] * bool(averaged)])
        shapes = saved_arrays(path, step)
        for name in names:
            one = {name: shapes[name]}
            yield name, _restore_some(folder, AVERAGE if name in averaged else PARAMS, one)[name]


def position_files(path: Path, step: int) -> list[str]:
    """Returns the names of the files with the data's positions, one a data shard."""
    return sorted(file.name for file in _step_folder(path, step).glob("iterator/*-of-*.bin"))


def read_description(path: Path, step: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (config, built_on) as saved."""
    items = {name: ocp.args.JsonRestore() for name in ("config", "fingerprints")}
    with _readable(path, step) as folder:
        checksums.check(folder, list(items))
        found = _restore(folder, items)
    return found.config, found.fingerprints


def restore_params(
    path: Path, step: int | None = None, abstract: Params | None = None, *, partial: bool = False
) -> Params:
    """Reads the parameters of a checkpoint and nothing of its optimizer; any device count will do.

    Args:
      path: see the top; where there is a moving average it takes the place of the parameters.
      step: which one; None takes the newest.
      abstract: tree of ShapeDtypeStructs with shardings, to get jax.Arrays placed by it; None gets
        numpy arrays, whole on every process.
      partial: whether `abstract` has only some of the parameters.

    Raises:
      UserError: also if the shapes are not `abstract`'s.
    """
    with _readable(path, step) as folder:
        averaged = _averaged(path, folder)
        checksums.check(folder, [PARAMS, *[AVERAGE] * bool(averaged)], shared=True)
        if abstract is None:
            wanted = saved_arrays(path, int(folder.name))
        else:
            if not partial:
                check_shapes(folder, {PARAMS: abstract})
            wanted = train_state.flatten(abstract)
        found: dict[str, Any] = {}
        for item, names in (
            (PARAMS, wanted.keys() - averaged),
            (AVERAGE, wanted.keys() & averaged),
        ):
            some = {name: wanted[name] for name in sorted(names)}
            found |= _restore_some(folder, item, some) if some else {}
        return train_state.unflatten({name: found[name] for name in wanted})


def is_intact(path: Path, step: int) -> bool:
    """Returns whether the files of a step are as they were written, as far as checksums tell."""
    try:
        checksums.check(_step_folder(path, step))
    except DamagedError:
        return False
    return True


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, rising; [] without any."""
    # Others may name a folder by digits too; a step has parameters.
    entries = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    return sorted(int(entry.name) for entry in entries if (entry / PARAMS).is_dir())


def in_saved_places(item_folder: pathlib.Path, train: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the item "train" with the parts of the optimizer's state where the file has them.

    Parts without arrays, such as clipping and decay, come and go with the settings of the
    optimizer, and the parts after them move. The arrays, and their order, stay the same.
    """
    places = list(_saved_tree(item_folder).get("opt_state") or ())
    full = [number for number, part in enumerate(places) if jax.tree.leaves(part)]
    own = [part for part in train["opt_state"] if jax.tree.leaves(part)]
    if len(full) != len(own):  # of another optimizer
        return dict(train)
    for number, part in zip(full, own, strict=True):
        places[number] = part
    return {**train, "opt_state": tuple(places)}


def check_shapes(step_folder: pathlib.Path, expected: Mapping[str, Any]) -> None:
    """Raises ChangedError unless each saved item has the names and shapes of `expected`."""
    for item, own in expected.items():
        saved, wanted = (
            {name: tuple(leaf.shape) for name, leaf in _by_path(tree).items()}
            for tree in (_saved_tree(step_folder / item), own)
        )
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise ChangedError(
                    f"{step_folder / item}: {path} has shape {saved.get(path, 'missing')}, this "
                    f"run's is {wanted.get(path, 'missing')}"
                )


def restore_like(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restores onto the shardings of `abstract`, whatever they were when saved."""
    return ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )


def _averaged(path: Path, step_folder: pathlib.Path) -> set[str]:
    """Returns the parameters whose moving average is to be read in their place."""
    has_one, asked = (step_folder / AVERAGE).is_dir(), _split_item(path)[1]
    if asked == AVERAGE and not has_one:
        raise UserError(
            f"{path}: found a checkpoint without a moving average, expected one of a run with "
            f"--config.train.ema_decay. Give {step_folder} for the parameters themselves"
        )
    return (
        set(_by_path(_saved_tree(step_folder / AVERAGE))) if has_one and asked != PARAMS else set()
    )


def _restore_some(
    step_folder: pathlib.Path, item: str, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Restores some arrays of an item, by path: to their shardings, or as numpy without any."""
    tree = train_state.unflatten(dict(wanted))
    as_wanted = jax.tree.map(
        lambda leaf: (
            ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
            if leaf.sharding is None
            else ocp.checkpoint_utils.construct_restore_args(leaf)
        ),
        tree,
    )
    args = ocp.args.PyTreeRestore(tree, restore_args=as_wanted, partial_restore=True)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return train_state.flatten(checkpointer.restore(step_folder / item, args=args))


def _split_item(path: Path) -> tuple[pathlib.Path, str]:
    """Returns (STEP, "params") of STEP/params, likewise of STEP/average; else (path, "")."""
    path = pathlib.Path(path).absolute()
    is_item = path.name in (PARAMS, AVERAGE) and path.parent.name.isdecimal()
    return (path.parent, path.name) if is_item else (path, "")


def _restore(step_folder: pathlib.Path, items: dict[str, Any]) -> Any:
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    return checkpointer.restore(step_folder, args=ocp.args.Composite(**items))


def _saved_tree(item_folder: pathlib.Path) -> Any:
    """Returns a saved tree with metadata of shape and dtype as its leaves."""
    return ocp.PyTreeCheckpointHandler().metadata(item_folder).tree


def _by_path(tree: Any) -> dict[str, Any]:
    """Returns leaves by path; a saved named tuple is a dict, but its paths are the same."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _steps(path: Path) -> tuple[pathlib.Path, list[int]]:
    """Returns the folder of the steps and the complete steps in it, rising."""
    path, _ = _split_item(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if path.name.isdecimal() and (path / PARAMS).is_dir():
        return path.parent, [int(path.name)]
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder, expected the workdir of a training run")
    steps = complete_steps(folder)
    if not steps:
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise UserError(f"{folder}: found {found or 'nothing'}, expected checkpoint steps")
    return folder, steps


def _step_folder(path: Path, step: int | None) -> pathlib.Path:
    folder, steps = _steps(path)
    if step not in (None, *steps):
        raise UserError(f"{folder}: found no step {step}, it has {steps}")
    return folder / str(steps[-1] if step is None else step)


@contextlib.contextmanager
def _readable(path: Path, step: int | None) -> Iterator[pathlib.Path]:
    """Gives the folder of a step; whatever is raised inside becomes a UserError that names it."""
    folder = _step_folder(path, step)
    try:
        yield folder
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types on a damaged file.
        reason = " ".join(str(error).split())
        if not isinstance(error, DamagedError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(
            f"{folder}: this checkpoint cannot be read ({reason:.200}). The command that "
            "trained it goes on from the one before."
        ) from error
