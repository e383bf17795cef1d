"""How an upload goes: the machines of both sides, without any I/O.

An upload conversation passes through five states. Both sides walk the same table, each with the messages that it
receives and those that it sends::

    OPENING ──Opened──▶ OPEN ──Finish──▶ FINISHING ──Finished──▶ ENDED
        │                │                   │                     ▲
        │                └──────Abort──────────────────▶ ABORTING ─┘ Finished
        └──Opened (the upload has ended already)───────────────────▶ ENDED

``Checkpoint`` and ``Window`` come at any time between ``Opened`` and ``Finished`` and change no state. A message that
the table does not have is the peer's ``ProtocolError`` when it was received, and this side's defect (``RuntimeError``)
when it was to be sent. An error ends the conversation in any state.

An upload goes on when its conversation was lost: while it is OPEN or FINISHING the client asks for it again
(``ReopenUpload``), and :meth:`UploadSender.resume` takes the answer. The server decides the offset; the client has kept
what it sent and the server has not announced, with hash states among it, so it can compare the heads there and send
what lies behind it again. The chain begins anew with each conversation, a ``Finish`` is repeated. ::

    Opened.status    terminal       OPEN ─▶ ENDED; success if it is COMPLETED with the size and head of the Finish sent
    Opened.offset    kept           the heads agree ─▶ OPEN, continue there; they differ ─▶ the source has changed
                     below that     MISSING: the bytes between must come from the source again, or data is lost
                     not sent yet   DIFFERS: somebody else has written

Offsets. The client sends ``[offset, until)`` and nothing beyond: chunks are cut to fit. ``until`` never shrinks. The
server refuses what does not continue exactly at the offset it expects (``WrongOffset``), overdraws the window
(``ProtocolError``), does not follow the last chunk (``IntegrityError``) or is too large (``MessageTooLarge``).
"""

from __future__ import annotations

import enum
from collections import deque

from tailrace_common_api import (
    AlreadyTerminal,
    Checkpoint,
    DataLost,
    Limits,
    MessageTooLarge,
    ProtocolError,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    Status,
    WrongOffset,
)
from tailrace_impl_common._buffers import Buffer, flat
from tailrace_impl_common._chain import ChainSender, ChainVerifier
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._unannounced import Unannounced
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

DATA_LOST = "data lost"
"""Reason of uploads that ended because the server lost what it had announced."""


class UploadState(enum.Enum):
    """States of an upload conversation."""

    # Members are compared by identity; the hash of an Enum is a function in Python, called for every message.
    __hash__ = object.__hash__

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


class Resumption(enum.Enum):
    """How an upload stands when it was reopened."""

    ENDED = enum.auto()
    """It was completed: what was lost is the acknowledgement."""
    CONTINUED = enum.auto()
    """It goes on."""
    DIFFERS = enum.auto()
    """The server has other bytes than were sent."""
    MISSING = enum.auto()
    """The server has less than what is kept here can continue."""


