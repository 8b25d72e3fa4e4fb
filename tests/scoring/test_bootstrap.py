import numpy as np
import pytest

from synth2_jax.scoring.bootstrap import Estimate, estimate, resampled_means


def difference(means):
    return means[..., 1] - means[..., 0]


def gain(means):
    return means[..., 1] / means[..., 0] - 1


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_each_draw_is_a_sample_of_seeds_and_of_the_same_images_for_all(rng, num_seeds):
    """By loops: every sampled seed is a row, every sampled image a column of all arms and seeds."""
    scores_ASI = rng.normal(size=(2, num_seeds, 5))
    draws = np.random.default_rng(3)
    seeds = draws.multinomial(num_seeds, [1 / num_seeds] * num_seeds, 20)
    images = draws.multinomial(5, [0.2] * 5, 20)
    for found_A, seeds_S, images_I in zip(
        resampled_means(scores_ASI, 20, seed=3), seeds, images, strict=True
    ):
        for arm in range(2):
            by_seed = []
            for rows in scores_ASI[arm]:
                taken = [
                    score for score, count in zip(rows, images_I, strict=True) for _ in range(count)
                ]
                assert len(taken) == 5
                by_seed.append(sum(taken) / 5)
            mean = sum(by_seed) / num_seeds
            sampled = [m for m, count in zip(by_seed, seeds_S, strict=True) for _ in range(count)]
            moved = sum(sampled) / num_seeds - mean
            if num_seeds > 1:
                moved *= (num_seeds / (num_seeds - 1)) ** 0.5
            assert found_A[arm] == pytest.approx(mean + moved)


def test_the_spread_over_seeds_alone_is_that_of_their_mean():
    """Without the stretch it would be (S - 1) / S of the unbiased variance."""
    scores_ASI = np.repeat(np.array([[[1.0], [2.0], [6.0]]]), 4, axis=2)
    drawn = resampled_means(scores_ASI, 20_000, seed=0)[:, 0]
    assert drawn.mean() == pytest.approx(3.0, abs=0.03)
    assert drawn.var() == pytest.approx(np.var([1, 2, 6], ddof=1) / 3, rel=0.03)


def test_identical_arms_have_no_gain_in_any_draw(rng):
    scores_SI = rng.gamma(2, 50, size=(3, 40))
    for statistic in (difference, gain):
        assert estimate(statistic, [scores_SI, scores_SI]) == Estimate(0.0, 0.0, 0.0)


def test_a_gain_that_is_the_same_everywhere_has_an_interval_of_a_point(rng):
    scores_SI = rng.gamma(2, 50, size=(3, 40))
    found = estimate(gain, [scores_SI, 1.25 * scores_SI])
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize("num_seeds, num_images", [(1, 9), (1, 100), (2, 50), (5, 7)])
def test_the_interval_holds_the_value_and_shrinks_with_its_level(rng, num_seeds, num_images):
    scores = rng.gamma(2, 50, size=(2, num_seeds, num_images))
    found = {level: estimate(gain, scores, level=level) for level in (0.5, 0.95)}
    assert found[0.95].low <= found[0.5].low <= found[0.5].value <= found[0.5].high
    assert found[0.5].high <= found[0.95].high
    assert found[0.95] == estimate(gain, scores) != estimate(gain, scores, seed=1)


def test_pairing_takes_out_how_hard_the_images_are(rng):
    hard_I = rng.normal(100, 50, size=200)
    arms = [hard_I + rng.normal(size=(1, 200)), hard_I + 5 + rng.normal(size=(1, 200))]
    paired = estimate(difference, arms)
    unpaired = estimate(difference, [arms[0], arms[1][:, rng.permutation(200)]])
    assert 4 < paired.low < 5 < paired.high < 6
    assert unpaired.high - unpaired.low > 10 * (paired.high - paired.low)


def coverage(rng, num_seeds, seed_spread, trials=200):
    """The share of intervals that hold a gain of 1, with seeds, images and scores that differ."""
    covered = 0
    for _ in range(trials):
        gains_SI = (
            1
            + seed_spread * rng.normal(size=(num_seeds, 1))
            + 0.7 * rng.normal(size=(1, 60))
            + 0.7 * rng.normal(size=(num_seeds, 60))
        )
        control_SI = rng.normal(10, 5, size=(1, 60)) + rng.normal(size=(num_seeds, 1))
        found = estimate(difference, [control_SI + 0 * gains_SI, control_SI + gains_SI], draws=200)
        covered += found.low <= 1 <= found.high
    return covered / trials


@pytest.mark.parametrize("num_seeds, seed_spread", [(1, 0.0), (3, 0.1), (5, 0.1), (10, 0.3)])
def test_intervals_cover_the_truth_as_often_as_they_say(rng, num_seeds, seed_spread):
    # Three standard deviations of a share of 95 % in 200 trials are 4.6 %.
    assert 0.90 <= coverage(rng, num_seeds, seed_spread) <= 0.99


def test_one_seed_covers_the_images_alone_and_more_seeds_cover_more(rng):
    """Why pages say what intervals are over: seeds differ here by more than the images' mean."""
    one, ten = (coverage(rng, num_seeds, 0.3) for num_seeds in (1, 10))
    assert one < 0.75 and ten - one > 0.15


def test_a_statistic_may_be_infinite_but_not_nan(rng):
    scores = rng.normal(size=(2, 2, 10))
    found = estimate(lambda means: np.where(difference(means) > 0, np.inf, 1.0), scores)
    assert (found.low, found.high) == (1.0, np.inf)
    with pytest.raises(ValueError, match="NaN for 2000 of 2000 draws"):
        estimate(lambda means: means[..., 0] * np.nan, scores)


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2, 3)])
def test_scores_of_nothing_have_no_interval(shape):
    with pytest.raises(ValueError, match="expected finite f64"):
        estimate(difference, np.zeros(shape))


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="expected finite f64"):
        estimate(difference, [[[1.0, np.nan]], [[1.0, 2.0]]])
