"""What the report's page shows of a demo's results.json and material.json.

Any value may be absent or None: an old run lacks what is written today.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from synth2_jax.files import read_json
from synth2_jax.side_files import parse_as

Number = float | None
Text = str | None
Curve = tuple[tuple[Number, Number], ...] | None


@dataclasses.dataclass(frozen=True)
class Scene:
    picture: Text = None
    captions: tuple[str, ...] | None = None
    combinations: Text = None


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    original: Text = None
    reconstruction: Text = None
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """`verdict` has (right, claimed) of each kind of claim."""

    caption: Text = None
    picture: Text = None
    verdict: Mapping[str, tuple[Number, Number] | None] | None = None
    read_back: Text = None
    unseen: bool | None = None


@dataclasses.dataclass(frozen=True)
class Said:
    text: Text = None
    objects_right: Number = None


@dataclasses.dataclass(frozen=True)
class Tested:
    picture: Text = None
    references: tuple[str, ...] | None = None
    unseen: bool | None = None
    captions: Mapping[str, Said | None] | None = None


@dataclasses.dataclass(frozen=True)
class Material:
    """See `report_page.render_page`."""

    scenes: tuple[Scene, ...] | None = None
    reconstructions: tuple[Reconstruction, ...] | None = None
    synthetic: tuple[Synthetic, ...] | None = None
    test: tuple[Tested, ...] | None = None
    curves: Mapping[str, Curve] | None = None
    losses: Mapping[str, Curve] | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """See `report_page.render_page`. What is missing here is not shown."""

    arms: Mapping[str, Mapping[str, Number] | None] | None = None
    standard_errors: Mapping[str, Mapping[str, Number] | None] | None = None
    tokenizer: Mapping[str, Number] | None = None
    generator: Mapping[str, Number] | None = None
    steps_per_second: Mapping[str, Number] | None = None
    balance: Mapping[str, Mapping[str, Number] | None] | None = None
    steps_to_baseline: Mapping[str, Number] | None = None
    seconds: Number = None
    seconds_by_stage: Mapping[str, Number] | None = None
    peak_memory_gib: Number = None
    measured: Mapping[str, Mapping[str, Any] | None] | None = None
    tiny: bool | None = None
    config: Mapping[str, Any] | None = None
    versions: Mapping[str, Text] | None = None
    commit: Text = None


def read_report(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(results, material) of the folder that a demo writes its report to.

    Raises:
      UserError: a file that is not there, or a value of another type than the page needs.
    """

    def read(cls: type, path: pathlib.Path) -> dict[str, Any]:
        known = {field.name for field in dataclasses.fields(cls)}
        shown = {key: value for key, value in read_json(path, "demo").items() if key in known}
        parse_as(cls, shown, path, "demo")
        return shown

    return read(Results, folder / "results.json"), read(Material, folder / "material.json")
