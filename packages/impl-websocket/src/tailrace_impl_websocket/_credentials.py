"""What a caller shows in the headers of a request or handshake."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

from tailrace_server_api import Credentials

_BEARER = "bearer "


def credentials_of(scope: Scope) -> Credentials:
    """Return the credentials in the headers of an ASGI scope."""
    authorization = Headers(scope=scope).get("authorization", "")
    token = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else None
    client = scope.get("client")
    return Credentials(token=token or None, peer="" if client is None else f"{client[0]}:{client[1]}")
