"""Runs the steps of an experiment, each once; the files in its workdir say what is done."""

import functools
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from synth2_jax import folder_lock
from synth2_jax.errors import UserError, in_section
from synth2_jax.experiments.notes import Notes
from synth2_jax.loading.run import Trained
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages import train
from synth2_jax.training import checkpoint_reader


class StepRunner:
    """Runs stages by the sections of one config, in folders of one workdir.

    Attributes:
      notes: what its steps note in the workdir.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: str):
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.notes = Notes(self.workdir)

    def path(self, *names: str) -> str:
        return str(self.workdir.joinpath(*names))

    def _noted(self, section: str) -> dict[str, Any]:
        """The config that a step's result depends on."""
        return self.config[section].to_dict()

    def _train(
        self,
        name: str,
        section: str,
        filled: Mapping[str, Any],
        changed: Mapping[str, Any] | None = None,
        more_noted: Mapping[str, Any] | None = None,
    ) -> Trained:
        folder, given = self.path(name), self.config[section]
        steps = (changed or {}).get("train.steps", given.train.steps)
        is_done = functools.partial(_is_trained, folder, steps)
        self._run(train, name, folder, section, filled, is_done, changed, more_noted)
        return load_trained(folder, given.model_name)

    def _run(
        self,
        stage: types.ModuleType,
        step: str,
        folder: str,
        section: str,
        filled: Mapping[str, Any],
        is_done: Callable[[], bool] = lambda: False,
        changed: Mapping[str, Any] | None = None,
        more_noted: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs a stage unless it is done, by a section with values at dotted keys.

        Args:
          filled: what follows from the step, such as paths.
          changed: what makes this step another than the section's, for the notes too.
          more_noted: what else its result depends on, for the notes alone.

        Raises:
          UserError: the step was begun under another config.
        """
        changed = changed or {}
        noted = changed_section(self._noted(section), changed).to_dict() | dict(more_noted or {})
        self.notes.check_same(step, noted)
        if is_done():
            return
        config = changed_section(self.config[section], {**changed, **filled})
        run = functools.partial(stage.run, config, folder)
        self._step(step, section, folder, run, noted)

    def _step(
        self,
        name: str,
        section: str,
        folder: str,
        function: Callable[[], Any],
        noted: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs a function that writes to `folder`; no other command may write there meanwhile."""
        print(f"== {name}", flush=True)
        self.notes.begin(name, self._noted(section) if noted is None else noted)
        lock = pathlib.Path(folder, folder_lock.LOCK)
        with (
            self.notes.timed(name),
            folder_lock.hold(lock, folder, f"the step {name}"),
            in_section(section),
        ):
            function()


def changed_section(
    config: Any, values: Mapping[str, Any], where: str = "--config"
) -> ml_collections.ConfigDict:
    """The section with values at dotted keys, also such that the config file could not know.

    Raises:
      UserError: a key leads through a value.
    """
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    for key, value in values.items():
        *above, last = key.split(".")
        section, path = plain, where
        for name in above:
            section, path = section.setdefault(name, {}), f"{path}.{name}"
            if not isinstance(section, dict):
                raise UserError(f"{path}: found {section!r:.60}, which has no keys (found {key!r})")
        section[last] = value
    return ml_collections.ConfigDict(plain, type_safe=False).unlock()


def _is_trained(folder: str, steps: int) -> bool:
    if not pathlib.Path(folder, "checkpoints").is_dir():
        return False
    try:
        step = checkpoint_reader.latest_step(folder)
        return step >= steps and checkpoint_reader.is_intact(folder, step)
    except UserError:  # a run that was stopped before its first checkpoint
        return False
