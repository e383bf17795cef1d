"""A connection that shows, holds back and changes what is said over it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from tailrace_common_api import ClientSettings
from tailrace_impl_common import ClientStream, ConnectedClient, Connection
from tailrace_impl_common.messages import ClientMessage, Request, ServerMessage, UnaryAnswer, UnaryRequest

Outbound = Callable[[ClientMessage], Sequence[ClientMessage]]
Inbound = Callable[[ServerMessage], Sequence[ServerMessage]]


class Wiretap(Connection):
    """Stands between the client above a transport and the transport.

    ``outbound`` and ``inbound`` say what becomes of each message of the client and of the server: one message, several
    or none. While ``held`` is set, nothing of what the server says gets through.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.outbound: Outbound = lambda message: (message,)
        self.inbound: Inbound = lambda message: (message,)
        self.log: list[ClientMessage | ServerMessage] = []
        """All messages that got through, in the order in which they did."""
        self._passing = asyncio.Event()
        self._passing.set()

    def hold(self) -> None:
        """Let nothing of the server through until :meth:`release`."""
        self._passing.clear()

    def release(self) -> None:
        """Let everything through again."""
        self._passing.set()

    def client(self, settings: ClientSettings | None = None) -> ConnectedClient:
        """Return a client that speaks over this; unless ``settings`` say so, it does not try again what fails."""
        return ConnectedClient(self, settings or ClientSettings(reconnect_timeout=0.0))

    @property
    def best_chunk_size(self) -> int:
        return self._connection.best_chunk_size

    async def open(self, request: Request) -> ClientStream:
        self.log.append(request)
        return _TappedStream(self, await self._connection.open(request))

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        return await self._connection.call(request)

    async def close(self) -> None:
        await self._connection.close()

    async def passing(self) -> None:
        """Wait while the server is held back."""
        await self._passing.wait()


class _TappedStream(ClientStream):
    def __init__(self, tap: Wiretap, stream: ClientStream) -> None:
        self._tap = tap
        self._stream = stream
        self._pending: deque[ServerMessage] = deque()

    async def send(self, message: ClientMessage) -> None:
        for each in self._tap.outbound(message):
            self._tap.log.append(each)
            await self._stream.send(each)

    async def receive(self) -> ServerMessage | None:
        while not self._pending:
            await self._tap.passing()
            message = await self._stream.receive()
            await self._tap.passing()
            if message is None:
                return None
            self._pending.extend(self._tap.inbound(message))
        self._tap.log.append(self._pending[0])
        return self._pending.popleft()

    async def close(self) -> None:
        await self._stream.close()
