"""The server's side of the byte streams: ranges, followers and lines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tailrace_common_api import (
    KIBIBYTE,
    FromOffset,
    InvalidArgument,
    LastBytes,
    LastLines,
    Limits,
    LineAccessDisabled,
    ProtocolError,
    RangeNotSatisfiable,
    Start,
)
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._download_machine import DownloadSender
from tailrace_impl_common._endpoint import Endpoint
from tailrace_impl_common._lines import last_lines, resolve_lines
from tailrace_impl_common._statuses import status_under
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common.messages import DownloadRequest, End, Read, ReadLines, ServerMessage, Started
from tailrace_server_api import RequestTelemetry, ResourceReader, ResourceService, Snapshot

_SMALLEST_CHUNK = KIBIBYTE
"""Least size that counts where a reader says what suits it: messages of less are nearly all header."""
_LARGEST_TOGETHER = 64 * KIBIBYTE
"""Most bytes that are sent with their beginning and their end: a transport may still have to get rid of them when the
request is over, and a server that closes waits for requests, and only a moment for what they left."""


async def serve_download(
    request: DownloadRequest,
    stream: ServerStream,
    *,
    service: ResourceService,
    endpoint: Endpoint,
    telemetry: RequestTelemetry,
) -> None:
    """Drive a byte stream from its first message; see :func:`serve_conversation`."""
    limits = service.limits
    limit = limits.max_download_window
    if not 0 <= request.window <= limit:
        problem = f"{request.window} is not within 0 and {limit} bytes; a client sets it as its download_window"
        raise InvalidArgument(field="window", problem=problem)
    reader = await service.open_reader(request.id, token=request.token)
    try:
        snapshot = reader.snapshot
        span = await _resolve(request, reader, snapshot)
        chunk_size = endpoint.chunk_size
        if request.chunk_size:
            chunk_size = min(max(request.chunk_size, _SMALLEST_CHUNK), limits.chunk_size)
        conversation = _DownloadConversation(
            reader, stream, span, window=request.window, chunk_size=chunk_size, endpoint=endpoint, telemetry=telemetry
        )
        await conversation.run(snapshot, limits, endpoint.base)
    finally:
        reader.close()


@dataclass(frozen=True, slots=True)
class _Span:
    """What a request asked for, in bytes."""

    start: int
    end: int | None
    """``None`` for a follower."""
    line: int | None = None
    """Number of the first line, where lines were asked for."""


async def _resolve(request: DownloadRequest, reader: ResourceReader, snapshot: Snapshot) -> _Span:
    if isinstance(request, Read):
        return _resolve_bytes(request, snapshot.size)
    if isinstance(request, ReadLines):
        return await _resolve_lines(request, reader, snapshot)
    return _Span(await _resolve_start(request.start, reader, snapshot), None)


def _resolve_bytes(request: Read, size: int) -> _Span:
    if request.suffix is not None:
        if request.suffix < 0:
            raise InvalidArgument(field="suffix", problem=f"{request.suffix} is negative")
        return _Span(max(0, size - request.suffix), size)
    end = size if request.end is None else request.end
    if not 0 <= request.start <= end <= size:
        raise RangeNotSatisfiable(start=request.start, end=request.end, size=size)
    return _Span(request.start, end)


async def _resolve_lines(request: ReadLines, reader: ResourceReader, snapshot: Snapshot) -> _Span:
    if not reader.line_access:
        raise LineAccessDisabled(id=reader.id)
    if request.last is not None:
        first, end = last_lines(request.last, snapshot.lines)
    else:
        first, end = resolve_lines(request.first, request.count, snapshot.lines)
    start = await reader.line_offset(first, snapshot)
    return _Span(start, start if end == first else await reader.line_offset(end, snapshot), first)


async def _resolve_start(start: Start, reader: ResourceReader, snapshot: Snapshot) -> int:
    match start:
        case FromOffset(offset):
            if not 0 <= offset <= snapshot.size:
                raise RangeNotSatisfiable(start=offset, end=None, size=snapshot.size)
            return offset
        case LastBytes(count):
            if count < 0:
                raise InvalidArgument(field="last_bytes", problem=f"{count} is negative")
            return max(0, snapshot.size - count)
        case LastLines(count):
            if not reader.line_access:
                raise LineAccessDisabled(id=reader.id)
            return await reader.line_offset(last_lines(count, snapshot.lines)[0], snapshot)


class _DownloadConversation:
    """One byte stream: this task sends, and another takes the reader's windows while they are needed."""

    __slots__ = (
        "_budget",
        "_chunk_size",
        "_control",
        "_count",
        "_granted",
        "_machine",
        "_owner",
        "_reader",
        "_refused",
        "_shared",
        "_span",
        "_stream",
        "_watcher",
        "_window",
    )

    def __init__(
        self,
        reader: ResourceReader,
        stream: ServerStream,
        span: _Span,
        *,
        window: int,
        chunk_size: int,
        endpoint: Endpoint,
        telemetry: RequestTelemetry,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._span = span
        self._window = window
        self._chunk_size = chunk_size
        self._budget = endpoint.budget
        self._shared = endpoint.shared
        self._count = telemetry.sent
        self._machine = DownloadSender(offset=span.start, window=window)
        self._owner: asyncio.Task[object] | None = None
        self._control: asyncio.Task[None] | None = None
        self._refused = False
        # Made when they are needed: there are thousands of followers that wait for nothing but the next byte.
        self._granted: asyncio.Event | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, snapshot: Snapshot, limits: Limits, base: str) -> None:
        span = self._span
        started = Started(
            offset=span.start,
            end=span.end,
            line=span.line,
            status=status_under(self._reader.status(), base),
            limits=limits,
        )
        if span.end is not None and self._granted_at_once(span.end - span.start):
            await self._send_at_once(started, span.end, snapshot, base)
            return
        await self._stream.send(started)
        # There are thousands of followers that wait for nothing but the next byte.
        del started, limits
        await self._send_within_windows(snapshot)
        await self._stream.send_last(self._end(base))

    async def _send_at_once(self, started: Started, end: int, announced: Snapshot, base: str) -> None:
        """Send an answer that needs no windows; a small one whole, if its bytes come in one piece."""
        machine, reader, stream, budget = self._machine, self._reader, self._stream, self._budget
        messages: list[ServerMessage] = [started]
        offset = machine.offset
        size = 0
        if offset < end <= offset + _LARGEST_TOGETHER:
            piece = reader.try_read(offset, end) or await reader.read(offset, end)
            size = len(piece.data)
            checkpoint = self._shared.checkpoint_at(offset + size, announced)
            messages.append(machine.chunk(piece.data, piece.hash, checkpoint))
        whole = machine.offset == end
        budget.in_flight += size
        try:
            if whole:
                await stream.send_last(*messages, self._end(base))
            else:
                for message in messages:
                    await stream.send(message)
        finally:
            budget.in_flight -= size
        if size:
            self._count(size)
        if not whole:
            await self._send(end, announced)
            await stream.send_last(self._end(base))

    def _end(self, base: str) -> End:
        return self._machine.end(status_under(self._reader.status(), base))

    def _granted_at_once(self, size: int) -> bool:
        """Whether bytes are a chunk at the most, and granted: to listen meanwhile costs more than to send that."""
        return size <= self._chunk_size and (self._window == 0 or size <= self._window)

    async def _send_within_windows(self, snapshot: Snapshot) -> None:
        """Send the bytes, and take the reader's windows meanwhile."""
        span = self._span
        owner = self._owner = asyncio.current_task()
        assert owner is not None
        cancelled = owner.cancelling()
        self._listen()
        try:
            await self._send(snapshot.size if span.end is None else span.end, snapshot)
            # Whoever follows waits here, without a frame more than that.
            while span.end is None and not snapshot.state.terminal:
                snapshot = await self._reader.changed(snapshot.version, self._absorb)
                await self._send(snapshot.size, snapshot)
        except asyncio.CancelledError:
            if self._control is not None and self._refused and owner.uncancel() <= cancelled:
                # Nobody else wants this to end: the reader has made a mistake.
                self._control.result()
            raise
        finally:
            self._owner = None
            await cancel_and_wait(*(task for task in (self._control, self._watcher) if task is not None))

    def _listen(self) -> None:
        """Take the reader's windows, if that is needed at the moment and not done already."""
        if self._control is None and not self._may_be_left:
            self._control = asyncio.ensure_future(self._receive_windows())
            self._control.add_done_callback(self._interrupt)

    @property
    def _may_be_left(self) -> bool:
        """Whether nobody need listen: more is granted than is sent soon, and the transport keeps what comes.

        Of thousands of followers that wait for the next byte almost all are such.
        """
        return self._stream.keeps_unread and self._machine.room >= max(self._chunk_size, self._window // 2)

    def _interrupt(self, control: asyncio.Task[None]) -> None:
        """End the sending if the reader made a mistake; one that has said its last word is still sent the rest."""
        if self._owner is not None and not control.cancelled() and control.exception() is not None:
            self._refused = True
            self._owner.cancel()

    def _absorb(self, snapshot: Snapshot) -> bool:
        """Send what is new at once, if nothing has to be waited for; return whether that was all.

        A follower that has everything costs no more than this for each change: its task sleeps.
        """
        machine, stream = self._machine, self._stream
        offset = machine.offset
        if snapshot.size > offset:
            write = stream.writer
            if write is None or not machine.may_send:
                return False
            shared = self._shared
            most = self._budget.chunk_size(self._chunk_size)
            chunk = machine.chunk_again(shared, snapshot, most)
            if chunk is None:
                piece = self._reader.try_read(offset, min(snapshot.size, offset + most))
                if piece is None:
                    return False
                checkpoint = shared.checkpoint_at(offset + len(piece.data), snapshot)
                chunk = machine.chunk(piece.data, piece.hash, checkpoint, shared)
            write(chunk)
            size = len(chunk.data)
            self._count(size)
            offset += size
            if self._owner is not None:
                self._listen()
        return offset == snapshot.size and not snapshot.state.terminal

    async def _send(self, end: int, announced: Snapshot) -> None:
        """Send everything up to ``end`` in chunks as large as there are bytes for."""
        machine, reader, send, budget = self._machine, self._reader, self._stream.send, self._budget
        shared = self._shared if self._span.end is None else None
        while (offset := machine.offset) < end:
            if not machine.may_send:
                await self._wait_for_window()
            most = min(end - offset, budget.chunk_size(self._chunk_size))
            chunk = None if shared is None else machine.chunk_again(shared, announced, most)
            if chunk is None:
                until = offset + most
                piece = reader.try_read(offset, until) or await reader.read(offset, until)
                checkpoint = self._shared.checkpoint_at(offset + len(piece.data), announced)
                chunk = machine.chunk(piece.data, piece.hash, checkpoint, shared)
                del piece
            size = len(chunk.data)
            budget.in_flight += size
            try:
                await send(chunk)
            finally:
                budget.in_flight -= size
            self._count(size)
            if self._owner is not None:
                self._listen()
            # A shared buffer lives as long as the slowest reader holds it; waiting readers hold none.
            del chunk

    async def _wait_for_window(self) -> None:
        granted = self._granted
        if granted is None:
            granted = self._granted = asyncio.Event()
        while not self._machine.may_send:
            self._listen()
            if self._control is not None and self._control.done():
                # A mistake of the reader, or the end of its connection, is told as what it is.
                self._control.result()
                raise ProtocolError("the reader stopped granting bytes before it had all that it asked for")
            if self._watcher is None:
                self._watcher = asyncio.ensure_future(self._watch_for_the_end())
            if self._watcher.done():
                self._watcher.result()
            granted.clear()
            await granted.wait()

    async def _watch_for_the_end(self) -> None:
        """Wake the sender when there is nothing to wait for any more, as when the resource is deleted."""
        version = self._reader.snapshot.version
        try:
            while True:
                version = (await self._reader.changed(version)).version
        finally:
            self._wake()

    async def _receive_windows(self) -> None:
        """Take grants until there are enough for now, or the reader has no more to say."""
        try:
            while (message := await self._stream.receive()) is not None:
                if self._machine.receive(message):
                    self._wake()
                if self._may_be_left:
                    self._control = None
                    return
        finally:
            self._wake()

    def _wake(self) -> None:
        if self._granted is not None:
            self._granted.set()
