"""`anatogen study analyse`: every number that a study's answers give, from the table of answers alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from anatogen.core.errors import UserError
from anatogen.study.analysis.agreement import between_readers, with_themselves
from anatogen.study.analysis.answers import AnswerRow
from anatogen.study.analysis.equivalence import MARGIN, SHARE_MARGIN, check_margins, equivalence_statistics
from anatogen.study.analysis.ordinal_model import model_statistics
from anatogen.study.analysis.ratings import Ratings, is_choice_of_pair, is_turing, ratings_of
from anatogen.study.analysis.shares import score_statistics, share_statistics
from anatogen.study.analysis.statistic import Statistic
from anatogen.study.analysis.times import time_statistics
from anatogen.study.analysis.turing import pair_statistics, turing_statistics
from anatogen.study.questions import Protocol, Question

SEED = 0
ALL_READERS = "all readers"


@dataclass(frozen=True)
class Analysis:
    """What a study's answers say.

    Attributes:
        protocols: Protocols in the study's order.
        readers: Names of the readers, in the study's order.
        rows: All answers.
        ordinal: Tables of answers to the questions of ordinal choice.
        turing: Tables of real or synthetic, each with its confidence if that was asked.
        pairs: Tables of the choice between the two of a pair.
        statistics: Everything that was computed, or why it was not.
        margin: Margin of equivalence, in points.
        share_margin: Margin of equivalence, as a fraction of answers.
    """

    protocols: tuple[Protocol, ...]
    readers: tuple[str, ...]
    rows: tuple[AnswerRow, ...]
    ordinal: tuple[Ratings, ...]
    turing: tuple[tuple[Ratings, Ratings | None], ...]
    pairs: tuple[Ratings, ...]
    statistics: tuple[Statistic, ...]
    margin: float
    share_margin: float

    def question(self, statistic: Statistic) -> Question:
        """The question that a statistic is of."""
        protocol = next(each for each in self.protocols if each.id == statistic.protocol)
        return protocol.question(statistic.question)

    def title(self, statistic: Statistic) -> str:
        """The text of the question that a statistic is of, without its question mark."""
        return self.question(statistic).text.rstrip("? ")

    @property
    def lines(self) -> list[str]:
        """Names of the readers, in the study's order; of several also "", which is all together."""
        return [*self.readers, ""] if len(self.readers) > 1 else list(self.readers)


def analyse_answers(
    rows: Sequence[AnswerRow],
    protocols: Sequence[Protocol],
    *,
    margin: float = MARGIN,
    share_margin: float = SHARE_MARGIN,
) -> Analysis:
    """Computes everything; what can't be computed is a number without a value and with the reason.

    First answers to a case count; answers to repeats are for readers' agreement with themselves alone.

    Args:
        rows: Every question of every item of every reader, unanswered ones too.
        protocols: Protocols of the study.
        margin: Difference of mean answers, in points, below which they are equivalent.
        share_margin: Difference of shares of best answers, as a fraction, below which they are equivalent.

    Raises:
        UserError: If a margin is wrong, or there is no answer at all.
    """
    check_margins(margin, share_margin)
    if not any(row.value is not None for row in rows):
        raise UserError("the study has no answers yet: serve it, and let readers read")
    statistics = missing_statistics(rows)
    ordinal: list[Ratings] = []
    turing: list[tuple[Ratings, Ratings | None]] = []
    pairs: list[Ratings] = []
    for protocol in protocols:
        for question in protocol.questions:
            ratings = ratings_of(rows, protocol, question)
            if question.kind == "score":
                statistics += score_statistics(ratings)
                continue
            if is_choice_of_pair(protocol, question):
                pairs.append(ratings)
                statistics += pair_statistics(ratings)
            elif is_turing(protocol, question):
                asked = next((each for each in protocol.questions if each.kind == "score"), None)
                confidence = None if asked is None else ratings_of(rows, protocol, asked)
                turing.append((ratings, confidence))
                statistics += turing_statistics(ratings, confidence, SEED)
            else:
                ordinal.append(ratings)
                statistics += share_statistics(ratings)
                statistics += equivalence_statistics(ratings, margin, share_margin)
                statistics += model_statistics(ratings)
            statistics += between_readers(ratings, SEED) + with_themselves(ratings, SEED)
    statistics += time_statistics(rows)
    return Analysis(
        protocols=tuple(protocols),
        readers=tuple(dict.fromkeys(row.reader for row in rows)),
        rows=tuple(rows),
        ordinal=tuple(ordinal),
        turing=tuple(turing),
        pairs=tuple(pairs),
        statistics=tuple(statistics),
        margin=margin,
        share_margin=share_margin,
    )


def missing_statistics(rows: Sequence[AnswerRow]) -> list[Statistic]:
    """How many answers each reader gave of those asked for, by protocol and question, repeats included."""
    asked: dict[tuple[str, str, str], list[bool]] = {}
    for row in rows:
        asked.setdefault((row.protocol, row.question, row.reader), []).append(row.value is not None)
    return [
        Statistic("answers", "missing", *place, value=float(given.count(False)), num_answers=sum(given))
        for place, given in asked.items()
    ]


def check_finished(rows: Sequence[AnswerRow]) -> None:
    """Checks that readers have answered everything.

    Raises:
        UserError: Naming those who have not.
    """
    open_items: dict[str, set[str]] = {}
    for row in rows:
        if row.value is None:
            open_items.setdefault(row.reader, set()).add(row.item)
    if open_items:
        listed = ", ".join(f"{reader} {len(items)}" for reader, items in open_items.items())
        raise UserError(
            f"readers have cases left ({listed}), and answers that are seen early can change a study: wait, "
            "or analyse what there is with --unfinished"
        )
