"""A trained model as later stages need it: what it is, its parameters and where it came from."""

import dataclasses
import os
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.training.checkpoints import fingerprint, latest_step, restore_params
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.train_state import Objective, Params


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters (numpy arrays) with the objective they were trained for.

    Attributes:
      objective: of training/objectives.py; `objective.task` holds the model's configs.
      params: as listed at the top of objectives.py.
      config: the resolved config of the run.
      fingerprints: of what the run was trained on top of.
      path: the run's workdir.
      step: of the checkpoint.
    """

    objective: Objective
    params: Params
    config: dict[str, Any]
    fingerprints: dict[str, str]
    path: str
    step: int

    def fingerprint(self, part: str) -> str:
        """Of one top-level part of the parameters, such as "tokenizer"."""
        return fingerprint(self.params[part])

    def provenance(self, part: str) -> dict[str, Any]:
        """What a manifest says of this model: {"checkpoint", "step", "fingerprint"}."""
        name = os.path.basename(os.path.normpath(self.path))
        return {"checkpoint": name, "step": self.step, "fingerprint": self.fingerprint(part)}


def load_trained(path: str, model_name: str, step: int | None = None) -> Trained:
    """Restores the newest (or given) checkpoint of a run; any number of devices will do.

    Raises:
      UserError: no path, no checkpoint there, or a checkpoint of another kind of model.
    """
    if not path:
        raise UserError(
            f"{model_name}: no checkpoint given, expected the workdir of a training run"
        )
    step = latest_step(path) if step is None else step
    params, config, fingerprints = restore_params(path, step)
    found = config.get("model_name")
    if found != model_name:
        raise UserError(f"{path}: holds a {found}, expected a {model_name}")
    objective = make_objective(model_name, config["model"])
    return Trained(objective, params, config, fingerprints, str(path), step)
