"""What readers are asked: protocols of questions, in YAML that an institution can change and translate.

Three come with the package: `paper` (Khader et al. 2023, Table 1), `turing` and `2afc`.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from anatogen.config.resolving import Section, resolve
from anatogen.core.errors import ConfigError, UserError

PROTOCOLS = ("paper", "turing", "2afc")
MAX_SCORE = 100
_ID = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class Option(Section):
    """One of the answers to a question of choice.

    Attributes:
        value: Number that the analysis counts with; of ordinal options the worst is lowest.
        text: Text that the reader sees.
    """

    value: int = Field(ge=0, le=MAX_SCORE)
    text: str = Field(min_length=1)


class Question(Section):
    """One question about a volume, or a pair of them.

    Attributes:
        id: Name in answers and tables.
        text: Text that the reader sees.
        kind: "choice" between options, or "score" from 0 to 100.
        options: Options of a choice, in the order shown.
        low: Meaning of a score of 0.
        high: Meaning of a score of 100.
    """

    id: str = Field(pattern=_ID)
    text: str = Field(min_length=1)
    kind: Literal["choice", "score"]
    options: tuple[Option, ...] = ()
    low: str | None = None
    high: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        values = [option.value for option in self.options]
        if self.kind == "choice" and (len(values) < 2 or len(set(values)) < len(values)):
            raise ValueError(f"question {self.id!r} needs two or more options of different values")
        if self.kind == "score" and (values or not self.low or not self.high):
            raise ValueError(f"question {self.id!r} is a score: it needs `low` and `high` and no options")
        return self

    def allows(self, value: int) -> bool:
        """Whether the value is one of the question's answers."""
        if self.kind == "score":
            return 0 <= value <= MAX_SCORE
        return value in [option.value for option in self.options]


class Protocol(Section):
    """Questions that are asked together.

    Attributes:
        id: Name in answers and tables.
        title: Heading of the questions.
        kind: "rating" shows one volume, "pair" two side by side, one of them real.
        instructions: Text that the reader sees before the first case.
        questions: Questions in the order asked.
    """

    id: str = Field(pattern=_ID)
    title: str = Field(min_length=1)
    kind: Literal["rating", "pair"]
    instructions: str = ""
    questions: tuple[Question, ...]

    @model_validator(mode="after")
    def _has_distinct_questions(self) -> Self:
        names = [question.id for question in self.questions]
        if not names or len(set(names)) < len(names):
            listed = ", ".join(names) or "none"
            raise ValueError(f"protocol {self.id!r} needs questions, each of an id of its own, not {listed}")
        return self

    def question(self, name: str) -> Question:
        """The question of this id.

        Raises:
            UserError: If there is none.
        """
        for question in self.questions:
            if question.id == name:
                return question
        raise UserError(f"protocol {self.id!r} has no question {name!r}")


def load_protocol(name: str) -> Protocol:
    """Reads a protocol.

    Args:
        name: "paper", "turing", "2afc", or the path of a YAML file.

    Raises:
        UserError: If there is none of this name.
        ConfigError: If the file is not a protocol; the message lists every problem.
    """
    known = name in PROTOCOLS
    path = Path(str(files("anatogen.study") / "protocols" / f"{name}.yaml")) if known else Path(name)
    if not path.is_file():
        raise UserError(f"protocol {name!r} is unknown: use {', '.join(PROTOCOLS)} or a YAML file")
    try:
        return resolve(Protocol, file=path)
    except ConfigError as error:
        raise error if known else ConfigError(f"protocol {name}: {error}") from error


def load_protocols(names: Sequence[str]) -> tuple[Protocol, ...]:
    """Reads the protocols of one study, in the order in which readers go through them.

    Args:
        names: Names as `load_protocol` takes them.

    Raises:
        UserError: If there is none, one is wrong, or two have the same id.
    """
    protocols = tuple(load_protocol(name) for name in names)
    ids = [protocol.id for protocol in protocols]
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"protocols {', '.join(ids) or '(none)'}: name one or more, each once")
    return protocols
