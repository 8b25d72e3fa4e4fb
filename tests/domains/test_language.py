import collections
import itertools
import re
import time
from collections import Counter

import numpy as np
import pytest

from synth2_jax.domains.scenes import dataset, language
from synth2_jax.domains.scenes.language import Claim, Claims
from synth2_jax.domains.scenes.renderer import CELLS, MAX_SHADE, Scene, SceneObject

RED_CIRCLE = SceneObject((0, 0), "red", "circle", "small")
BLUE_SQUARE = SceneObject((0, 1), "blue", "square", "large")
GREEN_RING = SceneObject((1, 1), "green", "ring", "small")
SCENE = Scene((RED_CIRCLE, BLUE_SQUARE, GREEN_RING), "white")


def parse(caption):
    return language.parse(caption)


def describe(scene, seed):
    return language.describe(scene, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def examples():
    return dataset.examples("test", 400)


@pytest.fixture(scope="module")
def captions(examples):
    return [caption for example in examples for caption in example.captions]


def structure(caption):
    """The caption without what the scene decides: how it is put."""
    return re.sub(
        r"\b(red|green|blue|yellow|purple|cyan|circle|square|triangle|cross|ring|white|black)\b",
        "_",
        caption,
    )


# Captions.


def test_a_caption_depends_on_scene_and_seed_alone():
    assert describe(SCENE, 3) == describe(Scene(SCENE.objects[::-1], "white"), 3)
    assert len({describe(SCENE, seed) for seed in range(50)}) > 25


def test_everything_a_caption_says_holds_and_every_object_is_mentioned(examples):
    for example in examples:
        for caption in example.captions:
            claims = parse(caption)
            found = language.agreement(claims, example.scene)
            assert found["objects"] == (1.0, 1), caption
            for right, claimed in (found["sizes"], found["places"]):
                assert right == claimed, caption
            assert claims.background in (None, example.scene.background), caption
            assert language.combinations(claims.objects) == language.combinations(
                example.scene.objects
            ), caption


def test_every_size_place_and_background_word_of_a_caption_is_parsed(examples):
    # Or the test above could pass because parse sees nothing.
    for example in examples:
        for caption in example.captions:
            claims = parse(caption)
            sizes = re.findall(r"\b(?:small|little|tiny|large|big)\b", caption)
            assert len(sizes) == sum(c.size is not None for c in claims.objects), caption
            corners = re.findall(r"\b(?:in|at) the (?:top|upper|bottom|lower)\b", caption)
            assert len(corners) == sum(c.cell is not None for c in claims.objects), caption
            relations = re.findall(
                r"left of|right of|above|over|on top of|below|under|beneath", caption
            )
            assert len(relations) == len(claims.relations), caption
            assert ("background" in caption) == (claims.background is not None), caption


def test_captions_are_one_lower_case_sentence_of_usual_length(captions):
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= 3 and max(lengths) <= 32 and 9 < np.mean(lengths) < 17
    for caption in captions:
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption), caption


def test_grammar_of_captions(captions):
    nouns = "circle|square|triangle|cross|ring"
    plurals = "circles|squares|triangles|crosses|rings"
    wrong = {
        "a before a vowel": r"\ba [aeiou]",
        "an before a consonant": r"\ban [^aeiou]",
        "two verbs": r"\b(is|are|sits|see|shows)\b.*\b(is|are|sits|see|shows)\b",
        "one of many": rf"\b(a|an|there is) (\w+ )?\w+ ({plurals})\b|there is (two|three)",
        "many of one": rf"\b(two|three) (\w+ )?\w+ ({nouns})\b|there are an? ",
        "a word twice": r"\b(\w+) \1\b",
        "no article": rf"(^|and |with |, )(red|green|blue|yellow|purple|cyan) ({nouns})\b",
        "a group that sits": rf"({plurals}) (is|sits)",
    }
    for caption in captions:
        for what, pattern in wrong.items():
            assert not re.search(pattern, caption), (what, caption)


def test_groups_take_the_plural_verb():
    pair = Scene((RED_CIRCLE, SceneObject((1, 0), "red", "circle", "large")), "black")
    found = {describe(pair, seed) for seed in range(300)}
    assert "there are two red circles" in found
    assert "two red circles" in found
    assert not any(caption.startswith("there is two") for caption in found)
    assert any("there is a" in caption for caption in found)  # one after the other


