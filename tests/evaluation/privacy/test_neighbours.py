"""Nearest neighbours: thresholds that hold, sets of one size, and the binomial in closed form."""

from math import comb

import numpy as np
import pytest

from anatogen.evaluation.privacy.neighbours import (
    closer_to_train,
    distance_ratios,
    exceedance_p_value,
    memorised_share,
    num_cross_fitted,
    share_above,
    unseen_closer_to_train,
    upper_threshold,
)


def _unit(rng: np.random.Generator, number: int) -> np.ndarray:
    points = rng.standard_normal((number, 6))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize(("number", "rank"), [(19, 19), (39, 38), (99, 95), (100, 96), (10, 10)])
def test_the_threshold_is_the_value_of_the_conformal_rank(number, rank):
    values = np.random.default_rng(0).permutation(number) + 1.0
    assert upper_threshold(values) == rank


def test_a_further_draw_exceeds_the_threshold_in_one_of_twenty_at_most():
    """The closed form: with n = 39 values, 2 of the 40 places of a new one lie above the 38th."""
    draws = np.random.default_rng(0).standard_normal((20_000, 40))
    above = [row[-1] > np.sort(row[:-1])[37] for row in draws]
    assert np.mean(above) == pytest.approx(0.05, abs=0.005)
    found = [row[-1] > upper_threshold(row[:-1]) for row in draws[:2000]]
    assert found == above[:2000]


def test_the_chance_of_exceedances_is_that_of_their_places():
    """Of 39 null values the 38th is the threshold, so two of 41 lie above if both are among the top three."""
    assert exceedance_p_value(1, 1, 39) == pytest.approx(2 / 40)
    assert exceedance_p_value(2, 2, 39) == pytest.approx(comb(3, 2) / comb(41, 2))
    assert exceedance_p_value(0, 50, 39) == 1
    # Above the highest of four: one in five is expected, and 40% are no surprise.
    assert exceedance_p_value(1, 1, 4) == pytest.approx(1 / 5)
    assert exceedance_p_value(20, 50, 4) > 0.1


def test_independent_scans_are_cleared_and_copies_counted():
    rng = np.random.default_rng(1)
    null = rng.standard_normal(200)
    same = share_above(rng.standard_normal(200), null, 0)
    assert same.low < 0.05 < same.high
    copies = share_above(np.concatenate([rng.standard_normal(100), np.full(100, 9.0)]), null, 0)
    assert copies.value == pytest.approx(0.52, abs=0.04) and copies.low > 0.4
    assert num_cross_fitted(null, 0) / 200 == pytest.approx(0.05, abs=0.03)


def test_ratios_of_distances():
    similarities = np.array([[0.9, 0.5, 0.0], [1.0, 0.2, 0.6], [0.3, 0.3, 0.1], [1.0, 1.0, 0.0]])
    assert np.allclose(distance_ratios(similarities), [0.1 / 0.5, 0.0, 1.0, 1.0])


def test_the_p_value_is_that_of_the_binomial():
    """Nine of ten scans closer to training scans, whatever the draw: P(at least 9 of 10), doubled."""
    to_train, to_holdout = np.full((10, 30), 0.9), np.full((10, 20), 0.5)
    to_train[0] = 0.1
    share, p_value = closer_to_train(to_train, to_holdout, 0)
    assert share.value == pytest.approx(0.9)
    assert p_value == pytest.approx(2 * (comb(10, 9) + comb(10, 10)) / 2**10)


def test_a_large_training_set_is_not_nearer_for_its_size():
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(20):
        made, train, holdout = _unit(rng, 40), _unit(rng, 200), _unit(rng, 20)
        assert ((made @ train.T).max(1) > (made @ holdout.T).max(1)).mean() > 0.7
        shares.append(closer_to_train(made @ train.T, made @ holdout.T, 0)[0].value)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    floors = []
    for _ in range(20):
        train, holdout = _unit(rng, 200), _unit(rng, 40)
        floors.append(unseen_closer_to_train(holdout @ train.T, holdout @ holdout.T, 0).value)
    assert np.mean(floors) == pytest.approx(0.5, abs=0.06)


def test_training_scans_are_memorised_when_synthetic_scans_lie_on_them():
    rng = np.random.default_rng(3)
    train, holdout, fresh = _unit(rng, 60), _unit(rng, 60), _unit(rng, 200)
    clear = memorised_share(train @ fresh.T, train @ holdout.T, 0)
    assert clear.low < 0.05 < clear.high
    copied = memorised_share(train @ np.concatenate([train[:30], fresh[:30]]).T, train @ holdout.T, 0)
    assert copied.value == pytest.approx(0.5, abs=0.05)
