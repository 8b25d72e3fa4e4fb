"""Tables get into README and docs/ by command, and the benchmarks need no TensorFlow."""

import contextlib
import dataclasses
import json
import pathlib
import random
import subprocess
import sys

import pytest

from benchmarks import device_limits, fuzz, result, run, update_readme
from benchmarks.fuzzing import mutations, targets, worker
from synth2_jax import main
from synth2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATES = {"matmul_flops_per_second": 4.0, "copy_bytes_per_second": 2.0}


def test_fill_replaces_what_stands_between_the_markers():
    text = "a\n<!-- study:begin -->\nold\nolder\n<!-- study:end -->\nb\n"
    filled = update_readme.fill(text, {"study": "| new |"})
    assert filled == "a\n<!-- study:begin -->\n| new |\n<!-- study:end -->\nb\n"
    assert update_readme.fill(filled, {"study": "| new |"}) == filled
    with pytest.raises(ValueError, match="no markers of 'demo'"):
        update_readme.fill(text, {"demo": "| x |"})


def test_the_tables_of_every_page_are_those_of_the_results():
    for page in update_readme.PAGES:
        text = (ROOT / page).read_text()
        assert text == update_readme.filled(page), "run benchmarks/update_readme.py"


def test_the_result_table_has_the_columns_that_a_newcomer_needs():
    head, _, first, *others = update_readme.result_table().splitlines()
    assert head == "| arm | zero-shot CIDEr | zero-shot gain | CIDEr | gain |"
    assert first.startswith("| real only | 1") and first.count("±") == 2
    assert len(others) >= 3 and not any("LoRA" in row for row in others)  # docs/science.md has all


def test_plans_are_kept_and_make_a_row_each(tmp_path, monkeypatch):
    monkeypatch.setattr(update_readme, "RESULTS", tmp_path / "results")
    plan = {
        "model": "vlm",
        "topology": "v5e:4x4",
        "chips": 16,
        "mesh": {"data": 4, "fsdp": 4, "tensor": 1},
        "batch": 64,
        "memory_bytes_per_chip": {"parameters": 2**30, "total": 2**32},
        "hbm_bytes_per_chip": 2**34,
        "flops_ratio": 1.0625,
        "collective_bytes_per_chip": 2**29,
        "estimate": {"seconds": 0.0125, "bound_by": "copies", "at_best": 0.005, "mfu": 0.25},
        "versions": {"commit": "abc"},
    }
    (tmp_path / "vlm-v5e-4x4-train.json").write_text(json.dumps(plan))
    update_readme.keep_plans(tmp_path)
    assert update_readme.plans_table().splitlines()[2:] == [
        "| vlm | 16 x v5e:4x4 | data 4 fsdp 4 | 64 | 4.0 | 25% | 1.062 | 0.5 GiB | 12 ms | copies "
        "| 5 ms | 25% | abc |"
    ]


def test_demo_results_are_kept_under_their_device(tmp_path, monkeypatch):
    monkeypatch.setattr(update_readme, "RESULTS", tmp_path / "results")
    arm = {"cider": 100.0, "cider_unseen": 50.0}
    results = {
        "arms": {"real": arm, "real_synthetic": {"cider": 125.0, "cider_unseen": 75.0}},
        "tokenizer": {"objects_right": 0.99},
        "generator": {"objects_right": 0.6},
        "steps_per_second": {"embedding": 3.0, "pixel": 2.0},
        "seconds": 600.0,
        "peak_memory_gib": 2.34,
        "versions": {"device": "1 x cpu"},
        "commit": "abc",
    }
    report = tmp_path / "run" / "report"
    report.mkdir(parents=True)
    (report / "results.json").write_text(json.dumps(results))
    update_readme.keep_demo(tmp_path / "run")
    row = update_readme.demo_table().splitlines()[-1]
    percent = "\N{NO-BREAK SPACE}%"
    scores = f"50.0 | 75.0 (+50.0{percent}) | 100.0 | 125.0 (+25.0{percent}) | 99.0% | 60.0%"
    assert row == f"| 1 x cpu | 10.0 | 2.3 GiB | {scores} | 1.50x | abc |"
    del results["peak_memory_gib"]
    (report / "results.json").write_text(json.dumps(results))
    update_readme.keep_demo(tmp_path / "run")
    row = update_readme.demo_table().splitlines()[-1]
    assert row == f"| 1 x cpu | 10.0 | – | {scores} | 1.50x | abc |"
    results["gains"] = {"cider_unseen": {"value": 0.5, "low": 0.25, "high": 0.75}, "cider": None}
    (report / "results.json").write_text(json.dumps(results))
    update_readme.keep_demo(tmp_path / "run")
    row = update_readme.demo_table().splitlines()[-1]
    assert f"| 75.0 (+50.0{percent} [+25.0, +75.0]) | 100.0 | 125.0 (+25.0{percent}) |" in row


