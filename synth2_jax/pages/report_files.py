"""The parts of a demo's results.json and material.json that the report's page shows.

Any value may be absent or None: an old run lacks what is written today.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from synth2_jax.files import read_json
from synth2_jax.side_files import parse_as

Number = float | None
Numbers = Mapping[str, Number]
Curve = tuple[tuple[Number, Number], ...] | None


def _record(name: str, **hints: Any) -> type:
    """A dataclass whose fields may be absent or None."""
    fields = [(field, hint | None, None) for field, hint in hints.items()]
    return dataclasses.make_dataclass(name, fields, frozen=True)


Scene = _record("Scene", picture=str, captions=tuple[str, ...], combinations=str)
Reconstruction = _record("Reconstruction", original=str, reconstruction=str, right=bool)
Synthetic = _record(
    "Synthetic",
    caption=str,
    picture=str,
    verdict=Mapping[str, tuple[Number, Number] | None],  # (right, claimed) of each kind of claim
    read_back=str,
    unseen=bool,
)
Said = _record("Said", text=str, objects_right=float)
Tested = _record(
    "Tested",
    picture=str,
    references=tuple[str, ...],
    unseen=bool,
    captions=Mapping[str, Said | None],
)
Material = _record(
    "Material",
    scenes=tuple[Scene, ...],
    reconstructions=tuple[Reconstruction, ...],
    synthetic=tuple[Synthetic, ...],
    test=tuple[Tested, ...],
    curves=Mapping[str, Curve],
    losses=Mapping[str, Curve],
)
Results = _record(  # what is missing here is not shown
    "Results",
    arms=Mapping[str, Numbers | None],
    gains=Mapping[str, Numbers | None],
    standard_errors=Mapping[str, Numbers | None],
    tokenizer=Numbers,
    generator=Numbers,
    steps_per_second=Numbers,
    balance=Mapping[str, Numbers | None],
    steps_to_baseline=Numbers,
    seconds=float,
    seconds_by_stage=Numbers,
    peak_memory_gib=float,
    measured=Mapping[str, Mapping[str, Any] | None],
    tiny=bool,
    config=Mapping[str, Any],
    versions=Mapping[str, str | None],
    commit=str,
)


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
