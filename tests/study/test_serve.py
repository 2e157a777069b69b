"""The server by itself: what a reader may ask for, and all that nobody may."""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import Server, free_port, make_readable_study, serving, tokens

from anatogen.core.errors import UserError
from anatogen.study import niivue, serve
from anatogen.study.app import make_app
from anatogen.study.guard import MAX_BODY
from anatogen.study.serve import describe_links
from anatogen.study.spec import KEY_NAME, VOLUMES
from anatogen.study.store import DATABASE_NAME, Study, all_readers, items_of

OURS = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_readable_study(tmp_path / "study", protocols=("paper", "2afc"))


@pytest.fixture
def client(study: Study) -> Iterator[TestClient]:
    # TestClient calls itself testserver, as --url would name it.
    with TestClient(make_app(study, url="http://testserver"), raise_server_exceptions=False) as client:
        yield client


def _as(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **OURS}


def _items(study: Study, name: str) -> list[str]:
    with study.session() as session:
        return [
            item.id
            for reader in all_readers(session)
            if reader.name == name
            for item in items_of(session, reader)
        ]


def _answer(item: str, **changes: Any) -> dict[str, Any]:
    return {
        "item_id": item,
        "question": "realistic_image_appearance",
        "value": 3,
        "client_id": str(uuid4()),
        "revision": 0,
        "seconds_active": 4.5,
        "seconds_idle": 0.0,
    } | changes


def _rows(study: Study) -> list[tuple[Any, ...]]:
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        return connection.execute("SELECT item_id, question, value, revision FROM answer").fetchall()


def test_a_reader_gets_what_is_needed_and_nothing_that_tells_sources(
    client: TestClient, study: Study
) -> None:
    token = tokens(study)["ada"]
    told = client.get("/api/study", headers=_as(token))
    assert set(told.json()) == {
        "study",
        "reader",
        "title",
        "modality",
        "window",
        "paused",
        "protocols",
        "items",
    }
    assert [item["id"] for item in told.json()["items"]] == _items(study, "ada")
    assert all(set(item) == {"id", "protocol", "answers"} for item in told.json()["items"])
    paths = ["/static/reader.js", f"/r/{token}", "/static/reader.html"]
    received = [told, *(client.get(path, headers=_as(token)) for path in paths)]
    for item in told.json()["items"]:
        sides = ["left", "right"] if item["protocol"] == "2afc" else ["left"]
        received += [client.get(f"/api/items/{item['id']}/{side}", headers=_as(token)) for side in sides]
    with study.session() as session:
        cases = {item.case for item in items_of(session, all_readers(session)[0])}
    secrets = [*cases, *(set(tokens(study).values()) - {token}), "bo", "reconstructed", '"synthetic"']
    for response in received:
        assert response.status_code == 200
        text = response.content.decode("latin-1") + str(response.headers)
        assert [secret for secret in secrets if re.search(rf"\b{re.escape(secret)}\b", text)] == []
        if response.url.path.startswith("/api"):
            # Files' times tell which were written together.
            assert not {"etag", "last-modified"} & set(response.headers)


def test_volumes_are_whole_and_never_kept(client: TestClient, study: Study) -> None:
    token = tokens(study)["ada"]
    item = _items(study, "ada")[0]
    with study.session() as session:
        case = items_of(session, all_readers(session)[0])[0].case
    response = client.get(f"/api/items/{item}/left", headers=_as(token))
    assert response.content == (study.folder / VOLUMES / f"{case}.nii").read_bytes()
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-length"] == str(len(response.content))
    assert client.get(f"/api/items/{item}/right", headers=_as(token)).status_code == 404


def test_every_response_has_the_security_headers(client: TestClient, study: Study) -> None:
    paths = ["/", "/r/wrong", f"/r/{tokens(study)['ada']}", "/static/reader.js", "/api/study", "/nowhere"]
    for path in paths:
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "unsafe" not in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] in ("no-store", "no-cache")
        assert "access-control-allow-origin" not in headers
        assert "set-cookie" not in headers


def test_pages_of_wrong_links_say_so(client: TestClient, study: Study) -> None:
    found = tokens(study)
    for path in ["/r/wrong", f"/r/{found['']}", f"/o/{found['ada']}", "/o/ü", f"/r/{found['ada'][:-1]}"]:
        response = client.get(path)
        assert response.status_code == 404
        assert "This link is not valid" in response.text


@pytest.mark.parametrize("token", ["", "wrong", "ü", "x" * 5000, "null"])
def test_without_a_token_nothing_is_told(client: TestClient, study: Study, token: str) -> None:
    item = _items(study, "ada")[0]
    headers = {"Authorization": b"Bearer " + token.encode("latin-1")}
    for path in ["/api/study", f"/api/items/{item}/left", "/api/progress", "/api/answers.csv?early=true"]:
        assert client.get(path, headers=headers).status_code == 401
    post = client.post("/api/answers", json=_answer(item), headers=headers)
    assert post.status_code == 401
    assert _rows(study) == []


