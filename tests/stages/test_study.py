"""The study's config, tables and lines, on made-up results."""

import json
import types

import ml_collections
import pytest

from synth2_jax import config as config_lib
from synth2_jax.domains.scenes import dataset
from synth2_jax.domains.scenes.scores import claims_unseen
from synth2_jax.errors import UserError
from synth2_jax.experiments.arms import ARMS, Arm
from synth2_jax.experiments.experiment_config import Case
from synth2_jax.experiments.study import (
    StudyConfig,
    StudyExperimentConfig,
    _cases,
    caption_balance,
    write_results,
)
from synth2_jax.experiments.study_tables import (
    arms_table,
    captions_table,
    curve_table,
    footnote,
    gain_of,
)

MADE_WITH = {"jax": "0.10.2", "device": "1 x cpu", "commit": "0123456789"}
SEEDS = (0, 1, 2)


def run(cider, right=0.5, curve=None, **others):
    return {
        "cider": cider,
        "cider_seen": cider + 1,
        "cider_unseen": cider - 1,
        "bleu4": 10.0,
        "rouge_l": 30.0,
        "objects_right": right,
        "curve": curve or [[100, cider / 2], [200, cider]],
        **others,
    }


RUNS = {
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
INTERVAL = {"value": 0.5, "low": 0.25, "high": 0.75, "seeds": 2}


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def rows(runs, summary=None, arms=tuple(ARMS)):
    """{title: cells} of the table of the arms, its head first."""
    table = arms_table(runs, summary or {}, {name: ARMS[name] for name in arms}, SEEDS)
    return {name: [plain(cell) for cell in cells] for name, *cells in table}


def lines(runs, summary=None):
    return [plain(line) for line in footnote(runs, summary or {}, MADE_WITH, SEEDS).splitlines()]


def test_zero_shot_comes_first_in_means_and_spreads_over_the_seeds_that_are_there():
    found = rows(RUNS)
    assert found["arm"][:5] == ["seeds", "zero-shot CIDEr", "zero-shot gain", "CIDEr", "gain"]
    assert found["real only"] == [
        *("2", "44.0 ± 7.1", "", "45.0 ± 7.1", "", "46.0 ± 7.1"),
        *("10.0 ± 0.0", "50.0 ± 0.0 %"),
    ]
    # One seed has no spread.
    assert found["real + synthetic, images shuffled"][:2] == ["1", "44.0"]


def test_gains_are_those_of_the_means_of_the_same_seeds_and_may_be_losses():
    # Of 50 and 40 against 60 and 30; one seed less 1 in unseen combinations.
    assert rows(RUNS)["real + synthetic"][4] == "+0.0 %"
    assert rows(RUNS)["real + synthetic, images shuffled"][2:5:2] == ["−10.2 %", "−10.0 %"]
    assert rows({"real_synthetic/0": run(60.0)})["real + synthetic"][4] == "–"


def test_gains_with_intervals_have_them_in_brackets():
    summary = {"gains": {"real_synthetic": {"cider_unseen": INTERVAL, "cider": None}}}
    found = rows(RUNS, summary)["real + synthetic"]
    assert (found[2], found[4]) == ("+50.0 % [+25.0, +75.0]", "+0.0 %")


def test_arms_without_results_have_no_row_and_others_keep_their_order():
    names = [ARMS[name].title for name in ("real", "real_synthetic", "shuffled", "rendered")]
    assert list(rows(RUNS)) == ["arm", *names]
    assert list(rows(RUNS, arms=("rendered", "real")))[1:] == [names[-1], "real only"]
    assert len({len(cells) for cells in rows(RUNS).values()}) == 1


def test_the_footnote_of_a_study_without_scores_of_single_pictures():
    assert lines(RUNS) == [
        "Generated pictures, read by the oracle: objects right 60.0 ± 14.1 %, sizes 70.0 ± 14.1 %, "
        "places 90.0 ± 0.0 %.",
        # Means of 45 and 45, of 85 for true pictures.
        "Gap to the upper bound closed: 0 % zero-shot, 0 % whole test set.",
        "Real-only's last score is reached after 50%, never of its steps.",
        "Zero-shot: test pictures with a combination that no real pair shows.",
        "Mean ± standard deviation over seeds; jax 0.10.2 on 1 x cpu, commit 0123456789.",
    ]


def test_the_footnote_of_intervals_compute_and_pixels():
    runs = {
        "real/0": run(50.0, steps=100),
        "real_longer/0": run(50.0, steps=350),
        "real_synthetic/0": run(60.0, steps_per_second=25.0),
        "pixel/0": run(60.0, steps_per_second=20.0),
    }
    gap = {"cider_unseen": {"value": 0.9, "low": 0.7, "high": 1.2}, "cider": None}
    summary = {"real_pictures": 94, "gap_closed": gap, "gains": {"pixel": {}}}
    assert lines(runs, summary)[:-1] == [
        "Gap to the upper bound closed: 90 % [70, 120] zero-shot.",
        "Real-only's last score is reached after 100% of its steps.",
        "Steps a second: 25.0 from embeddings, 20.0 through pixels, 1.25x.",
        "Equal compute: 3.5x the steps, the FLOPs of generator and synthesis.",
        "Zero-shot: test pictures with a combination that no real pair shows.",
        "In brackets: 95 % intervals, by a bootstrap over seeds and test pictures.",
    ]
    assert "over seeds; 94 real pictures; jax" in lines(runs, summary)[-1]


@pytest.mark.parametrize(
    "seeds, said",
    [
        ((1,), "over test pictures alone: one seed does not show how much seeds differ."),
        ((2, 3), "over seeds and test pictures."),
        ((1, 3), "over seeds and test pictures; with one seed over test pictures alone: one seed "),
    ],
)
def test_the_footnote_says_what_intervals_are_over(seeds, said):
    gains = {f"arm{n}": {"cider": {**INTERVAL, "seeds": n}, "cider_seen": None} for n in seeds}
    assert f"by a bootstrap {said}" in footnote(RUNS, {"gains": gains}, MADE_WITH, SEEDS)


def test_a_footnote_says_no_more_than_there_is():
    assert len(lines({"real/0": run(50.0)})) == 2


@pytest.mark.parametrize("nothing", [None, float("nan")])  # as study.json has it, and as counted
def test_a_score_of_nothing_is_left_out_of_the_means(nothing):
    runs = {
        "real/0": {**run(50.0), "cider_unseen": nothing},
        "real/1": run(40.0),
        "synthetic/0": {**run(30.0), "cider_unseen": nothing},
        "generator/0": {"objects_right": 0.5, "sizes_right": nothing, "places_right": nothing},
        "generator/1": {"objects_right": 0.5, "sizes_right": 0.25, "places_right": nothing},
    }
    assert rows(runs)["real only"][1] == "39.0" and rows(runs)["synthetic only"][1] == "–"
    assert lines(runs)[0] == (
        "Generated pictures, read by the oracle: objects right 50.0 ± 0.0 %, sizes 25.0 %, "
        "places – %."
    )


def test_a_baseline_of_nothing_gives_no_gain():
    runs = {"real/0": run(0.0), "real_synthetic/0": run(5.0), "rendered/0": run(0.0)}
    assert gain_of(runs, {}, "real_synthetic", "cider", SEEDS, "") is None
    assert not any("Gap" in line for line in lines(runs)[:1] if "whole" in line)


def test_each_number_of_real_pictures_has_rows_gains_and_a_factor_of_its_own():
    fewer = {"real/0/n94": run(10.0), "real_synthetic/0/n94": run(30.0)}
    factors = {
        "real_synthetic/n94": {
            "cider_unseen": {"value": 4.25, "low": 3.0, "high": None, "largest": 15.96},
            "cider": {"value": None, "low": None, "high": None, "largest": 15.96},
        }
    }
    summary = {"real_pictures": 1500, "pairs_factor": factors}
    arms = {name: ARMS[name] for name in ("real", "real_synthetic", "shuffled")}
    table = curve_table({**RUNS, **fewer}, summary, arms, SEEDS)
    assert [row[:2] for row in table[1:]] == [
        *(["94", "real only"], ["94", "real + synthetic"]),
        *(["1,500", "real only"], ["1,500", "real + synthetic"]),
    ]
    assert [plain(cell) for cell in table[2][2:]] == [
        *("29.0", "+222.2 %", "30.0", "+200.0 %", "4.2x [3.0, >16]", ">16x", "–"),
    ]
    assert curve_table(RUNS, summary, arms, SEEDS) is None
    # The main table is of the config's own number, or of the smallest one.
    assert rows({**RUNS, **fewer}) == rows(RUNS)
    assert rows(fewer)["real only"][3] == "10.0"


def test_a_caption_set_says_how_many_of_its_captions_name_an_unseen_combination():
    unseen = " ".join(sorted(dataset.unseen_combinations())[0])
    seen = next(name for name in dataset.CLASSES if name != unseen and not claims_unseen(name))
    sets = {"balanced": [f"a {unseen}", f"a {seen}"], "natural": [f"a {seen}"] * 3 + [unseen]}
    experiment = types.SimpleNamespace(
        real_captions=lambda: [f"a {seen}"] * 4, written_captions=sets.__getitem__
    )
    found = caption_balance(experiment, {name: ARMS[name] for name in ("synthetic", "natural")})
    assert found["real"]["unseen_share"] == 0
    assert [found[name]["unseen_share"] for name in sets] == [0.5, 0.25]
    assert 0.2 < found["test"]["unseen_share"] < 0.5


def test_caption_sets_have_their_balance_and_the_scores_of_their_arm():
    sets = {
        "test": {
            "captions": 2560,
            "top5_share": 0.3,
            "entropy": 2.9,
            "arm": None,
            "unseen_share": 0.375,
        },
        "balanced": {"captions": 4500, "top5_share": 0.31, "entropy": 2.875, "arm": "shuffled"},
    }
    table = captions_table(RUNS, {"captions": sets}, SEEDS)
    assert [plain(cell) for cell in table[1]] == [
        *("test", "2,560", "30.0 %", "2.90", "37.5 %", "–", "–", "–", "–")
    ]
    assert [plain(cell) for cell in table[2]] == [
        *("balanced", "4,500", "31.0 %", "2.88", "–", "44.0", "−10.2 %", "45.0", "−10.0 %"),
    ]
    assert captions_table(RUNS, {}, SEEDS) is None


def test_arms_that_the_workdir_has_runs_of_are_shown_after_those_that_are_compared():
    mine = Arm({"rendered": 1.0})
    cfg = StudyConfig(arms=("pixel", "real"), more_arms={"mine": mine, "not_there": mine})
    assert list(cfg.shown({**RUNS, "mine/0": run(1.0)})) == [
        *("pixel", "real", "real_synthetic", "shuffled", "rendered", "mine")
    ]


def test_runs_of_other_seeds_are_kept_and_not_shown(tmp_path):
    config, cfg = ml_collections.ConfigDict(), StudyConfig(seeds=(1,))
    write_results(tmp_path, RUNS, {}, cfg, config, [])
    assert json.loads((tmp_path / "study.json").read_text())["runs"] == RUNS
    table, page = ((tmp_path / f"study.{end}").read_text() for end in ("md", "html"))
    assert "| real only | 1 | 39.0 |" in table and "images shuffled" not in table
    assert "CIDEr is 30.0 with real + synthetic pairs and 40.0" in page
    assert "shuffled images" not in page


@pytest.mark.parametrize("shared", [False, True])
def test_tables_and_footnote_are_written_with_what_they_were_made_from(tmp_path, shared):
    config = ml_collections.ConfigDict({"study": {"share_generator": shared}})
    cfg = StudyConfig(share_generator=shared)
    summary = {"gains": {"real_synthetic": {"cider_unseen": INTERVAL}}}
    write_results(tmp_path, RUNS, summary, cfg, config, ["0123456789", "abcdef0123"])
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved["runs"] == RUNS and saved["config"] == config.to_dict()
    assert saved["summary"] == summary
    text = (tmp_path / "study.md").read_text()
    head, rule, *body = text.partition("\n\n")[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in (head, *body)]
    assert [row[0] for row in cells] == list(rows(RUNS)) and rule == "|" + " --- |" * len(cells[0])
    assert f"jax {saved['made_with']['jax']} on {saved['made_with']['device']}" in text
    assert "commit 0123456789, abcdef0123." in text
    assert ("One generator for all seeds." in text) == shared


@pytest.mark.parametrize(
    "given, said",
    [
        ({"arms": ("real", "sufled")}, "arms: unknown 'sufled'; did you mean 'shuffled'?"),
        ({"arms": ()}, "arms: found none, expected at least one"),
        ({"seeds": ()}, "seeds: found none, expected at least one"),
        ({"seeds": (0, -1)}, "seeds: found -1"),
        ({"arms": ("real",), "curve_arms": ("pixel",)}, "curve_arms: unknown 'pixel'"),
        ({"real_pairs": (94, -1)}, "real_pairs: found -1, expected 0 .* to 6000"),
        ({"real_pairs": (94, 7000)}, "real_pairs: found 7000, expected 0 .* to 6000"),
        ({"more_arms": {"real": Arm({"real": 1.0})}}, "more_arms: found 'real', expected letters"),
        *(
            ({"more_arms": {name: Arm({"real": 1.0})}}, f"more_arms: found '{name}', expected no")
            for name in ("real_seed1", "real_n94", "real_n94_seed1", "pretrain_then_mix_first")
        ),
        ({"more_arms": {"a/b": Arm({"real": 1.0})}}, "more_arms: found 'a/b', expected letters"),
    ],
)
def test_a_mistake_in_what_is_compared_is_named(given, said):
    with pytest.raises(UserError, match=said):
        StudyConfig(**given)


def test_arms_of_the_config_are_compared_as_the_others_are():
    section = {"arms": ("mine", "real"), "more_arms": {"mine": {"rates": {"rendered": 1.0}}}}
    cfg = config_lib.build(StudyConfig, ml_collections.ConfigDict(section))
    assert cfg.compared == {"mine": Arm({"rendered": 1.0}), "real": ARMS["real"]}
    section["more_arms"]["mine"]["rates"] = {"renderd": 1.0}
    with pytest.raises(UserError, match="more_arms.mine.rates: unknown source 'renderd'.*rendered"):
        config_lib.build(StudyConfig, ml_collections.ConfigDict(section))


class Cases:
    """In place of an Experiment: which cases are asked for."""

    def __init__(self, seed=0, real_pairs=1500):
        self.case = Case(seed, real_pairs)

    def at(self, seed=0, real_pairs=None):
        return Cases(seed, real_pairs or 1500)


def test_arms_without_a_curve_are_trained_on_a_number_that_is_not_in_the_curve():
    cfg = StudyConfig((0,), ("real", "pixel"), real_pairs=(94, 188), curve_arms=("real",))
    found = [(here.case.real_pairs, arm) for here, arm in _cases(Cases(real_pairs=500), cfg)]
    assert found == [(94, "real"), (188, "real"), (500, "real"), (500, "pixel")]
    cfg = StudyConfig((0,), ("real",), real_pairs=(94, 188), curve_arms=("real",))
    found = [here.case.real_pairs for here, _ in _cases(Cases(real_pairs=500), cfg)]
    assert found == [94, 188]


@pytest.mark.parametrize(
    "word, numbers, own_arms, curve_arms",
    [
        ("", [1500], 8, 0),
        ("curve", [94, 375, 1500, 3000], 2, 2),
        ("captions", [1500], 4, 0),
        ("stages", [1500], 4, 0),
        ("tuning", [1500], 4, 0),
        ("captions,stages", [1500], 6, 0),
        ("curve,captions", [94, 375, 1500, 3000], 4, 2),
        ("all", [94, 375, 1500, 3000], len(ARMS), 2),
        ("tiny", [1500], 8, 0),
    ],
)
def test_the_words_of_the_config_file_choose_what_is_compared(word, numbers, own_arms, curve_arms):
    config = config_lib.load_config(f"configs/scenes/study.py:{word}")
    cfg = config_lib.build(StudyExperimentConfig, config).study
    found = [(here.case.real_pairs, here.case.seed, arm) for here, arm in _cases(Cases(), cfg)]
    assert list(dict.fromkeys(number for number, *_ in found)) == numbers
    for number in numbers:
        arms = own_arms if number == 1500 else curve_arms
        assert len({arm for n, _, arm in found if n == number}) == arms
    assert len(found) == len(set(found))
    assert {seed for _, seed, _ in found} == set(cfg.seeds)
