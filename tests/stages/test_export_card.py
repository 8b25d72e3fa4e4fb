"""The model card: counts, scores and limits are those of the run, its data and its results."""

import dataclasses
import json

import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.data import records
from synth2_jax.files import write_json_lines
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.loading.trained import load_trained
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.testing.untrained_runs import MODELS, write_untrained_run


def write_pairs(folder, counts, **provenance):
    """A folder of pairs for those who read no pair: its manifest, and a shard of zeros."""
    folder.mkdir(parents=True)
    (folder / "a.tfrecord").write_bytes(bytes(8))
    manifest = records.Manifest(
        records.Provenance("f" * 16, num_image_tokens=4, codebook_size=64, **provenance),
        counts,
        (records.Shard("a.tfrecord", sum(counts.values()), 8, "0"),),
        captions_cut=2 if "synthetic" in counts else 0,
    )
    (folder / records.MANIFEST).write_text(records.manifest_json(manifest))


def make_run(tmp_path):
    """A VLM's run on 300 real and 100 synthetic pairs, and a folder that is gone."""
    write_pairs(tmp_path / "real", {"real": 300}, captions={"source": "scenes/real"})
    write_pairs(
        tmp_path / "drawn",
        {"synthetic": 100},
        generator={"checkpoint": "my_generator", "step": 7, "fingerprint": "abc123"},
        captions={"source": "server", "model": "a|b `c` <img src=x>"},
    )
    data = {
        "mixture": "both",
        "folders": {name: str(tmp_path / name) for name in ("real", "drawn", "lost")},
        "rates": {"real": 0.25, "drawn": [[0, 0.1], [10, 0.9]], "lost": 1.0},
        "text_length": 12,
        "batch_size": 16,
    }
    origin = {"path": "/runs/first/checkpoints/2000", "step": 2000, "fingerprints": {}}
    write_untrained_run(tmp_path / "run", "vlm", config={"data": data, "started_from": origin})
    rows = [
        {"step": 2, "data/real_examples": 20, "data/synthetic_examples": 12},
        {"step": 3, "data/real_examples": 32, "data/synthetic_examples": 16, "loss": 1.0},
        {"step": 3, "data/lost_examples": None},
        {"step": 9, "data/real_examples": 9000, "data/synthetic_examples": 9000},  # after a crash
    ]
    write_json_lines(tmp_path / "run" / "metrics.jsonl", rows)
    return tmp_path / "run"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return card_of(make_run(tmp_path_factory.mktemp("card")))


def write_results(path, fingerprint, **scores):
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"vlm": {"checkpoint": "run", "step": 3, "fingerprint": fingerprint}}
    path.write_text(json.dumps({**scores, **told}))


def card_of(run, *options):
    output = run.parent / "out"
    assert main.main(["synth2", "export", str(run), f"--output={output}", *options]) == 0
    return (output / "README.md").read_text()


def test_training_and_limits_follow_from_the_data(card):
    for told in (
        "| real | 0.25 | 300 | 300 |  |",
        "| drawn | \\[\\[0, 0.1\\], \\[10, 0.9\\]\\] | 100 |  | 100 |",
        "| lost | 1.0 | gone |  |  |",
        "image tokens of tokenizer ffffffffffffffff",
        '"checkpoint": "my_generator", "fingerprint": "abc123", "step": 7',
        "Step 3 of 3, of 16 rows each.\n"
        "It started from the parameters of `first`, step 2,000, and knows what these were trained "
        "on.\nDrawn up to there: 32 real, 16 synthetic ex",
    ):
        assert told in card
    assert "/real" not in card.split("## Training data")[1].replace("scenes/real", "")  # no path
    limits = card.split("## Limitations")[1]
    for told in (
        "25 % of the pairs on disk are synthetic",
        "trained on Scenes",
        "The contents of `lost` are not known",
        "2 synthetic captions were longer",
        "A pair was drawn 0.12 times in the mean",
        "No scores are known",
    ):
        assert told in limits
    assert "rounded" not in limits and "no real image" not in limits
    # Text from elsewhere makes no markup: it stands in code, as the task's name does.
    (line,) = [line for line in card.splitlines() if "<img" in line]
    assert line.count("`") == 4


