"""Models by their path: a run's workdir, a folder of `synth2 export`, a third-party checkpoint."""

import dataclasses
import os
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.errors import UserError
from synth2_jax.fingerprint import fingerprint
from synth2_jax.interop import (
    diffusers_vq,
    gemma,
    hugging_face,
    ibq,
    llamagen,
    maskgit_weights,
    open_muse,
    t5x,
    taming,
)
from synth2_jax.interop.recognise import KINDS, PREFIXES, recognise
from synth2_jax.layers.dropout import RATES
from synth2_jax.loading.exported import CONFIG, is_exported, open_exported
from synth2_jax.loading.run import Trained, load_run
from synth2_jax.training import train_state
from synth2_jax.training.checkpoint_reader import latest_step, read_description
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.train_state import Objective, Params

# No checkpoint decides these: they are the config's own.
OF_THE_CONFIG = ("dtype", "remat", *RATES)
# Nor do third-party files these, which a config may say.
UNTOLD = (*OF_THE_CONFIG, "scan_layers", "image_size", "activation")
# What has the functions `PART_config(path)` and `load_PART(path, config)`, t5x's the latter alone.
Reader = ModuleType | taming.TamingLayout
# What reads third-party checkpoints of each part, by what `recognise` finds.
OTHERS: Mapping[str, Mapping[str, Reader]] = {
    "tokenizer": {
        "maskgit_tokenizer": maskgit_weights,
        "taming": taming.TAMING,
        "ibq": ibq.IBQ,
        "llamagen": llamagen.LLAMAGEN,
        "open_muse_vqgan": open_muse.VQGAN,
        "open_muse_maskgit": open_muse.MASKGIT,
        "diffusers_vq": diffusers_vq,
    },
    "text_encoder": {"t5x": t5x, "hugging_face_t5": hugging_face},
    "language_model": {"gemma": gemma, "hugging_face_gemma": gemma},
}


def load_trained(
    path: str | os.PathLike[str],
    model_name: str,
    step: int | None = None,
    *,
    mesh: Mesh | None = None,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
) -> Trained:
    """Loads a run, an exported folder or a third-party tokenizer.

    With a mesh its devices read their own parts straight from the files, else the parameters are
    numpy arrays. Those of an exported folder are then compared with their fingerprints.

    Raises:
      UserError: no path, nothing to load there, or another kind of model; tensors that do not fit,
        all of them named; bytes of an exported folder that have changed.
    """
    path = str(path)
    if model_name == "tokenizer" and path and others_reader(path, model_name):
        return _others_tokenizer(path, mesh, rules, {})
    if not path or not is_exported(path):
        return load_run(path, model_name, step, mesh=mesh, rules=rules)
    exported = open_exported(path)
    config = exported.config()
    if config["model_name"] != model_name:
        raise UserError(f"{path}: holds a {config['model_name']}, expected a {model_name}")
    if step not in (None, config["step"]):
        raise UserError(f"{path}: found step {config['step']}, expected step {step}")
    objective = make_objective(model_name, config["model"], os.path.join(path, CONFIG))
    layout = dict(train_state.params_layout(objective, mesh, rules))
    tensors = exported.params(train_state.flatten(layout))
    params = jax.tree.map(train_state.place, tensors, layout)
    exported.check_fingerprints({part: fingerprint(tree) for part, tree in params.items()})
    return Trained(objective, params, config, config["built_on"], path, config["step"])


def load_tokenizer(path: str | os.PathLike[str], **told: Any) -> Trained:
    """Loads a tokenizer, or that of a VLM or generator; with what third-party files do not say.

    `told` are fields of its VQTokenizerConfig, such as `image_size`; None if not given.

    Raises:
      UserError: as `load_trained`; or a run's or an export's tokenizer that is otherwise.
    """
    told = {name: value for name, value in told.items() if value is not None}
    if path and others_reader(str(path), "tokenizer"):
        return _others_tokenizer(str(path), None, sharding.AXIS_RULES, told)
    found = load_trained(path, _model_with_tokenizer(path))
    found = dataclasses.replace(found, params={"tokenizer": found.params["tokenizer"]})
    for name, value in told.items():
        own = getattr(found.objective.task.tokenizer, name)
        if own != value:
            raise UserError(f"{path}: {name} is {own}, found {value} in the config; leave it out")
    return found


def _model_with_tokenizer(path: str | os.PathLike[str]) -> str:
    """Returns the name of the model there if it has a tokenizer in it, else "tokenizer"."""
    if not path:
        return "tokenizer"
    if is_exported(path):
        config = open_exported(path).config()
    else:
        config, _ = read_description(path, latest_step(path))
    return str(config["model_name"]) if "tokenizer" in config["model"] else "tokenizer"


def load_part(
    path: str,
    part: str,
    config: Any,
    objective: Objective,
    prefix: str,
    *,
    mesh: Mesh,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
) -> Params:
    """Loads a pretrained part of another model to its mesh: each device reads only its share.

    Args:
      path: a run or an export of the part, or a third-party checkpoint of it.
      part: a key of OTHERS.
      config: what the part must be.
      objective: of the model that is to hold it, at `prefix` ("vlm/language_model").

    Raises:
      UserError: as `load_trained`.
    """
    reader = others_reader(path, part)
    if reader is None:
        return load_trained(path, part, mesh=mesh, rules=rules).params[part]
    layout = train_state.params_layout(objective, mesh, rules)
    for name in prefix.split("/"):
        layout = layout[name]
    tree = getattr(reader, f"load_{part}")(path, config)
    return jax.tree.map(train_state.place, tree, layout)


def others_reader(path: str, part: str) -> Reader | None:
    """Returns what reads the third-party checkpoint there; None for a run or an export.

    Raises:
      UserError: nothing is there, or something else, with what it looks like.
    """
    found = recognise(path)
    if found.kind in ("run", "export"):
        return None
    if found.kind == "taming_names" and part == "tokenizer":
        choices = " or ".join(f"{prefix}:{path}" for prefix in PREFIXES)
        raise UserError(
            f"{path}: found the tensor names of three models (taming-transformers, IBQ, "
            f"open-muse), which give other ids. Say which it is: {choices}"
        )
    readers = OTHERS.get(part, {})
    if found.kind not in readers:
        expected = ", ".join([KINDS["run"], KINDS["export"], *(KINDS[kind] for kind in readers)])
        raise UserError(f"{path}: looks like {found.description}; expected a {part}: {expected}")
    return readers[found.kind]


def others_config(reader: Reader, path: str, part: str, told: Mapping[str, Any]) -> Any:
    """Returns the config of a third-party part, with what `told` says and its files do not."""
    read = getattr(reader, f"{part}_config")
    known = {field.name for field in dataclasses.fields(typing.get_type_hints(read)["return"])}
    return read(path, **{key: told[key] for key in UNTOLD if key in told and key in known})


def _others_tokenizer(
    path: str, mesh: Mesh | None, rules: sharding.AxisRules, told: Mapping[str, Any]
) -> Trained:
    """Wraps a third-party tokenizer. Its step is 0."""
    reader = others_reader(path, "tokenizer")
    config = reader.tokenizer_config(path, **told)
    section = {"tokenizer": dataclasses.asdict(config)}
    objective = make_objective("tokenizer", section)
    layout = train_state.params_layout(objective, mesh, rules)["tokenizer"]
    params = jax.tree.map(train_state.place, reader.load_tokenizer(path, config), layout)
    resolved = {"model_name": "tokenizer", "model": section}
    return Trained(objective, {"tokenizer": params}, resolved, {}, path, step=0)
