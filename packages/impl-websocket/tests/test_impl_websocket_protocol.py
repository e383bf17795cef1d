"""What the server says to a client that speaks no more than WebSocket, and not always correctly."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from contextlib import suppress
from typing import Any

import pytest
from impl_websocket_server import HEADER, Raw, Running, frame, head, raw, running_server
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tailrace_common_api import (
    ConfigurationError,
    GoingAway,
    IntegrityError,
    InternalError,
    InvalidArgument,
    InvalidReference,
    MessageTooLarge,
    NotFound,
    Overloaded,
    ProtocolError,
    RangeNotSatisfiable,
    Unsupported,
    WrongOffset,
)
from tailrace_impl_common import chunk_hash
from tailrace_impl_websocket import WebSocketServer, _buffered_protocol, _frame_protocol, _server_streams
from tailrace_impl_websocket._chunk_frame import MAX_FRAME_SIZE
from tailrace_server_api import Credentials, ResourceManager, ResourceService, TransportServerSettings

UNKNOWN = "0" * 32


async def works(client: Raw, request: int = 1000) -> None:
    """Prove that the connection takes and answers requests."""
    await client.say("get_status", request, id=UNKNOWN)
    assert isinstance(await client.error(request), NotFound)


# The handshake


async def test_hello_announces_limits_and_keep_alive(server: Running) -> None:
    async with connect_websocket(
        server.endpoint, subprotocols=[Subprotocol("other"), Subprotocol("tailrace.v1")], proxy=None
    ) as websocket:
        assert websocket.subprotocol == "tailrace.v1"
        hello = json.loads(await websocket.recv())
        assert hello["limits"] == dataclasses.asdict(server.manager.limits)
        assert hello["keepalive_interval"] == 20.0
        # Compression costs memory and time; it is off unless asked for.
        assert websocket.protocol.extensions == []


async def test_compression_can_be_switched_on() -> None:
    async with (
        running_server({"compression": "on"}) as server,
        connect_websocket(server.endpoint, subprotocols=[Subprotocol("tailrace.v1")], proxy=None) as websocket,
    ):
        assert len(websocket.protocol.extensions) == 1


@pytest.mark.parametrize("offered", [None, [Subprotocol("tailrace.v2")]])
async def test_client_without_the_subprotocol_is_refused(server: Running, offered: list[Subprotocol] | None) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect_websocket(server.endpoint, subprotocols=offered, proxy=None)
    assert caught.value.response.status_code == 400
    body = json.loads(caught.value.response.body or b"")
    assert body["code"] == Unsupported.code


async def test_other_paths_are_no_endpoint(server: Running) -> None:
    with pytest.raises(InvalidStatus):
        await connect_websocket(f"{server.ws}/v2/connect", subprotocols=[Subprotocol("tailrace.v1")], proxy=None)


async def test_everything_is_served_below_the_prefix() -> None:
    async with running_server(public_base="wss://example.org/tail/race/") as server:
        assert server.ws.endswith("/tail/race")
        async with raw(server.endpoint) as client:
            opened = await client.open_upload(1)
            assert opened["status"]["reference"].startswith("wss://example.org/tail/race/r/")


@pytest.mark.parametrize("base", ["example.org", "grpc://example.org", "ws://", "wss://example.org/?x=1"])
async def test_a_base_that_no_client_can_connect_to_is_refused(base: str) -> None:
    with pytest.raises(ConfigurationError, match="public_base"):
        async with running_server(public_base=base):
            pass


async def test_prefix_may_differ_from_the_path_of_the_public_base() -> None:
    async with (
        running_server({"prefix": "/"}, public_base="wss://example.org/tail") as server,
        raw(server.endpoint) as client,
    ):
        await works(client)


async def test_small_messages_are_not_held_back(server: Running) -> None:
    """With Nagle's algorithm a window would wait for the acknowledgement of a checkpoint."""
    async with raw(server.endpoint):
        assert server.transport._server is not None
        connections = server.transport._server.server_state.connections
        accepted = [connection.transport.get_extra_info("socket") for connection in connections]
        assert [bool(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) for each in accepted] == [True]


