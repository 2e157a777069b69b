"""study.sqlite: readers, what each of them is shown in which order, and what they answered.

One file in write-ahead-log mode, so that readers of the database don't wait for writers. An answer is on the
disk when `save_answer` returns.
"""

import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Limit
from sqlalchemy import URL, Engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError
from sqlmodel import Field, Session, SQLModel, UniqueConstraint, col, create_engine, select, update

from anatogen.core.errors import UserError
from anatogen.study.questions import Question
from anatogen.study.spec import CASE_PATTERN, DATABASE_NAME, StudySpec, load_spec

_ORGANISER_TOKEN = "organiser_token"

# Of the tables below, kept in the database's `user_version`.
SCHEMA_VERSION = 1


class UnknownItemError(UserError):
    """The item is none of this reader's."""


class Setting(SQLModel, table=True):
    """A value that is kept with the study, such as the organiser's token."""

    key: str = Field(primary_key=True)
    value: str


class Reader(SQLModel, table=True):
    """A reader, whose token is the link; nobody can guess it."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    token: str = Field(unique=True)
    paused: bool = False


class Item(SQLModel, table=True):
    """One case, or pair of cases, that one reader is shown at one place of their order.

    Attributes:
        id: 16 hex digits.
        reader_id: Id of the reader.
        position: Position from 0 in the reader's own order.
        protocol: Id of the protocol whose questions are asked.
        case: Id of the volume; of a pair that of the left one.
        other_case: Id of the right volume of a pair.
        repeat_of: Id of the item of the same reader that this one repeats.
    """

    __table_args__ = (UniqueConstraint("reader_id", "position"),)

    id: str = Field(primary_key=True)
    reader_id: int = Field(foreign_key="reader.id")
    position: int
    protocol: str
    case: str
    other_case: str | None = None
    repeat_of: str | None = None


class StoredAnswer(SQLModel, table=True):
    """An answer to a question of an item; of several, the one of the highest revision counts.

    Attributes:
        id: Serial number.
        item_id: Id of the item that was shown.
        question: Id of the question.
        value: Value of the chosen option, or a score from 0 to 100.
        client_id: UUID made by the page; the same answer sent twice is stored once.
        revision: Number that rises when the reader comes back and changes the answer.
        seconds_active: Time spent at the item, in seconds.
        seconds_idle: Time spent away from it while it was open, in seconds.
        answered_at: Time when the answer was stored, UTC, ISO 8601.
    """

    __tablename__ = "answer"
    __table_args__ = (UniqueConstraint("client_id", "question"),)

    id: int | None = Field(default=None, primary_key=True)
    item_id: str = Field(foreign_key="item.id", index=True)
    question: str
    value: int
    client_id: str
    revision: int = 0
    seconds_active: float = 0.0
    seconds_idle: float = 0.0
    answered_at: str

    @property
    def rank(self) -> tuple[int, str, str]:
        """Key whose greatest is the answer that counts, in every copy of the study alike."""
        return self.revision, self.answered_at, self.client_id


class AnswerInput(BaseModel):
    """An answer as a page sends it, with the limits that table models don't check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    item_id: str = Limit(pattern=CASE_PATTERN)
    question: str = Limit(min_length=1, max_length=64)
    value: int = Limit(ge=0, le=100, strict=True)
    client_id: str = Limit(pattern=r"^[0-9A-Za-z-]{8,64}$")
    revision: int = Limit(default=0, ge=0, le=1_000_000, strict=True)
    seconds_active: float = Limit(default=0.0, ge=0, le=1e7)
    seconds_idle: float = Limit(default=0.0, ge=0, le=1e7)


@dataclass(frozen=True)
class Study:
    """An opened study.

    Attributes:
        folder: Folder of the study.
        spec: Content of study.yaml.
        engine: Engine of the study's database.
    """

    folder: Path
    spec: StudySpec
    engine: Engine

    def session(self) -> Session:
        """A session of the database, to be used in a `with` block; what it loads stays readable after it."""
        return Session(self.engine, expire_on_commit=False)


@dataclass(frozen=True)
class ReaderProgress:
    """How far a reader is; never what they answered.

    Attributes:
        name: Name of the reader.
        num_items: Number of cases and pairs to see, repeats included.
        num_done: Number of those all of whose questions are answered.
        seconds_active: Time spent at the answered ones, in seconds.
        last_answer_at: Time of the last answer, UTC, ISO 8601; None before the first.
        paused: Whether the reader has paused.
    """

    name: str
    num_items: int
    num_done: int
    seconds_active: float
    last_answer_at: str | None
    paused: bool


def open_study(folder: Path) -> Study:
    """Opens a study.

    Raises:
        UserError: If the folder is no study, or its database is damaged or of another version.
    """
    spec = load_spec(folder)
    path = folder / DATABASE_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {DATABASE_NAME}: import the study again, or make a new one")
    engine = _engine(path)
    try:
        with engine.connect() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    except DatabaseError as error:
        raise UserError(f"{path} can't be opened: {error.orig}") from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has version {version}, and this Anatogen reads {SCHEMA_VERSION}: update Anatogen, or "
            "import the study again"
        )
    return Study(folder, spec, engine)


