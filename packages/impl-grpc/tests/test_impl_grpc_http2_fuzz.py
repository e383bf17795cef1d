"""The server's own HTTP/2 over frames that are cut anywhere, and over any bytes at all."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from hypothesis import event, given, settings
from hypothesis import strategies as st
from impl_grpc_http2_peer import block, frame, message

from tailrace_impl_grpc._http2_connection import Http2Connection
from tailrace_impl_grpc._http2_layout import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    SETTINGS,
    WINDOW_UPDATE,
)
from tailrace_impl_grpc._http2_server import Http2Server
from tailrace_impl_grpc._options import GrpcServerOptions
from tailrace_server_api import TransportServerSettings


class MemoryTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True

    def get_write_buffer_size(self) -> int:
        return 0

    def kinds(self) -> list[int]:
        """Return the kinds of the frames that were written, which must be whole."""
        found, position = [], 0
        while position < len(self.written):
            found.append(self.written[position + 3])
            position += 9 + int.from_bytes(self.written[position : position + 3], "big")
        assert position == len(self.written)
        return found


class Fed:
    """A connection that is fed by hand, and what its method was sent."""

    def __init__(self, *, large: bool = False) -> None:
        self.messages: list[bytes] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self._large = large
        server = Http2Server(TransportServerSettings(), GrpcServerOptions(), max_calls=10)
        handler: Any = grpc.stream_unary_rpc_method_handler(self._collect)
        server.add_registered_method_handlers("test.Service", {"Collect": handler})
        self._server = server
        self.transport = MemoryTransport()
        self.connection = Http2Connection(server, server._area, asyncio.get_running_loop())
        self.connection.connection_made(self.transport)

    async def _collect(self, requests: Any, context: Any) -> bytes:
        if self._large:
            context.expect_large()
        self.begun.set()
        async for request in requests:
            self.messages.append(request)
        self.ended.set()
        return b""

    def feed(self, data: bytes) -> None:
        """Let a piece arrive, in as many steps as there is room."""
        rest = memoryview(data)
        while rest:
            target = self.connection.get_buffer(-1)
            count = min(len(target), len(rest))
            assert count > 0
            target[:count] = rest[:count]
            self.connection.buffer_updated(count)
            rest = rest[count:]

    async def lose(self) -> None:
        self.connection.connection_lost(None)
        if self._server._tasks:
            await asyncio.wait(set(self._server._tasks))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data into pieces of these sizes, which repeat."""
    found, position, turn = [], 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        found.append(data[position : position + size])
        position += size
        turn += 1
    return found


GREETING = PREFACE + frame(SETTINGS, 0, 0)

BETWEEN = st.sampled_from(
    [
        b"",
        b"",
        frame(PING, 0, 0, bytes(8)),
        frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0"),
        frame(WINDOW_UPDATE, 0, 0, bytes(3) + b"\1"),
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(0xEE, 0xFF, 1, bytes(50)),
        frame(DATA, 0, 1),
        frame(DATA, PADDED, 1, bytes(8).replace(b"\0", b"\7", 1)),
    ]
)
SMALL = st.binary(max_size=300)
SIZES = st.sampled_from([0, 1, 5, 32 * 1024 - 1, 32 * 1024, 40_000, 128 * 1024, 300_000])
CUTS = st.lists(st.sampled_from([1, 2, 5, 8, 9, 10, 14, 100, 1000, 16_384, 40_000, 1 << 20]), min_size=1, max_size=6)


@st.composite
def requests(draw: st.DrawFn, large: bool) -> list[bytes]:
    found = draw(st.lists(SMALL, max_size=12))
    if large:
        found += [bytes([index + 1]) * size for index, size in enumerate(draw(st.lists(SIZES, max_size=5)))]
        found = draw(st.permutations(found))
    return found


@st.composite
def frames(draw: st.DrawFn, sent: list[bytes]) -> bytes:
    """The messages in frames of any size, with padding and with other frames between them."""
    built: list[bytes] = []
    for part in pieces(b"".join(map(message, sent)), [size + 20 for size in draw(CUTS)]):
        padding = draw(st.none() | st.integers(0, 255)) if len(built) < 30 else None
        if padding is None:
            built.append(frame(DATA, 0, 1, part))
        else:
            built.append(frame(DATA, PADDED, 1, bytes((padding,)) + part + bytes(padding)))
        if len(built) < 30:
            built.append(draw(BETWEEN))
    return b"".join(built)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), large=st.booleans())
def test_messages_are_the_same_however_they_are_cut(data: st.DataObject, large: bool) -> None:
    sent = data.draw(requests(large))
    stream = data.draw(frames(sent))
    cuts = data.draw(CUTS)
    if len(stream) > 100_000:
        # Bytes that come one by one take their time.
        cuts = [*cuts, 100_000]

    async def exchange() -> None:
        fed = Fed(large=large)
        for piece in pieces(GREETING + frame(HEADERS, END_HEADERS, 1, block("Collect")), cuts):
            fed.feed(piece)
        await fed.begun.wait()
        for piece in pieces(stream + frame(DATA, END_STREAM, 1), cuts):
            fed.feed(piece)
        async with asyncio.timeout(20):
            await fed.ended.wait()
        assert fed.messages == sent
        assert not fed.transport.is_closing()
        assert GOAWAY not in fed.transport.kinds()
        await fed.lose()

    asyncio.run(exchange())


@st.composite
def any_frame(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 12))
    payload = draw(st.binary(max_size=40) | st.just(block("Collect")) | st.sampled_from([bytes(8), bytes(4), bytes(6)]))
    return frame(kind, draw(st.integers(0, 255)), draw(st.sampled_from([0, 1, 1, 1, 2, 3, 5])), payload)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Sound frames of which some bytes are others."""
    sound = frame(HEADERS, END_HEADERS, 1, block("Collect")) + draw(frames(draw(requests(False)))) + frame(PING, 0, 0)
    result = bytearray(sound)
    for position, value in draw(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255)), max_size=5)):
        result[position] = value
    return bytes(result)


@settings(max_examples=400, deadline=None)
@given(
    sent=st.one_of(
        st.binary(max_size=200),
        st.lists(any_frame(), max_size=10).map(b"".join).map(GREETING.__add__),
        damaged().map(GREETING.__add__),
        st.binary(max_size=200).map(lambda junk: GREETING + frame(HEADERS, END_HEADERS, 1, junk)),
    ),
    cuts=CUTS,
)
def test_no_bytes_are_too_bad(sent: bytes, cuts: list[int]) -> None:
    async def exchange() -> None:
        fed = Fed()
        for piece in pieces(sent, cuts):
            fed.feed(piece)
        kinds = fed.transport.kinds()
        assert fed.transport.is_closing() == (GOAWAY in kinds)
        assert kinds.count(GOAWAY) <= 1
        event("ends" if GOAWAY in kinds else "goes on")
        await fed.lose()

    asyncio.run(exchange())
