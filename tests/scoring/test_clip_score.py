import numpy as np
import pytest

from synth2_jax.scoring.clip_score import clip_score, ref_clip_score

RIGHT, UP, LEFT, NOTHING = [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]
IMAGES = np.array([RIGHT, RIGHT, RIGHT, RIGHT, [1.0, 1.0]])
TEXTS = np.array([[4.0, 0.0], UP, LEFT, NOTHING, RIGHT])


@pytest.mark.parametrize("scale", [1, 7])
def test_a_score_is_two_and_a_half_cosines_of_0_or_more(scale):
    found = clip_score(scale * IMAGES, TEXTS / scale)
    np.testing.assert_allclose(found, [2.5, 0, 0, 0, 2.5 / np.sqrt(2)], atol=1e-12)


def test_references_count_by_the_nearest_one():
    # Harmonic means: of 2.5 and 1, of 2.5 and 0, of 0 and 1, of 2.5 and 1 / sqrt(2).
    references = [[UP, RIGHT], [LEFT], [RIGHT], [[1, 1], UP, LEFT]]
    found = ref_clip_score(
        np.array([2.5, 2.5, 0.0, 2.5]), np.array([RIGHT] * 4), [np.array(r) for r in references]
    )
    near = 1 / np.sqrt(2)
    np.testing.assert_allclose(found, [5 / 3.5, 0, 0, 2 * 2.5 * near / (2.5 + near)], atol=1e-12)
    with pytest.raises(ValueError):
        ref_clip_score(np.zeros(2), np.zeros((2, 3)), [np.zeros((1, 3))])
