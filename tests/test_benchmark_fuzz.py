"""The fuzz campaign: what it damages, what it takes for a finding, and that there is none."""

import json
import pathlib
import random
import subprocess
import sys

import pytest

from benchmarks.fuzzing import mutations, targets, worker
from synth2_jax import main
from synth2_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    "contents", [b"", b"x", b'{"a": [1, {"b": "c"}]}', b'{"a": 1}\n{"a": 2}\n']
)
def test_damage_changes_something_and_the_seed_decides_what(contents):
    for damage in (mutations.damage_bytes, mutations.damage_json):
        first, again = (
            [damage(contents, random.Random(seed)) for seed in range(300)] for _ in range(2)
        )
        assert first == again and contents not in first and len(set(first)) > 20


def test_json_is_damaged_value_by_value_too():
    contents = json.dumps({"a": {"b": [1, "x"]}, "c": "\u00e9"}).encode()
    damaged = [mutations.damage_json(contents, random.Random(seed)) for seed in range(300)]
    parsed = []
    for one in damaged:
        try:
            parsed.append(json.loads(one))
        except ValueError:
            continue
    assert len(parsed) > 150
    assert any(isinstance(value, dict) and "a" not in value for value in parsed)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """judged(stage) -> the outcome of a case whose stage does that."""
    (tmp_path / "corpus" / "inputs").mkdir(parents=True)
    (tmp_path / "corpus" / "inputs" / "a.bin").write_bytes(b"a" * 100)
    target = targets.Target("a", 1, "inputs", lambda case, built: ["x"], ("*.bin",))

    def run(stage):
        monkeypatch.setattr(worker, "MAX_GROWTH", 64 << 20)
        for number, name in ((1, "stdout"), (2, "stderr")):  # pytest's own are no files
            monkeypatch.setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        monkeypatch.setattr(main, "main", lambda argv: stage())
        case, built = tmp_path / "case", tmp_path / "corpus"
        return worker.run_case(target, random.Random(1), case, built, "as before\n")["outcome"]

    return run


def say(text, code=0):
    print(text, file=sys.stderr if code == 2 else sys.stdout)
    return code


def use_memory():
    return say("as before", 0 * len(b"x" * (100 << 20)))


def fail():
    raise KeyError("x")


@pytest.mark.parametrize(
    "stage, outcome",
    [
        (lambda: say("as before"), "same"),
        (lambda: say("otherwise"), "silent"),
        (lambda: say("synth2: x: no such file", 2), "refused"),
        (lambda: say("synth2: x\nsynth2: y", 2), "message"),
        (lambda: say("x: no such file", 2), "message"),
        (lambda: say("synth2: x\nand more", 2), "message"),
        (lambda: say("synth2: " + 9999 * "x", 2), "message"),
        (lambda: say("synth2: x", 1), "message"),
        (lambda: sys.exit(143), "message"),
        (lambda: say("synth2: \x1b[31mred", 2), "escape"),
        (use_memory, "memory"),
        (fail, "traceback"),
    ],
)
def test_what_is_a_finding(judged, stage, outcome):
    assert judged(stage) == outcome
    assert (outcome in worker.FINDINGS) == (outcome not in worker.FINE)


def test_each_target_has_a_name_of_its_own_and_is_drawn():
    names = [target.name for target in targets.TARGETS]
    assert len(set(names)) == len(names)
    assert {worker.case_of(0, number, None)[0].name for number in range(2000)} == set(names)


@pytest.mark.slow
def test_a_short_campaign_finds_nothing(tmp_path):
    script = ROOT / "benchmarks" / "fuzz.py"
    command = [sys.executable, str(script), "--cases=200", "--seed=7", f"--folder={tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    *_, last = run.stdout.splitlines()
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert last.startswith("200 cases, seed 7") and "; 0 tracebacks, 0 silent changes" in last


def test_an_unknown_target_is_named(monkeypatch):
    from benchmarks import fuzz

    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--targets=veiw"])
    with pytest.raises(UserError, match="--targets: unknown 'veiw'; did you mean 'view'"):
        fuzz.main()
