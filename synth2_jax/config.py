"""The border between config files (ml_collections) and modules (frozen dataclasses).

A config file is plain Python that returns a ConfigDict; nothing behind this border sees one.
`build` turns a section into the frozen dataclass that a module takes, so a mistyped key dies here
with the name of the key that was meant.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import inspect
import json
import math
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import ml_collections

from synth2_jax.errors import UserError, nearest
from synth2_jax.user_code import load_file

ConfigT = TypeVar("ConfigT")
MOST_LAYERS = 1000

_MAX_SHOWN = 200  # characters of a value in an error
_INT64 = range(-(2**63), 2**63)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def dtype(name: str, where: str = "dtype") -> Any:
    """Returns the jax dtype called `name`, a key of DTYPES; UserError on any other name."""
    if name not in DTYPES:
        raise UserError(f"{where}: unknown dtype {name!r}; {nearest(name, DTYPES)}")
    return DTYPES[name]


def check_counts(config: Any, *names: str, least: int = 1, most: float = math.inf) -> None:
    """Raises UserError unless these fields of a dataclass are in the range; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{name}: found {value}, expected at least {least}")
        if value is not None and value > most:
            raise UserError(f"{name}: found {value}, expected at most {most}")


def check_layers(config: Any, *names: str, least: int = 1) -> None:
    """Raises UserError unless these fields are from `least` to MOST_LAYERS; None is allowed.

    Each layer takes time and memory to set up: a number from a damaged file would take all of it.
    """
    check_counts(config, *names, least=least, most=MOST_LAYERS)


def check_choices(config: Any, **choices: Iterable[str]) -> None:
    """Raises UserError unless each of these fields of a dataclass is one of its choices."""
    for name, known in choices.items():
        if (value := getattr(config, name)) not in known:
            raise UserError(f"{name}: unknown {value!r}; {nearest(value, known)}")


def check_patterns(config: Any, *names: str) -> None:
    """Raises UserError unless these fields hold regular expressions, alone or in a tuple."""
    for name in names:
        value = getattr(config, name)
        for pattern in (value,) if isinstance(value, str) else value or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"{name}: {pattern!r} is not a regular expression ({error}). Put a backslash "
                    "in front of characters that stand for themselves."
                ) from error


def check_seeds(config: Any, *names: str) -> None:
    """Raises UserError unless these fields of a dataclass, or their elements, have 32 bits.

    JAX takes a seed modulo 2^32: two seeds would silently be one.
    """
    for name in names:
        value = getattr(config, name)
        for seed in value if isinstance(value, tuple) else (value,):
            if not 0 <= seed < 2**32:
                raise UserError(f"{name}: found {seed}, expected 0 to {2**32 - 1}")


def build(
    cls: type[ConfigT], section: Any, where: str = "--config", *, exact: bool = False
) -> ConfigT:
    """Builds the frozen dataclass `cls` from a config section.

    Fields that are dataclasses (or `Dataclass | None`) are built from their own sub-section, also
    inside tuples (`tuple[Dataclass, ...]`); of `Dataclass | OtherDataclass` the one that has most
    of the section's keys, or the first. Lists become tuples; an int is accepted for a float or a
    text. Values of a `Mapping[str, X]` are built as X, under whatever keys there are. A field whose
    name ends in "_", because Python has the word itself, has the key without it (`key_of`). The
    text "none" is None where None may stand, for `override` cannot know.

    Args:
      cls: a dataclass whose annotations are real types (no strings).
      section: ConfigDict, dict, None (all defaults), or an instance of `cls`, returned as it is.
      where: how the user would write this section, such as "--config.model"; for the error message.
      exact: for a file that a program wrote. A number is refused in the place of a text (people
        type texts that look like numbers), and lists of no declared type stay lists.

    Raises:
      UserError: an unknown key, a missing one, a value of the wrong type, or what the dataclass's
        own `__post_init__` raises: UserError or ValueError, "FIELD: problem" or "problem". The path
        to the field is added here, also to other fields that it names in backticks.
    """
    if isinstance(section, cls):
        return section
    section = _plain_section({} if section is None else section, where)
    fields = {key_of(field.name): field for field in dataclasses.fields(cls) if field.init}
    for key in section:
        if key not in fields:
            raise UserError(f"{where}.{key}: unknown key; {nearest(key, fields)}")
    for key, field in fields.items():
        default = (field.default, field.default_factory)
        if key not in section and default == (dataclasses.MISSING, dataclasses.MISSING):
            raise UserError(f"{where}.{key}: missing, and {cls.__name__} has no default for it")
    hints = typing.get_type_hints(cls)
    values = {
        fields[key].name: _convert(hints[fields[key].name], value, f"{where}.{key}", exact)
        for key, value in section.items()
    }
    try:
        return cls(**values)
    except (UserError, ValueError) as error:
        raise UserError(_with_path(str(error), fields, where)) from error