@pytest.mark.slow
def test_scores_are_those_of_this_model(run, tmp_path, mistake):
    mine = load_trained(run, "vlm").fingerprint("vlm")
    write_results(run / "evaluation" / "results.json", mine, cider=61.25, seen=None)
    write_results(run / "another" / "results.json", "0" * 16, cider=99.0)
    given = tmp_path / "elsewhere" / "results.json"
    measured = {
        "provenance of cider": "a=b",
        "protocol": "4-shot: examples with their images before each image",
        "config": {"batch_size": 77, "protocol": {"shots": 4}},
    }
    write_results(given, mine, domains={"near": {"cider": 40}}, **measured)
    card = card_of(run, f"--results={given}")
    table = card.split("## Scores")[1].split("## ")[0]
    for told in (
        "| cider | 61.25 |",
        "| domains.near.cider | 40 |",
        "- provenance of cider: a=b",
        "- protocol: 4-shot: examples with their images",  # not taken for zero-shot
        "`evaluation/results.json`",
        "`elsewhere/results.json`",
    ):
        assert told in card
    for other in ("99", "77", "seen"):  # of another model, a setting, no number
        assert other not in table

    write_results(given, "0" * 16, cider=99.0)
    argv = ["synth2", "export", str(run), f"--output={tmp_path / 'new'}", f"--results={given}"]
    line = mistake(argv)
    assert f"of a vlm with fingerprint {'0' * 16}, expected {mine}" in line
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_scores_from_before_a_rounding_are_marked(run):
    mine = load_trained(run, "vlm").fingerprint("vlm")
    write_results(run / "results.json", mine, cider=61.25)
    card = card_of(run, "--dtype=bfloat16")
    assert "| cider | 61.25 |" in card and "measured before vlm was rounded" in card
    assert f"before, the fingerprint was {mine}" in card


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_adapters_that_a_gemma_of_bfloat16_rounds_are_marked_too(tmp_path, dtype, capsys):
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16}
    gemma = GemmaConfig(vocab_size=512, num_kv_heads=1, sliding_window=3, **sizes)
    vlm = {**MODELS["vlm"]["vlm"], "language_model": dataclasses.asdict(gemma), "lora": {"rank": 2}}
    run = tmp_path / "run"
    write_untrained_run(run, "vlm", config={"model": {**MODELS["vlm"], "vlm": vlm}})
    mine = load_trained(run, "vlm").fingerprint("vlm")
    write_results(run / "results.json", mine, cider=61.25)
    card = card_of(run, *(["--dtype=float32"] if dtype == "float32" else []))
    assert "| cider | 61.25 |" in card and "measured before vlm was rounded" in card
    # In float32 the files hold all of it, so that some numbers are between two of bfloat16.
    assert ("adapters rounded" in capsys.readouterr().out) == (dtype == "bfloat16")
    arrays = open_safetensors(tmp_path / "out")
    name = next(name for name in arrays if name.endswith("q_einsum.w"))
    merged = np.asarray(arrays[name])
    is_rounded = np.array_equal(merged, merged.astype("bfloat16").astype(merged.dtype))
    assert merged.dtype == dtype and is_rounded == (dtype == "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, metadata",
    [
        ("apache-2.0", "license: apache-2.0\n"),
        ("Research only: ask me", 'license: other\nlicense_name: "Research only: ask me"\n'),
        ("", None),
    ],
)
def test_the_license_is_the_users(run, given, metadata):
    head, body = card_of(run, *([f"--license={given}"] if given else [])).split("---\n")[1:]
    assert metadata in head if metadata else "license" not in head
    assert (given or "None was given") in body.split("## License")[1]
