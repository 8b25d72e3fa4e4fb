"""The page of a study."""

import re

import pytest

from synth2_jax.pages.study_page import mean_curve, render_study

TABLES = {"arms": [["arm", "CIDEr"], ["real only", "1.0 ± <b>"]], "curve": None, "captions": None}


def runs(end="", **cider_by_arm):
    return {
        f"{arm}/{seed}{end}": {
            "cider": cider,
            "cider_seen": cider and cider + 1,
            "cider_unseen": None if cider in (None, 1) else cider - 1,
            "curve": [[10, cider and cider / 2], [20 + seed, cider], [30, cider]],
        }
        for arm, values in cider_by_arm.items()
        for seed, cider in enumerate(values)
    }


def page_of(scores, summary=None, tables=TABLES, footnote=""):
    return render_study(scores, summary or {}, tables, footnote)


@pytest.mark.parametrize(
    "real, mixed, bounds, said",
    [
        ([100, 102], [110, 112], (0.05, 0.2), "Yes, synthetic pairs help. Zero-shot, on "),
        ([110, 112], [100, 102], (-0.2, -0.05), "No, synthetic pairs harm."),
        ([100, 110], [104, 109], (-0.1, 0.1), "Too close to call."),
        # The seeds that both arms have: 99 and 199 against 109 and 239.
        ([100, 200], [110, 240, 1], None, "No verdict without intervals. Zero-shot, on"),
        ([100, 200], [110, 240, 1], None, "CIDEr is 174.0 with real + synthetic pairs and 149.0"),
        ([1.0], [], None, "No answer: both arms are not scored."),
        ([None], [5.0], None, "No answer"),
        ([], [], None, "No answer"),
    ],
)
def test_the_verdict_is_the_interval_of_the_zero_shot_gain(read_page, real, mixed, bounds, said):
    summary = {}
    if bounds:
        gain = {"value": 0.1, "low": bounds[0], "high": bounds[1]}
        summary = {"gains": {"real_synthetic": {"cider_unseen": gain, "cider": gain}}}
    words = read_page(page_of(runs(real=real, real_synthetic=mixed), summary)).words
    assert said in words


def test_a_whole_test_set_that_is_worse_is_in_the_verdict_and_one_seed_in_the_labels(read_page):
    parts = {
        "cider_unseen": {"value": 0.1, "low": 0.05, "high": 0.2, "seeds": 1},
        "cider": {"value": -0.1, "low": -0.2, "high": -0.05, "seeds": 1},
    }
    for found, verdict in ((0.05, "Yes, synthetic pairs help"), (-0.05, "Too close to call")):
        parts["cider_unseen"]["low"] = found
        summary = {"gains": {"real_synthetic": parts}}
        words = read_page(page_of(runs(real=[100], real_synthetic=[110]), summary)).words
        assert f"{verdict} zero-shot, but synthetic pairs harm on the whole test set." in words
        for before in ("In brackets: the 95 % interval over", "by a bootstrap over"):
            assert f"{before} test pictures alone: one seed does not show" in words
    parts["cider"]["high"] = 0.1
    parts["cider_unseen"]["seeds"] = parts["cider"]["seeds"] = 2
    words = read_page(page_of(runs(real=[100], real_synthetic=[110]), summary)).words
    assert "Too close to call. Zero-shot" in words and "alone" not in words
    assert "by a bootstrap over seeds and test pictures." in words


def test_every_arm_has_a_gain_with_or_without_an_interval(read_page):
    gain = {"value": 0.5, "low": 0.25, "high": 0.75}
    summary = {"gains": {"shuffled": {"cider_unseen": gain, "cider": None}}}
    scores = runs(real=[100, 110], shuffled=[50, 60], synthetic=[1.0])
    words = read_page(page_of(scores, summary)).words
    for value in ("+50.0 %", "−47.6 %", "−99.0 %"):  # 55 of 105, and 1 of the same seed's 100
        assert value in words
    for name in ("real only", "shuffled images", "synthetic only"):
        assert name in words


def test_the_data_efficiency_is_drawn_where_there_are_several_numbers(read_page):
    scores = runs(real=[100], real_synthetic=[120]) | runs("/n94", real=[10], real_synthetic=[30])
    tables = {**TABLES, "curve": [["real pictures", "arm"], ["94", "real <i>"]]}
    page = read_page(page_of(scores, {"real_pictures": 1500}, tables))
    assert "1,500" in page.words and "real <i>" in page.words
    labels = [label for label in page.values("aria-label") if "number of real pictures" in label]
    assert len(labels) == 2 and "zero-shot" in labels[0]
    # The verdict is of the config's own number.
    assert "CIDEr is 119.0 with" in page.words
    alone = read_page(page_of(runs("/n94", real=[10.0], real_synthetic=[30.0])))
    assert "CIDEr is 29.0 with" in alone.words and "efficiency" not in alone.values("id")


def test_a_curve_has_mean_and_deviation_at_the_steps_that_all_seeds_have():
    line = mean_curve(runs(real=[100, 110]).values(), 0)
    assert line.points == [(10, 52.5), (30, 105.0)]
    assert line.spreads == pytest.approx([5 / 2**0.5, 10 / 2**0.5])


def test_generators_are_no_arm_and_texts_hold_no_markup(read_page):
    scores = {"generator/0": {"objects_right": 0.5}, **runs(real=[1.0])}
    page = page_of(scores, footnote="a < b\nsecond")
    words = read_page(page).words
    assert "generator" not in words and "1.0 ± <b>" in words and "a < b second" in words
    assert not re.search(r"<b>[^●■▲◆▼★]", page)
