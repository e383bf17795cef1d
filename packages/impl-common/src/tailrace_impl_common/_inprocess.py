"""The in-process transport: conversations over a pair of queues, without any encoding.

It is a transport like the others: tests run over it, and an application that holds a manager can talk to it in the same
way as to a remote server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    DeadlineExceeded,
    TailraceError,
    error_from_wire,
)
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._endpoint import Endpoint
from tailrace_impl_common._serve import answer_request, serve_conversation
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream, Connection, MessageStream
from tailrace_impl_common._tracing import outgoing_trace
from tailrace_impl_common.messages import ClientMessage, Request, ServerMessage, UnaryAnswer, UnaryRequest
from tailrace_server_api import Credentials, ResourceManager

_CHUNK_SIZE = 1024 * 1024
_QUEUE_LENGTH = 4
"""Messages in flight per direction: the transport's own backpressure."""

MessageT = TypeVar("MessageT")
OtherT = TypeVar("OtherT")


class _Pipe(Generic[MessageT]):
    """One direction of a conversation: a bounded queue with an end."""

    def __init__(self) -> None:
        self._messages: deque[MessageT] = deque()
        self._ended = False
        self._error: TailraceError | None = None
        self._changed = Signal()

    async def put(self, message: MessageT) -> None:
        while len(self._messages) >= _QUEUE_LENGTH and not self._ended:
            await self._changed.wait()
        if self._ended:
            raise self._error or ConnectionLost("the conversation has ended")
        self._messages.append(message)
        self._changed.notify()
        # A peer that is always ready must not keep everyone else from running.
        await asyncio.sleep(0)

    async def get(self) -> MessageT | None:
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._changed.wait()
        message = self._messages.popleft()
        self._changed.notify()
        return message

    def end(self, error: TailraceError | None = None, *, discard: bool = False) -> None:
        """End this direction; what was put before can still be taken, unless it is to be discarded."""
        if discard:
            self._messages.clear()
        if not self._ended:
            self._ended = True
            self._error = error
        self._changed.notify()


class _ServerEnd(MessageStream[ServerMessage, ClientMessage]):
    def __init__(self, to_server: _Pipe[ClientMessage], to_client: _Pipe[ServerMessage]) -> None:
        self._to_server = to_server
        self._to_client = to_client

    async def send(self, message: ServerMessage) -> None:
        await self._to_client.put(message)

    async def receive(self) -> ClientMessage | None:
        return await self._to_server.get()


class _ClientEnd(ClientStream):
    def __init__(self, connection: InProcessConnection, request: Request) -> None:
        self._to_server: _Pipe[ClientMessage] = _Pipe()
        self._to_client: _Pipe[ServerMessage] = _Pipe()
        self._trace = outgoing_trace()
        self._task = asyncio.ensure_future(self._serve(connection, request))
        # A task that is cancelled before its first step runs nothing of its own.
        self._task.add_done_callback(lambda _: self._to_client.end(ConnectionLost("the conversation was cancelled")))

    async def _serve(self, connection: InProcessConnection, request: Request) -> None:
        error: TailraceError | None = ConnectionLost("the conversation was cancelled")
        try:
            connection.manager.admit()
            await serve_conversation(
                request,
                _ServerEnd(self._to_server, self._to_client),
                service=await connection.manager.authenticate(connection.credentials),
                endpoint=connection.endpoint,
                trace=self._trace,
            )
            error = None
        except TailraceError as exc:
            # Sent as on a real wire: the client gets an error of its own, not the server's object.
            error = error_from_wire(exc.code, exc.message, exc.details())
        finally:
            self._to_server.end(error or ConnectionLost("the conversation has ended"), discard=True)
            self._to_client.end(error)

    async def send(self, message: ClientMessage) -> None:
        await self._to_server.put(message)

    async def receive(self) -> ServerMessage | None:
        return await self._to_client.get()

    async def close(self) -> None:
        lost = ConnectionLost("the conversation was closed")
        self._to_client.end(lost, discard=True)
        self._to_server.end(lost, discard=True)
        await cancel_and_wait(self._task)

    def cut(self) -> None:
        """End the conversation as a lost connection does: both sides see it, neither says so."""
        self._task.cancel()


class InProcessConnection(Connection):
    """A connection to a manager in the same event loop."""

    def __init__(
        self, manager: ResourceManager, settings: ClientSettings | None = None, *, base: str = "inprocess://local"
    ) -> None:
        """Connect to ``manager``; references are given under ``base``."""
        self.manager = manager
        self._settings = settings or ClientSettings()
        self.endpoint = Endpoint(
            transport="inprocess",
            base=base,
            chunk_size=min(_CHUNK_SIZE, manager.limits.chunk_size),
            telemetry=manager.telemetry,
        )
        self.credentials = Credentials(token=self._settings.token, peer="inprocess")
        self._streams: set[_ClientEnd] = set()
        self._closed = False

    @property
    def best_chunk_size(self) -> int:
        return _CHUNK_SIZE

    async def open(self, request: Request) -> ClientStream:
        if self._closed:
            raise ConnectionLost("the connection is closed")
        self._streams = {stream for stream in self._streams if not stream._task.done()}
        stream = _ClientEnd(self, request)
        self._streams.add(stream)
        return stream

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        if self._closed:
            raise ConnectionLost("the connection is closed")
        seconds = self._settings.answer_timeout
        try:
            async with asyncio.timeout(seconds):
                # Who asks again and again must not keep everyone else from running.
                await asyncio.sleep(0)
                self.manager.admit()
                service = await self.manager.authenticate(self.credentials)
                return await answer_request(request, service=service, endpoint=self.endpoint, trace=outgoing_trace())
        except TailraceError as exc:
            raise error_from_wire(exc.code, exc.message, exc.details()) from None
        except TimeoutError:
            raise DeadlineExceeded(what=f"the answer to {type(request).__name__}", seconds=seconds) from None

    def cut(self) -> None:
        """End every conversation as a lost connection does; new ones can be opened."""
        for stream in self._streams:
            stream.cut()

    async def close(self) -> None:
        self._closed = True
        for stream in self._streams:
            await stream.close()
        self._streams.clear()