async def test_address_in_use_is_a_configuration_error(server: Running) -> None:
    second = WebSocketServer()
    with pytest.raises(ConfigurationError, match="cannot listen"):
        await second.start(server.manager, TransportServerSettings(port=int(server.ws.rpartition(":")[2])))
    with pytest.raises(ConfigurationError, match="cannot listen"):
        await second.start(server.manager, TransportServerSettings(host="256.256.256.256"))
    with pytest.raises(ConfigurationError, match="colour"):
        await second.start(server.manager, TransportServerSettings(options={"colour": "red"}))
    await second.close(0.0)


async def test_closing_twice_is_closing_once() -> None:
    async with running_server() as server:
        await asyncio.gather(server.transport.close(0.0), server.transport.close(5.0))
        await server.transport.close(0.0)


# Conversations


async def test_upload_and_read(either_server: Running) -> None:
    first, second = b"hello ", b"world\n"
    async with raw(either_server.endpoint) as client:
        opened = await client.open_upload(1, lines=True)
        assert (opened["offset"], opened["newlines"], opened["status"]["state"]) == (0, 0, "INITIATED")
        assert opened["until"] > 0
        assert opened["token"]
        await client.send(frame(1, 0, first))
        await client.send(frame(1, len(first), second, chunk_hash(first)))
        await client.say("finish", 1, size=12, head=head(first + second))
        finished = await client.until("finished")
        assert finished["status"]["state"] == "COMPLETED"
        assert (finished["status"]["size"], finished["status"]["lines"]) == (12, 1)
        assert finished["status"]["head"] == head(first + second)

        await client.say("read", 2, id=opened["status"]["id"], start=3)
        started = await client.receive()
        assert started.pop("limits") == dataclasses.asdict(either_server.manager.limits)
        assert {**started, "status": None} == {"type": "started", "request": 2, "offset": 3, "end": 12, "status": None}
        received = await client.receive()
        assert received[HEADER + 24 :] == b"lo world\n"
        assert received[:2] == b"\x01\x03"
        # The checkpoint at the end of the chunk: newlines and head.
        assert received[HEADER : HEADER + 24].hex() == "0000000000000001" + head(first + second)
        end = await client.receive()
        assert (end["type"], end["offset"], end["previous"]) == ("end", 12, chunk_hash(b"lo world\n").hex())


