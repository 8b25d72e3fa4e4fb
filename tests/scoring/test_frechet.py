import numpy as np
import pytest
import scipy.linalg

from synth2_jax.errors import UserError
from synth2_jax.scoring.frechet import FeatureStatistics, frechet_distance

RNG = np.random.default_rng(0)
FEATURES_BD = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 100


def statistics(*batches):
    found = FeatureStatistics()
    for batch in batches:
        found.update(batch)
    return found


def distance(a, b):
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


@pytest.mark.parametrize("cuts", [(), (20,), (1, 2, 49), (0, 25, 50)], ids=str)
def test_batches_add_up_to_numpys_mean_and_covariance(cuts):
    found = statistics(*np.split(FEATURES_BD, cuts))
    assert found.num_images == 50
    np.testing.assert_allclose(found.mean, FEATURES_BD.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(FEATURES_BD.T), rtol=1e-9)


def test_float32_features_far_from_zero_lose_nothing():
    """Sums of squares would: 1e4 squared leaves no digits for a variance of 1e-4."""
    features = np.float32(1e4) + np.float32(0.01) * RNG.normal(size=(2000, 3)).astype(np.float32)
    found = statistics(*np.split(features, 10))
    np.testing.assert_allclose(
        found.covariance, np.cov(features.astype(np.float64).T), rtol=1e-6, atol=1e-12
    )


def test_merged_is_as_seen_by_one():
    first, second = statistics(FEATURES_BD[:30]), statistics(FEATURES_BD[30:])
    first.merge(second)
    np.testing.assert_allclose(first.covariance, np.cov(FEATURES_BD.T), rtol=1e-9)
    empty = FeatureStatistics()
    empty.merge(first)
    empty.merge(FeatureStatistics())
    np.testing.assert_array_equal(empty.mean, first.mean)
    assert empty.num_images == 50 and second.num_images == 20


def test_the_distance_of_normals_of_one_dimension_is_known():
    # (m - n)^2 + (s - t)^2 of standard deviations s and t.
    found = frechet_distance([3.0], [[4.0]], [1.0], [[25.0]])
    assert found == pytest.approx(2**2 + 3**2)


def test_equal_sets_have_no_distance_and_order_does_not_matter():
    a, b = statistics(FEATURES_BD), statistics(2 * FEATURES_BD + 1)
    assert distance(a, a) == pytest.approx(0, abs=1e-8)
    assert distance(a, b) == pytest.approx(distance(b, a)) and distance(a, b) > 1
    shifted = statistics(FEATURES_BD + 3.0)  # which costs its square alone
    assert distance(a, shifted) == pytest.approx(6 * 9)


def test_it_is_that_of_the_matrix_square_root():
    a, b = statistics(FEATURES_BD), statistics(FEATURES_BD**2 / 50)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_are_no_special_case():
    """Covariances without an inverse: against the limit of ones that have it."""
    a, b = statistics(RNG.normal(size=(4, 6))), statistics(RNG.normal(size=(4, 6)) + 1)
    almost = [cov + 1e-9 * np.eye(6) for cov in (a.covariance, b.covariance)]
    root = scipy.linalg.sqrtm(almost[0] @ almost[1]).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(almost[0] + almost[1] - 2 * root)
    assert distance(a, b) == pytest.approx(expected, abs=1e-3)


def test_a_file_comes_back_and_goes_on(tmp_path):
    statistics(FEATURES_BD[:20]).save(tmp_path / "half.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["half.npz"]
    found = FeatureStatistics.load(tmp_path / "half.npz")
    found.update(FEATURES_BD[20:])
    np.testing.assert_allclose(found.covariance, np.cov(FEATURES_BD.T), rtol=1e-9)


def test_a_published_file_has_mu_and_sigma_alone(tmp_path):
    whole = statistics(FEATURES_BD)
    np.savez(tmp_path / "published.npz", mu=whole.mean, sigma=whole.covariance)
    found = FeatureStatistics.load(tmp_path / "published.npz")
    np.testing.assert_array_equal(found.covariance, whole.covariance)
    assert found.num_images is None
    with pytest.raises(ValueError, match="without num_images cannot be added to"):
        found.update(FEATURES_BD)


def test_files_of_something_else_are_one_line(tmp_path):
    path = tmp_path / "found.npz"
    for arrays, message in (
        (None, "no such file, expected feature statistics"),
        ({"mean": np.zeros(3)}, "expected feature statistics, an .npz file of mu and sigma"),
        (
            {"mu": np.zeros(3), "sigma": np.zeros((3, 4))},
            r"sigma of shape \(3, 4\), expected \[D\] and \[D, D\]",
        ),
        ({"mu": np.array([object()]), "sigma": np.eye(1)}, "expected feature statistics"),
    ):
        if arrays is not None:
            np.savez(path, **arrays)
        with pytest.raises(UserError, match=message):
            FeatureStatistics.load(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="expected feature statistics, an .npz file"):
        FeatureStatistics.load(path)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: statistics(FEATURES_BD, np.zeros((2, 5))), "width 5, expected 6 as before"),
        (lambda: statistics(np.zeros(3)), r"shape \(3,\), expected \[B, D\]"),
        (lambda: statistics(FEATURES_BD[:1]).covariance, "1 features have no covariance"),
        (
            lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)),
            r"expected \[D\], \[D, D\] twice",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
