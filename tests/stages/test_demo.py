"""`synth2 demo`: its summary's literal cases, and, marked slow, the whole of it in a process."""

import json
import os
import statistics
import subprocess
import sys

import pytest

from synth2_jax import config as config_lib
from synth2_jax.domains.scenes import dataset
from synth2_jax.domains.scenes.scores import has_unseen
from synth2_jax.experiments import demo, image_space
from synth2_jax.experiments.demo import curve, measured, steps_to_baseline, summary
from synth2_jax.experiments.experiment import ExperimentConfig
from synth2_jax.stages import train
from synth2_jax.training.metrics import JsonlWriter


@pytest.mark.parametrize(
    "baseline, other, expected",
    [
        ([[100, 10.0], [200, 20.0]], [[100, 25.0], [200, 30.0]], {"steps": 100, "share": 0.5}),
        ([[100, 10.0], [200, 20.0]], [[100, 19.9], [200, 20.0]], {"steps": 200, "share": 1.0}),
        ([[100, 10.0], [200, 20.0]], [[100, 5.0], [200, 19.0]], None),
        # The baseline's last score counts, not its best.
        ([[100, 30.0], [200, 20.0]], [[50, 21.0], [200, 1.0]], {"steps": 50, "share": 0.25}),
        ([], [[100, 1.0]], None),
        ([[100, 1.0]], [], None),
    ],
)
def test_steps_to_baseline(baseline, other, expected):
    assert steps_to_baseline(baseline, other) == expected


def test_standard_errors_are_over_the_test_pictures():
    per_image = {f"test-{i:06d}": float(i**2 % 7) for i in range(6)}
    found = demo.standard_errors(per_image)
    by_unseen = {True: [], False: []}
    for i, score in enumerate(per_image.values()):
        by_unseen[has_unseen(dataset.scene("test", i))].append(score)
    for name, part in (
        ("cider", list(per_image.values())),
        ("cider_unseen", by_unseen[True]),
        ("cider_seen", by_unseen[False]),
    ):
        expected = statistics.stdev(part) / len(part) ** 0.5 if len(part) > 1 else None
        assert found[name] == (expected and pytest.approx(expected))
    assert set(demo.standard_errors({"test-000000": 1.0}).values()) == {None}


def test_a_curve_is_one_metric_of_a_run(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"loss": 3.0})
    writer.write(2, {"loss": 2.0, "validation/cider": 7.0})
    writer.close()
    assert curve(str(tmp_path), "loss") == [[1, 3.0], [2, 2.0]]
    assert curve(str(tmp_path), "validation/cider") == [[2, 7.0]]


@pytest.mark.parametrize(
    "override, curve_by, pictures",
    [
        ({}, {"method": "greedy", "num_beams": 3, "pictures": 256}, 512),
        ({"tokenize.max_images": "40"}, {"method": "greedy", "num_beams": 3, "pictures": 40}, 40),
        ({"vlm.validation.captions": None}, None, 512),
    ],
)
def test_how_curve_and_table_are_measured_is_what_the_config_says(override, curve_by, pictures):
    config = config_lib.load_config("configs/scenes/demo.py")
    for key, text in override.items():
        if text is None:
            del config.unlock().vlm.validation.captions
        else:
            config_lib.override(config, key, text)
    found = measured(config_lib.build(ExperimentConfig, config))
    assert found.get("curve") == curve_by
    assert found["table"] == {"method": "beam", "num_beams": 3, "pictures": pictures}


def results(real, both, tiny=False, **intervals):
    def arm(cider):
        return {"cider": cider, "cider_unseen": cider / 2, "objects_right": cider / 100}

    return {
        "arms": {"real": arm(real), "real_synthetic": arm(both)},
        "gains": {part: {"value": both / real - 1, **bounds} for part, bounds in intervals.items()},
        "tokenizer": {"objects_right": 0.95},
        "generator": {"objects_right": 0.5},
        "steps_per_second": {"embedding": 9.0, "pixel": 6.0},
        "seconds": 120.0,
        "peak_memory_gib": 2.34,
        "tiny": tiny,
    }


