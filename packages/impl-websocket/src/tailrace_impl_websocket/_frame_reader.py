"""Frames of the peer, taken from the pieces in which they arrive; knows nothing of sockets.

What arrives is received into a small area that all connections of an event loop share. As soon as the header of a frame
shows that it is larger than what is there, the rest of its payload is received straight into a buffer of its size.

Frames of a client are masked: unmasking is the only copy, it makes the message that is handed on, and the buffer is
free for the next one. Those of a server are not, and the buffer itself is what is handed on.
"""

from __future__ import annotations

from typing import Any, Protocol

from websockets.exceptions import ProtocolError as CloseError
from websockets.frames import Close, CloseCode

from tailrace_common_api import MEBIBYTE, MessageTooLarge, ProtocolError, TailraceError
from tailrace_impl_websocket._frame_layout import (
    BINARY,
    CLOSE,
    CONTINUATION,
    CONTROL,
    FINAL,
    MASKED,
    MAX_CONTROL_SIZE,
    OPCODES,
    PING,
    PONG,
    RESERVED,
    TEXT,
    apply_mask,
)

AREA_SIZE = 32 * 1024
"""Bytes of the shared area: hundreds of small frames at once; little to copy of a large one."""
_KEPT_SIZE = MEBIBYTE + 4096
"""Bytes of a buffer that is used again: a full chunk with its headers."""
_KEPT_FROM = 128 * 1024
"""Smallest payload for which such a buffer is used."""
_MOST_KEPT = 4
"""Buffers that wait to be used again; more are in use only while that many large frames arrive at the same time."""
_ANY = 1 << 64
"""More than any header can say."""
_WHOLE_MESSAGES = frozenset((FINAL | TEXT, FINAL | BINARY))
"""First bytes of almost all frames."""

Payload = bytes | memoryview
"""Bytes of a message; a view is of a buffer that nobody changes while the view is there."""


class ReceiveBuffers:
    """What the connections of one event loop receive into.

    The loop fills a buffer and hands it over in one step, so that one area serves all. Idle connections hold nothing.
    """

    __slots__ = ("_kept", "area", "view")

    def __init__(self, area: bytearray | None = None) -> None:
        """Prepare.

        Args:
            area: Area that others use, too; ``None`` for one of its own.
        """
        self.area = bytearray(AREA_SIZE) if area is None else area
        self.view = memoryview(self.area)
        self._kept: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of at least ``size`` bytes, their values arbitrary."""
        if _KEPT_FROM <= size <= _KEPT_SIZE:
            return self._kept.pop() if self._kept else bytearray(_KEPT_SIZE)
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Take a buffer that nobody uses any more."""
        if len(buffer) == _KEPT_SIZE and len(self._kept) < _MOST_KEPT:
            self._kept.append(buffer)


class FrameSink(Protocol):
    """Who is told what the frames say, in their order."""

    def text_received(self, text: str) -> None:
        """Take a whole text message."""

    def binary_received(self, data: Any) -> None:
        """Take a whole binary message: ``bytes`` from a client, :data:`Payload` from a server."""

    def ping_received(self, data: bytes) -> None:
        """Take a ping, which is to be answered with the same bytes."""

    def pong_received(self, data: bytes) -> None:
        """Take a pong."""

    def close_received(self, close: Close, data: bytes) -> None:
        """Take the peer's last frame; ``data`` is its payload."""

    def refused(self, close: Close, error: TailraceError) -> None:
        """Learn that the frames cannot be accepted, what to close the connection with, and why; nothing follows."""


