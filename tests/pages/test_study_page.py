"""The page of a study."""

import re

from synth2_jax.pages.study_page import render_study

TABLE = "| arm | CIDEr |\n| --- | --- |\n| real only | 1.0 ± <b> |\n"


def runs(**cider_by_arm):
    return {
        f"{arm}/{seed}": {
            "cider": cider,
            "cider_seen": cider + 1,
            "cider_unseen": cider - 1,
            "curve": [[10, cider / 2], [20 + seed, cider], [30, cider]],
        }
        for arm, values in cider_by_arm.items()
        for seed, cider in enumerate(values)
    }


def test_the_verdict_asks_for_more_than_the_spread_of_the_seeds():
    def verdict(real, mixed):
        page = render_study(runs(real=real, real_synthetic=mixed), TABLE, "")
        return re.search(r'class="answer">(.*?):', page).group(1)

    assert verdict([100, 102], [110, 112]) == "Yes, synthetic pairs help"
    assert verdict([110, 112], [100, 102]) == "No"
    assert verdict([100, 110], [104, 109]) == "Too close to call"
    page = render_study(runs(real=[100, 200], real_synthetic=[110, 240, 1]), TABLE, "")
    assert "a gain of +15.0\N{NO-BREAK SPACE}% ± 7.1 over 2 seeds" in page  # 10 % and 20 %


def test_arms_that_are_missing_are_no_answer():
    assert "No answer yet" in render_study(runs(real=[1.0]), TABLE, "")
    assert "No answer yet" in render_study({}, TABLE, "")


def test_every_arm_has_a_mean_and_a_curve_over_the_steps_that_all_its_seeds_have():
    page = render_study(runs(real=[100, 110], shuffled=[50]), TABLE, "")
    assert page.count('class="line0" d="M0 6H22"') == 1  # the key of the real arm
    real = re.findall(r'class="line0" d="M([^"]*)"', page)[-1]
    assert real.count("L") == 1  # two common steps, 10 and 30
    for value in ("105.0", "106.0", "104.0", "50.0", "51.0", "49.0"):
        assert f">{value}<" in page


def test_generators_are_no_arm_and_texts_hold_no_markup():
    scores = {"generator/0": {"objects_right": 0.5}, **runs(real=[1.0])}
    page = render_study(scores, TABLE, "a < b\nsecond")
    assert ">generator<" not in page
    assert "1.0 ± &lt;b&gt;" in page and "a &lt; b</p>" in page and ">second</p>" in page
