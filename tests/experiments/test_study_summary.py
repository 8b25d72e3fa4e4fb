"""What a study says of scores of single test pictures, on files written by hand."""

import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.experiments import study
from synth2_jax.experiments.experiment_config import Case
from synth2_jax.experiments.gains import _is_unseen
from synth2_jax.experiments.study_summary import parse_run_name, run_name, summarise
from synth2_jax.files import write_json_lines

KEYS = [f"test-{i:06d}" for i in range(40)]


@pytest.fixture
def experiment(tmp_path):
    _, experiment = study.open_experiment(
        config_lib.load_config("configs/scenes/study.py:all"), str(tmp_path)
    )
    return experiment


def score(experiment, runs, arm, seeds, score, unseen, real_pairs=1500):
    """Files of runs that score the same on every picture that is seen, and on the others."""
    for seed in seeds:
        here = experiment.at(seed=seed, real_pairs=real_pairs)
        rows = [{"key": key, "cider": unseen if _is_unseen(key) else score} for key in KEYS]
        write_json_lines(here._evaluation(arm) / "per_image.jsonl", rows)
        runs[run_name(arm, here.case, 1500)] = {"cider": score}


@pytest.mark.parametrize(
    "name, case",
    [("a_b/3", Case(3, 1500)), ("a_b/0/n94", Case(0, 94)), ("natural/1", Case(1, 1500))],
)
def test_a_name_says_its_arm_and_its_case(name, case):
    arm, found = parse_run_name(name, 1500)
    assert found == case and run_name(arm, found, 1500) == name


def test_gains_are_over_the_seeds_that_both_arms_have(experiment):
    runs = {"generator/0": {"objects_right": 0.5}, "pixel/0": {"cider": 1.0}}  # no file
    score(experiment, runs, "real", (0, 1, 2), 100.0, 50.0)
    score(experiment, runs, "real_synthetic", (0, 2), 110.0, 100.0)
    found = summarise(experiment, runs)
    assert found["real_pictures"] == 1500 and list(found["gains"]) == ["real_synthetic"]
    gain = found["gains"]["real_synthetic"]["cider_unseen"]
    assert (gain["value"], gain["seeds"]) == (pytest.approx(1.0), 2)
    assert found["gap_closed"] is None and found["pairs_factor"] == {}
    score(experiment, runs, "rendered", (2,), 120.0, 150.0)
    found = summarise(experiment, runs)["gap_closed"]
    assert found["cider_unseen"]["value"] == pytest.approx(0.5)
    assert found["cider_unseen"]["seeds"] == 1


def test_a_gap_that_may_be_none_has_no_share(experiment):
    runs = {}
    for arm, seen in (("real", 100.0), ("real_synthetic", 110.0), ("rendered", 100.0)):
        score(experiment, runs, arm, (0,), seen, 50.0 if arm == "real" else 150.0)
    found = summarise(experiment, runs)["gap_closed"]
    assert found["cider_unseen"]["value"] == pytest.approx(1.0) and found["cider_seen"] is None


def test_scores_of_other_test_pictures_are_one_line_that_names_both_files(experiment):
    runs = {}
    score(experiment, runs, "real", (0,), 100.0, 50.0)
    score(experiment, runs, "real_synthetic", (0,), 110.0, 100.0)
    path = experiment._evaluation("real_synthetic") / "per_image.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:30]))
    with pytest.raises(UserError) as error:
        summarise(experiment, runs)
    known = experiment._evaluation("real") / "per_image.jsonl"
    assert f"{path}: found 30 test pictures, expected the 40 of {known}. " in str(error.value)


def test_a_curve_gives_the_real_pictures_that_real_only_needs(experiment):
    runs = {}
    for number, seen, unseen in ((100, 60.0, 10.0), (400, 80.0, 20.0), (1500, 100.0, 50.0)):
        score(experiment, runs, "real", (0, 1), seen, unseen, number)
    score(experiment, runs, "real_synthetic", (0, 1), 70.0, 60.0, 100)
    score(experiment, runs, "real_synthetic", (1,), 80.0, 20.0, 400)
    found = summarise(experiment, runs)
    assert set(found["gains"]) == {"real_synthetic/n100", "real_synthetic/n400"}
    factor = found["pairs_factor"]["real_synthetic/n100"]
    assert factor["cider_unseen"]["value"] is None and factor["cider_unseen"]["largest"] == 15
    assert factor["cider_seen"]["value"] == pytest.approx(2.0)  # half of the way to 400
    assert [factor["cider_seen"][bound] for bound in ("low", "high")] == pytest.approx([2.0, 2.0])
    again = found["pairs_factor"]["real_synthetic/n400"]["cider_seen"]
    assert (again["value"], again["seeds"]) == (pytest.approx(1.0), 1)
