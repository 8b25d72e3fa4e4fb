"""The model of a run that starts from a checkpoint, where its config leaves settings out."""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.layers.lora import LoRAConfig, is_adapter
from synth2_jax.loading.init_from import InitConfig, Source, source_of
from synth2_jax.loading.trained import OF_THE_CONFIG
from synth2_jax.text.vocabulary import BUILT_IN, vocabulary_path
from synth2_jax.training.checkpoint_reader import own_steps
from synth2_jax.training.objectives import BaseObjective, objective_class

# The config's own in a network too: they change the number of positions, or add parameters alone.
_FREE = (*OF_THE_CONFIG, "image_size", "lora")
# Of adapters that are taken: these must fit the parameters, and patterns may select more of them.
_FREE_OF_ADAPTERS = ("rank", "targets")
_TEXT = ("vocabulary", "prompt", "text_length")


def fill_in(filled: dict[str, Any], where: str, workdir: str) -> None:
    """Completes the sections `model` and `data` by the checkpoint at `init.from`, if it is given.

    - Where the config and the checkpoint differ in a network whose parameters are taken, the
      checkpoint's setting is used, with a line in the log.
    - A network's dtype, remat, dropout, image size and adapters are the config's, if it says them.
      So are settings of no network, such as the weights of losses, and networks that `init.exclude`
      leaves out. What adapters are multiplied by (`lora.alpha`) belongs to those that are taken.
    - What is frozen is the config's alone: it goes with the optimizer's settings.
    - Settings that only serve fresh parameters (the objective's `fresh_only`) get their defaults.

    Sections of another form are left as they are, for `config.build` to say what is wrong.

    Args:
      filled: a train section, changed in place.
      where: how the user would write it.
      workdir: of the run; if it has checkpoints, they are what counts.

    Raises:
      UserError: as `source_of`; another vocabulary than the checkpoint's.
    """
    told, data = filled.get("model"), filled.get("data")
    is_section = isinstance(told, dict | None) and isinstance(data, dict)
    if not (is_section and isinstance(filled.get("init"), dict) and "model_name" in filled):
        return
    init = config_lib.build(InitConfig, filled["init"], f"{where}.init")
    if not init.from_:
        return
    told, name = told or {}, str(filled["model_name"])
    objective = objective_class(name, where)
    source = source_of(init, name, workdir, told.get(name))
    pretrained = filled.get("pretrained")
    given = pretrained if isinstance(pretrained, dict) else {}
    held = _without_derived(source.config["model"], objective)
    if not own_steps(workdir):
        frozen = held.pop("freeze", None)
        if frozen is not None and "freeze" not in told:
            logging.warning("model.freeze: the default, not %s as in %s", frozen, source.path)
    merged = _Merged(objective, init, source, {n for n, path in given.items() if path})
    filled["model"] = merged.section(told, held, ())
    if merged.overruled:
        logging.warning("model as in %s: %s", source.path, ", ".join(merged.overruled))
    for key, path in objective.fresh_only.items():
        if init.selects(path) and path in source.shapes and filled["model"].pop(key, None):
            logging.warning("model.%s: not used, for %s is loaded", key, path)
    defaults = {name: getattr(DataConfig, name) for name in _TEXT}
    texts = {**defaults, **source.config["data"]} if "data" in source.config else {}
    if (vocabulary := data.get("vocabulary")) and objective.text_part:
        reader = objective.text_part.replace(".", "/")
        if any(path.startswith(f"{reader}/") and init.selects(path) for path in source.shapes):
            _check_vocabulary(vocabulary, texts.get("vocabulary"), where)
    encoder = (source.config.get("pretrained") or {}).get("text_encoder")
    if encoder and filled["model"].get("stored_text_features") and not given.get("text_encoder"):
        filled["pretrained"] = {**given, "text_encoder": encoder}  # later stages open it
    data |= {key: texts[key] for key in _TEXT if key in texts and key not in data}


def classes_at(task_class: type, path: Sequence[str]) -> list[type]:
    """Returns the dataclasses that the annotations of a task allow at a path."""
    classes = [task_class]
    for name in path:
        hints = [typing.get_type_hints(cls).get(name) for cls in classes]
        options = [option for hint in hints for option in typing.get_args(hint) or (hint,)]
        classes = [option for option in options if dataclasses.is_dataclass(option)]
    return classes


