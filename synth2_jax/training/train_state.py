"""The training state: its layout on a mesh, its creation, and which parameters are trained.

Parameters are a nested dict; wherever some of them are chosen they are a flat one, keyed by their
"/"-joined path ("language_model/layers/mlp/kernel"), which is what the patterns of configs match.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.errors import UserError, nearest
from synth2_jax.layers.lora import is_adapter
from synth2_jax.text.vocabulary import Vocabulary

Params = dict[str, Any]
FlatParams = dict[str, Any]


class TrainState(struct.PyTreeNode):
    """All that a step reads and writes."""

    step: jax.Array  # i32[], the number of updates made
    params: Params  # the whole tree, frozen parameters included
    opt_state: optax.OptState  # of the trainable parameters only
    model_state: dict[str, Any]  # what a step changes besides parameters; {} for most models
    rng: jax.Array  # u32[2], data of the key that every step's streams are folded from; constant
    # f32, the moving average of the trainable parameters, a tree of them alone; {} without one.
    average: Params = struct.field(default_factory=dict)

    def averaged_params(self) -> Params:
        """Returns the parameters that a run gives to others: with the average where there is one.

        In the parameters' dtypes; frozen parameters are as they are.
        """
        average = flatten(self.average)
        return unflatten(
            {
                path: average[path].astype(leaf.dtype) if path in average else leaf
                for path, leaf in flatten(self.params).items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model that may be pretrained; training leaves it as it is by default."""

    path: str  # of its parameters in the model's tree, such as "vlm/language_model"
    config: Any  # what the part must be


class Objective(Protocol):
    """A model with its loss, and what both need (see objectives.py)."""

    frozen: Sequence[str]  # patterns of the parameters that are not trained
    batches: str  # whose batches it takes, such as "vlm"
    parts: Mapping[str, Part]  # pretrained parts by their names in `config.pretrained`
    limits: Mapping[str, int]  # what numbers of a batch stay below; "text_tokens" if it reads text

    def is_frozen(self, name: str) -> bool:
        """Returns whether the model has this pretrained part, and training leaves all of it."""

    def check_vocabulary(self, vocabulary: Vocabulary, where: str, given: Set[str]) -> None:
        """Raises UserError where a vocabulary does not fit the model, which is at `where`.

        `given` are the names of the pretrained parts that come from a path.
        """

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Returns boxed variables {"params": ..., **model_state}."""

    def loss(
        self,
        params: Params,
        batch: Mapping[str, jax.Array],
        rngs: Mapping[str, jax.Array],
        step: jax.Array,
        *,
        train: bool,
    ) -> tuple[dict[str, tuple[jax.Array, jax.Array]], dict[str, Any]]:
        """Returns {name: (sum, count)}, where "loss" is minimized, and what was seen.

        The second is what `after_update` needs of these rows; {} for most models.
        """

    def after_update(
        self, params: Params, model_state: dict[str, Any], seen: dict[str, Any], rng: jax.Array
    ) -> tuple[Params, dict[str, Any]]:
        """Returns parameters and model_state as they leave the step; mostly unchanged.

        It is called once a batch: `seen` has a leading axis, the batch's microbatches. The moving
        average of each number that it changes begins again, from what it returns.
        """

    def loaded_state(self, model_state: dict[str, Any], loaded: Set[str]) -> dict[str, Any]:
        """Returns the first model_state of a model whose parameters at some paths are loaded."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays that a batch of `batch_size` rows must hold."""


