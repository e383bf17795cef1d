"""The client against real servers, and against ones that break the protocol."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from impl_websocket_peer import ID, LIMITS, STATUS, Peer, connection, scripted
from impl_websocket_protocols import masked
from impl_websocket_server import Running, frame, head, running_server
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response as HttpResponse

from tailrace_common_api import (
    SERVER_TRANSPORTS,
    ConnectionLost,
    ContextEvent,
    ContextEventKind,
    DeadlineExceeded,
    FromOffset,
    GoingAway,
    MessageTooLarge,
    Metadata,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    QuotaExceeded,
    ResourceState,
    Status,
    Unauthenticated,
    Unsupported,
    find_transport,
)
from tailrace_impl_common import ConnectedClient, chunk_hash
from tailrace_impl_common.messages import (
    Abort,
    Checkpoint,
    Chunk,
    End,
    Finish,
    Finished,
    Follow,
    GetStatus,
    Opened,
    OpenUpload,
    Read,
    Started,
    Watch,
    WatchContext,
    Watched,
    Window,
)
from tailrace_impl_websocket import WebSocketConnection, WebSocketServer, _client, connect
from tailrace_impl_websocket._client_connection import OpeningConnection
from tailrace_impl_websocket._client_streams import Link
from tailrace_impl_websocket._codec import Failure, encode_from_server
from tailrace_impl_websocket._frame_layout import BINARY

# Against a real server


def test_entry_points_name_client_and_server() -> None:
    assert find_transport("ws") is connect
    assert find_transport("wss") is connect
    assert find_transport("ws", group=SERVER_TRANSPORTS) is WebSocketServer


async def test_client_connects_when_it_is_first_used() -> None:
    client = connect("ws://localhost:1")
    assert isinstance(client, ConnectedClient)
    await client.close()


async def test_upload_follow_and_read(server: Running) -> None:
    async with connect(server.ws) as client:
        async with (
            client.upload("log.txt", content_type="text/plain", lines=True) as upload,
            client.open(upload.reference) as resource,
        ):
            await upload.write(b"one\ntwo")
            await upload.flush()
            assert await resource.read(0, 3) == b"one"
        assert upload.status.state is ResourceState.COMPLETED
        async with client.open(upload.reference) as resource:
            assert b"".join([bytes(data) async for data in resource.follow()]) == b"one\ntwo"
            assert [status.state async for status in resource.statuses()] == [ResourceState.COMPLETED]


async def test_one_connection_carries_everything(server: Running) -> None:
    async with connection(server.ws) as made:
        await asyncio.gather(*(unknown(made) for _ in range(50)))
        links = {id(await made._connected()) for _ in range(3)}
        assert len(links) == 1


async def unknown(made: WebSocketConnection) -> None:
    with pytest.raises(NotFound):
        await made.call(GetStatus(id=ID))


async def test_reader_that_takes_nothing_holds_nobody_up(server: Running) -> None:
    data = bytes(1024 * 1024) * 3
    resource = await server.upload(data[:1024])
    for window in (0, 65536):
        async with (
            connection(server.ws) as made,
            await made.open(Follow(id=resource, start=FromOffset(0), window=window)) as idle,
        ):
            for _ in range(20):
                await unknown(made)
            assert isinstance(await idle.receive(), Started)


async def test_request_without_a_window_gets_one_that_is_renewed() -> None:
    async with running_server(chunk_size=65536, manager_options={"max_download_window": 131072}) as server:
        data = bytes(range(256)) * 4096
        resource = await server.upload(data)
        async with connection(server.ws) as made, await made.open(Read(id=resource)) as stream:
            assert isinstance(await stream.receive(), Started)
            received = bytearray()
            while isinstance(message := await stream.receive(), Chunk):
                received += message.data
            assert received == data
            assert isinstance(message, End)
            assert await stream.receive() is None


async def test_closed_stream_is_cancelled_at_the_server(server: Running) -> None:
    resource = await server.upload(b"", finish=False)
    async with running_server(manager_options={"max_requests": 1}) as small:
        resource = await small.upload(b"", finish=False)
        async with connection(small.ws) as made:
            for _ in range(5):
                stream = await made.open(Watch(id=resource))
                assert isinstance(await stream.receive(), Status)
                with pytest.raises(Overloaded):
                    await made.call(GetStatus(id=resource))
                await stream.close()
                await stream.close()
                with pytest.raises(ConnectionLost):
                    await stream.receive()
                with pytest.raises(ConnectionLost):
                    await stream.send(Window(1))
            assert isinstance(await made.call(GetStatus(id=resource)), Status)


async def test_lost_connection_ends_every_stream_and_the_next_request_makes_another(server: Running) -> None:
    resource = await server.upload(b"", finish=False)
    async with connection(server.ws) as made:
        streams = [await made.open(Watch(id=resource)) for _ in range(3)]
        for stream in streams:
            assert isinstance(await stream.receive(), Status)
        (await made._connected())._websocket.transport.abort()
        for stream in streams:
            with pytest.raises(ConnectionLost, match=server.endpoint):
                await stream.receive()
            with pytest.raises(ConnectionLost):
                await stream.send(Window(1))
            await stream.close()
        assert isinstance(await made.call(GetStatus(id=resource)), Status)


async def test_closing_server_says_so() -> None:
    async with running_server() as server:
        resource = await server.upload(b"", finish=False)
        async with connection(server.ws) as made, await made.open(Watch(id=resource)) as stream:
            assert isinstance(await stream.receive(), Status)
            await server.transport.close(1.0)
            with pytest.raises(GoingAway):
                await stream.receive()
            with pytest.raises(ConnectionLost, match="cannot be reached"):
                await made.call(GetStatus(id=resource))


async def test_closed_connection_takes_no_requests(server: Running) -> None:
    async with connection(server.ws) as made:
        stream = await made.open(Watch(id=await server.upload(b"", finish=False)))
        assert isinstance(await stream.receive(), Status)
        await made.close()
        with pytest.raises(ConnectionLost):
            await stream.receive()
        with pytest.raises(ConnectionLost):
            await made.open(Watch(id=ID))
        await made.close()


async def test_request_that_is_too_large_fails_alone(server: Running) -> None:
    async with connection(server.ws) as made:
        with pytest.raises(MessageTooLarge):
            await made.call(GetStatus(id="0" * (1 << 20)))
        await unknown(made)


async def test_number_of_running_request_is_not_taken_twice(server: Running) -> None:
    resource = await server.upload(b"", finish=False)
    async with connection(server.ws) as made:
        running = await made.open(Watch(id=resource))
        # As after four thousand million requests.
        (await made._connected())._last = 2**32 - 1
        for _ in range(3):
            await unknown(made)
        assert isinstance(await running.receive(), Status)


# Against servers that do what they should not


async def test_requests_that_come_together_share_one_connection() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.hello()
        while True:
            await peer.say((await peer.hear())["request"], STATUS)

    async with scripted(script) as server, connection(server.url) as made:
        answers = await asyncio.gather(*(made.call(GetStatus(id=ID)) for _ in range(20)))
        assert len(answers) == 20
        assert connections == 1


async def test_cancelled_caller_does_not_end_the_connecting_of_others() -> None:
    greet = asyncio.Event()

    async def script(peer: Peer) -> None:
        await greet.wait()
        await peer.hello()
        await peer.say((await peer.hear())["request"], STATUS)

    async with scripted(script) as server, connection(server.url) as made:
        first = asyncio.ensure_future(made.call(GetStatus(id=ID)))
        second = asyncio.ensure_future(made.call(GetStatus(id=ID)))
        await asyncio.sleep(0)
        first.cancel()
        greet.set()
        assert isinstance(await second, Status)
        assert first.cancelled()


async def test_chunks_beyond_the_window_end_their_stream_only() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, Started(offset=0, end=None, line=None, status=STATUS, limits=LIMITS))
        # The second overdraws, which one chunk may.
        for offset in (0, 600, 1200):
            await peer.websocket.send(frame(number, offset, bytes(600), b"p" * 8))
        # The cancellation waits for nobody, and nobody for it.
        heard = {message["type"]: message["request"] for message in [await peer.hear(), await peer.hear()]}
        assert heard["cancel"] == number
        await peer.say(heard["get_status"], STATUS)

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Follow(id=ID, start=FromOffset(0), window=1000))
        assert isinstance(await stream.receive(), Started)
        assert isinstance(await stream.receive(), Chunk)
        assert isinstance(await stream.receive(), Chunk)
        with pytest.raises(ProtocolError, match="window"):
            await stream.receive()
        assert isinstance(await made.call(GetStatus(id=ID)), Status)
        await stream.close()


async def test_granted_window_is_counted_from_the_first_byte() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, Started(offset=5000, end=None, line=None, status=STATUS, limits=LIMITS))
        await peer.websocket.send(frame(number, 5000, bytes(600)))
        await peer.websocket.send(frame(number, 5600, bytes(600), b"p" * 8))
        assert (await peer.hear())["until"] == 6300
        await peer.websocket.send(frame(number, 6200, bytes(600), b"p" * 8))
        await peer.websocket.send(frame(number, 6800, bytes(600), b"p" * 8))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Follow(id=ID, start=FromOffset(5000), window=1000))
        for expected in (Started, Chunk, Chunk):
            assert isinstance(await stream.receive(), expected)
        await stream.send(Window(6300))
        assert isinstance(await stream.receive(), Chunk)
        with pytest.raises(ProtocolError, match="window"):
            await stream.receive()


async def test_flood_of_control_messages_ends_its_stream() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        for size in range(5000):
            await peer.say(number, Checkpoint(size, 0, bytes(16)))
            await peer.say(number, Window(size))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(OpenUpload(metadata=Metadata(name="x")))
        await server.everything_arrived()

        async def receive_all() -> None:
            while True:
                await stream.receive()

        with pytest.raises(ProtocolError, match="nobody asked for"):
            await receive_all()


async def test_slow_watcher_of_a_context_misses_the_oldest_events() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        for sequence in range(1, 10_000):
            await peer.say(number, event(sequence, ContextEventKind.CREATED))
        await peer.say(number, event(10_000, ContextEventKind.CLOSED))
        await peer.say(number, Watched())

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(WatchContext(id=ID))
        await server.everything_arrived()
        received = []
        while isinstance(message := await stream.receive(), ContextEvent):
            received.append(message.sequence)
        assert isinstance(message, Watched)
        assert 1 < len(received) < 10_000
        assert received == list(range(received[0], 10_001))
        assert await stream.receive() is None


def event(sequence: int, kind: ContextEventKind) -> ContextEvent:
    return ContextEvent(sequence=sequence, at=0.0, kind=kind, id=None, state=None, size=None, code=None, message=None)


async def test_newest_status_replaces_those_that_were_not_taken() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        for version in range(1, 10_000):
            await peer.say(number, replace_version(version))
        await peer.say(number, Watched())

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Watch(id=ID))
        await server.everything_arrived()
        received = []
        while isinstance(message := await stream.receive(), Status):
            received.append(message.version)
        assert received == sorted(received)
        assert received[-1] == 9999
        assert len(received) <= 1
        assert isinstance(message, Watched)


def replace_version(version: int) -> Status:
    return replace(STATUS, version=version)


async def test_upload_conversation() -> None:
    heard: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.hello()
        heard.append(await peer.hear())
        opened = Opened(
            status=STATUS, token="t", epoch=1, offset=0, newlines=0, head=bytes(16), until=4096, limits=LIMITS
        )
        await peer.say(1, opened)
        heard.extend([await peer.hear() for _ in range(3)])
        await peer.say(1, Finished(None))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(OpenUpload(metadata=Metadata(name="x")))
        opened = await stream.receive()
        assert isinstance(opened, Opened)
        assert opened.limits == LIMITS
        await stream.send(Chunk(0, memoryview(b"data"), chunk_hash(b"data"), b""))
        await stream.send(Finish(4, bytes.fromhex(head(b"data"))))
        await stream.send(Abort("changed my mind"))
        assert await stream.receive() == Finished(None)
        assert await stream.receive() is None
        with pytest.raises(ConnectionLost):
            await stream.send(Abort("again"))
        await stream.close()
    assert [heard[0]["type"], heard[1], heard[2]["head"], heard[3]["reason"]] == [
        "open_upload",
        frame(1, 0, b"data"),
        head(b"data"),
        "changed my mind",
    ]


async def test_error_of_a_request_comes_behind_what_was_said_before() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.hear()
        await peer.say(1, Checkpoint(7, 0, bytes(16)))
        await peer.say(1, Failure(QuotaExceeded(limit="bytes", maximum=1, actual=2)))
        await peer.say(1, Checkpoint(8, 0, bytes(16)))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(OpenUpload(metadata=Metadata(name="x")))
        await server.everything_arrived()
        assert await stream.receive() == Checkpoint(7, 0, bytes(16))
        for _ in range(2):
            with pytest.raises(QuotaExceeded) as caught:
                await stream.receive()
            assert caught.value.actual == 2
        with pytest.raises(QuotaExceeded):
            await stream.send(Abort("too late"))


@pytest.mark.parametrize(
    "answer",
    [
        '{"type":"status","request":1}',
        '{"type":"teleport","request":1}',
        '{"type":"checkpoint","request":1,"size":-1,"newlines":0,"head":""}',
        '{"type":"done","request":1}',
    ],
)
async def test_answer_that_is_none_fails_its_request_only(answer: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.hear()
        await peer.websocket.send(answer)
        while (message := await peer.hear())["type"] == "cancel":
            pass
        await peer.say(message["request"], STATUS)

    async with scripted(script) as server, connect(server.url) as client:
        with pytest.raises(ProtocolError):
            await client.status(ID)
        assert await client.status(ID) == STATUS


@pytest.mark.parametrize("message", ["{", '{"type":"status"}', b"\x01", b"\x07" * 50, '{"type":"hello"}'])
async def test_server_that_cannot_be_understood_is_left(message: str | bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.hear()
        await peer.websocket.send(message)

    async with scripted(script) as server, connection(server.url) as made:
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await made.call(GetStatus(id=ID))


@pytest.mark.parametrize(
    ("sent", "code", "problem"),
    [
        (masked(BINARY, bytes(40)), 1002, "incorrect masking"),
        (b"\x82\x7f" + (1 << 40).to_bytes(8, "big"), 1009, "1099511627776 bytes exceed the limit of"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", 1002, "reserved bits must be 0"),
    ],
    ids=["masked", "far too large", "garbage"],
)
async def test_frames_that_cannot_be_read_lose_the_connection_and_the_next_request_makes_another(
    sent: bytes, code: int, problem: str
) -> None:
    codes: list[int | None] = []

    async def script(peer: Peer) -> None:
        await peer.hello()
        request = (await peer.hear())["request"]
        if codes:
            await peer.say(request, STATUS)
            return
        peer.websocket.transport.write(sent)
        await peer.websocket.wait_closed()
        codes.append(peer.websocket.close_code)

    async with scripted(script) as server, connection(server.url) as made:
        with pytest.raises(ConnectionLost, match=f"its frames cannot be read: .*{problem}"):
            await made.call(GetStatus(id=ID))
        assert await made.call(GetStatus(id=ID)) == STATUS
        assert codes == [code]


async def test_chunk_in_fragments_with_pings_between_them_is_one() -> None:
    data = bytes(range(256)) * 1024

    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, Started(offset=0, end=None, line=None, status=STATUS, limits=LIMITS))

        async def fragments() -> AsyncIterator[bytes]:
            sent = frame(number, 0, data)
            for start in range(0, len(sent), 50_000):
                yield sent[start : start + 50_000]
                await (await peer.websocket.ping())

        await peer.websocket.send(fragments())

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Read(id=ID))
        assert isinstance(await stream.receive(), Started)
        chunk = await stream.receive()
        assert isinstance(chunk, Chunk)
        assert (chunk.offset, chunk.data, chunk.hash) == (0, data, chunk_hash(data))


@pytest.mark.parametrize("kept", [False, True])
async def test_chunks_stay_what_they_are_while_others_arrive(kept: bool) -> None:
    data = [bytes([number]) * (1 << 20) for number in range(12)]

    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, Started(offset=0, end=None, line=None, status=STATUS, limits=LIMITS))
        for index, each in enumerate(data):
            await peer.websocket.send(frame(number, index << 20, each, b"p" * 8 if index else b""))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Read(id=ID, window=1 << 30))
        assert isinstance(await stream.receive(), Started)
        await server.everything_arrived()
        received = []
        for each in data:
            chunk = await stream.receive()
            assert isinstance(chunk, Chunk)
            assert chunk.data == each
            if kept:
                received.append(chunk.data)
        assert received == (data if kept else [])


async def test_error_of_the_connection_is_what_every_request_gets() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        for _ in range(2):
            await peer.hear()
        await peer.say(None, Failure(GoingAway(retry_after=3.0)))
        await peer.websocket.close(1001)

    async with scripted(script) as server, connection(server.url) as made:
        answers = await asyncio.gather(made.call(GetStatus(id=ID)), made.call(GetStatus(id=ID)), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, GoingAway)
            assert answer.retry_after == 3.0


# Connecting


async def refused(url: str, error: type[Exception], match: str | None = None, **settings: Any) -> None:
    async with connection(url, **settings) as made:
        for _ in range(2):
            with pytest.raises(error, match=match):
                await made.call(GetStatus(id=ID))


async def test_nobody_listens_is_told_in_the_words_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}"
    async with connection(url) as made:
        with pytest.raises(ConnectionLost) as caught:
            await made.call(GetStatus(id=ID))
    assert caught.value.message == f"{made.address} cannot be reached: Connection refused"


async def test_nobody_listens() -> None:
    async with scripted(Peer.hello) as server:
        pass
    await refused(server.url, ConnectionLost, "cannot be reached")


async def test_server_without_the_subprotocol() -> None:
    async with scripted(Peer.hello, subprotocols=None) as server:
        await refused(server.url, Unsupported, "does not speak tailrace.v1")


async def test_server_of_something_else(server: Running) -> None:
    await refused(f"{server.ws}/elsewhere", ConnectionLost, "HTTP status 403")


async def test_server_that_speaks_no_websocket() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"220 mail.example.org ESMTP\r\n")
            await writer.drain()
            await reader.read()
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await refused(f"ws://127.0.0.1:{port}", ConnectionLost, "no Tailrace server")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switching"])
async def test_connection_that_ends_within_the_handshake(answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        await refused(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", ConnectionLost)


async def test_connection_that_is_lost_before_the_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = OpeningConnection.handshake

    async def handshake(self: OpeningConnection, *arguments: Any) -> None:
        self.transport.abort()
        await self.wait_closed()
        await real(self, *arguments)

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(OpeningConnection, "handshake", handshake)
    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        await refused(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", ConnectionLost, "no Tailrace server")


async def test_server_that_refuses_with_an_error() -> None:
    def refuse(websocket: ServerConnection, request: HttpRequest) -> HttpResponse:
        error = Overloaded(what="everything", retry_after=2.0)
        body = json.dumps({"code": error.code, "message": error.message, "details": error.details()})
        return websocket.respond(HTTPStatus.SERVICE_UNAVAILABLE, body)

    async with scripted(Peer.hello, process_request=refuse) as server:
        await refused(server.url, Overloaded, "everything")


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (encode_from_server(None, Failure(Overloaded(what="everything", retry_after=2.0))), Overloaded),
        # An error of the system by its other base, and yet the server's.
        (encode_from_server(None, Failure(Unauthenticated("who is there?"))), Unauthenticated),
        (encode_from_server(None, Failure(PermissionDenied("not here"))), PermissionDenied),
        ('{"type":"hello","protocol":2}', Unsupported),
        ('{"type":"pong"}', ProtocolError),
        ("{", ProtocolError),
        (b"\x01" * 50, ProtocolError),
    ],
    ids=["error", "nobody", "not allowed", "version", "no hello", "no JSON", "binary"],
)
async def test_first_message_that_is_no_hello(first: str | bytes, error: type[Exception]) -> None:
    async def script(peer: Peer) -> None:
        await peer.websocket.send(first)

    async with scripted(script) as server:
        await refused(server.url, error)


async def test_connection_that_ends_before_the_hello_says_how() -> None:
    async def script(peer: Peer) -> None:
        await peer.websocket.close(1013, "later")

    how = r"^\S+ is no Tailrace server over WebSocket: closed with code 1013, 'later'$"
    async with scripted(script) as server:
        await refused(server.url, ConnectionLost, how)


@pytest.mark.parametrize("location", ["http://localhost/login", "ws://[", "ws:///", "ws://localhost:99999/"])
async def test_redirect_to_what_is_no_websocket(location: str) -> None:
    def redirect(websocket: ServerConnection, request: HttpRequest) -> HttpResponse:
        answer = websocket.respond(HTTPStatus.FOUND, "elsewhere")
        answer.headers["Location"] = location
        return answer

    async with scripted(Peer.hello, process_request=redirect) as server:
        await refused(server.url, ConnectionLost)


async def test_redirect_to_another_server_takes_no_token_there() -> None:
    shown: list[str | None] = []

    def note(websocket: ServerConnection, request: HttpRequest) -> HttpResponse:
        shown.append(request.headers.get("Authorization"))
        return websocket.respond(HTTPStatus.FORBIDDEN, "no")

    async with scripted(Peer.hello, process_request=note) as other:

        def redirect(websocket: ServerConnection, request: HttpRequest) -> HttpResponse:
            answer = websocket.respond(HTTPStatus.FOUND, "elsewhere")
            answer.headers["Location"] = other.url
            shown.append(request.headers.get("Authorization"))
            return answer

        async with scripted(Peer.hello, process_request=redirect) as server:
            await refused(server.url, ConnectionLost, "HTTP status 403", token="secret")
    assert shown == ["Bearer secret", None] * 2


async def test_host_with_a_name_that_none_can_have() -> None:
    await refused(f"ws://{'a' * 64}:1", ConnectionLost, "cannot be reached")


async def test_connecting_has_a_deadline() -> None:
    async def silent(peer: Peer) -> None:
        await peer.websocket.wait_closed()

    async with scripted(silent) as server:
        await refused(server.url, DeadlineExceeded, "connection to", connect_timeout=0.05)


async def test_answer_has_a_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        first = await peer.hear()
        assert await peer.hear() == {"type": "cancel", "request": first["request"]}
        await peer.say((await peer.hear())["request"], STATUS)

    async with scripted(script) as server, connection(server.url, answer_timeout=0.05) as made:
        with pytest.raises(DeadlineExceeded, match="GetStatus"):
            await made.call(GetStatus(id=ID))
        # This one is answered, however long it takes.
        made._settings = replace(made._settings, answer_timeout=20.0)
        assert await made.call(GetStatus(id=ID)) == STATUS


async def test_close_while_connecting() -> None:
    async def silent(peer: Peer) -> None:
        await peer.websocket.wait_closed()

    async with scripted(silent) as server, connection(server.url) as made:
        waiting = asyncio.ensure_future(made.call(GetStatus(id=ID)))
        await asyncio.sleep(0)
        await made.close()
        with pytest.raises(ConnectionLost):
            await waiting


async def test_silent_server_is_noticed() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        # Nothing is read any more, and so no ping is answered.
        peer.websocket.transport.pause_reading()

    async with (
        scripted(script, ping_interval=None) as server,
        connection(server.url, keepalive_interval=0.05, keepalive_timeout=0.05) as made,
    ):
        with pytest.raises(ConnectionLost):
            await made.call(GetStatus(id=ID))


async def test_connection_that_is_made_at_the_moment_of_closing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closing: list[asyncio.Task[None]] = []
    left = asyncio.Event()

    class LinkMadeTooLate(Link):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            # Begins when the task that connects is done, and before anybody is told so.
            closing.append(asyncio.create_task(made.close()))

    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.websocket.wait_closed()
        left.set()

    monkeypatch.setattr(_client, "Link", LinkMadeTooLate)
    async with scripted(script) as server, connection(server.url) as made:
        with pytest.raises(ConnectionLost, match="was closed"):
            await made.call(GetStatus(id=ID))
        await asyncio.gather(*closing)
        await left.wait()


async def test_caller_that_is_cancelled_is_so_though_the_connection_is_closed_meanwhile() -> None:
    async def silent(peer: Peer) -> None:
        await peer.websocket.wait_closed()

    async with scripted(silent) as server, connection(server.url) as made:
        waiting = asyncio.ensure_future(made.call(GetStatus(id=ID)))
        await asyncio.sleep(0)
        waiting.cancel()
        await made.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_closing_that_is_cancelled_ends_everything_without_taking_leave() -> None:
    async def deaf(peer: Peer) -> None:
        await peer.hello()
        # The request is heard, and the end of the connection is not.
        await peer.hear()
        peer.websocket.transport.pause_reading()

    async with scripted(deaf) as server, connection(server.url) as made:
        stream = await made.open(Watch(id=ID))
        await server.silent.wait()
        closing = asyncio.ensure_future(made.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(ConnectionLost):
            await stream.receive()
