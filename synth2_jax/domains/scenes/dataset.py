"""The splits of Scenes, each a pure function of (seed, split, index).

images      unlabelled and balanced, for the tokenizer
real        few and long-tailed: a fifth of the colour x shape combinations never occur, the rest
            by Zipf's law
validation  drawn as `real` is, for watching training
test        balanced over all combinations
text        captions alone, balanced, for the language model
"""

import dataclasses
import functools
import itertools

import numpy as np

from synth2_jax.domains.scenes import language, renderer
from synth2_jax.domains.scenes.renderer import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)
from synth2_jax.errors import UserError, nearest

SPLITS = {"images": 8192, "real": 1500, "validation": 256, "test": 512, "text": 24000}  # sizes
MOST_REAL = 6000  # pictures of `real`, where a number of them is asked for
REFERENCES = 5  # captions an image, as COCO has
OBJECT_COUNTS = (0.35, 0.4, 0.25)  # shares of pictures with one, two and three objects
ZIPF_EXPONENT = 1.0
UNSEEN_SHARE = 1 / 5
COMBINATIONS = tuple(itertools.product(COLOURS, SHAPES))
CLASSES = tuple(language.class_name(c) for c in COMBINATIONS)
_SEED = 2403_07750


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned picture: image u8[32, 32, 3] and REFERENCES captions."""

    key: str
    scene: Scene
    image: np.ndarray
    captions: tuple[str, ...]


def split_size(split: str) -> int:
    """Number of examples of a split; UserError when there is no such split."""
    if split not in SPLITS:
        raise UserError(f"Scenes split: unknown {split!r}; {nearest(split, SPLITS)}")
    return SPLITS[split]


def _generator(split: str, index: int) -> np.random.Generator:
    split_size(split)
    return np.random.default_rng([_SEED, list(SPLITS).index(split), index])


@functools.cache
def long_tail() -> np.ndarray:
    """Probability of each of COMBINATIONS in `real`, f64[30]; 0 for those it never shows.

    The unseen ones are spread so that every colour and every shape is seen with several partners.
    """
    rng = np.random.default_rng(_SEED)
    colours, shapes = rng.permutation(len(COLOURS)), rng.permutation(len(SHAPES))
    unseen = np.zeros((len(COLOURS), len(SHAPES)), bool)
    places = np.arange(len(COLOURS))[:, None] + np.arange(len(SHAPES))
    unseen[np.ix_(colours, shapes)] = places % round(1 / UNSEEN_SHARE) == 0
    ranks = np.full(len(COMBINATIONS), np.inf)
    seen = np.flatnonzero(~unseen.reshape(-1))
    ranks[seen] = rng.permutation(len(seen)) + 1.0
    weights = ranks**-ZIPF_EXPONENT
    return weights / weights.sum()


def unseen_combinations() -> frozenset[tuple[str, str]]:
    """The (colour, shape) pairs that no picture of `real` or `validation` shows."""
    return frozenset(c for c, p in zip(COMBINATIONS, long_tail(), strict=True) if p == 0)


def scene(split: str, index: int, rng: np.random.Generator | None = None) -> Scene:
    """The scene graph of one example, drawn from its generator."""
    rng = rng or _generator(split, index)
    weights = long_tail() if split in ("real", "validation") else None
    count = int(rng.choice(3, p=OBJECT_COUNTS)) + 1
    chosen = [COMBINATIONS[i] for i in rng.choice(len(COMBINATIONS), count, p=weights)]
    if weights is None:
        chosen[0] = COMBINATIONS[index % len(COMBINATIONS)]  # balanced by more than chance
    if count > 1 and rng.random() < 0.15:
        chosen[1] = chosen[0]  # so that "two red circles" is said now and then
    cells = [CELLS[i] for i in rng.permutation(len(CELLS))[:count]]
    objects = tuple(
        SceneObject(cell, colour, shape, list(SIZES)[int(rng.integers(2))], language.shade(rng))
        for cell, (colour, shape) in zip(cells, chosen, strict=True)
    )
    return Scene(objects, list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])


def images(split: str = "images", count: int | None = None) -> np.ndarray:
    """The first `count` pictures of a split, u8[count, 32, 32, 3]."""
    count = split_size(split) if count is None else count
    return np.stack([renderer.render(scene(split, i)) for i in range(count)])


def examples(split: str, count: int | None = None) -> list[Example]:
    """The first `count` captioned pictures of a split."""
    found = []
    for index in range(split_size(split) if count is None else count):
        rng = _generator(split, index)
        graph = scene(split, index, rng)
        captions = tuple(language.describe(graph, rng) for _ in range(REFERENCES))
        found.append(Example(f"{split}-{index:06d}", graph, renderer.render(graph), captions))
    return found


def texts(count: int | None = None) -> list[tuple[str, str]]:
    """The first `count` lines of the caption-only corpus: (class name, caption).

    The class is that of one of the caption's objects.
    """
    lines = []
    for index in range(SPLITS["text"] if count is None else count):
        rng = _generator("text", index)
        graph = scene("text", index, rng)
        about = graph.objects[int(rng.integers(len(graph.objects)))]
        lines.append((language.class_name(about.combination), language.describe(graph, rng)))
    return lines