def flatten(params: Mapping[str, Any]) -> FlatParams:
    """Returns {"a/b/c": leaf} of a nested dict."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(params: FlatParams) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(params, sep="/")


def select(patterns: Iterable[str], names: Iterable[str], where: str) -> set[str]:
    """Returns the names in which any of the regular expressions is found (`re.search`).

    Raises:
      UserError: a pattern is found in none of them: a selector that selects nothing is a typo.
    """
    names = sorted(names)
    selected: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if re.search(pattern, name)}
        if not matches:
            raise UserError(f"{where}: {pattern!r} matches no parameter, such as {names[:5]}")
        selected |= matches
    return selected


def split_params(
    params: Mapping[str, Any], frozen: Sequence[str], where: str = "--config.model.freeze"
) -> tuple[FlatParams, FlatParams]:
    """Returns (trainable, frozen) parameters by path; UserError when nothing is left to train."""
    flat = flatten(params)
    # The adapters of a frozen layer are what is trained of it.
    fixed = select(frozen, [path for path in flat if not is_adapter(path)], where)
    if len(fixed) == len(flat):
        raise UserError(f"{where}: {list(frozen)} leave none of {len(flat)} parameters to train")
    trainable = {path: leaf for path, leaf in flat.items() if path not in fixed}
    return trainable, {path: leaf for path, leaf in flat.items() if path in fixed}


def join_params(trainable: FlatParams, frozen: FlatParams) -> Params:
    """The inverse of `split_params`."""
    return unflatten({**trainable, **frozen})


def state_layout(
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
    *,
    with_average: bool = False,
) -> TrainState:
    """Returns the state as ShapeDtypeStructs that carry their shardings; allocates nothing.

    `with_average` is for a run that keeps the moving average of its parameters.

    Raises:
      ValueError: a parameter without logical axis names, or with an unknown one.
      UserError: a pattern of `objective.frozen` or of the optimizer matches no parameter, or the
        mesh splits too few of the parameters (`sharding.check_split`).
    """

    def boxed_state(key: jax.Array) -> TrainState:
        model_state = dict(objective.init(key))
        params = unflatten(flatten(model_state.pop("params")))
        trainable, _ = split_params(params, objective.frozen)
        opt_state = tx.init(trainable)
        average = _float32_copies(unflatten(trainable)) if with_average else {}
        rng = jax.random.key_data(key)
        return TrainState(jnp.int32(0), params, opt_state, model_state, rng, average)

    boxed = jax.eval_shape(boxed_state, jax.random.key(0))
    _check_places(boxed.params, mesh, rules)
    return with_shardings(boxed, mesh, rules)


def params_layout(
    objective: Objective, mesh: Mesh | None, rules: sharding.AxisRules = sharding.AXIS_RULES
) -> Params:
    """Returns the parameters of `state_layout`, for those who do not train; mesh as in `place`."""
    boxed = jax.eval_shape(lambda key: objective.init(key)["params"], jax.random.key(0))
    if mesh:
        _check_places(boxed, mesh, rules)
    return with_shardings(boxed, mesh, rules)


def _check_places(boxed: Params, mesh: Mesh, rules: sharding.AxisRules) -> None:
    sharding.check_named(boxed)
    sharding.check_split(boxed, mesh, rules)


def create_train_state(
    objective: Objective,
    tx: optax.GradientTransformation,
    layout: TrainState,
    seed: int,
    initial_params: Mapping[str, Params] | None = None,
) -> TrainState:
    """Creates the state at step 0, every array straight in its place on the mesh.

    Args:
      layout: from `state_layout` with the same objective and optimizer.
      seed: of the parameters and of every stream of the training steps.
      initial_params: pretrained parameters, {path prefix: tree}: {"language_model": tree} replaces
        params["language_model"], {"": tree} everything; a whole path has an array. Cast to the
        model's dtypes. Adapters that a tree lacks (`layers.lora`) start as new ones.

    Raises:
      UserError: a pretrained tree differs from the model's in a name or a shape.
    """
    places = shardings(layout)
    loaded = _pretrained(initial_params or {}, flatten(layout.params))
    flat_places = flatten(places.params)
    fresh_places = {path: place for path, place in flat_places.items() if path not in loaded}

    def init(key: jax.Array) -> tuple[FlatParams, dict[str, Any]]:
        variables = dict(nn.unbox(objective.init(key)))
        params = flatten(variables.pop("params"))
        # What is loaded is not returned, so XLA never computes it.
        fresh = {path: params[path] for path in fresh_places}
        return fresh, objective.loaded_state(variables, loaded.keys())

    init_key, step_key = jax.random.split(jax.random.key(seed))
    fresh, model_state = jax.jit(init, out_shardings=(fresh_places, places.model_state))(init_key)
    params = unflatten({**fresh, **loaded})
    trainable, _ = split_params(params, objective.frozen)
    opt_state = jax.jit(tx.init, out_shardings=places.opt_state)(trainable)
    step, rng = jax.device_put(
        (np.int32(0), np.asarray(jax.random.key_data(step_key))), (places.step, places.rng)
    )
    return TrainState(step, params, opt_state, model_state, rng, start_average(params, layout))


def start_average(params: Params, layout: TrainState) -> Params:
    """Returns a moving average that begins at `params`; {} if the layout has none.

    It is float32 whatever the parameters are: bfloat16 has 8 bits, so an average of decay 0.999,
    which moves by a thousandth of the difference, would stand still.
    """
    averaged = flatten(layout.average)
    chosen = {path: leaf for path, leaf in flatten(params).items() if path in averaged}
    return jax.jit(_float32_copies, out_shardings=shardings(layout).average)(unflatten(chosen))


def _float32_copies(tree: Any) -> Any:
    """Copies also what is float32: a step gives away the memory of parameters and average alike."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), tree)