def test_article_is_by_sound():
    assert [language._article(word) for word in ("orange", "red", "white")] == ["an", "a", "a"]


def test_the_captions_of_a_scene_are_not_one_template(examples, captions):
    distinct = [len(set(example.captions)) for example in examples]
    assert np.mean(distinct) > 4.8 and np.mean(np.array(distinct) >= 4) > 0.98
    structures = [len({structure(c) for c in example.captions}) for example in examples]
    assert np.mean(structures) > 4.5
    openings = Counter(" ".join(caption.split()[:2]) for caption in captions)
    assert len(openings) >= 20 and openings.most_common(1)[0][1] < 0.2 * len(captions)
    assert len({structure(caption) for caption in captions}) > 0.3 * len(captions)


def test_captions_vary_in_what_they_tell(captions):
    claims = [parse(caption) for caption in captions]
    for share in (
        np.mean([any(c.size for c in claim.objects) for claim in claims]),
        np.mean([claim.background is not None for claim in claims]),
        np.mean([any(c.cell for c in claim.objects) for claim in claims]),
        np.mean([bool(claim.relations) for claim in claims]),
    ):
        assert 0.15 < share < 0.75
    words = collections.Counter(" ".join(captions).split())
    synonyms = sum(language.SIZE_WORDS.values(), ()) + ("top", "upper", "bottom", "lower")
    for word in (*synonyms, "above", "over", "below", "under", "beneath", "left", "right"):
        assert words[word] > 0.01 * len(captions), word


# Parsing.

RELATIONS = {
    "left of": (0, "left", 1),
    "to the left of": (0, "left", 1),
    "on the left of": (0, "left", 1),
    "right of": (1, "left", 0),
    "to the right of": (1, "left", 0),
    "on the right of": (1, "left", 0),
    "above": (0, "above", 1),
    "over": (0, "above", 1),
    "on top of": (0, "above", 1),
    "below": (1, "above", 0),
    "under": (1, "above", 0),
    "beneath": (1, "above", 0),
}


@pytest.mark.parametrize("words, relation", RELATIONS.items())
@pytest.mark.parametrize("verb", ["", "is ", "sits "])
def test_relations_are_parsed_in_all_directions(verb, words, relation):
    claims = parse(f"a red circle {verb}{words} a tiny blue square")
    assert claims == Claims((Claim("red", "circle"), Claim("blue", "square", "small")), (relation,))


@pytest.mark.parametrize(
    "caption, objects",
    [
        ("a red circle", [Claim("red", "circle")]),
        ("A RED Circle.", [Claim("red", "circle")]),
        ("red circle", [Claim("red", "circle")]),
        ("two red circles", [Claim("red", "circle")] * 2),
        ("three cyan crosses", [Claim("cyan", "cross")] * 3),
        ("two big red circles", [Claim("red", "circle", "large")] * 2),
        ("one little red ring", [Claim("red", "ring", "small")]),
        ("a tiny blue cross", [Claim("blue", "cross", "small")]),
        ("a small circle", []),  # no colour
        ("a red dog and a blurry circle", []),
        ("a red house by a green square", [Claim("green", "square")]),
        ("a reddish circle, a covered circle", []),
        ("a red circlet", []),
        ("a red circle in the top left", [Claim("red", "circle", None, (0, 0))]),
        ("a red circle at the upper right", [Claim("red", "circle", None, (0, 1))]),
        ("a red circle is in the lower left corner", [Claim("red", "circle", None, (1, 0))]),
        ("a red circle sits at the bottom right", [Claim("red", "circle", None, (1, 1))]),
        ("a red circle in the middle", [Claim("red", "circle")]),
        (
            "a red circle and a blue square in the top left",
            [Claim("red", "circle"), Claim("blue", "square", None, (0, 0))],
        ),
        ("", []),
        ("   ", []),
        ("output: ⁇ \n the the of left", []),
    ],
)
def test_objects_are_parsed(caption, objects):
    assert parse(caption) == Claims(tuple(objects))


