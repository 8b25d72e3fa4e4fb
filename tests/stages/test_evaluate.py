"""`synth2 evaluate`: scores that do not depend on batches, and captions that depend on images."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.references import read_references
from synth2_jax.errors import UserError
from synth2_jax.evaluation.scorer import CaptionScorer, EvaluateConfig
from synth2_jax.files import read_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.scoring.captions import score_captions
from synth2_jax.training import train_state

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute

SCENES = DataConfig()
MESH = sharding.make_mesh(sharding.MeshConfig())


@pytest.fixture(scope="module")
def vlm(chain):
    return load_trained(str(chain.path("vlm_real")), "vlm")


@pytest.fixture(scope="module")
def evaluated(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    chain.run(chain.evaluation(folder))
    return folder


def scorer(chain, vlm, data=SCENES, mesh=MESH, **changes):
    config = EvaluateConfig(
        str(chain.path("pairs", "test")),
        max_images=10,
        batch_size=4,
        decode=TextDecodeConfig(max_length=8),
        scenes_split="test",
    )
    tokenizer = vlm.fingerprint("tokenizer")
    config = dataclasses.replace(config, **changes)
    return CaptionScorer(vlm.objective, config, data, tokenizer, mesh)


def test_results_hold_every_score_and_the_models_provenance(chain, evaluated, vlm):
    results = json.loads((evaluated / "results.json").read_text())
    scores = {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "objects_right"}
    told = {"provenance", "vlm", "protocol", "decoding", "prompt", "pairs", "config"}
    assert scores | {"cider_seen", "cider_unseen"} | told == results.keys()
    assert all(np.isfinite(results[score]) and results[score] >= 0 for score in scores)
    assert results["vlm"] == {
        "checkpoint": "vlm_real",
        "step": chain.steps["vlm"],
        "fingerprint": vlm.fingerprint("vlm"),
    }
    assert "images=10" in str(results["provenance"])


def test_captions_and_references_are_written_with_their_keys(chain, evaluated, vlm):
    rows = read_json_lines(evaluated / "captions.jsonl")
    images = read_references(chain.path("pairs", "test"), vlm.fingerprint("tokenizer"), 10)
    assert [row["key"] for row in rows] == [image.key for image in images]
    assert [tuple(row["references"]) for row in rows] == [image.references for image in images]
    results = json.loads((evaluated / "results.json").read_text())
    again = score_captions([r["caption"] for r in rows], [r["references"] for r in rows])
    assert again["cider"] == pytest.approx(results["cider"])
    assert again["bleu4"] == pytest.approx(results["bleu4"])


def test_seen_and_unseen_are_parts_of_the_whole(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    low, high = sorted((results["cider_seen"], results["cider_unseen"]))
    assert low <= results["cider"] <= high


def without_config(folder):
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in results.items() if name != "config"}


def test_scores_repeat_and_do_not_depend_on_the_batch_size(chain, evaluated, tmp_path):
    first = without_config(evaluated)
    for batch_size in (8, 3):
        folder = tmp_path / str(batch_size)
        chain.run(chain.evaluation(folder, batch_size=batch_size))
        assert without_config(folder) == first
        assert (folder / "captions.jsonl").read_text() == (evaluated / "captions.jsonl").read_text()


def test_a_caption_depends_on_its_own_image_and_no_other(chain, vlm):
    # Gates that are open, and strong weights behind them: six steps of training change no word.
    rng = np.random.default_rng(0)
    flat = train_state.flatten(vlm.params)
    for path, leaf in flat.items():
        if "cross_attention" in path:
            noise = rng.normal(size=leaf.shape).astype(leaf.dtype)
            flat[path] = np.full_like(leaf, 3.0) if path.endswith("gate") else leaf + noise
    params = train_state.unflatten(flat)
    captioner = scorer(chain, vlm)
    before = captioner.captions(params)
    assert len(set(before)) > 1
    images = list(captioner.images)
    captioner.images = [images[1], *images[1:]]
    after = captioner.captions(params)
    assert after[1:] == before[1:]
    assert after[0] == before[1]
    captioner.images = images[::-1]
    assert captioner.captions(params) == before[::-1]


def test_a_truncated_checkpoint_is_one_line(chain, tmp_path, mistake):
    model = shutil.copytree(chain.path("vlm_real"), tmp_path / "vlm")
    for path in model.glob("checkpoints/*/params/**/d/*"):
        path.write_bytes(path.read_bytes()[:10])
    line = mistake(chain.evaluation(tmp_path / "results", vlm=model))
    step = chain.steps["vlm"]
    start = f"--config.vlm={model}: {model}/checkpoints/{step}: "
    assert line.startswith(f"{start}this checkpoint cannot be read (damaged")


@pytest.mark.filterwarnings("ignore:CIDEr is 0")  # of a single image
def test_a_score_of_no_images_is_null(chain, tmp_path):
    chain.run(chain.evaluation(tmp_path, max_images=1))
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [results["cider_seen"], results["cider_unseen"]].count(None) == 1


def test_without_scenes_only_caption_scores(chain, vlm):
    found = scorer(chain, vlm, scenes_split="").score(["a red circle"] * 10)
    assert "cider" in found and "objects_right" not in found and "cider_unseen" not in found


def test_perfect_captions_score_high(chain, vlm):
    right = scorer(chain, vlm)
    truth = [image.references[0] for image in right.images]
    found, poor = right.score(truth), right.score(truth[1:] + truth[:1])
    assert found["bleu4"] == pytest.approx(100) and found["objects_right"] == 1.0
    assert found["cider"] > 100 > poor["cider"]
    assert poor["objects_right"] < 0.5


def test_mistakes(chain, vlm, mistake, tmp_path):
    line = mistake(chain.evaluation(tmp_path, decode__method="nucleus"))
    assert "found nucleus, expected greedy or beam" in line
    line = mistake(chain.evaluation(tmp_path, scenes_split="vaildation"))
    assert "unknown 'vaildation'; did you mean 'validation'?" in line
    line = mistake(chain.evaluation(tmp_path, scenes_split="validation"))
    assert "found 'validation', but the first image is 'test-000000'" in line
    line = mistake(chain.evaluation(tmp_path, batch_size=0))
    assert "--config.batch_size: found 0, expected at least 1" in line
    with pytest.raises(UserError, match="^--config.batch_size: found 4 rows, .* over 3 devices"):
        scorer(chain, vlm, mesh=AbstractMesh((3, 1, 1), sharding.MESH_AXES))
    line = mistake(chain.evaluation(tmp_path, max_images=0))
    assert "--config.max_images: found 0, expected at least 1" in line
    line = mistake(chain.evaluation(tmp_path, vlm=chain.path("generator")))
    assert line == f"--config.vlm={chain.path('generator')}: holds a generator, expected a vlm"
    line = mistake(chain.evaluation(tmp_path, folder=tmp_path))
    assert line.startswith(f"--config.folder={tmp_path}: no manifest.json (no pairs here)")
    generator = load_trained(str(chain.path("generator")), "generator")
    with pytest.raises(UserError, match="a GeneratorObjective writes none"):
        CaptionScorer(generator.objective, EvaluateConfig(str(tmp_path)), SCENES, "", MESH)
    for key in ("prompt", "vocabulary"):  # they are the VLM's own
        line = mistake(chain.evaluation(tmp_path, **{key: "x"}))
        assert line.startswith(f"--config.{key}: unknown key")
