"""What the loaders of other people's VQ-GANs share."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import Recipe, assemble
from synth2_jax.interop.recognise import KINDS, recognise
from synth2_jax.interop.tensor_files import Tensors
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes


def check_holds(
    ranks: Mapping[str, int], tensors: Tensors, path: str | os.PathLike[str], kind: str
) -> None:
    """Raises UserError, which says what is there instead, unless all tensors are there.

    Args:
      ranks: number of axes by name; no axis may be empty.
      tensors: what the checkpoint holds.
      path: of the checkpoint.
      kind: a key of recognise.KINDS, what the checkpoint should be.
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


def check_kind(
    recipes: Mapping[str, Recipe], tensors: Tensors, path: str | os.PathLike[str], kind: str
) -> None:
    """Raises UserError, which says what is there instead, where no recipe finds a tensor."""
    if not tensors.keys() & {name for recipe in recipes.values() for name in recipe.names}:
        raise UserError(f"{path}: found {recognise(path).description}, expected {KINDS[kind]}")


def assemble_tokenizer(
    recipes: Mapping[str, Recipe],
    tensors: Tensors,
    config: VQTokenizerConfig,
    path: str | os.PathLike[str],
    kind: str,
    fixed: Mapping[str, Any],
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """The parameters of models.vq_tokenizer.VQTokenizer, as LazyArrays.

    Args:
      recipes: by path of the parameter.
      tensors: what the checkpoint holds.
      config: of the tokenizer that is to hold them.
      path: of the checkpoint.
      kind: a key of recognise.KINDS, what the checkpoint should be.
      fixed: fields of the config that no tensor's shape shows, as this kind has them.
      ignored: see `assemble`.

    Raises:
      UserError: a checkpoint of another kind, a config with other values than `fixed` (all that
        differ are listed), or tensors that do not fit (all are listed).
    """
    check_kind(recipes, tensors, path, kind)
    differences = [
        f"{name} is {getattr(config, name)!r}, there {value!r}"
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
    if differences:
        raise UserError(
            f"{path}: {KINDS[kind]} differs from the config of the tokenizer: "
            f"{'; '.join(differences)}"
        )
    return assemble(recipes, tensors, parameter_shapes(config), str(path), ignored)
