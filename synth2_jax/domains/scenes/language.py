"""Scene graph -> captions, and captions -> what they claim.

`describe` paraphrases: which object comes first, the verb, whether size and background are
mentioned and how the layout is put all vary, as they do among the five captions of a COCO image.
`parse` reads such a caption, also one written by a language model, into claims that a picture can
be checked against.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from synth2_jax.domains.scenes.renderer import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    MAX_SHADE,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
VERTICAL = {0: ("top", "upper"), 1: ("bottom", "lower")}
HORIZONTAL = {0: "left", 1: "right"}
OPENINGS = ("", "", "", "there is ", "a picture of ", "we see ", "this picture shows ")
LONGEST_CAPTION = 20  # words
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
COUNTS = {"a": 1, "an": 1, "one": 1, "the": 1, "two": 2, "three": 3}

_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
_SHAPE_OF = {**{shape: shape for shape in SHAPES}, **{p: shape for shape, p in PLURALS.items()}}
_NOUN_PHRASE = re.compile(
    rf"\b(?:({'|'.join(COUNTS)})\s+)?(?:({'|'.join(_SIZE_OF)})\s+)?"
    rf"({'|'.join(COLOURS)})\s+({'|'.join(_SHAPE_OF)})\b"
)
_RELATION_OF = {words: relation for relation, options in RELATIONS.items() for words in options}
_RELATION = re.compile(rf"\b({'|'.join(sorted(_RELATION_OF, key=len, reverse=True))})\s*$")
_POSITION = re.compile(
    r"^\s*(?:sits |is |lies )?(?:in|at) the (top|upper|bottom|lower) (left|right)\b"
)
_BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)})\s+(?:background|picture|canvas)\b")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A caption's claims about one object; None where it makes no claim."""

    colour: str
    shape: str
    size: str | None = None
    cell: tuple[int, int] | None = None

    @property
    def combination(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Claims:
    """A parsed caption. `relations` holds (i, "left" | "above", j) between objects by index."""

    objects: tuple[Claim, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None


def _choice(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _noun_phrase(item: SceneObject, rng: np.random.Generator, sized: bool) -> str:
    if sized:
        return f"a {_choice(rng, SIZE_WORDS[item.size])} {item.colour} {item.shape}"
    return f"{_article(item.colour)} {item.colour} {item.shape}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _position(cell: tuple[int, int], rng: np.random.Generator) -> str:
    corner = " corner" if rng.random() < 0.2 else ""
    preposition, row = _choice(rng, ("in", "at")), _choice(rng, VERTICAL[cell[0]])
    return f"{preposition} the {row} {HORIZONTAL[cell[1]]}{corner}"


def _relation(first: tuple[int, int], second: tuple[int, int]) -> str | None:
    """Returns where cell `first` is from `second`: "left" | "right" | "above" | "below".

    None on a diagonal: the language has corners for that.
    """
    (row, column), (other_row, other_column) = first, second
    if row == other_row:
        return "left" if column < other_column else "right"
    if column == other_column:
        return "above" if row < other_row else "below"
    return None


def _body(scene: Scene, rng: np.random.Generator, verb: str) -> str:
    objects = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    sized = rng.random() < 0.5
    phrases = [_noun_phrase(item, rng, sized) for item in objects]
    if len(objects) == 1:
        return f"{phrases[0]} {verb}{_position(objects[0].cell, rng)}"

    counts = Counter((item.colour, item.shape) for item in objects)
    (colour, shape), most = counts.most_common(1)[0]
    if most > 1 and rng.random() < 0.7:  # "two red circles", the odd one out after them
        group = f"{('two', 'three')[most - 2]} {colour} {PLURALS[shape]}"
        paired = zip(phrases, objects, strict=True)
        others = [phrase for phrase, item in paired if item.combination != (colour, shape)]
        return " and ".join([group, *others])

    relation = _relation(objects[0].cell, objects[1].cell)
    if relation is None:
        places = [_position(item.cell, rng) for item in objects[:2]]
        pair = f"{phrases[0]} {places[0]} and {phrases[1]} {places[1]}"
    else:
        pair = f"{phrases[0]} {verb}{_choice(rng, RELATIONS[relation])} {phrases[1]}"
    if len(objects) == 2:
        return pair if rng.random() < 0.9 else " and ".join(phrases)
    style = rng.random()
    if style < 0.3:
        return f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    link = _choice(rng, (" and ", " with ", ", and "))
    return f"{pair}{link}{phrases[2]} {_position(objects[2].cell, rng)}"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """One caption, lower case, no full stop, 3 to 20 words; every object is mentioned."""
    while True:  # a bare list of three objects is short enough, so this ends
        caption = _sentence(scene, rng)
        if len(caption.split()) <= LONGEST_CAPTION:
            return caption


def _sentence(scene: Scene, rng: np.random.Generator) -> str:
    opening = _choice(rng, OPENINGS)
    verb = "" if opening else _choice(rng, ("", "is ", "sits "))  # one verb a sentence
    body = _body(scene, rng, verb)
    if opening == "there is " and body.startswith(("two", "three")):
        opening = "there are "
    body = opening + body
    ending = rng.random()
    if ending < 0.3:
        return f"{body} on {_article(scene.background)} {scene.background} background"
    if ending < 0.4:
        return f"{scene.background} background, {body}"
    return body


def class_name(combination: tuple[str, str]) -> str:
    """The class a (colour, shape) combination belongs to, as prompts name it."""
    return " ".join(combination)


def parse(caption: str) -> Claims:
    """Reads the claims of a caption; words that are not of Scenes' language are passed over."""
    text = caption.lower()
    claims: list[Claim] = []
    relations: list[tuple[int, str, int]] = []
    matches = list(_NOUN_PHRASE.finditer(text))
    for which, match in enumerate(matches):
        count, size, colour, shape = match.groups()
        until = matches[which + 1].start() if which + 1 < len(matches) else len(text)
        place = _POSITION.match(text[match.end() : until])
        cell = place and (int(place[1] not in VERTICAL[0]), int(place[2] == "right"))
        before = text[matches[which - 1].end() : match.start()] if which else ""
        if link := _RELATION.search(before):
            here, there = len(claims) - 1, len(claims)
            relation = _RELATION_OF[link[1]]
            if relation in ("left", "above"):
                relations.append((here, relation, there))
            else:
                relations.append((there, "left" if relation == "right" else "above", here))
        claim = Claim(colour, _SHAPE_OF[shape], _SIZE_OF.get(size), cell)
        claims += [claim] * COUNTS.get(count, 1)
    background = _BACKGROUND.search(text)
    return Claims(tuple(claims), tuple(relations), background and background[1])


def objects_right(claimed: Counter, present: Counter) -> float:
    """Objects (colour, shape) in both, over the larger count: 1 if all are right, none made up."""
    largest = max(sum(claimed.values()), sum(present.values()))
    return sum((claimed & present).values()) / largest if largest else 1.0


def combinations(items) -> Counter:
    """Counts of (colour, shape) among claims or scene objects."""
    return Counter(item.combination for item in items)


def _assignments(
    num_claims: int, objects: Sequence[SceneObject]
) -> Iterator[Sequence[SceneObject | None]]:
    """Every way to give each claim an object of its own, or None once there are no more.

    Polynomial in the number of claims: a language model that repeats itself may claim dozens.
    """
    if num_claims <= len(objects):
        yield from itertools.permutations(objects, num_claims)
        return
    for places in itertools.permutations(range(num_claims), len(objects)):
        item_at = dict(zip(places, objects, strict=True))
        yield [item_at.get(place) for place in range(num_claims)]


def agreement(claims: Claims, scene: Scene) -> dict[str, tuple[float, int]]:
    """Counts the claims that hold in a scene: {"objects" | "sizes" | "places": (right, claimed)}.

    Claims are matched to the scene's objects so that most of them hold. "objects" is
    `objects_right`, counted once a caption; "places" are relations and corners. A relation holds
    where `describe` would say it: "left of" along a row, "above" along a column.
    """
    best_rank, best = (-1,), {}
    for assigned in _assignments(len(claims.objects), scene.objects):
        fits = [
            (claim, item) if item and claim.combination == item.combination else None
            for claim, item in zip(claims.objects, assigned, strict=True)
        ]
        found = [pair for pair in fits if pair]
        right = {
            "sizes": sum(claim.size == item.size for claim, item in found),
            "places": sum(claim.cell == item.cell for claim, item in found)
            + sum(
                _relation(fits[i][1].cell, fits[j][1].cell) == name
                for i, name, j in claims.relations
                if fits[i] and fits[j]
            ),
        }
        rank = len(found), right["places"], right["sizes"]
        if rank > best_rank:
            best_rank, best = rank, right
    return {
        "objects": (objects_right(combinations(claims.objects), combinations(scene.objects)), 1),
        "sizes": (best["sizes"], sum(claim.size is not None for claim in claims.objects)),
        "places": (
            best["places"],
            len(claims.relations) + sum(claim.cell is not None for claim in claims.objects),
        ),
    }


def imagine(claims: Claims, rng: np.random.Generator) -> Scene | None:
    """A scene in which the claims hold, what they leave open drawn at random; None if none can."""
    count = len(claims.objects)
    if not 1 <= count <= 3:
        return None
    wanted = [claim.cell for claim in claims.objects]
    layouts = [
        cells
        for cells in itertools.permutations(CELLS, count)
        if all(cell in (None, at) for cell, at in zip(wanted, cells, strict=True))
        and all(_relation(cells[i], cells[j]) == name for i, name, j in claims.relations)
    ]
    if not layouts:
        return None
    cells = _choice(rng, layouts)
    objects = tuple(
        SceneObject(cell, c.colour, c.shape, c.size or _choice(rng, list(SIZES)), shade(rng))
        for c, cell in zip(claims.objects, cells, strict=True)
    )
    return Scene(objects, claims.background or _choice(rng, list(BACKGROUNDS)))


def shade(rng: np.random.Generator) -> float:
    """A random brightness offset within what the renderer allows."""
    return float(rng.uniform(-MAX_SHADE, MAX_SHADE))
