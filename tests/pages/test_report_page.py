"""The report of a demo: every number is on it, hostile text is inert, any part may be missing."""

import json
import math
import pathlib

import pytest

from synth2_jax.pages.report_page import SECTIONS, render_page

ROOT = pathlib.Path(__file__).parents[1]
REPORT = ROOT / "data" / "fuzz" / "report"
RESULTS = json.loads((REPORT / "results.json").read_text()) | {
    "gains": {"cider_unseen": {"value": 0.75, "low": 0.5, "high": 0.98}},
    "standard_errors": {"real": {"cider": 3.0}, "real_synthetic": {"cider": None}},
    "measured": {
        "curve": {"method": "greedy", "num_beams": 3, "pictures": 256},
        "table": {"method": "beam", "num_beams": 4, "pictures": 512},
    },
}
MATERIAL = json.loads((REPORT / "material.json").read_text())
MATERIAL["synthetic"][0]["verdict"]["sizes"] = [1, 2]
PICTURE = MATERIAL["scenes"][0]["picture"]
# What each section says of them.
SHOWN = {
    "scenes": "a red ring red ring: 3",
    "tokenizer": "finds 97 % of the objects right",
    "synthetic": "objects right 68 %, sizes right 81 %, places right 77 %. a large red ring and a "
    "blue cross never in real pairs ✗ objects: 50 % right ✗ sizes: 1 of 2 right – places: none "
    "claimed Oracle: a red ring",
    "test": "real only a green ring ✗ objects wrong real + synthetic one green square ✓ objects "
    "right reference a green square",
    "curves": "CIDEr while training by greedy decoding of 256 test pictures. Dashed: where the "
    "real-only arm ends. All other scores are by 4-beam decoding of 512 test pictures, after the "
    "last step. Dotted: real + synthetic gets there after 1,250 steps, 31 % of",
    "unseen": "Captions by 4-beam decoding of 512 test pictures. Error bars: standard error over "
    "the test pictures. score real only real + synthetic difference CIDEr 60.0 75.0 +15.0 CIDEr, "
    "seen 80.0 80.0 +0.0 CIDEr, never seen 40.0 70.0 +30.0 BLEU-4 20.0 20.0 +0.0 ROUGE-L 40.0 40.0 "
    "+0.0 objects named right 50.0 % 50.0 % +0.0 pts",
    "balance": "real 7,500 41.0 % 2.90",
    "speed": "embeddings 8.00 steps/s pixels 5.00 steps/s",
    "losses": "generator last 2.000",
    "time": "In all 38 min, with at most 2.3 GiB of memory. tokenize 7 min train 9.0 s",
    "settings": "commit 0123abc jax 0.10.2 The whole config, 1 keys generator.guidance.scale 3.5",
}


def with_cider(real, mixed):
    arms = {name: {**RESULTS["arms"][name]} for name in ("real", "real_synthetic")}
    arms["real"]["cider"], arms["real_synthetic"]["cider"] = real, mixed
    return {**RESULTS, "arms": arms}


def with_gain(low, high):
    return {**RESULTS, "gains": {"cider_unseen": {"value": 0.2, "low": low, "high": high}}}