def create_study(folder: Path, spec: StudySpec, organiser_token: str) -> Study:
    """Makes the database of a study, without readers, and opens it.

    Args:
        folder: Folder of the study, without a database yet.
        spec: Content of study.yaml.
        organiser_token: Token of the organiser's link.
    """
    engine = _engine(folder / DATABASE_NAME)
    SQLModel.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    study = Study(folder, spec, engine)
    with study.session() as session:
        session.add(Setting(key=_ORGANISER_TOKEN, value=organiser_token))
        session.commit()
    return study


def _engine(path: Path) -> Engine:
    address = URL.create("sqlite", database=str(path))
    engine = create_engine(address, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # An answer that was acknowledged survives a loss of power too.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    return engine


def new_token() -> str:
    """A token that nobody can guess, safe in addresses."""
    return secrets.token_urlsafe(24)


def organiser_token(session: Session) -> str:
    """The token of the organiser's link."""
    return session.exec(select(Setting.value).where(Setting.key == _ORGANISER_TOKEN)).one()


def all_readers(session: Session) -> list[Reader]:
    """All readers, in the order in which they were named."""
    return list(session.exec(select(Reader).order_by(col(Reader.id))))


def items_of(session: Session, reader: Reader) -> list[Item]:
    """The reader's items in the reader's order."""
    return list(session.exec(select(Item).where(Item.reader_id == reader.id).order_by(col(Item.position))))


def answers_of(session: Session, reader: Reader) -> dict[tuple[str, str], StoredAnswer]:
    """The answers that count of one reader, by (item, question)."""
    found = session.exec(select(StoredAnswer).join(Item).where(Item.reader_id == reader.id))
    return latest_answers(found)


def asked(study: Study) -> Iterator[tuple[Reader, Item, Question, StoredAnswer | None]]:
    """Every question of every item of every reader, in each reader's order, with the answer that counts."""
    with study.session() as session:
        for reader in all_readers(session):
            answers = answers_of(session, reader)
            for item in items_of(session, reader):
                for question in study.spec.protocol(item.protocol).questions:
                    yield reader, item, question, answers.get((item.id, question.id))


def latest_answers(answers: Iterable[StoredAnswer]) -> dict[tuple[str, str], StoredAnswer]:
    """The answer that counts of those to the same question of the same item, by (item, question)."""
    latest: dict[tuple[str, str], StoredAnswer] = {}
    for answer in answers:
        place = answer.item_id, answer.question
        if place not in latest or latest[place].rank < answer.rank:
            latest[place] = answer
    return latest


def save_answer(study: Study, reader: Reader, given: AnswerInput) -> int | None:
    """Stores an answer; it is on the disk when this returns. The same answer sent again is stored once.

    Args:
        study: Study, opened.
        reader: Reader who answers.
        given: Answer as the page sends it.

    Returns:
        Revision of another answer that was stored before this one, and counts instead; None if this one
        counts, or was followed by what counts.

    Raises:
        UnknownItemError: If the item is none of the reader's.
        UserError: If the question or the value doesn't fit the item, or the client id was used for another
            answer.
    """
    with study.session() as session:
        item = session.get(Item, given.item_id)
        if item is None or item.reader_id != reader.id:
            raise UnknownItemError(f"item {given.item_id} is none of this reader's")
        question = study.spec.protocol(item.protocol).question(given.question)
        # Ends the reading transaction: one that has read and then writes can fail beside another writer.
        session.rollback()
        if not question.allows(given.value):
            raise UserError(f"question {question.id!r} has no answer {given.value}")
        row = given.model_dump() | {"answered_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        session.exec(insert(StoredAnswer).values(**row).on_conflict_do_nothing())
        session.commit()
        stored = session.exec(
            select(StoredAnswer).where(
                StoredAnswer.client_id == given.client_id, StoredAnswer.question == given.question
            )
        ).one()
        if (stored.item_id, stored.value, stored.revision) != (given.item_id, given.value, given.revision):
            raise UserError(
                f"client_id {given.client_id} was used for another answer: make a new one for each"
            )
        rivals = session.exec(
            select(StoredAnswer).where(
                StoredAnswer.item_id == given.item_id, StoredAnswer.question == given.question
            )
        )
        latest = latest_answers(rivals)[given.item_id, given.question]
    return latest.revision if (latest.id or 0) < (stored.id or 0) else None


def set_paused(study: Study, reader: Reader, paused: bool) -> None:
    """Notes whether the reader has paused."""
    with study.session() as session:
        session.exec(update(Reader).where(col(Reader.id) == reader.id).values(paused=paused))
        session.commit()


def progress(study: Study) -> list[ReaderProgress]:
    """How far every reader is, in the order in which they were named."""
    found = []
    with study.session() as session:
        for reader in all_readers(session):
            items = items_of(session, reader)
            answers = answers_of(session, reader)
            done = [
                item
                for item in items
                if all((item.id, q.id) in answers for q in study.spec.protocol(item.protocol).questions)
            ]
            # Every answer of an item tells the time spent at the item so far.
            seconds: dict[str, float] = {}
            for answer in answers.values():
                seconds[answer.item_id] = max(seconds.get(answer.item_id, 0.0), answer.seconds_active)
            found.append(
                ReaderProgress(
                    name=reader.name,
                    num_items=len(items),
                    num_done=len(done),
                    seconds_active=sum(seconds.values()),
                    last_answer_at=max((a.answered_at for a in answers.values()), default=None),
                    paused=reader.paused,
                )
            )
    return found
