"""Resuming a run: from its newest checkpoint, if nothing that it depends on has changed."""

import json
import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from synth2_jax.config import to_json
from synth2_jax.errors import ChangedError, UserError
from synth2_jax.fingerprint import older_forms
from synth2_jax.training import train_state
from synth2_jax.training.checkpoints import Checkpoints, DataIterator, Restored
from synth2_jax.training.metrics import Sums
from synth2_jax.training.train_state import TrainState

# Data that differs is refused (see data/saved_position.py), and so are other pretrained parts.
_SECTIONS = ("init/", "model/", "optimizer/", "stream/")
_SHOWN = 5
# What older versions did where their runs say nothing; runs of this version say it.
_UNSAID = {"model/images_per_text": 1, "optimizer/weight_decay_skip": []}


def resume(
    checkpoints: Checkpoints,
    layout: TrainState,
    iterator: DataIterator,
    built_on: Mapping[str, str],
    resolved_config: Mapping[str, Any],
) -> tuple[TrainState | None, Sums]:
    """Restores the newest checkpoint that is intact, and the position of the data.

    Returns the state, and the sums of metrics that are not written yet; (None, {}) if there is no
    checkpoint.

    Raises:
      UserError: a checkpoint of another model, on other pretrained parts or on other data.
    """

    def go_on(restored: Restored) -> None:
        for name in sorted(built_on.keys() | restored.built_on.keys()):
            saved, now = restored.built_on.get(name), built_on.get(name)
            if saved != now and not (now and saved in older_forms(now)):
                raise ChangedError(
                    f"--config.pretrained.{name}: {checkpoints.folder} was trained with {name} "
                    f"{saved}, this run has {now}"
                )
        if restored.num_shards == checkpoints.data_layout.num_shards:
            iterator.set_state(restored.iterator)
        else:
            logging.warning(
                "%s: saved with %d data shards, this run has %d: %s",
                *(checkpoints.folder, restored.num_shards, checkpoints.data_layout.num_shards),
                iterator.restart(restored.iterator, int(restored.state.step)),
            )
        if restored.had_average != bool(restored.state.average):
            logging.warning(
                "%s: --config.train.ema_decay: %s",
                checkpoints.folder,
                "the moving average ends here: later stages take the parameters of the next steps"
                if restored.had_average
                else f"a moving average begins at the parameters of step {restored.state.step}",
            )
        if changed := changed_settings(restored.config, resolved_config):
            logging.warning("%s: resumes with other settings: %s", checkpoints.folder, changed)
        logging.info("resumed at step %d from %s", restored.state.step, checkpoints.folder)

    try:
        restored = checkpoints.restore(layout, go_on)
    except ChangedError as error:
        raise UserError(
            f"{error}. Undo the change; or {new_run_from(checkpoints.folder.parent)}"
        ) from error
    return (restored.state, restored.sums) if restored else (None, {})


def new_run_from(workdir: str | os.PathLike[str]) -> str:
    """Returns how to train the parameters of a run further on other data, or in another way."""
    return f"start a new run from its parameters: --workdir=NEW --config.init.from={workdir}"


def changed_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns "--config.KEY=NOW (VALUE before)" of each setting that differs, or "".

    `saved` and `now` are resolved configs. A key that only one of them has is shown as "the
    default" in the other, or compared with what an older version did without the key.
    `train.steps` counts only where the learning rate depends on it.
    """
    before, after = _flat(saved), _flat(now)
    before |= {key: _UNSAID[key] for key in _UNSAID.keys() & after.keys() - before.keys()}
    names = ["train/seed", "train/ema_decay"]
    if any(flat.get("optimizer/schedule", "constant") != "constant" for flat in (before, after)):
        names.append("train/steps")
    keys = [
        key
        for key in sorted(before.keys() | after.keys())
        if (key in names or key.startswith(_SECTIONS)) and before.get(key) != after.get(key)
    ]
    lines = [
        f"--config.{key.replace('/', '.')}={after.get(key, 'the default')} "
        f"({before.get(key, 'the default')} before)"
        for key in keys[:_SHOWN]
    ]
    return ", ".join(lines + [f"{len(keys) - _SHOWN} more"] * (len(keys) > _SHOWN))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return train_state.flatten(json.loads(to_json(config)))  # JSON's types, as in a checkpoint
