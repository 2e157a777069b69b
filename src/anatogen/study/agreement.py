"""Do readers agree with each other, and with themselves when they see a case again?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from anatogen.study import agreement_coefficients as coefficients
from anatogen.study.intervals import case_weights, percentile_interval
from anatogen.study.numbers import Number
from anatogen.study.ratings import Floats, Ratings

COEFFICIENTS = ("agreement", "kappa_quadratic", "ac2_quadratic", "alpha_ordinal")
LEAST_CASES = 5
_ALL_EQUAL = "every answer is the same, so chance can't be told from agreement"


def between_readers(ratings: Ratings, seed: int) -> list[Number]:
    """Agreement of different readers on the same cases, over all cases and those of each source.

    Args:
        ratings: First answers count.
        seed: Of the resamples.
    """
    groups: list[tuple[str, npt.NDArray[np.bool_]]] = [("", np.ones(len(ratings.cases), dtype=bool))]
    if len(ratings.present) > 1:
        groups += [(source, ratings.of(source)) for source in ratings.present]
    numbers: list[Number] = []
    for group, members in groups:
        units = np.flatnonzero(members & (np.isfinite(ratings.first).sum(axis=0) >= 2))
        why = "" if len(ratings.readers) > 1 else "it takes two readers"
        place = Number("agreement", "", ratings.protocol, ratings.question.id, group=group)
        strata = [ratings.sources[unit] for unit in units]
        numbers += _numbers(ratings.first[:, units], strata, units, ratings.values, place, why, seed)
    return numbers


def with_themselves(ratings: Ratings, seed: int) -> list[Number]:
    """Agreement of each reader's first and second answer to repeated cases, and of all readers' together.

    Args:
        ratings: Cases that were answered twice count.
        seed: Of the resamples.
    """
    numbers: list[Number] = []
    for reader, chosen in ratings.readings:
        first, again = ratings.first[chosen].ravel(), ratings.again[chosen].ravel()
        cases = np.tile(np.arange(len(ratings.cases)), len(chosen))
        both = np.isfinite(first) & np.isfinite(again)
        place = Number("agreement", "", ratings.protocol, ratings.question.id, reader, "repeats")
        strata = [ratings.sources[case] for case in cases[both]]
        pairs = np.stack([first[both], again[both]])
        numbers += _numbers(pairs, strata, cases[both], ratings.values, place, "", seed)
    return numbers


def _numbers(
    answers: Floats,
    strata: Sequence[str],
    cases: npt.NDArray[np.int64],
    values: tuple[int, ...],
    place: Number,
    why: str,
    seed: int,
) -> list[Number]:
    """All coefficients of answers (R, U), whose units belong to cases that are drawn whole."""
    num_cases = len(np.unique(cases))
    place = replace(place, num_cases=num_cases, num_answers=int(np.isfinite(answers).sum()))
    if not why and num_cases < LEAST_CASES:
        why = f"it takes {LEAST_CASES} cases that were answered twice, and there are {num_cases}"
    if why:
        return [replace(place, name=name, note=why) for name in COEFFICIENTS]
    unique, which = np.unique(cases, return_inverse=True)
    stratum_of = dict(zip(cases.tolist(), strata, strict=True))
    resamples = case_weights([stratum_of[case] for case in unique.tolist()], [seed, len(unique)])
    weights = np.concatenate([np.ones((1, len(unique)), dtype=np.int64), resamples])[:, which]
    counts = coefficients.counts_by_option(answers, values)
    nearness = coefficients.quadratic_weights(values)
    measures: dict[str, Callable[[], Floats]] = {
        "agreement": lambda: coefficients.exact_agreement(counts, weights),
        "kappa_quadratic": lambda: coefficients.kappa_quadratic(answers, weights),
        "ac2_quadratic": lambda: coefficients.gwet_ac2(counts, weights, nearness),
        "alpha_ordinal": lambda: coefficients.krippendorff_alpha(counts, weights),
    }
    numbers = []
    for name in COEFFICIENTS:
        draws = measures[name]()
        if not np.isfinite(draws[0]):
            numbers.append(replace(place, name=name, note=_ALL_EQUAL))
            continue
        low, high, note = percentile_interval(draws[1:])
        numbers.append(replace(place, name=name, value=float(draws[0]), low=low, high=high, note=note))
    return numbers
