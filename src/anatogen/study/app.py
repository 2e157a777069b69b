"""The reader study's server: one page per reader, one for the organiser, and what these ask for.

Readers get what they need to read: texts, volumes under the ids of their own items, their own answers. Names
of cases, repeats, numbers and seed stay here, and key.json is never opened.
"""

import csv
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Scope

from anatogen.core.errors import UserError
from anatogen.study.guard import Guard, bearer, holder, small_json
from anatogen.study.spec import volume_path
from anatogen.study.store import (
    AnswerInput,
    Item,
    Reader,
    Study,
    UnknownItemError,
    all_readers,
    answers_of,
    items_of,
    organiser_token,
    progress,
    save_answer,
    set_paused,
)

STATIC = Path(__file__).resolve().parent / "static"
_Input = TypeVar("_Input", bound=BaseModel)
_CHUNK = 1 << 20
_ANSWER_COLUMNS = ("question", "value", "seconds_active", "seconds_idle", "answered_at")
_UNKNOWN_LINK = "this link is not valid: ask the organiser for yours"


class PauseInput(BaseModel):
    """What the page sends when the reader pauses or goes on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    paused: bool


class _Static(StaticFiles):
    """Our page's files, asked for anew each time: an update of Anatogen must not meet yesterday's page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As the parent's."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def make_app(study: Study, host: str = "127.0.0.1", url: str | None = None) -> FastAPI:
    """The server of one study.

    Args:
        study: Opened.
        host: On which it listens.
        url: Where readers reach it, if that is elsewhere.
    """
    # No schema and no documentation: nobody is to try calls there.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, host=host, url=url)
    app.mount("/static", _Static(directory=STATIC), name="static")
    # SQLite has one writer at a time, and others wait by sleeping longer and longer: they queue here instead.
    writing = threading.Lock()

    def reader_of(request: Request) -> Reader:
        with study.session() as session:
            found = _reader(bearer(request), all_readers(session))
        if found is None:
            raise HTTPException(401, _UNKNOWN_LINK)
        return found

    def check_organiser(request: Request) -> None:
        with study.session() as session:
            if holder(bearer(request), [(organiser_token(session), True)]) is None:
                raise HTTPException(401, _UNKNOWN_LINK)

    ReaderOf = Annotated[Reader, Depends(reader_of)]
    Body = Annotated[bytes, Depends(small_json)]
    organiser = [Depends(check_organiser)]

    @app.exception_handler(UserError)
    def refuse(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404 if isinstance(error, UnknownItemError) else 422)

    @app.get("/r/{token}")
    def reader_page(token: str) -> FileResponse:
        with study.session() as session:
            found = _reader(token, all_readers(session))
        return _page("reader.html" if found is not None else "unknown.html")

    @app.get("/o/{token}")
    def organiser_page(token: str) -> FileResponse:
        with study.session() as session:
            found = holder(token, [(organiser_token(session), True)])
        return _page("organiser.html" if found is not None else "unknown.html")

    @app.get("/")
    def no_page() -> FileResponse:
        return _page("unknown.html")

    @app.get("/api/study")
    def study_for(reader: ReaderOf) -> dict[str, Any]:
        return _for_reader(study, reader)

    @app.get("/api/items/{item_id}/{side}")
    def volume(reader: ReaderOf, item_id: str, side: Literal["left", "right"]) -> StreamingResponse:
        with study.session() as session:
            item = session.get(Item, item_id)
        case = None if item is None or item.reader_id != reader.id else _case(item, side)
        if case is None:
            raise HTTPException(404, "you have no such volume")
        return _stream(volume_path(study.folder, case))

    @app.post("/api/answers")
    def answer(reader: ReaderOf, body: Body) -> dict[str, Any]:
        with writing:
            saved = save_answer(study, reader, _validated(AnswerInput, body))
        return {
            "client_id": saved.answer.client_id,
            "question": saved.answer.question,
            "overruled_by": saved.overruled_by,
        }

    @app.post("/api/pause")
    def pause(reader: ReaderOf, body: Body) -> dict[str, bool]:
        wanted = _validated(PauseInput, body)
        with writing:
            set_paused(study, reader, wanted.paused)
        return {"paused": wanted.paused}

    @app.get("/api/progress", dependencies=organiser)
    def progress_of_all() -> dict[str, Any]:
        return {
            "title": study.spec.title,
            "readers": [
                {
                    "name": reader.name,
                    "num_items": reader.num_items,
                    "num_done": reader.num_done,
                    "seconds_active": round(reader.seconds_active),
                    "last_answer_at": reader.last_answer_at,
                    "paused": reader.paused,
                }
                for reader in progress(study)
            ],
        }

    @app.get("/api/answers.csv", dependencies=organiser)
    def answers(early: bool = False) -> Response:
        if not early and any(reader.num_done < reader.num_items for reader in progress(study)):
            raise HTTPException(409, "not all readers are done: answers seen early can bias a study")
        return Response(_answers_csv(study), media_type="text/csv; charset=utf-8")

    return app


