"""The links of a study as a table: each reader's own and the organiser's, none of which anybody can guess."""

from urllib.parse import urlsplit

from anatogen.core.errors import UserError
from anatogen.study.store import Study, all_readers, organiser_link, organiser_token, reader_link


def describe_links(study: Study, url: str) -> str:
    """Every link, a line each with whose it is.

    Args:
        study: Study, opened.
        url: Address where readers reach the server, such as "http://127.0.0.1:8000".

    Raises:
        UserError: If the url is no address of a server.
    """
    origin = origin_of(url)
    with study.session() as session:
        found = [(reader.name, reader_link(reader.token)) for reader in all_readers(session)]
        found.append(("(organiser)", organiser_link(organiser_token(session))))
    width = max(len(name) for name, _ in found)
    return "\n".join(f"{name:{width}}  {origin}{path}" for name, path in found)


def origin_of(url: str) -> str:
    """The address of a server as browsers write it in `Origin`: small letters, no usual port, no path.

    Args:
        url: Address as a user types it.

    Raises:
        UserError: If it is something else, or more: pages are at the root of a server.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    more = host and (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    usual = {"http": 80, "https": 443}
    if not host or parts.scheme not in usual or more:
        raise UserError(f"--url {url} is no address: give one such as https://study.example.org")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port in (None, usual[parts.scheme]) else f":{port}")
