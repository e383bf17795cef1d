"""How the client's WebSocket is opened, who reads its frames then, and what it sends, whatever parts it is made of."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import pytest
from impl_websocket_client_wire import ClientWire, Heard
from impl_websocket_frames import unmasked
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import ServerConnection, serve
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol
from websockets.uri import parse_uri
from websockets.utils import accept_key

from tailrace_common_api import KIBIBYTE, MEBIBYTE
from tailrace_impl_websocket import _client_frames
from tailrace_impl_websocket._client_connection import LibraryFrames, OpeningConnection
from tailrace_impl_websocket._client_frames import ClientFrameProtocol, ClientFrames
from tailrace_impl_websocket._frame_layout import BINARY, TEXT, apply_mask

HEADER = bytes(range(32))
PAYLOAD = bytes(range(256)) * 4096


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The masks that are used, in order; one of a frame in two parts stands there twice."""
    used: list[bytes] = []

    def recorded(data: bytes | memoryview, mask: bytes) -> bytes:
        used.append(mask)
        return apply_mask(data, mask)

    monkeypatch.setattr(_client_frames, "apply_mask", recorded)
    return used


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was drawn from the source of secrets: none of it can be foreseen."""
    draws: list[bytes] = []
    real = secrets.token_bytes

    def token_bytes(size: int) -> bytes:
        draws.append(real(size))
        return draws[-1]

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    return draws


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


class Queue:
    """Who takes messages as they arrive, for a test that asks for them."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self.next = self.messages.get

    def binary_received(self, data: bytes | memoryview) -> None:
        self.messages.put_nowait(bytes(data))

    def text_received(self, text: str) -> None:
        self.messages.put_nowait(text)

    def disconnected(self) -> None:
        self.messages.put_nowait(None)


@asynccontextmanager
async def echoed(compression: str | None = None) -> AsyncIterator[tuple[ClientFrames, Queue]]:
    """Connect to a server that sends everything back."""
    async with serve(echo, "127.0.0.1", 0, max_size=None, compression=compression) as server:
        port = server.sockets[0].getsockname()[1]
        client = await connect_websocket(
            f"ws://127.0.0.1:{port}",
            create_connection=OpeningConnection,
            compression=compression,
            max_size=None,
            proxy=None,
        )
        assert isinstance(client, OpeningConnection)
        frames, queue = client.frames, Queue()
        assert isinstance(frames, LibraryFrames if compression else ClientFrameProtocol)
        try:
            frames.hand_to(queue)
            yield frames, queue
        finally:
            await frames.close()
            assert await queue.next() is None


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("header", [b"", HEADER, HEADER + b"x", HEADER + bytes(24)], ids=len)
@pytest.mark.parametrize("size", [0, 1, 100, 16_383, 16_384, 16_385, 65_535, 65_536, 1 << 20])
async def test_messages_in_two_parts_arrive_as_one(size: int, header: bytes, compression: str | None) -> None:
    async with echoed(compression) as (client, queue):
        for payload in (PAYLOAD[:size], memoryview(bytearray(PAYLOAD))[:size]):
            await client.send_parts(header, payload)
            await client.send_text("between")
            assert await queue.next() == header + PAYLOAD[:size]
            assert await queue.next() == "between"


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.usefixtures("errors_are_logged")
async def test_defect_of_who_takes_messages_is_logged_and_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compression: str | None
) -> None:
    def defect(queue: Queue, text: str) -> None:
        raise LookupError("defect")

    async with echoed(compression) as (client, queue):
        monkeypatch.setattr(Queue, "text_received", defect)
        await client.send_text("between")
        assert await queue.next() is None
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]
        # That was the end, for which everyone asks here.
        queue.disconnected()


async def test_each_frame_has_a_mask_of_its_own(masks: list[bytes], drawn: list[bytes]) -> None:
    # More frames than masks are drawn at once.
    rounds = 200
    async with echoed() as (client, queue):
        masks.clear()
        drawn.clear()
        for _ in range(rounds):
            await client.send_parts(HEADER, PAYLOAD[:20_000])
            await client.send_text("between")
            assert await queue.next() == HEADER + PAYLOAD[:20_000]
            assert await queue.next() == "between"
    of_frames = [mask for mask, _ in groupby(masks)]
    assert len(of_frames) > 2 * rounds
    assert all(len(mask) == 4 for mask in of_frames)
    # Each is what comes next of what was drawn, and so is used once.
    assert b"".join(drawn).startswith(b"".join(of_frames))


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_message_that_waits_for_no_room_arrives(compression: str | None) -> None:
    async with echoed(compression) as (client, queue):
        client.put_text("put")
        assert await queue.next() == "put"
        await client.close()
        client.put_text("late")
    assert queue.messages.empty()


async def test_closing_does_not_wait_for_a_server_that_reads_nothing() -> None:
    async with echoed("deflate") as (client, _):
        assert isinstance(client, LibraryFrames)
        connection = client._connection
        connection.close_timeout = 0.01
        connection.pause_writing()
        client.put_text("last words")
        await client.close()
        assert not client._putting


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_connection_that_is_closed_sends_nothing(compression: str | None) -> None:
    async with echoed(compression) as (client, _):
        assert [client.is_open] == [True]
        await client.close()
        assert [client.is_open] == [False]
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await client.send_parts(HEADER, PAYLOAD)
            with pytest.raises(ConnectionResetError):
                await client.send_text("late")
            await client.close()


# The handshake, and what arrives with it