def _reader(token: str, readers: list[Reader]) -> Reader | None:
    return holder(token, [(reader.token, reader) for reader in readers])


def _page(name: str) -> FileResponse:
    response = FileResponse(STATIC / name, status_code=404 if name == "unknown.html" else 200)
    response.headers["Cache-Control"] = "no-store"
    return response


def _for_reader(study: Study, reader: Reader) -> dict[str, Any]:
    """All that a reader's page is told at its start."""
    spec = study.spec
    with study.session() as session:
        items = items_of(session, reader)
        answers = answers_of(session, reader)
    given: dict[str, dict[str, Any]] = {item.id: {} for item in items}
    for (item_id, question), answer in answers.items():
        given[item_id][question] = {
            "value": answer.value,
            "revision": answer.revision,
            "seconds_active": answer.seconds_active,
            "seconds_idle": answer.seconds_idle,
        }
    return {
        # Under this name the browser keeps what is not saved yet; readers may share a computer.
        "study": spec.id,
        "reader": reader.id,
        "title": spec.title,
        "modality": spec.modality,
        "window": spec.window,
        "paused": reader.paused,
        "protocols": [protocol.model_dump() for protocol in spec.protocols],
        "items": [{"id": item.id, "protocol": item.protocol, "answers": given[item.id]} for item in items],
    }


def _case(item: Item, side: Literal["left", "right"]) -> str | None:
    return item.case if side == "left" else item.other_case


def _stream(path: Path) -> StreamingResponse:
    """A volume, without the file's time, by which one could tell which were written together."""

    def parts() -> Iterator[bytes]:
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                yield part

    if not path.is_file():
        raise HTTPException(500, "a volume of this study is missing: tell the organiser")
    headers = {"Content-Length": str(path.stat().st_size)}
    return StreamingResponse(parts(), media_type="application/octet-stream", headers=headers)


def _validated(model: type[_Input], body: bytes) -> _Input:
    """The body as the model.

    Raises:
        HTTPException: 422, naming the fields that are wrong; what was sent is not repeated.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        fields = {".".join(str(part) for part in problem["loc"])[:64] for problem in error.errors()}
        raise HTTPException(422, f"not valid: {', '.join(sorted(fields - {''})) or 'the body'}") from error


def _answers_csv(study: Study) -> str:
    """All answers that count, without what the cases are: that is the analysis's business."""
    out = io.StringIO()
    table = csv.DictWriter(out, ["reader", "position", "protocol", "case", "other_case", *_ANSWER_COLUMNS])
    table.writeheader()
    with study.session() as session:
        for reader in all_readers(session):
            answers = answers_of(session, reader)
            for item in items_of(session, reader):
                place = {"reader": reader.name, **item.model_dump(include=set(table.fieldnames))}
                for question in study.spec.protocol(item.protocol).questions:
                    answer = answers.get((item.id, question.id))
                    if answer is not None:
                        table.writerow(place | answer.model_dump(include=set(_ANSWER_COLUMNS)))
    return out.getvalue()
