"""One statistic of the analysis, with its interval, what it is of, and why it is missing if it is.

Every part of the analysis gives a flat list of these; the CSV and the JSON hold them as they are, and the
page and the headlines pick from them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypedDict, Unpack

from anatogen.report.numbers import MISSING, duration_text, interval_text, percent_text, signed_text
from anatogen.study.spec import Source

Section = Literal[
    "answers",
    "shares",
    "scores",
    "equivalence",
    "model",
    "turing",
    "pairs",
    "agreement",
    "repeatability",
    "times",
]


class Equivalence(StrEnum):
    """What the interval of a difference says beside a margin.

    Attributes:
        EQUIVALENT: Within the margin.
        WORSE: Below 0 by more than the margin.
        BETTER: Above 0 by more than the margin.
        LOWER: Below 0, by what may be less or more than the margin.
        HIGHER: The same above 0.
        UNDECIDED: Too few cases leave everything open.
    """

    EQUIVALENT = "equivalent"
    WORSE = "worse"
    BETTER = "better"
    LOWER = "lower"
    HIGHER = "higher"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Statistic:
    """A number, or the reason why there is none.

    Attributes:
        section: Part of the analysis.
        name: What was measured, such as "share" or "ac2_quadratic".
        protocol: Id of the protocol.
        question: Id of the question; empty for what is not of one question, such as times.
        reader: Name of the reader; empty for all readers together.
        source: Source of the cases; empty for all cases.
        reference: Source that they are compared with; empty where there is no comparison.
        option: Answer that a share is of.
        value: None if it can't be computed.
        low: Lower end of the interval; None if there is none.
        high: Upper end of the interval.
        level: Confidence level of the interval.
        p: P-value of the test that belongs to it.
        outcome: Outcome of a test of equivalence.
        num_cases: Number of cases (pairs, repeats) that it rests on.
        num_answers: Number of answers that it rests on.
        note: Why it, or its interval, is missing.
    """

    section: Section
    name: str
    protocol: str
    question: str = ""
    reader: str = ""
    source: Source | Literal[""] = ""
    reference: Source | Literal[""] = ""
    option: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    p: float | None = None
    outcome: Equivalence | None = None
    num_cases: int = 0
    num_answers: int = 0
    note: str = ""

    @property
    def text(self) -> str:
        """The value as people read it; a dash where there is none."""
        return self._written(self.value)

    @property
    def interval(self) -> str:
        """The interval as people read it; empty where there is none."""
        return interval_text(self.low, self.high, self._written)

    def _written(self, value: float | None) -> str:
        return MISSING if value is None else _TEXTS.get(self.name, two_digits)(value)


def two_digits(value: float) -> str:
    """A number with two decimals."""
    return f"{value:.2f}".replace("-", "−")


# How values are written, by the statistic's name; others have two decimals.
_TEXTS: dict[str, Callable[[float], str]] = {
    "missing": "{:.0f}".format,
    "share": percent_text,
    "share_at_least": percent_text,
    "median": "{:.0f}".format,
    "mean_difference": signed_text,
    "best_share_difference": lambda share: f"{signed_text(100 * share, 0)}%",
    "called_real": percent_text,
    "accuracy": percent_text,
    "chosen_real": percent_text,
    "agreement": percent_text,
    "seconds_median": duration_text,
    "hours_active": lambda hours: duration_text(3600 * hours),
    "hours_idle": lambda hours: duration_text(3600 * hours),
}


class Place(TypedDict, total=False):
    """Attributes of a statistic that say what it is of."""

    section: Section
    name: str
    protocol: str
    question: str
    reader: str
    source: Source | Literal[""]
    reference: Source | Literal[""]
    option: int


def pick(statistics: Iterable[Statistic], **place: Unpack[Place]) -> list[Statistic]:
    """The statistics of a place, in their order."""
    return [
        statistic
        for statistic in statistics
        if all(getattr(statistic, attribute) == value for attribute, value in place.items())
    ]


def pick_one(statistics: Iterable[Statistic], **place: Unpack[Place]) -> Statistic | None:
    """The first statistic of a place, if there is one."""
    return next(iter(pick(statistics, **place)), None)
