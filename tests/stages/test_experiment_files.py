"""Damaged files with which a demo or a study goes on: one line each."""

import json
import types

import ml_collections
import pytest

from synth2_jax.errors import UserError
from synth2_jax.experiments import demo, study
from synth2_jax.experiments.experiment import SCORES, Experiment
from synth2_jax.experiments.experiment_config import Case
from synth2_jax.experiments.notes import Notes
from synth2_jax.files import write_json_lines

GOOD = dict.fromkeys(SCORES, 1.0)


@pytest.fixture
def experiment(tmp_path):
    """An Experiment whose steps are all done."""
    made = Experiment.__new__(Experiment)
    made.config = ml_collections.ConfigDict({"evaluate": {}})
    made.workdir, made.notes = tmp_path, Notes(tmp_path)
    made.case = made._configured = Case()
    made._cfg, made._per_image = types.SimpleNamespace(real_pairs=0), {}
    return made


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cider": "60"}, "value.cider: found '60'"),
        ({"cider_seen": [1]}, "value.cider_seen: found"),
        ({"objects_right": ...}, "value.objects_right: missing"),
    ],
)
def test_results_of_an_evaluation(experiment, tmp_path, change, message):
    path = tmp_path / "evaluation" / "vlm_real" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**GOOD, "more": "text", "cider_unseen": None}))
    (path.parent / "per_image.jsonl").touch()
    assert experiment.evaluate("real")["more"] == "text"
    values = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"results.json: {message}.*`synth2 evaluate`"):
        experiment.evaluate("real")


@pytest.mark.parametrize(
    "name, read, contents, message",
    [
        ("seconds.json", Notes.times, {"tokenize": "1"}, "seconds.tokenize: found '1'"),
        ("seconds.json", Notes.times, [], "found []"),
        ("peak_memory.json", Notes.peak_memory_gib, {"gib": None}, "gib: found None"),
        ("made_with.json", Notes.commits, {"tokenize": 3}, "tokenize: found 3"),
        ("made_with.json", Notes.commits, {"a": {"config": {}}}, "a.commit: missing"),
    ],
)
def test_notes_of_steps(experiment, tmp_path, name, read, contents, message):
    (tmp_path / name).write_text(json.dumps(contents))
    with pytest.raises(UserError) as error:
        read(experiment.notes)
    assert message in str(error.value) and str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    "contents, message",
    [
        ({}, "value.runs: found None"),
        ({"runs": {"real": {}}}, "found 'real', expected ARM/SEED"),
        ({"runs": {"real/0": {"cider": "x"}}}, "runs.real/0.cider: found 'x'"),
        ({"runs": {"real/0": {"curve": [[1]]}}}, "runs.real/0.curve: found"),
    ],
)
def test_runs_of_a_study(tmp_path, contents, message):
    path = tmp_path / "study.json"
    good = {"real/0": {"cider": 1.0, "cider_seen": None, "curve": [[1, 2.0], [2, None]]}}
    path.write_text(json.dumps({"runs": good, "commit": "x"}))
    assert study._known_runs(path) == good
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError) as error:
        study._known_runs(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": [3]}, "value.key: found [3]"),
        ({"key": "test-x"}, "key is 'test-x', expected SPLIT-NUMBER"),
        ({"caption": None}, "value.caption: found None"),
        ({"references": "a"}, "value.references: found 'a'"),
    ],
)
def test_captions_of_test_pictures(experiment, tmp_path, change, message):
    path = tmp_path / "evaluation" / "vlm_real" / "captions.jsonl"
    path.parent.mkdir(parents=True)
    row = {"key": "test-000003", "caption": "a ring", "references": ["a ring"], "prompt": ""}
    write_json_lines(path, [row])
    assert demo._captioned(experiment, "real")[0].key == "test-000003"
    write_json_lines(path, [{**row, **change}])
    with pytest.raises(UserError) as error:
        demo._captioned(experiment, "real")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": "test-x"}, "key is 'test-x', expected SPLIT-NUMBER"),
        ({"cider": "1"}, "value.cider: found '1'"),
    ],
)
def test_scores_of_test_pictures(experiment, tmp_path, change, message):
    path = tmp_path / "evaluation" / "vlm_real" / "per_image.jsonl"
    assert experiment.cider_per_image("real") is None
    path.parent.mkdir(parents=True)
    row = {"key": "test-000003", "cider": 12.5}
    write_json_lines(path, [{**row, **change}])
    with pytest.raises(UserError) as error:
        experiment.cider_per_image("real")
    assert message in str(error.value) and "`synth2 evaluate`" in str(error.value)
    write_json_lines(path, [row])
    assert experiment.cider_per_image("real") == {"test-000003": 12.5}
