"""Several ways to a server, of which one is in use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from tailrace_common_api import ConfigurationError, ConnectionLost, DeadlineExceeded, GoingAway, Overloaded
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._streams import ClientStream, Connection
from tailrace_impl_common.messages import CreateContext, Delete, Request, UnaryAnswer, UnaryRequest

_WORTH_ANOTHER = (ConnectionLost, DeadlineExceeded, GoingAway, Overloaded)
"""Errors of a way, or of the server at its end, that another way may not have."""


class FailoverConnection(Connection):
    """Uses one of several connections until it fails, then the next one in turn, and the first one after the last.

    All of them lead to the same resources: over another transport of the server, by another address of it, or to
    another server on the same storage. Conversations that run stay where they are.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        """Use ``connections``, the first one first; they are closed with this one.

        Raises:
            ConfigurationError: There is none.
        """
        if not connections:
            raise ConfigurationError(field="url", problem="no server is named")
        self._connections = tuple(connections)
        self._current = 0
        self._ways: WeakKeyDictionary[ClientStream, Connection] = WeakKeyDictionary()

    @property
    def current(self) -> Connection:
        """The connection in use."""
        return self._connections[self._current]

    @property
    def ways(self) -> int:
        return len(self._connections)

    @property
    def best_chunk_size(self) -> int:
        return self.current.best_chunk_size

    async def open(self, request: Request) -> ClientStream:
        for left in range(len(self._connections) - 1, -1, -1):
            connection = self.current
            try:
                stream = await connection.open(request)
            except _WORTH_ANOTHER:
                self._turn_from(connection)
                if not left:
                    raise
            else:
                self._ways[stream] = connection
                return stream
        raise AssertionError("the last connection raises")

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        for left in range(len(self._connections) - 1, -1, -1):
            connection = self.current
            try:
                return await connection.call(request)
            except _WORTH_ANOTHER as error:
                self._turn_from(connection)
                # What must not be done twice may have been done.
                done = isinstance(request, CreateContext | Delete) and not isinstance(error, GoingAway | Overloaded)
                if done or not left:
                    raise
        raise AssertionError("the last connection raises")

    def turn(self, stream: ClientStream) -> None:
        way = self._ways.pop(stream, None)
        if way is not None:
            self._turn_from(way)

    def _turn_from(self, connection: Connection) -> None:
        """Use the next connection, unless another conversation has turned away from this one already."""
        if connection is self.current:
            self._current = (self._current + 1) % len(self._connections)

    async def close(self) -> None:
        closing = [asyncio.ensure_future(connection.close()) for connection in self._connections]
        try:
            await asyncio.wait(closing)
        finally:
            # Also when this is cancelled: each ends what it has in its own way.
            await cancel_and_wait(*closing)
        for closed in closing:
            closed.result()
