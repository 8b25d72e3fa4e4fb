import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.models.mask_schedule import SCHEDULES, mask_ratio, masked_counts


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_runs_from_one_to_zero(name):
    gamma = mask_ratio(name, np.linspace(0, 1, 101))
    assert gamma[0] == 1 and gamma[-1] == 0
    assert (np.diff(gamma) < 0).all()
    traced = jax.jit(lambda r: mask_ratio(name, r))(jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(traced, gamma, atol=1e-6)
    assert traced[0] == 1 and traced[-1] == 0


def test_known_values():
    assert mask_ratio("cosine", 2 / 3) == pytest.approx(0.5)
    assert mask_ratio("square", 0.5) == 0.75
    assert mask_ratio("cubic", 0.5) == 0.875
    assert mask_ratio("sqrt", 0.25) == 0.5


def test_mean_of_cosine_is_the_published_mask_rate():
    assert mask_ratio("cosine", (np.arange(1000) + 0.5) / 1000).mean() == pytest.approx(
        0.637, abs=1e-3
    )


def test_literal_counts():
    np.testing.assert_array_equal(masked_counts("linear", 10, 10), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(masked_counts("cosine", 4, 16), [14, 11, 6, 0])
    np.testing.assert_array_equal(masked_counts("cosine", 1, 16), [0])
    # floor(N gamma) would be 7 4 2 0 0 0 here: convex schedules run out of tokens before they run
    # out of steps.
    np.testing.assert_array_equal(masked_counts("sqrt", 8, 8), [7, 6, 5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("num_steps", "num_tokens"), [(1, 1), (2, 2), (8, 16), (12, 256), (16, 16), (64, 64)]
)
def test_every_step_reveals_and_every_step_but_the_last_leaves(name, num_steps, num_tokens):
    counts = masked_counts(name, num_steps, num_tokens)
    assert (np.diff(np.concatenate([[num_tokens], counts])) <= -1).all()
    assert (counts[:-1] >= 1).all() and counts[-1] == 0


def test_counts_are_the_floor_wherever_the_bounds_allow_it():
    wanted = [int(256 * np.cos(np.pi / 2 * (t + 1) / 12) + 1e-9) for t in range(12)]
    np.testing.assert_array_equal(masked_counts("cosine", 12, 256), wanted)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="cosine"):
        mask_ratio("cosin", 0.5)
    with pytest.raises(UserError, match="found 17, expected 1 to 16"):
        masked_counts("cosine", 17, 16)
