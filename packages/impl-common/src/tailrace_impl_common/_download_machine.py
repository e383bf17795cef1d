"""How a byte stream reaches a reader: the machines of both sides, without any I/O.

The server answers ``Read``, ``Follow`` and ``ReadLines`` with ``Started``, chunks without a gap, and ``End``::

    STARTING ──Started──▶ STREAMING ──Chunk*──▶ STREAMING ──End──▶ ENDED

The reader grants a window: it can hold what it granted, so what arrives is always taken off the connection. The server
may go beyond the window by one chunk, so that chunks shared between readers need not be split. A window of 0 leaves the
pace to the transport, and then no ``Window`` is ever sent.

A chunk that ends at an announced size carries the checkpoint there. A reader that started at 0 compares its own head
with it, and with the status in ``End``.

When the conversation is lost the reader asks for the rest (:meth:`DownloadReceiver.again`), and the stream is STARTING
anew, at the byte after the last proven one: chain and window begin afresh, the head goes on.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from tailrace_common_api import (
    Checkpoint,
    DataLost,
    FromOffset,
    IntegrityError,
    ProtocolError,
    RangeNotSatisfiable,
    Status,
    TailraceError,
)
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._chain import ChainSender, ChainVerifier
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._shared_chunk import SharedChunk
from tailrace_impl_common._window import ReceiveWindow, SendWindow
from tailrace_impl_common.messages import (
    Chunk,
    ClientMessage,
    DownloadRequest,
    End,
    Follow,
    Read,
    ServerMessage,
    Started,
    Window,
)
from tailrace_server_api import Snapshot


class DownloadState(enum.Enum):
    """States of a byte stream."""

    # Members are compared by identity; the hash of an Enum is a function in Python, called for every message.
    __hash__ = object.__hash__

    STARTING = enum.auto()
    STREAMING = enum.auto()
    ENDED = enum.auto()


DOWNLOAD_TRANSITIONS: dict[tuple[DownloadState, type], DownloadState] = {
    (DownloadState.STARTING, Started): DownloadState.STREAMING,
    (DownloadState.STREAMING, Chunk): DownloadState.STREAMING,
    (DownloadState.STREAMING, End): DownloadState.ENDED,
}


class DownloadSender(ChainSender):
    """The server's half: links chunks and keeps to the reader's window."""

    __slots__ = ("_unlimited", "_window")

    def __init__(self, *, offset: int, window: int) -> None:
        """Start a stream at ``offset`` for a reader that granted ``window`` bytes from there; 0 for no window."""
        super().__init__(offset)
        self._unlimited = window == 0
        self._window = SendWindow(offset + window)

    @property
    def may_send(self) -> bool:
        """Whether the window has room; one chunk may then go beyond it."""
        return self._unlimited or self._window.until > self.offset

    @property
    def room(self) -> int:
        """How many bytes of the window are left; 0 for a stream without one."""
        return 0 if self._unlimited else self._window.available(self.offset)

    def receive(self, message: ClientMessage) -> bool:
        """Take a message of the reader; return whether it allows more than before.

        Raises:
            ProtocolError: It is no ``Window``, or the reader had chosen to have none.
        """
        if not isinstance(message, Window):
            raise ProtocolError(f"{type(message).__name__} is not for the reader of a byte stream to send")
        if self._unlimited:
            raise ProtocolError("a window cannot be granted in a stream that was asked for without one")
        return self._window.grant(message.until)

    def chunk(
        self, data: Buffer, hash: bytes, checkpoint: Checkpoint | None, shared: SharedChunk | None = None
    ) -> Chunk:
        """Return the next chunk, of bytes that were hashed already; one of ``shared``, for many readers."""
        offset = self.offset
        previous = self.link(hash, len(data))
        if shared is not None:
            return shared.chunk(offset, data, hash, previous, checkpoint)
        return Chunk(offset, data, hash, previous, checkpoint)

    def chunk_again(self, shared: SharedChunk, snapshot: Snapshot, most: int) -> Chunk | None:
        """Return the next chunk if it is the one that another reader was sent last; ``None`` if it is to be read.

        Args:
            shared: The chunk that was made last.
            snapshot: What is announced to this reader.
            most: Most bytes that the chunk may have.
        """
        chunk = shared.again(self.offset, self.previous, snapshot, most)
        if chunk is not None:
            self.link(chunk.hash, len(chunk.data))
        return chunk

    def end(self, status: Status) -> End:
        """Return the message that ends the stream."""
        return End(offset=self.offset, previous=self.previous, status=status)


class DownloadReceiver:
    """The reader's half: proves what arrives and grants more as it is consumed."""

    __slots__ = (
        "_confirmed",
        "_disproved",
        "_hasher",
        "_max_chunk",
        "_verifier",
        "_verify",
        "_window",
        "_window_size",
        "end",
        "started",
        "state",
    )

    def __init__(self, *, window: int, max_chunk: int, verify: bool = True) -> None:
        """Wait for ``Started``.

        Args:
            window: Bytes granted in the request; 0 for no window.
            max_chunk: Largest chunk that a server may send, in bytes: by so much it may overdraw.
            verify: Whether to check hashes and heads; offsets and order are checked always.
        """
        self._window_size = window
        self._max_chunk = max_chunk
        self._verify = verify
        self._verifier = ChainVerifier()
        self._window: ReceiveWindow | None = None
        self._hasher: HeadHasher | None = None
        self._confirmed = 0
        self._disproved = False
        self.state = DownloadState.STARTING
        self.started: Started | None = None
        """The server's answer to the last request; ``None`` while STARTING for the first time."""
        self.end: End | None = None
        """How the stream ended; ``None`` before."""

    @property
    def offset(self) -> int:
        """Offset behind the last proven byte."""
        return self._verifier.offset

    def receive(self, message: ServerMessage) -> None:
        """Take a message of the server; what it holds is proven when this returns.

        Raises:
            ProtocolError: It does not fit the state, or overdraws the window.
            IntegrityError: Bytes were lost, repeated, reordered or changed.
        """
        try:
            state = DOWNLOAD_TRANSITIONS[self.state, type(message)]
        except KeyError:
            raise ProtocolError(f"{type(message).__name__} received while the stream is {self.state.name}") from None
        if isinstance(message, Chunk):
            self._take(message)
        elif isinstance(message, Started):
            self._start(message)
        elif isinstance(message, End):
            self._finish(message)
        self.state = state

    def again(self, request: DownloadRequest) -> DownloadRequest | None:
        """Return what to ask for when the conversation was lost, and expect its answer.

        Args:
            request: What was asked for at first.

        Returns:
            The request for the rest; ``None`` when what was handed out is not what the server sent or had announced:
            no other answer makes that right.
        """
        if self._disproved:
            return None
        self.state = DownloadState.STARTING
        if self.started is None:
            return request
        if isinstance(request, Follow):
            return replace(request, start=FromOffset(self.offset))
        return Read(
            id=request.id,
            token=request.token,
            start=self.offset,
            end=self.started.end,
            window=request.window,
            chunk_size=request.chunk_size,
        )

    def leave_window(self) -> None:
        """Grant nothing from the next answer on: what is asked for has no window."""
        self._window_size = 0
        self._window = None

    def explain(self, error: TailraceError) -> TailraceError:
        """Return what the server's answer to a request for the rest means: what was there can only be lost."""
        if self.started is None or not isinstance(error, RangeNotSatisfiable):
            return error
        return DataLost(announced=max(self.offset, self.started.end or 0), size=error.size)

    def _start(self, started: Started) -> None:
        if self.started is None:
            if self._verify and started.offset == 0:
                self._hasher = HeadHasher()
        elif (started.offset, started.end) != (self.offset, self.started.end):
            raise ProtocolError(
                f"the stream goes on with bytes [{started.offset}, {started.end}), "
                f"where [{self.offset}, {self.started.end}) were asked for"
            )
        self.started = started
        self._verifier = ChainVerifier(started.offset)
        if self._window_size:
            self._window = ReceiveWindow(self._window_size, offset=started.offset, overdraft=self._max_chunk)

    def _take(self, chunk: Chunk) -> None:
        if chunk.previous != self._verifier.previous and chunk.offset == self._verifier.offset:
            # The chunk before it, which was handed out, is not the one that was sent.
            self._disproved = True
        if self._window is not None:
            self._window.receive(chunk.offset, len(chunk.data))
        if self._verify:
            self._verifier.check(chunk.offset, chunk.data, chunk.hash, chunk.previous, self._hasher)
        else:
            self._verifier.link(chunk.offset, len(chunk.data), chunk.hash, chunk.previous)
        if self._hasher is not None and chunk.checkpoint is not None:
            self._compare(self._hasher, chunk.checkpoint.head)

    def _compare(self, hasher: HeadHasher, head: bytes) -> None:
        if hasher.head() != head:
            self._disproved = True
            raise IntegrityError(
                offset=self._confirmed, problem=f"the head of the first {hasher.size} bytes is not the announced one"
            )
        self._confirmed = hasher.size

    def _finish(self, end: End) -> None:
        offset = self._verifier.offset
        if end.offset != offset:
            raise IntegrityError(
                offset=offset, problem=f"the stream ended at {end.offset} but {offset} is where it got to"
            )
        if end.previous != self._verifier.previous:
            self._disproved = True
        self._verifier.finish(end.previous)
        if self._hasher is not None and end.status.size == offset:
            self._compare(self._hasher, end.status.head)
        self.end = end

    def consume(self, offset: int) -> Window | None:
        """Note that the reader took everything below ``offset``; return the window to grant, if it is time to."""
        if self._window is None:
            return None
        until = self._window.consume(offset)
        return None if until is None else Window(until)
