import copy
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from synth2_jax.pages.html import picture
from synth2_jax.pages.report_page import render_page
from synth2_jax.pages.report_sections import SECTIONS

PICTURE = picture(np.zeros((2, 2, 3), np.uint8))
ARM = {"bleu4": 20.0, "rouge_l": 40.0, "objects_right": 0.5, "cider_seen": 80.0}
RESULTS = {
    "arms": {
        "real": {**ARM, "cider": 60.0, "cider_unseen": 40.0},
        "real_synthetic": {**ARM, "cider": 75.0, "cider_unseen": 70.0},
    },
    "tokenizer": {"objects_right": 0.97},
    "generator": {"objects_right": 0.68, "sizes_right": 0.81, "places_right": 0.77},
    "steps_per_second": {"embedding": 8.0, "pixel": 5.0},
    "balance": {"real": {"top5_share": 0.41, "entropy": 2.9, "captions": 7500}},
    "steps_to_baseline": {"steps": 1250, "share": 0.3125},
    "seconds": 2290.0,
    "seconds_by_stage": {"tokenize": 410.0, "train": 9.0},
    "tiny": False,
    "config": {"generator": {"guidance": {"scale": 3.5}}},
    "commit": "0123abc",
    "versions": {"jax": "0.10.2"},
    "peak_memory_gib": 2.3,
    "measured": {"table": {"method": "beam", "num_beams": 3, "pictures": 512}},
}
MATERIAL = {
    "scenes": [{"picture": PICTURE, "captions": ["a red ring"], "combinations": "red ring: 3"}],
    "reconstructions": [{"original": PICTURE, "reconstruction": PICTURE, "right": True}],
    "synthetic": [
        {
            "caption": "a large red ring and a blue cross",
            "picture": PICTURE,
            "verdict": {"objects": (0.5, 1), "sizes": (1, 1), "places": (0, 0)},
            "read_back": "a red ring",
            "unseen": True,
        }
    ],
    "test": [
        {
            "picture": PICTURE,
            "references": ["a green square"],
            "unseen": False,
            "captions": {
                "real": {"text": "a green ring", "objects_right": 0.0},
                "real_synthetic": {"text": "one green square", "objects_right": 1.0},
            },
        }
    ],
    "curves": {"real": [[0, 1.0], [4000, 60.0]], "real_synthetic": [[0, 2.0], [4000, 75.0]]},
    "losses": {"generator": [[0, 3.0], [10, 2.0]]},
}


class _Page(HTMLParser):
    """Collects what a page holds and fails on tags that do not nest."""

    void = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def values(self, name):
        return [value for _, found, value in self.attributes if found == name]


def words(page):
    """What a reader sees, tags and their line breaks taken out."""
    body = page[page.index("<body>") :]
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("\N{NO-BREAK SPACE}", " ").split())


def answer(results):
    return re.search(r'<p class="answer">(.*?)</p>', render_page(results, {})).group(1)


def with_cider(real, mixed):
    results = copy.deepcopy(RESULTS)
    results["arms"]["real"]["cider"] = real
    results["arms"]["real_synthetic"]["cider"] = mixed
    return results


def every_leaf(tree, value):
    if isinstance(tree, dict):
        return {key: every_leaf(child, value) for key, child in tree.items()}
    return value


def test_every_section_is_there_once_and_linked():
    page = _Page(render_page(RESULTS, MATERIAL))
    names = [name for name, _, _ in SECTIONS]
    assert [v for t, n, v in page.attributes if (t, n) == ("section", "id")] == names
    assert [v for t, n, v in page.attributes if (t, n) == ("a", "href")] == [f"#{n}" for n in names]
    assert len(names) == 12


def test_page_needs_no_network_and_no_script():
    page = render_page(RESULTS, MATERIAL)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace(PICTURE, ""))
    parsed = _Page(page)
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert all(uri.startswith("data:image/png") for uri in parsed.values("src"))
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_page_follows_width_and_colour_scheme():
    page = render_page(RESULTS, MATERIAL)
    assert "width=device-width" in page
    assert "prefers-color-scheme:dark" in page and "@media (max-width" in page


