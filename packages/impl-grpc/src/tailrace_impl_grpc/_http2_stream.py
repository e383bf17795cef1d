"""One stream of a connection of HTTP/2, on either side: messages of gRPC in both directions, within their windows."""

from __future__ import annotations

import asyncio
import zlib
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tailrace_common_api import KIBIBYTE, MEBIBYTE
from tailrace_impl_common import Buffer
from tailrace_impl_grpc._http2_layout import DATA, frame_header, window_update

if TYPE_CHECKING:
    from tailrace_impl_grpc._http2_peer import Http2Peer

PREFIX_SIZE = 5
"""Bytes before each message: whether it is compressed, and its size."""
FIRST_WINDOW = 64 * KIBIBYTE
"""What a client may send of a call that nobody reads yet, in bytes."""
LARGE_WINDOW = 4 * MEBIBYTE
"""The same once messages are taken that are large."""
_LARGE_MESSAGE = 32 * KIBIBYTE
"""Messages from this size on are received into a buffer of their size."""
_DECOMPRESSED_HERE = 1 * KIBIBYTE
"""Size up to which a message is decompressed by the event loop, in bytes; it may become a thousand times as much."""
_MOST_IN_A_ROW = 64
"""Messages that are written without a turn of the event loop."""
Parts = tuple[Buffer, ...]
"""A message in pieces, one at least, which are sent as they are and must not change until then."""
_GZIP, _ZLIB = 31, 15
"""What ``zlib`` calls the formats that gRPC names gzip and deflate."""
_IN_THREAD = 16 * KIBIBYTE
"""Size from which a message is compressed in a thread, in bytes."""


class CallEnded(grpc.aio.BaseError):
    """Nothing can be sent or received: the peer is gone, or the call is over."""


class MessageRefused(Exception):
    """What the peer sent is malformed or too large; nothing more of it is taken."""

    def __init__(self, code: grpc.StatusCode, problem: str) -> None:
        """Say with what status the call ends, and why."""
        super().__init__(problem)
        self.code = code
        self.problem = problem


