import numpy as np
import pytest

from synth2_jax.domains.scenes import dataset
from synth2_jax.domains.scenes.scores import has_unseen
from synth2_jax.experiments.gains import estimates, gain, gap_closed, pairs_factor

KEYS = [f"test-{i:06d}" for i in range(40)]
UNSEEN = [key for i, key in enumerate(KEYS) if has_unseen(dataset.scene("test", i))]


def run(score, unseen):
    return {key: unseen if key in UNSEEN else score for key in KEYS}


def test_zero_shot_whole_and_seen_pictures_are_apart_and_seeds_are_paired():
    arms = [[run(100.0, 50.0), run(80.0, 40.0)], [run(110.0, 100.0), run(88.0, 80.0)]]
    found = estimates(gain, arms)
    assert list(found) == ["cider_unseen", "cider", "cider_seen"]
    # The same gain for each seed and each picture: an interval of a point.
    for part, expected in (("cider_unseen", 1.0), ("cider_seen", 0.1)):
        assert found[part].pop("seeds") == 2
        assert list(found[part].values()) == pytest.approx([expected] * 3)
    whole = found["cider"]
    assert 0.1 < whole["low"] < whole["value"] < whole["high"] < 1.0


def test_a_part_without_pictures_has_no_gain():
    seen = {key: 1.0 for key in KEYS if key not in UNSEEN}
    found = estimates(gain, [[seen], [seen]])
    assert found["cider_unseen"] is None
    assert (
        found["cider"] == found["cider_seen"] == {"value": 0.0, "low": 0.0, "high": 0.0, "seeds": 1}
    )


def test_a_baseline_of_nothing_gives_no_number():
    found = estimates(gain, [[dict.fromkeys(KEYS, 0.0)], [dict.fromkeys(KEYS, 2.0)]])
    assert found["cider"] == {"value": None, "low": None, "high": None, "seeds": 1}


@pytest.mark.parametrize(
    "before, after, bound, share",
    [(50.0, 60.0, 90.0, 0.25), (40.0, 30.0, 80.0, -0.25), (40.0, 40.0, 40.0, 0.0)],
)
def test_the_share_of_the_gap_that_is_closed(before, after, bound, share):
    assert gap_closed(np.array([before, after, bound])) == pytest.approx(share)


@pytest.mark.parametrize(
    "score, number, factor",
    [
        (10.0, 100, 1.0),
        (15.0, 100, 2**0.5),  # half of the way from 100 to 200, in their logarithm
        (20.0, 100, 2.0),
        (25.0, 200, 2**0.5),
        (30.0, 100, 4.0),
        (30.1, 100, np.inf),
        (5.0, 100, 1.0),  # the smallest number already has it
        (5.0, 400, 0.25),
        (15.0, 400, 2**0.5 / 4),  # synthetic pairs that harm
    ],
)
def test_the_real_pictures_that_real_only_needs(score, number, factor):
    statistic = pairs_factor((100, 200, 400), number)
    assert statistic(np.array([10.0, 20.0, 30.0, score])) == pytest.approx(factor)


def test_the_first_number_that_reaches_a_score_counts_where_more_pictures_score_less():
    statistic = pairs_factor((100, 200, 400, 800), 100)
    assert statistic(np.array([10.0, 20.0, 12.0, 30.0, 19.0])) == pytest.approx(2**0.9)
    many = statistic(np.array([[10.0, 20.0, 12.0, 30.0, 20.0], [1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert many.tolist() == [pytest.approx(2.0), np.inf]


def test_a_factor_beyond_the_measured_numbers_has_a_lower_bound_alone():
    real = [[run(10.0, 10.0)], [run(20.0, 20.0)]]
    found = estimates(pairs_factor((100, 200), 100), [*real, [run(25.0, 30.0)]])
    assert found["cider"] == {"value": None, "low": None, "high": None, "seeds": 1}
    found = estimates(pairs_factor((100, 200), 100), [*real, [run(15.0, 15.0)]])
    assert found["cider"]["value"] == pytest.approx(2**0.5)
