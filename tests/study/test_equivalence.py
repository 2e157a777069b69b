import numpy as np
import pytest
from scipy import stats
from simulated_readers import ordinal_answers, simulated_ratings
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind

from anatogen.core.errors import UserError
from anatogen.study.analysis.equivalence import (
    check_margins,
    compared,
    difference,
    equivalence_statistics,
    verdict,
)
from anatogen.study.analysis.statistic import Equivalence, pick_one

NUMBER = 50
SOURCES = ["real"] * NUMBER + ["synthetic"] * NUMBER
REAL = np.array([source == "real" for source in SOURCES])


def draw(generator, quality, num_readers=2):
    cases = np.where(REAL, 0.8, quality) + generator.standard_normal(2 * NUMBER)
    return ordinal_answers(generator, cases, num_readers)


def test_without_gaps_it_is_welchs_test_of_case_means():
    answers = draw(np.random.default_rng(0), 0.4, 3)
    found = difference(answers, ~REAL, REAL)
    real, synthetic = answers[:, REAL].mean(axis=0), answers[:, ~REAL].mean(axis=0)
    expected = stats.ttest_ind(synthetic, real, equal_var=False)
    assert found.value == pytest.approx(synthetic.mean() - real.mean())
    assert found.value / found.error == pytest.approx(expected.statistic)
    assert found.freedom == pytest.approx(expected.df)
    assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    p, _, _ = ttost_ind(synthetic, real, -0.5, 0.5, usevar="unequal")
    assert found.equivalence_p(0.5) == pytest.approx(p)


def test_the_interval_decides_as_the_test_does():
    generator = np.random.default_rng(1)
    for quality in np.linspace(-0.5, 1.5, 30):
        found = difference(draw(generator, quality), ~REAL, REAL)
        inside = verdict(*found.interval(0.9), 0.3) is Equivalence.EQUIVALENT
        assert inside == (found.equivalence_p(0.3) < 0.05)
    compare = CompareMeans(DescrStatsW([1.0, 2, 4, 4]), DescrStatsW([3.0, 4, 4, 2]))
    assert verdict(*compare.tconfint_diff(0.1, usevar="unequal"), 0.1) == "undecided"
    assert (verdict(-0.9, -0.6, 0.5), verdict(0.6, 0.9, 0.5)) == ("worse", "better")


def test_a_strict_reader_who_missed_real_cases_shifts_nothing():
    answers = np.full((2, 2 * NUMBER), 4.0)
    answers[0] = 2
    assert difference(answers, ~REAL, REAL).value == 0
    answers[0, 5:NUMBER] = np.nan
    # The mean of all real answers is now far above that of synthetic ones.
    assert difference(answers, ~REAL, REAL).value == 0


def test_the_variance_with_gaps_is_that_of_repeated_studies():
    generator = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(600):
        answers = draw(generator, 0.4, 3)
        answers[generator.random(answers.shape) < 0.3] = np.nan
        found = difference(answers, ~REAL, REAL)
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(np.square(errors)) == pytest.approx(np.var(values, ddof=1), rel=0.15)


def test_equal_answers_leave_the_doubt_that_few_cases_leave():
    assert difference(np.full((2, 2 * NUMBER), 4.0), ~REAL, REAL).equivalence_p(0.15) < 0.05
    few = np.full((2, 8), 4.0)
    half = np.arange(8) < 4
    found = difference(few, ~half, half)
    assert found.value == 0 and found.equivalence_p(0.5) > 0.05
    # As if one case of each four had got another answer.
    assert found.error == pytest.approx(np.sqrt(2 * np.var([0, 0, 0, 1], ddof=1) / 4))


def test_the_test_errs_in_five_of_a_hundred_studies_at_the_margin():
    generator = np.random.default_rng(3)
    quality = 0.1
    large = np.random.default_rng(4).standard_normal(400_000)
    at_margin = {}
    real = ordinal_answers(np.random.default_rng(5), 0.8 + large, 2)
    synthetic = ordinal_answers(np.random.default_rng(6), quality + large, 2)
    at_margin["mean"] = real.mean() - synthetic.mean()
    at_margin["best"] = (real == 4).mean() - (synthetic == 4).mean()
    found = {"mean": 0, "best": 0}
    for _ in range(1000):
        answers = draw(generator, quality)
        found["mean"] += difference(answers, ~REAL, REAL).equivalence_p(at_margin["mean"]) < 0.05
        best = (answers == 4).astype(float)
        found["best"] += difference(best, ~REAL, REAL).equivalence_p(at_margin["best"]) < 0.05
    # Two standard errors of a share of 5% in 1,000 are 1.4%.
    assert all(36 <= count <= 68 for count in found.values()), found


def test_the_test_finds_equivalence_as_often_as_its_power_says():
    generator = np.random.default_rng(7)
    found, error = 0, []
    for _ in range(400):
        each = difference(draw(generator, 0.8), ~REAL, REAL)
        found += each.equivalence_p(0.3) < 0.05
        error.append(each.error)
    # Of a normal difference of mean 0: 2 Phi(margin / error - 1.66) - 1.
    power = 2 * stats.norm.cdf(0.3 / np.mean(error) - stats.t.ppf(0.95, 98)) - 1
    assert 0.3 < power < 0.95
    assert found / 400 == pytest.approx(power, abs=0.06)


def test_each_pair_of_sources_is_compared_once():
    values = np.tile([[4.0, 3.0, 3.0, 4.0, 2.0, 2.0]], (2, 1))
    ratings = simulated_ratings(
        values, ["real", "real", "reconstructed", "reconstructed", "synthetic", "synthetic"]
    )
    assert compared(ratings) == [
        ("synthetic", "real"),
        ("reconstructed", "real"),
        ("synthetic", "reconstructed"),
    ]
    numbers = equivalence_statistics(ratings)
    assert len(numbers) == 6
    assert pick_one(numbers, name="mean_difference", source="synthetic", reference="real").value == -1.5
    assert pick_one(numbers, name="best_share_difference", source="synthetic", reference="real").value == -0.5


def test_nothing_to_compare_has_a_reason():
    assert equivalence_statistics(simulated_ratings(np.ones((1, 3)), ["real"] * 3)) == []
    (mean, _) = equivalence_statistics(simulated_ratings(np.array([[1.0, np.nan]]), ["real", "synthetic"]))
    assert mean.value is None and "no reader" in mean.note
    (mean, _) = equivalence_statistics(simulated_ratings(np.array([[1.0, 2.0]]), ["real", "synthetic"]))
    assert mean.value is None and "2 answered cases" in mean.note


@pytest.mark.parametrize(("margin", "share"), [(0, 0.1), (-1, 0.1), (float("nan"), 0.1), (0.5, 0), (0.5, 1)])
def test_margins_that_no_test_can_have(margin, share):
    with pytest.raises(UserError, match="margin is"):
        check_margins(margin, share)
