"""The client's end of a WebSocket: frames go in and out here, and what they mean is for those who use it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Protocol

from websockets.frames import Close, CloseCode

from tailrace_common_api import KIBIBYTE, MEBIBYTE, TailraceError
from tailrace_impl_common import Keepalive, sends_lists
from tailrace_impl_common.messages import Buffer
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, MASKED, PING, PONG, TEXT, apply_mask, frame_header
from tailrace_impl_websocket._frame_reader import FrameReader, Payload
from tailrace_impl_websocket._payload_buffers import PayloadBuffers

_MASK_SIZE = 4
_MASKS_AT_ONCE = 256
_LARGE = 16 * KIBIBYTE
"""Payloads from this size on are masked from where they are; smaller ones are joined, which takes fewer writes."""
_MOST_WAITING = 16
"""Messages that may wait for somebody to take them; then the server has to."""
_MOST_BYTES_WAITING = MEBIBYTE
_FAREWELL = 0.1
"""Seconds for a last word to a server that seems to be gone."""


class MessageReceiver(Protocol):
    """Who takes messages as they arrive; none of the methods raises anything."""

    def binary_received(self, data: Payload) -> None:
        """Take a whole binary message."""

    def text_received(self, text: str) -> None:
        """Take a whole text message."""

    def disconnected(self) -> None:
        """Learn that nothing more comes."""


class ClientFrames(Protocol):
    """An open WebSocket."""

    @property
    def transport(self) -> asyncio.Transport:
        """What is below it."""

    @property
    def is_open(self) -> bool:
        """Whether neither side has ended the connection."""

    @property
    def end(self) -> str:
        """How the connection ended, for error texts."""

    async def first(self) -> str | Payload | None:
        """Return the first message; ``None`` when the connection ended before."""

    def hand_to(self, receiver: MessageReceiver) -> None:
        """Give every message to ``receiver``, those that wait already first."""

    async def send_text(self, text: str) -> None:
        """Send a text message, and wait until the transport has room for more.

        One that is cancelled has sent it.

        Raises:
            OSError: The connection ended.
        """

    async def send_parts(self, header: bytes, payload: Buffer) -> None:
        """Send a binary message in two parts; as :meth:`send_text`."""

    def put_text(self, text: str) -> None:
        """Send a text message, whether or not there is room for it: a small one, of which there are few.

        Where the connection has ended, it is dropped.
        """

    def leave(self) -> None:
        """Tell the server that the connection ends, without waiting for its answer. Idempotent."""

    async def close(self) -> None:
        """End the connection; waits for the server to agree, as long as it may take. Idempotent."""


class ClientFrameProtocol(asyncio.BufferedProtocol):
    """Reads and writes the frames of a connection itself, behind a handshake that others made.

    A large payload is received straight into the buffer that is handed on, and masked from where it is to where it is
    sent. Reading pauses while more than a few messages wait for somebody to take them.
    """

    __slots__ = (
        "_asked",
        "_buffers",
        "_close_sent",
        "_close_timeout",
        "_close_timer",
        "_closed_with",
        "_disconnected",
        "_flushed",
        "_gone",
        "_keepalive",
        "_loop",
        "_masks",
        "_paused",
        "_pong",
        "_problem",
        "_reader",
        "_reading_paused",
        "_receiver",
        "_sends_lists",
        "_waiting",
        "_waiting_receiver",
        "_waiting_senders",
        "_waiting_size",
        "_written",
        "transport",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        max_size: int,
        ping_interval: float | None,
        ping_timeout: float | None,
        close_timeout: float | None,
    ) -> None:
        """Prepare; :meth:`begin` is to follow.

        Args:
            transport: Of the connection.
            max_size: Largest message of the server, in bytes.
            ping_interval: Time between two pings, in seconds; ``None``: none are sent.
            ping_timeout: Time for the answer to a ping, in seconds; ``None``: none is waited for.
            close_timeout: Time for the server to agree to the end, in seconds; ``None``: as long as it takes.
        """
        self.transport = transport
        """What is below it."""
        self._loop = loop = asyncio.get_running_loop()
        self._buffers = PayloadBuffers(loop)
        self._reader = FrameReader(self, self._buffers, max_size=max_size, masked=False)
        self._close_timeout = close_timeout
        self._close_timer: asyncio.TimerHandle | None = None
        # How it ended: what the server said, that a close was sent, what was wrong, that the connection is lost.
        self._closed_with: Close | None = None
        self._close_sent = False
        self._problem = ""
        self._gone: asyncio.Future[None] = loop.create_future()
        self._disconnected = False
        # Receiving.
        self._receiver: MessageReceiver | None = None
        self._waiting: list[str | Payload] = []
        self._waiting_size = 0
        self._waiting_receiver: asyncio.Future[None] | None = None
        self._reading_paused = False
        # Sending.
        self._masks = _masks()
        self._paused = False
        self._pong: bytes | None = None
        self._waiting_senders: list[asyncio.Future[None]] = []
        self._sends_lists = sends_lists(transport)
        # Bytes that were written, before the last ping, and those of them that had left when it was looked at last.
        self._written = 0
        self._asked = 0
        self._flushed = 0
        self._keepalive: Keepalive | None = None
        if ping_interval is not None:
            self._keepalive = Keepalive(
                loop,
                ping_interval,
                ping_timeout,
                transport,
                ping=self._ping,
                lost=self._unanswered,
                moved=self._has_left,
            )

    def begin(self, received: bytes) -> None:
        """Take the place of the transport's protocol, which has received ``received`` already."""
        transport = self.transport
        # uvloop decides how it fills buffers when it begins to read.
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()
        self._reader.feed(received)

    # The connection

    @property
    def is_open(self) -> bool:
        """Whether neither side has ended the connection."""
        return not self._disconnected and not self._close_sent and not self.transport.is_closing()

    @property
    def end(self) -> str:
        """How the connection ended, for error texts."""
        if self._problem:
            return self._problem
        close = self._closed_with
        if close is None:
            return f"closed with code {CloseCode.ABNORMAL_CLOSURE.value}"
        return f"closed with code {int(close.code)}" + (f", {close.reason!a}" if close.reason else "")

    def eof_received(self) -> None:
        """Let the connection end: nothing more comes."""
        # The event loop waits until all that was written has left, which may never be.
        self._disconnect()
        self._wait_for_end(self._close_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.end()
        self._buffers.release()
        self._disconnect()
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if not self._gone.done():
            self._gone.set_result(None)
        self._wake_senders()

    def _disconnect(self) -> None:
        """Let nothing more in, and tell so."""
        if self._disconnected:
            return
        self._disconnected = True
        if self._keepalive is not None:
            self._keepalive.stop()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.disconnected()
        self._wake_receiver()
        self._wake_senders()

    def leave(self) -> None:
        """Tell the server that the connection ends, without waiting for its answer. Idempotent."""
        self._leave(Close(CloseCode.NORMAL_CLOSURE, ""))

    def _leave(self, close: Close) -> None:
        """End the connection with ``close``; what else the server says is dropped until it agrees."""
        self._write_close(close.serialize())
        self._disconnect()
        # The answer of the server is waited for.
        self._resume_reading()
        self._wait_for_end(self._close_timeout)

    def _wait_for_end(self, seconds: float | None) -> None:
        # The server ends the connection below (RFC 6455, section 7.1.1).
        if self._close_timer is None and seconds is not None and not self._gone.done():
            self._close_timer = self._loop.call_later(seconds, self.transport.abort)

    async def close(self) -> None:
        """End the connection; waits for the server to agree, as long as it may take. Idempotent."""
        self.leave()
        await asyncio.shield(self._gone)

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.buffer_updated(nbytes)

    def binary_received(self, data: Payload) -> None:
        if self._receiver is not None:
            self._receiver.binary_received(data)
        else:
            self._queue(data)

    def text_received(self, text: str) -> None:
        if self._receiver is not None:
            self._receiver.text_received(text)
        else:
            self._queue(text)

    def _queue(self, message: str | Payload) -> None:
        if self._disconnected:
            return
        self._waiting.append(message)
        self._waiting_size += len(message)
        self._wake_receiver()
        if not self._reading_paused and (
            len(self._waiting) >= _MOST_WAITING or self._waiting_size >= _MOST_BYTES_WAITING
        ):
            self._reading_paused = True
            self.transport.pause_reading()

    def _wake_receiver(self) -> None:
        if self._waiting_receiver is not None and not self._waiting_receiver.done():
            self._waiting_receiver.set_result(None)

    async def first(self) -> str | Payload | None:
        """Return the first message; ``None`` when the connection ended before."""
        while not self._waiting:
            if self._disconnected:
                return None
            self._waiting_receiver = self._loop.create_future()
            try:
                await self._waiting_receiver
            finally:
                self._waiting_receiver = None
        return self._waiting.pop(0)

    def hand_to(self, receiver: MessageReceiver) -> None:
        """Give every message to ``receiver``, those that wait already first."""
        waiting, self._waiting = self._waiting, []
        ended = self._disconnected
        if not ended:
            self._receiver = receiver
        for message in waiting:
            if self._disconnected is not ended:
                # It left because of the one before.
                return
            if isinstance(message, str):
                receiver.text_received(message)
            else:
                receiver.binary_received(message)
        if ended:
            receiver.disconnected()
        else:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    # Control frames

    def ping_received(self, data: bytes) -> None:
        if self._paused:
            # Answered when there is room: only the last of several has to be (RFC 6455, section 5.5.3).
            self._pong = data
        elif not self._close_sent:
            self._write(PONG, data)

    def pong_received(self, data: bytes) -> None:
        if self._keepalive is not None and not self._disconnected:
            self._keepalive.answered(data)

    def close_received(self, close: Close, data: bytes) -> None:
        self._closed_with = close
        self._write_close(data)
        self._disconnect()
        self._wait_for_end(self._close_timeout)

    def refused(self, close: Close, error: TailraceError) -> None:
        """Leave a server whose frames break RFC 6455, or are far too large."""
        self._problem = f"its frames cannot be read: {close.reason}"
        self._leave(close)

    def _write_close(self, data: bytes) -> None:
        if not self._close_sent:
            self._write(CLOSE, data)
            self._close_sent = True

    def _ping(self, payload: bytes) -> None:
        # Before it is written: that it leaves itself is no sign.
        self._asked = self._written
        self._flushed = self._left()
        self._write(PING, payload)

    def _left(self) -> int:
        """Return how many of the bytes that were written have left."""
        return self._written - self.transport.get_write_buffer_size()

    def _has_left(self) -> bool:
        """Return whether bytes have left since this was asked last, or the ping sent, of those that it is behind."""
        before, self._flushed = self._flushed, self._left()
        return before < self._asked and before < self._flushed

    def _unanswered(self) -> None:
        # Nobody is likely to answer that.
        self._wait_for_end(_FAREWELL)
        self._leave(Close(CloseCode.INTERNAL_ERROR, "keepalive ping timeout"))

    # Sending

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        pong, self._pong = self._pong, None
        if pong is not None and not self._close_sent:
            self._write(PONG, pong)
        self._wake_senders()

    def _wake_senders(self) -> None:
        for waiter in self._waiting_senders:
            if not waiter.done():
                waiter.set_result(None)

    async def send_text(self, text: str) -> None:
        """Send a text message, and wait until the transport has room for more.

        One that is cancelled has sent it.

        Raises:
            OSError: The connection ended.
        """
        if not self.is_open:
            raise ConnectionResetError
        self._write(TEXT, text.encode())
        if self._paused:
            await self._room()

    def put_text(self, text: str) -> None:
        """Send a text message, whether or not there is room for it: a small one, of which there are few.

        Where the connection has ended, it is dropped.
        """
        if self.is_open:
            self._write(TEXT, text.encode())

    async def send_parts(self, header: bytes, payload: Buffer) -> None:
        """Send a binary message in two parts; as :meth:`send_text`."""
        if not self.is_open:
            raise ConnectionResetError
        if len(payload) < _LARGE or len(header) % _MASK_SIZE:
            self._write(BINARY, b"".join((header, payload)))
        else:
            self._write_parts(header, payload)
        if self._paused:
            await self._room()

    async def _room(self) -> None:
        while self._paused and not self._disconnected:
            waiter = self._loop.create_future()
            self._waiting_senders.append(waiter)
            try:
                await waiter
            finally:
                self._waiting_senders.remove(waiter)
        if self._disconnected:
            raise ConnectionResetError

    def _write(self, opcode: int, payload: bytes) -> None:
        """Write a frame, unless there is nowhere to write it to."""
        if self.transport.is_closing():
            return
        mask = next(self._masks)
        frame = b"".join((frame_header(opcode, len(payload), MASKED), mask, apply_mask(payload, mask)))
        self._written += len(frame)
        self.transport.write(frame)

    def _write_parts(self, header: bytes, payload: Buffer) -> None:
        mask = next(self._masks)
        # The header is as long as a few masks, so that the payload begins with the first byte of one.
        first = frame_header(BINARY, len(header) + len(payload), MASKED) + mask + apply_mask(header, mask)
        rest = apply_mask(payload, mask)
        self._written += len(first) + len(rest)
        if self._sends_lists:
            self.transport.writelines((first, rest))
        else:
            self.transport.write(first)
            self.transport.write(rest)


def _masks() -> Iterator[bytes]:
    """Yield masks that nobody can foresee; many are drawn at once, since the system is asked for each draw."""
    while True:
        drawn = secrets.token_bytes(_MASKS_AT_ONCE * _MASK_SIZE)
        for start in range(0, len(drawn), _MASK_SIZE):
            yield drawn[start : start + _MASK_SIZE]
