"""Runs a suite of benchmarks, one process each.

    python benchmarks/run.py --suite=cpu    # 2 cores: 9 minutes, and 6 more with a demo's generator
    python benchmarks/run.py --suite=gpu    # the paper's shapes in bfloat16
    python benchmarks/run.py --suite=tpu    # by the TPU's compiler, which needs no TPU
    python benchmarks/update_readme.py      # puts what they wrote into README and docs/

Each writes its own benchmarks/results/DEVICE/NAME.json. A peer that is not installed is skipped
and named, one that fails is named and the rest still run; the exit code is then 1. All of them,
peers included, allocate as under launch/demo.sh: in huge pages, see ALLOCATION.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import chosen, run_as_command  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Run:
    """One benchmark: the file's name and its arguments.

    It is skipped without the packages of `needs`, or the run in `trained`. `tag` tells apart two
    runs of one file.
    """

    name: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    trained: str = ""
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.tag})" if self.tag else self.name

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "benchmarks" / f"{self.name}.py"), *self.arguments]

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        absent = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        if self.trained and not (ROOT / self.trained).is_dir():
            return f"no {self.trained}, which launch/demo.sh trains"
        return ""


def _config(name: str, tag: str, path: str, *arguments: str) -> Run:
    return Run(name, (f"--config=configs/{path}.py", *arguments), tag=tag)


DEMO = "workdir/demo/generator"
# On a CPU each step takes its memory from the system again: 22,000 page faults for a small VLM.
ALLOCATION = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

SUITES = {
    "cpu": (
        Run("device_limits"),
        _config("train_step", "generator", "scenes/generator"),
        _config("train_step", "VLM", "scenes/vlm"),
        _config("parallel_decoding", "generator", "scenes/generator", "--steps=8,12,16"),
        _config("captioning", "VLM", "scenes/vlm"),
        _config("captioning", "VLM, beams", "scenes/vlm", "--beams=3", "--batches=64"),
        Run("tokenizer"),
        Run("embedding_space"),
        Run("on_the_fly"),
        Run("peer_amused", needs=("torch", "diffusers")),
        Run("peer_idefics", needs=("torch", "transformers")),
        _config("start_up", "generator", "scenes/generator"),
        _config("start_up", "VLM", "scenes/vlm"),
        Run("checkpointing", ("--repeats=3",)),
        _config("train_loop", "generator", "scenes/generator"),
        Run("input_pipeline", ("--pairs=200000",), needs=("tensorflow", "seqio")),
        Run("quality_speed", (f"--generator={DEMO}",), trained=DEMO),
    ),
    "gpu": (
        Run("device_limits"),
        Run("fused_attention"),
        _config("train_step", "generator", "paper/generator", "--batch=64"),
        _config("train_step", "VLM", "paper/vlm", "--batch=128"),
        _config("parallel_decoding", "generator", "paper/generator", "--batch=64"),
        Run(
            "peer_amused",
            ("--layers=22", "--width=1024", "--heads=16", "--batch=64", "--dtype=bfloat16")
            + ("--compile",),
            needs=("torch", "diffusers"),
        ),
        Run(
            "peer_idefics",
            ("--layers=24", "--width=1024", "--heads=16", "--mlp=3072", "--every=4")
            + ("--resampler-layers=6", "--latents=64", "--image-tokens=256", "--text=64")
            + ("--vocabulary=32128", "--batch=64", "--dtype=bfloat16", "--compile")
            + ("--microbatches=1",),
            needs=("torch", "transformers"),
        ),
        _config("captioning", "VLM", "paper/vlm"),
        _config("captioning", "VLM, beams", "paper/vlm", "--beams=3", "--batches=64"),
        _config("tokenizer", "paper", "paper/tokenizer", "--batch=128"),
        _config(
            *("on_the_fly", "paper", "paper/vlm", "--generator=configs/paper/generator.py"),
            *("--batch=64", "--rounds=3"),
        ),
        _config("start_up", "generator", "paper/generator", "--batch=64"),
        _config("start_up", "VLM", "paper/vlm", "--batch=128"),
        _config("checkpointing", "VLM", "paper/vlm", "--batch=128", "--repeats=3"),
        _config("train_loop", "VLM", "paper/vlm", "--batch=128", "--data=random"),
    ),
    "tpu": (Run("compiled_for_tpu"),),
}


def run(runs: tuple[Run, ...]) -> tuple[list[str], list[str]]:
    """Runs them in turn; returns (what failed, what was skipped and why)."""
    failed, skipped = [], []
    begun = time.perf_counter()
    for number, one in enumerate(runs, 1):
        missing = one.missing()
        if missing:
            skipped.append(f"{one}: {missing}")
            continue
        print(f"[{number}/{len(runs)}] {one}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(one.command(), cwd=ROOT, env=ALLOCATION | os.environ).returncode
        now = time.perf_counter()
        print(f"    {now - start:.0f} s, {(now - begun) / 60:.1f} min in all", flush=True)
        if code:
            failed.append(f"{one}: exit code {code}")
    return failed, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True, choices=tuple(SUITES))
    parser.add_argument("--only", help="names of benchmarks, separated by commas")
    given = parser.parse_args()
    runs = SUITES[given.suite]
    if given.only:
        names = chosen("--only", given.only, {one.name for one in runs})
        runs = tuple(one for one in runs if one.name in names)
    failed, skipped = run(runs)
    for line in skipped:
        print(f"skipped {line}")
    for line in failed:
        print(f"failed {line}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_as_command(main)
