"""`synth2 train` from the command line: what it leaves, what it refuses, and kills."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from synth2_jax.data import pair_writer, records
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.trained import load_trained
from synth2_jax.text.vocabulary import BUILT_IN, load_vocabulary, train_vocabulary
from synth2_jax.training.checkpoint_reader import (
    FOLDER,
    latest_step,
    read_description,
    restore_params,
)
from synth2_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "metrics.jsonl")}


@pytest.mark.parametrize("name", ["tokenizer", "language_model", "generator", "vlm_real"])
def test_a_run_leaves_config_checkpoint_and_metrics(chain, name):
    folder = chain.path(name)
    model_name = "vlm" if name == "vlm_real" else name
    steps = chain.steps[model_name]
    assert latest_step(folder) == steps
    config = json.loads((folder / "config.json").read_text())
    assert config["model_name"] == model_name
    saved, _ = read_description(folder, steps)
    assert json.loads(json.dumps(saved)) == config
    found = losses(folder)
    assert list(found) == list(range(1, steps + 1))
    assert np.isfinite(list(found.values())).all()
    assert any((folder / "tensorboard").iterdir())


@pytest.mark.parametrize("name", ["tokenizer", "language_model"])
def test_training_lowers_the_loss(chain, name):
    found = list(losses(chain.path(name)).values())
    assert np.mean(found[-3:]) < 0.9 * found[0]


def test_frozen_parts_are_the_pretrained_ones_to_the_last_bit(chain):
    tokenizer = load_trained(str(chain.path("tokenizer")), "tokenizer")
    language_model = load_trained(str(chain.path("language_model")), "language_model")
    for name in ("vlm_real", "vlm_mixture"):
        vlm = load_trained(str(chain.path(name)), "vlm")
        assert vlm.fingerprint("tokenizer") == tokenizer.fingerprint("tokenizer")
        assert fingerprint(vlm.params["vlm"]["language_model"]) == language_model.fingerprint(
            "language_model"
        )
        assert vlm.built_on == {
            "tokenizer": tokenizer.fingerprint("tokenizer"),
            "language_model": language_model.fingerprint("language_model"),
        }
    generator = load_trained(str(chain.path("generator")), "generator")
    assert generator.fingerprint("tokenizer") == tokenizer.fingerprint("tokenizer")


def test_a_mixture_tells_real_from_synthetic_in_its_metrics_only(chain):
    rows = read_metrics(chain.path("vlm_mixture", "metrics.jsonl"))
    assert all({"loss_real", "loss_synthetic"} <= row.keys() for row in rows)
    assert not any(
        "loss_synthetic" in row for row in read_metrics(chain.path("vlm_real", "metrics.jsonl"))
    )


def test_a_finished_run_does_nothing_when_it_is_repeated(chain):
    folder = chain.path("language_model")
    before = (folder / "metrics.jsonl").read_bytes()
    chain.run(chain.training("language_model", folder))
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_more_steps_go_on_where_the_run_stopped(chain, tmp_path):
    chain.run(chain.training("vlm", tmp_path / "parts", train__steps=3))
    chain.run(chain.training("vlm", tmp_path / "parts"))
    assert losses(tmp_path / "parts") == losses(chain.path("vlm_real"))
    assert fingerprint(restore_params(tmp_path / "parts")) == fingerprint(
        restore_params(chain.path("vlm_real"))
    )


def test_validation_losses_and_captions_are_metrics_too(chain, tmp_path):
    chain.run(
        chain.training(
            "vlm",
            tmp_path,
            train__eval_every=3,
            validation__num_batches=1,
            validation__data__folders__held_out=chain.path("pairs", "test"),
            validation__data__batch_size=16,
            validation__data__text_length=load_trained(
                str(chain.path("vlm_real")), "vlm"
            ).objective.task.text_length,
            validation__captions__folder=chain.path("pairs", "test"),
            validation__captions__max_images=4,
            validation__captions__batch_size=4,
            validation__captions__decode__max_length=4,
            validation__captions__scenes_split="test",
        )
    )
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl")}
    expected = {"validation/loss", "validation/cider", "validation/objects_right"}
    assert [step for step, row in rows.items() if expected <= row.keys()] == [3, 6]
    # Looking at the model does not change it.
    assert losses(tmp_path) == losses(chain.path("vlm_real"))


def test_fake_data_needs_no_other_run(chain, tmp_path):
    chain.run(
        chain.training(
            "generator", tmp_path, train__steps=1, data__source="fake", pretrained__tokenizer=""
        )
    )
    assert latest_step(tmp_path) == 1


# --- mistakes ---


def test_missing_and_wrong_checkpoints(chain, mistake, tmp_path):
    nowhere = tmp_path / "nowhere"
    line = mistake(chain.training("vlm", tmp_path / "w", pretrained__tokenizer=nowhere))
    key = "--config.pretrained.tokenizer"
    assert line == f"{key}={nowhere}: no such file or folder, expected a model"
    line = mistake(chain.training("vlm", tmp_path / "w", pretrained__language_model=""))
    assert line == (
        "--config.pretrained.language_model: empty, expected a trained language_model or a Gemma"
    )
    generator = chain.path("generator")
    line = mistake(chain.training("vlm", tmp_path / "w", pretrained__tokenizer=generator))
    assert line == f"{key}={generator}: holds a generator, expected a tokenizer"
    damaged = shutil.copytree(chain.path("tokenizer"), tmp_path / "tokenizer")
    for path in damaged.glob("checkpoints/*/params/**/d/*"):
        path.write_bytes(path.read_bytes()[:10])
    line = mistake(chain.training("vlm", tmp_path / "w", pretrained__tokenizer=damaged))
    step = chain.steps["tokenizer"]
    assert line.startswith(f"{key}={damaged}: {damaged}/checkpoints/{step}: this checkpoint")
    assert not (tmp_path / "w").exists()


def test_pairs_of_another_tokenizer_are_refused_by_both_names(chain, mistake, tmp_path):
    pairs = list(records.read_pairs(chain.path("pairs", "real")))
    stranger = records.Provenance("0123456789abcdef", chain.num_tokens, 32)
    pair_writer.write_pairs(tmp_path / "pairs", pairs, stranger)
    mine = load_trained(str(chain.path("tokenizer")), "tokenizer").fingerprint("tokenizer")
    for name in ("generator", "vlm"):
        line = mistake(chain.training(name, tmp_path / "w", data__folders__real=tmp_path / "pairs"))
        assert "0123456789abcdef" in line and mine in line
    line = mistake(chain.evaluation(tmp_path / "w", folder=tmp_path / "pairs"))
    assert "0123456789abcdef" in line and mine in line


@pytest.mark.parametrize(
    "overrides, text",
    [
        (
            {"data__mixture": "scenes_txt"},
            "--config.data.mixture: no task or mixture 'scenes_txt'; did you mean 'scenes_text'?",
        ),
        ({"data__split": "trian"}, "--config.data.split: task 'scenes_text' has no split 'trian'"),
        ({"data__modules": "no_such_tasks"}, "--config.data.modules: module 'no_such_tasks': not"),
        (
            {"model__language_model__dtype": "bfloat61"},
            "unknown dtype 'bfloat61'; did you mean 'bfloat16'? one of: bfloat16, float32",
        ),
        ({"model__language_model__remat": "ful"}, "did you mean 'full'?"),
        ({"model_name": "languagemodel"}, "did you mean 'language_model'?"),
        ({"model__language_model__vocab_size": 100}, "vocab_size: found 100, expected at least"),
        (
            {"model__text_length": 7},
            "--config.model.text_length: found 7, expected 32 as in --config.data.text_length",
        ),
        ({"optimizer__schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"train__steps": "many"}, "--config.train.steps: found 'many', expected int"),
        ({"mesh__fsdp": 3}, "fsdp=3"),
    ],
)
def test_a_mistake_in_a_config_is_one_line(chain, mistake, tmp_path, overrides, text):
    if text.startswith("mixture") or "data__split" in overrides:
        overrides = {"train__steps": 1, **overrides}
    assert text in mistake(chain.training("language_model", tmp_path / "w", **overrides))
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_prompt_that_leaves_no_target_tokens_is_named(chain, mistake, tmp_path):
    prompt = "a red circle on the left of a blue square " * 5
    line = mistake(chain.training("vlm", tmp_path / "w", data__prompt=prompt))
    assert line.startswith("example 'real-0000")  # the key of a pair
    assert "no token of its caption is left to learn" in line


@pytest.mark.parametrize(
    "overrides, text",
    [
        ({"data__mixture": "scenes_txt"}, "did you mean 'scenes_text'?"),
        ({"data__split": "vaildation"}, "did you mean 'validation'?"),
        ({"data__source": "fake"}, "has no end, so there is nothing to evaluate"),
        ({"data__batch_size": 300}, "--config.validation.data: fewer examples than the 300 of one"),
        ({"data__text_length": 7}, "--config.validation.data.text_length: found 7, expected"),
        ({"data__prompt": "Say:"}, "validation.data.prompt: found 'Say:', expected 'Output:'"),
        ({"captions__folder": "/no/where"}, "captions: a LanguageModelObjective writes none"),
    ],
)
def test_a_mistake_in_validation_is_one_line_before_training(
    chain, mistake, tmp_path, overrides, text
):
    held_out = {"data__mixture": "scenes_text", "data__split": "validation"}
    if "captions__folder" not in overrides:
        trained = load_trained(str(chain.path("language_model")), "language_model")
        held_out["data__text_length"] = trained.objective.task.text_length
        overrides = {**held_out, **overrides}
    line = mistake(
        chain.training(
            "language_model",
            tmp_path / "w",
            train__eval_every=2,
            **{f"validation__{key}": value for key, value in overrides.items()},
        )
    )
    assert text in line
    assert not (tmp_path / "w").exists()


def test_a_loss_of_nan_names_step_batch_and_last_good_checkpoint(chain, mistake, tmp_path):
    line = mistake(
        chain.training(
            "language_model",
            tmp_path,
            optimizer__learning_rate=1e38,
            optimizer__warmup_steps=0,
            train__checkpoint_every=1,
        )
    )
    assert "loss is nan at step " in line
    assert re.search(r"\(batch: (text-\d{6}, ){8}\.\.\.\); last good checkpoint", line)
    assert f"last good checkpoint: step {latest_step(tmp_path)} in {tmp_path}" in line


# --- kills ---


def start(argv):
    return subprocess.Popen(
        [sys.executable, "-m", "synth2_jax.main", *argv[1:]],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(workdir, step):
    """Waits until a run has logged a step and has a checkpoint."""
    deadline = time.monotonic() + 300
    metrics = workdir / "metrics.jsonl"
    while time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") > step:
            folder = workdir / FOLDER
            if any(entry.name.isdigit() for entry in folder.iterdir()):
                return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {workdir}")


LONG = {"train__steps": 500, "train__checkpoint_every": 60, "data__batch_size": 32}


@pytest.fixture(scope="module")
def undisturbed(chain, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    chain.run(long_run(chain, workdir))
    return workdir


def long_run(chain, workdir):
    return chain.training(
        "vlm",
        workdir,
        "vlm.py:mixture,tiny",
        data__folders__synthetic=chain.path("pairs", "synthetic"),
        **LONG,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kill, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(chain, undisturbed, tmp_path, kill, code):
    process = start(long_run(chain, tmp_path))
    try:
        wait_for_step(tmp_path, 150)
        process.send_signal(kill)
        assert process.wait(timeout=60) == code
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
    stopped_at = latest_step(tmp_path)
    assert 0 < stopped_at < LONG["train__steps"]
    if kill == signal.SIGTERM:
        assert stopped_at % LONG["train__checkpoint_every"]  # saved when it was told to stop
    chain.run(long_run(chain, tmp_path))
    assert losses(tmp_path) == losses(undisturbed)
    assert fingerprint(restore_params(tmp_path)) == fingerprint(restore_params(undisturbed))
    # Steps done twice came out the same both times.
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.get("loss", losses(undisturbed)[row["step"]]) == losses(undisturbed)[row["step"]]


@pytest.mark.slow
def test_a_run_keeps_its_vocabulary_for_stages_that_run_elsewhere(
    chain, tmp_path, mistake, monkeypatch
):
    data, elsewhere, run = tmp_path / "data", tmp_path / "elsewhere", tmp_path / "run"
    data.mkdir()
    elsewhere.mkdir()
    own = shutil.copy(BUILT_IN["scenes"], data / "own.model")
    monkeypatch.chdir(data)
    argv = chain.training("language_model", run, data__vocabulary="own.model", train__steps=1)
    chain.run(argv)
    monkeypatch.chdir(elsewhere)
    trained = load_trained(str(run), "language_model")
    vocabulary = load_vocabulary(trained.config["data"]["vocabulary"])
    assert vocabulary.path == str(run / "vocabulary.model")
    chain.run(["synth2", "export", str(run), f"--output={elsewhere / 'export'}"])
    assert (elsewhere / "export" / "vocabulary.model").read_bytes() == own.read_bytes()
    other = train_vocabulary(["a red circle"] * 10, size=280)
    (elsewhere / "own.model").write_bytes(other)
    line = mistake([*argv, "--config.model.language_model.vocab_size=280"])
    assert line.startswith("--config.data.vocabulary: found 'own.model', expected the vocabulary")
    assert (run / "vocabulary.model").read_bytes() == own.read_bytes()


def test_fake_data_needs_no_tensorflow(tmp_path):
    """Launch checks and timings run where none is installed."""
    code = (
        "import sys; from synth2_jax import main; assert main.main(sys.argv) == 0; "
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    arguments = ["train", "--config=configs/scenes/vlm.py:tiny", "--config.data.source=fake"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "jax" in loaded and not {"tensorflow", "seqio", "tensorflow_datasets"} & set(loaded)
