"""Our parameters from tensors of other names and layouts; all that does not fit in one line."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util

from synth2_jax.errors import UserError
from synth2_jax.interop.lazy_array import LazyArray, stack

LISTED = 200  # names of each kind in an error; a checkpoint of another model differs in all


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Where one parameter comes from.

    Attributes:
      names: of the tensor; of several, one a layer, when they are stacked along a new first axis.
      change: of each tensor's layout; may raise ValueError where the shape is not as expected.
      stacked: whether there is a layer axis.
    """

    names: tuple[str, ...]
    change: Callable[[LazyArray], LazyArray] = lambda tensor: tensor
    stacked: bool = False


def one(name: str, change: Callable[[LazyArray], LazyArray] = lambda tensor: tensor) -> Recipe:
    """A parameter that is one tensor."""
    return Recipe((name,), change)


def per_layer(
    path: str, num_layers: int, scanned: bool, recipe: Callable[[int], Mapping[str, Recipe]]
) -> dict[str, Recipe]:
    """Recipes of a `layers.stack.Stack` at `path`, from those of one layer, `recipe(i)`."""
    layers = [recipe(i) for i in range(num_layers)]
    if not scanned:
        return {
            f"{path}/layers_{i}/{name}": found
            for i, layer in enumerate(layers)
            for name, found in layer.items()
        }
    return {
        f"{path}/layers/{name}": Recipe(
            tuple(layer[name].names[0] for layer in layers), layers[0][name].change, stacked=True
        )
        for name in layers[0]
    }


def assemble(
    recipes: Mapping[str, Recipe],
    tensors: Mapping[str, LazyArray],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    where: str,
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the parameter tree, of LazyArrays in the parameters' dtypes: nothing is read yet.

    Args:
      recipes: by path of the parameter ("encoder/layers/mlp/up/kernel"), all of `expected`.
      tensors: what the checkpoint holds.
      expected: shapes and dtypes by path of the parameter.
      where: what to call the checkpoint in an error.
      ignored: patterns (`re.search`) of names that belong to no parameter and are no mistake.

    Raises:
      UserError: tensors that are missing, that nothing wants or that have other shapes than the
        config says, all of them in one line.
    """
    if recipes.keys() != expected.keys():
        raise ValueError(
            f"recipes and parameters differ: {sorted(recipes.keys() ^ expected.keys())}"
        )
    used = {name for recipe in recipes.values() for name in recipe.names}
    missing = sorted(used - tensors.keys())
    extra = sorted(
        name
        for name in tensors.keys() - used
        if not any(re.search(pattern, name) for pattern in ignored)
    )
    misshapen, params = [], {}
    for path, recipe in recipes.items():
        if not tensors.keys() >= set(recipe.names):
            continue
        wanted = tuple(expected[path].shape)
        layers = []
        for name in recipe.names:
            try:
                # Cast before it is stacked, so that no stack is held in two dtypes.
                layers.append(recipe.change(tensors[name]).astype(expected[path].dtype))
                fits = layers[-1].shape == (wanted[1:] if recipe.stacked else wanted)
            except (ValueError, IndexError):
                fits = False
            if not fits:
                misshapen.append(f"{name} {list(tensors[name].shape)} for {path} {list(wanted)}")
        if not misshapen:
            params[path] = stack(layers) if recipe.stacked else layers[0]
    problems = [
        f"{count} {kind} ({_listed(names)})"
        for kind, names in (("missing", missing), ("unknown", extra), ("misshapen", misshapen))
        if (count := len(names))
    ]
    if problems:
        raise UserError(f"{where}: its tensors do not fit the config: {'; '.join(problems)}")
    return traverse_util.unflatten_dict(params, sep="/")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest
