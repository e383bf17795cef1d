"""The client's side of reading, above the transports."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace

from tailrace_client_download_api import FROM_START, DataChunk, RemoteResource
from tailrace_common_api import (
    ConnectionLost,
    DataLost,
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
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._retry import Reconnection
from tailrace_impl_common._saving import save_resource
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream
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
    Watch,
    Watched,
)

logger = logging.getLogger(__name__)

MAX_CHUNK_SIZE = 4 * 1024 * 1024 - 64 * 1024
"""Largest chunk of the protocol, in bytes: it stays below gRPC's default message limit with everything around it."""


class ConnectedResource(RemoteResource):
    """A resource over any transport; every operation is a conversation of its own."""

    def __init__(self, link: ServerLink, id: str, token: str | None) -> None:
        """Stand for resource ``id``; nothing is sent yet."""
        self._link = link
        self._id = id
        self._token = token
        self._settings = link.settings
        self._streams: set[ClientStream] = set()
        self._closed = False
        self._interrupted: dict[Reconnection, TailraceError] = {}
        self._changed = Signal()

    @property
    def id(self) -> str:
        return self._id

    async def status(self) -> Status:
        return await self._link.ask(GetStatus(id=self._id, token=self._token), Status)

    @property
    def interruption(self) -> TailraceError | None:
        return next(reversed(self._interrupted.values()), None)

    async def interruptions(self) -> AsyncGenerator[TailraceError | None, None]:
        known: TailraceError | None = None
        with self._link.telling(self._changed):
            while not self._closed and not self._link.closed:
                if self.interruption is not known:
                    known = self.interruption
                    yield known
                else:
                    await self._changed.wait()

    async def statuses(self) -> AsyncGenerator[Status, None]:
        known: Status | None = None
        request = Watch(id=self._id, token=self._token)
        with self._reading() as reconnection:
            while known is None or not known.state.terminal:
                try:
                    async with aclosing(self._messages(request, reconnection)) as messages:
                        first = True
                        async for message in messages:
                            if isinstance(message, Watched):
                                return
                            if not isinstance(message, Status):
                                raise ProtocolError(f"{type(message).__name__} received while watching")
                            if known is not None:
                                _check_known(known, message, first)
                            if known is None or message.version > known.version:
                                known = message
                                reconnection.progress()
                                yield message
                            first = False
                    raise ConnectionLost("the server ended the conversation before the resource ended")
                except TailraceError as error:
                    if known is not None and known.state.terminal:
                        return
                    await self._come_back(reconnection, error, established=known is not None)

    def chunks(self, start: int = 0, end: int | None = None) -> AsyncGenerator[DataChunk, None]:
        return self._data(
            Read(id=self._id, token=self._token, start=start, end=end, window=self._window, chunk_size=self._chunk_size)
        )

    def last_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        _check_count("last_bytes", count)
        return self._data(
            Read(id=self._id, token=self._token, suffix=count, window=self._window, chunk_size=self._chunk_size)
        )

    def follow_chunks(
        self, start: Start = FROM_START, *, raise_on_failure: bool = True
    ) -> AsyncGenerator[DataChunk, None]:
        request = Follow(id=self._id, token=self._token, start=start, window=self._window, chunk_size=self._chunk_size)
        return self._data(request, raise_on_failure=raise_on_failure)

    def line_chunks(self, first: int = 0, count: int | None = None) -> AsyncGenerator[DataChunk, None]:
        return self._data(
            ReadLines(
                id=self._id,
                token=self._token,
                first=first,
                count=count,
                window=self._window,
                chunk_size=self._chunk_size,
            )
        )

    def last_line_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        _check_count("last_lines", count)
        return self._data(
            ReadLines(id=self._id, token=self._token, last=count, window=self._window, chunk_size=self._chunk_size)
        )

    async def locate_line(self, line: int) -> Position:
        answer = await self._link.ask(Locate(id=self._id, token=self._token, line=line), Located)
        return answer.position

    async def locate_offset(self, offset: int) -> Position:
        answer = await self._link.ask(Locate(id=self._id, token=self._token, offset=offset), Located)
        return answer.position

    async def heads(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        answer = await self._link.ask(GetHeads(id=self._id, token=self._token, sizes=tuple(sizes)), Heads)
        if len(answer.heads) != len(sizes):
            raise ProtocolError(f"{len(answer.heads)} heads answer a request for {len(sizes)}")
        return answer.heads

    async def save(self, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Status:
        return await save_resource(self, path, progress=progress)

    async def delete(self) -> None:
        await self._link.ask(Delete(id=self._id, token=self._token), Done)

    async def close(self) -> None:
        self._closed = True
        self._link.wake()
        self._changed.notify()
        while self._streams:
            await self._streams.pop().close()

    @property
    def _window(self) -> int:
        return self._link.window

    @property
    def _chunk_size(self) -> int:
        return self._settings.chunk_size or 0

    async def _data(
        self, request: DownloadRequest, *, raise_on_failure: bool = False
    ) -> AsyncGenerator[DataChunk, None]:
        """Yield the proven bytes of one conversation after the other, granting more as they are taken."""
        machine = DownloadReceiver(window=request.window, max_chunk=MAX_CHUNK_SIZE, verify=self._settings.verify)
        current = request
        with self._reading() as reconnection:
            while machine.end is None:
                lost: TailraceError | None = None
                stream: ClientStream | None = None
                try:
                    stream = await self._open(current)
                    machine.receive(await self._first(stream, current))
                    self._back(reconnection)
                    while machine.end is None:
                        message = await stream.receive()
                        if message is None:
                            raise ConnectionLost(
                                f"the server ended the stream at offset {machine.offset} without its end"
                            )
                        machine.receive(message)
                        if isinstance(message, Chunk):
                            if reconnection.pending:
                                reconnection.progress()
                            yield DataChunk(message.offset, message.data, message.checkpoint)
                            # The reader has what it wants of the chunk; nothing may keep it while the next is awaited.
                            del message
                            window = machine.consume(machine.offset)
                            if window is not None:
                                # A server that has sent everything has hung up; what it said is still to be read.
                                with suppress(TailraceError):
                                    await stream.send(window)
                except TailraceError as error:
                    lost = error
                finally:
                    if stream is not None:
                        await self._leave(stream, lost)
                if lost is not None:
                    refused = current.window > 0 and self._link.leaves_window(lost)
                    if refused:
                        request = replace(request, window=0)
                        machine.leave_window()
                    rest = machine.again(request)
                    if rest is None:
                        raise lost
                    current = rest
                    if refused:
                        continue
                    await self._come_back(reconnection, machine.explain(lost), established=machine.started is not None)
        status = machine.end.status
        if raise_on_failure and status.state is ResourceState.FAILED:
            raise ResourceFailed(id=self._id, reason=status.reason or "", size=status.size)

    async def _messages(self, request: Request, reconnection: Reconnection) -> AsyncGenerator[ServerMessage, None]:
        stream = await self._open(request)
        lost: TailraceError | None = None
        try:
            message: ServerMessage | None = await self._first(stream, request)
            self._back(reconnection)
            while message is not None:
                yield message
                message = await stream.receive()
        except TailraceError as error:
            lost = error
            raise
        finally:
            await self._leave(stream, lost)

    @contextmanager
    def _reading(self) -> Generator[Reconnection, None, None]:
        """Return what decides about the conversations of one reader; its interruption ends with it."""
        reconnection = self._link.reconnection()
        try:
            yield reconnection
        finally:
            self._settle(reconnection)

    async def _come_back(self, reconnection: Reconnection, error: TailraceError, *, established: bool) -> None:
        """Wait until a lost conversation is to be tried again.

        Raises:
            TailraceError: ``error``: it is not to be tried again.
        """
        if not established and (isinstance(error, DeadlineExceeded) or not self._link.may_try_again()):
            raise error
        first = reconnection not in self._interrupted
        self._interrupted[reconnection] = error
        self._changed.notify()
        await self._link.come_back(reconnection, error, unwanted=lambda: self._closed)
        if first:
            logger.warning("reading resource %s is interrupted: %s", self._id, ascii(error.message))

    def _back(self, reconnection: Reconnection) -> None:
        self._link.opened(reconnection)
        self._settle(reconnection)

    def _settle(self, reconnection: Reconnection) -> None:
        if self._interrupted.pop(reconnection, None) is not None:
            self._changed.notify()

    async def _open(self, request: Request) -> ClientStream:
        if self._closed:
            raise ConnectionLost("the resource was closed")
        stream = await self._link.connection.open(request)
        self._streams.add(stream)
        return stream

    async def _leave(self, stream: ClientStream, lost: TailraceError | None) -> None:
        self._streams.discard(stream)
        if lost is not None:
            self._link.lose(stream, lost)
        await stream.close()

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


def _check_known(known: Status, status: Status, first: bool) -> None:
    """Check a status against a known one; the first after a reconnection may be no newer."""
    if status.version <= known.version and not first:
        raise ProtocolError(f"status of version {status.version} received after version {known.version}")
    if status.size < known.size:
        raise DataLost(announced=known.size, size=status.size)
