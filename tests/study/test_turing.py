import itertools
from functools import partial

import numpy as np
import pytest
from scipy import stats
from simulated_readers import simulated_ratings, simulated_rows
from sklearn.metrics import roc_auc_score

from anatogen.study.analysis import turing as turing_module
from anatogen.study.analysis.intervals import case_weights
from anatogen.study.analysis.ratings import ratings_of
from anatogen.study.analysis.statistic import pick, pick_one
from anatogen.study.analysis.turing import (
    guessing_p,
    pair_statistics,
    roc_curve,
    signed_scores,
    turing_statistics,
)
from anatogen.study.questions import load_protocols

NAN = np.nan
TURING, FORCED = load_protocols(["turing", "2afc"])
ASKED = TURING.question("real_or_synthetic")


def turing(answers, confidence, sources):
    ratings = simulated_ratings(answers, sources, ASKED)
    return ratings, simulated_ratings(confidence, sources, TURING.question("confidence"))


def test_accuracy_and_what_was_called_real():
    sources = ["real"] * 4 + ["reconstructed"] * 2 + ["synthetic"] * 4
    answers = np.array([[1, 1, 1, 0, 1, 0, 0, 0, 1, NAN]])
    numbers = turing_statistics(*turing(answers, np.full((1, 10), 50.0), sources), 0)
    accuracy = pick_one(numbers, name="accuracy", reader="reader 0")
    assert accuracy.value == pytest.approx(5 / 7) and accuracy.num_answers == 7
    exact = stats.binomtest(5, 7).proportion_ci(method="exact")
    assert (accuracy.low, accuracy.high) == pytest.approx((exact.low, exact.high))
    shares = {number.source: number.value for number in pick(numbers, name="called_real", reader="")}
    assert shares == {"real": 0.75, "reconstructed": 0.5, "synthetic": pytest.approx(1 / 3)}


def test_the_area_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    sources = ["real"] * 30 + ["synthetic"] * 30
    answers = (generator.random((2, 60)) < np.where(np.arange(60) < 30, 0.7, 0.4)).astype(float)
    confidence = generator.integers(0, 5, (2, 60)) * 25.0
    ratings, sure = turing(answers, confidence, sources)
    numbers = turing_statistics(ratings, sure, 0)
    scores, truth = signed_scores(ratings, sure), ratings.of("real")
    each = [roc_auc_score(truth, line) for line in scores]
    for reader, expected in enumerate(each):
        assert pick_one(numbers, name="auc", reader=f"reader {reader}").value == pytest.approx(expected)
    together = pick_one(numbers, name="auc", reader="")
    assert together.value == pytest.approx(np.mean(each))
    assert together.low < together.value < together.high
    pooled = roc_auc_score(np.tile(truth, 2), scores.ravel())
    assert pick_one(numbers, name="auc_pooled", reader="").value == pytest.approx(pooled)
    false_rate, true_rate = roc_curve(scores, ratings.of("real"), ratings.of("synthetic"))
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(pooled)


def test_confidence_is_signed_by_the_answer():
    ratings, sure = turing(np.array([[1, 0, 1, NAN]]), np.array([[80, 80, NAN, 10.0]]), ["real"] * 4)
    assert np.array_equal(signed_scores(ratings, sure), [[80, -80, NAN, NAN]], equal_nan=True)
    assert np.array_equal(signed_scores(ratings, None), [[1, -1, 1, NAN]], equal_nan=True)


def test_a_reader_without_answers_and_a_study_without_synthetic_cases():
    sources = ["real"] * 6 + ["synthetic"] * 6
    answers = np.stack([np.full(12, NAN), np.tile([1.0, 0.0], 6)])
    numbers = turing_statistics(*turing(answers, np.full((2, 12), 50.0), sources), 0)
    assert pick_one(numbers, name="auc", reader="reader 0").value is None
    assert pick_one(numbers, name="accuracy", reader="reader 0").note == "no answers"
    assert pick_one(numbers, name="auc", reader="").value == pytest.approx(0.5)
    lone = turing_statistics(*turing(np.ones((1, 4)), np.ones((1, 4)), ["synthetic"] * 4), 0)
    assert all(number.value is None and number.note for number in pick(lone, name="auc"))


def test_the_interval_of_the_mean_area_holds_it_as_often_as_it_says(monkeypatch):
    """The binormal model: the area is Phi(shift / sqrt(2)), whatever is shared between readers."""
    monkeypatch.setattr(turing_module, "case_weights", partial(case_weights, num_resamples=400))
    generator = np.random.default_rng(1)
    sources = ["real"] * 25 + ["synthetic"] * 25
    truth = stats.norm.cdf(1 / np.sqrt(2))
    held = 0
    for trial in range(200):
        shared = generator.standard_normal(50)
        seen = np.sqrt(0.5) * shared + np.sqrt(0.5) * generator.standard_normal((2, 50))
        seen[:, :25] += 1
        answers, confidence = (seen > 0.5).astype(float), np.abs(seen - 0.5) * 1e6
        found = pick_one(
            turing_statistics(*turing(answers, confidence, sources), trial), name="auc", reader=""
        )
        held += found.low <= truth <= found.high
    assert 178 <= held <= 200


def test_one_readers_choices_are_tested_as_binomial():
    for right in range(11):
        answers = (np.arange(10) < right).astype(float)[None]
        assert guessing_p(answers) == pytest.approx(stats.binomtest(right, 10).pvalue)


def test_choices_of_several_readers_are_tested_by_changing_pairs_around():
    generator = np.random.default_rng(0)
    right = (generator.random((3, 8)) < 0.7).astype(float)
    right[1, 2] = NAN
    surplus = np.nansum(2 * right - 1, axis=0)
    totals = [abs(np.dot(signs, surplus)) for signs in itertools.product((-1, 1), repeat=8)]
    assert guessing_p(right) == pytest.approx(np.mean(np.array(totals) >= abs(surplus.sum())))


def test_readers_who_copy_each_other_are_no_more_evidence():
    right = (np.arange(20) < 15).astype(float)
    assert guessing_p(np.stack([right] * 5)) == pytest.approx(guessing_p(right[None]))


def test_choices_are_right_whatever_the_side():
    rows = simulated_rows(["2afc"], number=60)
    ratings = ratings_of(rows, FORCED, FORCED.questions[0])
    assert set(ratings.sources) == {"reconstructed", "synthetic"} and len(ratings.cases) == 60
    for reader, line in zip(ratings.readers, ratings.first, strict=True):
        mine = [row for row in rows if row.reader == reader and row.repeat_of is None]
        expected = sum((row.value == 1) == (row.other_source == "real") for row in mine)
        assert np.nansum(line) == expected
    found = pick_one(pair_statistics(ratings), reader="", source="synthetic", reference="real")
    assert (found.num_cases, found.num_answers) == (30, 60) and found.p < 0.05 < found.value
