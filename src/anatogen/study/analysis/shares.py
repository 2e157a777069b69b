"""How often each answer was given, by source and reader: the paper's Fig. 2 in numbers."""

from dataclasses import replace

import numpy as np

from anatogen.study.analysis.intervals import with_share
from anatogen.study.analysis.ratings import Floats, Ratings
from anatogen.study.analysis.statistic import Statistic


def share_statistics(ratings: Ratings) -> list[Statistic]:
    """Counts and shares of the answers to a question of choice, with Wilson intervals.

    Args:
        ratings: Answers to the question; first answers are counted, repeats are not.

    Returns:
        For every source, reader (then all readers) and option "count" and "share" with its interval; before
        them "mean", the mean answer.
    """
    statistics = []
    for source in ratings.present:
        for reader, lines in ratings.readings:
            answers = ratings.first[lines][:, ratings.of(source)]
            answered = np.isfinite(answers)
            place = Statistic("shares", "", ratings.protocol, ratings.question.id, reader, source)
            statistics.append(
                replace(
                    place,
                    name="mean",
                    value=float(answers[answered].mean()) if answered.any() else None,
                    num_cases=int(answered.any(axis=0).sum()),
                    num_answers=int(answered.sum()),
                    note="" if answered.any() else "no answers",
                )
            )
            for option in ratings.values:
                chosen = np.where(answered, answers == option, np.nan)
                share = with_share(replace(place, name="share", option=option), chosen, "wilson")
                count = None if share.value is None else float(np.nansum(chosen))
                statistics += [replace(share, name="count", value=count, low=None, high=None), share]
    return statistics


def score_statistics(ratings: Ratings) -> list[Statistic]:
    """Median of a score of 0 to 100 for every source and reader, then all; the interval is the quartiles."""
    statistics = []
    for source in ratings.present:
        for reader, lines in ratings.readings:
            answers = ratings.first[lines][:, ratings.of(source)]
            place = Statistic("scores", "median", ratings.protocol, ratings.question.id, reader, source)
            num_cases = int(np.isfinite(answers).any(axis=0).sum())
            statistics.append(with_quartiles(place, answers[np.isfinite(answers)], num_cases))
    return statistics


def with_quartiles(place: Statistic, values: Floats, num_cases: int) -> Statistic:
    """The median of values, quartiles being the interval; or the reason why there is none.

    Args:
        place: What it is of.
        values: Float64 (N,), none for a statistic without a value.
        num_cases: Number of cases that the values belong to.
    """
    if not len(values):
        return replace(place, level=0.5, note="no answers")
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return replace(
        place,
        value=median,
        low=low,
        high=high,
        level=0.5,
        num_cases=num_cases,
        num_answers=len(values),
    )
