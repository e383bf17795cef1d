"""One side of a connection of HTTP/2 that carries gRPC: a protocol class of asyncio that copies no large message.

What arrives is received into a small area that all connections of an event loop share. Once the prefix of a message
shows that it is large, the rest of it is received straight into a buffer of its size. What is sent is sent as it is,
behind a header of its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar, cast

from tailrace_common_api import KIBIBYTE
from tailrace_impl_common import Keepalive, ReusableBuffers, sends_lists
from tailrace_impl_grpc._http2_headers import MAX_HEADER_BLOCK, MAX_HEADER_LIST, Fields, HeaderDecoder, HeadersTooLarge
from tailrace_impl_grpc._http2_layout import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_TABLE_SIZE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_SIZE,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_FRAME_SIZE,
    LARGEST_WINDOW,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    STREAM_MASK,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ConnectionOffence,
    ErrorCode,
    go_away,
    header_frames,
    parse_settings,
    ping,
    reset,
    settings,
    window_update,
)
from tailrace_impl_grpc._http2_stream import Http2Stream

AREA_SIZE = 32 * KIBIBYTE
"""Bytes of the shared area: hundreds of small frames at once; little to copy of a large one."""
_FRAME_SIZE = 4 * 1024 * KIBIBYTE
"""Largest frame that may be sent to this side, in bytes: a whole chunk. Nothing is kept of one that is on its way."""
_MOST_UNREAD = 896 * KIBIBYTE
"""Bytes for which nobody waits, answers of the connection and statuses of calls, that a peer may leave unread."""
_MOST_LENT = 16 * 1024 * KIBIBYTE
"""Bytes that all streams together may let come beyond their windows, for messages that are larger."""
_SETTINGS_AT_ONCE = 200
"""Changes of settings that a peer may make at once; one more with each second."""
_LARGEST_BLOCK = 4 * MAX_HEADER_BLOCK
"""Bytes of headers that are taken, though not looked at, so that their call can be told that they are too many."""
JOINED = 16 * KIBIBYTE
"""What is written together up to this size is joined: that costs less than several buffers."""
_CONNECTION_WINDOW = LARGEST_WINDOW
"""What all streams of a connection may send together: each has a window of its own."""
_LINGER = 2.0
"""Time for a peer to take the last words, in seconds."""
_PING_PADDING = bytes(4)

StreamT = TypeVar("StreamT", bound=Http2Stream)


class ReceiveArea:
    """What the connections of one event loop receive into: it fills the area and hands it over in one step."""

    __slots__ = ("area", "view")

    def __init__(self) -> None:
        self.area = bytearray(AREA_SIZE)
        self.view = memoryview(self.area)


class Http2Peer(asyncio.BufferedProtocol, ABC, Generic[StreamT]):
    """One side of a connection: takes frames apart and hands them to streams, and writes theirs."""

    def __init__(
        self,
        area: ReceiveArea,
        loop: asyncio.AbstractEventLoop,
        *,
        window: int,
        keepalive_interval: float,
        keepalive_timeout: float,
    ) -> None:
        """Prepare for a transport.

        Args:
            area: Of the event loop.
            loop: Event loop of the connection.
            window: What the peer may send of a stream before anything of it was read, in bytes.
            keepalive_interval: Time between two pings, in seconds.
            keepalive_timeout: Time for the answer to one, in seconds.
        """
        self.loop = loop
        """Event loop of the connection."""
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        """Of the connection."""
        self.buffers = ReusableBuffers(loop)
        """For large messages."""
        self._window = window
        self._keepalive_times = keepalive_interval, keepalive_timeout
        self._area = area
        self._streams: dict[int, StreamT] = {}
        self._last_stream = 0
        self._last_served: int | None = None
        self._decoder = HeaderDecoder()
        self._table_update = b""
        # Whether the peer has said its settings.
        self._greeted = False
        # Whether headers cannot be understood any more.
        self._deaf = False
        # Whether no stream begins any more, and whether nothing is looked at any more.
        self._leaving = False
        self._closed = False
        # Receiving.
        self._partial = b""
        self._direct: StreamT | None = None
        # Of the frame of data whose payload comes: its stream, what is left, of that padding, and whether it is the
        # last of the stream.
        self._stream: StreamT | None = None
        self._left = 0
        self._padding = 0
        self._ends = False
        # The frame of another kind whose payload comes in pieces, and what there is of it.
        self._frame: tuple[int, int, int] | None = None
        self._content = bytearray()
        # The block of headers that goes on in the next frame, its stream and whether it ends that.
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False
        self._received = 0
        self._settings_left: float = _SETTINGS_AT_ONCE
        self._settings_at = loop.time()
        self._lent = 0
        # Sending.
        self.paused = False
        """Whether the peer has to take something before more is written."""
        self.send_window = DEFAULT_WINDOW
        """What the peer lets this side send, in all streams together, in bytes."""
        self.send_frame_size = DEFAULT_FRAME_SIZE
        """Largest payload that the peer takes, in bytes."""
        self.stream_window = DEFAULT_WINDOW
        """What the peer lets this side send in a new stream, in bytes."""
        self._writers: dict[StreamT, None] = {}
        self._unread = 0
        self._sends_lists = False
        # Time: for the beginning or the end, and for being there.
        self._timer: asyncio.TimerHandle | None = None
        self._keepalive: Keepalive | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._sends_lists = sends_lists(transport)
        interval, timeout = self._keepalive_times
        self._keepalive = Keepalive(
            self.loop, interval, timeout, self.transport, ping=self._ping, lost=self.transport.abort
        )
        said = {
            INITIAL_WINDOW_SIZE: self._window,
            MAX_FRAME_SIZE: _FRAME_SIZE,
            MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
            **self._settings(),
        }
        self.transport.write(settings(said) + window_update(0, _CONNECTION_WINDOW - DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = self._closed = True
        self._stop_timers()
        self._cancel_all()
        self.buffers.release()

    def eof_received(self) -> None:
        """End the connection: nobody closes those of gRPC by halves."""
        self.close()

    @abstractmethod
    def _settings(self) -> Mapping[int, int]:
        """Return the settings to say beside those of both sides."""

    def _begin(self, area: bytearray, end: int) -> int:
        """Return where frames begin in ``area[:end]``."""
        return 0

    @abstractmethod
    def _is_idle(self, number: int) -> bool:
        """Return whether a stream has not begun."""

    @abstractmethod
    def _headers_received(self, number: int, fields: Fields, ends: bool) -> None:
        """Take the headers, or trailers, of a stream; ``ends`` if they are the last of it."""

    @abstractmethod
    def _headers_dropped(self, number: int, ends: bool) -> None:
        """Take note of headers, or trailers, of a stream that were not looked at: too large, or behind such ones."""

    def _take_setting(self, name: int, value: int) -> None:
        """Take a setting of the peer that is for one side only."""
        return

    def _settled(self) -> None:
        """Learn that the peer has said its settings."""
        return

    def _went_away(self, last_stream: int) -> None:
        """Learn that the peer begins nothing behind ``last_stream``."""
        return

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._keepalive is not None:
            self._keepalive.stop()
            # Both know each other.
            self._keepalive = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._unread = 0
        self._wake_writers()

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        self._direct = None
        if self._left > self._padding and self._stream is not None:
            target = self._stream.target(self._left - self._padding)
            if target is not None:
                self._direct = self._stream
                return target
        partial, area = self._partial, self._area
        if not partial:
            return area.view
        area.area[: len(partial)] = partial
        return area.view[len(partial) :]

    def buffer_updated(self, nbytes: int) -> None:
        direct = self._direct
        if direct is not None:
            self._direct = None
            self._left -= nbytes
            direct.filled(nbytes)
            if not self._left:
                self._end_data()
            return
        end = len(self._partial) + nbytes
        self._partial = b""
        if self._closed:
            return
        try:
            self._parse(self._area.view, self._area.area, end)
        except ConnectionOffence as offence:
            self.fail(offence)

    def _parse(self, view: memoryview, area: bytearray, end: int) -> None:
        """Take the frames in ``area[:end]``; what is left of them is the beginning of one."""
        position = self._begin(area, end)
        while True:
            if self._left:
                count = min(self._left, end - position)
                if not count:
                    return
                content = min(count, self._left - self._padding)
                if self._stream is not None and content > 0:
                    self._stream.take(view[position : position + content])
                elif self._frame is not None:
                    self._content += view[position : position + count]
                self._left -= count
                position += count
                if self._left:
                    return
                if self._frame is not None:
                    self._end_frame()
                else:
                    self._end_data()
            if end - position < HEADER_SIZE:
                break
            size = area[position] << 16 | area[position + 1] << 8 | area[position + 2]
            kind, flags = area[position + 3], area[position + 4]
            number = int.from_bytes(area[position + 5 : position + 9], "big") & STREAM_MASK
            body = position + HEADER_SIZE
            if not self._greeted and kind != SETTINGS:
                raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "settings come first")
            if size > _FRAME_SIZE:
                raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "a frame is larger than was agreed upon")
            if self._block is not None and (kind != CONTINUATION or number != self._block_stream):
                raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "headers are not finished")
            if kind == DATA:
                if flags & PADDED:
                    if not size:
                        raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "padding without its size")
                    if body >= end:
                        break
                    self._begin_data(number, size, flags, area[body])
                    position = body + 1
                else:
                    self._begin_data(number, size, flags, None)
                    position = body
                if not self._left:
                    self._end_data()
                continue
            if kind > CONTINUATION:
                # Of a kind that is not known: nothing to be looked at (RFC 9113, section 5.5).
                self._stream, self._left, self._padding, self._ends = None, size, 0, False
                position = body
                continue
            if body + size > end:
                if size <= AREA_SIZE - HEADER_SIZE:
                    break
                if kind not in (HEADERS, CONTINUATION) or size > _LARGEST_BLOCK:
                    raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "a frame of this kind is not that large")
                self._stream, self._left, self._padding, self._frame = None, size, 0, (kind, flags, number)
                position = body
                continue
            self._take_frame(kind, flags, number, bytes(view[body : body + size]))
            position = body + size
        self._partial = bytes(view[position:end])

    def _begin_data(self, number: int, size: int, flags: int, padding: int | None) -> None:
        stream = self._streams.get(number)
        if stream is None and self._is_idle(number):
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "data of a stream that was not begun")
        if padding is not None and padding >= size:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
        self._count_received(size)
        if stream is not None and (stream.half_closed or not stream.within_window(size)):
            code = ErrorCode.STREAM_CLOSED if stream.half_closed else ErrorCode.FLOW_CONTROL_ERROR
            self._reset(stream, code)
            stream = None
        if stream is not None and padding is not None:
            stream.skip(padding + 1)
        self._stream = stream
        self._padding = padding or 0
        self._left = size - (padding is not None)
        self._ends = bool(flags & END_STREAM)

    def _end_data(self) -> None:
        stream, self._stream = self._stream, None
        self._padding = 0
        if self._ends and stream is not None and not stream.over:
            stream.received_all()

    def _end_frame(self) -> None:
        assert self._frame is not None
        kind, flags, number = self._frame
        payload = bytes(self._content)
        self._frame = None
        self._content.clear()
        self._take_frame(kind, flags, number, payload)

    def lend(self, size: int) -> bool:
        """Let streams receive ``size`` bytes more than their windows, or give that back; return whether it may be."""
        if self._lent + size > _MOST_LENT:
            return False
        self._lent += size
        return True

    def _count_received(self, size: int) -> None:
        """Let the peer send as much again on the connection: what bounds it are the windows of its streams."""
        self._received += size
        if self._received > _CONNECTION_WINDOW // 4:
            self.write_control(window_update(0, self._received))
            self._received = 0

    def _take_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._take_window_update(number, payload)
        elif kind == HEADERS:
            self._take_headers(flags, number, payload)
        elif kind == CONTINUATION:
            self._take_continuation(flags, number, payload)
        elif kind == PING:
            self._take_ping(flags, number, payload)
        elif kind == SETTINGS:
            self._take_settings(flags, number, payload)
        elif kind == RST_STREAM:
            self._take_reset(number, payload)
        elif kind == GOAWAY:
            if number or len(payload) < 8:
                raise ConnectionOffence(_of(number), "malformed GOAWAY")
            self._went_away(int.from_bytes(payload[:4], "big") & STREAM_MASK)
        elif kind == PRIORITY:
            self._take_priority(number, payload)
        else:
            assert kind == PUSH_PROMISE
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "nothing is to be promised")

    # Streams

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "streams of clients have odd numbers")
        if flags & PADDED:
            if not payload or payload[0] >= len(payload):
                raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
            payload = payload[1 : len(payload) - payload[0]]
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "malformed HEADERS")
            payload = payload[5:]
        self._block_stream = number
        self._block_ends = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._take_block(number, payload)
        else:
            self._block = bytearray(payload)

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "nothing is to be continued")
        if len(self._block) + len(payload) > _LARGEST_BLOCK or not (payload or flags & END_HEADERS):
            raise ConnectionOffence(ErrorCode.ENHANCE_YOUR_CALM, "headers are too large")
        self._block += payload
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._take_block(number, block)

    def _take_priority(self, number: int, payload: bytes) -> None:
        # Nobody goes by it (RFC 9113, section 5.3).
        if not number:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "malformed PRIORITY")
        stream = self._streams.get(number)
        if len(payload) != 5 and stream is not None:
            self._reset(stream, ErrorCode.FRAME_SIZE_ERROR)

    def _take_block(self, number: int, block: bytes) -> None:
        fields = None
        if not self._deaf:
            # Decoded whatever becomes of it: the tables of both sides are to stay the same.
            try:
                fields = self._decoder.decode(block)
            except HeadersTooLarge:
                # They are not any more: calls go on, and none begins.
                self._deaf = True
        if fields is not None:
            self._headers_received(number, fields, self._block_ends)
        else:
            self._headers_dropped(number, self._block_ends)
            self.go_away()

    def _take_reset(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "malformed RST_STREAM")
        if self._is_idle(number):
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "reset of a stream that was not begun")
        stream = self._streams.get(number)
        if stream is not None:
            stream.reset(int.from_bytes(payload, "big"))

    def _reset(self, stream: StreamT, code: ErrorCode) -> None:
        self.write_control(reset(stream.number, code))
        stream.broken()

    def ended(self, stream: StreamT) -> None:
        """Learn that nothing is sent or received of a stream any more."""
        self._streams.pop(stream.number, None)
        self._writers.pop(stream, None)
        if self._stream is stream:
            self._stream = None
            self._direct = None

    # The connection's own frames

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "malformed SETTINGS")
        if len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "malformed SETTINGS")
        if flags & ACK:
            return
        self._greeted = True
        self._count_settings()
        window = self.stream_window
        for name, value in parse_settings(payload):
            if name == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise ConnectionOffence(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
                self.stream_window = value
            elif name == MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
                    raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "no size for frames")
                self.send_frame_size = value
            elif name == HEADER_TABLE_SIZE and value < DEFAULT_TABLE_SIZE:
                # Nothing is kept there by this side; that is to be said all the same (RFC 7541, section 4.2).
                self._table_update = b"\x20"
            else:
                self._take_setting(name, value)
        # Before anything that they allow: until then the peer goes by the old ones.
        self.write_control(SETTINGS_ACK)
        if self.stream_window != window:
            for stream in tuple(self._streams.values()):
                stream.send_window += self.stream_window - window
                if stream.send_window > LARGEST_WINDOW:
                    raise ConnectionOffence(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
                stream.wake_writer()
        self._settled()

    def _count_settings(self) -> None:
        """Make sure that the peer does not change its settings all the time: every stream has to be looked at."""
        now = self.loop.time()
        self._settings_left = min(_SETTINGS_AT_ONCE, self._settings_left + now - self._settings_at) - 1
        self._settings_at = now
        if self._settings_left < 0:
            raise ConnectionOffence(ErrorCode.ENHANCE_YOUR_CALM, "settings are changed too often")

    def _take_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise ConnectionOffence(_of(number), "malformed PING")
        if not flags & ACK:
            self.write_control(ping(payload, answer=True))
        elif self._keepalive is not None:
            self._keepalive.answered(payload[: -len(_PING_PADDING)])

    def _ping(self, payload: bytes) -> None:
        self.write_control(ping(payload + _PING_PADDING, answer=False))

    def _take_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionOffence(ErrorCode.FRAME_SIZE_ERROR, "malformed WINDOW_UPDATE")
        increment = int.from_bytes(payload, "big") & STREAM_MASK
        if not number:
            self.send_window += increment
            if not increment:
                raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "a window grows by nothing")
            if self.send_window > LARGEST_WINDOW:
                raise ConnectionOffence(ErrorCode.FLOW_CONTROL_ERROR, "no window can grow like that")
            self._wake_writers()
            return
        stream = self._streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "a window of a stream that was not begun")
            return
        stream.send_window += increment
        if not increment or stream.send_window > LARGEST_WINDOW:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)
            return
        stream.wake_writer()

    # Sending

    @property
    def writable(self) -> bool:
        """Whether something can be written without waiting for the peer, or for those who wait for it."""
        return not self.paused and not self._writers

    def wait_for_room(self, stream: StreamT) -> None:
        """Wake the writer of ``stream`` when the connection has room."""
        self._writers[stream] = None

    def _wake_writers(self) -> None:
        waiting, self._writers = self._writers, {}
        while waiting and not self.paused and self.send_window > 0:
            stream = next(iter(waiting))
            del waiting[stream]
            stream.wake_writer()
        # In the order in which they came; who has to wait again is behind them.
        self._writers = {**waiting, **self._writers}

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write frames; their buffers must not change."""
        transport = self.transport
        if transport.is_closing():
            return
        if len(parts) == 1:
            transport.write(parts[0])
        elif sum(map(len, parts)) <= JOINED:
            transport.write(b"".join(parts))
        elif self._sends_lists:
            transport.writelines(parts)
        else:
            for part in parts:
                transport.write(part)

    def header_frames(self, number: int, block: bytes, *, ends: bool) -> bytes:
        """Return the frames of a block of headers; to be written before those of another block."""
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
        return header_frames(number, block, ends=ends, most=self.send_frame_size)

    def write_control(self, frame: bytes) -> None:
        """Write a frame of the connection itself, for which nobody waits."""
        if self.transport.is_closing():
            return
        if self.paused:
            self._unread += len(frame)
            if self._unread > _MOST_UNREAD:
                # It asks for more than it reads.
                self.transport.abort()
                return
        self.transport.write(frame)

    # Ending

    def fail(self, offence: ConnectionOffence) -> None:
        """Tell the peer what it has done, and close the connection."""
        if not self.transport.is_closing():
            last = self._last_stream if self._last_served is None else self._last_served
            self.transport.write(go_away(last, offence.code, offence.problem))
        self.close()

    def go_away(self) -> None:
        """Tell the peer that no further stream is begun here."""
        if not self._leaving:
            self._leaving = True
            self._last_served = self._last_stream
            self.write_control(go_away(self._last_served, ErrorCode.NO_ERROR))

    def _cancel_all(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.cancel()

    def close(self) -> None:
        """End all streams without a last word, and close the connection when what was written has left."""
        if self._closed:
            return
        self._leaving = self._closed = True
        self._cancel_all()
        self._stop_timers()
        self.transport.close()
        self._timer = self.loop.call_later(_LINGER, self.transport.abort)


def _of(number: int) -> ErrorCode:
    """Return why a frame of the connection is malformed: it is of stream ``number``, or has another size."""
    return ErrorCode.PROTOCOL_ERROR if number else ErrorCode.FRAME_SIZE_ERROR
