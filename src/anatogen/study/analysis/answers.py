"""The flat table of all answers that the analysis works from, joined with the answer key."""

import json
from dataclasses import dataclass
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.study.spec import KEY_NAME, Source
from anatogen.study.store import asked, open_study


@dataclass(frozen=True)
class AnswerRow:
    """One question of one item of one reader.

    Attributes:
        reader: Name of the reader.
        item: Id of the item that was shown.
        protocol: Id of the protocol.
        question: Id of the question.
        case: Id of the volume; of a pair that of the left one.
        source: Source of the volume: "real", "reconstructed" or "synthetic".
        other_case: Id of the right volume of a pair.
        other_source: Source of the right volume.
        repeat_of: Id of the item of the same reader that this one repeats.
        position: Position in the reader's order, from 0.
        value: Answer; None if there is none.
        seconds_active: Time spent at the item when the question was answered.
        seconds_idle: Time spent away from it while it was open.
    """

    reader: str
    item: str
    protocol: str
    question: str
    case: str
    source: Source
    other_case: str | None
    other_source: Source | None
    repeat_of: str | None
    position: int
    value: int | None = None
    seconds_active: float | None = None
    seconds_idle: float | None = None


def read_key(folder: Path) -> dict[str, Source]:
    """What each case of a study is.

    Raises:
        UserError: If the folder has no key, as a reader's copy has none, or it is damaged.
    """
    path = folder / KEY_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} has no {KEY_NAME}: it is a reader's copy; export it and import the answers"
        )
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return {case: entry["source"] for case, entry in cases.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: restore it from an export of the study") from error


def read_answers(folder: Path) -> list[AnswerRow]:
    """Every question of every item of every reader, unanswered ones too, in each reader's order.

    Args:
        folder: Folder of the study, with its key.

    Raises:
        UserError: If the folder is no study, or has no key.
    """
    study = open_study(folder)
    sources = read_key(folder)
    rows = []
    for reader, item, question, answer in asked(study):
        given = {"value", "seconds_active", "seconds_idle"}
        rows.append(
            AnswerRow(
                reader=reader.name,
                item=item.id,
                protocol=item.protocol,
                question=question.id,
                case=item.case,
                source=sources[item.case],
                other_case=item.other_case,
                other_source=None if item.other_case is None else sources[item.other_case],
                repeat_of=item.repeat_of,
                position=item.position,
                **({} if answer is None else answer.model_dump(include=given)),
            )
        )
    return rows
