"""The links of a study as a table: each reader's own and the organiser's, none of which anybody can guess."""

from anatogen.reader_study.store import Study, all_readers, organiser_link, organiser_token, reader_link


def describe_links(study: Study, url: str) -> str:
    """Every link, a line each with whose it is.

    Args:
        study: Opened.
        url: Where readers reach the server, such as "http://127.0.0.1:8000".
    """
    with study.session() as session:
        found = [(reader.name, reader_link(reader.token)) for reader in all_readers(session)]
        found.append(("(organiser)", organiser_link(organiser_token(session))))
    width = max(len(name) for name, _ in found)
    return "\n".join(f"{name:{width}}  {url.rstrip('/')}{path}" for name, path in found)