async def test_two_requests_at_once(either_server: Running) -> None:
    resource = await either_server.upload(b"old", finish=True)
    async with raw(either_server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.say("follow", 2, id=opened["status"]["id"])
        await client.say("read", 3, id=resource)
        assert (await client.next(3))["type"] == "started"
        assert (await client.receive()).endswith(b"old")
        assert (await client.next(3))["type"] == "end"
        await client.send(frame(1, 0, b"new"))
        while not isinstance(received := await client.receive(), bytes):
            pass
        assert (received[4:8], received[-3:]) == (b"\0\0\0\2", b"new")
        await client.say("finish", 1, size=3, head=head(b"new"))
        assert (await client.next(2))["type"] == "end"


async def test_numbers_may_be_used_again_when_their_request_has_ended(server: Running) -> None:
    async with raw(server.endpoint) as client:
        for _ in range(3):
            await works(client, 5)


async def test_watch_ends_behind_the_terminal_status(server: Running) -> None:
    resource = await server.upload(b"x")
    async with raw(server.endpoint) as client:
        await client.say("watch", 1, id=resource)
        assert (await client.receive())["status"]["state"] == "COMPLETED"
        assert (await client.receive()) == {"type": "watched", "request": 1}


async def test_other_requests_are_answered(server: Running) -> None:
    resource = await server.upload(b"a\nb\n", lines=True, labels={"k": "v"})
    async with raw(server.endpoint) as client:
        await client.say("get_heads", 1, id=resource, sizes=[0, 2])
        assert (await client.receive())["heads"] == [head(b""), head(b"a\n")]
        await client.say("locate", 2, id=resource, line=1)
        assert await client.receive() == {"type": "located", "request": 2, "line": 1, "offset": 2}
        await client.say("list", 3, limit=10, labels={"k": "v"})
        assert [status["id"] for status in (await client.receive())["statuses"]] == [resource]
        await client.say("read_lines", 4, id=resource, last=1)
        assert (await client.receive())["line"] == 1
        assert (await client.receive()).endswith(b"b\n")
        await client.until("end")
        await client.say("delete", 5, id=resource)
        assert await client.receive() == {"type": "done", "request": 5}
        await client.say("get_status", 6, id=resource)
        assert isinstance(await client.error(6), NotFound)


async def test_application_ping(server: Running) -> None:
    async with raw(server.endpoint) as client:
        await client.say("ping")
        assert await client.receive() == {"type": "pong"}


# Windows


async def test_download_stops_at_its_window() -> None:
    async with running_server(chunk_size=100) as small:
        data = bytes(range(250)) * 4
        resource = await small.upload(data)
        async with raw(small.endpoint) as client:
            await client.say("read", 1, id=resource, window=250)
            await client.until("started")
            received = [await client.receive() for _ in range(3)]
            # The third may overdraw, and nothing comes behind it before more is granted.
            await works(client)
            await client.say("window", 1, until=1000)
            while not isinstance(message := await client.receive(), dict):
                received.append(message)
            assert message["type"] == "end"
            payloads = [part[HEADER + 24 * (part[1] >> 1) :] for part in received]
            assert [len(payload) for payload in payloads] == [100] * 10
            assert b"".join(payloads) == data


async def test_upload_that_overdraws_fails_alone(server: Running) -> None:
    async with raw(server.endpoint) as client:
        other = await client.open_upload(1)
        opened = await client.open_upload(2)
        await client.send(frame(2, opened["until"] - 1, b"ab"))
        assert isinstance(await client.error(2), ProtocolError | WrongOffset)
        await client.send(frame(1, 0, b"fine"))
        await client.say("finish", 1, size=4, head=head(b"fine"))
        assert (await client.until("finished"))["status"]["id"] == other["status"]["id"]


async def test_window_counts_what_arrives_and_not_what_it_says_of_its_offset() -> None:
    options = {"upload_window": 65536, "chunk_size": 65536}
    async with running_server(manager_options=options) as server, raw(server.endpoint) as client:
        await client.open_upload(1)
        # Both at once: neither is taken before both have arrived.
        await client.send(frame(1, 0, bytes(65536)))
        await client.send(frame(1, 0, bytes(65536)))
        assert isinstance(await client.error(1), ProtocolError | WrongOffset)
        await works(client)


async def test_chunk_before_the_upload_is_opened_is_refused(server: Running) -> None:
    async with raw(server.endpoint) as client:
        await client.say("open_upload", 1, metadata={"name": "x", "content_type": "text/plain"})
        await client.send(frame(1, 0, b"early"))
        # Whether the answer or the chunk came first is chance; a wrong offset is refused in either case.
        await client.send(frame(1, 99, b"early"))
        assert isinstance(await client.error(1), ProtocolError | WrongOffset)
        await works(client)


# Mistakes that end their request and nothing else


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"type": "read", "id": 7}, ProtocolError),
        ({"type": "teleport"}, Unsupported),
        ({"type": "read", "id": "../../etc/passwd"}, InvalidReference),
        ({"type": "read", "id": UNKNOWN}, NotFound),
        ({"type": "window", "until": 5}, ProtocolError),
        ({"type": "finish", "size": 0, "head": head(b"")}, ProtocolError),
        ({"type": "cancel"}, ProtocolError),
        ({"type": "locate", "id": UNKNOWN}, InvalidArgument),
        ({"type": "open_upload", "metadata": {"name": "a/b\0", "content_type": "text/plain"}}, InvalidArgument),
        ({"type": "get_status", "id": UNKNOWN, "token": float("nan")}, ProtocolError),
        ({"type": "follow", "id": UNKNOWN, "window": 2**52}, InvalidArgument),
    ],
    ids=repr,
)
async def test_mistake_ends_its_request_only(server: Running, message: dict[str, Any], error: type[Exception]) -> None:
    async with raw(server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.send(json.dumps({**message, "request": 2}))
        assert type(await client.error(2)) is error
        await client.send(frame(1, 0, b"fine"))
        await client.say("finish", 1, size=4, head=head(b"fine"))
        assert (await client.until("finished"))["status"]["id"] == opened["status"]["id"]


async def test_range_error_names_the_size(server: Running) -> None:
    resource = await server.upload(b"12345")
    async with raw(server.endpoint) as client:
        for number, fields in enumerate([{"start": 6}, {"start": -1}, {"start": 2, "end": 2**62}], 1):
            await client.say("read", number, id=resource, **fields)
            error = await client.error(number)
            assert isinstance(error, RangeNotSatisfiable)
            assert error.size == 5


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: frame(1, 4, b"gap"), WrongOffset),
        (lambda: frame(1, 3, b"unchained"), IntegrityError),
        (lambda: frame(1, 3, b"broken", b"!" * 8), IntegrityError),
        (lambda: frame(1, 3, b"", b"!" * 8), ProtocolError),
        (lambda: b"\x01\xff" + frame(1, 3, b"flags")[2:], Unsupported),
        (lambda: b"\x01\x02" + frame(1, 3, bytes(30), chunk_hash(b"abc"))[2:], ProtocolError),
        (lambda: frame(1, 3, bytes(4 * 1024 * 1024), chunk_hash(b"abc")), MessageTooLarge),
        (lambda: frame(1, 3, bytes(2 * 1024 * 1024), chunk_hash(b"abc")), MessageTooLarge),
        (lambda: json.dumps({"type": "finish", "request": 1, "size": 3, "head": "no"}), ProtocolError),
        (lambda: json.dumps({"type": "window", "request": 1, "until": 9}), ProtocolError),
        (lambda: json.dumps({"type": "watch", "request": 1, "id": UNKNOWN}), ProtocolError),
    ],
    ids=[
        "gap",
        "unchained",
        "wrong previous",
        "empty",
        "flags",
        "checkpoint",
        "above the protocol",
        "above the limit",
        "malformed",
        "window",
        "number in use",
    ],
)
async def test_mistake_in_an_upload_ends_it_and_keeps_what_was_good(
    server: Running, make: Any, error: type[Exception]
) -> None:
    async with raw(server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.send(frame(1, 0, b"abc"))
        await client.until("checkpoint")
        await client.send(make())
        assert type(await client.error(1)) is error
        # Late messages of the request that has ended are nobody's.
        await client.send(frame(1, 3, b"late"))
        await client.say("abort", 1, reason="late")
        await client.say("get_status", 2, id=opened["status"]["id"])
        status = (await client.until("status"))["status"]
        assert (status["state"], status["size"]) == ("IN_PROGRESS", 3)
        # It can be taken up again.
        await client.say("reopen_upload", 3, id=opened["status"]["id"], token=opened["token"])
        reopened = await client.until("opened")
        assert (reopened["offset"], reopened["head"]) == (3, head(b"abc"))
        assert reopened["epoch"] > opened["epoch"]


async def test_chunk_for_a_reader_ends_the_request(server: Running) -> None:
    resource = await server.upload(b"", finish=False)
    async with raw(server.endpoint) as client:
        await client.say("follow", 1, id=resource)
        await client.until("started")
        await client.send(frame(1, 0, b"data"))
        assert isinstance(await client.error(1), ProtocolError)
        await client.say("watch", 2, id=resource)
        await client.until("status")
        await client.say("window", 2, until=1)
        await works(client)


async def test_number_in_use_ends_a_watch(server: Running) -> None:
    resource = await server.upload(b"", finish=False)
    async with raw(server.endpoint) as client:
        await client.say("watch", 1, id=resource)
        await client.until("status")
        await client.say("watch", 1, id=resource)
        assert isinstance(await client.error(1), ProtocolError)
        await works(client)


async def test_callers_who_are_still_looked_at_count_among_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    async with running_server(max_connections=1) as server:
        real = type(server.manager).authenticate

        async def authenticate(manager: ResourceManager, credentials: Credentials) -> ResourceService:
            asked.set()
            await answer.wait()
            return await real(manager, credentials)

        async def connect() -> None:
            anonymous = [Subprotocol("tailrace.v1"), Subprotocol("tailrace.anonymous")]
            async with connect_websocket(server.endpoint, subprotocols=anonymous, proxy=None) as websocket:
                assert json.loads(await websocket.recv())["type"] == "hello"

        monkeypatch.setattr(type(server.manager), "authenticate", authenticate)
        first = asyncio.ensure_future(connect())
        await asked.wait()
        with pytest.raises(InvalidStatus) as caught:
            await connect()
        assert caught.value.response.status_code == 503
        answer.set()
        await first


async def test_requests_on_one_connection_are_bounded() -> None:
    async with running_server(manager_options={"max_requests": 2}) as server:
        resource = await server.upload(b"", finish=False)
        async with raw(server.endpoint) as client:
            for number in (1, 2):
                await client.say("watch", number, id=resource)
                await client.until("status")
            await client.say("watch", 3, id=resource)
            assert isinstance(await client.error(3), Overloaded)
            await client.say("cancel", 1)
            await client.say("get_status", 4, id=resource)
            assert (await client.next(4))["type"] == "status"


# Cancelling


async def test_cancelled_follower_hears_no_more(server: Running) -> None:
    async with raw(server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.say("follow", 2, id=opened["status"]["id"])
        await client.until("started")
        await client.say("cancel", 2)
        # Answered behind the cancellation.
        await works(client)
        await client.send(frame(1, 0, b"data"))
        await client.say("finish", 1, size=4, head=head(b"data"))
        while (message := await client.receive())["type"] != "finished":
            assert message["request"] == 1


async def test_cancel_in_the_same_breath_as_the_request_leaves_nothing() -> None:
    async with running_server(manager_options={"max_requests": 2}) as server:
        resource = await server.upload(b"", finish=False)
        async with raw(server.endpoint) as client:
            for number in range(1, 20):
                await client.say("watch", number, id=resource)
                await client.say("cancel", number)
                await works(client, 1000 + number)


async def test_cancelled_upload_can_be_taken_up_again(server: Running) -> None:
    async with raw(server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.send(frame(1, 0, b"abc"))
        await client.until("checkpoint")
        await client.say("cancel", 1)
        await client.say("reopen_upload", 2, id=opened["status"]["id"], token=opened["token"])
        assert (await client.until("opened"))["offset"] == 3


async def test_lost_connection_leaves_uploads_resumable(server: Running) -> None:
    async with raw(server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.send(frame(1, 0, b"abc"))
        await client.until("checkpoint")
        client.websocket.transport.abort()
    async with raw(server.endpoint) as client:
        await client.say("reopen_upload", 1, id=opened["status"]["id"], token=opened["token"])
        assert (await client.until("opened"))["offset"] == 3


# Mistakes that end the connection


@pytest.mark.parametrize(
    ("message", "error", "code"),
    [
        ("{", ProtocolError, 1002),
        ("[" * 100_000, ProtocolError, 1002),
        ('{"type":"watch"}', ProtocolError, 1002),
        (b"\x01\x00", ProtocolError, 1002),
        (b"\x09" * 40, Unsupported, 1002),
        (json.dumps({"type": "abort", "request": 1, "reason": "x" * 1024 * 1024}), MessageTooLarge, 1009),
    ],
    ids=["no JSON", "deep", "no request", "short frame", "unknown layout", "large"],
)
async def test_message_that_names_no_request_ends_the_connection(
    either_server: Running, message: str | bytes, error: type[Exception], code: int
) -> None:
    async with raw(either_server.endpoint) as other, raw(either_server.endpoint) as client:
        await client.send(message)
        received = await client.error(None)
        assert type(received) is error
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert client.websocket.close_code == code
        assert client.websocket.close_reason
        assert len(client.websocket.close_reason.encode()) <= 123
        assert str(received).startswith(client.websocket.close_reason)
        await works(other)


def fragment(payload: bytes, *, first: int = 0x81) -> bytes:
    """Build a masked frame; the mask is zero."""
    size = len(payload)
    assert size < 126
    return bytes([first, 0x80 | size]) + bytes(4) + payload


@pytest.mark.parametrize(
    ("sent", "error", "code"),
    [
        (fragment(b'{"type":"\xff"}'), ProtocolError, 1007),
        (fragment(b'{"type":"\xc3', first=0x01) + fragment(b'"}', first=0x80), ProtocolError, 1007),
        # The length alone says it; its bytes never come.
        (bytes([0x82, 0xFF]) + (2**40).to_bytes(8, "big"), MessageTooLarge, 1009),
        (bytes([0x81, 0xFF]) + (9 * 2**20).to_bytes(8, "big") + bytes(100_000), MessageTooLarge, 1009),
        (
            fragment(b"x" * 100, first=0x02) + bytes([0x80, 0xFF]) + (9 * 2**20).to_bytes(8, "big"),
            MessageTooLarge,
            1009,
        ),
        (fragment(b"", first=0xC1), ProtocolError, 1002),
        (fragment(b"", first=0x83), ProtocolError, 1002),
        (fragment(b"", first=0x80), ProtocolError, 1002),
        (fragment(b"x", first=0x88), ProtocolError, 1002),
        (b"\x81\x01x", ProtocolError, 1002),
    ],
    ids=[
        "no UTF-8",
        "no UTF-8 over two fragments",
        "endless",
        "far too large",
        "far too large in fragments",
        "reserved bit",
        "unknown opcode",
        "continuation of nothing",
        "malformed close",
        "no mask",
    ],
)
async def test_frames_that_cannot_be_read_end_the_connection_with_a_typed_error(
    either_server: Running, sent: bytes, error: type[Exception], code: int
) -> None:
    async with raw(either_server.endpoint) as other, raw(either_server.endpoint) as client:
        await client.open_upload(1)
        client.websocket.transport.write(sent)
        received = await client.error(None)
        assert type(received) is error
        if isinstance(received, MessageTooLarge):
            assert received.maximum == 2 * MAX_FRAME_SIZE
            assert received.size > received.maximum
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert client.websocket.close_code == code
        await works(other)


HANDSHAKE = (
    b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    b"Sec-WebSocket-Protocol: tailrace.v1\r\n\r\n"
)


async def test_client_that_goes_on_sending_still_reads_why_it_was_refused(either_server: Running) -> None:
    host, _, port = either_server.endpoint.removeprefix("ws://").partition("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HANDSHAKE)
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    writer.write(bytes([0x82, 0xFF]) + (64 * 2**20).to_bytes(8, "big") + bytes(4))
    # Nothing is read before all of it is sent: a connection that was reset would have lost what the server said.
    for _ in range(64):
        writer.write(bytes(2**20))
        await writer.drain()
    said = await reader.read()
    assert b'"message_too_large"' in said
    assert (1009).to_bytes(2, "big") in said
    writer.close()
    await writer.wait_closed()


async def test_what_came_before_frames_that_cannot_be_read_counts(either_server: Running) -> None:
    async with raw(either_server.endpoint) as client:
        opened = await client.open_upload(1)
        chunk = frame(1, 0, b"kept")
        client.websocket.transport.write(fragment(chunk, first=0x82) + fragment(b"p", first=0x89) + fragment(b"\xff"))
        assert isinstance(await client.error(None), ProtocolError)
    async with raw(either_server.endpoint) as client:
        await client.say("reopen_upload", 1, id=opened["status"]["id"], token=opened["token"])
        assert (await client.until("opened"))["offset"] == 4


async def test_client_that_asks_and_never_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server_streams, "_CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(_buffered_protocol, "LINGER", 0.1)
    async with running_server() as server, raw(server.endpoint) as client:
        client.websocket.transport.pause_reading()

        async def ask() -> None:
            # Far more than the buffers of both systems hold; the server ends it before.
            for number in range(1, 1_000_000):
                await client.say("x" * 1000, number)

        with pytest.raises(ConnectionClosed):
            await ask()


@pytest.mark.parametrize("size", [0, 1, 200, 64 * 1024])
@pytest.mark.parametrize("name", ["buffered", "websockets-sansio"])
async def test_small_answer_is_three_messages_and_one_write(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    written: list[bytes] = []
    write_frames = _buffered_protocol.BufferedFrameProtocol.write_frames

    def observed(protocol: _buffered_protocol.BufferedFrameProtocol, frames: bytes) -> None:
        written.append(frames)
        write_frames(protocol, frames)

    monkeypatch.setattr(_buffered_protocol.BufferedFrameProtocol, "write_frames", observed)
    data = bytes(range(256)) * 300
    async with running_server({"protocol": name}) as server:
        resource = await server.store(data)
        async with raw(server.endpoint) as client:
            # Two at a time, so that neither is alone on its connection.
            for number in (1, 2):
                await client.say("read", number, id=resource, start=0, end=size)
            told: dict[int, list[Any]] = {1: [], 2: []}
            while sum(answer[-1:] == ["end"] for answer in told.values()) < 2:
                message = await client.receive()
                if isinstance(message, bytes):
                    told[message[7]].append(message)
                else:
                    told[message["request"]].append(message["type"])
    for number, answer in told.items():
        assert answer == ["started", *([frame(number, 0, data[:size])] if size else []), "end"]
    assert len(written) == (2 if name == "buffered" else 0)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("buffered", _buffered_protocol.BufferedFrameProtocol), ("websockets-sansio", _frame_protocol.FrameProtocol)],
)
async def test_client_that_answers_no_ping_is_left(
    monkeypatch: pytest.MonkeyPatch, name: str, implementation: type[asyncio.BaseProtocol]
) -> None:
    left = asyncio.Event()
    connection_lost = implementation.connection_lost

    def observed(protocol: asyncio.BaseProtocol, exception: Exception | None) -> None:
        connection_lost(protocol, exception)
        left.set()

    monkeypatch.setattr(implementation, "connection_lost", observed)
    async with running_server({"protocol": name}, keepalive_interval=0.1, keepalive_timeout=0.1) as server:
        # A connection that answers may yet be too slow for these times.
        resource = await server.store(bytes(1024 * 1024))
        async with raw(server.endpoint) as client:
            # Neither pings nor data are taken, so that there is more to be sent than the systems hold.
            client.websocket.transport.pause_reading()
            # It may be left before all is said.
            with suppress(ConnectionClosed):
                for number in range(1, 30):
                    await client.say("read", number, id=resource)
            await left.wait()
            client.websocket.transport.abort()


@pytest.mark.parametrize(
    ("name", "module", "implementation"),
    [
        ("buffered", _buffered_protocol, _buffered_protocol.BufferedFrameProtocol),
        ("websockets-sansio", _frame_protocol, _frame_protocol.FrameProtocol),
    ],
    ids=["buffered", "websockets-sansio"],
)
async def test_client_that_has_ended_its_side_and_reads_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, name: str, module: object, implementation: type[asyncio.Protocol]
) -> None:
    full, left = asyncio.Event(), asyncio.Event()
    pause_writing, connection_lost = implementation.pause_writing, implementation.connection_lost

    def filled(protocol: asyncio.Protocol) -> None:
        pause_writing(protocol)
        full.set()

    def observed(protocol: asyncio.Protocol, exception: Exception | None) -> None:
        connection_lost(protocol, exception)
        left.set()

    monkeypatch.setattr(module, "LINGER", 0.1)
    async with running_server({"protocol": name}) as server:
        resource = await server.upload(bytes(1024 * 1024))
        monkeypatch.setattr(implementation, "pause_writing", filled)
        monkeypatch.setattr(implementation, "connection_lost", observed)
        async with raw(server.endpoint) as client:
            client.websocket.transport.pause_reading()
            for number in range(1, 30):
                await client.say("read", number, id=resource)
            await full.wait()
            client.websocket.transport.write_eof()
            await left.wait()
            client.websocket.transport.abort()


# The end of the server


async def test_clients_are_told_that_the_server_goes_away() -> None:
    async with running_server() as server, raw(server.endpoint) as client:
        opened = await client.open_upload(1)
        await client.say("follow", 2, id=opened["status"]["id"])
        await client.until("started")
        closing = asyncio.ensure_future(server.transport.close(5.0))
        told = [await client.receive() for _ in range(3)]
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert [message["code"] for message in told] == [GoingAway.code] * 3
        assert {message.get("request") for message in told[:2]} == {1, 2}
        assert "request" not in told[2]
        assert client.websocket.close_code == 1001
        await closing
        with pytest.raises(ConnectionRefusedError):
            await connect_websocket(server.endpoint, proxy=None)


@pytest.mark.parametrize("protocol", ["buffered", "websockets-sansio"])
@pytest.mark.parametrize("stubborn", [False, True], ids=["ends", "finishes"])
async def test_callers_who_are_still_looked_at_are_told_that_the_server_goes_away(
    monkeypatch: pytest.MonkeyPatch, protocol: str, stubborn: bool
) -> None:
    asked = asyncio.Event()
    async with running_server({"protocol": protocol}) as server:
        real = type(server.manager).authenticate

        async def authenticate(manager: ResourceManager, credentials: Credentials) -> ResourceService:
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise
            return await real(manager, credentials)

        monkeypatch.setattr(type(server.manager), "authenticate", authenticate)
        anonymous = [Subprotocol("tailrace.v1"), Subprotocol("tailrace.anonymous")]
        connecting = asyncio.ensure_future(connect_websocket(server.endpoint, subprotocols=anonymous, proxy=None))
        await asked.wait()
        # Whatever the grace is.
        await server.transport.close(0.0)
        with pytest.raises(InvalidStatus) as caught:
            await connecting
        response = caught.value.response
        assert response.status_code == 503
        assert json.loads(response.body)["code"] == GoingAway.code
        assert "Retry-After" in response.headers


@pytest.mark.usefixtures("errors_are_logged")
async def test_a_timeout_of_an_authenticator_is_its_own(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def authenticate(manager: ResourceManager, credentials: Credentials) -> ResourceService:
        raise TimeoutError

    monkeypatch.setattr(type(server.manager), "authenticate", authenticate)
    anonymous = [Subprotocol("tailrace.v1"), Subprotocol("tailrace.anonymous")]
    with pytest.raises(InvalidStatus) as caught:
        await connect_websocket(server.endpoint, subprotocols=anonymous, proxy=None)
    assert caught.value.response.status_code == 500


async def test_server_does_not_wait_for_a_client_that_never_reads() -> None:
    async with running_server(keepalive_interval=60.0) as server:
        resource = await server.upload(bytes(1024 * 1024))
        async with raw(server.endpoint) as client:
            client.websocket.transport.pause_reading()
            for number in range(1, 20):
                await client.say("read", number, id=resource)
            await server.transport.close(0.1)
            client.websocket.transport.abort()


@pytest.mark.usefixtures("errors_are_logged")
@pytest.mark.parametrize("part", ["open_reader", "authenticate"])
async def test_defects_are_told_without_details(server: Running, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    async def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(type(server.manager), part, broken)
    async with raw(server.endpoint) as client:
        await client.say("get_status", 1, id=UNKNOWN)
        error = await client.error(1)
        assert isinstance(error, InternalError)
        assert "secret" not in str(error)
        await client.say("ping")
        assert await client.receive() == {"type": "pong"}


@pytest.mark.usefixtures("errors_are_logged")
async def test_defect_of_a_connection_is_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw(server.endpoint) as client:
        monkeypatch.setattr(type(server.manager), "admit", lambda _: 1 / 0)
        await client.say("get_status", 1, id=UNKNOWN)
        assert isinstance(await client.error(None), InternalError)
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert client.websocket.close_code == 1011
