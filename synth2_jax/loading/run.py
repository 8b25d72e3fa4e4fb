"""A trained model as later stages need it: what it is, its parameters and where it came from."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.errors import UserError
from synth2_jax.fingerprint import fingerprint, with_settings
from synth2_jax.training.checkpoint_reader import (
    latest_step,
    read_description,
    restore_params,
    run_folder,
)
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.train_state import Objective, Params, params_layout

VOCABULARY = "vocabulary.model"  # a run's own copy, in its workdir


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters with the objective they were trained for."""

    objective: Objective  # of training/objectives.py; `objective.task` holds the model's configs
    params: Params  # see the top of objectives.py; numpy arrays, or parts of them on a mesh
    config: dict[str, Any]  # the run's resolved config; its vocabulary is the run's own copy
    built_on: dict[str, str]  # fingerprints of what the model depends on
    path: str  # the run's workdir
    step: int  # of the checkpoint

    def fingerprint(self, part: str) -> str:
        """Returns that of one top-level part of the parameters, such as "tokenizer"."""
        tokenizer = getattr(self.objective.task, "tokenizer", None)
        return with_settings(part, fingerprint(self.params[part]), tokenizer)

    def provenance(self, part: str) -> dict[str, Any]:
        """Returns what a manifest says of this model: {"checkpoint", "step", "fingerprint"}."""
        name = os.path.basename(os.path.normpath(self.path))
        return {"checkpoint": name, "step": self.step, "fingerprint": self.fingerprint(part)}


def with_own_vocabulary(
    config: Mapping[str, Any], path: str | os.PathLike[str]
) -> Mapping[str, Any]:
    """Returns a run's config with the path of the copy that the run at `path` keeps, if it does.

    It keeps none of a built-in vocabulary; runs of older versions keep none at all.
    """
    own = run_folder(path) / VOCABULARY
    if not own.is_file():
        return config
    return {**config, "data": {**config["data"], "vocabulary": str(own)}}


def load_run(
    path: str,
    model_name: str,
    step: int | None = None,
    *,
    mesh: Mesh | None = None,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
) -> Trained:
    """Restores the newest (or given) checkpoint of a run; any number of devices will do.

    With a mesh its devices read their own parts straight from the files; without one the whole
    model is read into this process, as numpy arrays.

    Raises:
      UserError: no path, no checkpoint there, or a checkpoint of another kind of model.
    """
    if not path:
        raise UserError("no path given, expected the workdir of a training run")
    step = latest_step(path) if step is None else step
    config, built_on = read_description(path, step)
    found = config.get("model_name")
    if found != model_name:
        raise UserError(f"{path}: holds a {found}, expected a {model_name}")
    objective = make_objective(model_name, config["model"])
    layout = params_layout(objective, mesh, rules) if mesh else None
    params = restore_params(path, step, layout)
    config = dict(with_own_vocabulary(config, path))
    return Trained(objective, params, config, built_on, str(path), step)
