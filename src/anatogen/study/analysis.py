"""`anatogen study analyse`: every number that a study's answers give, from the table of answers alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from anatogen.core.errors import UserError
from anatogen.study.agreement import between_readers, with_themselves
from anatogen.study.answers import AnswerRow
from anatogen.study.equivalence import MARGIN, SHARE_MARGIN, check_margins, equivalence_numbers
from anatogen.study.numbers import Number
from anatogen.study.ordinal_model import model_numbers
from anatogen.study.pairs import pair_numbers
from anatogen.study.questions import Protocol, Question
from anatogen.study.ratings import Ratings, is_choice_of_pair, is_turing, ratings_of
from anatogen.study.shares import score_numbers, share_numbers
from anatogen.study.times import time_numbers
from anatogen.study.turing import turing_numbers

SEED = 0


@dataclass(frozen=True)
class Analysis:
    """What a study's answers say.

    Attributes:
        protocols: In the study's order.
        readers: Names, in the study's order.
        rows: The answers.
        ordinal: Tables of answers to the questions of ordinal choice.
        turing: Those of real or synthetic, each with its confidence if that was asked.
        pairs: Those of the choice between the two of a pair.
        numbers: Everything that was computed, or why it was not.
        margin: Of equivalence, in points.
        share_margin: Of equivalence, as a fraction of answers.
    """

    protocols: tuple[Protocol, ...]
    readers: tuple[str, ...]
    rows: tuple[AnswerRow, ...]
    ordinal: tuple[Ratings, ...]
    turing: tuple[tuple[Ratings, Ratings | None], ...]
    pairs: tuple[Ratings, ...]
    numbers: tuple[Number, ...]
    margin: float
    share_margin: float

    def question(self, number: Number) -> Question:
        """The question that a number is of."""
        protocol = next(each for each in self.protocols if each.id == number.protocol)
        return protocol.question(number.question)


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
        protocols: Of the study.
        margin: Differences of mean answers up to it are equivalent, in points.
        share_margin: The same of the share of best answers, as a fraction.

    Raises:
        UserError: If a margin is wrong, or there is no answer at all.
    """
    check_margins(margin, share_margin)
    if not any(row.value is not None for row in rows):
        raise UserError("the study has no answers yet: serve it, and let readers read")
    numbers = answer_numbers(rows)
    ordinal: list[Ratings] = []
    turing: list[tuple[Ratings, Ratings | None]] = []
    pairs: list[Ratings] = []
    for protocol in protocols:
        for question in protocol.questions:
            ratings = ratings_of(rows, protocol, question)
            if question.kind == "score":
                numbers += score_numbers(ratings)
                continue
            if is_choice_of_pair(protocol, question):
                pairs.append(ratings)
                numbers += pair_numbers(ratings)
            elif is_turing(protocol, question):
                asked = next((each for each in protocol.questions if each.kind == "score"), None)
                confidence = None if asked is None else ratings_of(rows, protocol, asked)
                turing.append((ratings, confidence))
                numbers += turing_numbers(ratings, confidence, SEED)
            else:
                ordinal.append(ratings)
                numbers += share_numbers(ratings)
                numbers += equivalence_numbers(ratings, margin, share_margin)
                numbers += model_numbers(ratings)
            numbers += between_readers(ratings, SEED) + with_themselves(ratings, SEED)
    numbers += time_numbers(rows)
    return Analysis(
        protocols=tuple(protocols),
        readers=tuple(dict.fromkeys(row.reader for row in rows)),
        rows=tuple(rows),
        ordinal=tuple(ordinal),
        turing=tuple(turing),
        pairs=tuple(pairs),
        numbers=tuple(numbers),
        margin=margin,
        share_margin=share_margin,
    )


def answer_numbers(rows: Sequence[AnswerRow]) -> list[Number]:
    """How many answers each reader gave of those asked for, by protocol and question, repeats included."""
    asked: dict[tuple[str, str, str], list[bool]] = {}
    for row in rows:
        asked.setdefault((row.protocol, row.question, row.reader), []).append(row.value is not None)
    return [
        Number("answers", "missing", *place, value=float(given.count(False)), num_answers=sum(given))
        for place, given in asked.items()
    ]


def check_finished(rows: Sequence[AnswerRow]) -> None:
    """Lets a study pass whose readers have answered everything.

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
