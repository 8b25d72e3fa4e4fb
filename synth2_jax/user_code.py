"""Objects of the user's own modules and files, by name."""

import importlib
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types
from typing import Any

from synth2_jax.errors import UserError


def load_file(path: pathlib.Path, name: str) -> types.ModuleType:
    """Runs a Python file with any ending as a module, which no import finds."""
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def load_named(name: str, where: str) -> Any:
    """Returns what "MODULE:NAME" or "FILE.py:NAME" names; `where` names it in messages.

    Raises:
      UserError: a name of another form, no such module, file or object, or a module that fails
        while it is imported.
    """
    module_name, colon, wanted = name.rpartition(":")
    if not colon or not module_name or not wanted:
        raise UserError(f"{where}: found {name!r}, expected MODULE:NAME or FILE.py:NAME")
    path = pathlib.Path(os.path.expanduser(module_name))
    is_file = module_name.endswith(".py")
    try:
        if is_file and not path.is_file():
            raise UserError(f"{where}: no file {module_name}")
        if is_file:  # run once, as an import is: it may register tasks
            full_path = str(path.resolve())
            module = sys.modules.get(full_path) or load_file(path, full_path)
            sys.modules[full_path] = module
        else:
            module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:  # the user's code, which fails in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: importing {module_name} fails: {reason}") from error
    if not hasattr(module, wanted):
        raise UserError(f"{where}: {module_name} holds no {wanted!r}")
    return getattr(module, wanted)
