"""What `synth2 evaluate` leaves of captions that are there: scores, how, and what failed.

A model's own captions are in test_evaluate.py.
"""

import json

import ml_collections
import numpy as np
import pytest

from synth2_jax import sharding
from synth2_jax.data import pair_writer
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.records import Pair, Provenance, read_manifest
from synth2_jax.data.references import pair_key
from synth2_jax.errors import UserError
from synth2_jax.evaluation import more_scores
from synth2_jax.evaluation import scorer as scorer_file
from synth2_jax.evaluation.scorer import CaptionScorer, EvaluateConfig
from synth2_jax.files import read_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.scoring.captions import (
    Pairs,
    cider_d,
    cider_plain,
    document_frequency,
    score_captions,
)
from synth2_jax.stages import evaluate
from synth2_jax.testing.untrained_runs import write_untrained_run

SCENES = DataConfig()
CAPTIONS = (("a red circle", "the circle is red"), ("a blue star",), ("two rings", "rings"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """vlm/, and pairs/ that its tokenizer made."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_untrained_run(folder / "vlm", "vlm")
    rng = np.random.default_rng(0)
    pairs = [
        Pair(pair_key(f"image-{image}", number), tokens, caption, "real")
        for image, captions in enumerate(CAPTIONS)
        for tokens in [rng.integers(0, 64, 4)]
        for number, caption in enumerate(captions)
    ]
    tokenizer = load_trained(folder / "vlm", "vlm").fingerprint("tokenizer")
    pair_writer.write_pairs(folder / "pairs", pairs, Provenance(tokenizer, 4, 64))
    return folder


@pytest.fixture(autouse=True)
def written(monkeypatch):
    """Captions in place of the model's, which would have to be compiled."""
    captions = ["a red circle", "a star", "rings"]
    monkeypatch.setattr(CaptionScorer, "captions", lambda self, params: captions)
    return captions


def config_of(folder, **changes):
    return ml_collections.ConfigDict(
        {
            "vlm": str(folder / "vlm"),
            "folder": str(folder / "pairs"),
            "batch_size": 3,
            "decode": {"method": "greedy", "max_length": 4},
            **changes,
        }
    )


def test_results_say_how_they_were_measured(folder, tmp_path, capsys):
    support = {"shots": 1, "support": str(folder / "pairs"), "seed": 3}
    found = {}
    for name, protocol in (
        ("zero", {}),
        ("shots", support),
        ("text_shots", {**support, "shots": 0, "text_shots": 1}),
    ):
        evaluate.run(config_of(folder, protocol=protocol), str(tmp_path / name))
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
        assert found[name]["protocol"] in capsys.readouterr().out
    assert {name: results["protocol"] for name, results in found.items()} == {
        "zero": "zero-shot: no examples",
        "shots": "1-shot: examples with their images before each image",
        "text_shots": "zero-shot as Flamingo has it: 1 examples without their images",
    }
    results = found["shots"]
    assert results["prompt"] == "Output:"
    assert results["decoding"] == "greedy, up to 4 tokens"
    assert results["pairs"] == read_manifest(folder / "pairs").fingerprint
    told = results["config"]
    assert (told["folder"], told["vlm"]) == (str(folder / "pairs"), str(folder / "vlm"))
    assert told["protocol"]["shots"] == 1 and told["protocol"]["seed"] == 3
    assert (told["decode"]["method"], told["decode"]["max_length"]) == ("greedy", 4)


def test_each_image_has_its_own_score(folder, tmp_path):
    evaluate.run(config_of(folder), str(tmp_path))
    rows = read_json_lines(tmp_path / "per_image.jsonl")
    captions = read_json_lines(tmp_path / "captions.jsonl")
    assert [row["key"] for row in rows] == [row["key"] for row in captions]
    results = json.loads((tmp_path / "results.json").read_text())
    assert np.mean([row["cider"] for row in rows]) == pytest.approx(results["cider"])
    first = next(row for row in rows if row["key"] == captions[0]["key"])
    pairs = Pairs([row["caption"] for row in captions], [row["references"] for row in captions])
    assert first["cider"] == pytest.approx(100 * cider_d(pairs).per_image[0])


def test_captions_are_asked_for_as_in_training(folder, tmp_path, monkeypatch):
    asked = []

    def stop(objective, config, data, *others):
        asked.append((data.prompt, data.vocabulary))
        raise UserError("enough")

    data = {"prompt": "Picture:", "vocabulary": "mine.model", "text_length": 12}
    write_untrained_run(tmp_path / "vlm", "vlm", config={"data": data})
    with pytest.raises(UserError, match="vocabulary 'mine.model': no such file"):
        scorer_of(folder, data=DataConfig(vocabulary="mine.model"))
    monkeypatch.setattr(evaluate, "CaptionScorer", stop)
    with pytest.raises(UserError, match="enough"):
        evaluate.run(config_of(folder, vlm=str(tmp_path / "vlm")), str(tmp_path / "results"))
    assert asked == [("Picture:", "mine.model")]


def failing(*arguments, **options):
    raise ValueError("could not convert\nstring to float: '0,5'")


def test_a_score_that_fails_leaves_all_others(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(more_scores, "meteor", failing)
    monkeypatch.setattr(scorer_file, "check_meteor", lambda: None)
    (tmp_path / "clip.py").write_text(
        "def features(inputs):\n    raise RuntimeError('no weights')\n"
    )
    config = config_of(
        folder, more_scores=("meteor", "cider_plain"), feature_model=f"{tmp_path}/clip.py:features"
    )
    with pytest.raises(UserError) as error:
        evaluate.run(config, str(tmp_path / "out"))
    assert str(error.value) == (
        "--config.more_scores=meteor failed (ValueError: could not convert string to float: "
        "'0,5'); feature_model failed (RuntimeError: no weights). Captions and all other scores "
        f"are in {tmp_path / 'out'}."
    )
    rows = read_json_lines(tmp_path / "out" / "captions.jsonl")
    assert [tuple(row["references"]) for row in rows] == list(CAPTIONS)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"cider", "cider_plain", "vlm"} <= results.keys() and "meteor" not in results


def test_captions_are_written_before_any_score(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer_file, "score_captions", failing)
    with pytest.raises(ValueError, match="could not convert"):
        evaluate.run(config_of(folder), str(tmp_path))
    assert len(read_json_lines(tmp_path / "captions.jsonl")) == 3
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 3


def test_a_score_that_fails_does_not_end_a_training(folder, monkeypatch, caplog):
    monkeypatch.setattr(more_scores, "meteor", failing)
    monkeypatch.setattr(scorer_file, "check_meteor", lambda: None)
    scorer, params = scorer_of(folder, more_scores=("meteor",))
    assert {"cider", "bleu4"} <= scorer.scores(params).keys()
    assert "--config.validation.captions.more_scores=meteor failed (ValueError" in caplog.text


def scorer_of(folder, data=SCENES, **changes):
    vlm = load_trained(folder / "vlm", "vlm")
    config = EvaluateConfig(str(folder / "pairs"), batch_size=3, **changes)
    tokenizer = vlm.fingerprint("tokenizer")
    mesh = sharding.make_mesh(sharding.MeshConfig())
    return CaptionScorer(vlm.objective, config, data, tokenizer, mesh), vlm.params


def test_frequencies_of_a_corpus_are_those_of_every_cider(folder, written, tmp_path):
    corpus = [["a red star"], ["a green circle"], ["two rings"], ["a cat"], ["the circle"]]
    rows = [{"image_id": i, "caption": text} for i, (text,) in enumerate(corpus)]
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"annotations": rows}))
    scorer, _ = scorer_of(folder, document_frequencies=str(path), more_scores=("cider_plain",))
    frequency = document_frequency(corpus)
    results = scorer.score(written)
    expected = score_captions(written, CAPTIONS, frequency=frequency)
    assert results["cider"] == pytest.approx(expected["cider"])
    assert results["cider"] != pytest.approx(score_captions(written, CAPTIONS)["cider"])
    assert "df=corpus.json (5 images)" in results["provenance"]
    (plain,) = scorer.more_scores(written).values()
    expected = cider_plain(Pairs(written, CAPTIONS), frequency).corpus
    assert plain()["cider_plain"] == pytest.approx(100 * expected)