class UploadSender:
    """The client's half: takes bytes, cuts chunks that fit the window, and knows what is announced.

    Bytes that were written wait here until they are cut; small ones are then joined into one chunk. The shell keeps
    :attr:`pending` small by making its writers wait. Bytes that were cut stay here until they are announced.
    """

    __slots__ = (
        "_chain",
        "_chunk_size",
        "_gap",
        "_hasher",
        "_held",
        "_held_size",
        "_parts",
        "_pending",
        "_sent",
        "_told",
        "_window",
        "_written",
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
        self._written = 0
        self._window = SendWindow()
        self._chain = ChainSender()
        self._hasher = HeadHasher()
        self._sent = Unannounced()
        self._told = 0
        # While a source is read again: where what was held back goes on, with the hash state there, and that itself.
        self._gap: HeadHasher | None = None
        self._held: deque[Buffer] = deque()
        self._held_size = 0
        self.state = UploadState.OPENING
        self.opened: Opened | None = None
        """The server's answer to the last request; ``None`` while OPENING."""
        self.announced = Checkpoint(0, 0, self._hasher.head())
        """The last announced checkpoint. It never goes back, even when a server does."""
        self.final: Finished | None = None
        """How the upload ended; ``None`` before."""

    @property
    def chunk_size(self) -> int:
        """Largest chunk that is cut, in bytes."""
        return self._chunk_size

    @property
    def pending(self) -> int:
        """Bytes that were written and are not cut yet."""
        return self._pending + self._held_size

    @property
    def kept(self) -> int:
        """Bytes that were cut and are kept, to be sent again if need be."""
        return self._sent.size

    @property
    def sent(self) -> int:
        """Offset up to which chunks were cut."""
        return self._chain.offset

    @property
    def offset(self) -> int:
        """Offset behind everything that was written."""
        return self._written

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
            sent = self._chain.offset
            if not self._told <= message.size <= sent:
                raise ProtocolError(
                    f"checkpoint at {message.size} is not within {self._told}, the last one, and {sent}, what was sent"
                )
            self._announce(message)
        elif isinstance(message, Opened):
            state = self._open(message)
        elif isinstance(message, Finished):
            self.final = message
        self.state = state

    def _announce(self, checkpoint: Checkpoint) -> None:
        self._told = checkpoint.size
        self._sent.announce(checkpoint.size)
        if checkpoint.size >= self.announced.size:
            self.announced = checkpoint

    def _open(self, opened: Opened) -> UploadState:
        self._written = opened.offset
        self._begin(opened)
        if opened.status.state.terminal:
            self.final = Finished(opened.status)
            return UploadState.ENDED
        return UploadState.OPEN

    def _begin(self, opened: Opened) -> None:
        """Take what a conversation begins with."""
        self.opened = opened
        self._chunk_size = min(self._chunk_size, opened.limits.chunk_size)
        self._window = SendWindow(opened.until)
        self._chain = ChainSender(opened.offset)
        self._announce(Checkpoint(opened.offset, opened.newlines, opened.head))

    def continue_from(self, hasher: HeadHasher) -> None:
        """Use the hash state of the bytes below the opened offset; needed when that is not 0.

        Raises:
            RuntimeError: ``hasher`` stands elsewhere.
        """
        if hasher.size != self.sent:
            raise RuntimeError(f"a hash state at {hasher.size} cannot continue at {self.sent}")
        self._hasher = hasher

    def resume(self, opened: Opened, *, chunk_size: int) -> Resumption:
        """Take the answer to ``ReopenUpload``, after the conversation before was lost.

        Everything is as it was before unless the upload has ended or continues.

        Args:
            opened: The answer.
            chunk_size: Largest chunk to cut from here on, in bytes; the server's limit counts where it is lower.

        Raises:
            ResourceFailed, AlreadyTerminal: The upload has ended otherwise than this client asked for.
            RuntimeError: The upload is not OPEN or FINISHING.
        """
        finishing = self.state is UploadState.FINISHING
        if self.state is not UploadState.OPEN and not finishing:
            raise RuntimeError(f"an upload that is {self.state.name} cannot be resumed")
        status = opened.status
        if status.state.terminal:
            as_finished = finishing and (status.size, status.head) == (self.sent, self.head)
            self.opened = opened
            self.final = Finished(status)
            self.state = UploadState.ENDED
            if status.state is not ResourceState.COMPLETED:
                raise ResourceFailed(id=status.id, reason=status.reason or "", size=status.size)
            if not as_finished:
                raise AlreadyTerminal(id=status.id, state=status.state.value)
            return Resumption.ENDED
        offset = opened.offset
        if self._gap is not None:
            return Resumption.MISSING
        if offset > self.sent:
            return Resumption.DIFFERS
        state = self._sent.state_at(offset, self._hasher)
        if state is None:
            return Resumption.MISSING
        if state.head() != opened.head:
            return Resumption.DIFFERS
        again = self._sent.take_from(offset)
        self._parts.extendleft(reversed(again))
        self._pending += sum(map(len, again))
        self._continue(opened, state, chunk_size)
        return Resumption.CONTINUED

    def _continue(self, opened: Opened, hasher: HeadHasher, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._told = opened.offset
        self._begin(opened)
        self._hasher = hasher
        self.state = UploadState.OPEN

    def give_up(self, opened: Opened) -> tuple[Abort, DataLost]:
        """Give up an upload of which the server has lost what nobody has any more.

        Args:
            opened: The answer to ``ReopenUpload``, with which :meth:`resume` found it MISSING.

        Returns:
            What to send, and what to raise.
        """
        self._continue(opened, HeadHasher(), self._chunk_size)
        return self.abort(DATA_LOST), DataLost(announced=self.announced.size, size=opened.offset)

    def known_heads(self, size: int) -> list[tuple[int, bytes]]:
        """Return offsets up to ``size``, with the heads there, at which the source can be compared; in order."""
        return [(state.size, state.head()) for state in (*self._sent.states(), self._hasher) if state.size <= size]

    @property
    def missing(self) -> int | None:
        """Offset up to which the source must be read again; ``None`` when that is not needed."""
        return None if self._gap is None else self._gap.size

    def rewind(self, opened: Opened, hasher: HeadHasher, *, chunk_size: int) -> None:
        """Continue below what is kept, after :meth:`resume` has found it MISSING.

        What is kept is held back until :meth:`refill` got the bytes before it, up to :attr:`missing`.

        Args:
            opened: The answer to ``ReopenUpload``.
            hasher: Hash state at its offset, whose head is the server's.
            chunk_size: As for :meth:`resume`.

        Raises:
            RuntimeError: ``hasher`` stands elsewhere.
        """
        if hasher.size != opened.offset:
            raise RuntimeError(f"a hash state at {hasher.size} cannot continue at {opened.offset}")
        if self._gap is None:
            states = self._sent.states()
            self._gap = states[0] if states else self._hasher
            self._held = deque(self._sent.take_from(0))
            self._held.extend(self._parts)
            self._held_size = sum(map(len, self._held))
        self._sent.clear()
        self._parts.clear()
        self._pending = 0
        self._continue(opened, hasher, chunk_size)

    def refill(self, data: Buffer) -> None:
        """Take bytes of the source below :attr:`missing`, in order; they must not change any more."""
        if data:
            self._parts.append(data)
            self._pending += len(data)

    def close_gap(self) -> None:
        """Go on with what was held back, once everything before it was cut.

        Raises:
            SourceChanged: What was read again is not what was sent before.
            RuntimeError: It has not the length of that.
        """
        assert self._gap is not None
        if self._pending or self.sent != self._gap.size:
            raise RuntimeError(f"the gap up to {self._gap.size} is filled up to {self.sent + self._pending}")
        if self.head != self._gap.head():
            raise SourceChanged(offset=0, problem=f"its first {self.sent} bytes are not those that were sent before")
        self._parts, self._pending = self._held, self._held_size
        self._held, self._held_size, self._gap = deque(), 0, None

    def write(self, data: Buffer) -> None:
        """Take bytes; they are held by reference until they are announced and must not change until then.

        Raises:
            InvalidArgument: ``data`` is not bytes-like.
            RuntimeError: The upload is not OPEN.
        """
        data = flat(data)
        _sent(self.state, Chunk)
        if not data:
            return
        self._written += len(data)
        if self._gap is None:
            self._parts.append(data)
            self._pending += len(data)
        else:
            self._held.append(data)
            self._held_size += len(data)

    def next_chunk(self) -> Chunk | None:
        """Cut the next chunk; ``None`` when nothing is pending or the window is used up."""
        if not self._pending or self.state is not UploadState.OPEN:
            return None
        offset = self._chain.offset
        size = min(self._pending, self._chunk_size, self._window.available(offset))
        if not size:
            return None
        data = self._cut(size)
        self._sent.add(data, self._hasher)
        digest, _ = self._hasher.update_hashed(data)
        previous = self._chain.link(digest, len(data))
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
        if self.pending:
            raise RuntimeError(f"{self.pending} bytes are not sent yet")
        self.state = state
        return Finish(self.sent, self.head)

    def abort(self, reason: str) -> Abort:
        """Drop what is pending and return the message that gives the upload up.

        Raises:
            RuntimeError: The upload is not OPEN.
        """
        self.state = _sent(self.state, Abort)
        self._parts.clear()
        self._held.clear()
        self._pending = self._held_size = 0
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
