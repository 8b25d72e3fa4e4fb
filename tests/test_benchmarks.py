"""Tables get into README and docs/ by command, and the benchmarks need no TensorFlow."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.planning import model_flops
from synth2_jax.training.objectives import make_objective

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fill_replaces_what_stands_between_the_markers():
    text = "a\n<!-- study:begin -->\nold\nolder\n<!-- study:end -->\nb\n"
    filled = load("update_readme").fill(text, {"study": "| new |"})
    assert filled == "a\n<!-- study:begin -->\n| new |\n<!-- study:end -->\nb\n"


def test_fill_again_changes_nothing():
    fill = load("update_readme").fill
    once = fill("<!-- demo:begin -->\n<!-- demo:end -->\n", {"demo": "| x |"})
    assert fill(once, {"demo": "| x |"}) == once


def test_fill_without_markers_is_an_error():
    with pytest.raises(ValueError, match="no markers of 'demo'"):
        load("update_readme").fill("nothing here", {"demo": "| x |"})


def test_the_tables_of_every_page_are_those_of_the_results():
    module = load("update_readme")
    for page in module.PAGES:
        assert (ROOT / page).read_text() == module.filled(page), "run benchmarks/update_readme.py"


def test_the_result_table_has_the_columns_that_a_newcomer_needs():
    head, _, first, *_ = load("update_readme").result_table().splitlines()
    assert head == "| arm | CIDEr | gain | CIDEr unseen |"
    assert first.startswith("| real only | 2") and first.count("±") == 2


def test_plans_are_kept_and_make_a_row_each(tmp_path, monkeypatch):
    module = load("update_readme")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
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
        "estimate": {"seconds": 0.0125, "bound_by": "memory"},
        "versions": {"commit": "abc"},
    }
    (tmp_path / "vlm-v5e-4x4-train.json").write_text(json.dumps(plan))
    module.keep_plans(tmp_path)
    assert module.plans_table().splitlines()[2:] == [
        "| vlm | 16 x v5e:4x4 | data 4 fsdp 4 | 64 | 4.0 | 25% | 1.062 | 0.5 GiB | 12 ms | memory "
        "| abc |"
    ]


def test_demo_results_are_kept_under_their_device(tmp_path, monkeypatch):
    module = load("update_readme")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
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
    module.keep_demo(tmp_path / "run")
    row = module.demo_table().splitlines()[-1]
    scores = "100.0 | 125.0 (+25%) | 50.0 | 75.0 | 99.0% | 60.0% | 1.50x | abc |"
    assert row == f"| 1 x cpu | 10.0 | 2.3 GiB | {scores}"
    del results["peak_memory_gib"]
    (report / "results.json").write_text(json.dumps(results))
    module.keep_demo(tmp_path / "run")
    assert module.demo_table().splitlines()[-1] == f"| 1 x cpu | 10.0 | – | {scores}"


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


@pytest.fixture
def tiny_generator():
    config = config_lib.load_config(str(ROOT / "configs" / "scenes" / "generator.py:tiny"))
    with config.unlocked():
        config.model.generator.maskgit.update(num_layers=1, embed_dim=16, head_dim=8, mlp_dim=16)
        config.model.generator.text_encoder.update(num_layers=1, embed_dim=8, mlp_dim=8)
    return config


@pytest.mark.slow
def test_a_train_step_is_timed_and_its_flops_are_the_formulas(tiny_generator):
    found = load("train_step").measure(tiny_generator, batch_size=2, steps=2, repeats=1)
    task = make_objective("generator", tiny_generator.model.to_dict()).task
    assert found["flops_per_step"] == model_flops.train_step(task, 2).total
    assert found["pairs_per_second"] == 2 * found["steps_per_second"] > 0
    rate = found["flops_per_step"] / found["seconds_per_step"]
    assert found["flops_per_second"] == pytest.approx(rate)


def test_a_batch_that_microbatches_cannot_share_is_one_line(tiny_generator):
    with pytest.raises(UserError, match="found 3 rows, .* in each of 2 microbatches"):
        load("train_step").measure(tiny_generator, batch_size=3, steps=1, repeats=1)


@pytest.mark.slow
def test_decoding_is_timed_at_each_number_of_steps(tiny_generator):
    rows = load("parallel_decoding").measure(tiny_generator, 2, [1, 2], scale=2.0)
    assert [row["num_steps"] for row in rows] == [1, 2]
    assert rows[1]["flops"] > rows[0]["flops"] and all(row["seconds"] > 0 for row in rows)


def test_a_figure_is_beside_the_limit_that_binds_it():
    limits = load("device_limits")
    rates = {"matmul_flops_per_second": 4.0, "copy_bytes_per_second": 2.0}
    assert limits.least_seconds(8.0, 1.0, rates) == (2.0, "matmul")
    assert limits.least_seconds(8.0, 6.0, rates) == (3.0, "copy")
    known = {**rates, "peak_flops_per_second": 8.0}
    work = {"seconds": 4.0, "flops": 8.0, "num_bytes": 1.0}
    figure = limits.limited("step", 0.25, "steps/s", limits=known, **work)
    assert (figure.share, figure.bound, figure.note) == (0.5, "matmul", "MFU 25.0%")
    assert str(figure) == "step: 0.25 steps/s, 50.0% of the matmul limit; MFU 25.0%"


def test_a_copy_has_a_rate_whatever_its_size():
    limits = load("device_limits")
    assert limits.copy_rate(1, repeats=1) > 0 and limits.copy_rate(2**16, repeats=1) > 0


def test_a_device_without_a_peak_gets_no_mfu():
    limits = load("device_limits")
    assert limits.peak_flops("cpu") is None
    assert limits.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    rates = {"matmul_flops_per_second": 4.0, "copy_bytes_per_second": 2.0}
    unknown = {**rates, "peak_flops_per_second": None}
    work = {"seconds": 4.0, "flops": 8.0, "num_bytes": 1.0}
    assert not limits.limited("step", 0.25, "steps/s", limits=unknown, **work).note


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (0.01234, "0.0123"), (4.5678, "4.57"), (1234567, "1230000"), (2.0, "2")],
)
def test_numbers_have_three_digits(value, text):
    assert load("result").number(value) == text


def test_the_speed_table_has_a_row_for_each_figure(tmp_path, monkeypatch):
    module = load("update_readme")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    assert module.speed_table() == ""
    figures = [
        {
            "name": "step",
            "value": 2.5,
            "unit": "steps/s",
            "share": 0.25,
            "bound": "copy",
            "note": "",
        },
        {"name": "peer", "value": 1.5, "unit": "x", "share": None, "bound": "", "note": "over it"},
    ]
    (tmp_path / "1_x_cpu").mkdir()
    (tmp_path / "1_x_cpu" / "b.json").write_text(
        json.dumps({"figures": figures, "made_with": {"device": "1 x cpu", "commit": "abc"}})
    )
    (tmp_path / "1_x_cpu" / "a.json").write_text(json.dumps({"made_with": {}}))
    assert module.speed_table().splitlines()[2:] == [
        "| 1 x cpu | step | 2.5 steps/s | 25% of copy |  | abc |",
        "| 1 x cpu | peer | 1.5 x |  | over it | abc |",
    ]


def test_a_result_says_what_of_the_environment_changes_speed(tmp_path, monkeypatch):
    module = load("result")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("MALLOC_CONF", "dirty_decay_ms:-1")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    path = module.write_result("found", {"rate": 1.0}, device="1 x cpu")
    made_with = json.loads((tmp_path / path).read_text())["made_with"]
    assert made_with["MALLOC_CONF"] == "dirty_decay_ms:-1" and "GLIBC_TUNABLES" not in made_with


def test_a_suite_goes_on_after_a_failure_and_names_what_it_skips(tmp_path, monkeypatch, capfd):
    module = load("run")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "benchmarks" / "good.py").write_text(
        "import os, sys; print('seen', sys.argv[1], os.environ['GLIBC_TUNABLES'])"
    )
    runs = (
        module.Run("bad"),
        module.Run("peer", needs=("no_such_package", "json")),
        module.Run("curve", trained="workdir/demo/generator"),
        module.Run("good", ("--x",), tag="again"),
    )
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    failed, skipped = module.run(runs)
    assert failed == ["bad: exit code 3"]
    assert skipped == [
        "peer: no_such_package not installed",
        "curve: no workdir/demo/generator, which launch/demo.sh trains",
    ]
    printed = capfd.readouterr().out
    assert "seen --x glibc.malloc.hugetlb=1" in printed and "[4/4] good (again)" in printed


def test_every_benchmark_of_a_suite_exists():
    for runs in load("run").SUITES.values():
        for one in runs:
            assert (ROOT / "benchmarks" / f"{one.name}.py").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["run.py", "--suite=cpu", "--only=train_stop"],
            ["--only: unknown 'train_stop'", "train_step"],
        ),
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