@pytest.mark.parametrize(
    "caption, background",
    [
        ("a red circle on a white background", "white"),
        ("black background, a red circle", "black"),
        ("a red circle on black canvas", "black"),
        ("a red circle on a blue background", None),
        ("a red circle", None),
    ],
)
def test_backgrounds_are_parsed(caption, background):
    claims = parse(caption)
    assert (claims.objects, claims.background) == ((Claim("red", "circle"),), background)


def test_a_full_caption_is_parsed():
    caption = (
        "we see a big red circle on top of a small blue square with a tiny green ring "
        "in the lower right corner on a black background"
    )
    assert parse(caption) == Claims(
        (
            Claim("red", "circle", "large"),
            Claim("blue", "square", "small"),
            Claim("green", "ring", "small", (1, 1)),
        ),
        ((0, "above", 1),),
        "black",
    )


def test_an_object_named_after_and_is_in_no_relation():
    claims = parse("a red circle left of a blue square and a green ring")
    assert claims.relations == ((0, "left", 1),) and len(claims.objects) == 3


# Agreement with SCENE: small red circle | large blue square
#                                        | small green ring


@pytest.mark.parametrize(
    "caption, objects, sizes, places",
    [
        ("a red circle, a blue square and a green ring", 1, (0, 0), (0, 0)),
        ("a green ring, a red circle and a blue square", 1, (0, 0), (0, 0)),
        ("a red circle", 1 / 3, (0, 0), (0, 0)),
        ("a purple circle, a blue square and a green ring", 2 / 3, (0, 0), (0, 0)),
        ("a blue circle, a red square and a green ring", 1 / 3, (0, 0), (0, 0)),
        ("two red circles, a blue square and a green ring", 3 / 4, (0, 0), (0, 0)),
        ("a tiny red circle and a small blue square", 2 / 3, (1, 2), (0, 0)),
        ("a big purple circle", 0, (0, 1), (0, 0)),
        ("a red circle is left of a blue square", 2 / 3, (0, 0), (1, 1)),
        ("a blue square is left of a red circle", 2 / 3, (0, 0), (0, 1)),
        ("a blue square right of a red circle", 2 / 3, (0, 0), (1, 1)),
        ("a blue square above a green ring", 2 / 3, (0, 0), (1, 1)),
        ("a green ring above a blue square", 2 / 3, (0, 0), (0, 1)),
        ("a red circle above a blue square", 2 / 3, (0, 0), (0, 1)),
        ("a red circle left of a yellow square", 1 / 3, (0, 0), (0, 1)),
        ("a red circle left of a green ring", 2 / 3, (0, 0), (0, 1)),  # on a diagonal
        ("a green ring below a red circle", 2 / 3, (0, 0), (0, 1)),
        ("a red circle in the top left", 1 / 3, (0, 0), (1, 1)),
        ("a red circle in the top right", 1 / 3, (0, 0), (0, 1)),
        ("a cyan circle in the top left", 0, (0, 0), (0, 1)),
        (
            "a small red circle left of a large blue square and a tiny green ring in the top left",
            1,
            (3, 3),
            (1, 2),
        ),
        ("", 0, (0, 0), (0, 0)),
    ],
)
def test_agreement(caption, objects, sizes, places):
    found = language.agreement(parse(caption), SCENE)
    assert found["objects"] == (pytest.approx(objects), 1)
    assert (found["sizes"], found["places"]) == (sizes, places)


def test_claims_of_like_objects_are_matched_so_that_most_hold():
    twins = Scene(
        (
            SceneObject((0, 0), "red", "circle", "small"),
            SceneObject((1, 1), "red", "circle", "large"),
        ),
        "white",
    )
    for first, second in itertools.permutations(
        ("a big red circle in the lower right", "a tiny red circle in the top left")
    ):
        found = language.agreement(parse(f"{first} and {second}"), twins)
        assert found == {"objects": (1.0, 1), "sizes": (2, 2), "places": (2, 2)}
    both_large = language.agreement(parse("two big red circles"), twins)
    assert both_large["sizes"] == (1, 2)


def test_an_empty_scene_makes_every_claim_wrong():
    empty = Scene((), "white")
    assert language.agreement(parse("a tiny red circle in the top left"), empty) == {
        "objects": (0.0, 1),
        "sizes": (0, 1),
        "places": (0, 1),
    }
    assert language.agreement(parse(""), empty)["objects"] == (1.0, 1)


