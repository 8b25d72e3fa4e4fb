"""`synth2 rounds` from nothing to its page, stopped and taken up again; when the rounds stop."""

import json
import math
import re
import shutil

import pytest

from synth2_jax import config as config_lib
from synth2_jax.config import load_config
from synth2_jax.data import records
from synth2_jax.experiments import rounds as rounds_lib
from synth2_jax.experiments.round_steps import MODELS, RoundSteps
from synth2_jax.experiments.rounds import rise
from synth2_jax.files import write_json
from synth2_jax.loading.trained import load_trained
from synth2_jax.pages.rounds_page import answer, render_rounds, stop, summary
from synth2_jax.stages import evaluate, synthesize
from synth2_jax.stages import filter as filter_stage
from synth2_jax.testing.user_errors import raises_line
from synth2_jax.training.metrics import JsonlWriter

LOSSES = {"generator": 2.0, "vlm": 1.0}
# The tiny rounds with models that compile fast and a language model whose captions can be used.
WIDTH = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}
TOKENIZER = {"patch_size": 16, "filters": 16, "embedding_dim": 8, "codebook_size": 32}
GENERATORS, VLMS = ("generator", "round_generator"), ("vlm", "round_vlm")
HELD_OUT = {"batch_size": 8}
SMALL = {
    "rounds": {"rounds": 2, "tolerance": 100.0},
    "tokenizer.model.tokenizer": TOKENIZER,
    **{f"{name}.model.tokenizer": TOKENIZER for name in (*GENERATORS, *VLMS)},
    **{f"{name}.model.generator.text_encoder": WIDTH for name in GENERATORS},
    **{
        f"{name}.model.generator.maskgit": {**WIDTH, "num_tokens": 4, "codebook_size": 32}
        for name in GENERATORS
    },
    "language_model.model.language_model": WIDTH,
    **{f"{name}.model.vlm.language_model": WIDTH for name in VLMS},
    **{f"{name}.model.vlm.resampler": {**WIDTH, "num_latents": 2} for name in VLMS},
    **{f"{name}.model.vlm": {"image_embedding_dim": 8, "num_image_tokens": 4} for name in VLMS},
    **{f"{name}.data": {"batch_size": 16} for name in ("tokenizer", "language_model")},
    **{f"{name}.data": {"batch_size": 16} for name in (*GENERATORS, *VLMS)},
    **{f"{name}.validation.data": HELD_OUT for name in (*GENERATORS, *VLMS)},
    **{f"{name}.train": {"steps": 4, "eval_every": 4} for name in (*GENERATORS, *VLMS)},
    **{f"{name}.optimizer": {"schedule": "constant"} for name in (*GENERATORS, *VLMS)},
    **{f"{name}.model": {"freeze": "^tokenizer/"} for name in VLMS},  # trains language models too
    "tokenize": {"max_images": 24},
    "language_model.train": {"steps": 60},
    "language_model.optimizer": {"schedule": "constant"},
    # Words that nearly every caption holds: a language model of 60 steps names no shapes.
    "captions": {
        "classes": ("a", "the"),
        "captions_per_class": 16,
        "max_rounds": 40,
        "batch_size": 16,
    },
    "captions.decode": {"max_length": 16},
    "evaluate": {"batch_size": 16},
    "evaluate.decode": {"max_length": 8},
    "synthesize": {"batch_size": 16},
    "synthesize.sampler": {"num_steps": 2},
    "filter.caption": {"minus_language_model": False},
    "filter": {"keep": 0.75, "scores": ("caption",), "by": "caption", "batch_size": 16},
}


@pytest.mark.parametrize(
    "after, model",
    [
        ({}, None),
        ({"vlm": 1.09, "generator": 2.19}, None),
        ({"vlm": 0.5, "generator": 1.0}, None),
        ({"vlm": 1.11}, "vlm"),
        ({"generator": 2.21}, "generator"),
        ({"vlm": math.nan}, "vlm"),
    ],
)
def test_rounds_stop_when_a_held_out_loss_rises_beyond_the_tolerance(after, model):
    """Of the lowest before, which need not be the last."""
    before = [{"generator": 3.0, "vlm": 4.0}, LOSSES, {"generator": 2.5, "vlm": 1.3}]
    found = rise({**LOSSES, **after}, before, 0.1)
    assert (found and found["model"]) == model
    if model:
        assert found["lowest"] == LOSSES[model]


