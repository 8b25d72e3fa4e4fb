"""Starting a new run from the parameters of a checkpoint: the section `config.init`.

Only parameters are taken. The optimizer is fresh, the step is 0, the data starts at its beginning.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax import sharding
from synth2_jax.config import check_patterns
from synth2_jax.errors import UserError, naming
from synth2_jax.fingerprint import by_part, fingerprint, older_forms, with_settings
from synth2_jax.interop.assemble import refuse_misfits
from synth2_jax.interop.recognise import split_prefix
from synth2_jax.layers.lora import is_adapter
from synth2_jax.loading.exported import CONFIG, Exported, is_exported, open_exported, tensor_name
from synth2_jax.loading.run import with_own_vocabulary
from synth2_jax.loading.trained import others_config, others_reader
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.objectives import (
    OBJECTIVES,
    BaseObjective,
    make_objective,
    objective_class,
)
from synth2_jax.training.train_state import (
    FlatParams,
    flatten,
    params_layout,
    place,
    select,
    unflatten,
    with_shardings,
)

_GRID = "image_tokens"  # logical axis of learned positions


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Chooses where the parameters of a new run start.

    A workdir that has checkpoints resumes from these, and reads nothing here. Otherwise the
    parameters come from `from`, by their paths, and the others as without it: a part that
    `config.pretrained` names from there, the rest at random. A parameter that the checkpoint lacks,
    one that the model does not know and one of another shape are errors, unless `include` or
    `exclude` leaves it out. Two things are allowed, with a line in the log: learned positions are
    interpolated where only their number differs, and a whole network that the model does not have
    (a discriminator) is left behind.

    What `config.model`, `data.vocabulary`, `data.prompt` and `data.text_length` leave out is as in
    the checkpoint, but for `model.freeze`.

    Attributes:
      from_: workdir of a run, one step of it (WORKDIR/checkpoints/STEP), a folder of `synth2
        export`, or a third-party tokenizer or language model; "" starts at random. A config file
        writes `"init": {"from": PATH}`.
      include: regular expressions; only parameters in whose path one of them is found are taken.
        None takes all. A pattern that is found in no path is an error.
      exclude: regular expressions, likewise; parameters that are not taken.
    """

    from_: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        check_patterns(self, "include", "exclude")
        for name in ("include", "exclude"):
            if getattr(self, name) and not self.from_:
                raise ValueError(f"{name}: only works with `from`")

    def selects(self, path: str) -> bool:
        """Returns whether a parameter is to be taken from the checkpoint."""
        found = lambda patterns: any(re.search(pattern, path) for pattern in patterns)  # noqa: E731
        return (not self.include or found(self.include)) and not found(self.exclude)

    def check(self, paths: Iterable[str], where: str) -> None:
        """Raises UserError on a pattern that is found in none of the paths."""
        for name in ("include", "exclude"):
            select(getattr(self, name), paths, f"{where}.{name}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint to start from. Its description is read, and no parameter yet.

    Attributes:
      path: as the user gave it, but absolute.
      step: 0 of a third-party checkpoint.
      config: resolved, as far as the checkpoint says: "model" at least.
      built_on: fingerprints of the parts that it was built on.
      shapes: ShapeDtypeStructs of its parameters, by path.
      read: reads parameters: {path: ShapeDtypeStruct of that shape, with its place} -> {path: array
        there}; each device reads its share.
      exported: the export, if it is one.
    """

    path: str
    step: int
    config: Mapping[str, Any]
    built_on: Mapping[str, str]
    shapes: FlatParams
    read: Callable[[FlatParams], FlatParams]
    exported: Exported | None = None


@dataclasses.dataclass(frozen=True)
class Start:
    """Holds what a new run takes from a checkpoint, or has taken when it began.

    Attributes:
      params: by path, on the mesh.
      fingerprints: of the pretrained parts among them, by their names in `config.pretrained`.
      origin: the record that the run keeps: {"path", "step", "fingerprints" by network}; {} without
        `init.from`.
    """

    params: FlatParams = dataclasses.field(default_factory=dict)
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_source(path: str, model_name: str, told: Mapping[str, Any] | None = None) -> Source:
    """Opens a checkpoint of a model.

    `told` is the config's section of the network, for what third-party files do not say.

    Raises:
      UserError: nothing there, or another model; a damaged description.
    """
    absolute = path if split_prefix(path)[0] else os.path.abspath(path)
    if reader := others_reader(path, model_name):
        config = others_config(reader, path, model_name, told or {})
        tree = getattr(reader, f"load_{model_name}")(path, config)
        tensors = flatten({model_name: tree})
        section = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return Source(
            absolute, 0, {"model": {model_name: section}}, {}, tensors, _lazily(tensors.__getitem__)
        )
    if is_exported(path):
        exported = open_exported(path)
        config = exported.config()
        _check_model(config["model_name"], model_name)
        shapes = {name.replace(".", "/"): tensor for name, tensor in exported.tensors.items()}
        read = _lazily(lambda path: exported.tensors[tensor_name(path)])
        return Source(absolute, config["step"], config, config["built_on"], shapes, read, exported)
    step = checkpoint_reader.latest_step(path)
    config, built_on = checkpoint_reader.read_description(path, step)
    _check_model(config.get("model_name"), model_name)

    def read_run(wanted: FlatParams) -> FlatParams:
        partial = unflatten(wanted)
        return flatten(checkpoint_reader.restore_params(path, step, partial, partial=True))

    shapes = checkpoint_reader.saved_arrays(path, step)
    return Source(absolute, step, with_own_vocabulary(config, path), built_on, shapes, read_run)


def source_of(config: InitConfig, model_name: str, workdir: str, told: Any = None) -> Source:
    """Opens what a run starts from: its own checkpoints if it has any, else `init.from`.

    Raises:
      UserError: as `open_source`; none of its own checkpoints can be read.
    """
    steps = checkpoint_reader.own_steps(workdir)
    for step in reversed(steps):
        folder = os.path.join(workdir, checkpoint_reader.FOLDER, str(step))
        try:
            with naming("--workdir", folder):
                return open_source(folder, model_name)
        except UserError:  # damaged: the training says so, and takes the one before
            if step == steps[0]:
                raise
    with naming("--config.init.from", config.from_):
        return open_source(config.from_, model_name, told)


def start(
    config: InitConfig,
    model_name: str,
    model: Any,
    objective: BaseObjective,
    given: Set[str],
    workdir: str,
    mesh: Mesh,
    rules: sharding.AxisRules,
) -> Start:
    """Reads the parameters that a run starts from; a run that resumes reads its record alone.

    It keeps that record also where it resumes without `init.from`.

    Args:
      config: the section `init`.
      model_name: of the run.
      model: the section `model`, for what third-party files do not say.
      objective: the model that is trained.
      given: pretrained parts that `config.pretrained` names: these may be missing.
      workdir: of the run.
      mesh: where the parameters go.
      rules: of the mesh.

    Raises:
      UserError: as `InitConfig` says, all that does not fit in one line; a changed export.
    """
    saved, built_on = _own_description(workdir)
    origin = saved.get("started_from", {})
    if saved and (origin or config.from_):
        kept = {name: found for name, found in built_on.items() if name not in given}
        return Start({}, kept, origin)
    if not config.from_:
        return Start()
    told = model.get(model_name) if isinstance(model, Mapping) else None
    source = source_of(config, model_name, workdir, told)
    layout = with_shardings(objective.boxed_shapes, mesh, rules)
    axes = {path: (*box.names, None)[0] for path, box in objective.boxed_shapes.items()}
    optional = [objective.parts[name].path for name in given]
    with naming("--config.init.from", config.from_):
        wanted, resized = _wanted(config, source, layout, axes, optional)
        params = source.read({path: leaf for path, leaf in wanted.items() if path not in resized})
        if source.exported:
            _check_unchanged(source.exported, params, model_name)
    params |= _resize(source, {path: wanted[path] for path in resized}, mesh)
    task = objective.task
    networks = by_part(sorted(params.items()), getattr(task, "tokenizer", None))
    origin = {"path": source.path, "step": source.step, "fingerprints": networks}
    logging.info("%d parameters start as in %s, step %d", len(params), source.path, source.step)
    return Start(params, _parts(params, objective, layout), origin)


def _own_description(workdir: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (config, built_on) of the newest of its own checkpoints, both {} of a new run."""
    for step in reversed(checkpoint_reader.own_steps(workdir)):
        with contextlib.suppress(UserError):  # damaged: as in `source_of`
            return checkpoint_reader.read_description(workdir, step)
    return {}, {}


def _lazily(tensor: Callable[[str], Any]) -> Callable[[FlatParams], FlatParams]:
    return lambda wanted: {path: place(tensor(path), leaf) for path, leaf in wanted.items()}


def _check_model(found: str, expected: str) -> None:
    """Raises UserError unless the model is the same, or a class of the user's built on it."""
    is_derived = found in OBJECTIVES and issubclass(objective_class(expected), OBJECTIVES[found])
    # A file of the user's may be in another folder than when the checkpoint was saved.
    if not is_derived and os.path.basename(str(found)) != os.path.basename(expected):
        raise UserError(f"holds a {found}, expected a {expected}")


def _wanted(
    config: InitConfig,
    source: Source,
    layout: FlatParams,
    axes: Mapping[str, str | None],
    optional: Iterable[str],
) -> tuple[FlatParams, set[str]]:
    """Returns the layout of the parameters to read, and the paths of resized ones.

    `axes` has the logical name of each parameter's first axis; `optional` are parts that may be
    missing.
    """
    config.check(layout.keys() | source.shapes.keys(), "--config.init")
    networks = {path.split("/")[0] for path in layout}
    others = {path.split("/")[0] for path in source.shapes if config.selects(path)} - networks
    for network in sorted(others):
        logging.warning("%s: %s is left behind: this model has none", source.path, network)
    selected = {path: leaf for path, leaf in layout.items() if config.selects(path)}
    unknown = [
        path
        for path in sorted(source.shapes.keys() - layout.keys())
        if config.selects(path) and path.split("/")[0] in networks
    ]
    missing, misshapen, resized, wanted = [], {}, set(), {}
    for path, leaf in selected.items():
        held = source.shapes.get(path)
        if held is None:
            # New adapters change nothing until they are trained.
            if not is_adapter(path) and not any(path.startswith(f"{p}/") for p in optional):
                missing.append(path)
        elif held.shape == leaf.shape:
            wanted[path] = leaf
        elif _differs_in_number(held.shape, leaf.shape, axes[path]):
            wanted[path] = leaf
            resized.add(path)
        else:
            misshapen[path] = f"{path} {list(held.shape)}, the model has {list(leaf.shape)}"
    advice = ". --config.init.exclude='PATTERN' starts parameters at random or leaves them behind"
    if any(map(is_adapter, (*unknown, *misshapen))):
        advice = (
            f". Merge its adapters: synth2 export {config.from_} --output=MERGED, then start with "
            "--config.init.from=MERGED. --config.init.exclude='_lora_' drops what they learned"
        )
    refuse_misfits(
        "its parameters do not fit --config.model",
        {"missing": missing, "unknown": unknown, "misshapen": misshapen.values()},
        advice,
    )
    if not wanted and selected and all(map(is_adapter, selected)):
        raise UserError(
            "--config.init.include: selects LoRA adapters alone, and it holds none (an export has "
            "them merged). Leave include out to start new ones."
        )
    if not wanted:
        raise UserError("--config.init: leaves no parameter to take. Change include or exclude")
    return wanted, resized


def _differs_in_number(held: tuple[int, ...], own: tuple[int, ...], axis: str | None) -> bool:
    """Returns whether two arrays are learned positions that `interpolated` can make alike."""
    is_square = all(math.isqrt(shape[0]) ** 2 == shape[0] for shape in (held, own) if shape)
    return axis == _GRID and is_square and len(held) == len(own) == 2 and held[1:] == own[1:]


def interpolated(positions_ND: np.ndarray, number: int) -> np.ndarray:
    """Returns learned positions of image tokens for another number of places, f32[number, D].

    They are a square grid, row by row, interpolated bilinearly. The centers of the first and the
    last place of the smaller grid are half a place from its edge, as a picture's pixels are when it
    is resized.
    """
    old, new = (math.isqrt(count) for count in (positions_ND.shape[0], number))
    grid = np.asarray(positions_ND, np.float32).reshape(old, old, -1)
    made = jax.image.resize(grid, (new, new, grid.shape[-1]), "linear")
    return np.asarray(made).reshape(number, -1)


def _resize(source: Source, own: FlatParams, mesh: Mesh) -> FlatParams:
    """Reads positions whole, for they are small, and puts them on the mesh in their new number."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = {
        path: jax.ShapeDtypeStruct(source.shapes[path].shape, leaf.dtype, sharding=everywhere)
        for path, leaf in own.items()
    }
    made = {}
    for path, held in (source.read(whole) if whole else {}).items():
        logging.warning(
            "%s: %s: interpolated from %d to %d positions",
            *(source.path, path, held.shape[0], own[path].shape[0]),
        )
        made[path] = place(interpolated(np.asarray(held), own[path].shape[0]), own[path])
    return made


def _check_unchanged(exported: Exported, params: FlatParams, model_name: str) -> None:
    """Compares each network that was read whole with the fingerprint that the export holds.

    That is of the dtypes of the export's own model: arrays of another are read again, in these.
    """
    found = dict(exported.description["fingerprints"])
    names = {tensor_name(path) for path in params}
    held = exported.description["model_name"]
    # A class of the user's may be in another file than when it was exported.
    name = held if held in OBJECTIVES else model_name
    where = os.path.join(exported.folder, CONFIG)
    own = make_objective(name, exported.description["model"], where)
    layout = flatten(params_layout(own, None))

    def as_exported(path: str, array: Any) -> Any:
        dtype = layout.get(path, array).dtype
        return array if array.dtype == dtype else exported.tensors[tensor_name(path)].astype(dtype)

    arrays = {path: as_exported(path, array) for path, array in params.items()}
    for network, tree in unflatten(arrays).items():
        if {name for name in exported.tensors if name.startswith(f"{network}.")} <= names:
            found[network] = fingerprint(tree)
    exported.check_fingerprints({part: older_forms(str(f))[1] for part, f in found.items()})


def _parts(params: FlatParams, objective: BaseObjective, layout: FlatParams) -> dict[str, str]:
    """Returns the fingerprints of the parts that are whole in `params`, without their adapters."""
    found = {}
    for name, part in objective.parts.items():
        own = (path for path in layout if path.startswith(f"{part.path}/"))
        inside = {path for path in own if not is_adapter(path)}
        if inside <= params.keys():
            start = len(part.path) + 1
            digest = fingerprint(unflatten({path[start:]: params[path] for path in inside}))
            found[name] = with_settings(name, digest, part.config)
    return found
