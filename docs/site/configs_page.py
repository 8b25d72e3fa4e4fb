"""Writes the page of all config keys, from the dataclasses that read them.

mkdocs runs this as a hook at each build. To read the page as text:

    python docs/site/configs_page.py
"""

import collections
import dataclasses
import importlib
import inspect
import itertools
import os
import pathlib
import re
import sys
import types
import typing
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from synth2_jax import command_line
from synth2_jax.config import key_of

# The dataclass of each stage's config, as it is named in the stage's module.
STAGES = {
    "tokenize": "TokenizeConfig",
    "encode_captions": "EncodeCaptionsConfig",
    "train": "TrainConfig",
    "captions": "CaptionsConfig",
    "synthesize": "SynthesizeConfig",
    "filter": "FilterConfig",
    "evaluate": "EvaluateConfig",
    "study": "StudyConfig",
    "rounds": "RoundsConfig",
}

# Where that is not the whole config: the others are sections of other stages.
SECTIONS = {"study": "config.study", "rounds": "config.rounds"}

# What keys mean that many sections have, where a docstring says no more of them.
COMMON = {
    "vocab_size": "rows of the embedding table.",
    "num_layers": "layers.",
    "embed_dim": "width.",
    "num_heads": "attention heads.",
    "head_dim": "width of a head.",
    "mlp_dim": "hidden width of the MLPs.",
    "dropout_rate": "dropout in training.",
    "attention_dropout_rate": "that of attention weights; None for `dropout_rate`.",
    "dtype": "of activations, such as bfloat16.",
    "scan_layers": "whether the layers are one scan, their parameters stacked.",
    "remat": "what is computed again in the backward pass: none, full or dots.",
}

HEAD = """# Configs: every key and its default

Generated from the code. Under each heading are the paths where its keys are used: with the path
`config.data`, the key `batch_size` is typed `--config.data.batch_size=64`. A key that is "derived"
may be left out: a training takes it from the part that it loads, the vocabulary or `config.data`.
"""


def config_class(stage: str) -> type:
    """Returns the dataclass that a stage builds from its config."""
    module = f"synth2_jax.{command_line.STAGES[stage].room}.{stage}"
    return getattr(importlib.import_module(module), STAGES[stage])


def task_classes() -> dict[str, type]:
    """Returns {model name: the dataclass of `config.model`}."""
    from synth2_jax.training import objectives

    return {name: cls.task_class for name, cls in objectives.OBJECTIVES.items()}


def sections(hint: Any) -> list[type]:
    """Returns the dataclasses that a field's annotation allows."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in typing.get_args(hint) for found in sections(part)]


def described(cls: type) -> tuple[str, dict[str, str]]:
    """Returns a docstring's text before its "Attributes:", and {field: what that part says}."""
    text = inspect.getdoc(cls) or ""
    made_by_dataclass = text.startswith(f"{cls.__name__}(")
    lines = [] if made_by_dataclass else text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() == "Attributes:"), len(lines))
    after = itertools.takewhile(lambda line: line.strip() != "Raises:", lines[start + 1 :])
    entries = [line for line in after if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in entries), default=0)
    meanings, names = {}, []
    for line in entries:
        text = line[indent:]
        entry = re.match(r"((?:\w+, )*\w+): (.*)", text)
        if entry:
            names, text = entry[1].split(", "), entry[2]
        for name in names:
            before = f"{meanings[name]} " if name in meanings else ""
            meanings[name] = before + text.strip()
    return " ".join(line.strip() for line in lines[:start]).strip(), meanings


def all_sections() -> dict[type, list[str]]:
    """Returns {dataclass: the paths where it is used}, in the order in which they are met."""
    found: dict[type, list[str]] = collections.defaultdict(list)

    def visit(cls: type, stage: str, path: str) -> None:
        found[cls].append(f"`{path}` of `{stage}`")
        for name, hint in typing.get_type_hints(cls).items():
            for section in sections(hint):
                visit(section, stage, f"{path}.{key_of(name)}")

    for stage in STAGES:
        visit(config_class(stage), stage, SECTIONS.get(stage, "config"))
        if stage == "train":
            for model, task in task_classes().items():
                visit(task, f"train` with `model_name={model}", "config.model")
    return found


def derived() -> set[tuple[type, str]]:
    """Returns each (dataclass, field) that `loading.derived` fills in."""
    from synth2_jax.training import objectives

    found = set()
    for objective in objectives.OBJECTIVES.values():
        keys = [path.replace("/", ".") for path in objective.part_paths.values()]
        keys += [*objective.same, "text_length", f"{objective.text_part}.vocab_size"]
        for key in keys:
            *path, name = key.split(".")
            classes = [objective.task_class]
            for part in path:
                hints = [typing.get_type_hints(cls).get(part) for cls in classes]
                classes = [section for hint in hints for section in sections(hint)]
            found |= {(cls, name) for cls in classes}
    return found


def page() -> str:
    """Returns the whole page as Markdown."""
    return "\n".join([HEAD, *(_section(cls, paths) for cls, paths in all_sections().items())])


def _section(cls: type, paths: list[str]) -> str:
    text, meanings = described(cls)
    for base in filter(dataclasses.is_dataclass, cls.__mro__[1:]):
        meanings = described(base)[1] | meanings
    filled_in = {name for owner, name in derived() if owner is cls}
    hints = typing.get_type_hints(cls)
    rows = [
        f"| `{key_of(field.name)}` | {_type(hints[field.name])} | {_default(field, filled_in)} "
        f"| {_cell(meanings.get(field.name, COMMON.get(field.name, '')))} |"
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return "\n".join(
        [
            f"## {cls.__name__}\n",
            f"{', '.join(paths)}\n",
            f"{text}\n",
            "| key | type | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _type(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if hint is type(None):
        return "none"
    if origin is None:
        return getattr(hint, "__name__", str(hint)).replace("str", "text")
    inner = ", ".join("..." if part is Ellipsis else _type(part) for part in parts)
    names = {"tuple": "list", "Mapping": "table"}
    return f"{names.get(origin.__name__, origin.__name__)} of ({inner})"


def _default(field: dataclasses.Field, filled_in: set[str]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "derived" if field.name in filled_in else "required"
    if dataclasses.is_dataclass(value):
        given = {
            inner.name: getattr(value, inner.name)
            for inner in dataclasses.fields(value)
            if getattr(value, inner.name) != inner.default and not _made(value, inner)
        }
        return ", ".join(f"`{name}={item!r}`" for name, item in given.items()) or "its defaults"
    if isinstance(value, type):
        return f"`{value.__name__}`"
    return f"`{value!r}`".replace("|", "\\|")


def _made(value: Any, field: dataclasses.Field) -> bool:
    """Returns whether a field has what its factory makes."""
    factory = field.default_factory
    return factory is not dataclasses.MISSING and factory() == getattr(value, field.name)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def on_files(files: Any, config: Any) -> Any:
    """Adds the page to the site; mkdocs calls this."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "configs.md", content=page()))
    return files


if __name__ == "__main__":
    print(page())
