"""Answers computed from numbers, and how they sound; the same for evaluations, studies and experiments."""

from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """How an answer sounds; also its colour on pages."""

    GOOD = "good"
    MIXED = "mixed"
    BAD = "bad"
    OPEN = "open"  # the numbers can't tell


@dataclass(frozen=True)
class Answer:
    """The answer to one of a report's questions.

    Attributes:
        question: What is asked.
        tone: How the answer sounds.
        headline: The answer in one sentence.
        detail: What it rests on.
    """

    question: str
    tone: Tone
    headline: str
    detail: str
