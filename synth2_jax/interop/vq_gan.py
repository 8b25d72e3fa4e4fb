"""Checks and assembly that the loaders of third-party VQ-GANs share."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble, check_agrees
from synth2_jax.interop.recognise import KINDS, recognise
from synth2_jax.interop.tensor_files import Tensors
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes

# (pattern, replacement) as `re.sub` takes them, applied one after the other.
Renames = Sequence[tuple[str, str | Callable[[re.Match], str]]]


def renamed(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def check_holds(
    ranks: Mapping[str, int], tensors: Tensors, path: str | os.PathLike[str], kind: str
) -> None:
    """Raises UserError, which says what is there instead, unless all tensors are there.

    Args:
      ranks: number of axes by name; no axis may be empty.
      tensors: those of the checkpoint at `path`.
      kind: key of `recognise.KINDS`, the expected one.
    """
    if missing := [name for name in ranks if name not in tensors]:
        raise UserError(
            f"{path}: found {recognise(path).description} without {', '.join(missing)}, "
            f"expected {KINDS[kind]}"
        )
    for name, rank in ranks.items():
        shape = tensors[name].shape
        if len(shape) != rank or 0 in shape:
            raise UserError(
                f"{path}: {name} has shape {list(shape)}, expected {rank} axes, none of them empty"
            )


def assemble_tokenizer(
    recipes: Mapping[str, Recipe],
    tensors: Tensors,
    config: VQTokenizerConfig,
    path: str | os.PathLike[str],
    kind: str,
    fixed: Mapping[str, Any],
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """The parameters of models.vq_tokenizer.VQTokenizer, as LazyArrays; see `assemble`.

    Raises:
      UserError: as `assemble`; or a config with other values than `fixed`, the fields that no
        tensor's shape shows (all that differ are listed).
    """
    shapes = parameter_shapes(config)
    # First, which kind it is: the error of another kind's config would mislead.
    if tensors.keys() & {name for recipe in recipes.values() for name in recipe.names}:
        where = f"{path}: {KINDS[kind]} differs from the config of the tokenizer"
        check_agrees(config, fixed, where)
    return assemble(recipes, tensors, shapes, str(path), ignored, kind)
