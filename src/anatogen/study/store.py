"""study.sqlite: readers, what each of them is shown in which order, and what they answered.

One file in write-ahead-log mode, so that readers of the database don't wait for writers. Its schema has a
version (`PRAGMA user_version`) and is brought up to date when a study is opened. An answer is on the disk
when `save_answer` returns.
"""

import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Limit
from sqlalchemy import URL, Engine, event
from sqlalchemy import text as sql
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import Field, Session, SQLModel, UniqueConstraint, create_engine, select

from anatogen.core.errors import UserError
from anatogen.study.spec import CASE_PATTERN, DATABASE_NAME, StudySpec, load_spec

ORGANISER_TOKEN = "organiser_token"

# Step N takes a database of version N - 1 to version N. Steps that a release has shipped never change.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE setting (key VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL)",
        "CREATE TABLE reader (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL UNIQUE, "
        "token VARCHAR NOT NULL UNIQUE, paused BOOLEAN NOT NULL)",
        "CREATE TABLE item (id VARCHAR NOT NULL PRIMARY KEY, "
        "reader_id INTEGER NOT NULL REFERENCES reader (id), "
        'position INTEGER NOT NULL, protocol VARCHAR NOT NULL, "case" VARCHAR NOT NULL, other_case VARCHAR, '
        "repeat_of VARCHAR, UNIQUE (reader_id, position))",
        "CREATE TABLE answer (id INTEGER NOT NULL PRIMARY KEY, "
        "item_id VARCHAR NOT NULL REFERENCES item (id), "
        "question VARCHAR NOT NULL, value INTEGER NOT NULL, client_id VARCHAR NOT NULL, "
        "revision INTEGER NOT NULL, seconds_active FLOAT NOT NULL, seconds_idle FLOAT NOT NULL, "
        "answered_at VARCHAR NOT NULL, UNIQUE (client_id, question))",
        "CREATE INDEX ix_answer_item_id ON answer (item_id)",
    ),
)
SCHEMA_VERSION = len(_MIGRATIONS)


class UnknownItemError(UserError):
    """The item is none of this reader's."""


class Setting(SQLModel, table=True):
    """A value that is kept with the study, such as the organiser's token."""

    key: str = Field(primary_key=True)
    value: str


class Reader(SQLModel, table=True):
    """Who answers. The token is the reader's link; nobody can guess it."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    token: str = Field(unique=True)
    paused: bool = False


class Item(SQLModel, table=True):
    """One case, or pair of cases, that one reader is shown at one place of their order.

    Attributes:
        id: 16 hex digits.
        reader_id: Whose it is.
        position: From 0, each reader having an order of their own.
        protocol: Id of the protocol whose questions are asked.
        case: The volume; of a pair the left one.
        other_case: Of a pair the right one.
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


