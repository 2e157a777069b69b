"""Do readers agree with each other, and with themselves when they see a case again?"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from anatogen.study.analysis import coefficients
from anatogen.study.analysis.intervals import case_weights, with_resamples
from anatogen.study.analysis.ratings import Floats, Ratings
from anatogen.study.analysis.statistic import Statistic

COEFFICIENTS = ("agreement", "kappa_quadratic", "ac2_quadratic", "alpha_ordinal")
LEAST_CASES = 5
_ALL_EQUAL = "every answer is the same, so chance can't be told from agreement"


def between_readers(ratings: Ratings, seed: int) -> list[Statistic]:
    """Agreement of different readers on the same cases, over all cases and those of each source.

    Args:
        ratings: Answers to a question; first answers count.
        seed: Random seed of the resamples.
    """
    why = "" if len(ratings.readers) > 1 else "it takes two readers"
    place = Statistic("agreement", "", ratings.protocol, ratings.question.id)
    groups = [(place, np.ones(len(ratings.cases), dtype=bool))]
    if len(ratings.present) > 1:
        groups += [(replace(place, source=source), ratings.of(source)) for source in ratings.present]
    statistics: list[Statistic] = []
    for group, members in groups:
        units = np.flatnonzero(members & (np.isfinite(ratings.first).sum(axis=0) >= 2))
        statistics += _coefficients(ratings, ratings.first[:, units], units, group, why, seed)
    return statistics


def with_themselves(ratings: Ratings, seed: int) -> list[Statistic]:
    """Agreement of each reader's first and second answer to repeated cases, and of all readers' together.

    Args:
        ratings: Answers to a question; cases that were answered twice count.
        seed: Random seed of the resamples.
    """
    statistics: list[Statistic] = []
    for reader, lines in ratings.readings:
        first, again = ratings.first[lines].ravel(), ratings.again[lines].ravel()
        cases = np.tile(np.arange(len(ratings.cases)), len(lines))
        both = np.isfinite(first) & np.isfinite(again)
        place = Statistic("repeatability", "", ratings.protocol, ratings.question.id, reader)
        answers = np.stack([first[both], again[both]])
        statistics += _coefficients(ratings, answers, cases[both], place, "", seed)
    return statistics


def _coefficients(
    ratings: Ratings,
    answers: Floats,
    cases: npt.NDArray[np.int64],
    place: Statistic,
    why: str,
    seed: int,
) -> list[Statistic]:
    """All coefficients of answers (R, U), whose units belong to cases (U,) that are drawn whole."""
    num_cases = len(np.unique(cases))
    place = replace(place, num_cases=num_cases, num_answers=int(np.isfinite(answers).sum()))
    if not why and num_cases < LEAST_CASES:
        why = f"it takes {LEAST_CASES} cases that were answered twice, and there are {num_cases}"
    if why:
        return [replace(place, name=name, note=why) for name in COEFFICIENTS]
    unique, which = np.unique(cases, return_inverse=True)
    weights = case_weights([ratings.sources[case] for case in unique], [seed, len(unique)])[:, which]
    counts = coefficients.counts_by_option(answers, ratings.values)
    nearness = coefficients.quadratic_weights(ratings.values)
    found = (
        coefficients.exact_agreement(counts, weights),
        coefficients.kappa_quadratic(answers, weights),
        coefficients.gwet_ac2(counts, weights, nearness),
        coefficients.krippendorff_alpha(counts, weights),
    )
    named = [replace(place, name=name) for name in COEFFICIENTS]
    return [
        with_resamples(each, draws) if np.isfinite(draws[0]) else replace(each, note=_ALL_EQUAL)
        for each, draws in zip(named, found, strict=True)
    ]
