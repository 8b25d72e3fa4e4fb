"""`synth2 inspect`: what it says of each folder, with no terminal escapes whatever it holds."""

import json
import shutil

import pytest

from synth2_jax import main
from synth2_jax.data import pair_writer, records, views
from synth2_jax.data.skipped import Skipped
from synth2_jax.files import write_json, write_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages.inspect import describe_run
from synth2_jax.testing.untrained_runs import write_untrained_run
from synth2_jax.training import checkpoint_reader


def inspect(folder, capfd, *options):
    assert main.main(["synth2", "inspect", str(folder), *options]) == 0
    return capfd.readouterr().out


@pytest.mark.slow
def test_a_run_shows_its_tree_and_fingerprints(chain, capfd):
    text = inspect(chain.path("vlm_real"), capfd, "--fingerprints=true")
    vlm = load_trained(str(chain.path("vlm_real")), "vlm")
    assert f"vlm at step {chain.steps['vlm']} in {chain.path('vlm_real')}" in text
    (row,) = [line for line in text.splitlines() if "tokenizer/quantizer/codebook" in line]
    assert row.split() == ["tokenizer/quantizer/codebook", "float32", "32x8", "1", "KiB"]
    assert "(decay 0.5; later stages take it)\nposition of the data saved by 1 data shard\n" in text
    assert "steps saved: 6\n" in text
    assert vlm.fingerprint("tokenizer") in text and vlm.fingerprint("vlm") in text
    assert f"trained on top of tokenizer {vlm.fingerprint('tokenizer')}" in text
    assert '"model_name": "vlm"' in text


@pytest.mark.slow
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
    whole = run / "checkpoints" / "60"
    for path in whole.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    for options in ([], ["--fingerprints"]):
        line = mistake(["synth2", "inspect", str(run), *options])
        assert line.startswith(f"{whole}: this checkpoint cannot be read (damaged: ")
    # Nor is what half a save has left.
    shutil.rmtree(whole / "params")
    assert "expected checkpoint steps" in mistake(["synth2", "inspect", str(run)])
    whole.rename(run / "checkpoints" / "60.orbax-checkpoint-tmp")
    assert "expected checkpoint steps" in mistake(["synth2", "inspect", str(run)])


@pytest.mark.slow
def test_pairs_and_captions_show_counts_and_provenance(chain, capfd, tmp_path, mistake):
    text = inspect(chain.path("pairs", "synthetic"), capfd)
    assert f"{chain.num_captions} pairs in 3 shards" in text and "all hashes right" in text
    assert f"'synthetic': {chain.num_captions}" in text
    assert "synthetic-000000000-0" in text and "class_name" in text and '"num_steps": 2' in text
    assert "real-000000-0  " in inspect(chain.path("pairs", "real"), capfd)
    assert '"num_captions": 20' in inspect(chain.path("captions"), capfd)
    folder = shutil.copytree(chain.path("pairs", "test"), tmp_path / "pairs")
    shard = sorted(folder.glob("*.tfrecord"))[1]
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    line = mistake(["synth2", "inspect", f"--workdir={folder}"])
    assert shard.name in line and "sha256" in line


@pytest.mark.slow
def test_nothing_there(tmp_path, mistake):
    line = mistake(["synth2", "inspect", f"--workdir={tmp_path / 'x'}"])
    assert line.startswith(f"{tmp_path / 'x'}: no such folder")
    line = mistake(["synth2", "inspect", f"--workdir={tmp_path}"])
    assert "expected checkpoint steps" in line
    report = ["synth2", "report", f"--workdir={tmp_path}"]
    told = "results.json: no such file; expected what `synth2 demo` leaves there"
    assert mistake(report).endswith(told)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text('{"arms": {"re')
    assert mistake(report).startswith(f"{tmp_path}/report/results.json: not JSON")


@pytest.mark.slow
def test_a_misspelled_folder_is_not_taken_for_a_mixture_alone(mistake, tmp_path, monkeypatch):
    (tmp_path / "my_pairs").mkdir()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert mistake(["synth2", "inspect", "my_pairz"]).startswith(
        f"my_pairz: no such folder in {tmp_path}; did you mean 'my_pairs'? one of: my_pairs; nor "
        "is it a mixture: no task or mixture 'my_pairz'; "
    )


# --- terminal escapes ---

HOSTILE = "\x1b]0;title\x07\x1b[31mred\u202e\x9b"


def captions(folder):
    write_json(folder / "manifest.json", {"source": HOSTILE, HOSTILE: 1})
    write_json_lines(folder / "captions.jsonl", [{"caption": "a dog"}])


def pairs(folder):
    pair = records.Pair(f"real-{HOSTILE}-0", [1, 2, 3], f"a {HOSTILE}", "real")
    provenance = records.Provenance(HOSTILE, 3, 8, captions={"source": HOSTILE})
    writer = pair_writer.PairWriter(folder, provenance, num_shards=1)
    writer.write_shard(0, [pair, Skipped(HOSTILE, "corrupt image", HOSTILE)])
    writer.finish()


def view(folder):
    pairs(folder / "pairs")
    views.write_view(folder, folder / "pairs", [[[0, 0]]], block=4, chosen={"by": HOSTILE})
    path = folder / "view.json"
    write_json(path, {**json.loads(path.read_text()), "chosen": {HOSTILE: HOSTILE}})


def training(folder):
    write_untrained_run(folder, "tokenizer", config={"note": HOSTILE})


@pytest.mark.parametrize("write", [captions, pairs, view, training])
def test_no_escapes_are_printed(tmp_path, capfd, write):
    write(tmp_path)
    text = inspect(tmp_path, capfd)
    assert r"1b[31mred\u202e" in text
    assert all(c.isprintable() or c == "\n" for c in text)
