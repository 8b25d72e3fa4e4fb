"""`synth2 filter`: what is kept, scores that stay, and views that models train on."""

import json
import shutil

import numpy as np
import pytest

from synth2_jax import config as config_lib
from synth2_jax.data import pair_writer, records, views
from synth2_jax.data.records import Pair
from synth2_jax.errors import UserError
from synth2_jax.evaluation import pair_scores
from synth2_jax.evaluation.pair_scores import FilterConfig
from synth2_jax.evaluation.score_files import ScoreFiles
from synth2_jax.files import read_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages import filter as stage
from synth2_jax.stages.filter import choose
from synth2_jax.testing.untrained_runs import MODELS, write_untrained_run
from synth2_jax.testing.user_errors import raises_line
from synth2_jax.text.vocabulary import BUILT_IN

ALL_SCORES = "likelihood_ratio,caption,cycle"


@pytest.fixture
def pairs(chain, tmp_path):
    """A copy of the chain's synthetic pairs: scores are written beside them."""
    return shutil.copytree(chain.path("pairs", "synthetic"), tmp_path / "pairs")


def filtering(chain, pairs, workdir, **overrides):
    """argv of `synth2 filter`; 20 pairs in shards of 6, 7 and 7."""
    given = {
        "folder": pairs,
        "vlm": chain.path("vlm_real"),
        "generator": chain.path("generator"),
        "scores": "caption",
        "by": "caption",
        "keep": 0.5,
        "batch_size": 4,
        "cycle__pool_size": 4,
        **overrides,
    }
    return chain.arguments("filter", "filter.py", workdir, given)


def score_files(pairs):
    """{score/shard: contents}."""
    return {
        f"{path.parent.name.split('-')[0]}/{path.name}": path.read_bytes()
        for path in sorted(pairs.glob("scores/*/*.npy"))
    }


def scores_of(pairs, name):
    """Of all pairs in order."""
    return np.concatenate([np.load(path) for path in sorted(pairs.glob(f"scores/{name}-*/*.npy"))])


