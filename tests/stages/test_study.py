"""The study's table and footnote on made-up results."""

import json

import ml_collections
import pytest

from synth2_jax.errors import UserError
from synth2_jax.experiments.study import StudyConfig, footnote, table, write_results

MADE_WITH = {"jax": "0.10.2", "device": "1 x cpu", "commit": "0123456789"}


def run(cider, right=0.5, curve=None):
    return {
        "cider": cider,
        "cider_seen": cider + 1,
        "cider_unseen": cider - 1,
        "bleu4": 10.0,
        "rouge_l": 30.0,
        "objects_right": right,
        "curve": curve or [[100, cider / 2], [200, cider]],
    }


STUDY = {
    "real/0": run(50.0),
    "real/1": run(40.0),
    "real_synthetic/0": run(60.0, right=0.6, curve=[[100, 55.0], [200, 60.0]]),
    "real_synthetic/1": run(30.0, right=0.4),
    "rendered/0": run(90.0),
    "rendered/1": run(80.0),
    "shuffled/0": run(45.0),
    "generator/0": {"objects_right": 0.7, "sizes_right": 0.8, "places_right": 0.9},
    "generator/1": {"objects_right": 0.5, "sizes_right": 0.6, "places_right": 0.9},
}


def rows(study, **config):
    return {name: cells for name, *cells in table(study, StudyConfig(seeds=(0, 1, 2), **config))}


def test_means_and_spreads_over_the_seeds_that_are_there():
    found = rows(STUDY)
    assert found["real only"] == [
        "2",
        "45.0 ± 7.1",
        "",
        "46.0 ± 7.1",
        "44.0 ± 7.1",
        "10.0 ± 0.0",
        "50.0 ± 0.0 %",
    ]
    # One seed has no spread.
    assert found["real + synthetic, images shuffled"][:3] == ["1", "45.0", "-10.0%"]


def test_gains_are_of_the_same_seed_and_may_be_losses():
    # +20 % and -25 %.
    assert rows(STUDY)["real + synthetic"][2] == "-2.5%"
    # 90/50 - 1 and 80/40 - 1.
    assert rows(STUDY)["real + synthetic captions, true images (upper bound)"][2] == "+90.0%"
    alone = {"real_synthetic/0": run(60.0)}
    assert rows(alone)["real + synthetic"][2] == ""


def test_arms_without_results_have_no_row_and_others_keep_their_order():
    names = list(rows(STUDY))
    assert names == [
        "arm",
        "real only",
        "real + synthetic",
        "real + synthetic, images shuffled",
        "real + synthetic captions, true images (upper bound)",
    ]
    assert list(rows(STUDY, arms=("rendered", "real")))[1:] == [names[-1], "real only"]
    assert all(len(cells) == 7 for cells in rows(STUDY).values())


def test_the_footnote_of_a_win_and_a_defeat():
    lines = footnote(STUDY, MADE_WITH).splitlines()
    assert lines == [
        "Generated pictures, read by the oracle: objects right 60.0 ± 14.1 %, sizes 70.0 ± 14.1 %, "
        "places 90.0 ± 0.0 %.",
        # (60 - 50) / (90 - 50) and (30 - 40) / (80 - 40): a negative share stays one.
        "Gap to the upper bound closed: 0.0 ± 35.4 %.",
        "Real-only's last score is reached after 50%, never of its steps.",
        "Mean ± standard deviation over seeds; jax 0.10.2 on 1 x cpu, commit 0123456789.",
    ]


def test_a_footnote_says_no_more_than_there_is():
    assert footnote({"real/0": run(50.0)}, MADE_WITH).splitlines() == [
        "Mean ± standard deviation over seeds; jax 0.10.2 on 1 x cpu, commit 0123456789."
    ]


@pytest.mark.parametrize("nothing", [None, float("nan")])  # as study.json has it, and as counted
def test_a_score_of_nothing_is_left_out_of_the_means(nothing):
    study = {
        "real/0": {**run(50.0), "cider_unseen": nothing},
        "real/1": run(40.0),
        "synthetic/0": {**run(30.0), "cider_unseen": nothing},
        "generator/0": {"objects_right": 0.5, "sizes_right": nothing, "places_right": nothing},
        "generator/1": {"objects_right": 0.5, "sizes_right": 0.25, "places_right": nothing},
    }
    assert rows(study)["real only"][4] == "39.0" and rows(study)["synthetic only"][4] == "–"
    assert footnote(study, MADE_WITH).startswith(
        "Generated pictures, read by the oracle: objects right 50.0 ± 0.0 %, sizes 25.0 %, "
        "places – %."
    )


def test_a_baseline_of_nothing_gives_no_gain():
    study = {"real/0": run(0.0), "real_synthetic/0": run(5.0), "rendered/0": run(0.0)}
    assert rows(study)["real + synthetic"][1:3] == ["5.0", ""]
    assert "Gap" not in footnote(study, MADE_WITH)


@pytest.mark.parametrize("shared", [False, True])
def test_table_and_footnote_are_written_with_what_they_were_made_from(tmp_path, shared):
    config = ml_collections.ConfigDict({"study": {"share_generator": shared}})
    cfg = StudyConfig(share_generator=shared)
    write_results(tmp_path, STUDY, cfg, config, ["0123456789", "abcdef0123"])
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved["runs"] == STUDY and saved["config"] == config.to_dict()
    text = (tmp_path / "study.md").read_text()
    head, rule, *lines = text.partition("\n\n")[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in (head, *lines)]
    assert cells == table(STUDY, cfg) and rule == "|" + " --- |" * len(cells[0])
    assert f"jax {saved['made_with']['jax']} on {saved['made_with']['device']}" in text
    assert "commit 0123456789, abcdef0123." in text
    assert ("One generator for all seeds." in text) == shared


def test_an_unknown_arm_is_named():
    with pytest.raises(UserError, match="unknown 'sufled'; did you mean 'shuffled'?"):
        StudyConfig(arms=("real", "sufled"))


def test_each_number_of_real_pictures_has_rows_and_gains_of_its_own():
    fewer = {"real/0/n94": run(10.0), "real_synthetic/0/n94": run(30.0)}
    found = rows({**STUDY, **fewer}, arms=("real", "real_synthetic"))
    assert list(found)[1:] == [
        *("real only", "real only, 94 real pictures"),
        *("real + synthetic", "real + synthetic, 94 real pictures"),
    ]
    assert found["real + synthetic, 94 real pictures"][:3] == ["1", "30.0", "+200.0%"]
    assert found["real only"] == rows(STUDY)["real only"]


@pytest.mark.parametrize("number", [-1, 7000])
def test_a_number_of_real_pictures_that_there_are_not_is_named(number):
    with pytest.raises(UserError, match=f"real_pairs: found {number}, expected 0 .* to 6000"):
        StudyConfig(real_pairs=(94, number))
