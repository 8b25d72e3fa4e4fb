"""One training on one device, on two devices of one process, and on one device of each of two.

    python benchmarks/tensor_groups.py
    python benchmarks/tensor_groups.py --config=configs/scenes/generator.py:tiny --steps=5

Both devices form one `tensor` group, so that both read the same rows of each batch. Prints loss and
gradient norm of each step side by side. Exit code 1 where they differ by more than 1e-4 of their
size.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.processes import start  # noqa: E402
from benchmarks.result import run_as_command  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.training.metrics import read_metrics  # noqa: E402

RUNS = ((1, 1), (1, 2), (2, 1))  # processes, devices of each
SHOWN = ("loss", "grad_norm")
LIMIT = 1e-4


def train(num_processes: int, devices: int, argv: list[str], folder: pathlib.Path) -> list[dict]:
    """Trains in a workdir of its own under `folder`; returns {name: value} of each step."""
    workdir = folder / f"{num_processes}x{devices}"
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    mesh = f"--config.mesh.tensor={num_processes * devices}"
    command = [sys.executable, "-m", "synth2_jax.main", "train", *argv, mesh]
    processes = start(
        [*command, f"--workdir={workdir}"],
        num_processes,
        {"XLA_FLAGS": flags},
        **{"cwd": ROOT, "stderr": subprocess.PIPE, "text": True},
    )
    errors = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        raise UserError(f"{workdir.name}: training failed: {errors[0].splitlines()[-1]}")
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
    return [{name: row[name] for name in SHOWN} for row in rows]


def table(found: dict[tuple[int, int], list[dict]]) -> tuple[list[str], float]:
    """Returns the lines of the comparison, and the largest difference relative to the first run."""
    heads = [
        f"{processes} x {devices}, tensor={processes * devices}" for processes, devices in found
    ]
    lines = [f"{'processes x devices':<20}" + "".join(f"{head:>20}" for head in heads)]
    largest = 0.0
    for step, rows in enumerate(zip(*found.values(), strict=True), start=1):
        for name in SHOWN:
            values = [row[name] for row in rows]
            lines.append(
                f"{f'step {step} {name}':<20}" + "".join(f"{value:>20.6f}" for value in values)
            )
            largest = max(largest, *(abs(value / values[0] - 1) for value in values))
    return lines, largest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/scenes/vlm.py:tiny")
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    argv = [
        f"--config={given.config}",
        "--config.data.source=fake",
        "--config.optimizer.schedule=constant",
        f"--config.train.steps={given.steps}",
        "--config.train.log_every=1",
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = {run: train(*run, argv, pathlib.Path(folder)) for run in RUNS}
    lines, largest = table(found)
    print("\n".join(lines))
    print(f"largest relative difference: {largest:.1e}, limit {LIMIT:.0e}")
    sys.exit(largest > LIMIT)


if __name__ == "__main__":
    run_as_command(main)
