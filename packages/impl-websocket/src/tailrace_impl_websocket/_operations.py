"""What operators and their tools ask over HTTP.

============  ========================================================================================================
request       answer
============  ========================================================================================================
``/metrics``  all figures of the server, for Prometheus; access as for the operation ``metrics``
``/healthz``  200 while the process and its event loop answer at all
``/readyz``   200 while the server takes new work, 503 with the reason otherwise
============  ========================================================================================================

They are answered under overload and during a shutdown, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tailrace_common_api import TailraceError
from tailrace_impl_common import counted_refusals
from tailrace_impl_websocket._credentials import credentials_of
from tailrace_impl_websocket._refusal import send_error
from tailrace_impl_websocket._server_streams import ServerContext

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Operations:
    """The endpoints of one server."""

    def __init__(self, context: ServerContext, leaving: Callable[[], bool]) -> None:
        """Answer for the manager of ``context``; ``leaving`` tells whether the transport is being closed."""
        self._context = context
        self._endpoint = replace(context.endpoint, transport="http")
        self._leaving = leaving

    def routes(self, prefix: str) -> list[Route]:
        """Return the routes below ``prefix``."""
        return [
            Route(f"{prefix}/metrics", self._metrics, methods=["GET"]),
            Route(f"{prefix}/healthz", _healthy, methods=["GET"]),
            Route(f"{prefix}/readyz", self._readiness, methods=["GET"]),
        ]

    async def _readiness(self, request: Request) -> Response:
        reason = self._context.manager.unready_reason or ("shutting down" if self._leaving() else None)
        if reason is None:
            return PlainTextResponse("ready\n", headers=_HEADERS)
        return PlainTextResponse(f"not ready: {reason}\n", 503, headers={**_HEADERS, "retry-after": "1"})

    async def _metrics(self, request: Request) -> Response:
        manager, credentials = self._context.manager, credentials_of(request.scope)
        try:
            with counted_refusals(self._endpoint, credentials.peer):
                await manager.authorize_metrics(credentials)
        except TailraceError as error:
            return _Refusal(error)
        # It reads what the kernel says of this process.
        media_type, body = await asyncio.to_thread(manager.telemetry.exposition)
        return Response(body, headers={**_HEADERS, "content-type": media_type})


async def _healthy(request: Request) -> Response:
    return PlainTextResponse("alive\n", headers=_HEADERS)


class _Refusal(Response):
    """An error in the form in which all of HTTP gives it here."""

    def __init__(self, error: TailraceError) -> None:
        super().__init__()
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, self._error)
