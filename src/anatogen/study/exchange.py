"""`anatogen study export` and `import`: a study in a zip, to a reader's machine and back.

A zip holds `contents.json` (version, study, a SHA-256 of every other file), `records.json` (readers, items
and answers as plain values: no database of unknown origin is ever opened), and, unless it brings back answers
only, `study.yaml` and the volumes. The organiser's own has the key too; a reader's has neither the key, nor
other readers, nor which cases are repeats, nor the seed that all this follows from.

Nothing in a zip is trusted: only files of known names are read, each compared with its hash, and answers are
checked like those that come from a page. Merging keeps every answer; the highest revision counts.
"""

import hashlib
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from anatogen.config.resolving import to_yaml
from anatogen.core.errors import UserError
from anatogen.core.files import atomic_folder, atomic_path, sha256_file
from anatogen.core.version import __version__
from anatogen.study.spec import (
    CASE_PATTERN,
    KEY_NAME,
    LEAKS_NAME,
    SPEC_NAME,
    VOLUME_TIME,
    VOLUMES,
    StudySpec,
    load_spec,
    volume_path,
)
from anatogen.study.store import (
    AnswerInput,
    Item,
    Reader,
    StoredAnswer,
    Study,
    all_readers,
    create_study,
    items_of,
    new_token,
    open_study,
    organiser_token,
)

FORMAT_VERSION = 1
CONTENTS_NAME = "contents.json"
RECORDS_NAME = "records.json"
# Far more than any study's: what is larger is no study.
_MAX_JSON_BYTES = 1 << 28
_ZIP_TIME = (2000, 1, 1, 0, 0, 0)
_FILES = (CONTENTS_NAME, RECORDS_NAME, SPEC_NAME, KEY_NAME, LEAKS_NAME)
_VOLUME = re.compile(rf"{VOLUMES}/[0-9a-f]{{16}}\.nii")

Kind = Literal["study", "reader", "answers"]
_DAMAGED = "is damaged or was changed: export it again"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Version(BaseModel):
    format_version: int


class _Contents(_Model):
    format_version: int
    kind: Kind
    study: str = Field(pattern=CASE_PATTERN)
    anatogen_version: str
    sha256: dict[str, str]


class _ReaderRecord(_Model):
    id: int
    name: str = Field(min_length=1, max_length=64)
    token: str = Field(pattern=r"^[0-9A-Za-z_-]{32,64}$")
    paused: bool


class _ItemRecord(_Model):
    id: str = Field(pattern=CASE_PATTERN)
    reader_id: int
    position: int = Field(ge=0)
    protocol: str
    case: str = Field(pattern=CASE_PATTERN)
    other_case: str | None = Field(default=None, pattern=CASE_PATTERN)
    repeat_of: str | None = Field(default=None, pattern=CASE_PATTERN)


class _AnswerRecord(AnswerInput):
    answered_at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT[0-9:.]{8,15}\+00:00$")


class _Records(_Model):
    organiser_token: str | None = Field(default=None, pattern=r"^[0-9A-Za-z_-]{32,64}$")
    readers: tuple[_ReaderRecord, ...]
    items: tuple[_ItemRecord, ...]
    answers: tuple[_AnswerRecord, ...]


@dataclass(frozen=True)
class Exchanged:
    """What an export packed, or an import brought.

    Attributes:
        summary: Content of the zip, in words.
        num_new: Number of answers that were new to the study.
    """

    summary: str
    num_new: int = 0


