import numpy as np
import pytest

from synth2_jax.scoring.clip_score import clip_score, ref_clip_score

RIGHT, UP, LEFT, NOTHING = [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]


def test_a_score_is_two_and_a_half_cosines_of_0_or_more():
    images = np.array([RIGHT, RIGHT, RIGHT, RIGHT, [1.0, 1.0]])
    texts = np.array([[4.0, 0.0], UP, LEFT, NOTHING, RIGHT])
    np.testing.assert_allclose(
        clip_score(images, texts), [2.5, 0, 0, 0, 2.5 / np.sqrt(2)], atol=1e-12
    )


def test_references_count_by_the_nearest_one():
    # Harmonic means: of 2.5 and 1, of 2.5 and 0, of 0 and 1, of 2.5 and 1 / sqrt(2).
    found = ref_clip_score(
        np.array([2.5, 2.5, 0.0, 2.5]),
        np.array([RIGHT, RIGHT, RIGHT, RIGHT]),
        [np.array([UP, RIGHT]), np.array([LEFT]), np.array([RIGHT]), np.array([[1, 1], UP, LEFT])],
    )
    near = 1 / np.sqrt(2)
    np.testing.assert_allclose(found, [5 / 3.5, 0, 0, 2 * 2.5 * near / (2.5 + near)], atol=1e-12)


def test_lengths_of_the_features_do_not_matter():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 5, 8))
    np.testing.assert_allclose(clip_score(images, texts), clip_score(7 * images, 0.1 * texts))


def test_counts_that_differ_are_refused():
    with pytest.raises(ValueError):
        ref_clip_score(np.zeros(2), np.zeros((2, 3)), [np.zeros((1, 3))])
