"""How often each answer was given, by source and reader: the paper's Fig. 2 in numbers."""

from dataclasses import replace

import numpy as np

from anatogen.study.intervals import share_interval
from anatogen.study.numbers import Number
from anatogen.study.ratings import Floats, Ratings


def share_numbers(ratings: Ratings) -> list[Number]:
    """Counts and shares of the answers to a question of choice, with Wilson intervals.

    Args:
        ratings: First answers are counted, repeats are not.

    Returns:
        For every source, reader (then all readers) and option: "share" with its interval, "count", and
        before them "mean", the mean answer.
    """
    numbers = []
    for source in ratings.present:
        members = ratings.of(source)
        for reader, lines in ratings.readings:
            answers = ratings.first[lines][:, members]
            answered = np.isfinite(answers)
            mean = Number(
                section="shares",
                name="mean",
                protocol=ratings.protocol,
                question=ratings.question.id,
                reader=reader,
                group=source,
                value=float(answers[answered].mean()) if answered.any() else None,
                num_cases=int(answered.any(axis=0).sum()),
                num_answers=int(answered.sum()),
                note="" if answered.any() else "no answers",
            )
            numbers.append(mean)
            for option in ratings.values:
                numbers += _option_numbers(answers, option, mean)
    return numbers


def score_numbers(ratings: Ratings) -> list[Number]:
    """Median of a score of 0 to 100 for every source and reader, then all; the interval is the quartiles."""
    numbers = []
    for source in ratings.present:
        for reader, lines in ratings.readings:
            answers = ratings.first[lines][:, ratings.of(source)]
            given = answers[np.isfinite(answers)]
            low, median, high = np.quantile(given, [0.25, 0.5, 0.75]).tolist() if len(given) else [None] * 3
            numbers.append(
                Number(
                    section="scores",
                    name="median",
                    protocol=ratings.protocol,
                    question=ratings.question.id,
                    reader=reader,
                    group=source,
                    value=median,
                    low=low,
                    high=high,
                    level=0.5,
                    num_cases=int(np.isfinite(answers).any(axis=0).sum()),
                    num_answers=len(given),
                    note="" if len(given) else "no answers",
                )
            )
    return numbers


def _option_numbers(answers: Floats, option: int, mean: Number) -> list[Number]:
    count, share = replace(mean, name="count", option=option), replace(mean, name="share", option=option)
    if mean.value is None:
        return [count, share]
    chosen = np.where(np.isfinite(answers), answers == option, np.nan)
    low, high = share_interval(chosen, "wilson")
    return [
        replace(count, value=float(np.nansum(chosen))),
        replace(share, value=float(np.nanmean(chosen)), low=low, high=high),
    ]