class _Merged:
    """Merges what the config says of a model with what the checkpoint is.

    Attributes:
      overruled: "KEY=VALUE (not VALUE)" of each setting where the checkpoint prevails.
    """

    def __init__(
        self, objective: type[BaseObjective], init: InitConfig, source: Source, given: set[str]
    ):
        self._task_class, self._init, self._source = objective.task_class, init, source
        self.overruled: list[str] = []
        # Parts that come from elsewhere are described there.
        self._elsewhere = {path for name, path in objective.part_paths.items() if name in given}

    def section(
        self, told: Mapping[str, Any], held: Mapping[str, Any], path: tuple[str, ...]
    ) -> dict[str, Any]:
        """Returns the section at a path of the model, () for all of it."""
        is_network, free, merged = bool(path) and self._is_taken(path), _FREE, {}
        if path[-1:] == ("lora",) and self._is_taken(path[:-1], is_adapter):
            is_network, free = True, _FREE_OF_ADAPTERS
            held = {"alpha": LoRAConfig.alpha, **held}
        for key in dict.fromkeys((*held, *told)):
            inside = (*path, key)
            if key not in told:
                if self._is_taken(inside) or "/".join(inside) not in self._elsewhere:
                    merged[key] = held[key]
            elif key not in held:
                if not self._is_of_another_class(key, held, path):
                    merged[key] = told[key]
            elif isinstance(told[key], dict) and isinstance(held[key], dict):
                is_left_out = self._has_parameters(inside) and not self._is_taken(inside)
                merged[key] = (
                    told[key] if is_left_out else self.section(told[key], held[key], inside)
                )
            elif is_network and key not in free and not _same(told[key], held[key]):
                self.overruled.append(f"{'.'.join(inside)}={held[key]} (not {told[key]})")
                merged[key] = held[key]
            else:
                merged[key] = told[key]
        return merged

    def _has_parameters(self, path: tuple[str, ...]) -> bool:
        start = "/".join((*path, ""))
        return any(name.startswith(start) for name in self._source.shapes)

    def _is_taken(
        self, path: tuple[str, ...], counts: Callable[[str], bool] = lambda name: True
    ) -> bool:
        """Returns whether any parameter below a path is taken, of those that count."""
        start, selects = "/".join((*path, "")), self._init.selects
        return any(n.startswith(start) and selects(n) and counts(n) for n in self._source.shapes)

    def _is_of_another_class(
        self, key: str, held: Mapping[str, Any], path: tuple[str, ...]
    ) -> bool:
        """Returns whether a setting belongs to another kind of network than the checkpoint's."""
        fields = [
            {field.name for field in dataclasses.fields(cls)}
            for cls in classes_at(self._task_class, path)
        ]
        own = max(fields, key=lambda names: len(names & held.keys()), default=set())
        return key not in own and any(key in names for names in fields)


def _without_derived(model: Mapping[str, Any], objective: type[BaseObjective]) -> dict[str, Any]:
    """Returns a checkpoint's model without what follows from the config's data and other keys."""
    of_the_data = {field.name for field in dataclasses.fields(DataConfig)}
    kept = json.loads(config_lib.to_json(model))
    kept = {key: value for key, value in kept.items() if key not in of_the_data}
    for key in objective.same:
        *outer, name = key.split(".")
        section = kept
        for part in outer:
            section = section.get(part) or {}
        section.pop(name, None)
    return kept


def _check_vocabulary(found: str, expected: str | None, where: str) -> None:
    """Raises UserError unless two vocabularies are the same file, byte by byte."""
    if not isinstance(found, str) or not expected or found == expected:
        return
    if expected not in BUILT_IN and not pathlib.Path(expected).is_file():
        return  # of a run of an older version, which kept no copy
    contents = (pathlib.Path(vocabulary_path(name)).read_bytes() for name in (found, expected))
    if len({*contents}) > 1:
        raise UserError(
            f"{where}.data.vocabulary: found {found!r}, expected {expected!r} as in the checkpoint "
            "that init.from names. Leave it out to take that."
        )


def _same(left: Any, right: Any) -> bool:
    return left == right or json.dumps(left, default=repr) == json.dumps(right, default=repr)
