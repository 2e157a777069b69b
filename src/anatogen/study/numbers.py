"""One number of the analysis, with its interval, its place in the study, and why it is missing if it is.

Every statistic gives a flat list of these; the CSV and the JSON hold them as they are, and the page and
the headlines pick from them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

SectionName = Literal[
    "answers", "shares", "scores", "equivalence", "model", "turing", "pairs", "agreement", "times"
]


@dataclass(frozen=True)
class Number:
    """A number, or the reason why there is none.

    Attributes:
        section: The part of the analysis.
        name: What was measured, such as "share" or "ac2".
        protocol: Id of the protocol.
        question: Id of the question; empty for what is not of one question, such as times.
        reader: Name of the reader; empty for all readers together.
        group: A source, or a comparison such as "synthetic - real"; empty for all cases.
        option: The answer that a share is of.
        value: None if it can't be computed.
        low: Lower end of the interval; None if there is none.
        high: Upper end.
        level: Of the interval's confidence.
        p: Of the test that belongs to it.
        num_cases: Cases (pairs, repeats) that it rests on.
        num_answers: Answers that it rests on.
        note: Why it, or its interval, is missing; or what else must be known to read it.
    """

    section: SectionName
    name: str
    protocol: str
    question: str = ""
    reader: str = ""
    group: str = ""
    option: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    p: float | None = None
    num_cases: int = 0
    num_answers: int = 0
    note: str = ""


def pick(numbers: Iterable[Number], **wanted: str | int | None) -> list[Number]:
    """Those numbers whose attributes are as wanted, in their order."""
    return [
        number
        for number in numbers
        if all(getattr(number, attribute) == value for attribute, value in wanted.items())
    ]


def pick_one(numbers: Iterable[Number], **wanted: str | int | None) -> Number | None:
    """The first of those numbers, if there is one."""
    return next(iter(pick(numbers, **wanted)), None)
