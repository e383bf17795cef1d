"""Errors as answers over HTTP, to requests and to handshakes."""

from __future__ import annotations

import json

from starlette.types import Message, Scope, Send

from tailrace_common_api import GoingAway, Overloaded, RangeNotSatisfiable, TailraceError, Unauthenticated
from tailrace_impl_websocket._codec_values import error_to_json
from tailrace_impl_websocket._error_table import wire_status


async def send_error(
    send: Send, error: TailraceError, *, http_status: int | None = None, allow: str = "GET, HEAD"
) -> None:
    """Answer with an error as a line of JSON ``{code, message, details}``; tell other methods which are allowed."""
    body = json.dumps(error_to_json(error)).encode() + b"\n"
    headers = {"content-type": "application/json", "content-length": str(len(body)), "cache-control": "no-store"}
    if isinstance(error, RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{error.size}"
    if isinstance(error, Overloaded | GoingAway):
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if http_status == 405:
        headers["allow"] = allow
    await send_start(send, http_status or wire_status(error).http_status, headers)
    await send({"type": "http.response.body", "body": body})


async def send_start(send: Send, http_status: int, headers: dict[str, str]) -> None:
    """Begin an answer."""
    # What was uploaded is shown as a document of no origin that may run, load and send nothing.
    headers["content-security-policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    headers["x-content-type-options"] = "nosniff"
    await send(
        {
            "type": "http.response.start",
            "status": http_status,
            "headers": [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()],
        }
    )


async def deny(scope: Scope, send: Send, error: TailraceError) -> None:
    """Refuse a handshake with an HTTP answer, where the server can send one."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return

    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await send_error(send_denial, error)
