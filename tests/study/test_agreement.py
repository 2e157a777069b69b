from functools import partial

import krippendorff
import numpy as np
import pytest
from simulated_readers import ordinal_answers, simulated_ratings
from sklearn.metrics import cohen_kappa_score

from anatogen.study.analysis import agreement
from anatogen.study.analysis.agreement import between_readers, with_themselves
from anatogen.study.analysis.coefficients import (
    counts_by_option,
    exact_agreement,
    gwet_ac2,
    kappa_quadratic,
    krippendorff_alpha,
    quadratic_weights,
)
from anatogen.study.analysis.intervals import case_weights
from anatogen.study.analysis.statistic import pick_one

NAN = np.nan
# Ratings of 12 subjects by 4 raters with gaps, from Gwet's handbook; results from the vignettes of irrCAC.
GWET = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, NAN],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 3],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)
# 100 pregnancies by two abstractors, same source.
ABSTRACTORS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]


def once(ratings):
    return np.ones((1, np.shape(ratings)[1]), dtype=np.int64)


def from_table(table):
    pairs = [(i, j) for i, row in enumerate(table, 1) for j, count in enumerate(row, 1) for _ in range(count)]
    return np.array(pairs, dtype=np.float64).T


def test_the_worked_example_with_gaps():
    values = (1, 2, 3, 4, 5)
    counts = counts_by_option(GWET, values)
    assert exact_agreement(counts, once(GWET))[0] == pytest.approx(0.8181818, abs=5e-8)
    assert gwet_ac2(counts, once(GWET), np.eye(5))[0] == pytest.approx(0.77544, abs=5e-6)
    assert gwet_ac2(counts, once(GWET), quadratic_weights(values))[0] == pytest.approx(0.914, abs=5e-4)


def test_the_worked_example_of_two_raters():
    ratings = from_table(ABSTRACTORS)
    counts = counts_by_option(ratings, (1, 2, 3))
    assert exact_agreement(counts, once(ratings))[0] == pytest.approx(0.89)
    assert gwet_ac2(counts, once(ratings), np.eye(3))[0] == pytest.approx(0.8493305, abs=5e-8)
    assert gwet_ac2(counts, once(ratings), quadratic_weights((1, 2, 3)))[0] == pytest.approx(0.940, abs=5e-4)


def test_nearness_of_three_options():
    assert np.array_equal(quadratic_weights((1, 2, 3)), [[1, 0.75, 0], [0.75, 1, 0.75], [0, 0.75, 1]])


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_krippendorff_package(seed):
    generator = np.random.default_rng(seed)
    ratings = ordinal_answers(generator, generator.normal(-1, 1, 40), 3)
    ratings[generator.random(ratings.shape) < 0.2] = NAN
    counts = counts_by_option(ratings, (1, 2, 3, 4))
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement="ordinal")
    assert krippendorff_alpha(counts, once(ratings))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    ratings = ordinal_answers(generator, generator.normal(-1, 1, 40), 2)
    expected = cohen_kappa_score(*ratings.astype(int), weights="quadratic")
    assert kappa_quadratic(ratings, once(ratings))[0] == pytest.approx(expected, abs=1e-12)


def test_weights_mean_the_same_as_repeated_cases():
    generator = np.random.default_rng(0)
    ratings = ordinal_answers(generator, generator.normal(-1, 1, 15), 3)
    ratings[0, 3] = NAN
    weights = generator.integers(0, 4, (1, 15))
    repeated = np.repeat(ratings, weights[0], axis=1)
    values = (1, 2, 3, 4)
    counts, counts_repeated = counts_by_option(ratings, values), counts_by_option(repeated, values)
    nearness = quadratic_weights(values)
    for weighted, plain in (
        (kappa_quadratic(ratings, weights), kappa_quadratic(repeated, once(repeated))),
        (gwet_ac2(counts, weights, nearness), gwet_ac2(counts_repeated, once(repeated), nearness)),
        (krippendorff_alpha(counts, weights), krippendorff_alpha(counts_repeated, once(repeated))),
    ):
        assert weighted == pytest.approx(plain, abs=1e-12)


