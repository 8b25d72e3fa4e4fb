"""`synth2 inspect` and `synth2 report` from the command line."""

import shutil

import pytest

from synth2_jax import main
from synth2_jax.training.trained import load_trained

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def inspect(folder, capsys):
    assert main.main(["synth2", "inspect", f"--workdir={folder}"]) == 0
    return capsys.readouterr().out


def test_a_run_shows_its_tree_and_fingerprints(chain, capsys):
    text = inspect(chain.path("vlm_real"), capsys)
    vlm = load_trained(str(chain.path("vlm_real")), "vlm")
    assert f"vlm at step {chain.steps['vlm']} in {chain.path('vlm_real')}" in text
    assert "tokenizer/quantizer/codebook" in text and "(32, 8)" in text
    for part in ("tokenizer", "vlm"):
        assert vlm.fingerprint(part) in text
    assert f"trained on top of tokenizer {vlm.fingerprint('tokenizer')}" in text
    assert '"model_name": "vlm"' in text


def test_pairs_show_counts_provenance_and_captions(chain, capsys):
    text = inspect(chain.path("pairs", "synthetic"), capsys)
    assert f"{chain.num_captions} pairs in 3 shards" in text and "all hashes right" in text
    assert f"'synthetic': {chain.num_captions}" in text
    assert "synthetic-000000000-0" in text and "class_name" in text and '"num_steps": 2' in text
    assert "real-000000-0  " in inspect(chain.path("pairs", "real"), capsys)


def test_captions_show_their_manifest(chain, capsys):
    assert '"num_captions": 20' in inspect(chain.path("captions"), capsys)


def test_a_changed_byte_is_found(chain, tmp_path, mistake):
    folder = shutil.copytree(chain.path("pairs", "test"), tmp_path / "pairs")
    shard = sorted(folder.glob("*.tfrecord"))[1]
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    line = mistake(["synth2", "inspect", f"--workdir={folder}"])
    assert shard.name in line and "sha256" in line


def test_nothing_there(tmp_path, mistake):
    line = mistake(["synth2", "inspect", f"--workdir={tmp_path / 'x'}"])
    assert line.startswith(f"{tmp_path / 'x'}: no such folder")
    line = mistake(["synth2", "inspect", f"--workdir={tmp_path}"])
    assert "expected checkpoint steps" in line
    line = mistake(["synth2", "report", f"--workdir={tmp_path}"])
    assert line.endswith("results.json: no such file; expected what `synth2 demo` leaves there")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text('{"arms": {"re')
    line = mistake(["synth2", "report", f"--workdir={tmp_path}"])
    assert line.startswith(f"{tmp_path}/report/results.json: not JSON")
