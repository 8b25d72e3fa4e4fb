"""Runs, pairs, captions, exports and configs that an older version made still open.

tests/older.tar.xz was written by the stages of commit 6dc452e, before modules moved: a chain of
Scenes with models of width 8, trained for 2 steps. `expected.json` holds what that commit read. Of
all runs but the VLM's only the parameters are kept.
"""

import json
import pathlib
import tarfile

import jax
import ml_collections
import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.data import records
from synth2_jax.fingerprint import older_forms
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages import train
from synth2_jax.training.checkpoint_reader import latest_step

ARCHIVE = pathlib.Path(__file__).parent / "older.tar.xz"


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(older):
    return json.loads((older / "expected.json").read_text())


def config_of(older, name):
    """The config that the run has kept, with the folders where they are now."""
    text = (older / name / "config.json").read_text()
    return ml_collections.ConfigDict(json.loads(text.replace("/older", str(older))))


@pytest.mark.parametrize("name, path", [("vlm", "vlm"), ("export", "export_vlm")])
def test_a_model_opens_and_computes_what_it_did(older, expected, name, path):
    loss, fingerprints, built_on = expected[name]
    trained = load_trained(str(older / path), "vlm")
    assert trained.params.keys() == fingerprints.keys()
    for part, fingerprint in fingerprints.items():
        assert fingerprint in older_forms(trained.fingerprint(part))
    assert dict(trained.built_on) == built_on
    spec = trained.objective.batch_spec(4)
    rng = np.random.default_rng(0)
    batch = {
        "image_tokens": rng.integers(0, 32, spec["image_tokens"].shape).astype(np.int32),
        "text_tokens": rng.integers(2, 512, spec["text_tokens"].shape).astype(np.int32),
        "loss_mask": np.ones(spec["loss_mask"].shape, bool),
        "is_synthetic": np.zeros(4, bool),
    }
    rngs = {name: jax.random.key(0) for name in ("dropout", "mask", "drop")}
    metrics, _ = trained.objective.loss(trained.params, batch, rngs, 0, train=False)
    total, count = metrics["loss"]
    assert float(total / count) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("folder", ["pairs/real", "synthetic"])
def test_pairs_are_read_as_they_were_written(older, expected, folder):
    pairs = list(records.read_pairs(older / folder))[:2]
    found = [
        [pair.key, pair.caption, [int(token) for token in pair.image_tokens]] for pair in pairs
    ]
    assert found == expected[folder]


@pytest.mark.parametrize("name", ["language_model", "vlm"])
def test_a_config_that_types_every_size_builds(older, name):
    cfg, objective = train.build(config_of(older, name))
    assert cfg.model_name == name and objective.task.text_length == cfg.data.text_length


@pytest.mark.slow
def test_a_run_goes_on_and_says_that_it_decays_less(older, tmp_path, caplog):
    file = tmp_path / "vlm.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config_of(older, 'vlm').to_dict()!r})\n"
    )
    argv = ["train", f"--config={file}", f"--workdir={older / 'vlm'}", "--config.train.steps=3"]
    with caplog.at_level("WARNING", logger="absl"):
        assert main.main(["synth2", *argv]) == 0
    assert latest_step(older / "vlm") == 3
    (line,) = (one for one in caplog.messages if "resumes with other settings" in one)
    assert "settings: --config.optimizer.weight_decay_skip=['scale$'" in line
    assert line.endswith("'codebook$'] ([] before)")


@pytest.mark.slow
def test_captions_are_made_into_pairs_again(older):
    argv = [f"--config.generator={older / 'generator'}", f"--config.captions={older / 'captions'}"]
    argv += ["--config=configs/scenes/synthesize.py", "--config.sampler.num_steps=4"]
    workdir = older / "again"
    assert main.main(["synth2", "synthesize", *argv, f"--workdir={workdir}"]) == 0
    again, before = (list(records.read_pairs(path)) for path in (workdir, older / "synthetic"))
    for pair, was in zip(again, before, strict=True):
        assert (pair.key, pair.caption) == (was.key, was.caption)
        np.testing.assert_array_equal(pair.image_tokens, was.image_tokens)