def test_a_token_in_the_address_or_a_cookie_is_none(client: TestClient, study: Study) -> None:
    token = tokens(study)["ada"]
    assert client.get(f"/api/study?token={token}").status_code == 401
    assert client.get("/api/study", headers={"Cookie": f"token={token}"}).status_code == 401


def test_no_reader_reaches_anothers_items_answers_or_the_organisers_page(
    client: TestClient, study: Study
) -> None:
    found = tokens(study)
    other = _items(study, "bo")[0]
    client.post("/api/answers", json=_answer(other, value=2), headers=_as(found["bo"]))
    ada = _as(found["ada"])
    assert client.get(f"/api/items/{other}/left", headers=ada).status_code == 404
    refused = client.post("/api/answers", json=_answer(other), headers=ada)
    assert refused.status_code == 404
    assert _rows(study) == [(other, "realistic_image_appearance", 2, 0)]
    assert other not in client.get("/api/study", headers=ada).text
    for path in ["/api/progress", "/api/answers.csv", "/api/answers.csv?early=true"]:
        assert client.get(path, headers=ada).status_code == 401
    # Nor does the organiser answer for a reader.
    organiser = _as(found[""])
    assert client.post("/api/answers", json=_answer(other), headers=organiser).status_code == 401
    assert client.get("/api/study", headers=organiser).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2f..%2fstore.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/..%5c..%5capp.py",
        "/api/items/..%2f..%2fkey.json/left",
        "/api/items/../../key.json",
        "/api/items/0000000000000000%00.nii/left",
        "/key.json",
        "/study.sqlite",
        "/study.yaml",
        "/volumes/0000000000000000.nii",
        "/openapi.json",
        "/docs",
    ],
)
def test_no_path_leads_to_a_file_outside(client: TestClient, study: Study, path: str) -> None:
    # As bytes on the wire: httpx would tidy the address up before it is sent.
    request = client.build_request("GET", "/", headers=_as(tokens(study)["ada"]))
    request.url = request.url.copy_with(raw_path=path.encode())
    response = client.send(request)
    assert response.status_code in (404, 405)
    assert "root:" not in response.text
    assert "import" not in response.text


def test_forged_ids_find_nothing(client: TestClient, study: Study) -> None:
    headers = _as(tokens(study)["ada"])
    own = _items(study, "ada")[0]
    with study.session() as session:
        case = items_of(session, all_readers(session)[0])[0].case
    for forged in ["f" * 16, own.upper() + "g", own[:-1], f"{own}%0a", "' OR 1=1 --", "%", "*", case + "0"]:
        assert client.get(f"/api/items/{forged}/left", headers=headers).status_code in (404, 422)
    assert client.get(f"/api/items/{own}/middle", headers=headers).status_code == 422
    # A case is no item: volumes go by the reader's own ids alone.
    if case not in _items(study, "ada"):
        assert client.get(f"/api/items/{case}/left", headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"value": 9}, 422),
        ({"value": -1}, 422),
        ({"value": "3"}, 422),
        ({"value": 2.5}, 422),
        ({"value": None}, 422),
        ({"value": 10**30}, 422),
        ({"value": True}, 422),
        ({"question": "which_is_real"}, 422),
        ({"question": "x" * 1000}, 422),
        ({"item_id": "0" * 16}, 404),
        ({"item_id": "../../key.json"}, 422),
        ({"client_id": ""}, 422),
        ({"client_id": "'; DROP TABLE answer; --"}, 422),
        ({"revision": -1}, 422),
        ({"seconds_active": -1}, 422),
        ({"seconds_active": 1e300}, 422),
        ({"answered_at": "2000-01-01"}, 422),
        ({"reader_id": 2}, 422),
    ],
)
def test_wrong_answers_are_refused(
    client: TestClient, study: Study, change: dict[str, Any], status: int
) -> None:
    answer = _answer(_items(study, "ada")[0], **change)
    response = client.post("/api/answers", json=answer, headers=_as(tokens(study)["ada"]))
    assert response.status_code == status
    assert _rows(study) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[" * 4000,
        b'{"value": NaN}',
        b"\xff\xfe",
        b'{"item_id": 1}',
        b"\x00" * 100,
    ],
)
def test_malformed_bodies_are_refused(client: TestClient, study: Study, body: bytes) -> None:
    headers = _as(tokens(study)["ada"]) | {"Content-Type": "application/json"}
    for path in ["/api/answers", "/api/pause"]:
        response = client.post(path, content=body, headers=headers)
        assert response.status_code == 422
        assert response.json()["detail"].startswith("not valid")
    assert _rows(study) == []


