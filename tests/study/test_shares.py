import numpy as np
import pytest
from simulated_readers import simulated_ratings

from anatogen.study.analysis.intervals import (
    case_weights,
    effective_number,
    share_interval,
    with_resamples,
)
from anatogen.study.analysis.shares import score_statistics, share_statistics
from anatogen.study.analysis.statistic import Statistic, pick, pick_one
from anatogen.study.questions import load_protocols

NAN = np.nan


def test_wilsons_interval_of_one_reader():
    # Newcombe 1998, Statistics in Medicine 17: 857, Table I, method 3.
    for right, number, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        answers = (np.arange(number) < right).astype(float)[None]
        assert share_interval(answers, "wilson") == pytest.approx((low, high), abs=5e-5)


def test_the_exact_interval_of_one_reader():
    # Same table, method 5 (Clopper and Pearson).
    for right, number, low, high in (
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0, 0.1684),
    ):
        answers = (np.arange(number) < right).astype(float)[None]
        assert share_interval(answers, "exact") == pytest.approx((low, high), abs=5e-5)


def test_readers_who_always_agree_are_one_reader():
    answers = (np.arange(40) < 30).astype(float)
    twice = np.stack([answers, answers])
    assert effective_number(twice) == pytest.approx(40, abs=1.1)
    assert share_interval(twice, "wilson") == pytest.approx(share_interval(answers[None], "wilson"), abs=0.01)
    assert effective_number(np.ones((2, 40))) == 40


def test_readers_who_answer_independently_are_twice_the_answers():
    generator = np.random.default_rng(0)
    numbers = [effective_number((generator.random((2, 100)) < 0.7).astype(float)) for _ in range(200)]
    assert 170 < np.mean(numbers) <= 200


def test_the_interval_of_two_readers_holds_the_share_as_often_as_it_says():
    """Answers of two readers that depend on a shared quality of the case."""
    generator = np.random.default_rng(1)
    held = naive = 0
    for _ in range(1000):
        quality = generator.standard_normal(50)
        answers = (quality + 0.5 * generator.standard_normal((2, 50)) < np.sqrt(1.25) * 0.8416).astype(float)
        low, high = share_interval(answers, "wilson")
        held += low <= 0.8 <= high
        low, high = share_interval(answers.reshape(1, -1), "wilson")
        naive += low <= 0.8 <= high
    assert 935 <= held <= 975
    assert naive < 920


def test_counts_and_shares_of_every_option():
    values = np.array([[4, 4, 3, NAN, 1, 1], [4, 3, 3, 3, NAN, NAN]])
    numbers = share_statistics(simulated_ratings(values, ["real"] * 4 + ["synthetic"] * 2))
    first = {"reader": "reader 0", "source": "real"}
    assert [number.value for number in pick(numbers, name="count", **first)] == [0, 0, 1, 2]
    assert pick_one(numbers, name="share", option=4, **first).value == pytest.approx(2 / 3)
    together = pick_one(numbers, name="share", reader="", source="real", option=3)
    assert together.value == pytest.approx(4 / 7)
    assert (together.num_cases, together.num_answers) == (4, 7)
    silent = pick_one(numbers, name="share", reader="reader 1", source="synthetic", option=1)
    assert silent.value is None and silent.note == "no answers"
    for number in pick(numbers, name="share", reader="reader 0", source="synthetic"):
        assert 0 <= number.low <= number.value <= number.high <= 1


def test_the_second_best_answer_or_better_is_the_sum_of_both():
    values = np.array([[4, 4, 3, 2, 1, NAN], [4, 3, 2, 2, 1, 1]])
    numbers = share_statistics(simulated_ratings(values, ["synthetic"] * 6))
    for reader, expected in (("reader 0", 3 / 5), ("reader 1", 2 / 6), ("", 5 / 11)):
        mine = pick(numbers, reader=reader)
        best, second = (pick_one(mine, name="share", option=option).value for option in (4, 3))
        reached = pick_one(mine, name="share_at_least")
        assert reached.option == 3
        assert reached.value == pytest.approx(expected) == pytest.approx(best + second)
        assert reached.low < reached.value < reached.high
    yes_or_no = load_protocols(["turing"])[0].question("real_or_synthetic")
    numbers = share_statistics(simulated_ratings(np.array([[0, 1]]), ["real"] * 2, yes_or_no))
    assert not pick(numbers, name="share_at_least")


def test_scores_have_quartiles():
    question = load_protocols(["turing"])[0].question("confidence")
    ratings = simulated_ratings(np.array([[0, 10, 20, 30, 40]]), ["real"] * 5, question)
    (mine, _) = score_statistics(ratings)
    assert (mine.low, mine.value, mine.high) == (10, 20, 30)


def test_resamples_keep_the_number_of_each_source():
    weights = case_weights(["real"] * 3 + ["synthetic"] * 5, [0])
    assert (weights[:, :3].sum(axis=1) == 3).all() and (weights[:, 3:].sum(axis=1) == 5).all()
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.1)
    assert np.array_equal(weights, case_weights(["real"] * 3 + ["synthetic"] * 5, [0]))


def test_intervals_that_can_t_be_have_a_reason():
    place = Statistic("turing", "auc", "turing")
    same, undefined = (with_resamples(place, np.full(101, value)) for value in (1.0, NAN))
    assert (same.low, same.high) == (None, None)
    assert "does not exist" in undefined.note
    found = with_resamples(place, np.append(0.5, np.linspace(0, 1, 1001)))
    assert (found.low, found.high, found.note) == (pytest.approx(0.025), pytest.approx(0.975), "")