def export_study(folder: Path, file: Path, *, reader: str | None = None) -> Exchanged:
    """Packs a study, one reader's part of it, or, of a reader's copy, the answers alone; atomically.

    Args:
        folder: Folder of the study.
        file: Path of the .zip.
        reader: Name of the reader whose machine it goes to.

    Raises:
        UserError: If there is no such study or reader, or the file lies inside the study.
    """
    study = open_study(folder)
    if file.suffix.lower() != ".zip":
        raise UserError(f"{file} must end in .zip")
    if file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} lies inside the study: choose a place outside {folder}")
    is_copy = not (folder / KEY_NAME).is_file()
    if is_copy and reader is not None:
        raise UserError(f"{folder} is a reader's copy: export it without --reader, to bring its answers back")
    kind: Kind = "answers" if is_copy else "study" if reader is None else "reader"
    records = _records_of(study, kind, reader)
    texts = {RECORDS_NAME: records.model_dump_json().encode()}
    paths: dict[str, Path] = {}
    if kind != "answers":
        spec = study.spec
        if reader is not None:
            hidden = {"readers": (reader,), "num_cases": None, "repeat": None, "seed": None}
            spec = spec.model_copy(update=hidden)
        texts[SPEC_NAME] = to_yaml(spec).encode()
        cases = {case for item in records.items for case in (item.case, item.other_case) if case}
        paths = {f"{VOLUMES}/{case}.nii": volume_path(folder, case) for case in sorted(cases)}
    if kind == "study":
        for name in (KEY_NAME, LEAKS_NAME):
            if (folder / name).is_file():
                paths[name] = folder / name
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    contents = _Contents(
        format_version=FORMAT_VERSION,
        kind=kind,
        study=study.spec.id,
        anatogen_version=__version__,
        sha256=hashes | {name: sha256_file(path) for name, path in paths.items()},
    )
    texts[CONTENTS_NAME] = contents.model_dump_json().encode()
    # Not compressed: how well a volume shrinks tells its source.
    with atomic_path(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), text)
        for name, path in paths.items():
            information = zipfile.ZipInfo(name, _ZIP_TIME)
            with path.open("rb") as source, archive.open(information, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)
    what = {
        "study": "the whole study with its key: not for readers",
        "reader": f"the part of reader {reader!r}, without the key",
        "answers": "the answers of this copy",
    }[kind]
    return Exchanged(f"{file}: {what}; {len(records.answers)} answers")


