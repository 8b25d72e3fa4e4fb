"""`synth2 inspect` and `synth2 report` from the command line."""

import shutil

import pytest

from synth2_jax import main
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages.inspect import describe_run
from synth2_jax.training import checkpoint_reader

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def inspect(folder, capsys, *options):
    assert main.main(["synth2", "inspect", str(folder), *options]) == 0
    return capsys.readouterr().out


def test_a_run_shows_its_tree_and_fingerprints(chain, capsys):
    text = inspect(chain.path("vlm_real"), capsys, "--fingerprints=true")
    vlm = load_trained(str(chain.path("vlm_real")), "vlm")
    assert f"vlm at step {chain.steps['vlm']} in {chain.path('vlm_real')}" in text
    (row,) = [line for line in text.splitlines() if "tokenizer/quantizer/codebook" in line]
    assert row.split() == ["tokenizer/quantizer/codebook", "float32", "32x8", "1", "KiB"]
    assert "position of the data saved by 1 data shard\n" in text and "steps saved: 6\n" in text
    for part in ("tokenizer", "vlm"):
        assert vlm.fingerprint(part) in text
    assert f"trained on top of tokenizer {vlm.fingerprint('tokenizer')}" in text
    assert '"model_name": "vlm"' in text


def test_arrays_are_read_only_when_fingerprints_are_asked_for(
    chain, tmp_path, monkeypatch, mistake
):
    """So that a laptop can look at a model that it could not hold."""
    run = chain.path("language_model")
    with monkeypatch.context() as patched:
        for reader in ("read_arrays", "restore_params"):
            patched.delattr(checkpoint_reader, reader)
        for given in (run, run / "checkpoints", run / "checkpoints" / "60"):
            assert f"language_model at step 60 in {given}" in describe_run(given)
    run = shutil.copytree(run, tmp_path / "run")
    for path in (run / "checkpoints").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    for options in ([], ["--fingerprints"]):
        line = mistake(["synth2", "inspect", str(run), *options])
        assert line.startswith(f"{run}/checkpoints/60: this checkpoint cannot be read (damaged: ")


def test_what_half_a_save_has_left_is_no_checkpoint(chain, tmp_path, mistake):
    run = shutil.copytree(chain.path("language_model"), tmp_path / "run")
    whole = run / "checkpoints" / "60"
    shutil.rmtree(whole / "params")
    assert "expected checkpoint steps" in mistake(["synth2", "inspect", str(run)])
    whole.rename(run / "checkpoints" / "60.orbax-checkpoint-tmp")
    assert "expected checkpoint steps" in mistake(["synth2", "inspect", str(run)])


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


def test_a_misspelled_folder_is_not_taken_for_a_mixture_alone(mistake, tmp_path, monkeypatch):
    (tmp_path / "my_pairs").mkdir()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert mistake(["synth2", "inspect", "my_pairz"]).startswith(
        f"my_pairz: no such folder in {tmp_path}; did you mean 'my_pairs'? one of: my_pairs; nor "
        "is it a mixture: --config.data.mixture: no task or mixture 'my_pairz'; "
    )
