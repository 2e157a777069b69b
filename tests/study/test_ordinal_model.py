import numpy as np
import pytest
from simulated_readers import simulated_ratings

from anatogen.study.analysis.ordinal_model import model_statistics

ORDER = np.arange(200)
FIRST = ORDER < 100
SOURCES = ["real"] * 100 + ["synthetic"] * 100


def answers(generator, log_odds, num_readers=2):
    """From the model itself: logistic noise, a shift for synthetic cases and for each reader."""
    shift = np.where(np.arange(200) < 100, 0.0, log_odds) + np.array([[0.0], [0.5], [1.0]])[:num_readers]
    return np.digitize(shift + generator.logistic(size=shift.shape), (-2.0, -0.5, 1.0)) + 1.0


def test_the_odds_that_answers_were_drawn_with_are_found():
    generator = np.random.default_rng(0)
    found = [model_statistics(simulated_ratings(answers(generator, -0.8), SOURCES))[0] for _ in range(20)]
    assert np.mean(np.log([number.value for number in found])) == pytest.approx(-0.8, abs=0.08)
    held = sum(number.low < np.exp(-0.8) < number.high for number in found)
    assert held >= 18
    assert found[0].num_answers == 400 and found[0].num_cases == 200


def test_two_copies_of_a_reader_are_no_more_evidence():
    values = answers(np.random.default_rng(1), -0.5, 1)
    (one,) = model_statistics(simulated_ratings(values, SOURCES))
    (two,) = model_statistics(simulated_ratings(np.vstack([values, values]), SOURCES))
    assert np.log(two.high / two.low) == pytest.approx(np.log(one.high / one.low), rel=0.02)


@pytest.mark.parametrize(
    ("values", "sources", "why"),
    [
        (np.full((1, 200), 4.0), SOURCES, "every answer is the same"),
        (np.full((1, 200), np.nan), SOURCES, "no answers"),
        (np.tile([1.0, 2.0], (1, 5)), ["real"] * 5 + ["synthetic"] * 5, "it takes 20 answers"),
        (np.tile([1.0, 2.0], (1, 5)), ["real"] * 10, "real cases and others"),
        (np.where(FIRST, 4.0, ORDER % 4 + 1)[None], SOURCES, "the odds have no limit"),
        (np.where(FIRST, ORDER % 2 + 3.0, ORDER % 2 + 1)[None], SOURCES, "no limit"),
        (np.where(FIRST, ORDER % 4 + 1, np.nan)[None], SOURCES, "no answers"),
    ],
)
def test_what_can_t_be_fitted_has_a_reason(values, sources, why):
    (number,) = model_statistics(simulated_ratings(values, sources))
    assert number.value is None and why in number.note
