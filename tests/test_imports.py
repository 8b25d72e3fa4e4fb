"""Imports run one way, and TensorFlow stays where the data is read.

Both rules are proved for every module of the package, and both checkers are shown to fail on a
small package that breaks them.
"""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set

import pytest

import synth2_jax

PACKAGE = pathlib.Path(synth2_jax.__file__).parent

# Anyone may import these.
LEAVES = {
    *("errors", "config", "sharding", "files", "progress", "environment"),
    *("distributed", "fingerprint", "folder_lock", "side_files", "stop_signal", "inert_text"),
    *("user_code", "device_stream"),
}

# What else a room may import. A room is a folder or a file right under synth2_jax.
MAY_IMPORT = {
    # Its attributes come from `api` when they are first asked for (by importlib, which no table
    # sees): `import synth2_jax`, which every module does, must neither cost seconds nor go round.
    "__init__": set(),
    **{leaf: set() for leaf in LEAVES},
    "text": set(),
    "layers": set(),
    "models": {"text", "layers"},
    "losses": {"layers", "models"},
    "sampling": {"text", "layers", "models"},
    "training": {"text", "layers", "models", "losses", "sampling"},
    "domains": {"text"},
    "caption_writing": {"layers", "models", "sampling", "text"},
    "scoring": {"layers", "models", "sampling"},
    "interop": {"layers", "models"},
    "planning": {"layers", "models", "losses", "sampling", "training"},
    "data": {"text", "domains"},
    "loading": {*("text", "layers", "models", "sampling", "training"), *("interop", "data")},
    "synthesis": {
        *("text", "layers", "models", "sampling", "training"),
        *("caption_writing", "data", "loading"),
    },
    "evaluation": {
        *("text", "layers", "models", "sampling", "training"),
        *("domains", "caption_writing", "data", "scoring", "loading"),
    },
    "testing": {"text", "layers", "models", "losses", "sampling", "training"},
    "pages": {"data", "training", "loading"},
    # For people who want no stages.
    "api": {"text", "layers", "models", "sampling", "training", "data", "loading"},
    "stages": {
        *("text", "layers", "models", "losses", "sampling", "training"),
        *("domains", "caption_writing", "data", "scoring", "interop", "planning"),
        *("loading", "synthesis", "evaluation", "pages"),
    },
    "experiments": {
        *("text", "models", "sampling", "training", "domains", "caption_writing", "data"),
        *("scoring", "planning", "loading", "synthesis", "evaluation", "pages", "stages"),
    },
    "command_line": set(),
    "main": {"command_line"},
}

