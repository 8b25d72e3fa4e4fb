"""One long-lived process that runs fuzz cases, each through `main` as a user's command would.

Reads a case's number a line, answers with its outcome as a line of JSON. The parent watches the
time; what kills this process, kills one case.
"""

import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from typing import Any

from benchmarks.fuzzing import corpus
from benchmarks.fuzzing.targets import TARGETS, Target
from synth2_jax import main

MAX_MEMORY = 8 << 30  # bytes a process may take; more is a MemoryError or an abort
MAX_GROWTH = 3 << 29  # bytes that one case may take beyond what the process held before
MAX_LINE = 2100  # characters of an error
FINE = ("same", "refused", "differs")
FINDINGS = ("traceback", "silent", "hang", "crash", "message", "memory", "escape")


def case_of(seed: int, number: int, names: frozenset[str] | None) -> tuple[Target, random.Random]:
    """The target of a case, and the generator that decides its damage."""
    rng = random.Random(f"{seed} {number}")
    targets = [target for target in TARGETS if names is None or target.name in names]
    (target,) = rng.choices(targets, [target.weight for target in targets])
    return target, rng


def prepare(
    target: Target, rng: random.Random | None, case: pathlib.Path, built: pathlib.Path
) -> tuple[list[str], str, str]:
    """A fresh copy of the inputs, damaged; returns (arguments, the file damaged, how)."""
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(built / target.inputs, case, symlinks=True)
    arguments = list(target.command(case, built))
    return target.damage(case, arguments, rng) if rng else (arguments, "", "")


def run_case(
    target: Target, rng: random.Random | None, case: pathlib.Path, built: pathlib.Path, before: Any
) -> dict[str, Any]:
    """Runs one case; without `rng` nothing is damaged.

    Returns {"outcome", "detail", "result": of an undamaged input, "last": whether the process is
    no good for another case}.
    """
    arguments, damaged, how = prepare(target, rng, case, built)
    held = _reset_peak()
    with _captured(case.with_suffix(".log"), case) as log:
        try:
            code = main.main(["synth2", *arguments])
        except SystemExit as error:
            code = error.code
        except BaseException:  # what `console` would end in
            traceback.print_exc()
            code = 1
    printed = log().replace(str(case), "CASE")
    grown = _peak() - held
    outcome, detail, result = _judge(target, code, printed, grown, case, damaged, before, rng)
    # After a literal that is too deep for it, Python 3.11 cannot parse another one.
    last = any("((((" in argument or "----" in argument for argument in arguments)
    detail = f"{damaged} {how}: {detail}"[:3000]
    return {"outcome": outcome, "detail": detail, "result": result, "last": last}


def _judge(
    target: Target,
    code: Any,
    printed: str,
    grown: int,
    case: pathlib.Path,
    damaged: str,
    before: Any,
    rng: random.Random | None,
) -> tuple[str, str, Any]:
    if "Traceback (most recent call last)" in printed:
        return "traceback", _last_frames(printed), None
    if grown > MAX_GROWTH:
        return "memory", f"{grown / 2**30:.1f} GiB", None
    controls = {c for c in printed if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    if controls:
        return "escape", f"printed {sorted(controls)}", None
    lines = [line for line in printed.splitlines() if line.startswith("synth2: ")]
    if code == 2:
        one = len(lines) == 1 and printed.endswith(f"{lines[0]}\n") and len(lines[0]) < MAX_LINE
        return ("refused", lines[0], None) if one else ("message", printed[-1000:], None)
    if code:
        return "message", f"exit code {code}: {printed[-500:]}", None
    try:
        result = json.loads(json.dumps(target.result(case, printed)))
    except Exception as error:
        return "silent", f"exit code 0, and no result: {error!r:.500}", None
    if rng is None:
        return "same", "", result
    if result == before:
        return "same", "", None
    wrong = target.may_differ(before, result, damaged)
    return ("silent", wrong, None) if wrong else ("differs", "", None)


def _last_frames(printed: str) -> str:
    """Our last line of the last traceback, and the exception."""
    printed = printed[printed.rindex("Traceback (most recent call last)") :]
    frames = [line.strip() for line in printed.splitlines() if line.startswith('  File "')]
    ours = [line for line in frames if "synth2_jax/" in line] or frames
    names = [line for line in printed.splitlines()[1:] if line and not line.startswith(" ")]
    return f"{ours[-1] if ours else ''} {names[0] if names else ''}"[:600]


@contextlib.contextmanager
def _captured(path: pathlib.Path, folder: pathlib.Path) -> Iterator[Any]:
    """What the process writes to both streams, also that of C++, goes to a file."""
    streams = [os.dup(1), os.dup(2)]
    here = os.getcwd()
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)

    def flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    def printed() -> str:
        flush()
        return path.read_bytes().decode("utf-8", "backslashreplace")

    try:
        yield printed
    finally:
        flush()
        os.chdir(here)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)


def _reset_peak() -> int:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def serve(folder: pathlib.Path, name: str, seed: int, names: frozenset[str] | None) -> None:
    """Runs cases until no more numbers come."""
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    built, case = folder / "corpus", folder / "cases" / name
    case.parent.mkdir(parents=True, exist_ok=True)
    corpus.start_server()
    baseline = folder / "baseline.json"
    if not baseline.exists():
        shutil.rmtree(built, ignore_errors=True)
        with _captured(folder / "corpus.log", folder):
            corpus.build(built)
        results = {}
        for target in TARGETS:
            first, again = (run_case(target, None, case, built, None) for _ in range(2))
            if first["outcome"] != "same" or first != again:
                raise SystemExit(f"{target.name}: undamaged, {first} and then {again}")
            results[target.name] = first["result"]
        baseline.write_text(json.dumps(results))
    results = json.loads(baseline.read_text())
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        for _ in range(2):
            target, rng = case_of(seed, int(line), names)
            answer = run_case(target, rng, case, built, results[target.name])
            # A thread of the case before can print into this one. It does so once.
            if answer["outcome"] != "message":
                break
        print(json.dumps(answer), file=answers, flush=True)
