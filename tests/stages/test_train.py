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
from synth2_jax.training.optimizer import NOT_DECAYED

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


@pytest.mark.parametrize("name", ["tokenizer", "language_model", "generator", "vlm_real"])
def test_a_run_leaves_config_checkpoint_and_metrics(chain, name):
    folder = chain.path(name)
    model_name = "vlm" if name == "vlm_real" else name
    steps = chain.steps[model_name]
    assert latest_step(folder) == steps
    config = json.loads((folder / "config.json").read_text())
    assert config["model_name"] == model_name
    decays = config["optimizer"].get("weight_decay")
    assert config["optimizer"].get("weight_decay_skip", []) == list(NOT_DECAYED) * bool(decays)
    assert json.loads(json.dumps(read_description(folder, steps)[0])) == config
    found = chain.losses(name)
    losses = list(found.values())
    assert list(found) == list(range(1, steps + 1)) and np.isfinite(losses).all()
    assert steps < 10 or np.mean(losses[-3:]) < 0.9 * losses[0]
    assert any((folder / "tensorboard").iterdir())


def test_frozen_parts_are_the_pretrained_ones_to_the_last_bit(chain):
    parts = {
        name: load_trained(str(chain.path(name)), name).fingerprint(name)
        for name in ("tokenizer", "language_model")
    }
    for name in ("vlm_real", "vlm_mixture"):
        vlm = load_trained(str(chain.path(name)), "vlm")
        language_model = fingerprint(vlm.params["vlm"]["language_model"])
        found = {"tokenizer": vlm.fingerprint("tokenizer"), "language_model": language_model}
        assert vlm.built_on == parts == found
    generator = load_trained(str(chain.path("generator")), "generator")
    assert generator.fingerprint("tokenizer") == parts["tokenizer"]


def test_a_mixture_tells_real_from_synthetic_in_its_metrics_only(chain):
    rows = read_metrics(chain.path("vlm_mixture", "metrics.jsonl"))
    assert all({"loss_real", "loss_synthetic"} <= row.keys() for row in rows)
    rows = read_metrics(chain.path("vlm_real", "metrics.jsonl"))
    assert not any("loss_synthetic" in row for row in rows)


def test_a_finished_run_does_nothing_when_it_is_repeated(chain):
    folder = chain.path("language_model")
    before = (folder / "metrics.jsonl").read_bytes()
    chain.run(chain.training("language_model", folder))
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_more_steps_go_on_where_the_run_stopped(chain, tmp_path):
    for steps in (3, 6):
        chain.run(chain.training("vlm", tmp_path, train__steps=steps))
    assert chain.losses(tmp_path) == chain.losses("vlm_real")
    found, expected = (restore_params(folder) for folder in (tmp_path, chain.path("vlm_real")))
    assert fingerprint(found) == fingerprint(expected)


def test_validation_losses_and_captions_are_metrics_too(chain, tmp_path):
    data = {"folders__held_out": "CHAIN/pairs/test", "batch_size": 16, "text_length": 26}
    captions = {"folder": "CHAIN/pairs/test", "max_images": 4, "batch_size": 4}
    captions |= {"decode__max_length": 4, "scenes_split": "test"}
    keys = {f"validation__data__{key}": value for key, value in data.items()}
    keys |= {f"validation__captions__{key}": value for key, value in captions.items()}
    keys |= {"train__eval_every": 3, "validation__num_batches": 1}
    chain.run(chain.training("vlm", tmp_path, **keys))
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl")}
    expected = {"validation/loss", "validation/cider", "validation/objects_right"}
    assert [step for step, row in rows.items() if expected <= row.keys()] == [3, 6]
    # Looking at the model does not change it.
    assert chain.losses(tmp_path) == chain.losses("vlm_real")


def test_fake_data_needs_no_other_run(chain, tmp_path):
    fake = {"train__steps": 1, "data__source": "fake", "pretrained__tokenizer": ""}
    chain.run(chain.training("generator", tmp_path, **fake))
    assert latest_step(tmp_path) == 1


# --- mistakes: most are in test_stage_mistakes.py ---


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


def test_a_loss_of_nan_names_step_batch_and_last_good_checkpoint(chain, mistake, tmp_path):
    keys = {"optimizer__learning_rate": 1e38, "optimizer__warmup_steps": 0}
    line = mistake(chain.training("language_model", tmp_path, **keys, train__checkpoint_every=1))
    assert "loss is nan at step " in line
    assert re.search(r"\(batch: (text-\d{6}, ){8}\.\.\.\); last good checkpoint", line)
    assert f"last good checkpoint: step {latest_step(tmp_path)} in {tmp_path}" in line


# --- kills ---


LONG = {"train__steps": 500, "train__checkpoint_every": 60, "data__batch_size": 32}


def long_run(chain, workdir):
    mixture = {"data__folders__synthetic": "CHAIN/pairs/synthetic"}
    return chain.training("vlm", workdir, "vlm.py:mixture,tiny", **mixture, **LONG)


@pytest.fixture(scope="module")
def undisturbed(chain, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    chain.run(long_run(chain, workdir))
    return workdir


def wait_for_step(workdir, step):
    """Waits until a run has logged a step and has a checkpoint."""
    deadline = time.monotonic() + 300
    metrics = workdir / "metrics.jsonl"
    while time.monotonic() < deadline:
        logged = metrics.exists() and metrics.read_text().count("\n") > step
        if logged and any(entry.name.isdigit() for entry in (workdir / FOLDER).iterdir()):
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {workdir}")


@pytest.mark.parametrize("kill, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(chain, undisturbed, tmp_path, kill, code):
    command = [sys.executable, "-m", "synth2_jax.main", *long_run(chain, tmp_path)[1:]]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=env, text=True, **pipes)
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
    expected = chain.losses(undisturbed)
    assert chain.losses(tmp_path) == expected
    assert fingerprint(restore_params(tmp_path)) == fingerprint(restore_params(undisturbed))
    # Steps done twice came out the same both times.
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row.get("loss", expected[row["step"]]) == expected[row["step"]]


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
    command = [sys.executable, "-c", code, *arguments, f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "jax" in loaded and not {"tensorflow", "seqio", "tensorflow_datasets"} & set(loaded)
