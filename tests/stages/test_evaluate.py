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


def results_of(folder):
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


def test_results_captions_and_references_are_written(chain, evaluated, vlm):
    results = results_of(evaluated)
    scores = {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "objects_right"}
    told = {"provenance", "vlm", "protocol", "decoding", "prompt", "pairs", "config"}
    assert scores | {"cider_seen", "cider_unseen"} | told == results.keys()
    assert all(np.isfinite(results[score]) and results[score] >= 0 for score in scores)
    fingerprint = vlm.fingerprint("vlm")
    known = {"checkpoint": "vlm_real", "step": chain.steps["vlm"], "fingerprint": fingerprint}
    assert results["vlm"] == known and "images=10" in results["provenance"]
    low, high = sorted((results["cider_seen"], results["cider_unseen"]))
    assert low <= results["cider"] <= high  # they are parts of the whole
    rows = read_json_lines(evaluated / "captions.jsonl")
    images = read_references(chain.path("pairs", "test"), vlm.fingerprint("tokenizer"), 10)
    assert [row["key"] for row in rows] == [image.key for image in images]
    assert [tuple(row["references"]) for row in rows] == [image.references for image in images]
    again = score_captions([r["caption"] for r in rows], [r["references"] for r in rows])
    for name in ("cider", "bleu4"):
        assert again[name] == pytest.approx(results[name])


def test_scores_repeat_and_do_not_depend_on_the_batch_size(chain, evaluated, tmp_path):
    first = results_of(evaluated)
    for batch_size in (8, 3):
        folder = tmp_path / str(batch_size)
        chain.run(chain.evaluation(folder, batch_size=batch_size))
        assert results_of(folder) | {"config": first["config"]} == first
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
    results = results_of(tmp_path)
    assert [results["cider_seen"], results["cider_unseen"]].count(None) == 1


def test_perfect_captions_score_high(chain, vlm):
    right = scorer(chain, vlm)
    truth = [image.references[0] for image in right.images]
    found, poor = right.score(truth), right.score(truth[1:] + truth[:1])
    assert found["bleu4"] == pytest.approx(100) and found["objects_right"] == 1.0
    assert found["cider"] > 100 > poor["cider"]
    assert poor["objects_right"] < 0.5
    plain = scorer(chain, vlm, scenes_split="").score(truth)  # without Scenes, captions alone
    assert "cider" in plain and "objects_right" not in plain and "cider_unseen" not in plain


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"decode__method": "nucleus"}, "found nucleus, expected greedy or beam"),
        ({"scenes_split": "vaildation"}, "unknown 'vaildation'; did you mean 'validation'?"),
        ({"scenes_split": "validation"}, "found 'validation', but the first image is 'test-000000"),
        ({"batch_size": 0}, "--config.batch_size: found 0, expected at least 1"),
        ({"max_images": 0}, "--config.max_images: found 0, expected at least 1"),
        ({"vlm": "{root}/generator"}, "--config.vlm={root}/generator: holds a generator, expected"),
        ({"folder": "{root}"}, "--config.folder={root}: no manifest.json (no pairs here)"),
        ({"prompt": "x"}, "--config.prompt: unknown key"),  # it is the VLM's own
        ({"vocabulary": "x"}, "--config.vocabulary: unknown key"),
    ],
)
def test_mistakes(chain, mistake, tmp_path, changes, said):
    given = {key: str(value).format(root=chain.root) for key, value in changes.items()}
    assert said.format(root=chain.root) in mistake(chain.evaluation(tmp_path, **given))


def test_models_and_meshes_that_do_not_fit(chain, vlm, tmp_path):
    with pytest.raises(UserError, match="^--config.batch_size: found 4 rows, .* over 3 devices"):
        scorer(chain, vlm, mesh=AbstractMesh((3, 1, 1), sharding.MESH_AXES))
    generator = load_trained(str(chain.path("generator")), "generator")
    with pytest.raises(UserError, match="a GeneratorObjective writes none"):
        CaptionScorer(generator.objective, EvaluateConfig(str(tmp_path)), SCENES, "", MESH)