def test_kappa_falls_where_nearly_all_is_good_and_ac2_does_not():
    # 46 of 50 cases are best for both; each reader alone finds fault with two.
    ratings = np.full((2, 50), 4.0)
    ratings[0, :2] = ratings[1, 2:4] = 3
    found = {
        number.name: number for number in between_readers(simulated_ratings(ratings, ["synthetic"] * 50), 0)
    }
    assert found["agreement"].value == pytest.approx(0.92)
    assert found["kappa_quadratic"].value < 0 and found["alpha_ordinal"].value < 0
    assert found["ac2_quadratic"].value > 0.98


def test_ac2_is_high_for_readers_who_answer_at_random_near_the_top():
    """The page and docs warn of it: 0.89 where kappa is 0 and 60% of answers are the same."""
    chances = np.array([0, 0.05, 0.2, 0.75])
    nearness = quadratic_weights((1, 2, 3, 4))
    chance = nearness.sum() / 12 * (chances * (1 - chances)).sum()
    expected = (chances @ nearness @ chances - chance) / (1 - chance)
    assert expected == pytest.approx(0.89, abs=0.005)
    ratings = np.random.default_rng(0).choice([1.0, 2, 3, 4], p=chances, size=(2, 100_000))
    counts = counts_by_option(ratings, (1, 2, 3, 4))
    assert gwet_ac2(counts, once(ratings), nearness)[0] == pytest.approx(expected, abs=0.005)
    assert exact_agreement(counts, once(ratings))[0] == pytest.approx(0.605, abs=0.01)


def test_without_variation_there_is_a_reason_and_no_number():
    numbers = between_readers(simulated_ratings(np.full((2, 20), 4.0), ["real"] * 20), 0)
    kappa, ac2 = pick_one(numbers, name="kappa_quadratic"), pick_one(numbers, name="ac2_quadratic")
    assert kappa.value is None and "every answer is the same" in kappa.note
    assert ac2.value == 1 and ac2.low is None and "resamples" in ac2.note


def test_one_reader_has_nobody_to_agree_with():
    numbers = between_readers(simulated_ratings(np.full((1, 20), 4.0), ["real"] * 20), 0)
    assert all(number.value is None and number.note == "it takes two readers" for number in numbers)


def test_a_reader_who_repeats_every_answer_agrees_with_themselves():
    generator = np.random.default_rng(1)
    first = ordinal_answers(generator, generator.normal(-1, 1, 60), 2)
    again = np.where(np.arange(60) < 20, first, NAN)
    again[1, :20] = 5 - again[1, :20]
    numbers = with_themselves(simulated_ratings(first, ["real"] * 30 + ["synthetic"] * 30, again=again), 0)
    same = pick_one(numbers, name="kappa_quadratic", reader="reader 0")
    reversed_ = pick_one(numbers, name="kappa_quadratic", reader="reader 1")
    both = pick_one(numbers, name="agreement", reader="")
    assert same.value == 1 and same.num_cases == 20 and reversed_.value < 0
    assert both.num_cases == 20 and both.num_answers == 80


def test_the_intervals_hold_what_they_should(monkeypatch):
    """Of 95% intervals of AC2 and kappa, in 200 small studies, about 95% hold the value of endless cases."""
    monkeypatch.setattr(agreement, "case_weights", partial(case_weights, num_resamples=400))
    generator = np.random.default_rng(2)

    def draw(number):
        return ordinal_answers(generator, generator.normal(-0.7, 1, number), 2)

    large = draw(400_000)
    counts = counts_by_option(large, (1, 2, 3, 4))
    truth = {
        "kappa_quadratic": kappa_quadratic(large, once(large))[0],
        "ac2_quadratic": gwet_ac2(counts, once(large), quadratic_weights((1, 2, 3, 4)))[0],
        "alpha_ordinal": krippendorff_alpha(counts, once(large))[0],
    }
    held = dict.fromkeys(truth, 0)
    for trial in range(200):
        numbers = between_readers(simulated_ratings(draw(60), ["synthetic"] * 60), trial)
        for name, value in truth.items():
            number = pick_one(numbers, name=name)
            held[name] += number.low <= value <= number.high
    assert all(178 <= count <= 200 for count in held.values()), held
