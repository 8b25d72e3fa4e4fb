from collections import Counter

import numpy as np
import pytest

from synth2_jax.domains.scenes import dataset, language
from synth2_jax.domains.scenes.renderer import BACKGROUNDS, COLOURS, SHAPES, SIZES
from synth2_jax.errors import UserError


@pytest.fixture(scope="module")
def by_split():
    sizes = {split: min(size, 1500) for split, size in dataset.SPLITS.items()}
    return {split: [dataset.scene(split, i) for i in range(n)] for split, n in sizes.items()}


@pytest.fixture(scope="module")
def shown(by_split):
    """How often each split shows each (colour, shape)."""
    return {
        split: sum((language.combinations(scene.objects) for scene in found), Counter())
        for split, found in by_split.items()
    }


def test_an_example_is_the_same_however_it_is_reached():
    longer, shorter = dataset.examples("test", 12), dataset.examples("test", 5)
    assert len(longer) == 12
    for one, other in zip(longer[:5], shorter, strict=True):
        assert (one.key, one.scene, one.captions) == (other.key, other.scene, other.captions)
        np.testing.assert_array_equal(one.image, other.image)
    assert [example.scene for example in longer] == [dataset.scene("test", i) for i in range(12)]
    np.testing.assert_array_equal(dataset.images("test", 12), [example.image for example in longer])
    assert dataset.texts(9)[:4] == dataset.texts(4)


def test_an_example_has_a_key_a_picture_and_five_captions():
    example = dataset.examples("real", 3)[2]
    assert example.key == "real-000002"
    assert example.image.shape == (32, 32, 3) and example.image.dtype == np.uint8
    assert len(example.captions) == dataset.REFERENCES == 5
    # Without a count a split has its size.
    assert len(dataset.examples("validation")) == dataset.SPLITS["validation"]
    assert len(dataset.images("test")) == dataset.SPLITS["test"]


def test_splits_do_not_share_randomness():
    # Also the shades: the same draws would give the same shades even where the weights differ.
    objects = [[dataset.scene(split, i).objects for i in range(200)] for split in dataset.SPLITS]
    shades = [item.shade for split in objects for items in split for item in items]
    assert len(set(shades)) == len(shades)
    counts = {tuple(map(len, split)) for split in objects}
    assert len(counts) == len(dataset.SPLITS)


def test_scenes_have_one_to_three_objects_in_cells_of_their_own(by_split):
    for found in by_split.values():
        counts = Counter(len(scene.objects) for scene in found)
        assert set(counts) == {1, 2, 3}
        assert min(counts.values()) > 0.2 * len(found)
        assert all(len({o.cell for o in scene.objects}) == len(scene.objects) for scene in found)


def test_everything_that_can_be_drawn_is_drawn_evenly(by_split):
    for found in by_split.values():
        items = [item for scene in found for item in scene.objects]
        for drawn, options in (
            (Counter(scene.background for scene in found), BACKGROUNDS),
            (Counter(item.size for item in items), SIZES),
            (Counter(item.cell for item in items), ((0, 0), (0, 1), (1, 0), (1, 1))),
        ):
            assert set(drawn) == set(options)
            assert min(drawn.values()) > 0.7 * max(drawn.values())


@pytest.mark.parametrize("split", ["images", "test", "text"])
def test_balanced_splits_show_all_combinations_equally_often(shown, split):
    counts = np.array([shown[split][c] for c in dataset.COMBINATIONS])
    assert len(counts) == 30 and counts.min() > 0
    expected = counts.mean()
    # 29 degrees of freedom; 15 % of the pictures show one combination twice, which adds variance.
    assert ((counts - expected) ** 2 / expected).sum() < 80
    assert counts.max() < 2.5 * counts.min()


def test_real_shows_every_seen_combination_and_no_unseen_one(shown):
    unseen = dataset.unseen_combinations()
    assert len(unseen) == 6 and unseen < set(shown["test"])
    assert set(shown["real"]) == set(dataset.COMBINATIONS) - unseen
    assert not unseen & set(shown["validation"])


def test_every_colour_and_shape_is_seen_with_several_partners(shown):
    for value in (*COLOURS, *SHAPES):
        assert sum(value in combination for combination in shown["real"]) >= 3
        assert any(value in combination for combination in dataset.unseen_combinations())


def test_real_has_a_long_tail(shown):
    weights = np.sort(dataset.long_tail())[::-1]
    assert np.isclose(weights.sum(), 1) and (weights >= 0).all()
    counts = np.sort([shown["real"][c] for c in dataset.COMBINATIONS])[::-1]
    total = counts.sum()
    assert counts[:5].sum() > 0.6 * total
    assert 0 < counts[10:20].sum() < 0.25 * total
    # Drawn by those weights, the repeated objects of some pictures too.
    np.testing.assert_allclose(counts / total, weights, atol=0.03)
    ranks = np.sort(weights.max() / weights[weights > 0])  # weights are 1 / rank, Zipf's law
    np.testing.assert_allclose(ranks, ranks.round(), atol=1e-9)
    assert ranks[0] == 1 and len(set(ranks.round())) == 24 and ranks[-1] <= 30.5


def test_lines_of_text_name_a_class_that_the_caption_speaks_of():
    assert len(dataset.CLASSES) == len(set(dataset.CLASSES)) == 30
    assert dataset.CLASSES[0] == "red circle"
    for name, caption in dataset.texts(300):
        claimed = {c.combination for c in language.parse(caption).objects}
        assert tuple(name.split()) in claimed


def test_two_alike_are_drawn_now_and_then(by_split):
    counts = [language.combinations(scene.objects) for scene in by_split["test"]]
    assert 0.05 < np.mean([max(count.values()) > 1 for count in counts]) < 0.25


@pytest.mark.parametrize(
    "draw", [lambda s: dataset.scene(s, 0), dataset.examples, dataset.images, dataset.split_size]
)
def test_an_unknown_split_is_a_user_error(draw):
    with pytest.raises(UserError, match="'vaildation'; did you mean 'validation'"):
        draw("vaildation")