class Answer(SQLModel, table=True):
    """One answer to one question of an item; of several, the one of the highest revision counts.

    Attributes:
        id: Serial.
        item_id: What was shown.
        question: Id of the question.
        value: As the question's options, or 0 to 100.
        client_id: UUID made by the page; the same answer sent twice is stored once.
        revision: Rises when the reader comes back and changes the answer.
        seconds_active: Spent at the item.
        seconds_idle: Spent away from it while it was open.
        answered_at: When the answer was stored, UTC, ISO 8601.
    """

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
        """By which the answer that counts is the greatest, in every copy of the study alike."""
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
        folder: Where it lies.
        spec: What study.yaml says.
        engine: Of its database.
    """

    folder: Path
    spec: StudySpec
    engine: Engine

    def session(self) -> Session:
        """A session of the database, to be used in a `with` block; what it loads stays readable after it."""
        return Session(self.engine, expire_on_commit=False)


@dataclass(frozen=True)
class SavedAnswer:
    """What became of an answer.

    Attributes:
        answer: What is stored: of an answer sent again, what was stored the first time.
        overruled_by: The revision of another answer that was stored before this one, and counts instead; None
            if this one counts, or was followed by what counts.
    """

    answer: Answer
    overruled_by: int | None


@dataclass(frozen=True)
class ReaderProgress:
    """How far a reader is; never what they answered.

    Attributes:
        name: The reader's.
        num_items: Cases and pairs to see, repeats included.
        num_done: Of these, all of whose questions are answered.
        seconds_active: Spent at the answered ones.
        last_answer_at: UTC, ISO 8601; None before the first.
        paused: Whether the reader has paused.
    """

    name: str
    num_items: int
    num_done: int
    seconds_active: float
    last_answer_at: str | None
    paused: bool


def open_study(folder: Path) -> Study:
    """Opens a study, and brings its database up to date.

    Raises:
        UserError: If the folder is no study, or a newer Anatogen made it.
    """
    spec = load_spec(folder)
    path = folder / DATABASE_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {DATABASE_NAME}: import the study again, or make a new one")
    return Study(folder, spec, open_database(path))


def open_database(path: Path) -> Engine:
    """Opens a database, made where it is missing, and brings it up to date.

    Raises:
        UserError: If it is damaged, or a newer Anatogen made it.
    """
    address = URL.create("sqlite", database=str(path))
    engine = create_engine(address, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # An answer that was acknowledged survives a loss of power too.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    try:
        _migrate(engine, path)
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} can't be opened: {error}") from error
    return engine


def _migrate(engine: Engine, path: Path) -> None:
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        (version,) = cursor.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            cursor.execute("BEGIN IMMEDIATE")
            # Another process may have done it meanwhile.
            (version,) = cursor.execute("PRAGMA user_version").fetchone()
            for step in _MIGRATIONS[version:]:
                for statement in step:
                    cursor.execute(statement)
            cursor.execute(f"PRAGMA user_version = {max(version, SCHEMA_VERSION)}")
            connection.commit()
    finally:
        connection.close()
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has version {version}, and this Anatogen knows up to {SCHEMA_VERSION}: update Anatogen"
        )


def new_token() -> str:
    """A token that nobody can guess, safe in addresses."""
    return secrets.token_urlsafe(24)


def reader_link(token: str) -> str:
    """Where on the study's server the reader of this token reads."""
    return f"/r/{token}"


def organiser_link(token: str) -> str:
    """Where on the study's server the organiser sees how far readers are."""
    return f"/o/{token}"


def organiser_token(session: Session) -> str:
    """The token of the organiser's link."""
    return session.exec(select(Setting.value).where(Setting.key == ORGANISER_TOKEN)).one()


def all_readers(session: Session) -> list[Reader]:
    """All readers, in the order in which they were named."""
    return list(session.exec(select(Reader).order_by(Reader.id)))  # type: ignore[arg-type]


def items_of(session: Session, reader: Reader) -> list[Item]:
    """The reader's items in the reader's order."""
    return list(session.exec(select(Item).where(Item.reader_id == reader.id).order_by(Item.position)))  # type: ignore[arg-type]


def answers_of(session: Session, reader: Reader) -> dict[tuple[str, str], Answer]:
    """The answers that count of one reader, by (item, question)."""
    found = session.exec(select(Answer).join(Item).where(Item.reader_id == reader.id))
    return latest_answers(found)


def latest_answers(answers: Iterable[Answer]) -> dict[tuple[str, str], Answer]:
    """Of answers to the same question of the same item, the one that counts, by (item, question)."""
    latest: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        place = answer.item_id, answer.question
        if place not in latest or latest[place].rank < answer.rank:
            latest[place] = answer
    return latest


def save_answer(study: Study, reader: Reader, given: AnswerInput) -> SavedAnswer:
    """Stores an answer; it is on the disk when this returns. The same answer sent again is stored once.

    Args:
        study: The study.
        reader: Who answers.
        given: The answer.

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
        session.exec(insert(Answer).values(**row).on_conflict_do_nothing())
        session.commit()
        stored = session.exec(
            select(Answer).where(Answer.client_id == given.client_id, Answer.question == given.question)
        ).one()
        if (stored.item_id, stored.value, stored.revision) != (given.item_id, given.value, given.revision):
            raise UserError(
                f"client_id {given.client_id} was used for another answer: make a new one for each"
            )
        rivals = session.exec(
            select(Answer).where(Answer.item_id == given.item_id, Answer.question == given.question)
        )
        latest = latest_answers(rivals)[given.item_id, given.question]
    overruled = (latest.id or 0) < (stored.id or 0)
    return SavedAnswer(stored, latest.revision if overruled else None)


def set_paused(study: Study, reader: Reader, paused: bool) -> None:
    """Notes whether the reader has paused."""
    with study.session() as session:
        session.execute(
            sql("UPDATE reader SET paused = :paused WHERE id = :id"), {"paused": paused, "id": reader.id}
        )
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