def write_demo(folder, seed, real, both):
    arms = {"real": real, "real_synthetic": both}
    arms = {arm: {"cider_unseen": unseen, "cider": cider} for arm, (unseen, cider) in arms.items()}
    results = {"config": {"seed": seed}, "arms": arms, "commit": "abc"}
    results |= {"gains": {"cider_unseen": None, "cider": {"value": 0.5, "low": 0.1, "high": 0.9}}}
    (folder / "report").mkdir(parents=True)
    results |= {"versions": {"device": "1 x cpu"}}
    (folder / "report" / "results.json").write_text(json.dumps(results))
    return folder


def test_demos_of_several_seeds_have_a_mean_and_a_smallest(tmp_path, monkeypatch):
    monkeypatch.setattr(update_readme, "RESULTS", tmp_path / "results")
    second = write_demo(tmp_path / "b", 1, (100.0, 200.0), (150.0, 210.0))
    first = write_demo(tmp_path / "a", 0, (80.0, 180.0), (160.0, 270.0))
    update_readme.keep_demos([second, first])
    percent = "\N{NO-BREAK SPACE}%"
    assert update_readme.demos_table().splitlines()[2:] == [
        f"| 0 | 80.0 | 160.0 | – | 180.0 | 270.0 | +50.0{percent} [+10.0, +90.0] |",
        f"| 1 | 100.0 | 150.0 | – | 200.0 | 210.0 | +50.0{percent} [+10.0, +90.0] |",
        f"| mean | 90.0 ± 14.1 | 155.0 ± 7.1 | 75.0 ± 35.4{percent} | 190.0 ± 14.1 | 240.0 ± 42.4 "
        f"| 27.5 ± 31.8{percent} |",
        f"| smallest | 80.0 | 150.0 | 50.0{percent} | 180.0 | 210.0 | 5.0{percent} |",
    ]
    with pytest.raises(ValueError, match=r"found seeds \[0, 0\], expected each once"):
        update_readme.keep_demos([first, first])


def test_rounds_of_several_seeds_make_a_row_for_each_round(tmp_path, monkeypatch):
    monkeypatch.setattr(update_readme, "RESULTS", tmp_path / "results")
    for seed, cider in ((0, 100.0), (1, 110.0)):
        run = {"scores": {"cider": cider, "cider_unseen": None}, "held_out": {"vlm": 0.5}}
        gain = {"value": 0.1 + seed / 10, "low": 0.2 * seed - 0.1, "high": 0.3}
        gains = {"round_0": {"cider_unseen": gain}, f"long_{2 + seed}": {"cider_unseen": None}}
        results = {"config": {"seed": seed}, "gains": gains, "stopped": None}
        results |= {"runs": {"round_0": run, f"long_{2 + seed}": run}}
        results |= {"made_with": {"commit": "abc", "device": "1 x cpu"}}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "rounds.json").write_text(json.dumps(results))
    update_readme.keep_rounds([tmp_path / "0", tmp_path / "1"])
    assert update_readme.rounds_table().splitlines()[2:] == [
        "| real pairs alone | 2 | – | 105.0 ± 7.1 | – | – | – | 0.500 ± 0.000 | – "
        "| 15.0 ± 7.1\N{NO-BREAK SPACE}% (1 of 2 intervals above 0) |",
        "| one long round (steps of 2) | 1 | – | 100.0 | – | – | – | 0.500 | – | – |",
        "| one long round (steps of 3) | 1 | – | 110.0 | – | – | – | 0.500 | – | – |",
    ]