def test_a_caption_that_repeats_itself_is_soon_scored():
    start = time.monotonic()
    found = language.agreement(parse("three tiny red circles and " * 10), SCENE)
    assert time.monotonic() - start < 10  # all orders of 30 claims would take for ever
    assert found == {"objects": (pytest.approx(1 / 30), 1), "sizes": (1, 30), "places": (0, 0)}


@pytest.mark.parametrize(
    "claimed, present, expected",
    [
        ("a", "a", 1),
        ("ab", "ba", 1),
        ("aa", "a", 1 / 2),
        ("a", "aa", 1 / 2),
        ("aab", "abb", 2 / 3),
        ("b", "a", 0),
        ("", "a", 0),
        ("a", "", 0),
        ("", "", 1),
    ],
)
def test_objects_right(claimed, present, expected):
    found = language.objects_right(Counter(claimed), Counter(present))
    assert found == pytest.approx(expected)


# Imagining.


def imagine(caption, seed=0):
    return language.imagine(parse(caption), np.random.default_rng(seed))


def test_an_imagined_scene_satisfies_its_caption(captions):
    for seed, caption in enumerate(captions[:600]):
        claims = parse(caption)
        scene = imagine(caption, seed)
        found = language.agreement(claims, scene)
        assert found["objects"] == (1.0, 1), caption
        assert found["sizes"][0] == found["sizes"][1], caption
        assert found["places"][0] == found["places"][1], caption
        assert claims.background in (None, scene.background), caption
        assert len({item.cell for item in scene.objects}) == len(scene.objects)
        assert all(abs(item.shade) <= MAX_SHADE for item in scene.objects)


def test_what_a_caption_leaves_open_varies():
    scenes = [imagine("a red circle", seed) for seed in range(60)]
    assert {scene.objects[0].cell for scene in scenes} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {scene.objects[0].size for scene in scenes} == {"small", "large"}
    assert {scene.background for scene in scenes} == {"white", "black"}
    assert imagine("a red circle", 7) == imagine("a red circle", 7)


@pytest.mark.parametrize(
    "words, axis, step", [("left of", 1, 1), ("right of", 1, -1), ("above", 0, 1), ("below", 0, -1)]
)
def test_imagined_relations_are_straight(words, axis, step):
    for seed in range(20):
        scene = imagine(f"a red circle {words} a blue square", seed)
        cells = {item.colour: np.array(item.cell) for item in scene.objects}
        difference = cells["blue"] - cells["red"]
        assert difference[axis] == step and difference[1 - axis] == 0


@pytest.mark.parametrize("first, second", itertools.permutations(CELLS, 2))
def test_relations_are_said_held_true_and_imagined_of_the_same_layouts(first, second):
    red = SceneObject(first, "red", "circle", "small")
    scene = Scene((red, SceneObject(second, "blue", "square", "large")), "white")
    said, held, imagined = set(), set(), set()
    for words in ("left of", "right of", "above", "below"):
        claims = parse(f"a red circle {words} a blue square")
        if language.agreement(claims, scene)["places"] == (1, 1):
            held.add(words)
        for seed in range(30):
            objects = imagine(f"a red circle {words} a blue square", seed).objects
            if {item.colour: item.cell for item in objects} == {"red": first, "blue": second}:
                imagined.add(words)
            if re.search(rf"red circle .*\b{words} a .*blue square", describe(scene, seed)):
                said.add(words)
    assert said == held == imagined
    assert len(held) == any(here == there for here, there in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog on a lawn",
        "three red circles and a blue square",
        "two red circles and two blue squares",
        "a red circle in the top left and a blue square in the top left",
        "two red circles in the top left",
        "a red circle in the top right left of a blue square",
        "a red circle above a blue square in the upper left",
        "a red circle left of a blue square left of a green ring",
    ],
)
def test_what_cannot_be_drawn_is_not_imagined(caption):
    assert all(imagine(caption, seed) is None for seed in range(5))


def test_class_names():
    assert language.class_name(("red", "circle")) == "red circle"
    assert parse("a " + language.class_name(("cyan", "cross"))).objects == (Claim("cyan", "cross"),)
