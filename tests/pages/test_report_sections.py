import re

import pytest

from synth2_jax.pages.html import NOTHING
from synth2_jax.pages.report_sections import SECTIONS

WRITERS = {name: write for name, _, write in SECTIONS}
ARMS = {
    "real": {"cider": 60.0, "cider_seen": 80.0, "cider_unseen": 40.0, "objects_right": 0.5},
    "real_synthetic": {"cider": 75.0, "cider_unseen": 70.0, "objects_right": 0.55},
}
CURVES = {"real": [[0, 1.0], [4000, 60.0]], "real_synthetic": [[0, 2.0], [4000, 75.0]]}


def section(name, results=None, material=None):
    return WRITERS[name](results or {}, material or {})


def words(text):
    """What a reader sees, tags and their line breaks taken out."""
    return " ".join(re.sub(r"<[^>]+>", " ", text).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"how", "unseen", "speed", "settings"}))
def test_a_section_without_data_says_so(name):
    assert NOTHING in section(name)


def synthetic(verdict, unseen):
    item = {"caption": "a large red ring", "verdict": verdict, "read_back": "?", "unseen": unseen}
    return words(section("synthetic", material={"synthetic": [item]}))


def test_verdicts_are_words_beside_signs():
    text = synthetic({"objects": (0.5, 1), "sizes": (1, 1), "places": (0, 0)}, True)
    assert "never in real pairs ✗ objects: 50 % right ✓ sizes: right – places: none claimed" in text
    text = synthetic({"objects": (0.0, 1), "sizes": (1, 2), "places": (2, 2)}, False)
    assert "✗ objects: wrong ✗ sizes: 1 of 2 right ✓ places: 2 of 2 right" in text
    assert "never in real pairs" not in text


def test_both_arms_caption_the_same_picture():
    said = {
        "real_synthetic": {"text": "one green square", "objects_right": 1.0},
        "real": {"text": "a green ring", "objects_right": 0.0},
    }
    item = {"references": ["a green square"], "unseen": False, "captions": said}
    assert (
        "real only a green ring ✗ objects wrong real + synthetic one green square ✓ objects right "
        "reference a green square" in words(section("test", material={"test": [item]}))
    )


def test_curves_show_the_baseline_and_when_it_is_reached():
    reached = {"steps_to_baseline": {"steps": 1250, "share": 0.3125}}
    text = section("curves", reached, {"curves": CURVES})
    assert "real only ends at 60.0" in text and 'class="level"' in text
    assert 'class="crossing"' in text and "after 1,250 steps, 31 % of" in words(text)
    never = section("curves", material={"curves": CURVES})
    assert 'class="crossing"' not in never and "does not get there" in words(never)


MEASURED = {
    "curve": {"method": "greedy", "num_beams": 3, "pictures": 256},
    "table": {"method": "beam", "num_beams": 4, "pictures": 512},
}


def test_curve_and_scores_say_by_which_decoding_of_how_many_pictures():
    text = words(section("curves", {"measured": MEASURED}, {"curves": CURVES}))
    assert "CIDEr while training by greedy decoding of 256 test pictures. Dashed" in text
    scores = "by 4-beam decoding of 512 test pictures"
    assert f"All other scores are {scores}, after the last step." in text
    assert f"Captions {scores}." in words(section("unseen", {"measured": MEASURED, "arms": ARMS}))
    silent = words(section("curves", {}, {"curves": CURVES}))
    assert "CIDEr while training. Dashed" in silent and "decoding" not in silent


def test_arms_are_compared_in_bars_and_in_a_table():
    text = section("unseen", {"arms": ARMS})
    assert (
        "all: real only 60.0, real + synthetic 75.0; seen: real only 80.0, real + synthetic –; "
        "never seen: real only 40.0, real + synthetic 70.0" in text
    )
    for said in (
        "CIDEr, seen 80.0 – –",
        "CIDEr, never seen 40.0 70.0 +30.0",
        "objects named right 50.0 % 55.0 % +5.0 pts",
    ):
        assert said in words(text)


def test_balance_has_a_row_a_set():
    sets = {"real": {"top5_share": 0.41, "entropy": 2.9, "captions": 7500}}
    assert "real 7,500 41.0 % 2.90" in words(section("balance", {"balance": sets}))


def test_losses_of_each_model_end_with_their_last_value():
    text = words(section("losses", material={"losses": {"language_model": [[0, 3.0], [9, 2.0]]}}))
    assert "language model last 2.000" in text


def test_times_and_speeds_have_units():
    seconds = {"tokenize": 410.0, "train": 9.0}
    text = words(section("time", {"seconds": 2290.0, "seconds_by_stage": seconds}))
    assert "In all 38 min." in text and "tokenize 7 min" in text and "train 9.0 s" in text
    text = words(section("time", {"seconds": 60.0, "peak_memory_gib": 2.34}))
    assert "with at most 2.3 GiB of memory." in text
    speeds = {"steps_per_second": {"embedding": 8.0, "pixel": None}}
    assert "embeddings 8.00 steps/s pixels –" in words(section("speed", speeds))


def test_settings_are_one_line_a_key():
    results = {"commit": "0123abc", "versions": {"jax": "0.10.2"}}
    results["config"] = {"generator": {"guidance": {"scale": 3.5}}, "seed": 0}
    text = words(section("settings", results))
    for said in ("commit 0123abc", "jax 0.10.2", "2 keys", "generator.guidance.scale 3.5"):
        assert said in text