class FrameReader:
    """Reads the frames of one peer.

    Either the event loop asks for a buffer, fills it and says how much, or it hands over what it has received.
    """

    __slots__ = (
        "_buffer",
        "_buffers",
        "_ended",
        "_first",
        "_fragments",
        "_mask",
        "_mask_size",
        "_masked",
        "_most",
        "_opcode",
        "_partial",
        "_position",
        "_sink",
        "_target",
    )

    def __init__(self, sink: FrameSink, buffers: ReceiveBuffers, *, max_size: int | None, masked: bool = True) -> None:
        """Prepare.

        Args:
            sink: Who is told.
            buffers: What to receive into.
            max_size: Largest message, in bytes; ``None`` for any.
            masked: Whether the peer is a client, whose frames are masked; those of a server must not be. Large binary
                messages of a server are views of their buffers, all others are ``bytes``.
        """
        self._sink = sink
        self._buffers = buffers
        self._masked = MASKED if masked else 0
        self._mask_size = 4 if masked else 0
        self._most = _ANY if max_size is None else max_size
        self._ended = False
        # The beginning of a header.
        self._partial = b""
        # The payload that is received into its own buffer, if one is; its mask and the first byte of its header.
        self._buffer: bytearray | None = None
        self._target: memoryview | None = None
        self._position = 0
        self._first = 0
        self._mask = b""
        # The message of which fragments arrived; opcode 0 for none.
        self._opcode = 0
        self._fragments = bytearray()

    def get_buffer(self) -> memoryview:
        """Return where to put the next bytes; valid until :meth:`buffer_updated`, which has to follow at once."""
        if self._target is not None:
            return self._target[self._position :]
        partial, buffers = self._partial, self._buffers
        if not partial:
            return buffers.view
        buffers.area[: len(partial)] = partial
        return buffers.view[len(partial) :]

    def buffer_updated(self, count: int) -> None:
        """Take the ``count`` bytes that were put into the buffer."""
        if self._target is None:
            end = len(self._partial) + count
            self._partial = b""
            if not self._ended:
                self._parse(self._buffers.view, self._buffers.area, end)
            return
        self._position += count
        if self._position == len(self._target):
            data = apply_mask(self._target, self._mask) if self._mask else self._target.toreadonly()
            self._drop_buffer()
            self._take(self._first, data)

    def feed(self, data: bytes) -> None:
        """Take bytes that were received elsewhere."""
        rest = memoryview(data)
        while rest and not self._ended:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            self.buffer_updated(count)
            rest = rest[count:]

    def end(self) -> None:
        """Drop what is there and what comes."""
        self._ended = True
        self._partial = b""
        self._fragments = bytearray()
        self._drop_buffer()

    def _drop_buffer(self) -> None:
        if self._buffer is not None:
            self._target = None
            self._buffers.give_back(self._buffer)
            self._buffer = None

    def _parse(self, view: memoryview, area: bytearray, end: int) -> None:
        """Take the frames in ``area[:end]``; what is left of them is the beginning of one."""
        position = 0
        mask_size = self._mask_size
        while end - position >= 2:
            first, second = area[position], area[position + 1]
            size = second & 0x7F
            mask = position + 2
            if size > 125:
                mask = position + (4 if size == 126 else 10)
                if end < mask:
                    # Of what is there, some is wrong whatever follows.
                    if not self._is_known(first, second):
                        return
                    break
                size = int.from_bytes(area[position + 2 : mask], "big")
            if not self._is_acceptable(first, second, size):
                return
            body = mask + mask_size
            if end < body:
                break
            stop = body + size
            if stop > end:
                self._begin_payload(first, size, bytes(area[mask:body]), view[body:end])
                return
            self._take(first, apply_mask(view[body:stop], area[mask:body]) if mask_size else bytes(view[body:stop]))
            if self._ended:
                return
            position = stop
        self._partial = bytes(view[position:end])

    def _is_known(self, first: int, second: int) -> bool:
        if first & 0x0F not in OPCODES:
            self._refuse(CloseCode.PROTOCOL_ERROR, "invalid opcode")
            return False
        if second & MASKED != self._masked:
            self._refuse(CloseCode.PROTOCOL_ERROR, "incorrect masking")
            return False
        return True

    def _is_acceptable(self, first: int, second: int, size: int) -> bool:
        """Return whether a frame may come here; if not, that is said."""
        if first in _WHOLE_MESSAGES and second & MASKED == self._masked and not self._opcode and size <= self._most:
            return True
        if not self._is_known(first, second):
            return False
        opcode = first & 0x0F
        before = 0 if opcode & CONTROL else len(self._fragments)
        if before + size > self._most:
            error = MessageTooLarge(size=before + size, maximum=self._most)
            self._refuse(CloseCode.MESSAGE_TOO_BIG, f"{error.size} bytes exceed the limit of {error.maximum}", error)
            return False
        problem = ""
        if first & RESERVED:
            problem = "reserved bits must be 0"
        elif opcode & CONTROL:
            if size > MAX_CONTROL_SIZE:
                problem = "control frame too long"
            elif not first & FINAL:
                problem = "fragmented control frame"
        elif opcode == CONTINUATION:
            if not self._opcode:
                problem = "unexpected continuation frame"
        elif self._opcode:
            problem = "expected a continuation frame"
        if problem:
            self._refuse(CloseCode.PROTOCOL_ERROR, problem)
        return not problem

    def _begin_payload(self, first: int, size: int, mask: bytes, beginning: memoryview) -> None:
        """Receive the rest of a payload into a buffer of its own."""
        self._buffer = self._buffers.take(size)
        self._target = memoryview(self._buffer)[:size]
        self._position = len(beginning)
        self._target[: self._position] = beginning
        self._first = first
        self._mask = mask

    def _take(self, first: int, data: Payload) -> None:
        """Take a whole frame."""
        opcode = first & 0x0F
        if opcode & CONTROL:
            self._take_control(opcode, bytes(data))
        elif first & FINAL and not self._opcode:
            self._deliver(opcode, data)
        else:
            if opcode != CONTINUATION:
                self._opcode = opcode
            # Joined at once: a list would grow without bound with fragments that are tiny, or empty.
            self._fragments += data
            if first & FINAL:
                opcode, data = self._opcode, bytes(self._fragments)
                self._opcode = 0
                self._fragments = bytearray()
                self._deliver(opcode, data)

    def _deliver(self, opcode: int, data: Payload) -> None:
        if opcode == BINARY:
            self._sink.binary_received(data)
            return
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError as error:
            self._refuse(CloseCode.INVALID_DATA, f"{error.reason} at byte {error.start}")
        else:
            self._sink.text_received(text)

    def _take_control(self, opcode: int, data: bytes) -> None:
        if opcode == PING:
            self._sink.ping_received(data)
        elif opcode == PONG:
            self._sink.pong_received(data)
        else:
            assert opcode == CLOSE
            try:
                close = Close.parse(data)
            except CloseError as error:
                self._refuse(CloseCode.PROTOCOL_ERROR, str(error))
            except UnicodeDecodeError as error:
                self._refuse(CloseCode.INVALID_DATA, f"{error.reason} at byte {error.start}")
            else:
                if self._opcode:
                    self._refuse(CloseCode.PROTOCOL_ERROR, "incomplete fragmented message")
                else:
                    self.end()
                    self._sink.close_received(close, data)

    def _refuse(self, code: CloseCode, reason: str, error: TailraceError | None = None) -> None:
        self.end()
        self._sink.refused(Close(code, reason), error or ProtocolError(reason))
