"""Distances against closed forms, brute force and SciPy; unbiased ones are 0 on average, intervals cover."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from anatogen.evaluation.fidelity.distances import (
    frechet_distance,
    histogram_distance,
    median_bandwidth,
    polynomial_gram,
    prdc_of_distances,
    rbf_gram,
    spectrum_distance,
    squared_distances,
    unbiased_mmd,
)
from anatogen.evaluation.fidelity.resampling import extrapolated, jackknife, over_splits, random_splits


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    gram = polynomial_gram(np.concatenate((x, y)))
    return unbiased_mmd(gram, np.arange(len(x)), np.arange(len(x), len(gram)))


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5):
    both = np.concatenate((real, fake))
    places = np.arange(len(both))
    return prdc_of_distances(squared_distances(both, both), places[: len(real)], places[len(real) :], k)


def _exact_sample(mean: np.ndarray, covariance: np.ndarray, n: int, generator) -> np.ndarray:
    """Draws whose own mean and covariance are exactly these."""
    x = generator.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
    return x @ np.linalg.cholesky(covariance).T + mean


class TestFrechet:
    def test_closed_form_of_commuting_gaussians(self, generator):
        a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
        x = _exact_sample(np.zeros(3), np.diag(a), 50, generator)
        y = _exact_sample(np.array([1.0, 2.0, 0.0]), np.diag(b), 70, generator)
        expected = 5 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 6), (200, 150, 12), (14, 60, 10)])
    def test_against_scipy(self, generator, n, m, d):
        x = generator.standard_normal((n, d)) @ generator.standard_normal((d, d))
        y = generator.standard_normal((m, d)) @ generator.standard_normal((d, d)) + 1
        first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        root = np.trace(sqrtm(first @ second)).real
        expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("n", [5, 300])
    def test_zero_on_itself_and_symmetric(self, generator, n):
        x, y = generator.standard_normal((n, 20)), generator.standard_normal((n, 20)) + 1
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)

    def test_fewer_scans_than_features(self, generator):
        """Rank-deficient covariances in 50 dimensions equal full-rank ones of the 3 that vary."""
        low = [generator.standard_normal((20, 3)) for _ in range(2)]
        basis = np.linalg.qr(generator.standard_normal((50, 3)))[0]
        high = [x @ basis.T for x in low]
        assert frechet_distance(*high) == pytest.approx(frechet_distance(*low), rel=1e-8)

    def test_extrapolation_removes_most_of_the_bias(self, generator):
        """Over sets of equal distribution, whose distance is 0 with endless scans."""
        plain, endless = [], []
        for seed in range(12):
            pool = generator.standard_normal((120, 4, 6))

            def measure(a, b, pool=pool):
                return np.array([frechet_distance(pool[a].reshape(-1, 6), pool[b].reshape(-1, 6))])

            first, second = np.arange(60), np.arange(60, 120)
            plain.append(measure(first, second)[0])
            endless.append(extrapolated(measure, first, second, seed, num_draws=3)[0])
        assert min(plain) > 0
        error = np.std(endless, ddof=1) / np.sqrt(len(endless))
        assert abs(np.mean(endless)) < max(0.25 * np.mean(plain), 3 * error)
        assert abs(np.mean(endless)) < 0.5 * np.mean(plain)


class TestKernelDistance:
    def test_brute_force(self, generator):
        x, y = generator.standard_normal((4, 3, 5)), generator.standard_normal((3, 3, 5)) + 0.5

        def k(u, v):
            return (u @ v / 5 + 1) ** 3

        def within(z):
            pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
            return np.mean([k(u, v) for i, j in pairs for u in z[i] for v in z[j]])

        between = np.mean([k(u, v) for a in x for u in a for b in y for v in b])
        assert kernel_distance(x, y) == pytest.approx(within(x) + within(y) - 2 * between, rel=1e-10)

    def test_the_gram_in_blocks_is_the_gram(self, generator, monkeypatch):
        x = generator.standard_normal((7, 3, 5))
        whole = polynomial_gram(x)
        monkeypatch.setattr("anatogen.evaluation.fidelity.distances._BLOCK", 1)
        np.testing.assert_allclose(polynomial_gram(x), whole, rtol=1e-12)

    @pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
    def test_unbiased_for_equal_distributions(self, generator, kernel):
        """Slices of a scan share an offset: counting their pairs would bias it."""
        draws = []
        for _ in range(400):
            x = generator.standard_normal((18, 1, 4)) + 0.3 * generator.standard_normal((18, 3, 4))
            gram = polynomial_gram(x) if kernel == "polynomial" else rbf_gram(x[:, 0], 2.0)
            draws.append(unbiased_mmd(gram, np.arange(10), np.arange(10, 18)))
        error = np.std(draws, ddof=1) / np.sqrt(len(draws))
        assert abs(np.mean(draws)) < 3 * error

    def test_apart_sets_are_apart(self, generator):
        x = generator.standard_normal((60, 3))
        x[30:] += 2
        gram = rbf_gram(x, median_bandwidth(x[:30]))
        assert unbiased_mmd(gram, np.arange(30), np.arange(30, 60)) > 0.2
        assert abs(unbiased_mmd(gram, np.arange(0, 30, 2), np.arange(1, 30, 2))) < 0.1

    def test_median_bandwidth(self):
        assert median_bandwidth(np.array([[0.0], [1.0], [5.0]])) == 4
        assert median_bandwidth(np.ones((3, 2))) == 1


class TestPrdc:
    def test_hand_made_set(self):
        """On a line, with one neighbour: real balls have radius 1, 1 and 9, fake ones 10.5, 18 and 10.5."""
        real = np.array([[0.0], [1.0], [10.0]])
        # In the balls of 1 and 10; in none; in that of 10.
        fake = np.array([[1.5], [30.0], [12.0]])
        found = prdc(real, fake, k=1)
        assert found.precision == pytest.approx(2 / 3)
        assert found.density == pytest.approx(3 / 3)
        assert found.coverage == pytest.approx(2 / 3)
        assert found.recall == 1

    def test_equal_sets_are_perfect_and_far_ones_nothing(self, generator):
        x = generator.standard_normal((40, 3))
        assert prdc(x, x)[:2] == (1, 1) and prdc(x, x).coverage == 1
        assert prdc(x, x + 100) == (0, 0, 0, 0)

    def test_collapse_costs_recall_and_coverage_but_not_precision(self, generator):
        real = generator.standard_normal((100, 3))
        collapsed = 0.01 * generator.standard_normal((100, 3))
        found = prdc(real, collapsed)
        assert found.precision > 0.95 and found.recall < 0.1 and found.coverage < 0.5

    def test_density_is_one_on_average(self, generator):
        pairs = [generator.standard_normal((2, 50, 4)) for _ in range(40)]
        assert np.mean([prdc(a, b).density for a, b in pairs]) == pytest.approx(1, abs=0.05)


def test_squared_distances_keep_their_digits_far_from_the_origin(generator):
    x = generator.standard_normal((5, 3)) + 1e6
    expected = np.square(x[:, None] - x[None]).sum(axis=-1)
    found = squared_distances(x, x)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert (np.diag(found) == 0).all()


def test_histogram_distance_is_wasserstein(generator):
    values = [generator.normal(-0.2, 0.2, 5000), generator.normal(0.3, 0.1, 5000)]
    rows = [np.histogram(v, bins=1024, range=(-1, 1))[0][None].astype(float) for v in values]
    assert histogram_distance(*rows) == pytest.approx(wasserstein_distance(*values), abs=2 / 1024)


def test_spectrum_distance_of_a_factor(generator):
    power = generator.uniform(1, 2, (4, 10))
    assert spectrum_distance(10 * power, power) == pytest.approx(1, abs=1e-9)
    assert spectrum_distance(power, power) == 0


class TestResampling:
    def test_splits_are_disjoint_and_equal(self):
        for split in random_splits(21, 8, 5, seed=0):
            assert len(split.real) == len(split.other_real) == len(split.synthetic) == 8
            assert not set(split.real) & set(split.other_real)
            assert min(split.synthetic) >= 21 and max(split.synthetic) < 29
        again = random_splits(21, 8, 5, seed=0)
        assert all((a.real == b.real).all() for a, b in zip(again, random_splits(21, 8, 5, 0), strict=True))

    def test_the_floor_of_equal_distributions_is_the_value(self, generator):
        pool = generator.standard_normal((160, 4))
        (value,), (floor,) = over_splits(
            lambda a, b: np.array([frechet_distance(pool[a], pool[b])]), random_splits(80, 80, 10, 0)
        )
        assert floor.low < value.value < floor.high

    def test_the_jackknife_interval_of_a_mean_is_the_known_one(self, generator):
        x = generator.standard_normal(200)
        (found,) = jackknife(
            lambda a, b: np.array([x[a].mean() - x[b].mean()]), np.arange(100), np.arange(100, 200), 0, 100
        )
        error = np.sqrt(x[:100].var(ddof=1) / 100 + x[100:].var(ddof=1) / 100)
        assert found.high - found.value == pytest.approx(1.96 * error, rel=1e-6)

    def test_jackknife_intervals_cover(self, generator):
        """The true squared distance of two Gaussians, 4 apart in one of two directions, is 16."""
        hits = 0
        for trial in range(150):
            pool = generator.standard_normal((100, 2))
            pool[50:, 0] += 4
            (found,) = jackknife(
                lambda a, b, pool=pool: np.array([frechet_distance(pool[a], pool[b])]),
                np.arange(50),
                np.arange(50, 100),
                trial,
                10,
            )
            hits += found.low <= 16 <= found.high
        assert hits >= 0.88 * 150