@pytest.fixture
def played(tmp_path, monkeypatch):
    """played({run: VLM's held-out loss}, KEY=VALUE) -> (runs in order, results), with no training.

    A run writes its losses to metrics.jsonl, as the training does; the generator's never rise.
    """
    ran = []

    def record(steps, name):
        ran.append(name)
        for model, loss in {"generator": 1.0, "vlm": steps.losses[name]}.items():
            writer = JsonlWriter(tmp_path / name / model / "metrics.jsonl")
            writer.write(4, {"validation/loss": loss, "data/real_examples": 8})
            writer.close()
        return name

    monkeypatch.setattr(RoundSteps, "base", lambda steps: record(steps, "round_0"))
    monkeypatch.setattr(RoundSteps, "round", lambda steps, k: record(steps, f"round_{k}"))
    monkeypatch.setattr(RoundSteps, "long_round", lambda steps, k: record(steps, f"long_{k}"))
    monkeypatch.setattr(RoundSteps, "scores", lambda steps, name: {"cider": 1.0})
    monkeypatch.setattr(rounds_lib, "_measure_pairs", lambda *others: {})
    found = lambda runs, stopped: {"runs": dict(runs), "gains": {}, "stopped": stopped}  # noqa: E731
    monkeypatch.setattr(rounds_lib, "_write", lambda _, runs, kept, stopped: found(runs, stopped))

    def play(losses, **keys):
        config = load_config("configs/scenes/rounds.py:tiny")
        for key, value in keys.items():
            config_lib.override(config, f"rounds.{key}", value)
        monkeypatch.setattr(RoundSteps, "losses", losses, raising=False)
        return ran, rounds_lib.run(config, str(tmp_path))

    return play


@pytest.mark.parametrize(
    "losses, ran",
    [
        ((1.0, 1.1), ["round_0", "round_1"]),  # one long round would be round 1 again
        ((1.0, 0.9, 0.8, 0.7), ["round_0", "round_1", "round_2", "round_3", "long_3"]),
        ((1.0, 0.9, 0.95, 0.7), ["round_0", "round_1", "round_2", "long_2"]),
        ((1.0, 0.9, math.nan, 0.7), ["round_0", "round_1", "round_2", "long_2"]),
    ],
)
def test_no_round_follows_one_whose_held_out_loss_rises(played, losses, ran):
    of_runs = {f"round_{k}": loss for k, loss in enumerate(losses)}
    of_runs |= {name: 1.0 for name in ran if name.startswith("long_")}
    found, results = played(of_runs, tolerance="0.0")
    assert found == ran == list(results["runs"])
    assert (results["stopped"] or {}).get("model") == (None if len(ran) == 5 else "vlm")


def test_lost_metrics_are_a_line_that_names_the_folder_to_delete(played, tmp_path):
    played({"round_0": 1.0, "round_1": 0.9}, rounds="1", long_round="False")
    steps = RoundSteps(load_config("configs/scenes/rounds.py:tiny"), str(tmp_path))
    folder = tmp_path / "round_1" / "vlm"
    told = f"{folder / 'metrics.jsonl'}: holds no validation/loss. Delete {folder} to train this"
    for damage in (lambda path: path.write_text('{"step": 4}\n'), lambda path: path.unlink()):
        damage(folder / "metrics.jsonl")
        with raises_line(told):
            steps.held_out("round_1")


def test_rounds_differ_in_data_and_in_what_they_start_from(tmp_path, monkeypatch):
    """A checkpoint holds its parts, which it may have trained. The masks stay the same."""
    config = load_config("configs/scenes/rounds.py:tiny")
    config.seed = 5_000_000
    steps, seen = RoundSteps(config, str(tmp_path)), {}
    monkeypatch.setattr(
        steps, "_train", lambda name, section, filled, changed: seen.update({name: filled})
    )
    for name in ("tokenizer", "language_model", "pairs", "_evaluate"):
        monkeypatch.setattr(steps, name, lambda *others: None)
    steps.base()
    for number in (1, 2):
        steps._train_on(f"round_{number}", f"round_{number - 1}", {"kept": "kept"}, 1)
    parts = {"generator": {"tokenizer"}, "vlm": {"tokenizer", "language_model"}}
    for model in MODELS:
        found = [seen[f"round_{number}/{model}"] for number in range(3)]
        assert len({filled["train.seed"] for filled in found}) == 1
        assert len({filled["data.seed"] for filled in found}) == 3
        assert all(0 <= filled["data.seed"] < 2**32 for filled in found)
        built_on = [{key[11:] for key in filled if key[:11] == "pretrained."} for filled in found]
        assert built_on == [parts[model], set(), set()]
        starts = [filled.get("init.from") for filled in found]
        assert starts == [None, *(str(tmp_path / f"round_{number}" / model) for number in (0, 1))]


