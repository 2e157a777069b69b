"""Answers to one question as a table of readers by cases, which every statistic starts from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from anatogen.study.analysis.answers import AnswerRow
from anatogen.study.analysis.statistic import Section, Statistic
from anatogen.study.questions import Protocol, Question
from anatogen.study.spec import Source

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SOURCES: tuple[Source, ...] = get_args(Source)
TURING_QUESTION = "real_or_synthetic"


@dataclass(frozen=True)
class Ratings:
    """The answers to one question.

    Attributes:
        protocol: Id of the protocol.
        question: Question.
        readers: Names of the R readers, in the study's order.
        cases: Ids of the C cases, sorted; of a pair both, joined by "+".
        sources: Source of each case; of a pair that of the volume that is not real.
        first: (R, C), the answer when the case was first shown; NaN if there is none. Of the choice between
            the two of a pair, 1 if the real one was chosen, else 0: sides differ between readers.
        again: (R, C), the answer when it was shown again; NaN if it was not, or not answered.
    """

    protocol: str
    question: Question
    readers: tuple[str, ...]
    cases: tuple[str, ...]
    sources: tuple[Source, ...]
    first: Floats
    again: Floats

    @property
    def present(self) -> tuple[Source, ...]:
        """The sources that cases come from, in their usual order."""
        return tuple(source for source in SOURCES if source in self.sources)

    @property
    def values(self) -> tuple[int, ...]:
        """The answers that can be given to a question of choice, ascending; of a pair wrong 0 and right 1."""
        return tuple(sorted(option.value for option in self.question.options))

    @property
    def readings(self) -> list[tuple[str, list[int]]]:
        """Each reader's name and line of the tables, then all lines under no name."""
        each = [(reader, [line]) for line, reader in enumerate(self.readers)]
        return [*each, ("", list(range(len(self.readers))))]

    def of(self, source: Source) -> Flags:
        """Which cases (C,) come from the source."""
        return np.array([each == source for each in self.sources], dtype=bool)

    def groups(self, section: Section, name: str) -> Iterator[tuple[Statistic, Floats]]:
        """First answers (R, C) of each reader, then of all, to each source's cases, and what they are of.

        Args:
            section: Section of the statistic without a value that says it.
            name: Its name.
        """
        for source in self.present:
            for reader, lines in self.readings:
                place = Statistic(section, name, self.protocol, self.question.id, reader, source)
                yield place, self.first[lines][:, self.of(source)]


def ratings_of(rows: Sequence[AnswerRow], protocol: Protocol, question: Question) -> Ratings:
    """Gathers the answers to one question.

    Args:
        rows: Answers of the whole study.
        protocol: Protocol of the question.
        question: Question whose answers are gathered.
    """
    mine = [row for row in rows if (row.protocol, row.question) == (protocol.id, question.id)]
    mine.sort(key=lambda row: row.position)
    readers = tuple(dict.fromkeys(row.reader for row in rows))
    sources = {_case(row): source_of(row) for row in mine}
    cases = tuple(sorted(sources))
    first, again = (np.full((len(readers), len(cases)), np.nan) for _ in range(2))
    line = {reader: index for index, reader in enumerate(readers)}
    column = {case: index for index, case in enumerate(cases)}
    for row in mine:
        table = first if row.repeat_of is None else again
        place = line[row.reader], column[_case(row)]
        if row.value is not None and np.isnan(table[place]):
            table[place] = _is_right(row) if is_choice_of_pair(protocol, question) else row.value
    return Ratings(
        protocol=protocol.id,
        question=question,
        readers=readers,
        cases=cases,
        sources=tuple(sources[case] for case in cases),
        first=first,
        again=again,
    )


def is_choice_of_pair(protocol: Protocol, question: Question) -> bool:
    """Whether the question is which of two volumes is real: 0 for the left, 1 for the right."""
    return protocol.kind == "pair" and _is_yes_or_no(question)


def is_turing(protocol: Protocol, question: Question) -> bool:
    """Whether the question is if one volume is real (1) or synthetic (0)."""
    return protocol.kind == "rating" and question.id == TURING_QUESTION and _is_yes_or_no(question)


def _is_yes_or_no(question: Question) -> bool:
    return question.kind == "choice" and {option.value for option in question.options} == {0, 1}


def _case(row: AnswerRow) -> str:
    return row.case if row.other_case is None else "+".join(sorted((row.case, row.other_case)))


def source_of(row: AnswerRow) -> Source:
    """What the row's volume is; of a pair the one that is not real."""
    return row.other_source if row.other_source is not None and row.source == "real" else row.source


def _is_right(row: AnswerRow) -> float:
    """1 if the real one of a pair was chosen; option 0 is the left one, which is `case`."""
    chosen = row.source if row.value == 0 else row.other_source
    return float(chosen == "real")
