"""What every request to the study's server passes first: who may ask, how much, and what the browser may do.

The tokens in the links are the only keys. They travel in a header, never in a cookie, so a foreign page has
nothing to misuse; the checks of host and origin here stand in its way a second time.
"""

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from starlette.responses import PlainTextResponse

# Everything from this server, nothing from elsewhere, no inline code, no eval. The one relaxation is data: for
# pictures: NiiVue's font, with which it labels directions, is a PNG inside its module.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # A link is a key: it must not reach another server in a Referer.
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# An answer is some 250 bytes.
MAX_BODY = 4096

_Next = Callable[[Request], Awaitable[Response]]
_Found = TypeVar("_Found")


def guard(host: str, url: str | None = None) -> Callable[[Request, _Next], Awaitable[Response]]:
    """The check of every request, as FastAPI takes it for its "http" middleware.

    Args:
        host: On which the server listens.
        url: Where readers reach it, if that is elsewhere, as behind a proxy.
    """
    public = urlsplit(url or "")
    # A foreign page can have its own name point here (DNS rebinding), and is then asked for under that name.
    known = {host.lower(), "localhost", socket.gethostname().lower(), public.hostname} - {None, ""}

    async def check(request: Request, go_on: _Next) -> Response:
        called = _host_of(request.headers.get("host", ""))
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        ours = {f"http://{request.headers.get('host')}", f"{public.scheme}://{public.netloc}"}
        if called not in known and not _is_address(called):
            response: Response = PlainTextResponse(
                f"this server is not called {called[:100]!r}: start it with --url to give it that name", 403
            )
        # Links may be opened from anywhere, but what our page asks for, only our page may.
        elif (origin is not None and origin not in ours) or (
            request.url.path.startswith("/api/") and site != "same-origin"
        ):
            response = PlainTextResponse("requests of other sites are refused", 403)
        else:
            response = await go_on(request)
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return check


def _host_of(netloc: str) -> str:
    """The host of "host:port" in small letters, without the brackets of IPv6."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def small_json(request: Request) -> bytes:
    """The body of a request, which must be JSON and small; what is too long is not read to its end.

    Raises:
        HTTPException: 415 or 413.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes")
    return body


def bearer(request: Request) -> str:
    """The token that a request carries in its Authorization header; empty if none."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def holder(given: str, tokens: Iterable[tuple[str, _Found]]) -> _Found | None:
    """Whose token this is. Every token is compared, and each in a time that tells nothing of it.

    Args:
        given: What came with a request.
        tokens: Each token with its holder.
    """
    found = None
    for token, who in tokens:
        if hmac.compare_digest(token.encode(), given.encode("utf-8", "surrogateescape")):
            found = who
    return found