def key_of(field: str) -> str:
    """Returns the key of a dataclass's field: "from_" is typed `from`, a keyword of Python's."""
    return field.removesuffix("_")


def _with_path(message: str, fields: Iterable[str], where: str) -> str:
    """Puts the path in front of fields: of "FIELD: problem", and of each `FIELD` in backticks.

    >>> _with_path("low: found 3, expected less than `high.most`", ["low", "high"], "--config.a")
    '--config.a.low: found 3, expected less than --config.a.high.most'
    """
    names = "|".join(fields)
    joint = "." if re.match(rf"({names})[.:\[]", message) else ": "
    with_paths = re.sub(rf"`((?:{names})(?:\.\w+)*)`", lambda key: f"{where}.{key[1]}", message)
    return f"{where}{joint}{with_paths}"


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets one key of a config file's config, as `--config.KEY=TEXT` asks for.

    A key that the file does not list is added, for `build` alone knows which ones there are: it
    refuses unknown keys and wrong types. In the place of a string, text is taken as it is;
    elsewhere it is read as a Python literal, as true, false or none, or else as a string. Of a key
    that the file does not list "none" stays text: `build` knows what may stand there.

    Args:
      config: changed in place.
      key: path from the top of the config, such as "optimizer.learning_rate".
      text: the value as it was typed; items of a tuple may be separated by commas alone.

    Raises:
      UserError: the path leads through a value, or to a section.
    """
    *path, name = key.split(".")
    section, where = config, "--config"
    with config.unlocked(), config.ignore_type():
        for part in path:
            if section.get(part) is None:
                section[part] = ml_collections.ConfigDict()
            section, where = section[part], f"{where}.{part}"
            if not isinstance(section, ml_collections.ConfigDict):
                raise UserError(
                    f"{where}: found {_shown(section)}, which has no keys such as {name!r}"
                )
        current = section.get(name)
        if isinstance(current, ml_collections.ConfigDict):
            keys = ", ".join(sorted(map(str, current))) or "none yet"
            raise UserError(f"{where}.{name}: a section, expected one of its keys; it has {keys}")
        left_to_build = name not in section and text.lower() == "none"
        try:
            section[name] = text if left_to_build else _typed(text, current)
        except (ValueError, OverflowError) as error:  # such as a dict with a dot in a key
            raise UserError(f"{where}.{name}: {error}") from error


def texts(section: ml_collections.ConfigDict, where: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each text in a config, also in lists."""
    for key, value in section.items():
        for element in value if isinstance(value, list | tuple) else (value,):
            if isinstance(element, str):
                yield f"{where}.{key}", element
            elif isinstance(element, ml_collections.ConfigDict):
                yield from texts(element, f"{where}.{key}")


def load_config(given: str) -> ml_collections.ConfigDict:
    """Runs `get_config` of a Python file, given as FILE or FILE:ARGUMENT.

    Config files may import others (`from configs.scenes import models`) wherever synth2 runs.

    Raises:
      UserError: no such file, or it fails; with the line where it does.
    """
    file, colon, argument = given.partition(":")
    path = pathlib.Path(file).resolve()
    if not path.is_file():
        raise UserError(f"--config={given}: no such file, expected a Python file with get_config")
    for folder in path.parents:
        if folder.name == "configs" and str(folder.parent) not in sys.path:
            sys.path.insert(0, str(folder.parent))
    try:
        get_config = load_file(path, "config").get_config
        if colon and not inspect.signature(get_config).parameters:
            raise UserError(f"--config={given}: {file} takes no argument")
        config = get_config(*([argument] if colon else []))
    except UserError:
        raise
    except Exception as error:  # the file is Python, which fails in any way
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{file}, line {lines[-1]}" if lines else file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"--config={where}: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config={given}: get_config gave {config!r:.40}, expected a ConfigDict")
    return config.lock()


