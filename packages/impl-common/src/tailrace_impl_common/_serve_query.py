"""The server's side of a query."""

from __future__ import annotations

import asyncio
import logging

from tailrace_common_api import InvalidArgument, ProtocolError, QueryFailed, RecordBatch, TailraceError
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._query_machine import QuerySender, message_parts
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common.record_messages import Query, QueryStarted
from tailrace_server_api import QueryResults, RequestTelemetry, ResourceService

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 10.0
"""Time that a source has to close before it is interrupted, in seconds."""


async def serve_query(
    request: Query, stream: ServerStream, *, service: ResourceService, telemetry: RequestTelemetry
) -> None:
    """Drive a query from its first message; see :func:`serve_conversation`.

    The source is closed when the conversation ends, however it does, also while it is waiting for its database.
    """
    limit = service.limits.max_download_window
    if not 0 <= request.window <= limit:
        problem = f"{request.window} is not within 0 and {limit} bytes; a client sets it as its download_window"
        raise InvalidArgument(field="window", problem=problem)
    results = await service.records.query(request.source, request.arguments)
    await _QueryConversation(request, results, stream, telemetry).run()


class _QueryConversation:
    """One query: a task sends what the source gives, and another takes the reader's windows meanwhile."""

    def __init__(
        self, request: Query, results: QueryResults, stream: ServerStream, telemetry: RequestTelemetry
    ) -> None:
        self._source = request.source
        self._results = results
        self._stream = stream
        self._count = telemetry.sent
        self._machine = QuerySender(request.window)
        self._granted = asyncio.Event()
        self._closing = False

    async def run(self) -> None:
        control = asyncio.ensure_future(self._receive_windows())
        sending = asyncio.ensure_future(self._send_all(control))
        try:
            await asyncio.wait((sending, control), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                # The reader has said its last word: a mistake, which ends the query, or no more than that.
                control.result()
                await asyncio.wait((sending,))
            sending.result()
        finally:
            await self._stop(sending, control)
        await self._stream.send(self._machine.end())

    async def _send_all(self, control: asyncio.Future[None]) -> None:
        try:
            await self._stream.send(QueryStarted(self._results.content_type))
            while (batch := await self._next()) is not None:
                for part, size in message_parts(batch):
                    if not self._machine.may_send:
                        await self._wait_for_window(control)
                    await self._stream.send(self._machine.message(part, size))
                    self._count(size)
        finally:
            # By the task that reads: a source may hold what belongs to its task.
            self._closing = True
            await self._results.batches.aclose()

    async def _stop(self, sending: asyncio.Future[None], control: asyncio.Future[None]) -> None:
        """End both tasks, without cutting short a source that is closing: its cursor is to be closed, too."""
        try:
            if self._closing:
                await asyncio.wait((sending,), timeout=_CLOSE_TIMEOUT)
        finally:
            await cancel_and_wait(sending, control)
            # Of a task that was cancelled before it began; else nothing is left to close.
            await self._results.batches.aclose()

    async def _next(self) -> RecordBatch | None:
        """Return what the source gives next; ``None`` at its end."""
        try:
            return await anext(self._results.batches, None)
        except TailraceError:
            raise
        except Exception as exc:
            logger.exception("source %s failed", self._source)
            raise QueryFailed(f"source {self._source} failed; the server's log says why") from exc

    async def _wait_for_window(self, control: asyncio.Future[None]) -> None:
        while not self._machine.may_send:
            if control.done():
                # A mistake of the reader, or the end of its connection, is told as what it is.
                control.result()
                raise ProtocolError("the reader stopped granting bytes before it had all records")
            self._granted.clear()
            await self._granted.wait()

    async def _receive_windows(self) -> None:
        """Take grants until the reader has no more to say."""
        try:
            while (message := await self._stream.receive()) is not None:
                if self._machine.receive(message):
                    self._granted.set()
        finally:
            self._granted.set()
