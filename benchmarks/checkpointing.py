"""Saving and restoring a train state: bytes a second beside the disk's, and what it costs a run.

    python benchmarks/checkpointing.py [--config=configs/scenes/generator.py] [--batch=64]
        [--window=20] [--repeats=5] [--folder=workdir/checkpointing]
    python benchmarks/checkpointing.py --config=configs/paper/vlm.py --batch=128

A save counts until every byte is on the disk, a restore until the state is on the device. The limit
is one file of as many bytes, written or read from one end to the other in the same folder in turn
with them. What was written is dropped from the memory's cache before it is read, where the system
can do that. Moments are those after some steps: zeros would be compressed to nothing.

The cost is that of the real loop (`synth2_jax.training.train_loop`) on random batches: windows of
steps with a save in their middle, in turn with windows without, as a share of 1000 steps. A window
is long enough for the writing in the background to end in it; on a CPU it takes cores from the
steps. Writes benchmarks/results/DEVICE/checkpointing_NAME.json.
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.bare_steps import BareSteps, Training, training_of  # noqa: E402
from benchmarks.result import Figure, names_of, number, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.training import checksums  # noqa: E402
from synth2_jax.training.checkpoints import Checkpoints  # noqa: E402
from synth2_jax.training.train_loop import TrainLoopConfig, train  # noqa: E402

SCENES = "configs/scenes/generator.py"
PERIOD = 1000  # steps from one checkpoint of a run to the next
_CHUNK = 2**24
_STEPS = 4  # before the save, of which all but the first are timed


class TimedBatches(FakeBatches):
    """FakeBatches that note when each was drawn, in seconds of `time.perf_counter`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drawn_at: list[float] = []

    def __next__(self):
        self.drawn_at.append(time.perf_counter())
        return super().__next__()


