"""Notes of an experiment's steps in its workdir: config, commit, seconds and memory.

WORKDIR/made_with.json holds the config and the commit that each step began with: under another
config its result is refused, not taken for new.
"""

import contextlib
import dataclasses
import json
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from synth2_jax import environment
from synth2_jax.errors import UserError
from synth2_jax.files import read_json, write_json
from synth2_jax.pages.numbers import flat
from synth2_jax.side_files import parse_as


@dataclasses.dataclass(frozen=True)
class _PeakMemory:
    gib: float


@dataclasses.dataclass(frozen=True)
class _Made:
    commit: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Files:
    """The contents of each file."""

    seconds: Mapping[str, float] | None = None
    peak_memory: _PeakMemory | None = None
    made_with: Mapping[str, _Made] | None = None


class Notes:
    """The notes of a workdir.

    Attributes:
      seconds: {step: seconds} of what this process did.
    """

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self.seconds: dict[str, float] = {}

    def _read(self, name: str) -> dict[str, Any]:
        """The contents of NAME.json, a field of `_Files`; none before it is written."""
        path = self._workdir / f"{name}.json"
        if not path.exists():
            return {}
        values = read_json(path, "demo")
        parse_as(_Files, {name: values}, path, "demo")
        return values

    def check_same(self, step: str, config: Mapping[str, Any]) -> None:
        """Raises UserError when the step was begun under another config.

        A step that an older version began has no note of its arm, and is taken for the same.
        """
        made_with = self._read("made_with")
        if step not in made_with:
            return
        noted = made_with[step]["config"]
        if "arm" not in noted:
            config = {key: value for key, value in config.items() if key != "arm"}
        before, now = _leaves(noted), _leaves(json.loads(json.dumps(config)))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{self._workdir}: {step} was made with {key}={before.get(key)!r}, found "
                    f"{now.get(key)!r}; another config needs another workdir"
                )

    def begin(self, step: str, config: Mapping[str, Any]) -> None:
        """Notes the config and the commit of a step, unless it was begun before."""
        made_with = self._read("made_with")
        if step not in made_with:
            made = {"commit": environment.commit(), "config": config}
            write_json(self._workdir / "made_with.json", {**made_with, step: made})

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the seconds of the body, which count too where it is stopped."""
        start = time.monotonic()
        try:
            yield
        finally:
            for times in (self.seconds, known := self.times()):
                times[step] = times.get(step, 0.0) + time.monotonic() - start
            write_json(self._workdir / "seconds.json", known)
            self.peak_memory_gib()

    def times(self) -> dict[str, float]:
        """{step: seconds} of all runs in this workdir."""
        return self._read("seconds")

    def peak_memory_gib(self) -> float:
        """The most that any process in this workdir had resident, this one included."""
        peak = max(_peak_memory_gib(), self._read("peak_memory").get("gib", 0.0))
        write_json(self._workdir / "peak_memory.json", {"gib": peak})
        return peak

    def commits(self) -> list[str]:
        """The commits that the steps in the workdir began with, sorted."""
        return sorted({made["commit"] for made in self._read("made_with").values()} - {""})


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": leaf}; lists are leaves, an empty section is as none."""
    return {key: value for key, value in flat(config) if value != {}}


def _peak_memory_gib() -> float:
    """Returns the peak memory of the largest of this process and its finished children."""
    usages = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return max(resource.getrusage(who).ru_maxrss for who in usages) * unit / 2**30
