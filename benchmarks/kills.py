"""Every stage killed at random times and started again: the results must equal undisturbed ones.

    nice python benchmarks/kills.py [--kills=100] [--seed=0] [--folder=workdir/kills]

One undisturbed run of each stage makes small models and pairs. Then, round by round and stage by
stage, the same command runs in another folder, is killed (SIGKILL) once or twice, and is started
again until it ends by itself. What it leaves must be that of the undisturbed run bit by bit: every
array of the last checkpoint, the logged losses, and every byte of pairs, captions, scores, results
and exports. Where two processes train together, one is killed and the other a little later.

Stopped, the same command goes on with the next round. A round that differs keeps its folder. Writes
benchmarks/results/DEVICE/kills.json; the exit code is 1 unless all rounds are equal.

Processes are forked from one that has imported the stages: no kill is spent on imports.
"""

import argparse
import atexit
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.kill_commands import Command, commands  # noqa: E402
from benchmarks.processes import free_address  # noqa: E402
from benchmarks.result import run_as_command, write_result  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.files import read_json_lines, write_json, write_json_lines  # noqa: E402

_TIMES = ("time", "steps_per_second", "input_wait_share", "seconds_to_first_step")
_FAILED_STARTS = 3  # in a row; then a round is given up
_POLL_SECONDS = 0.05
_FORKED = multiprocessing.get_context("forkserver")
_PRELOADED = ("train", "tokenize", "captions", "synthesize", "filter", "encode_captions", "export")


class Run:
    """The processes of one command, forked and started."""

    def __init__(self, command: Command, folder: pathlib.Path):
        self.folder = folder
        arguments = [argument.replace("{0}", str(folder)) for argument in command.arguments]
        environ = {}
        if command.num_processes > 1:
            environ["SYNTH2_COORDINATOR"] = free_address()
            environ["SYNTH2_NUM_PROCESSES"] = str(command.num_processes)
        self.processes = [
            _FORKED.Process(
                target=_synth2,
                args=(arguments, environ | {"SYNTH2_PROCESS_ID": str(index)}, f"{folder}.log"),
            )
            for index in range(command.num_processes)
        ]
        for process in self.processes:
            process.start()

    def wait(self, progress: float = float("inf"), seconds: float = float("inf")) -> int:
        """Waits until the processes have ended, or got so far, or for so long.

        Returns:
          the progress: files that were seen under their final names, and lines of metrics.
        """
        seen, start = set(), time.monotonic()
        while not self.has_ended() and time.monotonic() - start < seconds:
            seen |= _written(self.folder)
            if len(seen) >= progress:
                break
            time.sleep(_POLL_SECONDS)
        return len(seen | _written(self.folder))

    def has_ended(self) -> bool:
        return all(process.exitcode is not None for process in self.processes)

    def kill(self, rng: random.Random) -> None:
        """Kills all processes, the later ones up to a second after the first."""
        for process in rng.sample(self.processes, len(self.processes)):
            process.kill()
            process.join()
            time.sleep(rng.random() if len(self.processes) > 1 else 0)

    def succeeded(self) -> bool:
        return all(process.exitcode == 0 for process in self.processes)


def _synth2(arguments: list[str], environ: Mapping[str, str], log: str) -> None:
    """What a forked process does: `synth2 ARGUMENTS`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environ)
    sys.argv = ["synth2", *arguments]
    from synth2_jax import main

    try:
        main.console()
    finally:
        atexit._run_exitfuncs()  # a forked process runs none, and JAX's processes part by one


def check_environment(note: pathlib.Path) -> None:
    """Raises UserError unless programs are compiled as they were when the campaign began."""
    now = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    now.pop("JAX_COMPILATION_CACHE_DIR", None)
    if not note.exists():
        write_json(note, now)
    before = json.loads(note.read_text())
    if before != now:
        raise UserError(
            f"environment: found {now}, expected {before} as this campaign began. Set it so, or "
            "give another --folder."
        )


def make(name: str, command: Command, made: pathlib.Path) -> dict[str, float]:
    """Runs a command undisturbed, unless that was done; returns its {"progress", "seconds"}."""
    folder, note = made / name, made / f"{name}.json"
    if not note.exists():
        _clear(folder, command)
        start, run = time.monotonic(), Run(command, folder)
        progress = run.wait()
        if not run.succeeded():
            raise SystemExit(f"{name} failed; see {folder}.log")
        seconds = time.monotonic() - start
        write_json(note, {"progress": progress, "seconds": seconds})
        print(f"{name}: {seconds:.0f} s undisturbed", flush=True)
    return json.loads(note.read_text())


def disturb(
    command: Command, folder: pathlib.Path, usual: Mapping[str, float], rng: random.Random
) -> tuple[int, float]:
    """Returns (kills, seconds that the last start took until it ended well, else NaN).

    Half of the kills are at any time, half as soon as the command has got so far: those hit the
    work, however long the start takes.
    """
    _clear(folder, command)
    kills, failed, wanted = 0, 0, rng.choice((1, 2))
    while failed < _FAILED_STARTS:
        run, start = Run(command, folder), time.monotonic()
        if kills < wanted:
            if rng.random() < 0.5:
                run.wait(seconds=rng.uniform(0, 0.9 * usual["seconds"]))
            else:
                run.wait(progress=rng.uniform(1, 0.9 * usual["progress"]))
                time.sleep(rng.uniform(0, 2 * _POLL_SECONDS))
            if not run.has_ended():
                run.kill(rng)
                kills += 1
                continue
        run.wait()
        if run.succeeded():
            return kills, time.monotonic() - start
        failed += 1
    return kills, math.nan


def contents(folder: pathlib.Path) -> dict[str, str]:
    """{name: hash} of all that must be equal; hidden files are what a killed writer left."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.name == "checkpoints":
            found |= {f"{name}/{key}": value for key, value in _checkpoint(path).items()}
        elif path.name == "metrics.jsonl":
            found[str(name)] = _hash(json.dumps(_exact_metrics(path)).encode())
        elif {"checkpoints", "tensorboard"} & set(name.parts) or path.name.startswith("."):
            continue
        elif path.is_file():
            found[str(name)] = _hash(path.read_bytes().replace(str(folder).encode(), b"{0}"))
    return found


