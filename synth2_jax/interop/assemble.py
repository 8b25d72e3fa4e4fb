"""Our parameters from tensors of other names and layouts; all that does not fit in one line."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util

from synth2_jax.errors import UserError
from synth2_jax.interop.lazy_array import LazyArray, stack
from synth2_jax.interop.recognise import KINDS, recognise

LISTED = 200  # names of each kind in an error; a checkpoint of another model differs in all

Change = Callable[[LazyArray], LazyArray]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The source of one parameter.

    Attributes:
      names: of the tensor; of several when they are stacked along a new first axis.
      change: of each tensor's layout, up to axes that are split (`LazyArray.reshape`); may raise
        ValueError where the shape is not as expected.
      stacked: whether there is a new first axis.
    """

    names: tuple[str, ...]
    change: Change = lambda tensor: tensor
    stacked: bool = False


def one(name: str, change: Change = lambda tensor: tensor) -> Recipe:
    """A parameter that is one tensor."""
    return Recipe((name,), change)


def by_names(
    expected: Mapping[str, jax.ShapeDtypeStruct],
    names: Mapping[str, str],
    change: Change = lambda tensor: tensor,
) -> dict[str, Recipe]:
    """Recipes for all parameters from a table of names, {our path: their name}.

    All layers of a `layers.stack.Stack`, scanned or not, share a row, such as
    {"encoder/layers_{}/mlp/up/kernel": "block.{}.up"}.
    """
    recipes = {}
    for path, leaf in expected.items():
        key = re.sub(r"/layers(_\d+)?/", "/layers_{}/", path)
        if "/layers/" in path:
            found = tuple(names[key].format(i) for i in range(leaf.shape[0]))
            recipes[path] = Recipe(found, change, stacked=True)
        else:
            layer = re.search(r"/layers_(\d+)/", path)
            recipes[path] = one(names[key].format(layer and layer[1]), change)
    return recipes


def assemble(
    recipes: Mapping[str, Recipe],
    tensors: Mapping[str, LazyArray],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    where: str,
    ignored: Sequence[str] = (),
    kind: str = "",
) -> dict[str, Any]:
    """Returns the parameter tree, of LazyArrays in the parameters' dtypes: nothing is read yet.

    Args:
      recipes: by path of the parameter ("encoder/layers/mlp/up/kernel"), all of `expected`.
      tensors: what the checkpoint holds.
      expected: shapes and dtypes by path of the parameter.
      where: the checkpoint's path.
      ignored: patterns (`re.search`) of names that belong to no parameter and are no mistake.
      kind: key of `recognise.KINDS`; "" if `where` is known to be of the right kind.

    Raises:
      UserError: a checkpoint of another kind; or tensors that are missing, that nothing wants or
        that have other shapes than the config says, all of them in one line.
    """
    if recipes.keys() != expected.keys():
        raise ValueError(
            f"recipes and parameters differ: {sorted(recipes.keys() ^ expected.keys())}"
        )
    used = {name for recipe in recipes.values() for name in recipe.names}
    if kind and not tensors.keys() & used:
        raise UserError(f"{where}: found {recognise(where).description}, expected {KINDS[kind]}")
    extra = [
        name
        for name in tensors.keys() - used
        if not any(re.search(pattern, name) for pattern in ignored)
    ]
    misshapen, params = [], {}
    for path, recipe in recipes.items():
        if not tensors.keys() >= set(recipe.names):
            continue
        wanted = tuple(expected[path].shape)
        layers = []
        for name in recipe.names:
            try:
                # Cast before it is stacked, so that no stack is held in two dtypes.
                tensor = recipe.change(tensors[name]).astype(expected[path].dtype)
                layers.append(tensor.reshape(wanted[1:] if recipe.stacked else wanted))
            except (ValueError, IndexError):
                misshapen.append(f"{name} {list(tensors[name].shape)} for {path} {list(wanted)}")
        if not misshapen:
            params[path] = stack(layers) if recipe.stacked else layers[0]
    found = {"missing": used - tensors.keys(), "unknown": extra, "misshapen": misshapen}
    refuse_misfits(f"{where}: its tensors do not fit the config", found)
    return traverse_util.unflatten_dict(params, sep="/")


def refuse_misfits(problem: str, found: Mapping[str, Iterable[str]], advice: str = "") -> None:
    """Raises UserError if there are any names, {what is wrong with them: names}; it lists them."""
    kinds = [
        f"{len(names)} {kind} ({_listed(names)})"
        for kind, names in ((kind, sorted(names)) for kind, names in found.items())
        if names
    ]
    if kinds:
        raise UserError(f"{problem}: {'; '.join(kinds)}{advice}")


def _listed(names: Sequence[str]) -> str:
    rest = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def check_agrees(config: Any, expected: Mapping[str, Any], where: str) -> None:
    """Raises UserError, which starts with `where`, if fields of `config` differ from `expected`."""
    if differences := [
        f"{name} is {getattr(config, name)!r}, there {value!r}"
        for name, value in expected.items()
        if getattr(config, name) != value
    ]:
        raise UserError(f"{where}: {'; '.join(differences)}")
