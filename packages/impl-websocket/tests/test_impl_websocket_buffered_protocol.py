"""The protocol class of this package, without a network: sending, waiting, and the ends of connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from impl_websocket_protocols import Connection, Listener, Told, masked, told_by
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from tailrace_impl_common import chunk_hash, sends_lists
from tailrace_impl_common.messages import Chunk
from tailrace_impl_websocket import _buffered_protocol
from tailrace_impl_websocket._buffered_protocol import BufferedFrameProtocol, buffered_frame_protocol
from tailrace_impl_websocket._chunk_frame import frame_chunk
from tailrace_impl_websocket._frame_channel import DirectFrames
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, PING, PONG, TEXT, frame_header
from tailrace_impl_websocket._frame_protocol import FrameProtocol
from tailrace_impl_websocket._frame_reader import FrameReader, ReceiveBuffers

MIB = 1 << 20


async def accepted(*, direct: bool = True, **settings: Any) -> tuple[Connection, Told]:
    """Return a connection that was accepted, and what its application is told."""
    told = Told()
    listener = Listener(told, direct=direct)
    connection = Connection(BufferedFrameProtocol, listener, max_size=4 * MIB, **settings)
    await listener.read.wait()
    # The application goes on to read.
    await turns()
    connection.wire.written.clear()
    return connection, told


async def turns(count: int = 5) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


# Receiving


def test_nothing_is_kept_of_a_message_that_was_handed_on() -> None:
    buffers = ReceiveBuffers()
    taken: list[bytes] = []

    class Sink:
        def binary_received(self, data: bytes) -> None:
            taken.append(data)

    reader = FrameReader(Sink(), buffers, max_size=None)  # type: ignore[arg-type]  # nothing else arrives
    sent = masked(BINARY, bytes(range(256)) * 4096) + masked(BINARY, b"x" * 300_000) + b"\x82"
    for start in range(0, len(sent), 100_000):
        reader.feed(sent[start : start + 100_000])
    assert taken == [bytes(range(256)) * 4096, b"x" * 300_000]
    assert reader._buffer is None
    assert reader._target is None
    # One buffer served both, and waits for whoever comes next.
    assert len(buffers._kept) == 1
    assert reader._partial == b"\x82"


def test_few_buffers_wait_to_be_used_again() -> None:
    buffers = ReceiveBuffers()
    taken = [buffers.take(MIB) for _ in range(20)]
    for buffer in [*taken, buffers.take(3 * MIB), buffers.take(1000)]:
        buffers.give_back(buffer)
    assert sum(map(len, buffers._kept)) < 5 * MIB


def test_the_end_gives_the_buffer_back_that_was_being_filled() -> None:
    buffers = ReceiveBuffers()
    reader = FrameReader(None, buffers, max_size=None)  # type: ignore[arg-type]  # nothing arrives
    reader.feed(masked(BINARY, bytes(MIB))[:500_000])
    assert buffers._kept == []
    reader.end()
    assert len(buffers._kept) == 1
    reader.feed(masked(BINARY, b"late"))


def test_connections_of_one_server_share_what_they_receive_into() -> None:
    first, second = buffered_frame_protocol(), buffered_frame_protocol()
    assert first.buffers is not None
    assert first.buffers is not second.buffers


async def test_pieces_of_several_connections_in_turn_stay_apart() -> None:
    implementation = buffered_frame_protocol()
    sent = [
        b"".join(masked(BINARY, bytes([number]) * size) for size in (3, 200, 70_000, 1, 500_000)) for number in range(3)
    ]
    connections: list[Connection] = []
    everything: list[Told] = []
    for _ in sent:
        told = Told()
        listener = Listener(told, direct=True)
        connections.append(Connection(implementation, listener, max_size=MIB))
        everything.append(told)
        await listener.read.wait()
        await turns()
    for start in range(0, len(sent[0]), 1001):
        for connection, data in zip(connections, sent, strict=True):
            connection.feed(data[start : start + 1001])
    for connection in connections:
        await connection.finish()
    for number, told in enumerate(everything):
        assert told.messages == [bytes([number]) * size for size in (3, 200, 70_000, 1, 500_000)]


async def test_application_that_takes_nothing_stops_the_client_and_nothing_else() -> None:
    connection, told = await accepted(direct=False)
    protocol = connection.protocol
    # The application is not run in between.
    for number in range(100):
        if not connection.wire.reading:
            break
        connection.feed(masked(BINARY, bytes([number])))
        connection.feed(masked(PING, b"there?"))
    assert 1 < number < 99
    assert b"".join(connection.wire.written).count(b"there?") == number
    assert len(protocol._waiting) == number
    await turns()
    assert connection.wire.reading
    assert told.messages == [bytes([each]) for each in range(number)]
    # Large ones are few.
    connection.feed(masked(BINARY, bytes(MIB)))
    assert [connection.wire.reading] == [False]
    await turns()
    assert [connection.wire.reading] == [True]
    await connection.finish()


async def test_messages_that_wait_are_handed_over_first() -> None:
    taken: list[object] = []

    class Taker:
        def binary_received(self, data: bytes) -> None:
            taken.append(data)

        def text_received(self, text: str) -> None:
            taken.append(text)

        def disconnected(self) -> None:
            taken.append(None)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        connection.feed(masked(TEXT, b"one") + masked(BINARY, b"two") + masked(BINARY, bytes(MIB)))
        assert [connection.wire.reading] == [False]
        channel = scope["extensions"]["tailrace.frames"]["channel"]
        channel.hand_to(Taker())
        assert [connection.wire.reading] == [True]
        connection.feed(masked(TEXT, b"three"))
        channel.hand_to(None)
        connection.feed(masked(CLOSE, b"\x03\xe8"))
        channel.hand_to(Taker())

    connection = Connection(BufferedFrameProtocol, application, max_size=4 * MIB)
    await turns()
    assert taken == ["one", b"two", bytes(MIB), "three", None]
    await connection.finish()


# Sending


def unmasked(opcode: int, payload: bytes) -> bytes:
    return frame_header(opcode, len(payload)) + payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
async def test_messages_in_two_parts_are_one_frame(size: int) -> None:
    connection, told = await accepted()
    payload = bytes(range(256)) * 300
    for header in (b"", b"head"):
        connection.wire.written.clear()
        connection.protocol.write_binary(header, memoryview(payload)[: size - len(header)] if size else b"")
        told.output = b"".join(connection.wire.written)
        expected = header + (payload[: size - len(header)] if size else b"")
        assert told.frames == [(BINARY, expected)]
    await connection.finish()


@pytest.mark.parametrize("sends_lists", [False, True])
async def test_large_payloads_are_sent_as_they_are(monkeypatch: pytest.MonkeyPatch, sends_lists: bool) -> None:
    """What is given to the transport is the payload itself, not a copy of it."""
    connection, _ = await accepted()
    given: list[object] = []
    monkeypatch.setattr(connection.wire, "write", given.append)
    monkeypatch.setattr(connection.wire, "writelines", given.extend)
    connection.protocol._sends_lists = sends_lists
    payload = memoryview(bytes(MIB))
    connection.protocol.write_binary(b"head", payload)
    assert given[0] == frame_header(BINARY, MIB + 4) + b"head"
    assert given[1] is payload
    await connection.finish()


async def test_senders_wait_in_order_while_the_client_does_not_read() -> None:
    connection, told = await accepted()
    protocol, sent = connection.protocol, []

    async def sender(number: int) -> None:
        await protocol.turn()
        protocol.write_binary(bytes([number]))
        sent.append(number)
        if number == 3:
            protocol.pause_writing()

    protocol.pause_writing()
    assert not protocol.writable
    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(sender(number)))
        await turns()
    assert sent == []
    tasks[1].cancel()
    await turns()
    protocol.resume_writing()
    # Who comes meanwhile does not overtake.
    assert not protocol.writable
    tasks.append(asyncio.create_task(sender(6)))
    await turns(20)
    assert sent == [0, 2, 3]
    protocol.resume_writing()
    await turns(20)
    assert sent == [0, 2, 3, 4, 5, 6]
    assert protocol.writable
    told.output = b"".join(connection.wire.written)
    assert [data for _, data in told.frames] == [bytes([number]) for number in sent]
    await connection.finish()


async def test_messages_that_are_sent_together_wait_for_their_turn() -> None:
    connection, told = await accepted()
    protocol = connection.protocol
    frames = DirectFrames(nothing_received, nothing_sent, protocol)
    chunk = Chunk(0, b"data", chunk_hash(b"data"), b"", None)
    protocol.pause_writing()
    sending = asyncio.create_task(frames.send_together(1, ["first", chunk, "last"], alone=True))
    await turns()
    assert connection.wire.written == []
    protocol.resume_writing()
    await sending
    told.output = b"".join(connection.wire.written)
    assert [data for _, data in told.frames] == [b"first", frame_chunk(1, chunk), b"last"]
    await connection.finish()


async def nothing_received() -> Message:
    raise AssertionError("nothing is received by way of ASGI")


async def nothing_sent(message: Message) -> None:
    raise AssertionError(f"{message} is not sent by way of ASGI")


async def test_sender_that_was_woken_and_cancelled_wakes_the_next() -> None:
    connection, _ = await accepted()
    protocol = connection.protocol
    protocol.pause_writing()
    first, second = asyncio.create_task(protocol.turn()), asyncio.create_task(protocol.turn())
    await turns()
    protocol.resume_writing()
    first.cancel()
    await second
    assert first.cancelled()
    await connection.finish()


@pytest.mark.parametrize("ending", ["lost", "half closed", "closed by the client", "refused"])
async def test_senders_that_wait_learn_of_the_end(ending: str) -> None:
    connection, _ = await accepted()
    protocol = connection.protocol
    protocol.pause_writing()
    waiting = [asyncio.create_task(protocol.turn()) for _ in range(3)]
    await turns()
    if ending == "lost":
        protocol.connection_lost(ConnectionResetError())
    elif ending == "half closed":
        protocol.eof_received()
    elif ending == "closed by the client":
        connection.feed(masked(CLOSE, b"\x03\xe8"))
    else:
        connection.feed(b"\xff\xff")
    for sender in waiting:
        with pytest.raises(ClientDisconnected):
            await sender
    with pytest.raises(ClientDisconnected):
        await protocol.turn()
    await connection.finish()


async def test_pings_are_answered_and_do_not_pile_up_where_nobody_reads() -> None:
    connection, told = await accepted()
    connection.feed(masked(PING, b"1") + masked(PING, b""))
    connection.protocol.pause_writing()
    for _ in range(1000):
        connection.feed(masked(PING, b"many"))
    connection.feed(masked(PING, b"last"))
    assert len(connection.wire.written) == 2
    connection.protocol.resume_writing()
    told.output = b"".join(connection.wire.written)
    assert told.frames == [(PONG, b"1"), (PONG, b""), (PONG, b"last")]
    connection.feed(masked(PING, b"2"))
    assert connection.wire.written[-1] == unmasked(PONG, b"2")
    await connection.finish()


# Keep-alive


async def pinged(connection: Connection) -> bytes:
    """Return the payload of the next ping."""
    await connection.wire.until(lambda wire: bool(wire.written))
    frame = connection.wire.written.pop(0)
    assert frame[0] & 0x0F == PING
    return frame[2:]


async def test_pongs_keep_a_connection_and_others_do_not() -> None:
    connection, told = await accepted(ws_ping_interval=0.01, ws_ping_timeout=5.0)
    seen = set()
    for _ in range(3):
        payload = await pinged(connection)
        seen.add(payload)
        connection.feed(masked(PONG, b"unasked"))
        assert connection.protocol._keepalive._timer is not None
        connection.feed(masked(PONG, payload))
    assert len(seen) == 3
    assert not told.left
    await connection.finish()


@pytest.mark.parametrize("unread", [0, 100])
async def test_client_without_an_answer_is_left(monkeypatch: pytest.MonkeyPatch, unread: int) -> None:
    connection, told = await accepted(ws_ping_interval=0.01, ws_ping_timeout=0.01)
    aborted: list[bool] = []

    def abort() -> None:
        aborted.append(True)
        connection.wire.close()

    monkeypatch.setattr(connection.wire, "get_write_buffer_size", lambda: unread)
    monkeypatch.setattr(connection.wire, "abort", abort)
    await connection.wire.until(lambda wire: wire.closing)
    assert bool(aborted) == bool(unread)
    told.output = b"".join(connection.wire.written)
    assert told.close_codes == [(1011).to_bytes(2, "big")]
    await connection.finish()


async def test_without_a_timeout_nobody_is_left() -> None:
    connection, _ = await accepted(ws_ping_interval=0.001, ws_ping_timeout=None)
    assert len({await pinged(connection) for _ in range(3)}) == 3
    assert not connection.wire.closing
    await connection.finish()


# The handshake and the end, as ASGI has them: the class of uvicorn does the same


async def exchanged(
    implementation: type[Any], application: Any, sent: Iterable[bytes] = ()
) -> tuple[bytes, Connection]:
    """Return what a client gets of an application, and the connection when that has ended."""
    connection = Connection(implementation, application, max_size=1000)
    await turns()
    for data in sent:
        await connection.let_in(data)
        await turns()
    await connection.finish()
    return b"".join(connection.wire.written), connection


def status_and_body(response: bytes) -> tuple[bytes, bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    return head.split(b" ", 2)[1], body


both = pytest.mark.parametrize("implementation", [BufferedFrameProtocol, FrameProtocol])


@both
async def test_scope_says_what_was_asked_for(implementation: type[Any]) -> None:
    scopes: list[Scope] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept", "subprotocol": "tailrace.v1", "headers": [(b"X-More", b"yes")]})

    output, _ = await exchanged(implementation, application)
    [scope] = scopes
    assert {key: scope[key] for key in ("type", "path", "raw_path", "query_string", "scheme", "subprotocols")} == {
        "type": "websocket",
        "path": "/v1/connect",
        "raw_path": b"/v1/connect",
        "query_string": b"a=b",
        "scheme": "ws",
        "subprotocols": ["tailrace.v1"],
    }
    assert (scope["client"], scope["server"]) == (("192.0.2.1", 1), ("192.0.2.2", 2))
    assert dict(scope["headers"])[b"Host"] == b"x"
    assert output.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Protocol: tailrace.v1\r\n" in output
    assert b"x-more: yes\r\n" in output.lower()


@both
async def test_application_may_refuse_with_an_answer_of_its_own(implementation: type[Any]) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-why", b"tea")]})
        await send({"type": "websocket.http.response.body", "body": b"short ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"and stout"})

    output, connection = await exchanged(implementation, application)
    assert status_and_body(output) == (b"418", b"short and stout")
    assert b"x-why: tea" in output.lower()
    assert connection.wire.closing


@both
@pytest.mark.parametrize(
    ("answers", "status"),
    [([{"type": "websocket.close"}], b"403"), ([], b"500"), ([{"type": "websocket.send", "bytes": b"x"}], b"500")],
    ids=["refuses", "says nothing", "breaks ASGI"],
)
@pytest.mark.usefixtures("errors_are_logged")
async def test_application_that_does_not_accept(
    implementation: type[Any], answers: list[Message], status: bytes
) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for answer in answers:
            await send(answer)

    output, connection = await exchanged(implementation, application)
    assert status_and_body(output)[0] == status
    assert connection.wire.closing


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 500 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["no upgrade", "no key", "many headers", "method"],
)
async def test_request_that_is_no_handshake_is_answered(monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nobody is asked")

    monkeypatch.setattr("impl_websocket_protocols.HANDSHAKE", request_)
    output, connection = await exchanged(BufferedFrameProtocol, application)
    assert output.startswith(b"HTTP/1.1 4")
    assert connection.wire.closing


@both
async def test_application_closes_and_waits_for_the_client(implementation: type[Any]) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "ä"})
        await send({"type": "websocket.send", "bytes": b"b"})
        await send({"type": "websocket.close", "code": 3000, "reason": "enough"})
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.send", "bytes": b"late"})
        # Whatever comes now is not for the application, but the answer to the close.
        assert (await receive())["type"] == "websocket.disconnect"

    sent = [masked(BINARY, b"late"), masked(CLOSE, (3000).to_bytes(2, "big"))]
    output, connection = await exchanged(implementation, application, sent)
    told = Told(output=output.partition(b"\r\n\r\n")[2])
    assert told.frames == [(TEXT, "ä".encode()), (BINARY, b"b"), (CLOSE, (3000).to_bytes(2, "big") + b"enough")]
    assert connection.wire.closing


@both
async def test_client_closes_and_gets_its_close_back(implementation: type[Any]) -> None:
    ends: list[Message] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        ends.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "bytes": b"late"})

    close = (4001).to_bytes(2, "big") + b"bye"
    output, connection = await exchanged(implementation, application, [masked(CLOSE, close)])
    assert output.endswith(unmasked(CLOSE, close))
    assert ends == [{"type": "websocket.disconnect", "code": 4001, "reason": "bye"}]
    assert connection.wire.closing


@both
async def test_server_that_ends_says_so(implementation: type[Any]) -> None:
    connection = Connection(implementation, Listener(told := Told(), direct=False), max_size=1000)
    await turns()
    connection.wire.written.clear()
    connection.protocol.shutdown()
    await turns()
    assert told.left
    assert connection.wire.closing
    assert b"".join(connection.wire.written) == unmasked(CLOSE, (1012).to_bytes(2, "big"))
    await connection.finish()


@pytest.mark.usefixtures("errors_are_logged")
async def test_server_that_ends_refuses_who_is_not_in_yet() -> None:
    asked = asyncio.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        asked.set()
        await receive()

    connection = Connection(BufferedFrameProtocol, application, max_size=1000)
    await asked.wait()
    connection.protocol.shutdown()
    assert status_and_body(b"".join(connection.wire.written))[0] == b"500"
    await connection.finish()


@pytest.mark.usefixtures("errors_are_logged")
async def test_defect_of_the_application_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise LookupError("defect")

    _, connection = await exchanged(BufferedFrameProtocol, application)
    assert connection.wire.closing
    assert "Exception in ASGI application" in caplog.text


async def test_connection_of_an_application_that_has_ended_is_cut_when_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_buffered_protocol, "LINGER", 0.0)
    cut = asyncio.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    connection = Connection(BufferedFrameProtocol, application, max_size=1000)
    monkeypatch.setattr(connection.wire, "abort", cut.set)
    await cut.wait()
    await connection.finish()


async def test_refusal_lets_the_client_read_why() -> None:
    told = await told_by(BufferedFrameProtocol, [masked(TEXT, b"\xff"), bytes(10**6)], direct=True)
    [(_, text), (opcode, close)] = told.frames
    error = json.loads(text)
    assert (error["type"], error["code"], opcode) == ("error", "protocol", CLOSE)
    assert close[2:].decode() == error["message"] == "invalid start byte at byte 0"


async def test_lists_are_sent_where_the_transport_sends_them() -> None:
    connection, _ = await accepted()
    assert connection.protocol._sends_lists is sends_lists(connection.wire)
    await connection.finish()


async def test_connection_that_is_found_lost_while_it_writes_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop raises an error where a transport is used that a write before has found lost."""
    connection, told = await accepted()
    write = connection.wire.write

    def lost(data: bytes | bytearray | memoryview) -> None:
        if connection.wire.closing:
            raise RuntimeError("unable to perform operation on a closed transport")
        write(data)
        connection.wire.close()

    monkeypatch.setattr(connection.wire, "write", lost)
    connection.feed(masked(PING, b"1") + masked(PING, b"2") + masked(TEXT, b"\xff"))
    connection.protocol.shutdown()
    await turns()
    assert told.left
    assert connection.wire.written == [unmasked(PONG, b"1")]
    assert not connection.wire.ended
    await connection.finish()
