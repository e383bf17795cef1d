"""The client's side of reading, above the transports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar

from tailrace_client_download_api import FROM_START, DataChunk, RemoteResource
from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    Position,
    ProtocolError,
    ResourceFailed,
    ResourceState,
    Start,
    Status,
    TailraceError,
)
from tailrace_impl_common._download_machine import DownloadReceiver
from tailrace_impl_common._saving import save_resource
from tailrace_impl_common._streams import ClientStream, Connection
from tailrace_impl_common.messages import (
    Chunk,
    Delete,
    Done,
    DownloadRequest,
    Follow,
    GetHeads,
    GetStatus,
    Heads,
    Locate,
    Located,
    Read,
    ReadLines,
    Request,
    ServerMessage,
    UnaryRequest,
    Watch,
    Watched,
)

MAX_CHUNK_SIZE = 4 * 1024 * 1024 - 64 * 1024
"""Largest chunk of the protocol, in bytes: it stays below gRPC's default message limit with everything around it."""

AnswerT = TypeVar("AnswerT")


async def ask(connection: Connection, request: UnaryRequest, answer_type: type[AnswerT]) -> AnswerT:
    """Send a unary request and return its answer.

    Raises:
        ProtocolError: The answer is not of ``answer_type``.
        TailraceError: The server's error, or the connection's.
    """
    answer = await connection.call(request)
    if not isinstance(answer, answer_type):
        raise ProtocolError(f"{type(answer).__name__} does not answer {type(request).__name__}")
    return answer


class ConnectedResource(RemoteResource):
    """A resource over any transport; every operation is a conversation of its own."""

    def __init__(self, connection: Connection, id: str, token: str | None, settings: ClientSettings) -> None:
        """Stand for resource ``id``; nothing is sent yet."""
        self._connection = connection
        self._id = id
        self._token = token
        self._settings = settings
        self._streams: set[ClientStream] = set()
        self._closed = False

    @property
    def id(self) -> str:
        return self._id

    async def status(self) -> Status:
        return await ask(self._connection, GetStatus(id=self._id, token=self._token), Status)

    async def statuses(self) -> AsyncGenerator[Status, None]:
        async with aclosing(self._messages(Watch(id=self._id, token=self._token))) as messages:
            version = -1
            async for message in messages:
                if isinstance(message, Watched):
                    return
                if not isinstance(message, Status):
                    raise ProtocolError(f"{type(message).__name__} received while watching")
                if message.version <= version:
                    raise ProtocolError(f"status of version {message.version} received after version {version}")
                version = message.version
                yield message
        raise ConnectionLost("the server ended the conversation before the resource ended")

    def chunks(self, start: int = 0, end: int | None = None) -> AsyncGenerator[DataChunk, None]:
        return self._data(Read(id=self._id, token=self._token, start=start, end=end, window=self._window))

    def last_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        _check_count("last_bytes", count)
        return self._data(Read(id=self._id, token=self._token, suffix=count, window=self._window))

    def follow_chunks(
        self, start: Start = FROM_START, *, raise_on_failure: bool = True
    ) -> AsyncGenerator[DataChunk, None]:
        request = Follow(id=self._id, token=self._token, start=start, window=self._window)
        return self._data(request, raise_on_failure=raise_on_failure)

    def line_chunks(self, first: int = 0, count: int | None = None) -> AsyncGenerator[DataChunk, None]:
        return self._data(ReadLines(id=self._id, token=self._token, first=first, count=count, window=self._window))

    def last_line_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        _check_count("last_lines", count)
        return self._data(ReadLines(id=self._id, token=self._token, last=count, window=self._window))

    async def locate_line(self, line: int) -> Position:
        answer = await ask(self._connection, Locate(id=self._id, token=self._token, line=line), Located)
        return answer.position

    async def locate_offset(self, offset: int) -> Position:
        answer = await ask(self._connection, Locate(id=self._id, token=self._token, offset=offset), Located)
        return answer.position

    async def heads(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        answer = await ask(self._connection, GetHeads(id=self._id, token=self._token, sizes=tuple(sizes)), Heads)
        if len(answer.heads) != len(sizes):
            raise ProtocolError(f"{len(answer.heads)} heads answer a request for {len(sizes)}")
        return answer.heads

    async def save(self, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Status:
        return await save_resource(self, path, progress=progress)

    async def delete(self) -> None:
        await ask(self._connection, Delete(id=self._id, token=self._token), Done)

    async def close(self) -> None:
        self._closed = True
        while self._streams:
            await self._streams.pop().close()

    @property
    def _window(self) -> int:
        return self._settings.download_window

    async def _data(
        self, request: DownloadRequest, *, raise_on_failure: bool = False
    ) -> AsyncGenerator[DataChunk, None]:
        """Yield the proven bytes of one conversation, granting more as they are taken."""
        machine = DownloadReceiver(window=request.window, max_chunk=MAX_CHUNK_SIZE, verify=self._settings.verify)
        async with await self._open(request) as stream:
            try:
                machine.receive(await self._first(stream, request))
                while machine.end is None:
                    message = await stream.receive()
                    if message is None:
                        raise ConnectionLost(f"the server ended the stream at offset {machine.offset} without its end")
                    machine.receive(message)
                    if isinstance(message, Chunk):
                        yield DataChunk(message.offset, message.data, message.checkpoint)
                        # The reader has what it wants of the chunk; nothing may keep it while the next is awaited.
                        del message
                        window = machine.consume(machine.offset)
                        if window is not None:
                            # A server that has sent everything has hung up already; what it said is still to be read.
                            with suppress(TailraceError):
                                await stream.send(window)
            finally:
                self._streams.discard(stream)
        status = machine.end.status
        if raise_on_failure and status.state is ResourceState.FAILED:
            raise ResourceFailed(id=self._id, reason=status.reason or "", size=status.size)

    async def _messages(self, request: Request) -> AsyncGenerator[ServerMessage, None]:
        async with await self._open(request) as stream:
            try:
                message: ServerMessage | None = await self._first(stream, request)
                while message is not None:
                    yield message
                    message = await stream.receive()
            finally:
                self._streams.discard(stream)

    async def _open(self, request: Request) -> ClientStream:
        if self._closed:
            raise ConnectionLost("the resource was closed")
        stream = await self._connection.open(request)
        self._streams.add(stream)
        return stream

    async def _first(self, stream: ClientStream, request: Request) -> ServerMessage:
        """Return the first message of the server, which has a deadline."""
        seconds = self._settings.answer_timeout
        try:
            async with asyncio.timeout(seconds):
                message = await stream.receive()
        except DeadlineExceeded:
            # The server's own.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what=f"the answer to {type(request).__name__}", seconds=seconds) from None
        if message is None:
            raise ConnectionLost("the server ended the conversation without an answer")
        return message


def _check_count(field: str, count: int) -> None:
    if count < 0:
        raise InvalidArgument(field=field, problem=f"{count} is negative")