def test_long_bodies_are_not_read_to_their_end(client: TestClient, study: Study) -> None:
    headers = _as(tokens(study)["ada"]) | {"Content-Type": "application/json"}
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1024
            yield b" " * 1024

    assert client.post("/api/answers", content=endless(), headers=headers).status_code == 413
    whole = json.dumps(_answer(_items(study, "ada")[0])).encode() + b" " * MAX_BODY
    assert client.post("/api/answers", content=whole, headers=headers).status_code == 413
    assert _rows(study) == []


def test_requests_of_other_sites_are_refused(client: TestClient, study: Study) -> None:
    token = tokens(study)["ada"]
    answer = _answer(_items(study, "ada")[0])
    forged = [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver.elsewhere.example"},
        {"Origin": "http://testserver:99"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ]
    for headers in forged:
        assert client.post("/api/answers", json=answer, headers=_as(token) | headers).status_code == 403
        assert client.get("/api/study", headers=_as(token) | headers).status_code == 403
    # What a form can send, has another type.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]:
        response = client.post(
            "/api/answers", content=json.dumps(answer), headers=_as(token) | {"Content-Type": kind}
        )
        assert response.status_code == 415
    assert client.options("/api/answers", headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert _rows(study) == []
    # A link in a mail is opened from elsewhere.
    assert client.get(f"/r/{token}", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_names_that_are_not_ours_are_refused(study: Study) -> None:
    app = make_app(study, "127.0.0.1", "https://study.example.org")
    path = f"/r/{tokens(study)['ada']}"
    with TestClient(app) as client:
        for host in ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.0.7", "Study.Example.org"]:
            assert client.get(path, headers={"Host": host}).status_code == 200, host
        for host in [
            "elsewhere.example",
            "127.0.0.1.elsewhere.example",
            "localhost.elsewhere",
            "",
            "[::1",
            "a@b",
        ]:
            response = client.get(path, headers={"Host": host})
            assert response.status_code == 403, host
        behind_proxy = {"Host": "127.0.0.1:8000", "Origin": "https://study.example.org"}
        headers = {"Authorization": f"Bearer {tokens(study)['ada']}", **behind_proxy}
        assert client.get("/api/study", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Study.Example.org", "https://study.example.org"),
        ("HTTPS://study.example.org:443/", "https://study.example.org"),
        ("http://study.example.org:80", "http://study.example.org"),
        ("https://study.example.org:8443/", "https://study.example.org:8443"),
        ("http://[FE80::1]:8000", "http://[fe80::1]:8000"),
    ],
)
def test_browsers_write_the_servers_address_in_their_own_way(study: Study, url: str, origin: str) -> None:
    assert describe_links(study, url).splitlines()[0].split()[1].startswith(f"{origin}/r/")
    with TestClient(make_app(study, url=url)) as client:
        host = origin.partition("//")[2]
        headers = {"Authorization": f"Bearer {tokens(study)['ada']}", "Origin": origin, "Host": host}
        assert client.get("/api/study", headers=headers).status_code == 200


def test_answers_sent_again_are_stored_once_and_late_ones_do_not_win(
    client: TestClient, study: Study
) -> None:
    headers = _as(tokens(study)["ada"])
    item = _items(study, "ada")[0]
    first, second = _answer(item, value=1), _answer(item, value=4, revision=1)
    # The later one comes first, as after a lost connection, and both come twice.
    for answer in [second, first, second, first]:
        assert client.post("/api/answers", json=answer, headers=headers).status_code == 200
    assert len(_rows(study)) == 2
    told = client.get("/api/study", headers=headers).json()["items"][0]["answers"]
    assert told["realistic_image_appearance"]["value"] == 4
    # One id for two answers is an error of the page, or a trick.
    refused = client.post("/api/answers", json=first | {"value": 2}, headers=headers)
    assert refused.status_code == 422
    # Another reader who got hold of an id gets nowhere with it.
    other = _as(tokens(study)["bo"])
    stolen = _answer(_items(study, "bo")[0], client_id=first["client_id"])
    assert client.post("/api/answers", json=stolen, headers=other).status_code == 422
    assert len(_rows(study)) == 2


def test_items_may_be_answered_in_any_order(client: TestClient, study: Study) -> None:
    headers = _as(tokens(study)["ada"])
    items = _items(study, "ada")[:4]
    for item in reversed(items):
        assert client.post("/api/answers", json=_answer(item), headers=headers).status_code == 200
    assert sorted(row[0] for row in _rows(study)) == sorted(items)


def test_the_organiser_sees_progress_and_answers_only_at_the_end_or_when_asked_for(
    client: TestClient, study: Study
) -> None:
    found = tokens(study)
    organiser = _as(found[""])
    client.post("/api/pause", json={"paused": True}, headers=_as(found["bo"]))
    progress = client.get("/api/progress", headers=organiser).json()["readers"]
    assert [(reader["name"], reader["num_done"], reader["paused"]) for reader in progress] == [
        ("ada", 0, False),
        ("bo", 0, True),
    ]
    assert client.get("/api/answers.csv", headers=organiser).status_code == 409
    early = client.get("/api/answers.csv?early=true", headers=organiser)
    assert early.text.count("\n") == 1
    for name in ["ada", "bo"]:
        told = client.get("/api/study", headers=_as(found[name])).json()
        for item in told["items"]:
            protocol = next(one for one in told["protocols"] if one["id"] == item["protocol"])
            for question in protocol["questions"]:
                value = question["options"][0]["value"]
                answer = _answer(item["id"], question=question["id"], value=value)
                assert client.post("/api/answers", json=answer, headers=_as(found[name])).status_code == 200
    table = client.get("/api/answers.csv", headers=organiser).text
    assert table.count("\n") == 1 + 2 * (4 * 3 + 4)
    assert "synthetic" not in table


def test_the_key_is_never_opened(study: Study) -> None:
    (study.folder / KEY_NAME).unlink()
    with TestClient(make_app(study, url="http://testserver")) as client:
        assert client.get("/api/study", headers=_as(tokens(study)["ada"])).status_code == 200
        assert client.get("/api/answers.csv?early=true", headers=_as(tokens(study)[""])).status_code == 200


def test_serve_says_in_one_line_what_is_wrong(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(niivue, "is_there", lambda: True)
    for url in (
        "elsewhere",
        "ftp://study.example.org",
        "https://",
        "https://study.example.org:port",
        # Pages ask for /api and /static at the root.
        "https://example.org/study",
        "https://example.org?study",
        "https://ada:secret@example.org",
        "https://[::1",
    ):
        with pytest.raises(UserError, match=rf"--url {re.escape(url)} is no address"):
            serve.serve(study.folder, url=url)
        with pytest.raises(UserError, match="is no address"):
            describe_links(study, url)
    with serve._listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another"):
        serve.serve(study.folder, port=taken.getsockname()[1])
    with pytest.raises(UserError, match="choose another"):
        serve.serve(study.folder, host="no.such.host.invalid")
    monkeypatch.setattr(niivue, "is_there", lambda: False)
    with pytest.raises(UserError, match=r"NiiVue is missing: run `python -m anatogen.study.niivue`") as error:
        serve.serve(study.folder)
    assert "\n" not in str(error.value)


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    if not niivue.is_there():
        pytest.skip("NiiVue is not there: the server does not start without it")
    names = tuple(f"reader{number}" for number in range(4))
    study = make_readable_study(tmp_path / "study", readers=names)
    found = tokens(study)
    acknowledged: list[tuple[str, int, str]] = []
    sent: set[str] = set()

    def read(name: str) -> None:
        headers = {"Authorization": f"Bearer {found[name]}"}
        items = _items(study, name)
        with httpx.Client(base_url=server.url, headers=headers) as client:
            for revision in range(100_000):
                answer = _answer(items[revision % len(items)], value=revision % 4 + 1, revision=revision)
                sent.add(answer["client_id"])
                try:
                    response = client.post("/api/answers", json=answer)
                except httpx.HTTPError:
                    return
                assert response.status_code == 200
                acknowledged.append((answer["client_id"], answer["value"], answer["item_id"]))
                if len(acknowledged) >= 120:
                    enough.set()

    enough = threading.Event()
    with serving(study.folder) as server:
        readers = [threading.Thread(target=read, args=(name,)) for name in names]
        for reader in readers:
            reader.start()
        assert enough.wait(30)
        server.kill()
        for reader in readers:
            reader.join()
    with sqlite3.connect(study.folder / DATABASE_NAME) as connection:
        stored = connection.execute("SELECT client_id, value, item_id FROM answer").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert {row[0] for row in stored} <= sent


def test_the_command_serves_locally_and_prints_the_links(tmp_path: Path) -> None:
    if not niivue.is_there():
        pytest.skip("NiiVue is not there: the server does not start without it")
    study = make_readable_study(tmp_path / "study")
    server = Server(study.folder, free_port())
    server.start()
    try:
        for name, token in tokens(study).items():
            kind = "r" if name else "o"
            assert httpx.get(f"{server.url}/{kind}/{token}").status_code == 200
        # Not reachable by another address of this machine.
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.2:{server.port}/", timeout=2)
    finally:
        server.kill()
    printed = (tmp_path / "study-server.log").read_text()
    assert [line.split()[1] for line in printed.splitlines()] == [
        f"{server.url}/{'r' if name else 'o'}/{token}" for name, token in tokens(study).items()
    ]
