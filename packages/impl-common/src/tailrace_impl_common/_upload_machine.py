"""How an upload goes: the machines of both sides, without any I/O.

An upload conversation passes through five states. Both sides walk the same table, each with the messages that it
receives and those that it sends::

    OPENING ──Opened──▶ OPEN ──Finish──▶ FINISHING ──Finished──▶ ENDED
        │                │                   │                     ▲
        │                └──────Abort──────────────────▶ ABORTING ─┘ Finished
        └──Opened (the upload has ended already)───────────────────▶ ENDED

``Checkpoint`` and ``Window`` come at any time between ``Opened`` and ``Finished`` and change no state. A message that
the table does not have is the peer's ``ProtocolError`` when it was received, and this side's defect (``RuntimeError``)
when it was to be sent. An error ends the conversation in any state; whether the upload goes on after that is decided
by the server's grace period, not here.

Offsets. The client sends ``[offset, until)`` and nothing beyond: chunks are cut to fit. ``until`` never shrinks. The
server refuses what does not continue exactly at the offset it expects (``WrongOffset``), overdraws the window
(``ProtocolError``), does not follow the last chunk (``IntegrityError``) or is too large (``MessageTooLarge``).
"""

from __future__ import annotations

import enum
from collections import deque

from tailrace_common_api import Checkpoint, Limits, MessageTooLarge, ProtocolError, Status, WrongOffset
from tailrace_impl_common._buffers import Buffer, flat
from tailrace_impl_common._chain import ChainSender, ChainVerifier
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._window import SendWindow
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    Finish,
    Finished,
    Opened,
    ServerMessage,
    Window,
)


class UploadState(enum.Enum):
    """States of an upload conversation."""

    OPENING = enum.auto()
    OPEN = enum.auto()
    FINISHING = enum.auto()
    ABORTING = enum.auto()
    ENDED = enum.auto()


UPLOAD_TRANSITIONS: dict[tuple[UploadState, type], UploadState] = {
    (UploadState.OPENING, Opened): UploadState.OPEN,
    (UploadState.OPEN, Chunk): UploadState.OPEN,
    (UploadState.OPEN, Window): UploadState.OPEN,
    (UploadState.OPEN, Checkpoint): UploadState.OPEN,
    (UploadState.OPEN, Finish): UploadState.FINISHING,
    (UploadState.OPEN, Abort): UploadState.ABORTING,
    (UploadState.FINISHING, Window): UploadState.FINISHING,
    (UploadState.FINISHING, Checkpoint): UploadState.FINISHING,
    (UploadState.FINISHING, Finished): UploadState.ENDED,
    (UploadState.ABORTING, Window): UploadState.ABORTING,
    (UploadState.ABORTING, Checkpoint): UploadState.ABORTING,
    (UploadState.ABORTING, Finished): UploadState.ENDED,
}


def _received(state: UploadState, message: ClientMessage | ServerMessage) -> UploadState:
    try:
        return UPLOAD_TRANSITIONS[state, type(message)]
    except KeyError:
        raise ProtocolError(f"{type(message).__name__} received while the upload is {state.name}") from None


def _sent(state: UploadState, message_type: type) -> UploadState:
    try:
        return UPLOAD_TRANSITIONS[state, message_type]
    except KeyError:
        raise RuntimeError(f"{message_type.__name__} sent while the upload is {state.name}") from None


