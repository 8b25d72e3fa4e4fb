"""The page of a study."""

import re

import pytest

from synth2_jax.pages.study_page import mean_curve, render_study

TABLE = [["arm", "CIDEr"], ["real only", "1.0 ± <b>"]]


def runs(**cider_by_arm):
    return {
        f"{arm}/{seed}": {
            "cider": cider,
            "cider_seen": cider and cider + 1,
            "cider_unseen": None if cider in (None, 1) else cider - 1,
            "curve": [[10, cider and cider / 2], [20 + seed, cider], [30, cider]],
        }
        for arm, values in cider_by_arm.items()
        for seed, cider in enumerate(values)
    }


@pytest.mark.parametrize(
    "real, mixed, said",
    [
        ([100, 102], [110, 112], "Yes, synthetic pairs help: "),
        ([110, 112], [100, 102], "No: "),
        ([100, 110], [104, 109], "Too close to call: "),
        ([100, 200], [110, 240, 1], "a gain of +15.0 % ± 7.1 over 2 seeds"),  # 10 % and 20 %
        ([1.0], [], "No answer yet"),
        ([0.0], [5.0], "No answer yet"),
        ([None], [5.0], "No answer yet"),
        ([], [], "No answer yet"),
    ],
)
def test_the_verdict_asks_for_more_than_the_spread_of_the_seeds(read_page, real, mixed, said):
    assert said in read_page(render_study(runs(real=real, real_synthetic=mixed), TABLE, "")).words


def test_every_arm_has_a_mean_and_a_spread(read_page):
    page = render_study(runs(real=[100, 110], shuffled=[50], synthetic=[1.0]), TABLE, "")
    words = read_page(page).words
    for value in ("105.0", "106.0", "104.0", "50.0", "51.0", "49.0", "1.0", "–"):
        assert f" {value} " in words
    for name in ("real only", "shuffled images", "synthetic only"):
        assert name in words


def test_a_curve_has_mean_and_deviation_at_the_steps_that_all_seeds_have():
    line = mean_curve(runs(real=[100, 110]).values(), 0)
    assert line.points == [(10, 52.5), (30, 105.0)]
    assert line.spreads == pytest.approx([5 / 2**0.5, 10 / 2**0.5])


def test_generators_are_no_arm_and_texts_hold_no_markup(read_page):
    scores = {"generator/0": {"objects_right": 0.5}, **runs(real=[1.0])}
    page = render_study(scores, TABLE, "a < b\nsecond")
    words = read_page(page).words
    assert "generator" not in words and "1.0 ± <b>" in words and "a < b second" in words
    assert not re.search(r"<b>[^●■▲◆▼★]", page)