def test_whatever_comes_from_data_is_escaped():
    evil = "<script>alert('x')</script>\"&"

    def spoil(tree):
        if isinstance(tree, dict):
            return {key: spoil(child) for key, child in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(spoil(child) for child in tree)
        return evil if isinstance(tree, str) and tree != PICTURE else tree

    results, material = spoil(RESULTS), spoil(MATERIAL)
    for tree, key in (
        (results["arms"], evil),
        (results["balance"], evil),
        (results["seconds_by_stage"], evil),
        (results["config"], evil),
        (results["versions"], evil),
        (material["curves"], evil),
        (material["losses"], evil),
        (material["test"][0]["captions"], evil),
    ):
        tree[key] = next(iter(tree.values()))
    page = render_page(results, material)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;") >= 15
    _Page(page)


def test_pictures_from_elsewhere_are_refused():
    for uri in ("http://example.org/a.png", "a.png", "javascript:alert(1)"):
        with pytest.raises(ValueError, match="expected a data:image/ URI"):
            render_page({}, {"scenes": [{"picture": uri}]})


def test_huge_numbers_are_dashes():
    material = {**MATERIAL, "curves": {"real": [[0, 1e308], [1e308, -1e308], [1, 2.0]]}}
    text = words(render_page({**RESULTS, "seconds": 1e300}, material))
    assert "Time –" in text and not re.search(r"\b(nan|inf)\b", text)


def test_gain_is_said_first_with_its_numbers():
    said = answer(RESULTS).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Yes, a gain: CIDEr is 75.0 with real + synthetic pairs and 60.0 with real pairs only "
        "(+25.0 %); on combinations that no real pair shows it is 70.0 against 40.0 (+75.0 %)."
    )


def test_no_gain_is_said():
    said = answer(with_cider(60.0, 45.0)).replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("No gain: CIDEr is 45.0 ") and "(−25.0 %)" in said


@pytest.mark.parametrize("mixed", [59.0, 60.0, 61.0])
def test_small_differences_are_called_ties(mixed):
    assert answer(with_cider(60.0, mixed)).startswith("Too close to call")


def test_a_baseline_of_zero_has_no_percentage():
    said = answer(with_cider(0.0, 5.0))
    assert said.startswith("Yes, a gain: CIDEr is 5.0 ") and "real pairs only;" in said
    assert answer(with_cider(0.0, 0.0)).startswith("No gain")


@pytest.mark.parametrize("mixed", [None, math.nan, math.inf])
def test_without_both_scores_there_is_no_answer(mixed):
    assert answer(with_cider(60.0, mixed)).startswith("No answer")


def test_tiny_runs_claim_nothing():
    page = render_page({**RESULTS, "tiny": True}, MATERIAL)
    assert answer({**RESULTS, "tiny": True}) == "Plumbing only; the numbers mean nothing."
    assert "Tiny run." in page and "a gain" not in page
    assert "Tiny run." not in render_page(RESULTS, MATERIAL)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, {}])
def test_missing_values_are_dashes(value):
    results = every_leaf(RESULTS, value)
    results |= {"config": {}, "versions": {}, "tiny": False, "commit": None}
    text = words(render_page(results, {}))
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert "Gain in CIDEr –" in text and "Time –" in text and "Embedding / pixel speed –" in text
    assert "commit –" in text


def test_any_key_may_be_absent():
    for key in RESULTS:
        _Page(render_page({k: v for k, v in RESULTS.items() if k != key}, MATERIAL))
    for key in MATERIAL:
        _Page(render_page(RESULTS, {k: v for k, v in MATERIAL.items() if k != key}))
    _Page(render_page({}, {}))


def test_items_may_be_incomplete():
    for key in ("scenes", "reconstructions", "synthetic", "test"):
        for missing in MATERIAL[key][0]:
            item = {k: None if k == missing else v for k, v in MATERIAL[key][0].items()}
            _Page(render_page(RESULTS, {**MATERIAL, key: [item]}))
        _Page(render_page(RESULTS, {**MATERIAL, key: [{}]}))


def test_units_of_the_key_figures():
    text = words(render_page(RESULTS, MATERIAL))
    for said in (
        "Embedding / pixel speed 1.60×",
        "Time 38 min",
        "Generator 68 %",
        "Tokenizer 97 %",
    ):
        assert said in text