class UploadSender:
    """The client's half: takes bytes, cuts chunks that fit the window, and knows what is announced.

    Bytes that were written wait here until they are cut; small ones are then joined into one chunk. The shell keeps
    :attr:`pending` small by making its writers wait.
    """

    __slots__ = (
        "_chain",
        "_chunk_size",
        "_hasher",
        "_parts",
        "_pending",
        "_window",
        "announced",
        "final",
        "opened",
        "state",
    )

    def __init__(self, chunk_size: int) -> None:
        """Wait for ``Opened``.

        Args:
            chunk_size: Largest chunk to cut, in bytes; the server's limit counts where it is lower.
        """
        self._chunk_size = chunk_size
        self._parts: deque[Buffer] = deque()
        self._pending = 0
        self._window = SendWindow()
        self._chain = ChainSender()
        self._hasher = HeadHasher()
        self.state = UploadState.OPENING
        self.opened: Opened | None = None
        """The server's answer to the request; ``None`` while OPENING."""
        self.announced = Checkpoint(0, 0, self._hasher.head())
        """The last announced checkpoint."""
        self.final: Finished | None = None
        """How the upload ended; ``None`` before."""

    @property
    def chunk_size(self) -> int:
        """Largest chunk that is cut, in bytes."""
        return self._chunk_size

    @property
    def pending(self) -> int:
        """Bytes that were written and are not cut yet."""
        return self._pending

    @property
    def sent(self) -> int:
        """Offset up to which chunks were cut."""
        return self._chain.offset

    @property
    def offset(self) -> int:
        """Offset behind everything that was written."""
        return self._chain.offset + self._pending

    @property
    def head(self) -> bytes:
        """Head of everything that was cut."""
        return self._hasher.head()

    def receive(self, message: ServerMessage) -> None:
        """Take a message of the server.

        Raises:
            ProtocolError: The message does not fit the state, or says what cannot be.
        """
        state = _received(self.state, message)
        if isinstance(message, Window):
            self._window.grant(message.until)
        elif isinstance(message, Checkpoint):
            if not self.announced.size <= message.size <= self.sent:
                raise ProtocolError(
                    f"checkpoint at {message.size} is not within {self.announced.size}, the last one, "
                    f"and {self.sent}, what was sent"
                )
            self.announced = message
        elif isinstance(message, Opened):
            state = self._open(message)
        elif isinstance(message, Finished):
            self.final = message
        self.state = state

    def _open(self, opened: Opened) -> UploadState:
        self.opened = opened
        self._chunk_size = min(self._chunk_size, opened.limits.chunk_size)
        self._window = SendWindow(opened.until)
        self._chain = ChainSender(opened.offset)
        self.announced = Checkpoint(opened.offset, opened.newlines, opened.head)
        if opened.status.state.terminal:
            self.final = Finished(opened.status)
            return UploadState.ENDED
        return UploadState.OPEN

    def continue_from(self, hasher: HeadHasher) -> None:
        """Use the hash state of the bytes below the opened offset; needed when that is not 0.

        Raises:
            RuntimeError: ``hasher`` stands elsewhere.
        """
        if hasher.size != self.sent:
            raise RuntimeError(f"a hash state at {hasher.size} cannot continue at {self.sent}")
        self._hasher = hasher

    def write(self, data: Buffer) -> None:
        """Take bytes; they are held by reference until they are cut and must not change until then.

        Raises:
            InvalidArgument: ``data`` is not bytes-like.
            RuntimeError: The upload is not OPEN.
        """
        data = flat(data)
        _sent(self.state, Chunk)
        if data:
            self._parts.append(data)
            self._pending += len(data)

    def next_chunk(self) -> Chunk | None:
        """Cut the next chunk; ``None`` when nothing is pending or the window is used up."""
        if not self._pending or self.state is not UploadState.OPEN:
            return None
        offset = self._chain.offset
        size = min(self._pending, self._chunk_size, self._window.available(offset))
        if not size:
            return None
        data = self._cut(size)
        digest, previous = self._chain.next(data)
        self._hasher.update(data)
        return Chunk(offset, data, digest, previous)

    def _cut(self, size: int) -> Buffer:
        """Take ``size`` pending bytes: without a copy where one part holds them."""
        self._pending -= size
        parts = self._parts
        first = parts[0]
        if len(first) == size:
            return parts.popleft()
        if len(first) > size:
            view = memoryview(first)
            parts[0] = view[size:]
            return view[:size]
        taken: list[Buffer] = []
        while size:
            part = parts.popleft()
            if len(part) > size:
                view = memoryview(part)
                parts.appendleft(view[size:])
                part = view[:size]
            taken.append(part)
            size -= len(part)
        return b"".join(taken)

    def finish(self) -> Finish:
        """Return the message that ends the input.

        Raises:
            RuntimeError: The upload is not OPEN, or bytes are pending.
        """
        state = _sent(self.state, Finish)
        if self._pending:
            raise RuntimeError(f"{self._pending} bytes are not sent yet")
        self.state = state
        return Finish(self.sent, self.head)

    def abort(self, reason: str) -> Abort:
        """Drop what is pending and return the message that gives the upload up.

        Raises:
            RuntimeError: The upload is not OPEN.
        """
        self.state = _sent(self.state, Abort)
        self._parts.clear()
        self._pending = 0
        return Abort(reason)


class UploadReceiver:
    """The server's half: checks that what arrives continues what is there, and keeps to what was granted.

    The bytes of a chunk are checked against its hash where they are stored, not here.
    """

    __slots__ = ("_max_chunk", "_until", "_verifier", "state")

    def __init__(self, limits: Limits) -> None:
        """Wait for ``Opened`` to be sent."""
        self._max_chunk = limits.chunk_size
        self._until = 0
        self._verifier = ChainVerifier()
        self.state = UploadState.OPENING

    @property
    def offset(self) -> int:
        """Offset that the next chunk must have."""
        return self._verifier.offset

    def open(self, opened: Opened) -> None:
        """Note what the answer to the request granted."""
        self.state = _sent(self.state, Opened)
        self._until = opened.until
        self._verifier = ChainVerifier(opened.offset)
        if opened.status.state.terminal:
            self.state = UploadState.ENDED

    def grant(self, until: int) -> Window | None:
        """Return the message that lets the client send up to ``until``; ``None`` when it may do so already."""
        if until <= self._until:
            return None
        self._until = until
        return Window(until)

    def receive(self, message: ClientMessage) -> None:
        """Take a message of the client; a refused one changes nothing.

        Raises:
            ProtocolError: It does not fit the state, or overdraws the window.
            MessageTooLarge: A chunk is larger than the limit.
            WrongOffset: A chunk is not the next one.
            IntegrityError: A chunk does not follow the one before it.
        """
        state = _received(self.state, message)
        if isinstance(message, Chunk):
            length = len(message.data)
            if length > self._max_chunk:
                raise MessageTooLarge(size=length, maximum=self._max_chunk)
            if message.offset != self._verifier.offset:
                raise WrongOffset(offset=message.offset, expected=self._verifier.offset)
            if message.offset + length > self._until:
                raise ProtocolError(
                    f"bytes [{message.offset}, {message.offset + length}) overdraw the window, "
                    f"which ends at offset {self._until}"
                )
            self._verifier.link(message.offset, length, message.hash, message.previous)
        elif not isinstance(message, Finish | Abort):
            raise ProtocolError(f"{type(message).__name__} is not for the client of an upload to send")
        self.state = state

    def finished(self, status: Status | None) -> Finished:
        """Return the message that ends the conversation."""
        self.state = _sent(self.state, Finished)
        return Finished(status)
