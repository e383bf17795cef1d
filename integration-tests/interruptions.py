"""Connections that break at a chosen point of a conversation, and come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from cells import Cell, Transport
from servers import LocalServer
from tcp_proxy import TcpProxy

from tailrace_common_api import ClientSettings, ConnectionLost
from tailrace_impl_common import ClientStream, ConnectedClient, Connection, InProcessConnection
from tailrace_impl_common.messages import ClientMessage, Request, ServerMessage, UnaryAnswer, UnaryRequest

Cut = Callable[[], None]


def _never(message: object) -> bool:
    return False


@asynccontextmanager
async def breakable(server: LocalServer, cell: Cell, **settings: Any) -> AsyncIterator[tuple[ConnectedClient, Cut]]:
    """Give a client over the cell's transport, and what breaks its connection; the next one can be made at once."""
    if cell.transport is Transport.IN_PROCESS:
        client = server.connect(cell.transport, **settings)
        connection = client.connection
        assert isinstance(connection, InProcessConnection)
        yield client, connection.cut
        return
    async with TcpProxy(server.url(cell.transport)) as proxy:
        yield server.connect(cell.transport, url=proxy.url, **settings), proxy.cut


class Breaking(Connection):
    """Breaks another connection when a message is about to be sent or was received, each time a rule says so."""

    def __init__(self, inner: Connection, cut: Cut) -> None:
        """Use ``inner``, which ``cut`` breaks."""
        self._inner = inner
        self._cut = cut
        self.opening: Callable[[Request], bool] = _never
        """Whether a request does not get through at all."""
        self.before: Callable[[ClientMessage], bool] = _never
        """Whether the connection breaks before a message leaves."""
        self.after: Callable[[ClientMessage], bool] = _never
        """Whether it breaks when a message has left."""
        self.receiving: Callable[[ServerMessage], bool] = _never
        """Whether it breaks when a message arrives, which is then lost."""
        self.cuts = 0
        """How often it broke."""

    @property
    def best_chunk_size(self) -> int:
        return self._inner.best_chunk_size

    async def open(self, request: Request) -> ClientStream:
        if self.opening(request):
            raise ConnectionLost("refused on purpose")
        return _BreakingStream(self, await self._inner.open(request))

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        return await self._inner.call(request)

    async def close(self) -> None:
        await self._inner.close()

    def obey(
        self,
        *,
        opening: Callable[[object], bool] = _never,
        before: Callable[[object], bool] = _never,
        after: Callable[[object], bool] = _never,
        receiving: Callable[[object], bool] = _never,
    ) -> None:
        """Follow these rules, and no others."""
        self.opening, self.before, self.after, self.receiving = opening, before, after, receiving

    def cut(self) -> None:
        """Break the connection."""
        self.cuts += 1
        self._cut()


class _BreakingStream(ClientStream):
    def __init__(self, rules: Breaking, inner: ClientStream) -> None:
        self._rules = rules
        self._inner = inner

    async def send(self, message: ClientMessage) -> None:
        if self._rules.before(message):
            self._rules.cut()
            raise ConnectionLost("broken on purpose")
        await self._inner.send(message)
        if self._rules.after(message):
            self._rules.cut()

    async def receive(self) -> ServerMessage | None:
        message = await self._inner.receive()
        if message is not None and self._rules.receiving(message):
            self._rules.cut()
            raise ConnectionLost("broken on purpose")
        return message

    async def close(self) -> None:
        await self._inner.close()


@asynccontextmanager
async def breaking(server: LocalServer, cell: Cell, **settings: Any) -> AsyncIterator[tuple[ConnectedClient, Breaking]]:
    """Give a client whose connection breaks by rules."""
    async with breakable(server, cell, **settings) as (client, cut):
        rules = Breaking(client.connection, cut)
        yield ConnectedClient(rules, ClientSettings(**settings)), rules


class Times:
    """A rule: the given times that a message of some kind passes, counted from 1."""

    def __init__(self, kind: type, *numbers: int) -> None:
        self._kind = kind
        self._numbers = frozenset(numbers)
        self.count = 0

    def __call__(self, message: object) -> bool:
        if not isinstance(message, self._kind):
            return False
        self.count += 1
        return self.count in self._numbers


class MovableProxy(TcpProxy):
    """A proxy whose server may come back elsewhere, and that lets through again what it has held up."""

    def move(self, url: str) -> None:
        """Stand in front of the server at ``url`` for new connections."""
        self._target = TcpProxy(url)._target

    def resume(self) -> None:
        """Let everything through that was held up."""
        self.release()
