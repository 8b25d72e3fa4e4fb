"""Metrics: sums and counts on the device, and where their means are written.

A metric is a pair (sum, count). Pairs are added up over devices and steps, and divided once, on the
host, when they are written; a mean of means would weigh a nearly empty batch like a full one.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.files import finite, load_json
from synth2_jax.progress import duration

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Sums = Mapping[str, Sequence[float]]  # Metrics as JSON has them: [sum, count] of each


def mean(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns sum / count, on the device; 0 where nothing was counted."""
    total, count = pair
    return total / jnp.where(count == 0, 1, count)


@jax.jit
def merge(left: Metrics, right: Metrics) -> Metrics:
    """Adds up the metrics of two steps, on the device."""
    return jax.tree.map(jnp.add, left, right)


def to_scalars(metrics: Metrics) -> dict[str, float]:
    """Fetches metrics and divides; names that counted nothing (an empty bucket) are left out."""
    return {
        name: float(total) / float(count)
        for name, (total, count) in jax.device_get(metrics).items()
        if count != 0
    }


def to_sums(metrics: Metrics) -> Sums:
    """Fetches metrics, undivided; `from_sums` gives the same ones again, bit by bit."""
    return {name: [float(v) for v in pair] for name, pair in jax.device_get(metrics).items()}


def from_sums(sums: Sums) -> Metrics:
    """The inverse of `to_sums`."""
    return {name: tuple(np.float32(value) for value in pair) for name, pair in sums.items()}


class Writer(Protocol):
    """A place that scalars go to."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step."""

    def close(self) -> None:
        """Flushes and closes."""


class JsonlWriter:
    """Appends one JSON object a line: {"step": 100, "time": unix seconds, name: value, ...}.

    A value that is not finite is written as null, which JSON has, instead of NaN, which it has not.
    """

    def __init__(self, path: str | os.PathLike[str]):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A run that was killed may have left half a line; the next one must not be glued to it.
        torn = path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        self._file = path.open("a", encoding="utf-8")
        self._file.write("\n" if torn else "")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = finite({name: float(value) for name, value in scalars.items()})
        line = {"step": int(step), "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Returns the lines of a metrics.jsonl by rising step, lines of one step merged.

    A resumed run writes again the steps after its checkpoint; the later line holds. A torn line,
    left by a killed run, is skipped.

    Raises:
      UserError: a line that holds something else than a step and numbers.
    """
    by_step: dict[int, dict[str, float]] = {}
    for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n"), start=1):
        try:
            values = load_json(line)
        except ValueError:
            continue
        if (
            not isinstance(values, dict)
            or type(values.get("step")) is not int
            or ({*map(type, values.values())} - {int, float, type(None)})
        ):
            raise UserError(
                f"{path}: line {number} is {line[:40]!r}, expected a step and numbers. Delete it"
            )
        by_step.setdefault(values["step"], {}).update(values)
    return [by_step[step] for step in sorted(by_step)]


class TensorBoardWriter:
    """Writes TensorBoard event files, without TensorFlow.

    tensorboardX's own writer puts events in a queue for a thread, which dies of a full disk or of
    a clock that is set back, and then holds up the training. This one writes them itself.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        # Not at the top: it imports PyTorch where that is installed, which takes seconds.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        self._event, self._scalar = Event, summary.scalar
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.fspath(folder / "events"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            summary = self._scalar(name, value)
            event = self._event(step=int(step), wall_time=time.time(), summary=summary)
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class ProgressWriter:
    """Shows progress on stderr: a bar on a terminal, else a line; rate and time left on both.

    `total_steps` are those of the whole run, `label` starts every line. Of the scalars those in
    SHOWN are shown, whatever is before a "/" in them; all, if none is in it.

    Raises:
      BrokenPipeError: in `write`; nothing reads the stream any more.
    """

    SHOWN = ("training_stage", "loss", "learning_rate", "cider", "objects_right")

    def __init__(self, total_steps: int, label: str = "train", stream: TextIO | None = None):
        self._total_steps, self._label = total_steps, label
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._last: tuple[int, float] | None = None
        self._rate: float | None = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._last is None or step > self._last[0]:
            if self._last is not None:
                self._rate = (step - self._last[0]) / max(now - self._last[1], 1e-9)
            self._last = (step, now)
        chosen = [name for name in scalars if name.split("/")[-1] in self.SHOWN] or scalars
        values = "  ".join(f"{name} {scalars[name]:.4g}" for name in chosen)
        line = f"{self._label} {step}/{self._total_steps}  {values}"
        if self._rate:
            left = max(self._total_steps - step, 0) / self._rate
            line += f"  {self._rate:.3g} steps/s  {duration(left)} left"
        if self._is_terminal:
            done = round(20 * min(step / max(self._total_steps, 1), 1))
            # \x1b[K clears what a longer line left behind.
            self._print(f"\r[{'#' * done}{'.' * (20 - done)}] {line}\x1b[K")
        else:
            self._print(line + "\n")

    def close(self) -> None:
        if self._is_terminal and self._last is not None:
            with contextlib.suppress(BrokenPipeError):
                self._print("\n")

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:  # a terminal that is closed is an I/O error
            raise BrokenPipeError("nothing reads the progress any more") from error


def make_writers(workdir: str | os.PathLike[str], total_steps: int, label: str) -> list[Writer]:
    """Returns the usual writers: metrics.jsonl and tensorboard/ in `workdir`, and progress.

    On a process that is not the first it returns none: every process holds the same global means.
    """
    if jax.process_index():
        return []
    workdir = pathlib.Path(workdir)
    return [
        JsonlWriter(workdir / "metrics.jsonl"),
        TensorBoardWriter(workdir / "tensorboard"),
        ProgressWriter(total_steps, label),
    ]
