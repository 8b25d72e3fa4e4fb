"""What every benchmark shares: figures with their limit, where results go, and how a call fails.

A result is benchmarks/results/DEVICE/NAME.json: what was measured, under "figures" the numbers that
README and docs/ show, and under "made_with" device, versions, commit, and of the environment what
changes speed.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from synth2_jax import environment
from synth2_jax.errors import UserError, nearest
from synth2_jax.files import write_json

ROOT = pathlib.Path(__file__).resolve().parent.parent
# How memory is allocated and programs are compiled.
ENVIRONMENT = ("GLIBC_TUNABLES", "MALLOC_CONF", "LD_PRELOAD", "XLA_FLAGS")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number, and beside it the best that the device could do.

    Attributes:
      name: what was measured, with its shapes, such as "decoding, paper, batch 64, 8 steps".
      value: in `unit`, a rate or a ratio (the more the better) unless the unit is a time.
      unit: such as "pairs/s", "x" for a ratio, "%" for a share of 100.
      share: of the limit that was reached, above 1 by noise alone; None where there is no limit.
      bound: what that limit is: "matmul" or "copy" (`device_limits.least_seconds`), "disk", "bare
        steps", or "".
      note: the rest of a sentence, such as whose loop a ratio is over.
    """

    name: str
    value: float
    unit: str
    share: float | None = None
    bound: str = ""
    note: str = ""

    def __str__(self) -> str:
        limit = f", {self.share:.1%} of the {self.bound} limit" if self.share is not None else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}: {number(self.value)} {self.unit}{limit}{note}"


def number(value: float) -> str:
    """Three digits, without an exponent: 0.0123, 4.56, 78.9, 1230."""
    if not value:
        return "0"
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")


def names_of(config: str) -> tuple[str, str]:
    """("scenes", "vlm") of configs/scenes/vlm.py:WORDS."""
    path = pathlib.Path(config.partition(":")[0])
    return path.parent.name, path.stem


def write_result(
    name: str, result: Mapping[str, Any], figures: Sequence[Figure] = (), device: str = ""
) -> pathlib.Path:
    """Prints the figures, adds what they were made with; returns the file's path from ROOT.

    `device` is what was measured, where that is not what this process runs on.
    """
    for figure in figures:
        print(figure)
    made_with = environment.describe()
    made_with["device"] = device or made_with["device"]
    made_with |= {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)}
    folder = ROOT / "benchmarks" / "results" / made_with["device"].replace(" ", "_")
    shown = {"figures": [dataclasses.asdict(figure) for figure in figures]} if figures else {}
    write_json(folder / f"{name}.json", {**result, **shown, "made_with": made_with})
    return (folder / f"{name}.json").relative_to(ROOT)


def chosen(option: str, given: str, known: Iterable[str]) -> list[str]:
    """Returns the names in a list with commas; UserError on one that is not known."""
    names, known = list(filter(None, given.split(","))), set(known)
    for name in names:
        if name not in known:
            raise UserError(f"{option}: unknown {name!r}; {nearest(name, known)}")
    return names


def run_as_command(main: Callable[[], None]) -> None:
    """Runs a benchmark's `main`; what a user can mend is one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{pathlib.Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