def test_a_file_alone_does_not_say_that_a_step_is_done(tmp_path, monkeypatch):
    """Pairs and their filter check what is there; an evaluation needs the scores by image."""
    steps, ran = RoundSteps(load_config("configs/scenes/rounds.py:tiny"), str(tmp_path)), []
    for stage in (synthesize, filter_stage, evaluate):
        name = stage.__name__.rpartition(".")[2]
        monkeypatch.setattr(stage, "run", lambda section, folder, name=name: ran.append(name))
    for path in ("synthetic/manifest.json", "kept/summary.json", "evaluation/results.json"):
        write_json(tmp_path / "round_1" / path, {})
    steps._pairs(1, "round_0", "round_1/synthetic", "round_1/kept")
    steps._evaluate("round_1")
    assert ran == ["synthesize", "filter", "evaluate"]
    (tmp_path / "round_1" / "evaluation" / evaluate.PER_IMAGE).touch()
    steps._evaluate("round_1")
    assert ran == ["synthesize", "filter", "evaluate"]


def results_of(ciders, stopped=None, **gains):
    """{run: CIDEr} -> what rounds.json holds, as far as a page needs it."""
    runs = {
        name: {"scores": {"cider": cider, "cider_unseen": cider / 2}, "held_out": LOSSES}
        for name, cider in ciders.items()
    }
    return {
        "runs": runs,
        "gains": gains,
        "stopped": stopped,
        "made_with": {"jax": "0", "device": "cpu"},
    }


