"""Objects of the user's own modules and files, by name."""

import importlib
import importlib.util
import os
import pathlib
from typing import Any

from synth2_jax.errors import UserError


def load_named(name: str, where: str) -> Any:
    """Returns what "MODULE:NAME" or "FILE.py:NAME" names.

    Args:
      name: of a module or a file, and of what is looked for in it.
      where: what names it, for messages.

    Raises:
      UserError: a name of another form, no such module, file or object, or a module that fails
        while it is imported.
    """
    module_name, colon, wanted = name.rpartition(":")
    if not colon or not module_name or not wanted:
        raise UserError(f"{where}: found {name!r}, expected MODULE:NAME or FILE.py:NAME")
    try:
        module = _module(module_name, where)
    except UserError:
        raise
    except Exception as error:  # the user's code, which fails in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: importing {module_name} fails: {reason}") from error
    if not hasattr(module, wanted):
        raise UserError(f"{where}: {module_name} holds no {wanted!r}")
    return getattr(module, wanted)


def _module(name: str, where: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = pathlib.Path(os.path.expanduser(name))
    if not path.is_file():
        raise UserError(f"{where}: no file {name}")
    spec = importlib.util.spec_from_file_location(f"user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