def changed(tree, change):
    """The tree with `change` of each leaf."""
    if isinstance(tree, dict):
        return {key: changed(child, change) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(changed(child, change) for child in tree)
    return change(tree)


def test_every_number_and_text_is_on_the_page(read_page):
    page = read_page(render_page(RESULTS, MATERIAL))
    for said in (
        *SHOWN.values(),
        "Zero-shot gain +75.0 % 95 %: +50.0 % to +98.0 %; combinations no real pair shows",
        "Gain, whole test set +25.0 % the paper",
        "CIDEr, real only 60.0 zero-shot 40.0",
        "Embedding / pixel speed 1.60×",
        "Generator 68 %",
        "Tokenizer 97 %",
        "Time 38 min",
        "real only ends at 60.0",
    ):
        assert said in page.words
    assert (
        "CIDEr. all: real only 60.0, real + synthetic 75.0; seen: real only 80.0, real + synthetic "
        "80.0; never seen: real only 40.0, real + synthetic 70.0" in page.values("aria-label")
    )
    names = [name for name, _, _ in SECTIONS]
    assert [v for t, n, v in page.attributes if (t, n) == ("section", "id")] == names
    assert [v for t, n, v in page.attributes if (t, n) == ("a", "href")] == [f"#{n}" for n in names]
    assert set(names) - {"how"} == set(SHOWN)


@pytest.mark.parametrize("name, keys", [(name, keys) for name, _, keys in SECTIONS if keys])
def test_a_section_without_data_is_left_out(read_page, name, keys):
    results, material = (
        {key: tree[key] for key in tree.keys() - set(keys)} for tree in (RESULTS, MATERIAL)
    )
    page = read_page(render_page(results, material))
    assert name not in page.values("id") and f"#{name}" not in page.values("href")
    assert SHOWN[name] not in page.words


def test_any_part_may_be_missing(read_page):
    items = {key: MATERIAL[key][0] for key in ("scenes", "reconstructions", "synthetic", "test")}
    incomplete = {
        key: [{}, *({**item, name: None} for name in item)] for key, item in items.items()
    }
    optional = ("standard_errors", "steps_to_baseline", "measured", "peak_memory_gib", "tiny")
    results = {key: value for key, value in RESULTS.items() if key not in optional}
    for page in (({}, {}), (RESULTS, {}), ({}, MATERIAL), (results, incomplete)):
        assert "None" not in read_page(render_page(*page)).words
    words = read_page(render_page(results, incomplete | {"curves": MATERIAL["curves"]})).words
    for said in ("objects: not read", "not scored", "reference –", "does not get there"):
        assert said in words
    assert "decoding" not in words and "Error bars" not in words and "of memory" not in words


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 1e300, {}])
def test_values_that_are_no_numbers_are_dashes(read_page, value):
    results = changed(RESULTS, lambda leaf: leaf if isinstance(leaf, str) else value)
    results["config"] = {}
    curves = {"real": [[0, value], [1, 2.0]], "real_synthetic": [[value, value]]}
    words = read_page(render_page(results, {"curves": curves, "losses": curves})).words
    for said in ("Gain, whole test set –", "Time –", "Embedding / pixel speed –", "BLEU-4 – – –"):
        assert said in words
    assert not any(word in words.split() for word in ("nan", "inf", "None"))


def test_hostile_text_is_inert(read_page):
    evil = "<script>alert('x')</script>\"&\u202e"
    results, material = (
        changed(tree, lambda leaf: evil if isinstance(leaf, str) and leaf != PICTURE else leaf)
        for tree in (RESULTS, MATERIAL)
    )
    for tree, names in (
        (results, ("arms", "balance", "seconds_by_stage", "config", "versions")),
        (material, ("curves", "losses")),
        (material["test"][0], ("captions",)),
    ):
        for name in names:
            tree[name][evil] = next(iter(tree[name].values()))
    text = render_page(results, material)
    assert read_page(text).words.count("<script>alert('x')</script>\"&\\u202e") >= 15
    assert "\u202e" not in text


@pytest.mark.parametrize("uri", ["http://example.org/a.png", "a.png", "javascript:alert(1)", ""])
def test_pictures_from_elsewhere_are_refused(uri):
    with pytest.raises(ValueError, match="expected a data:image/ URI"):
        render_page({}, {"scenes": [{"picture": uri}]})


@pytest.mark.parametrize(
    "results, said",
    [
        (
            RESULTS,
            "Yes, synthetic pairs help. Zero-shot, on combinations that no real pair shows, CIDEr "
            "is 70.0 with real + synthetic pairs and 40.0 with real pairs only (+75.0 % [+50.0, "
            "+98.0]). On the whole test set, CIDEr is 75.0 with real + synthetic pairs and 60.0 "
            "with real pairs only (+25.0 %). In brackets: the 95 % interval.",
        ),
        (with_gain(-0.1, 0.5), "Too close to call. Zero-shot"),
        (with_gain(0.0, 0.5), "Too close to call. Zero-shot"),
        (with_gain(-0.4, -0.1), "No, synthetic pairs harm. Zero-shot"),
        (with_gain(None, 0.5), "No verdict without intervals. Zero-shot"),
        # A gain over nothing has no percentage.
        (with_cider(0.0, 5.0), "Yes, synthetic pairs help."),
        (with_cider(60.0, None), "No answer: both arms are not scored."),
        (with_cider(60.0, math.nan), "No answer"),
        (with_cider(60.0, math.inf), "No answer"),
        ({**RESULTS, "tiny": True}, "Plumbing only; the numbers mean nothing."),
    ],
)
def test_the_answer_is_said_with_its_numbers(read_page, results, said):
    words = read_page(render_page(results, {})).words
    assert f"What do synthetic pairs add to a caption model? {said}" in words


def test_tiny_runs_claim_nothing_and_older_ones_have_no_error_bars(read_page):
    page = render_page({**RESULTS, "tiny": True}, MATERIAL)
    assert "Tiny run." in page and "pairs help" not in page
    assert "Tiny run." not in render_page(RESULTS, MATERIAL)
    older = json.loads((ROOT / "data" / "older_demo_results.json").read_text())
    words = read_page(render_page(older, {})).words
    assert "Error bars" not in words and "194.7" in words
