"""Are synthetic scans rated as real ones are, within a margin? Two one-sided tests (Schuirmann 1987)."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from anatogen.core.errors import UserError
from anatogen.study.analysis.ratings import Flags, Floats, Ratings
from anatogen.study.analysis.statistic import Equivalence, Statistic
from anatogen.study.spec import Source

MARGIN = 0.5
SHARE_MARGIN = 0.15
# Two one-sided tests at 5% are one 90% interval inside the margin.
LEVEL = 0.90
_LEAST_CASES = 2


@dataclass(frozen=True)
class MeanDifference:
    """A difference of means that respects that each case was answered by several readers.

    Attributes:
        value: Mean over readers of their own differences.
        error: Its standard error.
        freedom: Degrees of freedom (Welch 1947).
        num_cases: Number of cases of both groups.
        num_answers: Number of answers of both groups.
    """

    value: float
    error: float
    freedom: float
    num_cases: int
    num_answers: int

    def interval(self, level: float) -> tuple[float, float]:
        """The interval of Student's t."""
        reach = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.error
        return self.value - reach, self.value + reach

    def equivalence_p(self, margin: float) -> float:
        """The p of two one-sided tests that the difference lies within plus and minus the margin."""
        above = stats.t.sf((self.value + margin) / self.error, self.freedom)
        below = stats.t.cdf((self.value - margin) / self.error, self.freedom)
        return float(max(above, below))


def difference(answers: Floats, group: Flags, other: Flags, step: float = 1.0) -> MeanDifference | str:
    """The mean of a group's answers less that of the other's, each reader being compared with themselves.

    With every answer given it is Welch's t test on the case means over readers. With missing answers, each
    reader's means are of what they answered, so that a strict reader who missed some cases of one group does
    not shift the difference; the variance is that of the cases' influences on the result. Readers are taken
    as fixed, and cases as drawn: the interval is for other cases read by these readers.

    As answers are few whole numbers, a group whose cases all got the same answer would have no variance: it
    is taken to be at least what one case that differs by `step` would give.

    Args:
        answers: (R, C), NaN where there is no answer.
        group: (C,), which cases.
        other: (C,), which cases to compare with.
        step: The least difference between two answers.

    Returns:
        The difference, or the reason why there is none.
    """
    counts = [np.isfinite(answers[:, members]).sum(axis=1) for members in (group, other)]
    readers = (counts[0] > 0) & (counts[1] > 0)
    if not readers.any():
        return "no reader has answered cases of both"
    means, squares, freedoms, num_cases, num_answers = [], [], [], 0, 0
    for members in (group, other):
        given = answers[np.ix_(readers, members)]
        given = given[:, np.isfinite(given).any(axis=0)]
        number = given.shape[1]
        if number < _LEAST_CASES:
            return f"it takes {_LEAST_CASES} answered cases of each"
        each = np.nanmean(given, axis=1)
        share = number / np.isfinite(given).sum(axis=1)
        influences = np.nansum((given - each[:, None]) * share[:, None], axis=0) / len(each)
        variance = max(float(np.square(influences).sum()) / (number - 1), step**2 / number)
        means.append(float(each.mean()))
        squares.append(variance / number)
        freedoms.append(number - 1)
        num_cases += number
        num_answers += int(np.isfinite(given).sum())
    total = sum(squares)
    freedom = total**2 / sum(square**2 / free for square, free in zip(squares, freedoms, strict=True))
    return MeanDifference(means[0] - means[1], total**0.5, freedom, num_cases, num_answers)


def equivalence_statistics(
    ratings: Ratings, margin: float = MARGIN, share_margin: float = SHARE_MARGIN
) -> list[Statistic]:
    """Differences between sources in the mean answer and in the share of best answers, with their tests.

    Args:
        ratings: Answers to a question whose options are ordinal; first answers count.
        margin: Margin of equivalence of mean answers, in points.
        share_margin: Margin of equivalence of shares of best answers, as a fraction.

    Returns:
        "mean_difference" and "best_share_difference" for each pair of sources, whose p is that of the
        equivalence test and whose interval, of level 0.9, decides it.
    """
    best = np.where(np.isfinite(ratings.first), ratings.first == ratings.values[-1], np.nan)
    step = float(np.diff(ratings.values).min())
    statistics = []
    for source, reference in compared(ratings):
        members = ratings.of(source), ratings.of(reference)
        for name, answers, least, limit in (
            ("mean_difference", ratings.first, step, margin),
            ("best_share_difference", best, 1.0, share_margin),
        ):
            found = difference(answers, *members, least)
            place = Statistic(
                section="equivalence",
                name=name,
                protocol=ratings.protocol,
                question=ratings.question.id,
                source=source,
                reference=reference,
                level=LEVEL,
            )
            if isinstance(found, str):
                statistics.append(replace(place, note=found))
                continue
            low, high = found.interval(LEVEL)
            statistics.append(
                replace(
                    place,
                    value=found.value,
                    low=low,
                    high=high,
                    p=found.equivalence_p(limit),
                    num_cases=found.num_cases,
                    num_answers=found.num_answers,
                    outcome=verdict(low, high, limit),
                )
            )
    return statistics


def compared(ratings: Ratings) -> list[tuple[Source, Source]]:
    """Pairs of sources that are there, synthetic against real first; (source, reference)."""
    pairs = [(later, earlier) for earlier, later in combinations(ratings.present, 2)]
    return sorted(pairs, key=lambda pair: (pair != ("synthetic", "real"), pair[1] != "real"))


def verdict(low: float, high: float, margin: float) -> Equivalence:
    """What an interval of a difference, from `low` to `high`, says beside a margin."""
    if -margin < low and high < margin:
        return Equivalence.EQUIVALENT
    if high < -margin:
        return Equivalence.WORSE
    if low > margin:
        return Equivalence.BETTER
    if high < 0:
        return Equivalence.LOWER
    return Equivalence.HIGHER if low > 0 else Equivalence.UNDECIDED


def check_margins(margin: float, share_margin: float) -> None:
    """Checks that a test can be made with the margins.

    Raises:
        UserError: If one is not positive, or the share's is not below 1.
    """
    if not 0 < margin < float("inf"):
        raise UserError(f"margin is {margin:g}: it must be above 0, 0.5 is half a point")
    if not 0 < share_margin < 1:
        raise UserError(
            f"share margin is {share_margin:g}: it must be between 0 and 1, 0.15 is 15% of answers"
        )
