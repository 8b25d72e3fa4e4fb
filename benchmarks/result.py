"""Where benchmarks leave what they measured: benchmarks/results/DEVICE/NAME.json."""

import pathlib
from collections.abc import Mapping
from typing import Any

from synth2_jax import environment
from synth2_jax.files import write_json

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_result(name: str, result: Mapping[str, Any]) -> pathlib.Path:
    """Adds device, versions and commit; returns the file's path from the repository's root."""
    made_with = environment.describe()
    folder = ROOT / "benchmarks" / "results" / made_with["device"].replace(" ", "_")
    write_json(folder / f"{name}.json", {**result, "made_with": made_with})
    return (folder / f"{name}.json").relative_to(ROOT)