def test_the_page_compares_the_last_round_with_the_first_and_with_one_long_round():
    gained = {"value": 0.25, "low": -0.1, "high": 0.5, "seeds": 1}
    gains = {"round_1": {"cider_unseen": None, "cider": gained}, "long_2": {"cider": gained}}
    ciders = {"round_0": 100, "round_1": 120, "round_2": 150, "long_2": 125}
    results = results_of(ciders, **gains)
    told = answer(results)
    unseen, whole = "zero-shot CIDEr is 75.0, round 1 has 60.0 (–)", "; CIDEr is 150.0, round 1 has"
    assert told.index(unseen) < told.index(f"{whole} 120.0 (+25.0\xa0% [−10.0, +50.0])")
    assert "one long round (steps of 2) has 125.0 (+25.0\xa0% [−10.0, +50.0])" in told
    assert told.endswith("one seed does not show how much seeds differ.")
    assert stop(results) is None and told in render_rounds(results)
    assert summary(results).splitlines()[0].startswith("real pairs alone: zero-shot CIDEr 50.0")
    early = {"model": "vlm", "loss": 1.4, "lowest": 1.0}
    results = results_of({"round_0": 100, "round_1": 90}, early)
    assert answer(results).startswith("No answer yet")
    why = "Stopped after round 1: the loss of the VLM on held-out real pairs rose to 1.400"
    assert why in render_rounds(results) and why in summary(results)


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("rounds.rounds", "0", "--config.rounds.rounds: found 0, expected at least 1"),
        ("rounds.real_share", "1", "--config.rounds.real_share: found 1.0, expected above 0 and"),
        ("rounds.tolerance", "-1", "--config.rounds.tolerance: found -1.0, expected at least 0"),
        ("filter.keep", "0", "--config.filter.keep: found 0.0, expected a share above 0"),
        ("filter.vlm", "v", "--config.filter.vlm: found 'v', expected none: --workdir decides"),
        ("round_vlm.init.from", "v", "--config.round_vlm.init.from: found 'v', expected none"),
        ("tokenize.splits", "real,test", "--config.tokenize.splits: found real, test, expected va"),
        ("tokenize.splits", "real,validation", "--config.tokenize.splits: found real, validation"),
        ("tokenize.splits", "validation,test", "--config.tokenize.splits: found validation, test"),
        ("round_vlm.train.eval_every", "0", "--config.round_vlm.train.eval_every: found 0, expect"),
        ("generator.train.eval_every", "0", "--config.generator.train.eval_every: found 0, expec"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(tmp_path, key, value, told):
    config = load_config("configs/scenes/rounds.py:tiny")
    config_lib.override(config, key, value)
    with raises_line(told):
        RoundSteps(config, str(tmp_path))


@pytest.mark.parametrize("section", VLMS)
def test_pairs_cannot_be_scored_by_a_language_model_that_the_vlm_has_trained(tmp_path, section):
    config = load_config("configs/scenes/rounds.py:tiny")
    config_lib.override(config, f"{section}.model.freeze", "^tokenizer/")
    RoundSteps(config, str(tmp_path))  # scored by "cycle"
    config.filter.scores, config.filter.by = ("caption",), "caption"
    with raises_line("--config.filter.caption.minus_", f"as --config.{section}.model.freeze says"):
        RoundSteps(config, str(tmp_path))


@pytest.fixture
def rounds(experiment_command):
    """As `experiment_command`; steps that always run, to check what is there, are left out."""

    def run(**overrides):
        code, steps, error = experiment_command("rounds", SMALL, **overrides)
        kept = [step for step in steps if not re.search("tokenize|/synthetic|/kept", step)]
        return code, kept, error

    return run


@pytest.mark.slow
def test_rounds_from_nothing_and_one_more(tmp_path, rounds):
    code, steps, error = rounds()
    assert code == 0, error
    of_a_round = ["captions", "generator", "vlm", "evaluation"]
    for number in (1, 2):
        assert [s for s in steps if s.startswith(f"round_{number}/")] == [
            f"round_{number}/{step}" for step in of_a_round
        ]
    first = json.loads((tmp_path / "rounds.json").read_text())
    assert list(first["runs"]) == ["round_0", "round_1", "round_2", "long_2"]
    one = first["runs"]["round_1"]
    assert one["pairs"] == {"synthetic": 32, "kept": 24} and 0.3 < one["real_share"] < 0.7
    assert first["runs"]["round_0"]["real_share"] == 1 and first["stopped"] is None
    config = json.loads((tmp_path / "round_2" / "vlm" / "config.json").read_text())
    assert config["init"]["from"] == str(tmp_path / "round_1" / "vlm")
    assert config["train"]["steps"] == 4 and config["data"]["rates"] == {"real": 0.5, "kept": 0.5}
    long = json.loads((tmp_path / "long_2" / "vlm" / "config.json").read_text())
    assert long["init"]["from"] == str(tmp_path / "round_0" / "vlm")
    assert long["train"]["steps"] == 8 and long["data"]["rates"]["kept_2"] == 0.25
    captions = [(tmp_path / f"round_{k}" / "captions" / "captions.jsonl") for k in (1, 2)]
    assert captions[0].read_text() != captions[1].read_text()

    assert list(first["gains"]) == ["round_1", "long_2"]
    after, before = (first["runs"][name]["scores"]["cider"] for name in ("round_2", "long_2"))
    assert first["gains"]["long_2"]["cider"]["value"] == pytest.approx(after / before - 1)

    # Nothing is done twice, and a third round goes on from the second.
    code, steps, _ = rounds()
    assert (code, steps) == (0, [])
    assert json.loads((tmp_path / "rounds.json").read_text())["runs"] == first["runs"]
    code, steps, _ = rounds(rounds__rounds=3, rounds__long_round=False)
    assert code == 0 and steps == [f"round_3/{step}" for step in of_a_round]
    third = json.loads((tmp_path / "rounds.json").read_text())["runs"]
    assert list(third) == ["round_0", "round_1", "round_2", "round_3"]

    # Each round's pairs are made and kept by the round before, the long round's by round 0.
    for pairs, by in (("round_2/{}", 1), ("long/{}_2", 0)):
        generator, vlm = (load_trained(tmp_path / f"round_{by}" / model, model) for model in MODELS)
        made = records.read_manifest(tmp_path / pairs.format("synthetic")).provenance
        assert made.generator == generator.provenance("generator")
        summary = json.loads((tmp_path / pairs.format("kept") / "summary.json").read_text())
        assert summary["chosen"]["scores"]["caption"]["vlm"] == vlm.fingerprint("vlm")
        assert vlm.config["started_from"]["step"] if by else "started_from" not in vlm.config

    # Pairs of a model that is no longer there are refused.
    lost, kept_apart = tmp_path / "round_1" / "generator", tmp_path / "apart"
    lost.rename(kept_apart)
    shutil.copytree(tmp_path / "round_2" / "generator", lost)
    code, steps, error = rounds()
    assert (code, steps) == (2, []) and "round_2" in error.splitlines()[-1]
    shutil.rmtree(lost)
    kept_apart.rename(lost)

    # Another config needs another folder.
    for change in ({"rounds__real_share": 0.25}, {"filter__keep": 0.5}):
        code, steps, error = rounds(**change)
        assert (code, steps) == (2, [])
        assert "another config needs another workdir" in error.splitlines()[-1]
