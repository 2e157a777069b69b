import math

import numpy as np
import pytest
from scipy import stats
from simulated import simulated_rows
from statsmodels.stats.multitest import multipletests

from anatogen.downstream.experiment.statistics import (
    compare,
    estimate,
    finished_trials,
    margin_over_seeds,
    scores_by_arm,
    sign_flip_p,
)
from anatogen.downstream.experiment.trials import Trial


def _draw(generator, num_seeds, num_patients, of_seeds, of_patients, of_both):
    """A table (S, P) of mean 0 from the model of seeds and patients."""
    return (
        of_seeds * generator.normal(size=(num_seeds, 1))
        + of_patients * generator.normal(size=(1, num_patients))
        + of_both * generator.normal(size=(num_seeds, num_patients))
    )


def test_bootstrap_over_patients_has_the_closed_form_of_the_standard_error():
    values = np.random.default_rng(0).gamma(2, 0.05, size=(3, 60))
    means = values.mean(axis=0)
    error = means.std() / math.sqrt(60)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    # The standard deviation of 1,000 draws is itself uncertain by 2.2%.
    assert found.deviation == pytest.approx(error, rel=0.08)
    assert found.over_patients == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.35 * error
    )
    assert estimate(values) == found


def test_seeds_are_averaged_within_patients_first():
    """Repeating a seed brings no new patients: nothing over patients changes."""
    values = np.random.default_rng(0).normal(size=(1, 20))
    once, thrice = estimate(values), estimate(np.repeat(values, 3, axis=0))
    assert (once.mean, once.deviation) == pytest.approx((thrice.mean, thrice.deviation))
    assert once.over_patients == pytest.approx(thrice.over_patients)
    assert once.over_seeds is None and thrice.over_seeds is not None


def test_without_differences_between_seeds_the_margin_is_student_s_over_patients():
    patients = np.random.default_rng(0).normal(size=(1, 25))
    expected = stats.t.ppf(0.975, 24) * patients.std(ddof=1) / 5
    assert margin_over_seeds(np.repeat(patients, 3, axis=0)) == pytest.approx(expected)


def test_without_differences_between_patients_the_margin_is_student_s_over_seeds():
    seeds = np.array([[0.1], [0.2], [0.6]])
    expected = stats.t.ppf(0.975, 2) * seeds.std(ddof=1) / math.sqrt(3)
    assert margin_over_seeds(np.repeat(seeds, 25, axis=1)) == pytest.approx(expected)


@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.03])
def test_95_percent_intervals_over_seeds_hold_the_truth_as_often(of_seeds):
    generator = np.random.default_rng(0)
    tables = [_draw(generator, 3, 40, of_seeds, 0.03, 0.02) for _ in range(600)]
    held = np.mean([abs(table.mean()) <= margin_over_seeds(table) for table in tables])
    # Of 600, 95% are held with a standard deviation of 0.9%.
    assert 0.91 <= held <= 0.975


def test_the_interval_over_seeds_is_not_narrower_than_patients_alone():
    generator = np.random.default_rng(0)
    for _ in range(200):
        table = _draw(generator, 3, 12, 0.001, 0.03, 0.02)
        alone = stats.t.ppf(0.975, 11) * table.mean(axis=0).std(ddof=1) / math.sqrt(12)
        # Its variance is never smaller; with more degrees of freedom, Student's factor may be, a little.
        assert margin_over_seeds(table) >= 0.89 * alone
    few = estimate(np.ones((3, 1)))
    assert few.over_patients == (1, 1) and few.over_seeds is None, "one patient says nothing of others"


def test_an_undefined_value_leaves_its_patient_out_and_is_counted():
    values = np.array([[0.5, 0.7, np.nan], [0.5, 0.9, 0.1]])
    found = estimate(values)
    assert (found.mean, found.num_patients, found.num_undefined) == (pytest.approx(0.65), 2, 1)
    assert estimate(np.full((2, 3), np.nan)) is None


