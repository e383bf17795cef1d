"""A client of HTTP/2 by the library h2, and methods that it calls."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import h2.connection
import h2.events
import h2.settings
from h2.config import H2Configuration

from tailrace_impl_grpc._http2_server import Http2Server
from tailrace_impl_grpc._http2_stream import Parts
from tailrace_impl_grpc._options import GrpcServerOptions
from tailrace_server_api import TransportServerSettings

_PATIENCE = 20.0
"""Seconds after which a test that waits for nothing ends."""
Header = tuple[bytes, bytes]


def message(data: bytes, flags: int = 0) -> bytes:
    """Return a message with its prefix."""
    return struct.pack("!BL", flags, len(data)) + data


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Build a frame, sound or not."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a short header that touches no table."""
    assert max(len(name), len(value)) < 127
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def call_headers(path: str, *more: Header) -> list[Header]:
    """Return the headers of a call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", f"/test.Service/{path}".encode()),
        (b":authority", b"here"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]


def block(path: str, *more: Header) -> bytes:
    """Return the same as a block."""
    return b"".join(literal(name, value) for name, value in call_headers(path, *more))


class Service:
    """Methods, and what has become of their calls."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        """What :meth:`collect` was sent."""
        self.collected: list[int] = []
        """What :meth:`collect` has answered."""
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.changed = asyncio.Event()
        self.may_end = asyncio.Event()
        self.answer: bytes | Parts = b""
        """What :meth:`large` says."""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change of the counts."""
        async with asyncio.timeout(_PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def chat(self, requests: Any, context: Any) -> AsyncGenerator[bytes, None]:
        async for request in requests:
            yield request

    async def collect(self, requests: Any, context: Any) -> bytes:
        async for request in requests:
            self.messages.append(request)
            self.changed.set()
        self.collected.append(len(self.messages))
        self.changed.set()
        return b"%d" % len(self.messages)

    async def large(self, request: bytes, context: Any) -> bytes | Parts:
        return self.answer

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise ValueError("nobody's business")

    async def wait(self, requests: Any, context: Any) -> bytes:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.changed.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.changed.set()
        return b"done"

    async def early(self, requests: Any, context: Any) -> bytes:
        return b"early"

    def handlers(self) -> dict[str, Any]:
        """Return all methods by their names."""
        return {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Large": grpc.unary_unary_rpc_method_handler(self.large),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Wait": grpc.stream_unary_rpc_method_handler(self.wait),
            "Early": grpc.stream_unary_rpc_method_handler(self.early),
        }


@asynccontextmanager
async def serving(
    service: Service, *, max_calls: int = 100, compression: bool = False, **settings: Any
) -> AsyncIterator[tuple[Http2Server, int]]:
    """Run a server of the methods; yields it and its port."""
    options = GrpcServerOptions(compression=compression)
    server = Http2Server(TransportServerSettings(**settings), options, max_calls=max_calls)
    server.add_registered_method_handlers("test.Service", service.handlers())
    port = await server.bind()
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(None)


class Peer:
    """One connection. Takes what comes only while it waits for something."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, **values: int) -> None:
        self._reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding=None))
        codes = {getattr(h2.settings.SettingCodes, name.upper()): value for name, value in values.items()}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=codes)
        self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
        self.events: list[Any] = []
        self.grants = True
        """Whether what comes may come again."""
        self.closed = False

    # Sending

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Send bytes of which h2 knows nothing."""
        self.flush()
        self.writer.write(data)

    def begin(self, path: str, *more: Header, end: bool = False) -> int:
        """Begin a call."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, call_headers(path, *more), end_stream=end)
        self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False, size: int = 1 << 30) -> None:
        """Send bytes in frames of at most ``size``, as the windows let it."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, size)
            if room <= 0:
                await self.receive()
                assert not self.closed
                continue
            part, data = data[:room], data[room:]
            self.h2.send_data(stream, part, end_stream=end and not data)
            self.flush()

    async def call(self, path: str, *requests: bytes, headers: tuple[Header, ...] = ()) -> Response:
        """Call a method and wait for its end."""
        stream = self.begin(path, *headers)
        await self.send(stream, b"".join(map(message, requests)), end=True)
        return await self.response(stream)

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
        while not self.closed:
            await self.receive()

    def of(self, kind: type[Any], stream: int | None = None) -> list[Any]:
        """Return the events of a kind, perhaps of one stream."""
        return [
            event for event in self.events if isinstance(event, kind) and (stream is None or event.stream_id == stream)
        ]

    def data(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(h2.events.DataReceived, stream))

    async def response(self, stream: int) -> Response:
        """Wait for the end of a call."""
        await self.until(lambda: self.of(h2.events.StreamEnded, stream) or self.of(h2.events.StreamReset, stream))
        return Response(self, stream)

    async def reset_code(self, stream: int) -> int:
        """Wait for the reset of a stream."""
        await self.until(lambda: self.of(h2.events.StreamReset, stream))
        return int(self.of(h2.events.StreamReset, stream)[0].error_code)

    async def goodbye(self) -> int:
        """Wait for the end of the connection; returns what it said."""
        await self.until_closed()
        [event] = self.of(h2.events.ConnectionTerminated)
        return int(event.error_code)

    async def answers(self) -> None:
        """Wait until all that was sent was looked at."""
        before = len(self.of(h2.events.PingAckReceived))
        self.h2.ping(b"look now")
        self.flush()
        await self.until(lambda: len(self.of(h2.events.PingAckReceived)) > before)


class Response:
    """What was answered to a call."""

    def __init__(self, peer: Peer, stream: int) -> None:
        first = peer.of(h2.events.ResponseReceived, stream)
        last = peer.of(h2.events.TrailersReceived, stream) or first
        self.first: dict[bytes, bytes] = dict(first[0].headers) if first else {}
        self.last: dict[bytes, bytes] = dict(last[0].headers) if last else {}
        self.data = peer.data(stream)
        self.resets = [int(event.error_code) for event in peer.of(h2.events.StreamReset, stream)]

    @property
    def status(self) -> int:
        return int(self.last[b"grpc-status"])

    @property
    def details(self) -> str:
        return self.last.get(b"grpc-message", b"").decode()

    def messages(self) -> list[tuple[int, bytes]]:
        """Return flags and content of each message."""
        found, data = [], self.data
        while data:
            flags, size = struct.unpack_from("!BL", data)
            assert len(data) >= 5 + size
            found.append((flags, data[5 : 5 + size]))
            data = data[5 + size :]
        return found


@asynccontextmanager
async def connected(port: int, *, begin: bool = True, **values: int) -> AsyncIterator[Peer]:
    """Connect; ``values`` are the settings of this side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = Peer(reader, writer, **values)
    if begin:
        peer.h2.initiate_connection()
        peer.flush()
        await peer.until(lambda: peer.of(h2.events.RemoteSettingsChanged))
    try:
        yield peer
    finally:
        writer.transport.abort()
        await asyncio.wait([asyncio.ensure_future(_closed(writer))])


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except ConnectionError:
        return