def times_of(folder):
    """{score file: when it was written}."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- without models ---


def filter_config(**values):
    return config_lib.build(FilterConfig, {"folder": "pairs", **values}, "--config")


@pytest.mark.slow
def test_a_vocabulary_is_known_by_its_contents(tmp_path):
    """A run whose vocabulary lies elsewhere has the same scores."""
    moved = shutil.copy(BUILT_IN["scenes"], tmp_path / "moved.model")
    settings = []
    for name, vocabulary in (("a", "scenes"), ("b", str(moved))):
        data = {"vocabulary": vocabulary, "text_length": 12}
        write_untrained_run(tmp_path / name, "vlm", config={"data": data})
        if not settings:
            tokenizer = load_trained(tmp_path / name, "vlm").fingerprint("tokenizer")
            pair = Pair("a-0", np.zeros(4, int), "a star", "synthetic")
            provenance = records.Provenance(tokenizer, 4, 64)
            manifest = pair_writer.write_pairs(tmp_path / "pairs", [pair], provenance)
        given = {"folder": str(tmp_path / "pairs"), "vlm": str(tmp_path / name), "batch_size": 1}
        given |= {"scores": ("caption",), "by": "caption"}
        scorers = pair_scores.load_scorers(filter_config(**given), manifest)
        settings.append(scorers["caption"].settings)
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_a_vlm_that_trained_its_language_model_cannot_take_its_likelihood_away(tmp_path):
    model = {**MODELS["vlm"], "freeze": ("^tokenizer/",)}
    write_untrained_run(tmp_path / "vlm", "vlm", config={"model": model})
    tokenizer = load_trained(tmp_path / "vlm", "vlm").fingerprint("tokenizer")
    pair = Pair("a-0", np.zeros(4, int), "a star", "synthetic")
    provenance = records.Provenance(tokenizer, 4, 64)
    manifest = pair_writer.write_pairs(tmp_path / "pairs", [pair], provenance)
    given = {"folder": str(tmp_path / "pairs"), "vlm": str(tmp_path / "vlm"), "batch_size": 1}
    cfg = filter_config(**given, scores=("caption",), by="caption")
    with raises_line("--config.caption.minus_language_model: found True, expected False"):
        pair_scores.load_scorers(cfg, manifest)


def test_where_scores_cannot_be_written_is_known_before_the_work(tmp_path):
    # As read-only pairs, which the tests' user may be allowed to write.
    (tmp_path / "pairs").touch()
    with raises_line(f"--config.scores_folder: cannot write to {tmp_path}/pairs/scores (Not a dir"):
        stage._check_writable(tmp_path / "pairs" / "scores")
    stage._check_writable(tmp_path / "scores")
    assert list((tmp_path / "scores").iterdir()) == []


SCORES = np.array([0.5, 2.0, -1.0, 2.0, 0.0, 2.0], np.float32)


@pytest.mark.parametrize("dtype", [pair_scores._SCORE, pair_scores._RETRIEVAL])
def test_damaged_scores_are_refused(tmp_path, dtype):
    shard = records.Shard("pairs-0", 3, 1, "")
    files = ScoreFiles(tmp_path, "caption", {}, dtype)
    scores = np.array([1.0, 2.0, 3.0]).astype(dtype)
    files.write(shard, scores)
    np.testing.assert_array_equal(files.read(shard), scores)
    (path,) = tmp_path.glob("*/pairs-0.npy")
    (checksum,) = tmp_path.glob("*/pairs-0.sha256")
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 64])
    for contents in (flipped, whole[:-1], whole[:20] + b"x" + whole[21:], b""):
        path.write_bytes(contents)
        with pytest.raises(UserError, match=r"pairs-0.npy: damaged .* Delete it"):
            files.read(shard)
    checksum.unlink()  # scores of before there were checksums
    path.write_bytes(whole)
    np.testing.assert_array_equal(files.read(shard), scores)
    with pytest.raises(UserError, match="damaged"):
        files.read(records.Shard("pairs-0", 4, 1, ""))


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep": 0.5}, [1, 3, 5]),
        ({"keep": 0.34}, [1, 3]),  # of equal scores the first
        ({"keep": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"threshold": 0.0}, [0, 1, 3, 4, 5]),
        ({"threshold": 3.0}, []),
        ({"keep": 0.5, "action": "keep"}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_is_kept(config, kept):
    assert np.flatnonzero(choose(SCORES, filter_config(**config))).tolist() == kept


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scores": ("captoin",), "by": "captoin"}, "did you mean 'caption'"),
        ({"by": "caption"}, "--config.by: found 'caption', expected one of --config.scores"),
        ({"keep": 0.0}, "--config.keep: found 0.0, expected a share"),
        (
            {"scores": ("caption",), "by": "caption", "action": "repair"},
            "expected 'cycle' in --config.scores=",
        ),
        ({"action": "mend"}, "unknown value 'mend'"),
        ({"cycle": {"pool_size": 0}}, "--config.cycle.pool_size: found 0"),
    ],
)
def test_unfit_configs(config, message):
    with pytest.raises(UserError, match=message):
        filter_config(**config)


# --- on the chain ---


@pytest.mark.slow
def test_pairs_stay_as_they_are_where_scores_have_a_folder_of_their_own(chain, pairs, tmp_path):
    before = sorted(path.name for path in pairs.rglob("*"))
    scores = tmp_path / "my" / "scores"
    argv = filtering(chain, pairs, tmp_path / "view", scores_folder=scores)
    chain.run(argv)
    assert sorted(path.name for path in pairs.rglob("*")) == before
    times = times_of(scores)
    assert len(list(scores.glob("caption-*/*.npy"))) == 3
    chain.run(argv)  # they are found there again
    assert times_of(scores) == times


@pytest.mark.slow
def test_the_better_half_is_kept(chain, pairs, tmp_path):
    before = files_of(pairs)
    chain.run(filtering(chain, pairs, tmp_path / "view", scores=ALL_SCORES, keep=0.5))
    assert files_of(pairs) == before
    scores = scores_of(pairs, "caption")["score"]
    assert len(scores) == 20 and np.isfinite(scores).all() and len(np.unique(scores)) > 10
    kept = np.sort(np.argsort(-scores, kind="stable")[:10])
    all_pairs = list(records.read_pairs(pairs))
    found = [pair.key for pair in views.read_view(tmp_path / "view")]
    chain.run(["synth2", "inspect", str(tmp_path / "view")])
    assert found == [all_pairs[i].key for i in kept]
    summary = json.loads((tmp_path / "view" / "summary.json").read_text())
    assert [summary[name] for name in ("pairs", "kept", "repaired", "dropped")] == [20, 10, 0, 10]
    assert summary["lowest_kept"] == pytest.approx(scores[kept].min())
    assert summary["scores"].keys() == set(ALL_SCORES.split(","))
    assert summary["scores"]["caption"]["mean"] == pytest.approx(scores.mean(), abs=1e-5)
    assert "<svg" in (tmp_path / "view" / "index.html").read_text()
    assert summary["chosen"] == views.open_view(tmp_path / "view").chosen


@pytest.mark.slow
def test_a_killed_run_goes_on_and_comes_out_the_same(chain, pairs, tmp_path, monkeypatch):
    straight = shutil.copytree(pairs, tmp_path / "straight" / "pairs")
    chain.run(filtering(chain, straight, tmp_path / "straight" / "view", scores=ALL_SCORES))

    write, written = ScoreFiles.write, []

    def write_four(files, shard, scores):
        if len(written) == 4:
            raise SystemExit(137)
        written.append(shard.name)
        write(files, shard, scores)

    argv = filtering(chain, pairs, tmp_path / "view", scores=ALL_SCORES)
    with monkeypatch.context() as patched:
        patched.setattr(ScoreFiles, "write", write_four)
        with pytest.raises(SystemExit):
            chain.run(argv)
    assert not (tmp_path / "view" / views.VIEW).exists()
    times = {
        path: time for path, time in times_of(pairs / "scores").items() if path.suffix == ".npy"
    }
    assert len(times) == 4
    chain.run(argv)
    assert times.items() <= times_of(pairs / "scores").items()
    assert score_files(pairs) == score_files(straight)
    assert files_of(tmp_path / "view") == files_of(tmp_path / "straight" / "view")


@pytest.mark.slow
def test_another_share_scores_nothing_and_needs_another_workdir(chain, pairs, tmp_path, mistake):
    chain.run(filtering(chain, pairs, tmp_path / "view"))
    view = files_of(tmp_path / "view")
    times = times_of(pairs / "scores")
    line = mistake(filtering(chain, pairs, tmp_path / "view", keep=0.25))
    assert "found one of chosen.keep 0.5, expected 0.25; delete the folder" in line
    assert files_of(tmp_path / "view") == view
    chain.run(filtering(chain, pairs, tmp_path / "quarter", keep=0.25))
    assert views.open_view(tmp_path / "quarter").num_pairs == 5
    chain.run(filtering(chain, pairs, tmp_path / "view"))
    assert files_of(tmp_path / "view") == view
    assert times_of(pairs / "scores") == times


@pytest.mark.slow
def test_other_settings_and_other_models_have_files_of_their_own(chain, pairs, tmp_path):
    for index, (overrides, folders) in enumerate(
        [
            ({}, 1),
            ({"caption__minus_language_model": False}, 2),
            ({"vlm": chain.path("vlm_mixture")}, 3),
            ({"batch_size": 8}, 3),  # a score does not depend on its batch
        ]
    ):
        chain.run(filtering(chain, pairs, tmp_path / f"view{index}", **overrides))
        assert len(list(pairs.glob("scores/*"))) == folders


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch(chain, pairs, tmp_path):
    other = shutil.copytree(pairs, tmp_path / "other")
    scores = "likelihood_ratio,caption"
    ratios = {"likelihood_ratio__mask_ratios": "0.5,1.0"}
    chain.run(filtering(chain, pairs, tmp_path / "a", scores=scores, **ratios))
    chain.run(filtering(chain, other, tmp_path / "b", scores=scores, batch_size=7, **ratios))
    for name in scores.split(","):
        np.testing.assert_allclose(
            scores_of(pairs, name)["score"], scores_of(other, name)["score"], atol=1e-5
        )


@pytest.mark.slow
def test_captions_take_better_images_of_their_pools_and_a_vlm_trains_on_them(
    chain, pairs, tmp_path
):
    overrides = {"scores": "cycle", "by": "cycle", "action": "repair", "threshold": 0.0}
    chain.run(filtering(chain, pairs, tmp_path / "view", **overrides))
    found = scores_of(pairs, "cycle")
    all_pairs = list(records.read_pairs(pairs))
    assert len({tuple(pair.image_tokens) for pair in all_pairs}) > 1
    view = views.open_view(tmp_path / "view")
    assert 0 < view.num_repaired < 20 and view.num_pairs == 20
    rows, first = [], 0
    for shard in view.shards:
        rows += (view.rows(shard.name) + first).tolist()
        first += shard.num_pairs
    for (row, image_row), pair in zip(rows, views.read_view(tmp_path / "view"), strict=True):
        assert (image_row != row) == (found["score"][row] < 0) == (found["rank"][row] > 0)
        assert pair.caption == all_pairs[row].caption
        np.testing.assert_array_equal(pair.image_tokens, all_pairs[image_row].image_tokens)

    changes = {"data__folders__synthetic": tmp_path / "view", "train__steps": 2}
    chain.run(chain.training("vlm", tmp_path / "vlm", "vlm.py:mixture,tiny", **changes))
    assert read_json_lines(tmp_path / "vlm" / "metrics.jsonl")[-1]["step"] == 2


@pytest.mark.slow
def test_pairs_of_another_tokenizer_are_refused(chain, tmp_path, mistake):
    provenance = records.Provenance("another", num_image_tokens=4, codebook_size=32)
    pair = Pair("real-0", np.zeros(4, int), "a red circle", "real")
    pair_writer.write_pairs(tmp_path / "pairs", [pair], provenance)
    line = mistake(filtering(chain, tmp_path / "pairs", tmp_path / "view"))
    start = f"--config.folder={tmp_path / 'pairs'}: found image tokens of tokenizer another, "
    assert line.startswith(start)
    assert not (tmp_path / "view").exists() and not (tmp_path / "pairs" / "scores").exists()


@pytest.mark.slow
def test_several_processes_share_the_shards(chain, pairs, tmp_path, run_in_processes):
    alone = shutil.copytree(pairs, tmp_path / "alone" / "pairs")
    chain.run(filtering(chain, alone, tmp_path / "alone" / "view"))
    outputs = run_in_processes(filtering(chain, pairs, tmp_path / "view"))
    np.testing.assert_allclose(
        scores_of(pairs, "caption")["score"], scores_of(alone, "caption")["score"], atol=1e-5
    )
    assert [pair.key for pair in views.read_view(tmp_path / "view")] == [
        pair.key for pair in views.read_view(tmp_path / "alone" / "view")
    ]
    done = [error.split(" scores")[0].rsplit("/", 1)[-1] for _, error in outputs]
    assert sum(map(int, done)) == 20 and "0" not in done