def shardings(layout: TrainState) -> TrainState:
    """Returns the NamedShardings of a layout."""
    return jax.tree.map(lambda leaf: leaf.sharding, layout)


def _pretrained(initial_params: Mapping[str, Params], expected: FlatParams) -> FlatParams:
    """Returns the pretrained parameters by full path, on the mesh, checked against the model's."""
    placed: FlatParams = {}
    for prefix, tree in initial_params.items():
        where = f"initial_params[{prefix!r}]"
        found = flatten({prefix: tree} if prefix else tree)
        inside = lambda path: not prefix or f"{path}/".startswith(f"{prefix}/")  # noqa: E731, B023
        wanted = {path: leaf for path, leaf in expected.items() if inside(path)}
        # What was trained without adapters starts with new ones.
        wanted = {path: wanted[path] for path in wanted if path in found or not is_adapter(path)}
        if not wanted:
            tops = {path.split("/")[0] for path in expected}
            raise UserError(f"{where}: the model has no such part; {nearest(prefix, tops)}")
        for path in sorted(found.keys() - wanted.keys()):
            raise UserError(f"{where}: the model has no {path!r}; {nearest(path, wanted)}")
        for path, leaf in wanted.items():
            if path not in found:
                raise UserError(f"{where}: found no {path!r}, expected shape {leaf.shape}")
            if found[path].shape != leaf.shape:
                raise UserError(
                    f"{where}: {path!r} has shape {found[path].shape}, expected {leaf.shape}"
                )
            placed[path] = place(found[path], leaf)
    return placed


def with_shardings(boxed: Any, mesh: Mesh | None, rules: sharding.AxisRules) -> Any:
    """Returns the ShapeDtypeStructs of a boxed tree, each with its place on the mesh, if any."""
    if mesh is None:
        return nn.unbox(boxed)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.unbox(boxed),
        sharding.state_shardings(boxed, mesh, rules),
    )


def place(value: Any, leaf: jax.ShapeDtypeStruct) -> Any:
    """Puts one array on the mesh; every process gives its own devices their parts.

    Each part of a lazy array (interop's LazyArray) is read once; an array of numpy is copied, since
    its owner may change it. If `leaf` has no sharding (there is no mesh), numpy gets all of it.
    """
    if leaf.sharding is None:
        return np.asarray(value).astype(leaf.dtype, copy=False)
    if isinstance(value, jax.Array):
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)
    parts: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple((one.start, one.stop) for one in index)
        if bounds not in parts:
            copy = isinstance(value, np.ndarray)
            parts[bounds] = value[index].astype(leaf.dtype, copy=copy)
        return parts[bounds]

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