FRAMES = (
    unmasked(TEXT, b"hello")
    + unmasked(BINARY, b"")
    + unmasked(BINARY, bytes(200))
    + unmasked(BINARY, b"a\r\n\r\nb")
    + unmasked(TEXT, b"bye")
)
MESSAGES: list[str | bytes] = ["hello", b"", bytes(200), b"a\r\n\r\nb", "bye"]


class Opening:
    """A handshake over a wire."""

    def __init__(self) -> None:
        self.wire = ClientWire()
        protocol = ClientProtocol(parse_uri("ws://x/"), subprotocols=[Subprotocol("tailrace.v1")])
        self.connection = OpeningConnection(protocol, ping_interval=None)
        self.wire.protocol = self.connection
        self.connection.connection_made(self.wire)
        self.handshake = asyncio.create_task(self.connection.handshake())

    async def answer(self, *lines: str) -> bytes:
        """Return the answer that accepts the connection."""
        await self.wire.until(lambda wire: bool(wire.written))
        request = b"".join(self.wire.written).decode()
        key = next(line.split(": ")[1] for line in request.splitlines() if line.startswith("Sec-WebSocket-Key"))
        head = (
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(key)}",
            "Sec-WebSocket-Protocol: tailrace.v1",
            *lines,
        )
        return "\r\n".join((*head, "", "")).encode()

    def lose(self) -> None:
        """Let the connection end, whoever has it."""
        protocol: Any = self.wire.get_protocol()
        protocol.connection_lost(None)


async def test_whatever_arrives_with_the_answer_is_there() -> None:
    size = len(await first_answer()) + len(FRAMES)
    for cut in range(1, size):
        opening = Opening()
        data = await opening.answer() + FRAMES
        assert len(data) == size
        opening.wire.feed(data[:cut])
        opening.wire.feed(data[cut:])
        await opening.handshake
        heard = Heard()
        assert opening.connection.subprotocol == "tailrace.v1"
        frames = opening.connection.frames
        assert isinstance(frames, ClientFrameProtocol)
        assert opening.wire.protocol is frames
        frames.hand_to(heard)
        assert heard.messages == MESSAGES, cut
        assert opening.wire.reading
        opening.lose()
        assert heard.left


async def first_answer() -> bytes:
    opening = Opening()
    answer = await opening.answer()
    opening.wire.feed(answer)
    await opening.handshake
    opening.lose()
    return answer


async def test_answer_may_come_byte_by_byte() -> None:
    opening = Opening()
    data = await opening.answer() + FRAMES
    for index in range(len(data)):
        opening.wire.feed(data[index : index + 1])
    await opening.handshake
    heard = Heard()
    opening.connection.frames.hand_to(heard)
    assert heard.messages == MESSAGES
    opening.lose()


@pytest.mark.parametrize("size", [1, 7, 60, 10_000])
async def test_body_of_a_refusal_is_read(size: int) -> None:
    opening = Opening()
    await opening.answer()
    body = b"one\r\n\r\ntwo\r\n\r\n"
    data = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for start in range(0, len(data), size):
        opening.wire.feed(data[start : start + size])
    with pytest.raises(InvalidStatus) as caught:
        await opening.handshake
    assert caught.value.response.status_code == 503
    assert caught.value.response.body == body
    assert opening.wire.protocol is opening.connection
    opening.lose()


@pytest.mark.parametrize(
    "change",
    [
        (b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"HTTP/1.1 101", b"SSH-2.0 101"),
        # An extension that nobody asked for.
        (b"Connection: Upgrade", b"Connection: Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate"),
    ],
)
async def test_answer_that_does_not_open_is_the_library_s_to_refuse(change: tuple[bytes, bytes]) -> None:
    opening = Opening()
    answer = await opening.answer()
    assert change[0] in answer
    opening.wire.feed(answer.replace(*change) + FRAMES)
    assert opening.wire.protocol is opening.connection
    opening.lose()
    with pytest.raises(InvalidHandshake):
        await opening.handshake


async def test_connection_that_ends_with_its_answer_has_no_first_message() -> None:
    opening = Opening()
    opening.wire.feed(await opening.answer())
    opening.lose()
    await opening.handshake
    frames = opening.connection.frames
    assert not frames.is_open
    assert await frames.first() is None
    assert frames.end == "closed with code 1006"


async def test_library_that_opens_later_keeps_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has seen what follows the answer by then."""
    opening = Opening()
    answer = await opening.answer()
    held = bytearray()
    real = ClientConnection.data_received

    def late(connection: ClientConnection, data: bytes) -> None:
        held.extend(data)
        if len(held) > len(answer):
            real(connection, bytes(held))
            held.clear()

    monkeypatch.setattr(ClientConnection, "data_received", late)
    opening.wire.feed(answer)
    opening.wire.feed(FRAMES)
    await opening.handshake
    frames = opening.connection.frames
    assert isinstance(frames, LibraryFrames)
    assert [await frames.first() for _ in MESSAGES] == MESSAGES
    opening.lose()


async def test_large_messages_with_the_answer_are_there() -> None:
    sent = unmasked(BINARY, bytes(MEBIBYTE)) + unmasked(TEXT, b"x" * 40 * KIBIBYTE)
    opening = Opening()
    opening.wire.feed(await opening.answer() + sent[:300_000])
    opening.wire.feed(sent[300_000:])
    await opening.handshake
    heard = Heard()
    opening.connection.frames.hand_to(heard)
    assert heard.messages == [bytes(MEBIBYTE), "x" * 40 * KIBIBYTE]
    opening.lose()