def import_study(folder: Path, file: Path) -> Exchanged:
    """Unpacks a study where there is none, else merges the answers of a copy into it.

    Args:
        folder: Folder of the study; made from the zip where it is missing.
        file: Zip that `export_study` wrote.

    Raises:
        UserError: If the zip is damaged, unsafe, of another study or of a newer Anatogen, or holds answers
            that don't fit; the study is then as it was.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            contents, records = _read(archive, file)
            if folder.exists():
                return _merge(folder, file, contents, records)
            return _unpack(folder, file, contents, records, archive)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, IntegrityError) as error:
        # The database refuses records that contradict one another, such as two items of one name.
        raise UserError(f"{file} {_DAMAGED}") from error


def _records_of(study: Study, kind: Kind, reader: str | None) -> _Records:
    with study.session() as session:
        readers = [each for each in all_readers(session) if reader in (None, each.name)]
        if not readers:
            known_names = ", ".join(study.spec.readers)
            raise UserError(f"the study has no reader {reader!r}: its readers are {known_names}")
        items = [item for each in readers for item in items_of(session, each)]
        mine = col(Item.reader_id).in_([each.id for each in readers])
        answers = session.exec(select(StoredAnswer).join(Item).where(mine).order_by(col(StoredAnswer.id)))
        answer_records = tuple(_AnswerRecord(**answer.model_dump(exclude={"id"})) for answer in answers)
        if kind == "answers":
            return _Records(readers=(), items=(), answers=answer_records)
        hidden = {"repeat_of"} if kind == "reader" else set()
        return _Records(
            organiser_token=organiser_token(session) if kind == "study" else None,
            readers=tuple(_ReaderRecord(**each.model_dump()) for each in readers),
            items=tuple(_ItemRecord(**item.model_dump(exclude=hidden)) for item in items),
            answers=answer_records,
        )


def _read(archive: zipfile.ZipFile, file: Path) -> tuple[_Contents, _Records]:
    names = archive.namelist()
    for name in names:
        if name not in _FILES and not _VOLUME.fullmatch(name):
            raise UserError(f"{file} holds {name!r}, which is no part of a study: nothing was imported")
    if CONTENTS_NAME not in names or len(set(names)) < len(names):
        raise UserError(f"{file} is no study that `anatogen study export` wrote")
    try:
        text = _small(archive, CONTENTS_NAME, file)
        version = _Version.model_validate_json(text).format_version
        if version > FORMAT_VERSION:
            raise UserError(
                f"{file} has version {version}, and this Anatogen knows up to {FORMAT_VERSION}: update it"
            )
        contents = _Contents.model_validate_json(text)
        if {*contents.sha256, CONTENTS_NAME} != set(names) or RECORDS_NAME not in names:
            raise UserError(f"{file} {_DAMAGED}")
        for name, digest in contents.sha256.items():
            with archive.open(name) as source:
                # A zip's member can be read into a buffer, which its declared type does not say.
                if hashlib.file_digest(source, "sha256").hexdigest() != digest:  # type: ignore[arg-type]
                    raise UserError(f"{file} {_DAMAGED}; {name} has another hash")
        return contents, _Records.model_validate_json(_small(archive, RECORDS_NAME, file))
    except ValidationError as error:
        raise UserError(f"{file} {_DAMAGED}") from error


def _small(archive: zipfile.ZipFile, name: str, file: Path) -> bytes:
    if archive.getinfo(name).file_size > _MAX_JSON_BYTES:
        raise UserError(f"{file} {_DAMAGED}; {name} is larger than any study's")
    return archive.read(name)


def _unpack(
    folder: Path, file: Path, contents: _Contents, records: _Records, archive: zipfile.ZipFile
) -> Exchanged:
    if SPEC_NAME not in contents.sha256:
        raise UserError(
            f"{file} holds answers only: import it into the study that it belongs to, not {folder}"
        )
    with atomic_folder(folder) as part:
        (part / VOLUMES).mkdir()
        for name in sorted({*contents.sha256} - {RECORDS_NAME}):
            path = part / name
            with archive.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            if path.parent != part:
                os.utime(path, (VOLUME_TIME, VOLUME_TIME))
        spec = load_spec(part)
        study = create_study(part, spec, records.organiser_token or new_token())
        with study.session() as session:
            session.add_all(Reader(**reader.model_dump()) for reader in records.readers)
            session.flush()
            session.add_all(Item(**item.model_dump()) for item in records.items)
            session.flush()
            num_new = _add_answers(session, records, spec, file)
            session.commit()
        study.engine.dispose()
    readers = ", ".join(reader.name for reader in records.readers)
    return Exchanged(f"{folder}: study of {readers}; {num_new} answers", num_new)


def _merge(folder: Path, file: Path, contents: _Contents, records: _Records) -> Exchanged:
    study = open_study(folder)
    if study.spec.id != contents.study:
        raise UserError(f"{file} is of another study than {folder}: import it into its own")
    with study.session() as session:
        known = {reader.id for reader in all_readers(session)}
        for reader in records.readers:
            if contents.kind == "reader" and reader.id not in known:
                raise UserError(
                    f"{file} is for reader {reader.name!r}, whom {folder} does not have: import it into "
                    "another folder"
                )
        num_new = _add_answers(session, records, study.spec, file)
        session.commit()
    total = len(records.answers)
    return Exchanged(f"{folder}: {num_new} new of {total} answers in {file}", num_new)


def _add_answers(session: Session, records: _Records, spec: StudySpec, file: Path) -> int:
    """Adds the answers that are not there yet, and returns how many; the caller commits."""
    items = {item.id: item for item in session.exec(select(Item))}
    stored = {(a.client_id, a.question): a for a in session.exec(select(StoredAnswer))}
    num_new = 0
    for record in records.answers:
        item = items.get(record.item_id)
        if item is None:
            raise UserError(f"{file} holds an answer to item {record.item_id}, which the study does not have")
        if not spec.protocol(item.protocol).question(record.question).allows(record.value):
            raise UserError(f"{file} holds the answer {record.value} to {record.question!r}, which is none")
        answer = StoredAnswer(**record.model_dump())
        known = stored.get((record.client_id, record.question))
        if known is None:
            session.add(answer)
            stored[record.client_id, record.question] = answer
            num_new += 1
        elif known.item_id != record.item_id:
            raise UserError(
                f"{file} holds answer {record.client_id} to another item than the study: {_DAMAGED}"
            )
        elif (known.rank, known.value) < (answer.rank, answer.value):
            # One sending, told apart by whoever changed it last: every copy ends with the same.
            known.sqlmodel_update(record.model_dump())
            session.add(known)
    return num_new
