"""Damaged inputs, thousands of them, through every stage that reads them.

    python benchmarks/fuzz.py [--cases=5000] [--seed=0] [--targets=NAME,NAME] [--workers=1] \\
        [--folder=workdir/fuzz] [--timeout=60] [--case=NUMBER]

Each case copies a small corpus, damages a file or a command line of it as the seed decides, and
runs a stage through `main` in a worker process that lives on. It ends well when the stage refuses
in one line (exit code 2), gives the result of the undamaged input, or differs where nothing
promises that it does not (see fuzzing/targets.py). Anything else is a finding: a traceback, a
silent change, a hang, a crash of the process, an error that is not one line, 1.5 GiB of memory,
terminal escapes in what is printed. Findings are kept in FOLDER/findings/NUMBER: the damaged input,
`command.txt` and `found.txt`; `--case=NUMBER` runs one again. Exit code 1 when there are any.
"""

import argparse
import collections
import json
import os
import pathlib
import select
import shlex
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzzing import targets, worker  # noqa: E402
from benchmarks.result import chosen, run_as_command  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.progress import Progress  # noqa: E402

_START_SECONDS = 600  # to import, and to make the corpus
_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


class Worker:
    """A process of `worker.serve`, started again when a case has killed it or hangs it."""

    def __init__(self, given: argparse.Namespace, name: str):
        self._given, self._name = given, name
        self._log = pathlib.Path(given.folder) / f"{name}.log"
        self._start()

    def run(self, number: int) -> dict[str, str]:
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        line = self._line(self._given.timeout)
        if line:
            answer = json.loads(line)
            if answer["last"]:
                self.close()
                self._start()
            return answer
        code = self._process.poll()
        hangs = code is None and not self._ended
        self.close()
        self._start()
        if hangs:
            return {"outcome": "hang", "detail": f"more than {self._given.timeout} CPU seconds"}
        return {"outcome": "crash", "detail": f"the process ended with {self._process_code}"}

    def close(self) -> None:
        self._process.kill()
        self._process_code = self._process.wait()

    def _start(self) -> None:
        cache = {"JAX_COMPILATION_CACHE_DIR": f"{self._given.folder}/compiled"}
        command = [sys.executable, __file__, *sys.argv[1:], f"--serve={self._name}"]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **_SETTINGS, **cache},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        if not self._line(_START_SECONDS):
            raise UserError(f"fuzz: no worker starts; see {self._log}")

    def _line(self, seconds: float) -> bytes:
        """The next line; b"" after so many seconds of the process, or ten times as many of ours.

        Its own seconds, so that a machine with other work to do finds no hangs.
        """
        start, used = time.monotonic(), self._cpu_seconds()
        ready = []
        while (
            not ready
            and time.monotonic() - start < 10 * seconds
            and self._cpu_seconds() - used < seconds
        ):
            ready, _, _ = select.select([self._process.stdout], [], [], 1.0)
        line = self._process.stdout.readline() if ready else b""
        self._ended = bool(ready) and not line
        if self._ended:
            self._process.wait()
        return line

    def _cpu_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        ticks = sum(map(int, fields.split()[11:13]))  # of the user and of the system
        return ticks / os.sysconf("SC_CLK_TCK")


def campaign(given: argparse.Namespace) -> collections.Counter:
    """Runs all cases; returns {outcome: how many}."""
    folder = pathlib.Path(given.folder)
    names = frozenset(given.targets.split(",")) if given.targets else None
    numbers = iter([given.case] if given.case is not None else range(given.cases))
    total = 1 if given.case is not None else given.cases
    counts: collections.Counter[str] = collections.Counter()
    seconds: collections.Counter[str] = collections.Counter()
    kinds: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(one: Worker) -> None:
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None or failures:
                    return
                target, _ = worker.case_of(given.seed, number, names)
                start = time.monotonic()
                found = one.run(number)
                with lock:
                    counts[found["outcome"]] += 1
                    seconds[target.name] += time.monotonic() - start
                    if found["outcome"] in worker.FINDINGS:
                        kind = (
                            f"{found['outcome']} {target.name}",
                            found["detail"].split(": ", 1)[-1],
                        )
                        kinds[kind].append(number)
                        if len(kinds[kind]) == 1:
                            _keep(folder, given.seed, number, names, found)
                            print(f"{number} {target.name} {found['outcome']} {found['detail']}")
                    progress.add(1)
        except BaseException as error:
            failures.append(error)
        finally:
            one.close()

    first = Worker(given, "worker-0")  # alone: it makes the corpus
    workers = [first, *(Worker(given, f"worker-{n}") for n in range(1, given.workers))]
    with Progress("fuzz", total, "cases") as progress:
        threads = [threading.Thread(target=work, args=(one,)) for one in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    for (kind, detail), where in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(where):5} x {kind} (case {where[0]}): {detail}")
    slow = ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.most_common(8))
    print(f"seconds by target, the most: {slow}")
    return counts


def _keep(folder, seed, number, names, found) -> None:
    """A reproducer: the damaged input, its command and what was found."""
    target, rng = worker.case_of(seed, number, names)
    kept = folder / "findings" / str(number)
    arguments, _, _ = worker.prepare(target, rng, kept / "input", folder / "corpus")
    command = shlex.join(["synth2", *arguments])
    (kept / "command.txt").write_text(command + "\n", "utf-8", "surrogateescape")
    text = f"{target.name}: {found['outcome']}\n{found['detail']}\n"
    (kept / "found.txt").write_text(text, "utf-8", "backslashreplace")


def summary(counts: collections.Counter, seconds: float, seed: int) -> str:
    """The last line."""
    plural = {"traceback": "tracebacks", "silent": "silent changes", "hang": "hangs"}
    plural |= {"crash": "crashes", "message": "bad messages", "memory": "out of memory"}
    plural |= {"escape": "terminal escapes"}
    found = ", ".join(f"{counts[name]} {plural[name]}" for name in worker.FINDINGS)
    return (
        f"{counts.total():,} cases, seed {seed}, {seconds:.0f} s: {counts['refused']:,} refused in "
        f"one line, {counts['same']:,} as undamaged, {counts['differs']:,} differ as they may; "
        f"{found}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default="")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", default="workdir/fuzz")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--case", type=int)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder = os.path.abspath(given.folder)
    known = [target.name for target in targets.TARGETS]
    names = frozenset(chosen("--targets", given.targets, known)) or None
    if given.serve:
        worker.serve(pathlib.Path(given.folder), given.serve, given.seed, names)
        return
    pathlib.Path(given.folder).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    counts = campaign(given)
    print(summary(counts, time.monotonic() - start, given.seed))
    sys.exit(1 if any(counts[name] for name in worker.FINDINGS) else 0)


if __name__ == "__main__":
    run_as_command(main)
