"""The bodies of answers over plain HTTP: sent as they come, until their end or until the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive, Scope

from tailrace_common_api import ConnectionLost, GoingAway, TailraceError
from tailrace_impl_common import cancel_and_wait

logger = logging.getLogger(__name__)

ABORT_EXTENSION = "tailrace.http.abort"
"""ASGI extension of this package's own server: ``scope["extensions"][…]["abort"]()`` ends the connection behind what
was sent. Where it is missing, the exception that leaves the application does the same, and the server logs it."""


class ResponseAborted(Exception):
    """Leaves the application to make the ASGI server cut a response off."""


class Bodies:
    """All bodies that are being sent by one server."""

    def __init__(self) -> None:
        """Start with none."""
        self._going_away: GoingAway | None = None
        self._running: dict[asyncio.Task[None], bool] = {}

    def admit(self) -> None:
        """Check that another one may begin.

        Raises:
            GoingAway: The server shuts down.
        """
        if self._going_away is not None:
            raise self._going_away

    def go_away(self, error: GoingAway) -> set[asyncio.Task[None]]:
        """Refuse new bodies, cut off those that have no end of their own, and return those that still run."""
        self._going_away = error
        for body, endless in self._running.items():
            if endless:
                body.cancel()
        return set(self._running)

    async def send(
        self,
        scope: Scope,
        receive: Receive,
        work: Coroutine[Any, Any, None],
        *,
        endless: bool,
        begun: Callable[[], bool] = lambda: True,
    ) -> BaseException | None:
        """Let ``work`` send a body until its end, or until the client leaves; return why it did not get to its end.

        Args:
            scope: Of ASGI.
            receive: Of ASGI.
            work: Sends the body, and raises what makes that impossible.
            endless: Whether the end of the body is not known when it begins.
            begun: Whether the client was sent anything: then it is cut off by closing the connection, else an answer
                can still be given.
        """
        body = asyncio.create_task(work)
        departure = asyncio.create_task(_disconnected(receive))
        self._running[body] = endless
        if endless and self._going_away is not None:
            # It was let in before, and nobody would cut it off.
            body.cancel()
        try:
            await asyncio.wait((body, departure), return_when=asyncio.FIRST_COMPLETED)
            if departure.done() and not body.done():
                return ConnectionLost("the client left")
            reason = self._going_away if body.cancelled() else body.exception()
            if reason is not None and begun():
                await _abort(scope, reason, departure)
            return reason
        finally:
            del self._running[body]
            await cancel_and_wait(body, departure)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _abort(scope: Scope, reason: BaseException, departure: asyncio.Task[None]) -> None:
    """Cut the response off behind what was sent.

    Raises:
        ResponseAborted: The server has to do it.
    """
    if not isinstance(reason, TailraceError):
        logger.error("a response failed", exc_info=reason)
    abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT_EXTENSION, {}).get("abort")
    if abort is None:
        raise ResponseAborted(str(reason))
    abort()
    await asyncio.wait((departure,))