def write_plainly(path: pathlib.Path, num_bytes: int) -> float:
    """Seconds until a file of random bytes is on the disk."""
    chunk = np.random.default_rng(0).bytes(min(_CHUNK, num_bytes))
    start = time.perf_counter()
    with path.open("wb") as file:
        for offset in range(0, num_bytes, _CHUNK):
            file.write(chunk[: num_bytes - offset])
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def read_plainly(path: pathlib.Path) -> float:
    """Seconds to read a file from one end to the other."""
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass
    return time.perf_counter() - start


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Those of all folders in it."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def drop_from_memory(folder: pathlib.Path) -> None:
    """Makes the next reader of the files go to the disk, where the system lets us."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files_in(folder):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measure_disk(state, layout, iterator, folder: pathlib.Path, repeats: int) -> dict[str, float]:
    """Median seconds of a save (until it returns, and until it is durable), a restore, and of as
    many bytes written and read plainly; of the checksums of files that were read just before, which
    a restore includes; and the bytes and files that a checkpoint has."""
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    seconds: dict[str, list[float]] = {
        name: [] for name in ("write", "blocked", "save", "read", "restore", "checksums")
    }
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            workdir = pathlib.Path(name)
            seconds["write"].append(write_plainly(workdir / "plain", num_bytes))
            with Checkpoints(workdir) as checkpoints:
                start = time.perf_counter()
                checkpoints.save(state, iterator, {}, {})
                seconds["blocked"].append(time.perf_counter() - start)
                checkpoints.wait()
                seconds["save"].append(time.perf_counter() - start)
            drop_from_memory(workdir)
            seconds["read"].append(read_plainly(workdir / "plain"))
            with Checkpoints(workdir) as checkpoints:
                start = time.perf_counter()
                jax.block_until_ready(checkpoints.restore(layout).state)
                seconds["restore"].append(time.perf_counter() - start)
                start = time.perf_counter()
                checksums.check(workdir / "checkpoints" / str(checkpoints.latest_step()))
                seconds["checksums"].append(time.perf_counter() - start)
            (workdir / "plain").unlink()
            files = files_in(workdir)
            stored = sum(path.stat().st_size for path in files)
    found = {f"{name}_seconds": statistics.median(taken) for name, taken in seconds.items()}
    return {"bytes": num_bytes, "bytes_on_disk": stored, "files": len(files), **found}


def measure_stall(
    training: Training, iterator: TimedBatches, window: int, saves: int, workdir
) -> tuple[float, float]:
    """(seconds that a save adds to the loop, seconds of a step), medians over `saves` windows.

    Saves are `2 * window` steps apart; the window around each lasts from half a window before it to
    half a window after it, and the rest is the window without. The first, with the compilation,
    counts nowhere.
    """
    half = window // 2
    steps = 2 * window * saves + window + half + 1
    config = TrainLoopConfig(
        steps=steps, checkpoint_every=2 * window, microbatches=training.microbatches
    )
    train(training.objective, training.tx, training.mesh, iterator, config, workdir)
    return stall(iterator.drawn_at, window, saves)


def stall(drawn_at: list[float], window: int, saves: int) -> tuple[float, float]:
    """What `measure_stall` returns, of the times at which batches 0, 1, 2, ... were drawn."""
    half = window // 2

    def seconds_around(step: int) -> float:
        return drawn_at[step + half] - drawn_at[step - half]

    added, without = [], []
    for number_of_save in range(1, saves + 1):
        step = 2 * window * number_of_save
        without.append(seconds_around(step + window))
        added.append(seconds_around(step) - without[-1])
    return statistics.median(added), statistics.median(without) / (2 * half)


def measure(
    config, batch_size: int, window: int, repeats: int, folder: pathlib.Path
) -> dict[str, float]:
    """Of the disk and of the loop; `window` steps at least, of which more are taken where a save
    needs them."""
    training = training_of(config)
    spec = training.objective.batch_spec(batch_size)
    iterator = FakeBatches(spec)
    bare = BareSteps(training, next(iterator))
    jax.block_until_ready(bare.run(1))
    start = time.perf_counter()
    jax.block_until_ready((bare.run(_STEPS - 1), bare.state))
    step_seconds = (time.perf_counter() - start) / (_STEPS - 1)
    folder.mkdir(parents=True, exist_ok=True)
    found = measure_disk(bare.state, bare.layout, iterator, folder, repeats)
    del bare  # the loop makes a state of its own, and two may not fit
    window = max(window, 2 * math.ceil(1.5 * found["save_seconds"] / step_seconds))
    window += window % 2
    timed = TimedBatches(spec)
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        added, step_seconds = measure_stall(training, timed, window, repeats, workdir)
    return {
        **found,
        "batch_size": batch_size,
        "window_steps": window,
        "seconds_per_step": step_seconds,
        "seconds_added_by_a_save": added,
        "share_of_period": added / (PERIOD * step_seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=SCENES, help="of `synth2 train`")
    parser.add_argument("--batch", type=int, help="rows; else those of the config")
    parser.add_argument("--window", type=int, default=20, help="steps around a save, at least")
    parser.add_argument("--repeats", type=int, default=5, help="saves, of which the median counts")
    parser.add_argument("--folder", default="workdir/checkpointing", help="on the disk to measure")
    given = parser.parse_args()
    config = config_lib.load_config(given.config)
    batch_size = given.batch or config.data.batch_size
    folder = pathlib.Path(given.folder)
    result = measure(config, batch_size, given.window, given.repeats, folder)
    scale, model = names_of(given.config)
    where = f"{scale} {model}"
    size = f"{number(result['bytes'] / 1e6)} MB in {result['files']} files"
    saved, restored = result["save_seconds"], result["restore_seconds"]
    checksums_share = result["checksums_seconds"] / restored
    figures = [
        Figure(
            f"saving a checkpoint, {where}, {size}",
            result["bytes"] / 1e6 / saved,
            "MB/s",
            result["write_seconds"] / saved,
            "disk",
            f"durable after {number(saved)} s, the loop goes on after "
            f"{number(result['blocked_seconds'])} s",
        ),
        Figure(
            f"restoring a checkpoint, {where}, {size}",
            result["bytes"] / 1e6 / restored,
            "MB/s",
            result["read_seconds"] / restored,
            "disk",
            f"in {number(restored)} s; checksums take {number(100 * checksums_share)} % of it",
        ),
        Figure(
            f"time that a checkpoint each {PERIOD} steps costs, {where}, batch {batch_size}",
            100 * result["share_of_period"],
            "%",
            note=f"{number(result['seconds_added_by_a_save'])} s each; asked: below 2 %",
        ),
    ]
    result |= {"config": given.config}
    print(write_result(f"checkpointing_{scale}_{model}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
