"""The client's own HTTP/2 against a server that is scripted with the library h2, or breaks the rules byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import grpc
import h2.connection
import h2.events
import h2.settings
import pytest
from h2.config import H2Configuration
from impl_grpc_http2_peer import Header, frame, literal, message

from tailrace_common_api import ClientSettings, ConnectionLost, DeadlineExceeded, FromOffset, ProtocolError
from tailrace_impl_common import ClientStream
from tailrace_impl_common.messages import Follow, GetStatus
from tailrace_impl_grpc import GrpcConnection, _http2_peer
from tailrace_impl_grpc._http2_client_call import Http2ClientCall
from tailrace_impl_grpc._http2_client_connection import Http2ClientConnection
from tailrace_impl_grpc._http2_headers import CallStatus, Metadata
from tailrace_impl_grpc._http2_layout import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
)
from tailrace_impl_grpc._http2_stream import LARGE_WINDOW, CallEnded
from tailrace_impl_grpc._options import MAX_RECEIVED_MESSAGE

_PATIENCE = 20.0
"""Seconds after which a test that waits for nothing ends."""
KIBIBYTE, MEBIBYTE = 1024, 1024 * 1024
PATH = "/test.Service/Method"
OK = CallStatus(grpc.StatusCode.OK)
FOLLOW = Follow(id="a", start=FromOffset(0), window=1)
INITIAL_WINDOW = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
FRAME_SIZE = h2.settings.SettingCodes.MAX_FRAME_SIZE
MOST_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
ANSWER_HEADERS: list[Header] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
RAW_HEADERS = b"".join(literal(name, value) for name, value in ANSWER_HEADERS)
RAW_OK = literal(b"grpc-status", b"0")
ResultT = TypeVar("ResultT")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


class Peer:
    """One connection, on the server's side. Takes what comes only while it waits for something."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        configuration = H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(configuration)
        self.events: list[Any] = []
        self.received = bytearray()
        self.grants = True
        """Whether what comes may come again."""
        self.closed = False

    # Sending

    def begin(self, **values: int) -> None:
        """Say the settings of this side."""
        codes = {getattr(h2.settings.SettingCodes, name.upper()): value for name, value in values.items()}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=codes)
        self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Send bytes of which h2 knows nothing."""
        self.flush()
        self.writer.write(data)

    def set(self, values: dict[h2.settings.SettingCodes, int]) -> None:
        """Change settings of this side."""
        self.h2.update_settings({int(name): value for name, value in values.items()})
        self.flush()

    def headers(self, stream: int, *more: Header) -> None:
        """Begin an answer."""
        self.h2.send_headers(stream, [*ANSWER_HEADERS, *more])
        self.flush()

    def trailers(self, stream: int, status: int | bytes = 0, *more: Header) -> None:
        """End an answer that was begun."""
        code = status if isinstance(status, bytes) else b"%d" % status
        self.h2.send_headers(stream, [(b"grpc-status", code), *more], end_stream=True)
        self.flush()

    def only_trailers(self, stream: int, status: int | bytes = 0, *more: Header) -> None:
        """Answer by a status alone."""
        code = status if isinstance(status, bytes) else b"%d" % status
        self.h2.send_headers(stream, [*ANSWER_HEADERS, (b"grpc-status", code), *more], end_stream=True)
        self.flush()

    async def data_(self, stream: int, data: bytes, *, size: int = 1 << 30) -> None:
        """Send bytes in frames of at most ``size``, as the windows let it."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, size)
            if room <= 0:
                await self.receive()
                assert not self.closed
                continue
            part, data = data[:room], data[room:]
            self.h2.send_data(stream, part)
            self.flush()

    async def answer(self, stream: int, *messages: bytes, status: int = 0) -> None:
        self.headers(stream)
        await self.data_(stream, b"".join(map(message, messages)))
        self.trailers(stream, status)

    # Receiving

    async def receive(self) -> None:
        """Take what has come, at least something."""
        async with asyncio.timeout(_PATIENCE):
            try:
                data = await self._reader.read(1 << 20)
            except ConnectionError:
                data = b""
        if not data:
            self.closed = True
            return
        self.received += data
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived) and self.grants and event.flow_controlled_length:
                assert event.stream_id is not None
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if not self.writer.is_closing():
            self.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        """Take what comes until something is so."""
        async with asyncio.timeout(_PATIENCE):
            while not condition():
                assert not self.closed, self.events
                await self.receive()

    async def until_closed(self) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not self.closed:
                await self.receive()

    async def looked_at(self) -> None:
        """Wait until the client has looked at all that was sent; what it said before that is here, too."""
        before = len(self.of(h2.events.PingAckReceived))
        self.h2.ping(b"look now")
        self.flush()
        await self.until(lambda: len(self.of(h2.events.PingAckReceived)) > before)

    def of(self, kind: type[Any], stream: int | None = None) -> list[Any]:
        """Return the events of a kind, perhaps of one stream."""
        return [
            event for event in self.events if isinstance(event, kind) and (stream is None or event.stream_id == stream)
        ]

    async def request(self, stream: int) -> list[Header]:
        """Return the headers of a call, when they have come."""
        await self.until(lambda: self.of(h2.events.RequestReceived, stream))
        return list(self.of(h2.events.RequestReceived, stream)[0].headers)

    async def requested(self, stream: int) -> bytes:
        """Return all that was sent of a call, when that was all."""
        await self.until(lambda: self.of(h2.events.StreamEnded, stream))
        return self.data(stream)

    def data(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(h2.events.DataReceived, stream))

    async def reset_codes(self, stream: int) -> list[int]:
        """Return the codes of all resets of a stream in what the client has said until now."""
        await self.looked_at()
        return [int.from_bytes(found.payload, "big") for found in self.frames(stream) if found.kind == RST_STREAM]

    def frames(self, stream: int | None = None) -> list[Frame]:
        """Return the frames that came, perhaps of one stream."""
        assert self.received.startswith(PREFACE)
        found, position = [], len(PREFACE)
        while position < len(self.received):
            size = int.from_bytes(self.received[position : position + 3], "big")
            kind, flags = self.received[position + 3], self.received[position + 4]
            number = int.from_bytes(self.received[position + 5 : position + 9], "big")
            position += 9
            if stream in (None, number):
                found.append(Frame(kind, flags, number, bytes(self.received[position : position + size])))
            position += size
        return found

    def kinds(self, stream: int | None = None) -> list[int]:
        return [found.kind for found in self.frames(stream)]

    async def goodbye(self) -> int:
        """Wait for the end of the connection; returns what it said."""
        await self.until_closed()
        [event] = self.of(h2.events.ConnectionTerminated)
        return int(event.error_code)

    # Ending

    async def abort(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


class Listener:
    """A server that does nothing by itself."""

    def __init__(self) -> None:
        self.port = 0
        self.peers: list[Peer] = []
        self._arrived: asyncio.Queue[Peer] = asyncio.Queue()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self._arrived.put_nowait(peer)

    async def accept(self) -> Peer:
        """Return the next connection, on which nothing was said yet."""
        async with asyncio.timeout(_PATIENCE):
            return await self._arrived.get()

    async def greet(self, **values: int) -> Peer:
        """Return the next connection, when its client has agreed to the settings."""
        peer = await self.accept()
        peer.begin(**values)
        await peer.until(lambda: peer.of(h2.events.SettingsAcknowledged))
        return peer

    def grpc(self, **settings: Any) -> GrpcConnection:
        return GrpcConnection(f"grpc://127.0.0.1:{self.port}", ClientSettings(**settings))


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener.take, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        for peer in listener.peers:
            await peer.abort()
        await server.wait_closed()


@asynccontextmanager
async def connected(
    listener: Listener,
    *,
    secure: bool = False,
    max_message: int = MAX_RECEIVED_MESSAGE,
    compress: bool = False,
    keepalive_interval: float = 1000.0,
    keepalive_timeout: float = 1000.0,
) -> AsyncIterator[Http2ClientConnection]:
    """Connect, and end that whatever has become of it."""
    loop = asyncio.get_running_loop()
    connection = Http2ClientConnection(
        loop,
        authority="here:1",
        secure=secure,
        max_message=max_message,
        compress=compress,
        keepalive_interval=keepalive_interval,
        keepalive_timeout=keepalive_timeout,
    )
    await loop.create_connection(lambda: connection, "127.0.0.1", listener.port)
    try:
        yield connection
    finally:
        connection.transport.abort()
        await within(connection.gone)


@asynccontextmanager
async def talking(
    settings: dict[str, int] | None = None, **options: Any
) -> AsyncIterator[tuple[Http2ClientConnection, Peer]]:
    """Connect to a server that has said its settings."""
    async with listening() as listener, connected(listener, **options) as connection:
        peer = await listener.greet(**(settings or {}))
        await within(connection.ready)
        yield connection, peer


@pytest.fixture
async def listener(no_task_is_left: None) -> AsyncIterator[Listener]:
    async with listening() as listener:
        yield listener


async def within(awaitable: Awaitable[ResultT]) -> ResultT:
    async with asyncio.timeout(_PATIENCE):
        return await awaitable


async def turns(count: int = 10) -> None:
    """Let those run who can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def holds(condition: Callable[[], object]) -> None:
    """Wait until something is so on which nobody can wait."""
    async with asyncio.timeout(_PATIENCE):
        while not condition():
            await turns(1)


async def begun(connection: Http2ClientConnection, data: bytes = b"", *, last: bool = True) -> Http2ClientCall:
    """Begin a call and write its first message."""
    call = await within(connection.begin(PATH, ()))
    await within(call.write_last(data) if last else call.write(data))
    return call


async def rest_of(call: Http2ClientCall) -> tuple[list[bytes], CallStatus]:
    """Return what is left to read, and how the call ended."""
    messages = []
    while (data := await within(call.read())) is not None:
        messages.append(bytes(data))
    return messages, await within(call.status())


async def code_of(call: Http2ClientCall) -> grpc.StatusCode:
    return (await within(call.status())).code


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def feed(connection: Http2ClientConnection, data: bytes, sizes: Iterator[int]) -> None:
    """Let a connection receive bytes, in pieces as they might come from the network."""
    view = memoryview(data)
    while view:
        buffer = connection.get_buffer(-1)
        count = min(len(buffer), len(view), next(sizes))
        buffer[:count] = view[:count]
        connection.buffer_updated(count)
        view = view[count:]


# What a call says


async def test_a_call_begins_with_the_headers_of_grpc() -> None:
    metadata: Metadata = (("authorization", "Bearer x"), ("some-bin", b"\x00\xff"), ("some-bin", b""), ("text", "ü"))
    async with talking() as (connection, peer):
        call = await connection.begin(PATH, metadata, timeout=1.5)
        await call.write_last(b"x")
        assert await peer.request(1) == [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", PATH.encode()),
            (b":authority", b"here:1"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-python-tailrace"),
            (b"grpc-accept-encoding", b"identity, deflate, gzip"),
            (b"grpc-timeout", b"1500m"),
            (b"authorization", b"Bearer x"),
            (b"some-bin", b"AP8"),
            (b"some-bin", b""),
            (b"text", "ü".encode()),
        ]
        assert await peer.requested(1) == message(b"x")


@pytest.mark.parametrize("secure", [False, True])
async def test_the_scheme_says_whether_there_is_tls(secure: bool) -> None:
    async with talking(secure=secure) as (connection, peer):
        await begun(connection)
        headers = dict(await peer.request(1))
        assert headers[b":scheme"] == (b"https" if secure else b"http")
        assert not {b"grpc-timeout", b"grpc-encoding", b"authorization"} & set(headers)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1e-9, b"1m"), (0.001, b"1m"), (30.0, b"30000m"), (1e9, b"99999999m"), (1e300, b"99999999m")]
)
async def test_the_time_for_a_call_has_eight_digits_and_is_never_nothing(seconds: float, text: bytes) -> None:
    async with talking() as (connection, peer):
        call = await connection.begin(PATH, (), timeout=seconds)
        await call.write_last(b"")
        assert dict(await peer.request(1))[b"grpc-timeout"] == text


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 127 + 16_383, 127 + 16_384, 40_000])
async def test_metadata_of_every_length_arrives(size: int) -> None:
    """Also when it needs several frames."""
    async with talking() as (connection, peer):
        call = await connection.begin(PATH, (("long", "x" * size), ("behind", "y")))
        await call.write_last(b"data")
        headers = dict(await peer.request(1))
        assert (headers[b"long"], headers[b"behind"]) == (b"x" * size, b"y")
        assert await peer.requested(1) == message(b"data")
        assert all(len(found.payload) <= 16_384 for found in peer.frames(1))
        assert (CONTINUATION in peer.kinds(1)) is (size > 16_384)


@pytest.mark.parametrize("size", [0, 100, 4096])
async def test_a_server_that_has_no_table_of_headers_is_told_so(size: int) -> None:
    async with talking({"header_table_size": size}) as (connection, peer):
        for number in (1, 3):
            await begun(connection)
            assert dict(await peer.request(number))[b":path"] == PATH.encode()


async def test_the_token_and_the_time_are_said_by_unary_calls(listener: Listener) -> None:
    connection = listener.grpc(token="secret", answer_timeout=7.0)
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.greet()
    headers = dict(await peer.request(1))
    assert headers[b":path"] == b"/tailrace.v1.Resources/GetStatus"
    assert headers[b":authority"] == b"127.0.0.1:%d" % listener.port
    assert (headers[b"authorization"], headers[b"grpc-timeout"]) == (b"Bearer secret", b"7000m")
    await connection.close()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await calling


# Messages


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 16_384, 65_530, 65_531, 100_000, MEBIBYTE])
async def test_requests_arrive_exactly(size: int) -> None:
    requests = [content(size), content(3), content(size, 1)]
    async with talking() as (connection, peer):

        async def write() -> None:
            call = await connection.begin(PATH, ())
            for data in requests[:-1]:
                await call.write(data)
            await call.write_last(requests[-1])

        writing = asyncio.create_task(write())
        assert await peer.requested(1) == b"".join(map(message, requests))
        await within(writing)
        # The end is said once.
        assert [bool(found.flags & END_STREAM) for found in peer.frames(1)].count(True) == 1


@pytest.mark.parametrize("size", [0, 1, 16_384, 32_767, 32_768, MEBIBYTE, 2 * MEBIBYTE, 3 * MEBIBYTE])
async def test_answers_arrive_exactly(size: int) -> None:
    answers = [content(size), content(3), content(size, 1)]
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        reading = asyncio.create_task(rest_of(call))
        await peer.answer(1, *answers)
        assert await within(reading) == (answers, OK)


@pytest.mark.parametrize("size", [5 * MEBIBYTE, MAX_RECEIVED_MESSAGE])
async def test_an_answer_that_is_larger_than_the_window_is_let_come(size: int) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        reading = asyncio.create_task(rest_of(call))
        data = content(size)
        await peer.answer(1, b"before", data, b"behind")
        assert await within(reading) == ([b"before", data, b"behind"], OK)


@pytest.mark.parametrize("size", [0, 1, 300, 40_000])
async def test_an_answer_may_come_in_frames_of_a_single_byte(size: int) -> None:
    data = message(content(size)) + message(b"") + message(b"end")
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        peer.raw(b"".join(frame(DATA, 0, 1, data[place : place + 1]) for place in range(len(data))))
        peer.trailers(1)
        assert await rest_of(call) == ([content(size), b"", b"end"], OK)


async def test_many_messages_may_come_in_one_frame() -> None:
    answers = [content(number % 50, number) for number in range(1000)]
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        await peer.answer(1, *answers)
        assert await rest_of(call) == (answers, OK)


@pytest.mark.parametrize("padding", [0, 1, 255])
@pytest.mark.parametrize("size", [10, 100_000])
async def test_padding_is_nothing(padding: int, size: int) -> None:
    data = message(content(size)) + message(b"end")
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        peer.h2.send_data(1, data[:7], pad_length=padding)
        peer.h2.send_data(1, b"", pad_length=padding)
        peer.h2.send_data(1, data[7:], pad_length=padding)
        peer.trailers(1)
        assert await rest_of(call) == ([content(size), b"end"], OK)


async def test_a_server_that_pads_everything_is_granted_that_too() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        for _ in range(LARGE_WINDOW // 256 * 2):
            while peer.h2.local_flow_control_window(1) < 256:
                await peer.receive()
            peer.h2.send_data(1, b"", pad_length=255)
            peer.flush()
        await peer.data_(1, message(b"end"))
        peer.trailers(1)
        assert await rest_of(call) == ([b"end"], OK)


@pytest.mark.parametrize("seed", range(30))
async def test_it_does_not_matter_how_an_answer_is_cut(seed: int) -> None:
    """Into frames, with and without padding, and into what the network brings at a time."""
    chance = random.Random(seed)
    answers = [chance.randbytes(chance.choice([0, 1, 5, 100, 33_000, 70_000])) for _ in range(chance.randrange(12))]
    left = b"".join(map(message, answers))
    wire = frame(HEADERS, END_HEADERS, 1, RAW_HEADERS)
    while left:
        size = chance.choice([0, 1, 4, 9, 500, 20_000, 80_000])
        part, left = left[:size], left[size:]
        padding = chance.choice([None, None, 0, 1, 255])
        if padding is None:
            wire += frame(DATA, 0, 1, part)
        else:
            wire += frame(DATA, PADDED, 1, bytes((padding,)) + part + bytes(padding))
        # Of a kind that nobody knows, and of a call that nobody makes any more.
        wire += chance.choice([b"", b"", frame(0xFA, 0xFF, 1, b"unknown" * 9), frame(PING, ACK, 0, bytes(8))])
    wire += frame(HEADERS, END_HEADERS | END_STREAM, 1, RAW_OK)
    most = chance.choice([1, 3, 10, 1000, 40_000]) if len(wire) < 200_000 else 40_000
    async with talking() as (connection, _):
        call = await begun(connection)
        feed(connection, wire, (chance.randint(1, most) for _ in itertools.count()))
        assert await rest_of(call) == (answers, OK)


# How a call ends


@pytest.mark.parametrize("status", list(grpc.StatusCode))
@pytest.mark.parametrize("alone", [True, False])
async def test_every_status_arrives(status: grpc.StatusCode, alone: bool) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        if not alone:
            peer.headers(1)
        (peer.only_trailers if alone else peer.trailers)(1, status.value[0], (b"grpc-message", b"why"))
        assert await rest_of(call) == ([], CallStatus(status, "why"))
        assert await peer.reset_codes(1) == []


@pytest.mark.parametrize(
    ("text", "details"),
    [
        (b"", ""),
        (b"plain text", "plain text"),
        (b"100%25 of it", "100% of it"),
        (b"%E2%82%AC%0a%c3%bc", "€\nü"),
        (b"%", "%"),
        (b"%zz%4", "%zz%4"),
        (b"%ff", "�"),
        ("€".encode(), "€"),
    ],
)
async def test_the_text_of_a_status_is_decoded(text: bytes, details: str) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.only_trailers(1, 5, (b"grpc-message", text))
        assert await call.status() == CallStatus(grpc.StatusCode.NOT_FOUND, details)


# b"9" * 5000 fails: int() refuses more than 4,300 digits (parse_trailers in _http2_headers.py).
@pytest.mark.parametrize(
    "text",
    [b"17", b"99", b"-1", b"", b"x", b"0x0", b"1.0", b"\xb2", b"9" * 30, b"9" * 5000],
    ids=lambda text: str(text[:9]),
)
async def test_a_status_that_is_none_is_unknown(text: bytes) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.only_trailers(1, text)
        assert await code_of(call) is grpc.StatusCode.UNKNOWN
        # The connection is none the worse for it.
        assert connection.usable


async def test_metadata_of_the_end_arrives_as_far_as_it_can_be_read() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.only_trailers(
            1,
            5,
            (b"text", b"a"),
            (b"text", b"b"),
            (b"some-bin", b"AP8"),
            (b"other-bin", b"AP8=,AA"),
            (b"broken-bin", b"!!"),
            (b"not-text", b"\xff"),
        )
        metadata = (await call.status()).metadata
        assert metadata == (
            ("text", "a"),
            ("text", "b"),
            ("some-bin", b"\x00\xff"),
            ("other-bin", b"\x00\xff"),
            ("other-bin", b"\x00"),
        )


@pytest.mark.parametrize(
    ("status", "content_type", "code"),
    [
        (b"400", b"text/html", grpc.StatusCode.INTERNAL),
        (b"401", b"text/html", grpc.StatusCode.UNAUTHENTICATED),
        (b"403", b"text/html", grpc.StatusCode.PERMISSION_DENIED),
        (b"404", b"text/html", grpc.StatusCode.UNIMPLEMENTED),
        (b"429", b"text/html", grpc.StatusCode.UNAVAILABLE),
        (b"502", b"application/grpc", grpc.StatusCode.UNAVAILABLE),
        (b"503", b"text/html", grpc.StatusCode.UNAVAILABLE),
        (b"504", b"text/html", grpc.StatusCode.UNAVAILABLE),
        (b"500", b"text/html", grpc.StatusCode.UNKNOWN),
        (b"204", b"application/grpc", grpc.StatusCode.UNKNOWN),
        (b"200", b"text/html", grpc.StatusCode.UNKNOWN),
        (b"200", b"application/grpc-web", grpc.StatusCode.UNKNOWN),
        (b"200", b"application/grpcx", grpc.StatusCode.UNKNOWN),
        (b"what", b"application/grpc", grpc.StatusCode.UNKNOWN),
    ],
)
@pytest.mark.parametrize("ends", [True, False])
async def test_what_is_no_answer_of_grpc_has_the_status_of_http(
    status: bytes, content_type: bytes, code: grpc.StatusCode, ends: bool
) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        block = literal(b":status", status) + literal(b"content-type", content_type)
        peer.raw(frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), 1, block))
        if not ends:
            peer.raw(frame(DATA, END_STREAM, 1, b"<html>"))
        messages, found = await rest_of(call)
        assert (messages, found.code) == ([], code)
        # Who comes next is not disturbed by what was said to this one.
        other = await begun(connection)
        await peer.requested(3)
        await peer.answer(3, b"yes")
        assert await rest_of(other) == ([b"yes"], OK)


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc;x=y"])
async def test_all_content_types_of_grpc_are_known(content_type: bytes) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.h2.send_headers(1, [(b":status", b"200"), (b"content-type", content_type)])
        await peer.data_(1, message(b"x"))
        peer.trailers(1)
        assert await rest_of(call) == ([b"x"], OK)


async def test_interim_headers_are_not_the_answer() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.h2.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
        await peer.answer(1, b"x")
        assert await rest_of(call) == ([b"x"], OK)


async def test_an_answer_without_headers_behind_it_has_no_status() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        peer.h2.send_data(1, message(b"one") + message(b"two"), end_stream=True)
        peer.flush()
        messages, status = await rest_of(call)
        assert (messages, status.code) == ([b"one", b"two"], grpc.StatusCode.UNKNOWN)


async def test_an_answer_of_headers_alone_that_have_no_status_has_none() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.h2.send_headers(1, ANSWER_HEADERS, end_stream=True)
        peer.flush()
        messages, status = await rest_of(call)
        assert (messages, status.code) == ([], grpc.StatusCode.UNKNOWN)


async def test_an_empty_frame_may_end_an_answer() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        peer.h2.send_data(1, b"", end_stream=True)
        peer.flush()
        assert await code_of(call) is grpc.StatusCode.UNKNOWN


async def test_nothing_is_said_on_a_stream_that_both_sides_have_ended() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        peer.h2.send_data(1, message(b"one"), end_stream=True)
        peer.flush()
        await rest_of(call)
        assert await peer.reset_codes(1) == []


@pytest.mark.parametrize("http_status", [b"200", b"404"])
async def test_a_call_that_the_server_ends_early_is_ended_on_this_side_too(http_status: bytes) -> None:
    """To a server that does not reset it, it would be a stream for ever."""
    async with talking() as (connection, peer):
        call = await begun(connection, last=False)
        await peer.request(1)
        peer.h2.send_headers(
            1, [(b":status", http_status), *ANSWER_HEADERS[1:], (b"grpc-status", b"5")], end_stream=True
        )
        peer.flush()
        assert await code_of(call) is grpc.StatusCode.NOT_FOUND
        await peer.looked_at()
        assert peer.h2.open_inbound_streams == 0


async def test_an_answer_that_is_none_is_not_listened_to_any_longer() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.h2.send_headers(1, [(b":status", b"503"), (b"content-type", b"text/html")])
        peer.flush()
        assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        assert await peer.reset_codes(1) == [ErrorCode.CANCEL]


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("part", [3, 8])
async def test_an_answer_that_is_cut_off_is_not_ok(size: int, part: int) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        await peer.data_(1, message(b"whole") + message(content(size))[:part])
        peer.trailers(1)
        messages, status = await rest_of(call)
        assert (messages, status.code) == ([b"whole"], grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.NO_ERROR, grpc.StatusCode.INTERNAL),
        (ErrorCode.PROTOCOL_ERROR, grpc.StatusCode.INTERNAL),
        (ErrorCode.FLOW_CONTROL_ERROR, grpc.StatusCode.INTERNAL),
        (ErrorCode.REFUSED_STREAM, grpc.StatusCode.UNAVAILABLE),
        (ErrorCode.CANCEL, grpc.StatusCode.CANCELLED),
        (ErrorCode.ENHANCE_YOUR_CALM, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (0xFFFF, grpc.StatusCode.INTERNAL),
    ],
)
async def test_a_reset_is_a_status(code: int, status: grpc.StatusCode) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        await peer.data_(1, message(b"before"))
        peer.h2.reset_stream(1, code)
        peer.flush()
        messages, found = await rest_of(call)
        assert (messages, found.code) == ([b"before"], status)
        assert str(int(code)) in found.details
        assert await peer.reset_codes(1) == []


async def test_messages_before_an_error_are_delivered_before_it() -> None:
    answers = [b"%d" % number for number in range(100)]
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        await peer.answer(1, *answers, status=9)
        # The status is known before anything was read.
        assert await code_of(call) is grpc.StatusCode.FAILED_PRECONDITION
        assert await rest_of(call) == (answers, CallStatus(grpc.StatusCode.FAILED_PRECONDITION))
        assert await call.read() is None


async def test_a_write_to_a_call_that_is_over_fails_and_its_status_is_known() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection, last=False)
        await peer.request(1)
        peer.only_trailers(1, 8)
        await within(call.status())
        for write in (call.write, call.write_last):
            with pytest.raises(CallEnded):
                await write(b"late")
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_write_that_waits_is_told_when_the_call_ends() -> None:
    async with talking() as (connection, peer):
        writing = asyncio.create_task(begun(connection, bytes(100_000)))
        peer.grants = False
        await peer.until(lambda: len(peer.data(1)) == 65_535)
        peer.only_trailers(1, 8)
        with pytest.raises(CallEnded):
            await within(writing)


async def test_a_reader_that_waits_is_told_when_the_call_ends() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        reading = asyncio.create_task(call.read())
        await peer.requested(1)
        assert not reading.done()
        peer.only_trailers(1)
        assert await within(reading) is None


async def test_a_reader_that_was_cancelled_misses_nothing() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        for answer in (b"one", b"two"):
            reading = asyncio.create_task(call.read())
            await turns()
            reading.cancel()
            await asyncio.wait([reading])
            if answer == b"one":
                peer.headers(1)
            await peer.data_(1, message(answer))
            assert await within(call.read()) == answer
        peer.trailers(1)
        assert await rest_of(call) == ([], OK)


async def test_second_headers_that_are_not_the_last_are_nothing() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        peer.raw(frame(HEADERS, END_HEADERS, 1, RAW_OK))
        await peer.data_(1, message(b"x"))
        peer.trailers(1, 5)
        assert await rest_of(call) == ([b"x"], CallStatus(grpc.StatusCode.NOT_FOUND))


# Windows for what is sent


async def test_nothing_is_sent_before_settings_that_allow_it_are_acknowledged() -> None:
    async with talking({"initial_window_size": 0}) as (connection, peer):
        data = content(1000)
        writing = asyncio.create_task(begun(connection, data))
        await peer.request(1)
        await peer.looked_at()
        assert peer.kinds(1) == [HEADERS]
        place = len(peer.frames())
        peer.set({INITIAL_WINDOW: 65_535})
        assert await peer.requested(1) == message(data)
        await within(writing)
        behind = peer.frames()[place:]
        assert behind[0] == Frame(SETTINGS, ACK, 0, b"")
        assert {found.kind for found in behind[1:]} == {DATA}


async def test_a_call_begins_with_the_window_of_its_beginning_on_the_wire() -> None:
    async with talking() as (connection, peer):
        call = await connection.begin(PATH, ())
        peer.set({INITIAL_WINDOW: 10})
        await peer.looked_at()
        peer.grants = False
        writing = asyncio.create_task(call.write_last(content(100)))
        await peer.until(lambda: len(peer.data(1)) == 10)
        await peer.looked_at()
        assert len(peer.data(1)) == 10
        peer.h2.increment_flow_control_window(95, 1)
        peer.flush()
        assert await peer.requested(1) == message(content(100))
        await within(writing)


@pytest.mark.parametrize("step", [1, 7, 30])
async def test_a_stream_sends_what_its_window_lets_it(step: int) -> None:
    data = message(content(100))
    async with talking({"initial_window_size": 0}) as (connection, peer):
        peer.grants = False
        writing = asyncio.create_task(begun(connection, content(100)))
        await peer.request(1)
        allowed = 0
        while allowed < len(data):
            allowed += step
            peer.h2.increment_flow_control_window(step, 1)
            await peer.looked_at()
            assert peer.data(1) == data[:allowed]
        assert await peer.requested(1) == data
        await within(writing)


@pytest.mark.parametrize("step", [1, 1000])
async def test_a_connection_sends_what_its_window_lets_it(step: int) -> None:
    content_ = content(65_535 + 20 * step)
    data = message(content_)
    async with talking({"initial_window_size": 1 << 30}) as (connection, peer):
        peer.grants = False
        writing = asyncio.create_task(begun(connection, content_))
        allowed = 65_535
        await peer.until(lambda: len(peer.data(1)) == allowed)
        while allowed < len(data):
            await peer.looked_at()
            assert peer.data(1) == data[:allowed]
            allowed += step
            peer.h2.increment_flow_control_window(step)
            peer.flush()
        assert await peer.requested(1) == data
        await within(writing)


async def test_a_window_may_fall_below_nothing() -> None:
    async with talking() as (connection, peer):
        peer.grants = False
        call = await begun(connection, content(60_000), last=False)
        await peer.until(lambda: len(peer.data(1)) == 60_005)
        peer.set({INITIAL_WINDOW: 10})
        await peer.looked_at()
        writing = asyncio.create_task(call.write_last(content(1000)))
        # It is at 65,535 - 60,005 + 10 - 65,535 = -59,995.
        peer.h2.increment_flow_control_window(100_000)
        peer.h2.increment_flow_control_window(59_995, 1)
        await peer.looked_at()
        assert len(peer.data(1)) == 60_005
        peer.h2.increment_flow_control_window(5, 1)
        await peer.looked_at()
        assert len(peer.data(1)) == 60_010
        peer.h2.increment_flow_control_window(1000, 1)
        peer.flush()
        assert await peer.requested(1) == message(content(60_000)) + message(content(1000))
        await within(writing)


async def test_calls_share_the_window_of_the_connection_and_all_of_them_arrive() -> None:
    async with talking({"initial_window_size": 1 << 30}) as (connection, peer):
        sent = {2 * number + 1: content(200_000 + number, number) for number in range(5)}
        tasks = [asyncio.create_task(begun(connection, data)) for data in sent.values()]
        for number, data in sent.items():
            assert await peer.requested(number) == message(data)
        await within(asyncio.gather(*tasks))


async def test_who_waits_for_a_window_of_its_own_keeps_nobody_else_waiting() -> None:
    async with talking({"initial_window_size": 100}) as (connection, peer):
        peer.grants = False
        stuck = asyncio.create_task(begun(connection, bytes(1000)))
        await peer.until(lambda: len(peer.data(1)) == 100)
        await begun(connection, b"small")
        assert await peer.requested(3) == message(b"small")
        stuck.cancel()
        await asyncio.wait([stuck])


@pytest.mark.parametrize("end", ["call", "task"])
async def test_who_waits_for_the_connection_and_gives_up_keeps_nobody_waiting(end: str) -> None:
    async with talking({"initial_window_size": 1 << 30}) as (connection, peer):
        peer.grants = False
        call = await connection.begin(PATH, ())
        stuck = asyncio.create_task(call.write_last(bytes(100_000)))
        await peer.until(lambda: len(peer.data(1)) == 65_535)
        behind = asyncio.create_task(begun(connection, content(1000)))
        await turns()
        if end == "call":
            call.cancel()
        else:
            stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        call.cancel()
        peer.h2.increment_flow_control_window(2000)
        peer.flush()
        assert await peer.requested(3) == message(content(1000))
        await within(behind)


@pytest.mark.parametrize("size", [16_384, 16_385, 100_000])
async def test_frames_are_no_larger_than_the_server_takes(size: int) -> None:
    settings = {"max_frame_size": size, "initial_window_size": 1 << 30}
    async with talking(settings) as (connection, peer):
        peer.h2.increment_flow_control_window(1 << 30)
        peer.flush()
        await peer.looked_at()
        writing = asyncio.create_task(begun(connection, content(MEBIBYTE)))
        assert await peer.requested(1) == message(content(MEBIBYTE))
        await within(writing)
        assert max(len(found.payload) for found in peer.frames(1)) == size


async def test_a_server_may_take_larger_frames_while_a_message_is_on_its_way() -> None:
    async with talking({"initial_window_size": 20_000}) as (connection, peer):
        peer.grants = False
        writing = asyncio.create_task(begun(connection, content(200_000)))
        await peer.until(lambda: len(peer.data(1)) == 20_000)
        peer.set({FRAME_SIZE: 50_000})
        await peer.looked_at()
        peer.h2.increment_flow_control_window(1 << 20)
        peer.h2.increment_flow_control_window(1 << 20, 1)
        peer.flush()
        assert await peer.requested(1) == message(content(200_000))
        await within(writing)
        sizes = [len(found.payload) for found in peer.frames(1) if found.kind == DATA]
        assert max(sizes[:2]) <= 16_384
        assert max(sizes) == 50_000


# Windows for what is received


async def test_a_large_download_goes_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    # The window of the connection would last for two gigabytes.
    monkeypatch.setattr(_http2_peer, "_CONNECTION_WINDOW", 5 * MEBIBYTE)
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        data, count = content(100_000), 400

        async def send() -> None:
            peer.headers(1)
            for _ in range(count):
                await peer.data_(1, message(data))
            peer.trailers(1)

        sending = asyncio.create_task(send())
        for _ in range(count):
            assert await within(call.read()) == data
        assert await rest_of(call) == ([], OK)
        await within(sending)


async def test_a_call_that_nobody_reads_is_sent_no_more_than_its_window() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        data = message(content(MEBIBYTE))
        sending = asyncio.create_task(peer.data_(1, data * 8))
        await holds(lambda: not peer.h2.local_flow_control_window(1))
        # Two may not read from one socket.
        sending.cancel()
        await asyncio.wait([sending])
        await peer.looked_at()
        assert peer.h2.local_flow_control_window(1) == 0
        # The others are not stopped by that.
        other = await begun(connection)
        await peer.requested(3)
        await peer.answer(3, content(MEBIBYTE))
        assert await rest_of(other) == ([content(MEBIBYTE)], OK)
        for _ in range(3):
            assert await within(call.read()) == content(MEBIBYTE)
        await peer.looked_at()
        left = data * 8
        await peer.data_(1, left[LARGE_WINDOW : 5 * len(data)])
        peer.trailers(1)
        assert await rest_of(call) == ([content(MEBIBYTE)] * 2, OK)


@pytest.mark.parametrize("padded", [False, True])
async def test_a_server_that_overdraws_the_window_of_a_call_is_told(padded: bool) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        half = LARGE_WINDOW // 2
        last = frame(DATA, PADDED, 1, b"\x00") if padded else frame(DATA, 0, 1, b"x")
        peer.raw(frame(DATA, 0, 1, message(bytes(half - 5))) * 2 + last)
        status = await within(call.status())
        assert await peer.reset_codes(1) == [ErrorCode.FLOW_CONTROL_ERROR]
        assert status.code is grpc.StatusCode.INTERNAL
        # It is the fault of that call alone.
        await begun(connection)
        await peer.requested(3)


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), ((1 << 31) - 1, ErrorCode.FLOW_CONTROL_ERROR)]
)
async def test_a_window_of_a_call_that_cannot_grow_like_that_ends_the_call(increment: int, code: ErrorCode) -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.raw(frame(WINDOW_UPDATE, 0, 1, increment.to_bytes(4, "big")))
        status = await within(call.status())
        assert await peer.reset_codes(1) == [code]
        assert status.code is grpc.StatusCode.INTERNAL


# How many calls there may be


async def test_the_next_call_waits_until_one_ends() -> None:
    async with talking({"max_concurrent_streams": 2}) as (connection, peer):
        calls = [await begun(connection, last=False) for _ in range(2)]
        waiting = [asyncio.create_task(begun(connection)) for _ in range(2)]
        await turns()
        assert not any(task.done() for task in waiting)
        await peer.request(3)
        peer.only_trailers(3)
        peer.h2.reset_stream(3, 0)
        peer.flush()
        third = await within(waiting[0])
        await turns()
        assert not waiting[1].done()
        await peer.request(5)
        assert (third.number, calls[0].over, calls[1].over) == (5, False, True)
        calls[0].cancel()
        assert (await within(waiting[1])).number == 7
        await peer.request(7)


@pytest.mark.parametrize("when", ["before", "behind"])
async def test_a_waiter_that_is_cancelled_takes_nobodys_turn(when: str) -> None:
    async with talking({"max_concurrent_streams": 1}) as (connection, _):
        call = await begun(connection, last=False)
        tasks = [asyncio.create_task(begun(connection)) for _ in range(3)]
        await turns()
        if when == "before":
            tasks[0].cancel()
            call.cancel()
        else:
            # It is its turn already when it is cancelled.
            call.cancel()
            tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        second = await within(tasks[1])
        assert tasks[0].cancelled()
        assert not tasks[2].done()
        second.cancel()
        await within(tasks[2])


async def test_a_call_that_was_never_written_gives_its_turn_back() -> None:
    async with talking({"max_concurrent_streams": 1}) as (connection, peer):
        call = await connection.begin(PATH, ())
        waiting = asyncio.create_task(begun(connection))
        await turns()
        assert not waiting.done()
        call.cancel()
        await within(waiting)
        await peer.requested(1)


@pytest.mark.parametrize("before", [0, 1])
async def test_who_waits_begins_when_the_server_takes_more_calls(before: int) -> None:
    async with talking({"max_concurrent_streams": before}) as (connection, peer):
        for _ in range(before):
            await begun(connection, last=False)
        waiting = [asyncio.create_task(begun(connection)) for _ in range(3)]
        await turns()
        assert not any(task.done() for task in waiting)
        peer.set({MOST_STREAMS: before + 2})
        await peer.looked_at()
        await turns()
        done = [task.done() for task in waiting]
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert done == [True, True, False]


async def test_a_server_may_take_fewer_calls_than_there_are() -> None:
    async with talking() as (connection, peer):
        calls = [await begun(connection, last=False) for _ in range(3)]
        peer.set({MOST_STREAMS: 2})
        await peer.looked_at()
        waiting = asyncio.create_task(begun(connection))
        calls[0].cancel()
        await turns()
        assert not waiting.done()
        calls[1].cancel()
        await within(waiting)


async def test_numbers_of_streams_grow_in_the_order_of_writing() -> None:
    async with talking() as (connection, peer):
        calls = [await connection.begin(PATH, (("place", str(place)),)) for place in range(4)]
        for call in reversed(calls):
            await call.write_last(b"x")
        for number in (1, 3, 5, 7):
            await peer.request(number)
        found = [(event.stream_id, dict(event.headers)[b"place"]) for event in peer.of(h2.events.RequestReceived)]
        assert found == [(1, b"3"), (3, b"2"), (5, b"1"), (7, b"0")]


async def test_numbers_of_streams_grow_whoever_is_compressed_first() -> None:
    async with talking(compress=True) as (connection, peer):
        calls = [await connection.begin(PATH, ()) for _ in range(4)]
        sizes = (500_000, 10, 100_000, 0)
        writing = [asyncio.create_task(call.write_last(bytes(size))) for call, size in zip(calls, sizes, strict=True)]
        await within(asyncio.gather(*writing))
        for number in (1, 3, 5, 7):
            await peer.requested(number)
        assert [event.stream_id for event in peer.of(h2.events.RequestReceived)] == [1, 3, 5, 7]
        assert {call.number for call in calls} == {1, 3, 5, 7}


# A server that goes away


async def test_calls_that_the_server_will_not_serve_are_lost_at_once_and_others_go_on() -> None:
    async with talking() as (connection, peer):
        calls = [await begun(connection) for _ in range(3)]
        unwritten = await connection.begin(PATH, ())
        await peer.requested(5)
        peer.raw(frame(GOAWAY, 0, 0, (3).to_bytes(4, "big") + bytes(4)))
        assert await code_of(calls[2]) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(unwritten) is grpc.StatusCode.UNAVAILABLE
        assert not connection.usable
        with pytest.raises(CallEnded):
            await connection.begin(PATH, ())
        for number, call in ((1, calls[0]), (3, calls[1])):
            assert not call.over
            await peer.answer(number, b"yes")
            assert await rest_of(call) == ([b"yes"], OK)
        # Nothing is left to be done.
        await within(connection.gone)
        await peer.until_closed()


async def test_a_server_that_goes_away_twice_is_heard_twice() -> None:
    """As one that ends in order: the first time nobody is meant."""
    async with talking() as (connection, peer):
        calls = [await begun(connection) for _ in range(2)]
        await peer.requested(3)
        peer.raw(frame(GOAWAY, 0, 0, ((1 << 31) - 1).to_bytes(4, "big") + bytes(4)))
        await peer.looked_at()
        assert [call.over for call in calls] == [False, False]
        peer.raw(frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4) + b"why"))
        assert await code_of(calls[1]) is grpc.StatusCode.UNAVAILABLE
        await peer.answer(1, b"yes")
        assert await rest_of(calls[0]) == ([b"yes"], OK)
        await within(connection.gone)


async def test_who_waits_for_a_turn_is_told_that_the_server_goes_away() -> None:
    async with talking({"max_concurrent_streams": 1}) as (connection, peer):
        call = await begun(connection)
        waiting = [asyncio.create_task(begun(connection)) for _ in range(2)]
        await peer.requested(1)
        peer.raw(frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4)))
        for task in waiting:
            with pytest.raises(CallEnded):
                await within(task)
        assert not call.over


async def test_a_server_that_goes_away_from_nobody_is_left_at_once() -> None:
    async with talking() as (connection, peer):
        peer.raw(frame(GOAWAY, 0, 0, bytes(8)))
        await within(connection.gone)
        await peer.until_closed()


async def opened(connection: GrpcConnection, listener: Listener) -> tuple[ClientStream, Peer]:
    """Begin a conversation on a new connection."""
    opening = asyncio.create_task(connection.open(FOLLOW))
    peer = await listener.greet()
    stream = await within(opening)
    await peer.request(1)
    return stream, peer


async def test_the_next_call_is_on_a_new_connection_when_the_server_goes_away(listener: Listener) -> None:
    connection = listener.grpc()
    first, old = await opened(connection, listener)
    old.raw(frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4)))
    await old.looked_at()
    second, new = await opened(connection, listener)
    assert len(listener.peers) == 2
    # The old one goes on until its calls have ended.
    await old.answer(1)
    assert await within(first.receive()) is None
    await old.until_closed()
    await new.answer(1)
    assert await within(second.receive()) is None
    await first.close()
    await second.close()
    await connection.close()
    await new.until_closed()


async def test_closing_ends_unary_calls_on_a_connection_that_goes_away(listener: Listener) -> None:
    connection = listener.grpc(answer_timeout=2.0)
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    old = await listener.greet()
    await old.requested(1)
    old.raw(frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4)))
    await old.looked_at()
    stream, _ = await opened(connection, listener)
    await connection.close()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await within(calling)
    await stream.close()
    await old.until_closed()


async def test_a_call_that_the_server_will_not_serve_is_a_lost_connection(listener: Listener) -> None:
    connection = listener.grpc()
    stream, peer = await opened(connection, listener)
    peer.raw(frame(GOAWAY, 0, 0, bytes(8)))
    with pytest.raises(ConnectionLost, match="going away"):
        await within(stream.receive())
    await stream.close()
    await connection.close()


# Loss


async def test_the_loss_of_the_connection_wakes_everybody() -> None:
    async with talking({"max_concurrent_streams": 3}) as (connection, peer):
        reader = await begun(connection)
        reading = asyncio.create_task(reader.read())
        writer = await connection.begin(PATH, ())
        writing = asyncio.create_task(writer.write_last(bytes(200_000)))
        unwritten = await connection.begin(PATH, ())
        waiting = asyncio.create_task(connection.begin(PATH, ()))
        peer.grants = False
        await peer.until(lambda: len(peer.data(3)) > 60_000)
        await peer.abort()
        assert await within(reading) is None
        for task in (writing, waiting):
            with pytest.raises(CallEnded):
                await within(task)
        for call in (reader, writer, unwritten):
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        await within(connection.gone)
        with pytest.raises(CallEnded):
            await connection.begin(PATH, ())


async def test_a_server_that_says_nothing_more_has_lost_the_connection_too() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1)
        await peer.data_(1, message(b"before"))
        peer.writer.write_eof()
        messages, status = await rest_of(call)
        assert (messages, status.code) == ([b"before"], grpc.StatusCode.UNAVAILABLE)
        await within(connection.gone)


async def test_who_writes_to_a_server_that_does_not_read_is_told_of_the_loss() -> None:
    async with talking({"initial_window_size": 1 << 30}) as (connection, peer):
        peer.h2.increment_flow_control_window(1 << 30)
        await peer.looked_at()
        call = await connection.begin(PATH, ())

        async def write() -> None:
            while True:
                await call.write(bytes(MEBIBYTE))

        writing = asyncio.create_task(write())
        await holds(lambda: connection.paused)
        other = asyncio.create_task(begun(connection))
        await turns()
        assert not other.done()
        await peer.abort()
        for task in (writing, other):
            with pytest.raises(CallEnded):
                await within(task)
        assert await code_of(call) is grpc.StatusCode.UNAVAILABLE


async def test_a_new_connection_is_made_when_one_is_lost(listener: Listener) -> None:
    connection = listener.grpc()
    stream, peer = await opened(connection, listener)
    await peer.abort()
    with pytest.raises(ConnectionLost):
        await within(stream.receive())
    again, peer = await opened(connection, listener)
    await stream.close()
    await again.close()
    await connection.close()


# Offences


OFFENCES = {
    "data-of-the-connection": (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data-of-no-call": (frame(DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "answer-to-no-call": (frame(HEADERS, END_HEADERS, 5, RAW_HEADERS), ErrorCode.PROTOCOL_ERROR),
    "stream-of-a-server": (frame(HEADERS, END_HEADERS, 2, RAW_HEADERS), ErrorCode.PROTOCOL_ERROR),
    "headers": (frame(HEADERS, END_HEADERS, 1, b"\xff" * 6), ErrorCode.COMPRESSION_ERROR),
    "reset-of-no-call": (frame(RST_STREAM, 0, 5, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "size-of-reset": (frame(RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "window-of-no-call": (frame(WINDOW_UPDATE, 0, 5, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "window": (frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    "promise": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + RAW_HEADERS), ErrorCode.PROTOCOL_ERROR),
    "nothing-to-continue": (frame(CONTINUATION, END_HEADERS, 1, RAW_HEADERS), ErrorCode.PROTOCOL_ERROR),
    "initial-window": (frame(SETTINGS, 0, 0, b"\x00\x04\xff\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    "size-of-frames": (frame(SETTINGS, 0, 0, b"\x00\x05\x00\x00\x00\x01"), ErrorCode.PROTOCOL_ERROR),
    "size-of-ping": (frame(PING, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
    "size-of-goodbye": (frame(GOAWAY, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
    "size": (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", ErrorCode.FRAME_SIZE_ERROR),
}


# Those before the first call fail: fail in _http2_peer.py names -1 as the last stream, which cannot be packed.
@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize(("offence", "code"), OFFENCES.values(), ids=OFFENCES)
async def test_a_server_that_breaks_the_rules_is_told_which(offence: bytes, code: ErrorCode, calls: int) -> None:
    async with talking() as (connection, peer):
        made = [await begun(connection) for _ in range(calls)]
        for number in range(calls):
            await peer.requested(2 * number + 1)
        peer.raw(offence)
        for call in made:
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        said = await peer.goodbye()
        # Before the first call, all streams are such that have not begun.
        assert said == code or (not calls and said == ErrorCode.PROTOCOL_ERROR)
        assert not connection.usable
        await within(connection.gone)


async def test_headers_that_are_far_too_large_end_the_connection() -> None:
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        parts = [frame(HEADERS, 0, 1, bytes(16_384)), *[frame(CONTINUATION, 0, 1, bytes(16_384))] * 4]
        peer.raw(b"".join(parts) + frame(CONTINUATION, END_HEADERS, 1, b""))
        assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        assert await peer.goodbye() == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-Server\r\n",
        b"220 mail ready\r\n",
        bytes(9),
        frame(PING, 0, 0, bytes(8)),
    ],
    ids=["http", "ssh", "smtp", "zeros", "ping"],
)
async def test_a_server_that_does_not_speak_http2_is_a_lost_connection(listener: Listener, said: bytes) -> None:
    connection = listener.grpc()
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.accept()
    peer.raw(said)
    with pytest.raises(ConnectionLost, match="does not speak HTTP/2"):
        await within(calling)
    await connection.close()
    # What is said to it, if anything, is not for h2, which has not begun.
    async with asyncio.timeout(_PATIENCE):
        while await peer._reader.read(1 << 16):
            pass


@pytest.mark.parametrize("said", [b"", b"HTTP", frame(SETTINGS, 0, 0)[:8]], ids=["nothing", "text", "half"])
async def test_a_server_that_hangs_up_before_it_has_greeted_is_a_lost_connection(
    listener: Listener, said: bytes
) -> None:
    connection = listener.grpc()
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.accept()
    peer.raw(said)
    peer.writer.write_eof()
    with pytest.raises(ConnectionLost):
        await within(calling)
    await connection.close()


async def test_a_server_that_greets_and_goes_away_is_a_lost_connection(listener: Listener) -> None:
    connection = listener.grpc()
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.accept()
    peer.raw(frame(SETTINGS, 0, 0) + frame(GOAWAY, 0, 0, bytes(8)))
    with pytest.raises(ConnectionLost):
        await within(calling)
    await connection.close()


async def test_settings_that_never_come_run_into_the_deadline(listener: Listener) -> None:
    connection = listener.grpc(connect_timeout=0.05)
    with pytest.raises(DeadlineExceeded) as caught:
        await within(connection.call(GetStatus(id="a")))
    assert "connection" in caught.value.what
    peer = await listener.accept()
    # The socket is not kept.
    await peer.until_closed()
    await connection.close()


async def test_a_ping_is_answered() -> None:
    async with talking() as (_, peer):
        peer.h2.ping(b"12345678")
        peer.flush()
        await peer.until(lambda: peer.of(h2.events.PingAckReceived))
        assert [event.ping_data for event in peer.of(h2.events.PingAckReceived)] == [b"12345678"]


async def test_a_server_that_is_silent_is_left() -> None:
    async with talking(keepalive_interval=0.01, keepalive_timeout=0.05) as (connection, _):
        call = await begun(connection)
        assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        await within(connection.gone)


async def test_a_server_that_answers_pings_is_not_left() -> None:
    async with talking(keepalive_interval=0.01) as (connection, peer):
        call = await begun(connection)
        await peer.until(lambda: len(peer.of(h2.events.PingReceived)) >= 3)
        assert len({bytes(event.ping_data) for event in peer.of(h2.events.PingReceived)}) >= 3
        await peer.answer(1, b"x")
        assert await rest_of(call) == ([b"x"], OK)


async def test_the_settings_of_a_client_say_how_often_the_server_is_asked(listener: Listener) -> None:
    connection = listener.grpc(keepalive_interval=0.01, keepalive_timeout=0.05)
    # The server answers no ping.
    stream, _ = await opened(connection, listener)
    with pytest.raises(ConnectionLost):
        await within(stream.receive())
    await stream.close()
    await connection.close()


# Calls that are given up


async def test_behind_a_cancelled_call_nothing_is_said_of_it() -> None:
    async with talking({"initial_window_size": 100}) as (connection, peer):
        peer.grants = False
        call = await connection.begin(PATH, ())
        writing = asyncio.create_task(call.write_last(bytes(1000)))
        await peer.until(lambda: len(peer.data(1)) == 100)
        call.cancel()
        call.cancel()
        with pytest.raises(CallEnded):
            await within(writing)
        # What the server says before it has heard.
        peer.raw(frame(WINDOW_UPDATE, 0, 1, (1000).to_bytes(4, "big")))
        peer.raw(frame(HEADERS, END_HEADERS, 1, RAW_HEADERS) + frame(DATA, 0, 1, message(b"late")))
        peer.raw(frame(HEADERS, END_HEADERS | END_STREAM, 1, RAW_OK))
        assert await peer.reset_codes(1) == [ErrorCode.CANCEL]
        assert peer.kinds(1)[-1] == RST_STREAM
        assert await rest_of(call) == (
            [],
            CallStatus(grpc.StatusCode.CANCELLED, "the call was cancelled by this client"),
        )
        assert connection.usable


async def test_headers_of_a_cancelled_call_are_decoded_all_the_same() -> None:
    """The next ones may refer to them."""
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        call.cancel()
        more = (b"something", b"that is put into the table")
        peer.headers(1, more)
        peer.trailers(1, 0, more)
        other = await begun(connection)
        await peer.until(lambda: peer.of(h2.events.RequestReceived, 3))
        peer.headers(3, more)
        peer.trailers(3, 5, more)
        status = await within(other.status())
        assert (status.code, status.metadata) == (
            grpc.StatusCode.NOT_FOUND,
            ((more[0].decode(), more[1].decode()),),
        )


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_call_that_is_cancelled_amid_a_message_disturbs_no_other(size: int) -> None:
    async with talking() as (connection, peer):
        first, second = await begun(connection), await begun(connection)
        await peer.requested(3)
        whole = frame(DATA, 0, 1, message(content(size)))
        wire = frame(HEADERS, END_HEADERS, 1, RAW_HEADERS) + whole[: 9 + 5 + size // 2]
        feed(connection, wire, itertools.repeat(1 << 20))
        first.cancel()
        wire = whole[9 + 5 + size // 2 :] + frame(HEADERS, END_HEADERS, 3, RAW_HEADERS)
        wire += frame(DATA, 0, 3, message(b"yes")) + frame(HEADERS, END_HEADERS | END_STREAM, 3, RAW_OK)
        feed(connection, wire, itertools.repeat(1 << 20))
        assert await rest_of(second) == ([b"yes"], OK)


async def test_a_call_given_up_before_its_first_message_leaves_no_trace() -> None:
    async with talking() as (connection, peer):
        call = await connection.begin(PATH, ())
        call.cancel()
        with pytest.raises(CallEnded):
            await call.write(b"x")
        assert await code_of(call) is grpc.StatusCode.CANCELLED
        await peer.looked_at()
        assert {found.stream for found in peer.frames()} == {0}
        # Its number is not missed.
        assert (await begun(connection)).number == 1


async def test_a_call_given_up_while_it_is_compressed_leaves_no_trace() -> None:
    async with talking(compress=True) as (connection, peer):
        call = await connection.begin(PATH, ())
        writing = asyncio.create_task(call.write_last(bytes(MEBIBYTE)))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(CallEnded):
            await within(writing)
        await peer.looked_at()
        assert {found.stream for found in peer.frames()} == {0}


async def test_a_call_given_up_while_the_connection_is_full_leaves_no_trace() -> None:
    async with talking({"initial_window_size": 1 << 30}) as (connection, peer):
        peer.grants = False
        full = asyncio.create_task(begun(connection, bytes(100_000)))
        await peer.until(lambda: len(peer.data(1)) == 65_535)
        call = await connection.begin(PATH, ())
        writing = asyncio.create_task(call.write_last(b"x"))
        await turns()
        call.cancel()
        with pytest.raises(CallEnded):
            await within(writing)
        peer.h2.increment_flow_control_window(100_000)
        peer.flush()
        await peer.requested(1)
        await within(full)
        await peer.looked_at()
        assert {found.stream for found in peer.frames()} == {0, 1}


async def test_a_unary_call_that_is_cancelled_is_reset(listener: Listener) -> None:
    connection = listener.grpc()
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.greet()
    await peer.requested(1)
    calling.cancel()
    await asyncio.wait([calling])
    assert await peer.reset_codes(1) == [ErrorCode.CANCEL]
    await connection.close()


async def test_a_unary_call_that_is_not_answered_is_reset(listener: Listener) -> None:
    connection = listener.grpc(answer_timeout=0.3)
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.greet()
    with pytest.raises(DeadlineExceeded) as caught:
        await within(calling)
    assert caught.value.what == "the answer to GetStatus"
    await peer.looked_at()
    assert set(peer.kinds(1)) <= {HEADERS, DATA, RST_STREAM}
    await connection.close()


@pytest.mark.parametrize("count", [0, 2])
async def test_a_unary_answer_is_one_message(listener: Listener, count: int) -> None:
    connection = listener.grpc()
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.greet()
    await peer.requested(1)
    await peer.answer(1, *[b""] * count)
    with pytest.raises(ProtocolError, match="not one message answers GetStatus"):
        await within(calling)
    await connection.close()


# Compression and what is refused


@pytest.mark.parametrize("size", [10, 1000, 100_000, 3 * MEBIBYTE])
@pytest.mark.parametrize(("encoding", "bits"), [(b"gzip", 31), (b"deflate", 15)])
async def test_compressed_answers_are_read(size: int, encoding: bytes, bits: int) -> None:
    data = b"text" * (size // 4)
    async with talking() as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1, (b"grpc-encoding", encoding))
        await peer.data_(1, message(zlib.compress(data, wbits=bits), 1) + message(b"as it is"))
        peer.trailers(1)
        assert await rest_of(call) == ([data, b"as it is"], OK)


async def test_requests_are_compressed_if_that_makes_them_smaller() -> None:
    requests = [b"", b"x", bytes(1000), content(1000), bytes(500_000)]
    async with talking(compress=True) as (connection, peer):
        call = await connection.begin(PATH, ())
        for data in requests:
            await within(call.write(data))
        await within(call.write_last(b""))
        assert dict(await peer.request(1))[b"grpc-encoding"] == b"gzip"
        sent, flags, found = await peer.requested(1), [], []
        while sent:
            size = int.from_bytes(sent[1:5], "big")
            flags.append(sent[0])
            found.append(gzip.decompress(sent[5 : 5 + size]) if sent[0] else sent[5 : 5 + size])
            sent = sent[5 + size :]
        assert flags == [0, 0, 1, 0, 1, 0]
        assert found == [*requests, b""]


async def test_an_option_makes_a_client_compress(listener: Listener) -> None:
    connection = listener.grpc(options={"compression": "true"})
    calling = asyncio.create_task(connection.call(GetStatus(id="a", token="a" * 200)))
    peer = await listener.greet()
    assert dict(await peer.request(1))[b"grpc-encoding"] == b"gzip"
    sent = await peer.requested(1)
    assert sent[0] == 1
    assert b"a" * 200 in gzip.decompress(sent[5:])
    await connection.close()
    with pytest.raises(ConnectionLost):
        await calling


REFUSED = [
    pytest.param(b"", message(bytes(1001)), grpc.StatusCode.RESOURCE_EXHAUSTED, id="too-large"),
    pytest.param(b"", b"\x00\xff\xff\xff\xff", grpc.StatusCode.RESOURCE_EXHAUSTED, id="far-too-large"),
    pytest.param(b"", message(b"x", 2), grpc.StatusCode.INTERNAL, id="flags"),
    pytest.param(b"gzip", message(b"what", 1), grpc.StatusCode.INTERNAL, id="not-gzip"),
    pytest.param(b"gzip", message(gzip.compress(b"x")[:-1], 1), grpc.StatusCode.INTERNAL, id="cut-gzip"),
    pytest.param(
        b"gzip", message(gzip.compress(bytes(1001)), 1), grpc.StatusCode.RESOURCE_EXHAUSTED, id="too-large-behind-gzip"
    ),
    pytest.param(b"snappy", message(b"x", 1), grpc.StatusCode.UNIMPLEMENTED, id="unknown-encoding"),
]


@pytest.mark.parametrize(("encoding", "wire", "code"), REFUSED)
async def test_what_is_refused_ends_the_call_behind_what_came_before(
    encoding: bytes, wire: bytes, code: grpc.StatusCode
) -> None:
    async with talking(max_message=1000) as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1, (b"grpc-encoding", encoding or b"identity"))
        await peer.data_(1, message(bytes(1000)) + wire + message(b"behind"))
        messages, status = await rest_of(call)
        assert (messages, status.code) == ([bytes(1000)], code)
        assert await peer.reset_codes(1) == [ErrorCode.CANCEL]
        other = await begun(connection)
        await peer.requested(3)
        await peer.answer(3, b"yes")
        assert await rest_of(other) == ([b"yes"], OK)


@pytest.mark.parametrize(("encoding", "wire", "code"), REFUSED)
async def test_what_is_refused_is_not_forgotten_when_the_server_has_ended_the_call_in_order(
    encoding: bytes, wire: bytes, code: grpc.StatusCode
) -> None:
    async with talking(max_message=1000) as (connection, peer):
        call = await begun(connection)
        await peer.requested(1)
        peer.headers(1, (b"grpc-encoding", encoding or b"identity"))
        await peer.data_(1, message(b"before") + wire)
        peer.trailers(1)
        await peer.looked_at()
        messages, status = await rest_of(call)
        assert (messages, status.code) == ([b"before"], code)


# Connections of a client


async def test_tasks_that_connect_at_the_same_time_share_one_connection(listener: Listener) -> None:
    connection = listener.grpc()
    tasks = [asyncio.create_task(connection.open(FOLLOW)) for _ in range(5)]
    peer = await listener.greet()
    streams = await within(asyncio.gather(*tasks))
    await peer.request(9)
    assert len(listener.peers) == 1
    for stream in streams:
        await stream.close()
    await connection.close()
    await peer.until_closed()


async def test_who_is_cancelled_leaves_the_connection_to_the_others(listener: Listener) -> None:
    connection = listener.grpc()
    tasks = [asyncio.create_task(connection.open(FOLLOW)) for _ in range(3)]
    peer = await listener.accept()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    assert tasks[0].cancelled()
    peer.begin()
    for task in tasks[1:]:
        stream = await within(task)
        await peer.request(3)
        await stream.close()
    assert len(listener.peers) == 1
    await connection.close()


async def test_a_connection_for_which_nobody_waited_is_there_for_the_next(listener: Listener) -> None:
    connection = listener.grpc()
    cancelled = asyncio.create_task(connection.open(FOLLOW))
    peer = await listener.accept()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    peer.begin()
    stream = await within(connection.open(FOLLOW))
    await peer.request(1)
    assert len(listener.peers) == 1
    await stream.close()
    await connection.close()


async def test_a_failure_for_which_nobody_waited_is_not_the_next_ones(listener: Listener) -> None:
    connection = listener.grpc()
    cancelled = asyncio.create_task(connection.open(FOLLOW))
    peer = await listener.accept()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    connecting = connection._connecting
    assert connecting is not None
    await peer.abort()
    await asyncio.wait([connecting])
    opening = asyncio.create_task(connection.open(FOLLOW))
    await turns()
    assert not opening.done() or opening.exception() is None
    peer = await listener.greet()
    stream = await within(opening)
    await peer.request(1)
    await stream.close()
    await connection.close()


async def test_closing_while_connecting_ends_who_waits_and_the_socket(listener: Listener) -> None:
    connection = listener.grpc()
    tasks = [asyncio.create_task(connection.call(GetStatus(id="a"))) for _ in range(2)]
    peer = await listener.accept()
    await within(connection.close())
    for task in tasks:
        with pytest.raises(ConnectionLost, match="closed by this client"):
            await within(task)
    await peer.until_closed()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await connection.call(GetStatus(id="a"))


async def test_closing_just_when_the_server_has_greeted_leaves_nothing(listener: Listener) -> None:
    connection = listener.grpc()
    cancelled = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.accept()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    connecting = connection._connecting
    assert connecting is not None
    peer.begin()
    await asyncio.wait([connecting])
    await within(connection.close())
    await peer.until_closed()


async def test_closing_while_calls_run_resets_them_and_can_be_repeated(listener: Listener) -> None:
    connection = listener.grpc()
    stream, peer = await opened(connection, listener)
    receiving = asyncio.create_task(stream.receive())
    calling = asyncio.create_task(connection.call(GetStatus(id="a")))
    await peer.requested(3)
    await within(asyncio.gather(connection.close(), connection.close()))
    for task in (receiving, calling):
        with pytest.raises(ConnectionLost, match="closed by this client"):
            await within(task)
    await within(connection.close())
    await stream.close()
    await peer.until_closed()
    for number in (1, 3):
        assert [found.payload for found in peer.frames(number)][-1] == ErrorCode.CANCEL.to_bytes(4, "big")
        assert peer.kinds(number).count(RST_STREAM) == 1


async def test_closing_tells_who_waits_for_a_turn_that_it_was_this_client(listener: Listener) -> None:
    connection = listener.grpc()
    first = asyncio.create_task(connection.call(GetStatus(id="a")))
    peer = await listener.greet(max_concurrent_streams=1)
    await peer.requested(1)
    waiting: list[asyncio.Task[Any]] = [
        asyncio.create_task(connection.open(FOLLOW)),
        asyncio.create_task(connection.call(GetStatus(id="a"))),
    ]
    await turns()
    await within(connection.close())
    found = await within(asyncio.gather(first, *waiting, return_exceptions=True))
    assert ["closed by this client" in str(error) for error in found] == [True, True, True]


async def test_closing_does_not_wait_for_ever_for_a_server_that_does_not_read(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http2_peer, "_LINGER", 0.05)
    async with connected(listener) as connection:
        peer = await listener.greet(initial_window_size=1 << 30)
        peer.h2.increment_flow_control_window(1 << 30)
        await peer.looked_at()
        call = await connection.begin(PATH, ())

        async def write() -> None:
            while True:
                await call.write(bytes(MEBIBYTE))

        writing = asyncio.create_task(write())
        await holds(lambda: connection.paused)
        connection.close()
        connection.close()
        with pytest.raises(CallEnded):
            await within(writing)
        await within(connection.gone)


async def test_who_sends_without_ever_waiting_lets_others_run() -> None:
    async with talking({"initial_window_size": 1 << 30}) as (connection, peer):
        call = await begun(connection, last=False)
        counted = 0

        async def count() -> None:
            nonlocal counted
            while True:
                counted += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await turns()
        before = counted
        for _ in range(640):
            await call.write(b"x")
        assert counted - before >= 9
        counting.cancel()
        await asyncio.wait([counting])
        await peer.until(lambda: len(peer.data(1)) == 5 + 640 * 6)