def to_json(config: Any) -> str:
    """Returns a resolved config (ConfigDict, dict or dataclass) as JSON with sorted keys."""
    return json.dumps(_plain(config, "--config"), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Returns the ConfigDict that `to_json` wrote, as model cards of exports do.

    ConfigDict refuses to change a list's type, so lists become tuples, as `build` makes of them.
    """

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    def section(held: dict[str, Any]) -> dict[str, Any]:
        return {key: tuples(value) for key, value in held.items()}

    return ml_collections.ConfigDict(json.loads(text, object_hook=section))


def _typed(text: str, current: Any) -> Any:
    """Returns the value that `text` means in the place of `current`."""
    if isinstance(current, str):
        return text
    words = {"true": True, "false": False, "none": None}
    try:
        value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # ast's, of any text
        value = tuple(text.split(",")) if isinstance(current, tuple) else text
    if isinstance(current, tuple) and not isinstance(value, tuple | list | None):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _plain_section(section: Any, where: str) -> dict[str, Any]:
    if not isinstance(section, ml_collections.ConfigDict | Mapping):
        raise UserError(f"{where}: found {_shown(section)}, expected a section of keys and values")
    # ConfigDict's `items` resolves references and placeholders; one left open is None.
    values = dict(section.items())
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"{where}: found the key {_shown(key)}, expected a text")
    return values


def _shown(value: Any) -> str:
    """`value` as Python writes it, shortened so that it leaves an error readable."""
    text = repr(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _convert(hint: Any, value: Any, where: str, exact: bool) -> Any:
    """Returns `value` as the annotation `hint` wants it."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return tuple(value) if isinstance(value, list) and not exact else value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where, exact)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, exact=exact)
    if origin is collections.abc.Mapping:
        _, element = typing.get_args(hint)
        items = _plain_section(value, where).items()
        return {key: _convert(element, item, f"{where}.{key}", exact) for key, item in items}
    if hint is tuple or origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, where, exact)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{where}: unknown value {_shown(value)}; {nearest(value, choices)}")
        return value
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value not in _INT64:
        raise UserError(f"{where}: found {_shown(value)}, expected a number of at most 64 bits")
    if hint is float and is_int:
        return float(value)
    if hint is str and is_int and not exact:  # `--config.splits=2017`: a text like a number
        return str(value)
    if hint is str and not exact and isinstance(value, str) and "\0" in value:  # no path has it
        raise UserError(f"{where}: found {_shown(value)}, expected a text without NUL")
    if (hint is int and not is_int) or (isinstance(hint, type) and not isinstance(value, hint)):
        is_typed = hint is str and isinstance(value, float | bool)
        quote = f"; quote a text: \"'{value}'\"" if is_typed else ""
        raise UserError(f"{where}: found {_shown(value)}, expected {hint.__name__}{quote}")
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def _convert_union(options: tuple[Any, ...], value: Any, where: str, exact: bool) -> Any:
    none = value is None or (isinstance(value, str) and value.lower() == "none")
    if none and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    sections = [option for option in options if dataclasses.is_dataclass(option)]
    if len(sections) > 1 and isinstance(value, ml_collections.ConfigDict | Mapping):
        # The one that knows most of the keys; its error lists those that it does not know.
        known = {cls: {field.name for field in dataclasses.fields(cls)} for cls in sections}
        options = [max(sections, key=lambda cls: len(known[cls] & set(value)))]
    if len(options) == 1:
        return _convert(options[0], value, where, exact)
    for option in options:
        with contextlib.suppress(UserError):
            return _convert(option, value, where, exact)
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise UserError(f"{where}: found {_shown(value)}, expected {names}")


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str, exact: bool) -> tuple[Any, ...]:
    if isinstance(value, str) and items == (str, Ellipsis) and not exact:
        value = value.split(",")  # as `override` reads it where the file lists the key
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: found {_shown(value)}, expected a list such as ('a', 'b')")
    if not items:
        return tuple(value)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise UserError(f"{where}: found {len(value)} values, expected {len(items)}")
    numbered = enumerate(zip(items, value, strict=True))
    return tuple(_convert(item, part, f"{where}[{i}]", exact) for i, (item, part) in numbered)


def _plain(value: Any, where: str) -> Any:
    """Returns `value` in JSON's types, or raises on what JSON cannot hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {key_of(f.name): getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, ml_collections.FieldReference):
        value = value.get()
    if isinstance(value, ml_collections.ConfigDict | Mapping):
        return {str(key): _plain(element, f"{where}.{key}") for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element, f"{where}[{i}]") for i, element in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: found {value}, expected a finite number, as JSON has no other")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UserError(f"{where}: found {value!r}, expected a value that JSON can hold")
