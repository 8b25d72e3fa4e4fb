"""Settings that a resumed run has otherwise than its checkpoint, where they change the training."""

import json
from collections.abc import Mapping
from typing import Any

from synth2_jax.config import to_json
from synth2_jax.training import train_state

# Data that differs is refused (see data/saved_position.py), and so are other pretrained parts.
_SECTIONS = ("model/", "optimizer/", "stream/")
_SHOWN = 5


def changed_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns "--config.KEY=NOW (VALUE before)" of each setting that differs, or "".

    `saved` and `now` are resolved configs. A key that only one of them has is shown as "the
    default" in the other. `train.steps` counts only where the learning rate depends on it.
    """
    before, after = _flat(saved), _flat(now)
    names = ["train/seed"]
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
