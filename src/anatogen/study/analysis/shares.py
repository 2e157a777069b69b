"""How often each answer was given, by source and reader: the paper's Fig. 2 in numbers."""

from dataclasses import replace

import numpy as np

from anatogen.study.analysis.intervals import with_counts, with_quartiles, with_share
from anatogen.study.analysis.ratings import Ratings
from anatogen.study.analysis.statistic import Statistic


def share_statistics(ratings: Ratings) -> list[Statistic]:
    """Counts and shares of the answers to a question of choice, with Wilson intervals.

    Args:
        ratings: Answers to the question; first answers are counted, repeats are not.

    Returns:
        For every source, reader (then all readers) and option "count" and "share" with its interval; before
        them "mean", the mean answer, and of more than two options after them "share_at_least" of the second
        best: the paper's "at least largely realistic".
    """
    statistics = []
    for place, answers in ratings.groups("shares", "mean"):
        mean = with_counts(place, answers)
        if mean.num_answers:
            mean = replace(mean, value=float(np.nanmean(answers)))
        statistics.append(mean)
        for option in ratings.values:
            chosen = np.where(np.isfinite(answers), answers == option, np.nan)
            share = with_share(replace(place, name="share", option=option), chosen, "wilson")
            count = None if share.value is None else float(np.nansum(chosen))
            statistics += [replace(share, name="count", value=count, low=None, high=None), share]
        if len(ratings.values) > 2:
            second = ratings.values[-2]
            reached = np.where(np.isfinite(answers), answers >= second, np.nan)
            place = replace(place, name="share_at_least", option=second)
            statistics.append(with_share(place, reached, "wilson"))
    return statistics


def score_statistics(ratings: Ratings) -> list[Statistic]:
    """Median of a score of 0 to 100 for every source and reader, then all; the interval is the quartiles."""
    return [with_quartiles(place, answers) for place, answers in ratings.groups("scores", "median")]