def test_no_benchmark_imports_tensorflow():
    """All in one process: each takes a second to import JAX."""
    code = (
        "import importlib.util, pathlib, sys\n"
        f"for path in sorted(pathlib.Path({str(ROOT / 'benchmarks')!r}).glob('*.py')):\n"
        "    spec = importlib.util.spec_from_file_location(path.stem, path)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "    assert not {'tensorflow', 'seqio'} & set(sys.modules), path.name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_figure_is_beside_the_limit_that_binds_it():
    assert device_limits.least_seconds(8.0, 1.0, RATES) == (2.0, "matmul")
    assert device_limits.least_seconds(8.0, 6.0, RATES) == (3.0, "copy")
    work = {"seconds": 4.0, "flops": 8.0, "bytes": 1.0}
    known = {**RATES, "peak_flops_per_second": 8.0}
    figure = device_limits.limited("step", 0.25, "steps/s", work, known)
    assert (figure.share, figure.bound, figure.note) == (0.5, "matmul", "MFU 25.0%")
    assert str(figure) == "step: 0.25 steps/s, 50.0% of the matmul limit; MFU 25.0%"
    unknown = {**RATES, "peak_flops_per_second": None}
    assert not device_limits.limited("step", 0.25, "steps/s", work, unknown).note
    assert device_limits.peak_flops("cpu") is None
    assert device_limits.peak_flops("NVIDIA H100 80GB HBM3") == 989e12


@pytest.mark.parametrize("num_bytes", [1, 2**16])
def test_a_copy_has_a_rate_whatever_its_size(num_bytes):
    assert device_limits.copy_rate(num_bytes, repeats=1) > 0


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (0.01234, "0.0123"), (4.5678, "4.57"), (1234567, "1230000"), (2.0, "2")],
)
def test_numbers_have_three_digits(value, text):
    assert result.number(value) == text


def test_the_speed_table_has_a_row_for_each_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(update_readme, "RESULTS", tmp_path)
    assert update_readme.speed_table() == ""
    figures = [
        dataclasses.asdict(result.Figure("step", 2.5, "steps/s", 0.25, "copy")),
        dataclasses.asdict(result.Figure("peer", 1.5, "x", note="over it")),
    ]
    (tmp_path / "1_x_cpu").mkdir()
    (tmp_path / "1_x_cpu" / "b.json").write_text(
        json.dumps({"figures": figures, "made_with": {"device": "1 x cpu", "commit": "abc"}})
    )
    (tmp_path / "1_x_cpu" / "a.json").write_text(json.dumps({"made_with": {}}))
    assert update_readme.speed_table().splitlines()[2:] == [
        "| 1 x cpu | step | 2.5 steps/s | 25% of copy |  | abc |",
        "| 1 x cpu | peer | 1.5 x |  | over it | abc |",
    ]


def test_a_result_says_what_of_the_environment_changes_speed(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "ROOT", tmp_path)
    monkeypatch.setenv("MALLOC_CONF", "dirty_decay_ms:-1")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    path = result.write_result("found", {"rate": 1.0}, device="1 x cpu")
    made_with = json.loads((tmp_path / path).read_text())["made_with"]
    assert made_with["MALLOC_CONF"] == "dirty_decay_ms:-1" and "GLIBC_TUNABLES" not in made_with


def test_a_suite_goes_on_after_a_failure_and_names_what_it_skips(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bad.py").write_text("raise SystemExit(3)")
    good = "import os, sys; print('seen', sys.argv[1], os.environ['GLIBC_TUNABLES'])"
    (tmp_path / "benchmarks" / "good.py").write_text(good)
    runs = (
        run.Run("bad"),
        run.Run("peer", needs=("no_such_package", "json")),
        run.Run("curve", trained="workdir/demo/generator"),
        run.Run("good", ("--x",), tag="again"),
    )
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    failed, skipped = run.run(runs)
    assert failed == ["bad: exit code 3"]
    assert skipped == [
        "peer: no_such_package not installed",
        "curve: no workdir/demo/generator, which launch/demo.sh trains",
    ]
    printed = capfd.readouterr().out
    assert "seen --x glibc.malloc.hugetlb=1" in printed and "[4/4] good (again)" in printed


def test_every_benchmark_of_a_suite_exists():
    for runs in run.SUITES.values():
        for one in runs:
            assert (ROOT / "benchmarks" / f"{one.name}.py").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run.py", "--suite=cpu", "--only=train_stop"], ["unknown 'train_stop'", "train_step"]),
        (["train_step.py", "--config=configs/scenes/no.py"], ["configs/scenes/no.py"]),
        (["train_step.py", "--config=configs/scenes/tokenizer.py"], ["'tokenizer'", "generator"]),
    ],
)
def test_wrong_use_is_one_line(arguments, words):
    script, *rest = arguments
    command = [sys.executable, str(ROOT / "benchmarks" / script), *rest]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert all(word in line for word in words)


# --- the fuzz campaign: what it damages, what it takes for a finding, and that there is none ---


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
    parsed = []
    for seed in range(300):
        with contextlib.suppress(ValueError):
            parsed.append(json.loads(mutations.damage_json(contents, random.Random(seed))))
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
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--targets=veiw"])
    with pytest.raises(UserError, match="--targets: unknown 'veiw'; did you mean 'view'"):
        fuzz.main()