class Http2Stream(ABC):
    """A stream. Belongs to one event loop.

    One task reads and one (other or same) task writes at a time.
    """

    def __init__(
        self, connection: Http2Peer[Any], number: int, *, window: int, max_message: int, compress: bool
    ) -> None:
        """Begin.

        Args:
            connection: Whose stream it is.
            number: Its number in the connection.
            window: What the peer may send before anything was read, in bytes.
            max_message: Largest message that is taken, in bytes.
            compress: Whether to compress what is sent.
        """
        self._connection = connection
        self.number = number
        """Number of the stream."""
        self.over = False
        """Whether nothing is sent any more: the last word was, or the peer is gone."""
        self.half_closed = False
        """Whether the peer has sent its last message."""
        self.encoding = "identity"
        """How messages of the peer are compressed that say that they are."""
        self._max_message = max_message
        self._compress = compress
        # Receiving: whole messages that wait, the one that is being received, or its prefix.
        self._waiting: deque[tuple[int, bytes | memoryview]] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._prefix = b""
        self._flags = 0
        self._size = -1
        self._small: bytearray | None = None
        self._target: memoryview | None = None
        self._filled = 0
        self._refused: MessageRefused | None = None
        # What the peer may still send, what it was allowed altogether at a time, what was taken since it was told.
        self._window = window
        self._largest_window = window
        self._taken = 0
        # What was let come beyond that of a message that is larger.
        self._lent = 0
        # Sending.
        self.send_window = connection.stream_window
        """What the peer lets this side send, in bytes; may be below 0."""
        self._headers_sent = False
        self._writers: tuple[asyncio.Future[None], ...] = ()
        self._unsent: Parts | None = None
        self._last = b""
        self._in_a_row = 0

    # Receiving

    async def read_message(self) -> bytes | memoryview | None:
        """Return the next message, or ``None`` behind the last one. Views are of buffers that nobody changes.

        Raises:
            MessageRefused: What came is not a message that is taken.
            CallEnded: The peer is gone, or the call is over.
        """
        while not self._waiting:
            if self._refused is not None:
                raise self._refused
            if self.over:
                raise CallEnded("the call is over")
            if self.half_closed:
                return None
            self._reader = self._connection.loop.create_future()
            self._let_come()
            try:
                await self._reader
            finally:
                self._reader = None
        flags, data = self._waiting.popleft()
        if not self._waiting:
            self._waiting = None
        self._taken += len(data) + PREFIX_SIZE
        if 2 * self._taken >= self._largest_window:
            self._grant()
        return await self._decompressed(data) if flags else data

    def expect_large(self) -> None:
        """Let the peer send more at a time, since its messages are bytes of a resource."""
        if self._largest_window < LARGE_WINDOW:
            self._taken += LARGE_WINDOW - self._largest_window
            self._largest_window = LARGE_WINDOW
            self._grant()

    def _grant(self) -> None:
        """Let the peer send as much as was taken."""
        if self._taken > 0 and not self.half_closed and not self.over:
            self._window += self._taken
            self._connection.write_control(window_update(self.number, self._taken))
            self._taken = 0

    def _let_come(self) -> None:
        """Let a message come that is larger than the window, once somebody waits for it."""
        if self._small is None or self._reader is None:
            return
        missing = self._size - len(self._small) - self._window
        if missing <= 0:
            return
        if not self._connection.lend(missing):
            self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much of large messages is on its way")
            return
        self._lent += missing
        self._window += missing
        self._taken -= missing
        self._connection.write_control(window_update(self.number, missing))

    def _give_back(self) -> None:
        if self._lent:
            self._connection.lend(-self._lent)
            self._lent = 0

    def skip(self, size: int) -> None:
        """Let the peer send ``size`` bytes more: those that came are nobody's."""
        self._taken += size
        if 2 * self._taken >= self._largest_window:
            self._grant()
        self._let_come()

    def within_window(self, size: int) -> bool:
        """Take note that ``size`` bytes come; return whether they may."""
        self._window -= size
        return self._window >= 0

    def target(self, most: int) -> memoryview | None:
        """Return where the next bytes of at most ``most`` can be put, if a large message is being received."""
        if self._target is None:
            return None
        return self._target[self._filled : self._filled + most]

    def filled(self, count: int) -> None:
        """Take ``count`` bytes that were put where :meth:`target` said."""
        self._filled += count
        target = self._target
        assert target is not None
        if self._filled == len(target):
            self._target = None
            self._deliver(target.toreadonly())

    def take(self, data: memoryview) -> None:
        """Take bytes of the messages."""
        if self._refused is not None or self.over:
            return
        while data:
            if self._target is not None:
                count = min(len(data), len(self._target) - self._filled)
                self._target[self._filled : self._filled + count] = data[:count]
                self.filled(count)
                data = data[count:]
                continue
            if self._small is not None:
                part = data[: self._size - len(self._small)]
                self._small += part
                data = data[len(part) :]
                if len(self._small) == self._size:
                    small, self._small = self._small, None
                    self._give_back()
                    self._deliver(bytes(small))
                continue
            prefix = self._prefix + bytes(data[: PREFIX_SIZE - len(self._prefix)])
            data = data[len(prefix) - len(self._prefix) :]
            if len(prefix) < PREFIX_SIZE:
                self._prefix = prefix
                return
            self._prefix = b""
            if not self._begin_message(prefix[0], int.from_bytes(prefix[1:], "big")):
                return
            if len(data) >= self._size:
                message, data = bytes(data[: self._size]), data[self._size :]
                self._deliver(message)
            elif self._size >= _LARGE_MESSAGE and self._largest_window >= 2 * (self._size + PREFIX_SIZE):
                # The window lets all of it come.
                self._target = memoryview(self._connection.buffers.take(self._size))[: self._size]
                self._filled = 0
            else:
                # No more memory than there are bytes: the peer may say what it likes.
                self._small = bytearray()
                self._let_come()

    def _begin_message(self, flags: int, size: int) -> bool:
        if flags > 1:
            self._refuse(grpc.StatusCode.INTERNAL, f"a message begins with {flags}")
        elif flags and self.encoding not in ("gzip", "deflate"):
            if self.encoding == "identity":
                self._refuse(grpc.StatusCode.INTERNAL, "a message is compressed, and the headers do not say how")
            else:
                self._refuse(grpc.StatusCode.UNIMPLEMENTED, f"{self.encoding!a} is no compression that is known")
        elif size > self._max_message:
            problem = f"Received message larger than max ({size} vs. {self._max_message})"
            self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        self._flags, self._size = flags, size
        return self._refused is None

    def _refuse(self, code: grpc.StatusCode, problem: str) -> None:
        """Take nothing more; who reads is told behind what came before."""
        self._refused = MessageRefused(code, problem)
        self._wake_reader()

    def _deliver(self, data: bytes | memoryview) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((self._flags, data))
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def received_all(self) -> None:
        """Learn that the peer sends nothing more."""
        self.half_closed = True
        if self._prefix or self._small is not None or self._target is not None:
            self._target = self._small = None
            self._refuse(grpc.StatusCode.INTERNAL, "the last message is incomplete")
        self._wake_reader()

    async def _decompressed(self, data: bytes | memoryview) -> bytes:
        bits = _GZIP if self.encoding == "gzip" else _ZLIB
        try:
            if len(data) < _DECOMPRESSED_HERE:
                return _decompress(data, bits, self._max_message)
            return await asyncio.to_thread(_decompress, data, bits, self._max_message)
        except zlib.error:
            self._refuse(grpc.StatusCode.INTERNAL, "a message cannot be decompressed")
        except _TooLarge:
            problem = f"Received message larger than max ({self._max_message}) behind its compression"
            self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        assert self._refused is not None
        raise self._refused

    # Sending

    @property
    def writable(self) -> bool:
        """Whether :meth:`write_now` may be called."""
        return self._unsent is None and self._connection.writable and not self.over and not self._compress

    def write_now(self, data: bytes | Parts) -> None:
        """Write a message without waiting; what the peer does not let be sent yet is kept until it does."""
        self._put(0, data if isinstance(data, tuple) else (data,), b"")

    async def _write(self, data: bytes | Parts, last: bytes) -> None:
        self._check_open()
        flags = 0
        if self._compress and data:
            whole = b"".join(data) if isinstance(data, tuple) else data
            smaller = await _compressed(whole)
            if len(smaller) < len(whole):
                flags, data = 1, smaller
            del whole
            self._check_open()
        connection = self._connection
        while self._is_stuck() or not connection.writable:
            await self._wait_for_room()
            self._check_open()
        self._put(flags, data if isinstance(data, tuple) else (data,), last)
        del data
        self._in_a_row += 1
        if self._in_a_row >= _MOST_IN_A_ROW:
            # Small messages may never have to wait, and what the peer says is to be heard.
            self._in_a_row = 0
            await asyncio.sleep(0)
        while self._is_stuck():
            await self._wait_for_room()
            self._check_open()

    def _is_stuck(self) -> bool:
        """Return whether a message is not out yet."""
        return self._unsent is not None

    async def _wait_for_room(self) -> None:
        waiting = self._connection.loop.create_future()
        # A reader that refuses what came waits here, too, until its status is out.
        self._writers = (*self._writers, waiting)
        if self._unsent is None:
            self._connection.wait_for_room(self)
        await waiting

    def wake_writer(self) -> None:
        """Learn that there is room, of this call or of the connection."""
        if self._unsent is not None:
            self._flush()
            if self._unsent is not None:
                return
        writers, self._writers = self._writers, ()
        for waiting in writers:
            if not waiting.done():
                waiting.set_result(None)

    def _put(self, flags: int, message: Parts, last: bytes) -> None:
        """Write a message, and the status if it is the last one, as far as there is room."""
        connection = self._connection
        parts: list[bytes | memoryview] = [] if self._headers_sent else [self._first_headers()]
        size = sum(map(len, message))
        first, *others = message
        # What is before the bytes of a resource goes with the prefix: each piece may be a call of the system.
        pieces = (_prefix(flags, size) + first, *others) if others else (_prefix(flags, size), first)
        size += PREFIX_SIZE
        if min(self.send_window, connection.send_window) >= size:
            self._add_frames(parts, pieces, size)
            if last:
                parts.append(self._last_headers(last))
            connection.write(parts)
            if last:
                self._sent_last()
            return
        if parts:
            connection.write(parts)
        self._unsent, self._last = tuple(filter(None, pieces)), last
        self._flush()

    def _flush(self) -> None:
        """Write of what is left as much as there is room for."""
        connection, unsent = self._connection, self._unsent
        while unsent:
            room = min(self.send_window, connection.send_window)
            if room <= 0 or connection.paused:
                self._unsent = unsent
                if self.send_window > 0:
                    connection.wait_for_room(self)
                return
            pieces, unsent = _split(unsent, room)
            parts: list[bytes | memoryview] = []
            self._add_frames(parts, pieces, sum(map(len, pieces)))
            if not unsent and self._last:
                parts.append(self._last_headers(self._last))
            connection.write(parts)
        self._unsent = None
        if self._last:
            self._sent_last()

    def _add_frames(self, parts: list[Any], pieces: Parts, size: int) -> None:
        """Add the frames that hold ``pieces``, which have ``size`` bytes, for which there is room."""
        connection = self._connection
        self.send_window -= size
        connection.send_window -= size
        most = connection.send_frame_size
        if size <= most:
            parts.append(frame_header(size, DATA, 0, self.number))
            parts += pieces
            return
        left = most
        parts.append(frame_header(min(most, size), DATA, 0, self.number))
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if not left:
                    left = most
                    parts.append(frame_header(min(most, size), DATA, 0, self.number))
                part = view[:left]
                parts.append(part)
                view = view[len(part) :]
                left -= len(part)
                size -= len(part)

    @abstractmethod
    def _first_headers(self) -> bytes:
        """Return the frame before the first message."""

    @abstractmethod
    def _last_headers(self, block: bytes) -> bytes:
        """Return the frames behind the last message; ``block`` is what was given for that."""

    @abstractmethod
    def _sent_last(self) -> None:
        """Learn that the last word was sent."""

    def _check_open(self) -> None:
        if self.over:
            raise CallEnded("the call is over")

    # Ending

    @abstractmethod
    def cancel(self) -> None:
        """Learn that the connection is gone, or that the peer has broken a rule; or give the stream up."""

    def broken(self) -> None:
        """Learn that the peer has broken a rule, and was told."""
        self.cancel()

    def reset(self, code: int) -> None:
        """Learn that the peer has ended the stream, with an error code of HTTP/2."""
        self.cancel()

    def _end(self) -> None:
        """Send nothing any more, and take nothing that is not here."""
        self.over = True
        self._target = self._small = self._unsent = None
        self._give_back()
        self._connection.ended(self)
        self._wake_reader()
        self.wake_writer()


class _TooLarge(Exception):
    pass


def _split(parts: Parts, size: int) -> tuple[Parts, Parts]:
    """Return the first ``size`` bytes of what is in ``parts``, and the others."""
    for index, part in enumerate(parts):
        if not size:
            return parts[:index], parts[index:]
        if len(part) > size:
            view = memoryview(part)
            return (*parts[:index], view[:size]), (view[size:], *parts[index + 1 :])
        size -= len(part)
    return parts, ()


def _prefix(flags: int, size: int) -> bytes:
    return flags.to_bytes(1, "big") + size.to_bytes(4, "big")


async def _compressed(data: bytes) -> bytes:
    if len(data) < _IN_THREAD:
        return _compress(data)
    return await asyncio.to_thread(_compress, data)


def _compress(data: bytes) -> bytes:
    return zlib.compress(data, wbits=_GZIP)


def _decompress(data: bytes | memoryview, bits: int, most: int) -> bytes:
    decompressor = zlib.decompressobj(bits)
    result = decompressor.decompress(data, most)
    if decompressor.unconsumed_tail:
        raise _TooLarge
    if not decompressor.eof:
        raise zlib.error("cut off")
    return result
