"""Intervals that know that several readers saw the same cases.

Two ratings of one case are not two cases. Shares of one reader have the usual intervals; those of several
readers have them at the *effective* number of answers, and everything else is resampled by whole cases.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from anatogen.report.intervals import percentile_interval
from anatogen.study.analysis.ratings import Floats
from anatogen.study.analysis.statistic import Statistic

NUM_RESAMPLES = 2000
# Share of the resamples in which a number must exist to have an interval.
_LEAST_DEFINED = 0.9


def share_interval(successes: Floats, method: Literal["wilson", "exact"]) -> tuple[float, float]:
    """The 95% interval of a share.

    With one reader, Wilson's score interval (Wilson 1927) or the exact one (Clopper and Pearson 1934). With
    several, the same at the effective number of answers (Korn and Graubard 1998 for the exact one).

    Args:
        successes: (R, C) of readers by cases, 1 or 0, NaN where there is no answer; one answer or more.
        method: Wilson's or the exact one.
    """
    from statsmodels.stats.proportion import proportion_confint

    share = float(np.nanmean(successes))
    number = effective_number(successes)
    low, high = proportion_confint(share * number, number, method="wilson" if method == "wilson" else "beta")
    return max(float(low), 0.0), min(float(high), 1.0)


def with_share(place: Statistic, successes: Floats, method: Literal["wilson", "exact"]) -> Statistic:
    """A share with its interval; or the reason why there is none.

    Args:
        place: What it is of.
        successes: (R, C), 1 or 0, NaN where there is no answer.
        method: Method of its interval.
    """
    place = with_counts(place, successes)
    if not place.num_answers:
        return place
    low, high = share_interval(successes, method)
    return replace(place, value=float(np.nanmean(successes)), low=low, high=high)


def with_quartiles(place: Statistic, answers: Floats) -> Statistic:
    """The median, the quartiles being its interval; or the reason why there is none.

    Args:
        place: What it is of.
        answers: (R, C), NaN where there is no answer.
    """
    place = with_counts(replace(place, level=0.5), answers)
    if not place.num_answers:
        return place
    low, median, high = np.nanquantile(answers, [0.25, 0.5, 0.75]).tolist()
    return replace(place, value=median, low=low, high=high)


def with_counts(place: Statistic, answers: Floats) -> Statistic:
    """How many cases and answers a number rests on; a note where there are none.

    Args:
        place: What it is of.
        answers: (R, C), NaN where there is no answer.
    """
    answered = np.isfinite(answers)
    num_cases, num_answers = int(answered.any(axis=0).sum()), int(answered.sum())
    return replace(
        place, num_cases=num_cases, num_answers=num_answers, note="" if num_answers else "no answers"
    )


def with_resamples(place: Statistic, draws: Floats) -> Statistic:
    """A number with the percentile interval of its resamples, or the reason why it has none.

    Args:
        place: What it is of.
        draws: (1 + B,), the number, then that of each resample; NaN where it does not exist.
    """
    place = replace(place, value=float(draws[0]))
    defined = draws[1:][np.isfinite(draws[1:])]
    if len(defined) < _LEAST_DEFINED * len(draws[1:]):
        return replace(place, note="no interval: it does not exist in many resamples of the cases")
    if np.ptp(defined) < 1e-12:
        return replace(place, note="no interval: all resamples of the cases are the same")
    low, high = percentile_interval(defined)
    return replace(place, low=low, high=high)


def effective_number(successes: Floats) -> float:
    """How many independent answers would tell the share as well as these do.

    p (1 - p) over the variance of the share p as a ratio of sums over cases, between the number of cases
    (all readers always agree) and the number of answers.

    Args:
        successes: (R, C), 1 or 0, NaN where there is no answer.
    """
    answered = np.isfinite(successes)
    counts = answered.sum(axis=0)
    num_answers, num_cases = int(counts.sum()), int((counts > 0).sum())
    # One answer a case: they are independent.
    if num_answers == num_cases:
        return float(num_answers)
    share = float(np.nanmean(successes))
    deviations = np.nansum(successes, axis=0) - share * counts
    variance = num_cases / max(num_cases - 1, 1) * float(np.square(deviations).sum()) / num_answers**2
    if share in (0.0, 1.0):
        # That all agree says nothing of what chance would have done: each case counts once.
        return float(num_cases)
    if variance == 0:
        return float(num_answers)
    return float(np.clip(share * (1 - share) / variance, min(num_cases, num_answers), num_answers))


def case_weights(
    strata: Sequence[str], seed: Sequence[int], num_resamples: int = NUM_RESAMPLES
) -> npt.NDArray[np.int64]:
    """How often each case counts, int64 (1 + num_resamples, C): once, then as often as it is drawn.

    As many cases of each source are drawn as there are.

    Args:
        strata: Source of each of the C cases.
        seed: Numbers that the draws follow from.
        num_resamples: Number of resamples.
    """
    generator = np.random.default_rng(list(seed))
    names = np.array(strata)
    weights = np.ones((1 + num_resamples, len(strata)), dtype=np.int64)
    for name in sorted(set(strata)):
        members = np.flatnonzero(names == name)
        chances = np.full(len(members), 1 / len(members))
        weights[1:, members] = generator.multinomial(len(members), chances, size=num_resamples)
    return weights