@pytest.mark.parametrize("num_patients", [2, 5, 11])
def test_the_paired_test_is_exact_for_few_patients(num_patients):
    differences = np.random.default_rng(num_patients).normal(0.4, 1, num_patients)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip_p(differences) == pytest.approx(expected.pvalue)


def test_the_paired_test_agrees_with_student_s_for_many_patients():
    differences = np.random.default_rng(0).normal(0.25, 1, 60)
    assert sign_flip_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)
    assert sign_flip_p(np.zeros(60)) == 1
    assert 0 < sign_flip_p(np.ones(60)) < 2e-4
    assert sign_flip_p(np.ones(1)) == 1


def test_the_paired_test_is_wrong_as_often_as_it_says():
    generator = np.random.default_rng(1)
    p_values = [sign_flip_p(generator.standard_t(3, size=9), seed) for seed in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_scores_average_cases_of_a_patient_and_leave_out_unfinished_runs():
    rows = simulated_rows({"scratch": [0], "synthetic": [0.03]}, fractions=(0.05,), num_patients=4)
    shared = [
        row.model_copy(update={"patient": "patient_00000"}) if row.case == "case_00001" else row
        for row in rows
    ]
    cut = shared[:-1]
    assert Trial("synthetic", 0.05, 2) not in finished_trials(cut)
    scores = scores_by_arm(cut, "dice", "2")
    assert list(scores["synthetic", 0.05]) == [0, 1]
    assert list(scores["scratch", 0.05]) == [0, 1, 2]
    by_hand = [row.dice["2"] for row in rows if row.arm == "scratch" and row.seed == 1]
    assert scores["scratch", 0.05][1] == pytest.approx(
        [(by_hand[0] + by_hand[1]) / 2, by_hand[2], by_hand[3]]
    )
    mean = scores_by_arm(rows, "dice")["scratch", 0.05][0][0]
    assert mean == pytest.approx((rows[0].dice["1"] + rows[0].dice["2"]) / 2)
    assert scores_by_arm([], "dice") == {}


def test_differences_are_paired_by_seed_and_patient():
    rows = simulated_rows({"scratch": [0], "synthetic": [0.03]}, fractions=(0.05,), num_patients=15)
    # Other orders and seeds that one arm lacks change nothing.
    kept = [row for row in rows if not (row.arm == "scratch" and row.seed == 0)]
    scores = scores_by_arm(kept[::-1], "dice")
    (found,) = compare(scores, [("synthetic", "scratch")])
    one, two = scores["synthetic", 0.05], scores["scratch", 0.05]
    differences = np.array([one[seed] - two[seed] for seed in (1, 2)])
    assert found.difference == estimate(differences)
    assert found.difference.num_seeds == 2
    assert found.p_corrected == sign_flip_p(differences.mean(axis=0))
    (turned,) = compare(scores, [("scratch", "synthetic")])
    assert turned.difference.mean == pytest.approx(-found.difference.mean)
    assert turned.p_corrected == found.p_corrected


def test_all_comparisons_are_corrected_together():
    gains = {"scratch": [0, 0], "synthetic": [0.004, 0.002], "real": [0.003, 0.001]}
    scores = scores_by_arm(simulated_rows(gains, fractions=(0.05, 0.1)), "dice")
    found = compare(scores, [("synthetic", "scratch"), ("real", "scratch"), ("absent", "scratch")])
    assert [(item.arm, item.fraction) for item in found] == [
        ("synthetic", 0.05),
        ("synthetic", 0.1),
        ("real", 0.05),
        ("real", 0.1),
    ]
    alone = []
    for item in found:
        one, two = scores[item.arm, item.fraction], scores["scratch", item.fraction]
        alone.append(sign_flip_p(np.mean([one[seed] - two[seed] for seed in one], axis=0)))
    assert [item.p_corrected for item in found] == list(multipletests(alone, method="holm")[1])