def test_the_summary_begins_with_the_zero_shot_gain_and_its_interval():
    unseen, whole = {"low": 0.1, "high": 0.4}, {"low": -0.02, "high": 0.3}
    text = summary(results(40.0, 50.0, cider_unseen=unseen, cider=whole))
    assert text.splitlines()[0] == (
        "Yes, synthetic pairs help. Zero-shot, on combinations that no real pair shows, CIDEr is "
        "25.0 with real + synthetic pairs and 20.0 with real pairs only "
        "(+25.0\N{NO-BREAK SPACE}% [+10.0, +40.0]). "
        "On the whole test set, CIDEr is 50.0 with real + synthetic pairs and 40.0 with real pairs "
        "only (+25.0\N{NO-BREAK SPACE}% [−2.0, +30.0], which may be chance). In brackets: the "
        "95 % interval."
    )
    assert "objects right: real only 40.0%, real + synthetic 50.0%" in text
    assert "1.50x the steps/s of pixel space" in text and "2.0 minutes, 2.3 GiB" in text
    assert "mean nothing" not in text
    assert summary(results(50.0, 40.0, tiny=True)).startswith("tiny: ")


@pytest.mark.slow
def test_the_tiny_demo_makes_a_report_and_goes_on_where_it_was(tmp_path):
    command = [
        *(sys.executable, "-m", "synth2_jax.main", "demo"),
        *("--config=configs/scenes/demo.py:tiny", f"--workdir={tmp_path}"),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"report: {tmp_path}/report/index.html"
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["arms"].keys() == {"real", "real_synthetic"}
    for arm in found["arms"].values():
        assert {"cider", "bleu4", "rouge_l", "objects_right", "cider_unseen"} <= arm.keys()
    assert 0 <= found["tokenizer"]["objects_right"] <= 1
    assert "objects_right" in found["generator"]
    assert found["steps_per_second"].keys() == {"embedding", "pixel"}
    assert min(found["steps_per_second"].values()) > 0
    assert found["seconds"] > 0 and found["tiny"] is True
    assert list(found["gains"]) == ["cider_unseen", "cider", "cider_seen"]
    assert 0.1 < found["peak_memory_gib"] < 100
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")

    again = subprocess.run(command, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "== tokenizer" in done.stdout and "== tokenizer" not in again.stdout
    repeated = json.loads((tmp_path / "report" / "results.json").read_text())
    assert repeated["peak_memory_gib"] >= found["peak_memory_gib"]
    assert repeated["arms"] == found["arms"] and repeated["generator"] == found["generator"]


def test_the_two_objectives_differ_in_their_image_space_alone(monkeypatch):
    """Both spaces are measured on one model and on one batch."""
    calls = []

    def steps_per_second(objectives, tx, batch, *, rounds):
        calls.append((objectives, batch, rounds))
        return {"embedding": 3.0, "pixel": 2.0}

    monkeypatch.setattr(image_space, "steps_per_second", steps_per_second)
    cfg, _ = train.build(config_lib.load_config("configs/scenes/vlm.py"))
    assert image_space.speed_by_space(cfg.model, 3, rounds=7) == {"embedding": 3.0, "pixel": 2.0}
    ((objectives, batch, rounds),) = calls
    tasks = {name: vars(objective.task).copy() for name, objective in objectives.items()}
    assert {name: task.pop("image_space") for name, task in tasks.items()} == {
        "embedding": "embedding",
        "pixel": "pixel",
    }
    assert tasks["embedding"] == tasks["pixel"] and rounds == 7
    assert batch["image_tokens"].shape == (3, 16)
    # Rare codes too: their embeddings are looked up all over the codebook.
    assert batch["image_tokens"].max() > 16
