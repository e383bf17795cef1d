"""Which pages of browsers may talk to this server."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace_common_api import ConfigurationError, PermissionDenied, TailraceError
from tailrace_impl_common import Endpoint, counted_refusals
from tailrace_impl_websocket._credentials import credentials_of
from tailrace_impl_websocket._refusal import deny, send_error

EVERY_ORIGIN = "*"
"""Stands for all origins in a list of them."""

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_PORTS = {"http": 80, "https": 443}
_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD",
    "access-control-allow-headers": "authorization, range, if-range, if-none-match, traceparent, tracestate",
    "access-control-max-age": "600",
}
_EXPOSED = ", ".join(
    (
        "accept-ranges",
        "content-disposition",
        "content-range",
        "etag",
        "retry-after",
        "www-authenticate",
        "x-tailrace-head",
        "x-tailrace-lines",
        "x-tailrace-size",
        "x-tailrace-state",
    )
)


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins in a list with commas or spaces between them.

    Raises:
        ConfigurationError: One is not ``SCHEME://HOST[:PORT]``, nor ``*``.
    """
    origins = []
    for item in text.replace(",", " ").split():
        origin = item if item == EVERY_ORIGIN else _normal(item)
        if origin is None:
            raise ConfigurationError(field="origins", problem=f"{item!a} is not http(s)://HOST[:PORT], nor *")
        origins.append(origin)
    return tuple(origins)


class Origins:
    """The origins that are let in."""

    def __init__(self, listed: Collection[str], *, base: str, host: str | None = None) -> None:
        """Let in what is listed, and the pages of the server itself.

        Args:
            listed: What :func:`parse_origins` returned.
            base: Public base of the server, which is an origin too.
            host: Name or address that the server listens on; ``None`` when that is not known.
        """
        self._listed = frozenset(listed)
        self._base = _normal(base, whole=False)
        names = {urlsplit(base).hostname, host, "localhost"}
        self._hosts = frozenset(name.lower() for name in names if name)

    def allows(self, origin: str, *, scheme: str, host: str) -> bool:
        """Return whether a page may ask.

        Args:
            origin: The origin that its browser gives.
            scheme: Scheme of the request.
            host: The request's ``Host``.
        """
        if EVERY_ORIGIN in self._listed:
            return True
        normal = _normal(origin)
        if normal is None:
            return False
        return normal in self._listed or normal == self._base or self._is_own(normal, scheme, host)

    def _is_own(self, origin: str, scheme: str, host: str) -> bool:
        if origin != _normal(f"{scheme}://{host}"):
            return False
        # Any page can have a name of its own point to this server, and would then be of the same origin.
        name = urlsplit(origin).hostname or ""
        return name in self._hosts or _is_address(name)


class OriginGuard:
    """Middleware that refuses the pages of other origins, and tells browsers what those that are let in may see."""

    def __init__(self, app: ASGIApp, origins: Origins, endpoint: Endpoint) -> None:
        """Stand before ``app``."""
        self._app = app
        self._origins = origins
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before anything else."""
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else Headers()
        origin = headers.get("origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        scheme = scope.get("scheme", "ws" if scope["type"] == "websocket" else "http")  # ASGI lets servers leave it out
        allowed = self._origins.allows(origin, scheme=scheme, host=headers.get("host", ""))
        if not allowed or len(headers.getlist("origin")) > 1:
            await self._refuse(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _allowing(send, origin)({"type": "http.response.start", "status": 204, "headers": _encoded()})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, _allowing(send, origin))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: TailraceError = PermissionDenied("pages of this origin may not use this server")
        try:
            with counted_refusals(self._endpoint, credentials_of(scope).peer):
                raise error
        except PermissionDenied:
            pass
        if scope["type"] == "websocket":
            await receive()
            await deny(scope, send, error)
        else:
            await send_error(send, error)


def _allowing(send: Send, origin: str) -> Send:
    async def send_allowing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = _EXPOSED
            headers.add_vary_header("Origin")
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_allowing


def _encoded() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in _PREFLIGHT.items()]


def _normal(url: str, *, whole: bool = True) -> str | None:
    """Return the origin of a URL in the one form that browsers use; ``None`` if it has none.

    Args:
        url: The URL.
        whole: Whether it has to be an origin, and nothing more.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not host or parts.username is not None or not (host.isascii() and host.isprintable()):
        return None
    if whole and (parts.path or parts.query or parts.fragment):
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if port in (None, _PORTS[scheme]) else f"{scheme}://{shown}:{port}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
