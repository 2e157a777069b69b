"""What every request to the study's server passes first: who may ask, how much, and what the browser may do.

The tokens in the links are the only keys. They travel in a header, never in a cookie, so a foreign page has
nothing to misuse; the checks of host and origin here stand in its way a second time.
"""

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anatogen.core.errors import UserError

# All from this server, nothing from elsewhere, no inline code, no eval. The one relaxation is data: for
# pictures: the letters with which NiiVue labels directions are a PNG inside its module.
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

_OURS = "same-origin"


class Guard:
    """Middleware that refuses requests of other sites, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, host: str, url: str | None = None) -> None:
        """Wraps an application.

        Args:
            app: Application to be guarded.
            host: Host on which the server listens.
            url: Address where readers reach it, if that is elsewhere, as behind a proxy.
        """
        self._app = app
        public = None if url is None else origin_of(url)
        # A foreign page can have its own name point here (DNS rebinding): it then asks under that name.
        names = {host.lower(), "localhost", socket.gethostname().lower()}
        if public is not None:
            names.add(_host_of(public.partition("//")[2]))
        self._names = names - {""}
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        problem = self._problem(Headers(scope=scope), scope["path"])
        app = self._app if problem is None else JSONResponse({"detail": problem}, 403)
        await app(scope, receive, send_guarded)

    def _problem(self, headers: Headers, path: str) -> str | None:
        called = _host_of(headers.get("host", ""))
        if called not in self._names and not _is_address(called):
            return f"this server is not called {called[:100]!r}: start it with --url to give it that name"
        origin = headers.get("origin")
        foreign = origin is not None and origin not in (f"http://{headers.get('host')}", self._public)
        # Links may be opened from anywhere, but what our page asks for, only our page may.
        if foreign or (path.startswith("/api/") and headers.get("sec-fetch-site", _OURS) != _OURS):
            return "requests of other sites are refused"
        return None


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


def is_token(given: str, token: str) -> bool:
    """Whether a request's token is this one, compared in a time that tells nothing of it."""
    return hmac.compare_digest(token.encode(), given.encode("utf-8", "surrogateescape"))
