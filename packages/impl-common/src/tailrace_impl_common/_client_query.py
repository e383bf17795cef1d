"""The client's side of a query, above the transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from tailrace_client_download_api import RecordStream
from tailrace_common_api import (
    Argument,
    ConnectionLost,
    DeadlineExceeded,
    Record,
    TailraceError,
    check_arguments,
    check_end_name,
)
from tailrace_impl_common._query_machine import QueryReceiver
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._retry import Reconnection
from tailrace_impl_common._streams import ClientStream
from tailrace_impl_common.messages import ServerMessage
from tailrace_impl_common.record_messages import Query, RecordBatch


class ConnectedQuery(RecordStream):
    """The results of a query over any transport."""

    def __init__(self, link: ServerLink, source: str, arguments: Mapping[str, Argument]) -> None:
        """Prepare the query; nothing is sent yet.

        Raises:
            InvalidArgument: The name or an argument cannot be one.
        """
        self._link = link
        self._settings = link.settings
        self._request = Query(source=check_end_name(source), arguments=check_arguments(arguments), window=link.window)
        self._reconnection: Reconnection = link.reconnection()
        self._machine = self._new_machine()
        self._stream: ClientStream | None = None
        self._opening = asyncio.Lock()
        self._read = False
        self._closed = False

    def _new_machine(self) -> QueryReceiver:
        return QueryReceiver(window=self._request.window, verify=self._settings.verify)

    @property
    def content_type(self) -> str:
        if self._machine.started is None:
            raise RuntimeError("the query has not begun; open it, or enter it with `async with`")
        return self._machine.started.content_type

    async def open(self) -> None:
        async with self._opening:
            if self._machine.started is None:
                await self._begin()

    async def _begin(self) -> None:
        """Begin a conversation, again where the connection was lost before it said anything."""
        while True:
            if self._closed:
                raise ConnectionLost("the query was closed")
            lost: TailraceError | None = None
            try:
                stream = self._stream = await self._link.connection.open(self._request)
                self._machine = self._new_machine()
                self._machine.receive(await self._first(stream))
            except TailraceError as error:
                lost = error
            except BaseException:
                await self._leave(None)
                raise
            if lost is None:
                self._link.opened(self._reconnection)
                return
            await self._leave(lost)
            # A source may have an argument of that name.
            if self._request.window and "window" not in self._request.arguments and self._link.leaves_window(lost):
                self._request = replace(self._request, window=0)
                continue
            if isinstance(lost, DeadlineExceeded) or not self._link.may_try_again():
                raise lost
            await self._link.come_back(self._reconnection, lost, unwanted=lambda: self._closed)

    async def _first(self, stream: ClientStream) -> ServerMessage:
        seconds = self._settings.answer_timeout
        try:
            async with asyncio.timeout(seconds):
                message = await stream.receive()
        except DeadlineExceeded:
            # The server's own.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what="the answer to Query", seconds=seconds) from None
        if message is None:
            raise ConnectionLost("the server ended the conversation without an answer")
        return message

    async def batches(self) -> AsyncGenerator[Sequence[Record], None]:
        if self._read:
            raise RuntimeError("the records of a query are read once")
        self._read = True
        try:
            await self.open()
            while (batch := await self._next()) is not None:
                yield batch.records()
                # The reader has taken them; nothing may keep them while the next ones are awaited.
                del batch
                await self._grant()
        finally:
            await self.close()

    async def _next(self) -> RecordBatch | None:
        """Return the next records; ``None`` when all have come."""
        while self._machine.end is None:
            try:
                if self._stream is None:
                    raise ConnectionLost("the query was closed")
                message = await self._stream.receive()
                if message is None:
                    problem = f"the server ended the query behind record {self._machine.records} without its end"
                    raise ConnectionLost(problem)
                batch = self._machine.receive(message)
            except TailraceError as error:
                await self._begin_again(error)
                continue
            if batch is not None:
                return batch
        return None

    async def _begin_again(self, error: TailraceError) -> None:
        """Begin once more after a conversation was lost.

        Raises:
            TailraceError: ``error``: records have come, which the source need not give again, or it is no use.
        """
        await self._leave(error)
        if self._machine.records or self._closed:
            raise error
        await self._link.come_back(self._reconnection, error, unwanted=lambda: self._closed)
        await self._begin()

    async def _grant(self) -> None:
        window = self._machine.consume()
        if window is not None and self._stream is not None:
            # A server that has sent everything has hung up; what it said is still to be read.
            with suppress(TailraceError):
                await self._stream.send(window)

    async def _leave(self, lost: TailraceError | None) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            if lost is not None:
                self._link.lose(stream, lost)
            await stream.close()

    async def close(self) -> None:
        self._closed = True
        self._link.wake()
        await self._leave(None)