WITHOUT_TENSORFLOW = (
    *("layers", "models", "losses", "sampling", "training"),
    *("domains", "caption_writing", "scoring", "testing", "planning", "text", "loading"),
    *("sharding", "config", "errors", "api", "stop_signal", "command_line", "main"),
)
# clu and flax.training.checkpoints import TensorFlow when they find it, so they count as it.
TENSORFLOW = (
    *("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "t5x", "clu"),
    "flax.training.checkpoints",
)


# --- one way ---


def modules_of(package: pathlib.Path) -> dict[str, pathlib.Path]:
    """Dotted name below the package ("models.vlm", "models", "" for the package) -> file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(
    name: str, path: pathlib.Path, package: str, modules: Set[str]
) -> Iterator[tuple[int, str]]:
    """(line, module below the package) of each import of the package's own, at any depth."""
    full = f"{package}.{name}".rstrip(".")
    parent = full if path.name == "__init__.py" else full.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
            for alias in node.names:
                # `from synth2_jax.models import vlm` names a module, `import VLM` a thing in it.
                named = f"{source}.{alias.name}"
                targets.append(named if named.removeprefix(f"{package}.") in modules else source)
        for target in dict.fromkeys(targets):
            if f"{target}.".startswith(f"{package}."):
                yield node.lineno, target.removeprefix(package).removeprefix(".")


def offences(
    package: pathlib.Path, may_import: Mapping[str, Set[str]], leaves: Set[str]
) -> list[str]:
    """One line for each import the table does not allow and each room it does not name."""
    modules, found = modules_of(package), []
    for name, path in modules.items():
        room = name.partition(".")[0] or "__init__"
        where = path.relative_to(package).as_posix()
        if room not in may_import:
            found.append(f"{where}: the table has no room {room!r}")
            continue
        allowed = may_import[room] | leaves | {room}
        for line, target in imports_of(name, path, package.name, modules.keys()):
            # The package itself imports nothing.
            if target and not any(f"{target}.".startswith(f"{one}.") for one in allowed):
                found.append(f"{where}:{line}: {room} may not import {target}")
    return found


def write_package(folder: pathlib.Path, files: Mapping[str, str]) -> pathlib.Path:
    """Writes a package of the given files, with an __init__.py in each of its folders."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in (path.parent, folder):
            (parent / "__init__.py").touch()
    return folder


def test_imports_run_one_way():
    assert offences(PACKAGE, MAY_IMPORT, LEAVES) == []


@pytest.mark.parametrize(
    "line, target",
    [
        ("import toy.training", "training"),
        ("import toy.training.loop as loop", "training.loop"),
        ("import os, toy.training", "training"),
        ("from toy import training", "training"),
        ("from toy.training import loop", "training.loop"),
        ("from toy.training.loop import run", "training.loop"),
        ("from toy.training import *", "training"),
        ("from .. import training", "training"),
        ("from ..training.loop import run", "training.loop"),
        ("def late():\n    from toy.training import run", "training"),
    ],
)
def test_an_import_against_the_way_is_found(tmp_path, line, target):
    files = {"training/loop.py": "run = print\n", "layers/norm.py": f"{line}\n"}
    toy = write_package(tmp_path / "toy", files)
    found = offences(toy, {"__init__": set(), "layers": set(), "training": set()}, set())
    number = len(line.splitlines())
    assert found == [f"layers/norm.py:{number}: layers may not import {target}"]


def test_imports_that_the_table_allows_are_no_offence(tmp_path):
    files = {
        "__init__.py": "__version__ = '1'\n",
        "errors.py": "class UserError(Exception): ...\n",
        "captioners/prompts.py": "from toy.errors import UserError\n",
        "captioners/__init__.py": "from .prompts import UserError\n",
        "layers/norm.py": "import os\nimport toys\nfrom toy import __version__\n",
        "layers/mlp.py": "from . import norm\nfrom toy.layers.norm import os\n",
        "scenes/words.py": "from toy.captioners.prompts import UserError\nimport toy.errors\n",
    }
    toy = write_package(tmp_path / "toy", files)
    table = {room: set() for room in ("__init__", "errors", "captioners", "layers")}
    assert offences(toy, table | {"scenes": {"captioners.prompts"}}, {"errors"}) == []
    # A part of a name allows nothing.
    assert offences(toy, table | {"scenes": {"captioners.prompt"}}, {"errors"}) == [
        "scenes/words.py:1: scenes may not import captioners.prompts"
    ]
    assert offences(toy, table, {"errors"})[1:] == [
        "scenes/words.py: the table has no room 'scenes'"
    ]


# --- without TensorFlow ---

# Imports every module of some rooms one after the other and names the first that brings in a
# forbidden one. Arguments: package, rooms, forbidden modules (both comma-separated).
IMPORT_ALL = """
import importlib, pkgutil, sys

package, rooms, forbidden = sys.argv[1], *(argument.split(",") for argument in sys.argv[2:4])
pending = [f"{package}.{room}" for room in rooms]
while pending:
    name = pending.pop(0)
    module = importlib.import_module(name)
    if brought := sorted(set(forbidden) & set(sys.modules)):
        sys.exit(f"{name} imports {', '.join(brought)}")
    path = getattr(module, "__path__", ())
    pending += [found.name for found in pkgutil.iter_modules(path, f"{name}.")]
    print(name)
"""


def import_all(package: str, rooms: Set[str], path: pathlib.Path) -> subprocess.CompletedProcess:
    """Runs IMPORT_ALL in a new interpreter that finds `package` in the folder `path`."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package, ",".join(rooms), ",".join(TENSORFLOW)],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


def test_only_data_and_what_uses_it_imports_tensorflow():
    done = import_all("synth2_jax", WITHOUT_TENSORFLOW, PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    expected = {name for name in modules_of(PACKAGE) if name.split(".")[0] in WITHOUT_TENSORFLOW}
    assert set(done.stdout.split()) == {f"synth2_jax.{name}" for name in expected}


def test_tensorflow_behind_another_module_is_found(tmp_path):
    (tmp_path / "tensorflow.py").touch()
    (tmp_path / "grab_bag.py").write_text("import tensorflow\n")
    files = {"layers/norm.py": "", "models/deep/vit.py": "import grab_bag\n"}
    write_package(tmp_path / "toy", files)
    assert import_all("toy", {"layers"}, tmp_path).returncode == 0
    done = import_all("toy", {"models"}, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "toy.models.deep.vit imports tensorflow"
