"""The reader study's server: one page per reader, one for the organiser, and what these ask for.

Readers get what they need to read: texts, volumes under the ids of their own items, their own answers. Names
of cases, repeats, numbers and seed stay here, and key.json is never opened.
"""

import csv
import io
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Scope

from anatogen.core.errors import UserError
from anatogen.study.guard import Guard, is_token, small_json
from anatogen.study.spec import volume_path
from anatogen.study.store import (
    AnswerInput,
    Item,
    Reader,
    Study,
    UnknownItemError,
    all_readers,
    answers_of,
    asked,
    items_of,
    organiser_token,
    progress,
    save_answer,
    set_paused,
)

STATIC = Path(__file__).resolve().parent / "static"
_Input = TypeVar("_Input", bound=BaseModel)
Token = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
_ANSWER_COLUMNS = ("question", "value", "seconds_active", "seconds_idle", "answered_at")
_UNKNOWN_LINK = "this link is not valid: ask the organiser for yours"


class PauseInput(BaseModel):
    """What the page sends when the reader pauses or goes on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    paused: bool


class _Static(StaticFiles):
    """Our page's files, asked for anew each time: an update of Anatogen must not meet yesterday's page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or an error."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def make_app(study: Study, host: str = "127.0.0.1", url: str | None = None) -> FastAPI:
    """The server of one study.

    Args:
        study: Study, opened.
        host: Host on which the server listens.
        url: Address where readers reach it, if that is elsewhere.
    """
    # No schema and no documentation: nobody is to try calls there.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, host=host, url=url)
    app.mount("/static", _Static(directory=STATIC), name="static")
    # SQLite has one writer at a time, and others wait by sleeping longer and longer: they queue here instead.
    writing = threading.Lock()

    def find_reader(token: str) -> Reader | None:
        with study.session() as session:
            # Every token is compared, so that the time does not tell how far down the list it is.
            found = [reader for reader in all_readers(session) if is_token(token, reader.token)]
        return found[0] if found else None

    def is_organiser(token: str) -> bool:
        with study.session() as session:
            return is_token(token, organiser_token(session))

    def reader_of(token: Token) -> Reader:
        found = find_reader(token.credentials) if token else None
        if found is None:
            raise HTTPException(401, _UNKNOWN_LINK)
        return found

    def check_organiser(token: Token) -> None:
        if token is None or not is_organiser(token.credentials):
            raise HTTPException(401, _UNKNOWN_LINK)

    ReaderOf = Annotated[Reader, Depends(reader_of)]
    Body = Annotated[bytes, Depends(small_json)]
    organiser = [Depends(check_organiser)]

    @app.exception_handler(UserError)
    def refuse(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404 if isinstance(error, UnknownItemError) else 422)

    @app.get("/r/{token}")
    def reader_page(token: str) -> FileResponse:
        return _page("reader.html" if find_reader(token) else "unknown.html")

    @app.get("/o/{token}")
    def organiser_page(token: str) -> FileResponse:
        return _page("organiser.html" if is_organiser(token) else "unknown.html")

    @app.get("/")
    def no_page() -> FileResponse:
        return _page("unknown.html")

    @app.get("/api/study")
    def study_for(reader: ReaderOf) -> dict[str, Any]:
        return _for_reader(study, reader)

    @app.get("/api/items/{item_id}/{side}")
    def volume(reader: ReaderOf, item_id: str, side: Literal["left", "right"]) -> FileResponse:
        with study.session() as session:
            item = session.get(Item, item_id)
        if item is None or item.reader_id != reader.id:
            raise HTTPException(404, "you have no such volume")
        case = item.case if side == "left" else item.other_case
        if case is None:
            raise HTTPException(404, "you have no such volume")
        return _volume(volume_path(study.folder, case))

    @app.post("/api/answers")
    def answer(reader: ReaderOf, body: Body) -> dict[str, Any]:
        given = _validated(AnswerInput, body)
        with writing:
            overruled_by = save_answer(study, reader, given)
        return {"client_id": given.client_id, "question": given.question, "overruled_by": overruled_by}

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
                asdict(reader) | {"seconds_active": round(reader.seconds_active)}
                for reader in progress(study)
            ],
        }

    @app.get("/api/answers.csv", dependencies=organiser)
    def answers(early: bool = False) -> Response:
        if not early and any(reader.num_done < reader.num_items for reader in progress(study)):
            raise HTTPException(409, "not all readers are done: answers seen early can bias a study")
        return Response(_answers_csv(study), media_type="text/csv; charset=utf-8")

    return app


def _page(name: str) -> FileResponse:
    return FileResponse(STATIC / name, status_code=404 if name == "unknown.html" else 200)


def _for_reader(study: Study, reader: Reader) -> dict[str, Any]:
    """All that a reader's page is told at its start."""
    spec = study.spec
    with study.session() as session:
        items = items_of(session, reader)
        answers = answers_of(session, reader)
    given: dict[str, dict[str, Any]] = {item.id: {} for item in items}
    for (item_id, question), answer in answers.items():
        shown = {"value", "revision", "seconds_active", "seconds_idle"}
        given[item_id][question] = answer.model_dump(include=shown)
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


def _volume(path: Path) -> FileResponse:
    """A volume, without the file's time, by which one could tell which were written together."""
    if not path.is_file():
        raise HTTPException(500, "a volume of this study is missing: tell the organiser")
    response = FileResponse(path, media_type="application/octet-stream", stat_result=path.stat())
    for name in ("etag", "last-modified"):
        del response.headers[name]
    return response


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
    for reader, item, _, answer in asked(study):
        if answer is not None:
            place = {"reader": reader.name, **item.model_dump(include=set(table.fieldnames))}
            table.writerow(place | answer.model_dump(include=set(_ANSWER_COLUMNS)))
    return out.getvalue()
