"""What a caller shows in the headers of a request or handshake."""

from __future__ import annotations

import base64
import binascii

from starlette.datastructures import Headers
from starlette.types import Scope

from tailrace_server_api import Credentials

ANONYMOUS = "tailrace.anonymous"
"""Entry of the subprotocols with which a client says that it has no token, so that nobody waits for one."""
_TOKEN_ENTRY = "tailrace.token."
_BEARER = "bearer "


def credentials_of(scope: Scope) -> Credentials:
    """Return the credentials in the headers of an ASGI scope."""
    shown = Headers(scope=scope).getlist("authorization")
    # Which of several is meant nobody can know: whoever stands before the server may have looked at another one.
    authorization = shown[0] if len(shown) == 1 else ""
    token = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else None
    client = scope.get("client")
    return Credentials(token=token or None, peer="" if client is None else f"{client[0]}:{client[1]}")


def offered_token(scope: Scope) -> str | None:
    """Return the token among the subprotocols of a handshake, where browsers can put one; ``None`` for none.

    What cannot be decoded is a token too, which nobody has.
    """
    for entry in scope.get("subprotocols", ()):
        if entry.startswith(_TOKEN_ENTRY):
            encoded = entry.removeprefix(_TOKEN_ENTRY)
            try:
                padded = encoded.encode("ascii") + b"=" * (-len(encoded) % 4)
                return base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
            except (UnicodeError, binascii.Error):
                return ""
    return None


def says_anonymous(scope: Scope) -> bool:
    """Return whether the client of a handshake has no token to show."""
    return ANONYMOUS in scope.get("subprotocols", ())