def _checkpoint(folder: pathlib.Path) -> dict[str, str]:
    """Hashes of the arrays of the last step."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from synth2_jax.training import checkpoint_reader

    step = checkpoint_reader.latest_step(folder)
    found = {"step": str(step)}
    for item in ("params", "train"):
        path = folder / str(step) / item
        saved = ocp.PyTreeCheckpointHandler().metadata(path).tree
        # As numpy: the devices of other processes are not here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        args = ocp.args.PyTreeRestore(item=saved, restore_args=as_numpy)
        tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path, args=args)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{item}{jax.tree_util.keystr(path)}"] = _hash(np.asarray(leaf).tobytes())
    return found


def _exact_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    from synth2_jax.training.metrics import read_metrics

    rows = read_metrics(path)
    return [{k: v for k, v in sorted(row.items()) if k not in _TIMES} for row in rows]


def _hash(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16]


def _clear(folder: pathlib.Path, command: Command) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, source in command.inputs.items():
        shutil.copytree(source, folder / name)


def _written(folder: pathlib.Path) -> set[str]:
    """Files under their final names, and lines of metrics."""
    found = set()
    for root, _, files in os.walk(folder):
        if ".orbax-checkpoint-tmp" not in root:
            found |= {f"{root}/{name}" for name in files if not name.startswith(".")}
    for path in [name for name in found if name.endswith("/metrics.jsonl")]:
        with open(path, "rb") as file:
            found |= {f"{path}:{number}" for number, _ in enumerate(file)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="workdir/kills")
    parser.add_argument("--stages", default="", help="some of them, with commas; all")
    given = parser.parse_args()
    top = pathlib.Path(given.folder).absolute()
    top.mkdir(parents=True, exist_ok=True)
    _FORKED.set_forkserver_preload([f"synth2_jax.stages.{name}" for name in _PRELOADED])
    check_environment(top / "environment.json")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(top / "compiled"))
    made, every = top / "made", commands(top / "made")
    made.mkdir(exist_ok=True)
    usual = {name: make(name, command, made) for name, command in every.items()}
    expected = {name: contents(made / name) for name in every}
    path = top / f"rounds_seed{given.seed}.jsonl"
    rounds = read_json_lines(path) if path.exists() else []
    names = given.stages.split(",") if given.stages else list(every)
    while sum(done["kills"] for done in rounds) < given.kills:
        number = len(rounds)
        name = names[number % len(names)]
        folder = top / f"round-{number:04d}"
        rng = random.Random(f"{given.seed} {number}")
        kills, seconds = disturb(every[name], folder, usual[name], rng)
        ended = not math.isnan(seconds)
        usual[name]["seconds"] = seconds if ended else usual[name]["seconds"]  # as busy as now
        found = contents(folder) if ended else {}
        differs = sorted(
            key
            for key in expected[name].keys() | found.keys()
            if expected[name].get(key) != found.get(key)
        )
        differs = differs if ended else ["it did not end well"]
        rounds.append({"stage": name, "kills": kills, "differs": differs[:20]})
        write_json_lines(path, rounds)
        verdict = f"DIFFERS, see {folder}: {rounds[-1]['differs'][:3]}" if differs else "equal"
        total = sum(done["kills"] for done in rounds)
        print(f"{total} kills; {name}, {kills} of them: {verdict}", flush=True)
        if not differs:
            shutil.rmtree(folder)
            pathlib.Path(f"{folder}.log").unlink()
    total = sum(done["kills"] for done in rounds)
    equal = sum(done["kills"] for done in rounds if not done["differs"])
    by_stage = {name: sum(r["kills"] for r in rounds if r["stage"] == name) for name in every}
    result = {"kills": total, "equal": equal, "kills_by_stage": by_stage, "rounds": rounds}
    print(write_result("kills", result))
    print(f"{equal} of {total} kills over {len(every)} stages ended bit-identical")
    sys.exit(equal != total)


if __name__ == "__main__":
    run_as_command(main)
