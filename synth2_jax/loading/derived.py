"""Settings of a training that follow from others: what it is built on, the vocabulary, the data.

A config leaves them out; the config that a run saves has the model as it was filled in.
"""

import dataclasses
import json
import operator
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError, naming
from synth2_jax.interop import t5x
from synth2_jax.loading import init_model
from synth2_jax.loading.exported import is_exported, open_exported
from synth2_jax.loading.trained import OF_THE_CONFIG, others_config, others_reader
from synth2_jax.text.vocabulary import load_vocabulary
from synth2_jax.training.checkpoint_reader import latest_step, read_description
from synth2_jax.training.objectives import BaseObjective, objective_class

# What held-out data must have as the training data has it.
TEXT_KEYS = ("text_length", "vocabulary", "prompt", "images_per_text")
ROWS = 128  # a vocabulary's table has a multiple of it, which every mesh divides


def fill_in(section: Any, where: str = "--config", workdir: str = "") -> Any:
    """Returns a train section, as dicts, with the settings that follow from others.

    - With `init.from` the model and the text of the data are as in that checkpoint, see
      `loading.init_model`; a run that resumes, in `workdir`, is its own checkpoint.
    - `model.PART` becomes what the checkpoint at `pretrained.PART` is, but for its dtype, remat and
      dropout. Without a path, or if the checkpoint does not say, it stays what the config says.
    - The rest is added where it is missing: `vocab_size` from `data.vocabulary`, the keys of the
      objective's `same`, `model.text_length`, `model.images_per_text` and the text of
      `validation.data` from `data`.

    Sections of another form are left as they are, for `config.build` to say what is wrong.

    Raises:
      UserError: an unknown model_name; no such vocabulary; a part that the config does not describe
        and whose path holds nothing to load.
    """
    filled = _copy(section)
    if isinstance(filled, dict):
        init_model.fill_in(filled, where, workdir)
    model, data = (filled.get(n) if isinstance(filled, dict) else None for n in ("model", "data"))
    if not (isinstance(model, dict) and isinstance(data, dict) and "model_name" in filled):
        return filled
    objective = objective_class(str(filled["model_name"]), where)
    pretrained = filled.get("pretrained")
    for name, path in objective.part_paths.items():
        source = pretrained.get(name) if isinstance(pretrained, dict) else None
        if source and isinstance(source, str):
            with naming(f"{where}.pretrained.{name}", source):
                _fill_part(objective.task_class, model, name, path.split("/"), source)
    _fill_vocab_size(objective, model, data, where)
    _fill_same(objective, model, f"{where}.model")
    text = {name: data.get(name, getattr(DataConfig, name)) for name in TEXT_KEYS}
    for name in ("text_length", "images_per_text"):
        if name in _fields(objective.task_class):
            model.setdefault(name, text[name])
    validation = filled.get("validation")
    if isinstance(validation, dict) and isinstance(held_out := validation.get("data"), dict):
        validation["data"] = text | held_out
    return filled


def part_config(name: str, source: str, told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what the checkpoint of a part says it is; None of one that does not say.

    Args:
      name: of the part in `config.pretrained`.
      source: workdir, export or third-party checkpoint.
      told: what the config says of the part; third-party files do not tell all.

    Raises:
      UserError: nothing to load there.
    """
    if name == "perceptual":
        return None
    if reader := others_reader(source, name):
        if reader is t5x:
            return None
        config = others_config(reader, source, name, told)
        values = {field: getattr(config, field.name) for field in dataclasses.fields(config)}
        return {field.name: value for field, value in values.items() if value != field.default}
    if is_exported(source):
        config = open_exported(source).config()
    else:
        config, _ = read_description(source, latest_step(source))
    # A text encoder is in a generator; the others are in runs of their own.
    expected = "generator" if name == "text_encoder" else name
    if config["model_name"] != expected:
        raise UserError(f"{source}: holds a {config['model_name']}, expected a {expected}")
    held = config["model"]["generator"] if name == "text_encoder" else config["model"]
    decided = {key: value for key, value in held[name].items() if key not in OF_THE_CONFIG}
    return decided | {key: told[key] for key in OF_THE_CONFIG if key in told}


def _fill_part(
    task_class: type, model: dict[str, Any], name: str, path: list[str], source: str
) -> None:
    *outer, last = path
    for key in outer:
        model = model.get(key)
        if not isinstance(model, dict):
            return
    told, classes = model.get(last), init_model.classes_at(task_class, path)
    known = set().union(*map(_fields, classes))
    if not isinstance(told, dict | None) or not known.issuperset(told or {}):
        return
    try:
        found = part_config(name, source, told or {})
    except UserError as error:
        if not told:
            raise
        # Enough to plan with, or to train on stored features; a training that loads it complains.
        logging.warning("model.%s: as in the config; %s", ".".join(path), error)
        return
    if found is None:
        return
    model[last] = found
    cls = max(classes, key=lambda cls: len(_fields(cls) & found.keys()))
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for key, value in (told or {}).items():
        used = found.get(key, defaults.get(key))
        if key in defaults and json.dumps(used, default=repr) != json.dumps(value, default=repr):
            logging.warning(
                "model.%s.%s: %s as in %s, not %s", ".".join(path), key, used, source, value
            )


def _fill_vocab_size(
    objective: type[BaseObjective], model: dict[str, Any], data: dict[str, Any], where: str
) -> None:
    path = [*filter(None, objective.text_part.split("."))]
    reader = model
    for key in path:
        reader = reader.get(key) if isinstance(reader, dict) else None
    needed = any(
        field.name == "vocab_size" and field.default is dataclasses.MISSING
        for cls in init_model.classes_at(objective.task_class, path)
        for field in dataclasses.fields(cls)
    )
    vocabulary = data.get("vocabulary", DataConfig.vocabulary)
    if not (path and needed and isinstance(reader, dict) and isinstance(vocabulary, str)):
        return
    if vocabulary and "vocab_size" not in reader:
        with naming(f"{where}.data.vocabulary", vocabulary):
            reader["vocab_size"] = -(-load_vocabulary(vocabulary).size // ROWS) * ROWS


def _fill_same(objective: type[BaseObjective], model: dict[str, Any], where: str) -> None:
    for key, other in objective.same.items():
        *path, name = key.split(".")
        part, attribute = other.split(".", 1)
        section = model
        for outer in path:
            section = section.get(outer) if isinstance(section, dict) else None
        if isinstance(section, dict) and name not in section and part in model:
            hint = typing.get_type_hints(objective.task_class)[part]
            config = config_lib.build(hint, model[part], f"{where}.{part}")
            section[name] = operator.attrgetter(attribute)(config)


def _copy(value: Any) -> Any:
    """Sections as dicts, all the way down."""
    if isinstance(value, ml_collections.ConfigDict | Mapping):
        return {key: _copy(element) for key, element in value.items()}
    return value


def _fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}
