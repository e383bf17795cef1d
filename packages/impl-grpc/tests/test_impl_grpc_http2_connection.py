"""The server's own HTTP/2 against the library h2, and against clients that break the rules."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import itertools
import logging
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterable

import grpc
import h2.events
import pytest
from h2.settings import SettingCodes
from impl_grpc_http2_peer import Peer, Service, block, connected, frame, message, serving

from tailrace_impl_grpc import _http2_connection
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
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
)
from tailrace_impl_grpc._http2_server import Http2Server
from tailrace_impl_grpc._options import MAX_RECEIVED_MESSAGE

OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 1, 2, 4, 8, 12, 13


@pytest.fixture
def service(no_task_is_left: None) -> Service:
    return Service()


@pytest.fixture
async def port(service: Service) -> AsyncIterator[int]:
    async with serving(service, max_calls=10) as (_, port):
        yield port


@pytest.fixture
async def peer(port: int) -> AsyncIterator[Peer]:
    async with connected(port) as peer:
        yield peer


async def still_serves(peer: Peer) -> None:
    assert (await peer.call("Echo", b"still")).messages() == [(0, b"still")]


# Calls


async def test_a_call_is_answered(peer: Peer) -> None:
    response = await peer.call("Echo", b"hello")
    assert (response.first[b":status"], response.status, response.messages()) == (b"200", OK, [(0, b"hello")])
    assert response.resets == []


async def test_messages_go_to_and_fro(peer: Peer) -> None:
    stream = peer.begin("Chat")
    for number in range(1, 5):
        await peer.send(stream, message(b"x" * number))
        await peer.until(lambda: len(peer.data(stream)) == sum(5 + size for size in range(1, number + 1)))  # noqa: B023
    peer.h2.end_stream(stream)
    peer.flush()
    response = await peer.response(stream)
    assert (response.status, len(response.messages())) == (OK, 4)


async def test_a_message_may_come_byte_by_byte(peer: Peer) -> None:
    stream = peer.begin("Chat")
    await peer.send(stream, message(b"slow") + message(b"") + message(b"er"), end=True, size=1)
    assert (await peer.response(stream)).messages() == [(0, b"slow"), (0, b""), (0, b"er")]


async def test_many_messages_may_come_in_one_frame(peer: Peer) -> None:
    requests = [bytes([number % 256]) * (number % 7) for number in range(1000)]
    response = await peer.call("Chat", *requests)
    assert response.messages() == [(0, request) for request in requests]


@pytest.mark.parametrize("padding", [0, 1, 255])
async def test_padding_is_nothing(peer: Peer, padding: int) -> None:
    stream = peer.begin("Chat")
    data = message(b"one") + message(b"two")
    peer.h2.send_data(stream, data[:4], pad_length=padding)
    peer.h2.send_data(stream, b"", pad_length=padding)
    peer.h2.send_data(stream, data[4:], end_stream=True, pad_length=padding)
    peer.flush()
    assert (await peer.response(stream)).messages() == [(0, b"one"), (0, b"two")]


async def test_padding_counts_and_is_granted_again(peer: Peer) -> None:
    stream = peer.begin("Collect")
    for _ in range(2000):
        while peer.h2.local_flow_control_window(stream) < 300:
            peer.flush()
            await peer.receive()
        peer.h2.send_data(stream, b"", pad_length=255)
    await peer.send(stream, message(b"x"), end=True)
    assert (await peer.response(stream)).status == OK


@pytest.mark.parametrize("flags", [PADDED, WITH_PRIORITY, PADDED | WITH_PRIORITY])
async def test_headers_may_have_padding_and_priority(peer: Peer, service: Service, flags: int) -> None:
    payload = (b"\x07" if flags & PADDED else b"") + (bytes(5) if flags & WITH_PRIORITY else b"") + block("Collect")
    payload += bytes(7) if flags & PADDED else b""
    peer.raw(frame(HEADERS, flags | END_HEADERS, 1, payload) + frame(DATA, END_STREAM, 1, message(b"x")))
    await service.until(lambda: service.messages == [b"x"])


@pytest.mark.parametrize("size", [1, 10, 1000])
async def test_headers_may_be_continued(peer: Peer, service: Service, size: int) -> None:
    content = block("Collect")
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    sent = frame(HEADERS, 0, 1, parts[0])
    sent += b"".join(frame(CONTINUATION, 0, 1, part) for part in parts[1:]) + frame(CONTINUATION, END_HEADERS, 1)
    peer.raw(sent + frame(DATA, END_STREAM, 1, message(b"x")))
    await service.until(lambda: service.messages == [b"x"])


@pytest.mark.parametrize("size", [20_000, 40_000])
async def test_a_call_with_too_large_headers_is_told_and_the_others_go_on(peer: Peer, size: int) -> None:
    response = await peer.call("Echo", b"x", headers=((b"large", b"a" * (size // 2)), (b"more", b"a" * (size // 2))))
    assert response.status == RESOURCE_EXHAUSTED
    await still_serves(peer)


@pytest.mark.parametrize("size", [100_000, 40_000])
async def test_headers_that_are_not_even_looked_at_let_running_calls_end(
    peer: Peer, service: Service, size: int
) -> None:
    running = peer.begin("Collect")
    await peer.send(running, message(b"a"))
    await service.until(lambda: service.messages == [b"a"])
    # Above the bound as they are written, and as they are decoded only.
    response = await peer.call("Echo", b"x", headers=((b"large", b"a" * size), (b"more", b"a" * size)))
    assert response.status == RESOURCE_EXHAUSTED
    # The tables of both sides are not the same any more: no call begins here after that.
    await peer.until(lambda: peer.of(h2.events.ConnectionTerminated))
    # h2 has nothing to say on such a connection.
    peer.raw(frame(DATA, END_STREAM, running, message(b"b")))
    await service.until(lambda: service.messages == [b"a", b"b"])


@pytest.mark.parametrize("late", [frame(DATA, 0, 5, message(b"x")), frame(RST_STREAM, 0, 5, bytes(4))])
async def test_a_call_that_began_before_its_client_heard_that_none_begins_disturbs_no_other(
    peer: Peer, service: Service, late: bytes
) -> None:
    running = peer.begin("Collect")
    await peer.send(running, message(b"a"))
    refused = peer.begin("Echo", (b"large", b"a" * 100_000), end=True)
    peer.raw(frame(HEADERS, END_HEADERS, 5, block("Echo")) + late + frame(DATA, 0, running, message(b"b")))
    await service.until(lambda: service.messages == [b"a", b"b"])
    await peer.until(lambda: peer.of(h2.events.ConnectionTerminated))
    [goodbye] = peer.of(h2.events.ConnectionTerminated)
    assert (goodbye.error_code, goodbye.last_stream_id) == (ErrorCode.NO_ERROR, refused)
    peer.raw(frame(DATA, END_STREAM, running))
    await service.until(lambda: service.collected == [2])


async def test_trailers_that_are_not_looked_at_end_their_call(peer: Peer, service: Service) -> None:
    running = peer.begin("Collect")
    await peer.send(running, message(b"a"))
    assert (await peer.call("Echo", b"x", headers=((b"large", b"a" * 100_000),))).status == RESOURCE_EXHAUSTED
    peer.raw(frame(HEADERS, END_HEADERS | END_STREAM, running, b"\x00\x01k\x01v"))
    await service.until(lambda: service.collected == [1])


@pytest.mark.parametrize("size", [40_000, 200_000])
async def test_large_headers_may_come_in_one_frame(peer: Peer, size: int) -> None:
    # Its name comes from the table of the protocol: index 58 is user-agent.
    stream = peer.begin("Echo")
    peer.h2.reset_stream(stream)
    peer.flush()
    length = size - 127
    encoded = bytes((length & 127 | 128, length >> 7 & 127 | 128, length >> 14))
    peer.raw(frame(HEADERS, END_HEADERS | END_STREAM, 3, block("Echo") + b"\x0f\x2b\x7f" + encoded + b"a" * size))
    # h2 does not know of the call; it would take offence at the answer.
    data = b""
    async with asyncio.timeout(20):
        while b"grpc-status\x018" not in data:
            data += await peer._reader.read(1 << 16)
    peer.raw(frame(PING, 0, 0, b"are you?"))
    async with asyncio.timeout(20):
        while frame(PING, ACK, 0, b"are you?") not in data:
            data += await peer._reader.read(1 << 16)


@pytest.mark.parametrize("frames", [1, 20])
async def test_far_too_large_headers_end_the_connection(peer: Peer, frames: int) -> None:
    size = 300_000 // frames
    sent = frame(HEADERS, 0, 1, b"\0" * size) + frame(CONTINUATION, 0, 1, b"\0" * size) * (frames - 1)
    peer.raw(sent)
    assert await peer.goodbye() in (ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.FRAME_SIZE_ERROR)


async def test_unknown_frames_are_skipped(peer: Peer) -> None:
    for kind, size in ((10, 0), (11, 1), (0xEE, 40_000), (0xFF, 100_000)):
        peer.raw(frame(kind, 0xFF, 7, bytes(size)))
        await still_serves(peer)


# The connection


async def test_a_ping_is_answered(peer: Peer) -> None:
    peer.h2.ping(b"12345678")
    peer.flush()
    await peer.until(lambda: peer.of(h2.events.PingAckReceived))
    assert peer.of(h2.events.PingAckReceived)[0].ping_data == b"12345678"


async def flood(server: Http2Server, peer: Peer, parts: Iterable[bytes]) -> bool:
    """Send without taking anything; return whether the server has had enough, and what waits stays small."""
    try:
        for part in parts:
            peer.writer.write(part)
            await peer.writer.drain()
            waiting = [connection.transport.get_write_buffer_size() for connection in server._connections]
            assert max(waiting, default=0) < 1 << 20
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("sent", [frame(PING, 0, 0, bytes(8)), frame(SETTINGS, 0, 0)], ids=["pings", "settings"])
async def test_who_asks_and_does_not_listen_is_cut(service: Service, sent: bytes) -> None:
    async with serving(service) as (server, port), connected(port) as peer:
        # Far more than systems keep for who does not read.
        assert await flood(server, peer, itertools.repeat(sent * 1000, 3000))


async def test_who_calls_and_does_not_listen_is_held_up_or_cut(service: Service) -> None:
    # More calls than the server reads at once: none of them is refused for their number.
    async with serving(service, max_calls=1000) as (server, port), connected(port) as peer:
        calls = (frame(HEADERS, END_HEADERS | END_STREAM, stream, block("Nothing")) for stream in range(1, 400_000, 2))
        # What a call is answered with is small, and is not to pile up either.
        await flood(server, peer, (b"".join(part) for part in iter(lambda: tuple(itertools.islice(calls, 50)), ())))


@pytest.mark.parametrize("between", [0, 100])
async def test_a_window_may_shrink_and_grow_while_a_response_waits(peer: Peer, service: Service, between: int) -> None:
    def let(size: int) -> None:
        # h2 does not count what is received after such a change as RFC 9113, section 6.9.2, wants it.
        peer.raw(frame(SETTINGS, 0, 0, b"\0\4" + size.to_bytes(4, "big")))

    service.answer = random.Random(1).randbytes(300_000)
    peer.grants = False
    let(1000)
    stream = peer.begin("Large")
    await peer.send(stream, message(b""), end=True)
    await peer.until(lambda: len(peer.data(stream)) == 1000)
    for size in (0, between):
        # What can be sent is less than nothing.
        let(size)
        await peer.answers()
        assert len(peer.data(stream)) == 1000
    let(40_000)
    await peer.until(lambda: len(peer.data(stream)) == 40_000)
    peer.h2.increment_flow_control_window(400_000)
    peer.h2.increment_flow_control_window(400_000, stream)
    peer.flush()
    assert (await peer.response(stream)).messages() == [(0, service.answer)]


@pytest.mark.parametrize("size", [16_384, 20_000, 1_000_000])
async def test_frames_are_as_large_as_the_client_takes(port: int, service: Service, size: int) -> None:
    service.answer = bytes(3_000_000)
    async with connected(port, max_frame_size=size, initial_window_size=1 << 30) as peer:
        peer.h2.increment_flow_control_window(1 << 30)
        response = await peer.call("Large", b"")
        assert response.messages() == [(0, service.answer)]
        assert max(len(event.data) for event in peer.of(h2.events.DataReceived)) == size


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "connection"])
async def test_a_large_response_comes_as_it_is_let(port: int, service: Service, whole: bool) -> None:
    service.answer = random.Random(2).randbytes(200_000)
    async with connected(port, initial_window_size=1 << 20 if whole else 10) as peer:
        peer.grants = False
        if not whole:
            peer.h2.increment_flow_control_window(1 << 20)
        stream = peer.begin("Large")
        await peer.send(stream, message(b""), end=True)
        granted = 65_535 if whole else 10
        grants = random.Random(3)
        while granted < len(service.answer) + 5:
            await peer.until(lambda: len(peer.data(stream)) == granted)  # noqa: B023
            step = grants.choice([1, 5, 16_384, 16_385, 30_000])
            granted += step
            peer.h2.increment_flow_control_window(step, None if whole else stream)
            peer.flush()
        assert (await peer.response(stream)).messages() == [(0, service.answer)]


@pytest.mark.parametrize("sizes", [(0,), (0, 5), (1, 1), (30, 0, 7), (40, 100_000), (40, 16_384, 3, 50_000)])
async def test_a_response_in_pieces_is_one_message(port: int, service: Service, sizes: tuple[int, ...]) -> None:
    chance = random.Random(5)
    pieces = tuple(chance.randbytes(size) for size in sizes)
    service.answer = pieces
    async with connected(port) as peer:
        assert (await peer.call("Large", b"")).messages() == [(0, b"".join(pieces))]
    async with connected(port, initial_window_size=5) as peer:
        peer.grants = False
        peer.h2.increment_flow_control_window(1 << 20)
        stream = peer.begin("Large")
        await peer.send(stream, message(b""), end=True)
        # To the end of the prefix and of each piece, and somewhere between.
        ends = list(itertools.accumulate(sizes, initial=5))
        let = 5
        for until in sorted({*ends, *(chance.randint(5, ends[-1]) for _ in range(6))}):
            if until > let:
                peer.h2.increment_flow_control_window(until - let, stream)
                peer.flush()
                let = until
            await peer.until(lambda: len(peer.data(stream)) == let)  # noqa: B023
        assert (await peer.response(stream)).messages() == [(0, b"".join(pieces))]


async def test_who_does_not_read_one_call_can_make_others(port: int, service: Service) -> None:
    service.answer = bytes(100_000)
    async with connected(port, initial_window_size=50_000) as peer:
        peer.grants = False
        stream = peer.begin("Large")
        await peer.send(stream, message(b""), end=True)
        await peer.until(lambda: len(peer.data(stream)) == 50_000)
        await still_serves(peer)
        peer.h2.increment_flow_control_window(200_000)
        peer.h2.increment_flow_control_window(200_000, stream)
        peer.flush()
        assert (await peer.response(stream)).messages() == [(0, service.answer)]


async def test_who_sends_more_than_was_let_loses_the_call(peer: Peer, service: Service) -> None:
    stream = peer.begin("Wait")
    peer.raw(frame(DATA, 0, stream, message(bytes(70_000))))
    assert await peer.reset_code(stream) == ErrorCode.FLOW_CONTROL_ERROR
    await peer.answers()


@pytest.mark.parametrize("size", [65_530, 65_531, 65_532, 65_536, 200_000, 3_000_000, MAX_RECEIVED_MESSAGE])
async def test_a_message_above_the_window_arrives_whole(peer: Peer, service: Service, size: int) -> None:
    data = random.Random(4).randbytes(size)
    assert (await peer.call("Collect", data, b"behind", data[:70_000])).status == OK
    assert service.messages == [data, b"behind", data[:70_000]]


async def test_a_message_above_the_limit_is_refused(peer: Peer) -> None:
    stream = peer.begin("Echo")
    await peer.send(stream, message(bytes(MAX_RECEIVED_MESSAGE + 1))[:100])
    assert (await peer.response(stream)).status == RESOURCE_EXHAUSTED
    await still_serves(peer)


@pytest.mark.parametrize("size", [1, 4, 5, 7])
async def test_the_last_message_must_be_complete(peer: Peer, size: int) -> None:
    stream = peer.begin("Echo")
    await peer.send(stream, message(b"123")[:size], end=True)
    assert (await peer.response(stream)).status == INTERNAL


async def test_a_call_without_its_request_is_told(peer: Peer) -> None:
    assert (await peer.response(peer.begin("Echo", end=True))).status == INTERNAL


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_large_messages_go_to_and_fro_on_each_event_loop(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(loop).new_event_loop
    data = random.Random(5).randbytes(2_000_000)

    async def exchange() -> None:
        async with serving(Service()) as (_, port), connected(port) as peer:
            response = await peer.call("Chat", data, b"small", data)
            assert response.messages() == [(0, data), (0, b"small"), (0, data)]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(exchange())


# Compression


@pytest.mark.parametrize(
    ("flags", "headers"), [(1, ()), (1, ((b"grpc-encoding", b"identity"),)), (2, ((b"grpc-encoding", b"gzip"),))]
)
async def test_flags_that_the_headers_do_not_explain(
    peer: Peer, flags: int, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    stream = peer.begin("Echo", *headers)
    await peer.send(stream, message(gzip.compress(b"x"), flags), end=True)
    assert (await peer.response(stream)).status == INTERNAL


@pytest.mark.parametrize("size", [0, 10, 100_000, MAX_RECEIVED_MESSAGE])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_messages_are_taken(peer: Peer, service: Service, encoding: str, size: int) -> None:
    data = bytes(size)
    stream = peer.begin("Collect", (b"grpc-encoding", encoding.encode()))
    packed = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)
    await peer.send(stream, message(packed, 1) + message(b"plain"), end=True)
    assert (await peer.response(stream)).status == OK
    assert service.messages == [data, b"plain"]


@pytest.mark.parametrize("excess", [1, 50_000_000])
async def test_what_is_too_large_unpacked_is_refused(peer: Peer, excess: int) -> None:
    stream = peer.begin("Echo", (b"grpc-encoding", b"gzip"))
    await peer.send(stream, message(gzip.compress(bytes(MAX_RECEIVED_MESSAGE + excess)), 1), end=True)
    assert (await peer.response(stream)).status == RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "packed", [b"", b"no gzip", gzip.compress(b"cut off", mtime=0)[:-1]], ids=["empty", "no gzip", "cut off"]
)
async def test_what_cannot_be_unpacked_is_refused(peer: Peer, packed: bytes) -> None:
    stream = peer.begin("Echo", (b"grpc-encoding", b"gzip"))
    await peer.send(stream, message(packed, 1), end=True)
    assert (await peer.response(stream)).status == INTERNAL


@pytest.mark.parametrize("accepted", [b"identity", b"identity,gzip"])
async def test_answers_are_compressed_where_that_is_wanted(service: Service, accepted: bytes) -> None:
    service.answer = bytes(1_000_000)
    async with serving(service, compression=True) as (_, port), connected(port) as peer:
        response = await peer.call("Large", b"", headers=((b"grpc-accept-encoding", accepted),))
        [(flags, data)] = response.messages()
        assert flags == (b"gzip" in accepted)
        assert (response.first.get(b"grpc-encoding") == b"gzip") == bool(flags)
        assert (gzip.decompress(data) if flags else data) == service.answer


# Ends of calls


async def test_a_call_has_its_time(peer: Peer, service: Service) -> None:
    response = await peer.response(peer.begin("Wait", (b"grpc-timeout", b"50m"), end=True))
    assert response.status == DEADLINE_EXCEEDED
    await service.until(lambda: service.cancelled == 1)


async def test_a_reset_cancels_the_method(peer: Peer, service: Service) -> None:
    stream = peer.begin("Wait")
    await service.until(lambda: service.running == 1)
    peer.h2.reset_stream(stream, ErrorCode.CANCEL)
    peer.flush()
    await service.until(lambda: (service.running, service.cancelled) == (0, 1))
    await still_serves(peer)


async def test_the_end_of_a_connection_cancels_its_methods(peer: Peer, service: Service) -> None:
    for _ in range(5):
        peer.begin("Wait")
    await service.until(lambda: service.running == 5)
    peer.writer.transport.abort()
    await service.until(lambda: (service.running, service.cancelled) == (0, 5))


async def test_a_status_before_the_last_message_ends_the_stream(peer: Peer) -> None:
    stream = peer.begin("Early")
    assert await peer.reset_code(stream) == ErrorCode.NO_ERROR
    response = await peer.response(stream)
    assert (response.status, response.messages()) == (OK, [(0, b"early")])


async def test_calls_above_the_limit_are_refused(peer: Peer, service: Service) -> None:
    # h2 keeps to the limit itself.
    peer.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    peer.h2.remote_settings.acknowledge()
    streams = [peer.begin("Wait", end=True) for _ in range(11)]
    assert await peer.reset_code(streams[-1]) == ErrorCode.REFUSED_STREAM
    service.may_end.set()
    assert [(await peer.response(stream)).status for stream in streams[:-1]] == [OK] * 10


async def test_calls_that_are_reset_at_once_do_not_pile_up(peer: Peer, service: Service) -> None:
    for _ in range(20):
        for _ in range(100):
            stream = peer.begin("Wait")
            peer.h2.reset_stream(stream)
        await peer.answers()
    assert service.most_running <= 20
    await service.until(lambda: service.running == 0)
    await still_serves(peer)


async def test_a_method_that_fails_is_logged_and_not_shown(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    response = await peer.call("Fail", b"")
    assert response.status == UNKNOWN
    assert "nobody" not in response.details
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "nobody's business" in str(record.exc_info[1])
    caplog.clear()


async def test_an_unknown_method_is_told(peer: Peer) -> None:
    assert (await peer.call("Nothing", b"")).status == UNIMPLEMENTED


async def test_long_details_keep_to_the_size_of_frames(service: Service) -> None:
    class Talkative(Service):
        async def echo(self, request: bytes, context: object) -> bytes:
            await context.abort(grpc.StatusCode.ABORTED, "ü" * 5000)  # type: ignore[attr-defined]
            raise AssertionError

    async with serving(Talkative()) as (_, port), connected(port) as peer:
        response = await peer.call("Echo", b"")
        assert len(response.details) == 30_000


# Ends of connections


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\0", PREFACE[:-1] + b"x", b"\x16\x03\x01"])
async def test_what_is_not_http2_is_told_and_closed(port: int, sent: bytes) -> None:
    async with connected(port, begin=False) as peer:
        peer.h2.initiate_connection()
        peer.h2.clear_outbound_data_buffer()
        peer.writer.write(sent)
        assert await peer.goodbye() == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("sent", [b"", PREFACE[:5]])
async def test_who_does_not_begin_is_cut(port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http2_connection, "_PREFACE_TIMEOUT", 0.05)
    async with connected(port, begin=False) as peer:
        peer.writer.write(sent)
        peer.h2.initiate_connection()
        peer.h2.clear_outbound_data_buffer()
        await peer.until_closed()


async def test_who_does_not_answer_pings_is_cut(service: Service) -> None:
    async with (
        serving(service, keepalive_interval=0.05, keepalive_timeout=0.1) as (_, port),
        connected(port) as peer,
    ):
        peer.begin("Wait")
        await service.until(lambda: service.cancelled == 1)


async def test_who_answers_pings_is_kept(service: Service) -> None:
    async with (
        serving(service, keepalive_interval=0.01, keepalive_timeout=1.0) as (_, port),
        connected(port) as peer,
    ):
        await peer.until(lambda: len(peer.of(h2.events.PingReceived)) >= 10)
        await still_serves(peer)


async def test_a_call_may_end_while_the_server_stops(service: Service) -> None:
    async with serving(service) as (server, port), connected(port) as peer:
        stream = peer.begin("Wait", end=True)
        await service.until(lambda: service.running == 1)
        stopping = asyncio.create_task(server.stop(30.0))
        await peer.until(lambda: peer.of(h2.events.ConnectionTerminated))
        service.may_end.set()
        await stopping
        assert peer.of(h2.events.ConnectionTerminated)[0].last_stream_id == stream
        data = await peer._reader.read()
        assert b"done" in data
        assert b"grpc-status\x010" in data


async def test_a_call_is_still_heard_while_the_server_stops(service: Service) -> None:
    async with serving(service) as (server, port), connected(port) as peer:
        stream = peer.begin("Collect")
        await peer.send(stream, message(b"before"))
        await service.until(lambda: len(service.messages) == 1)
        stopping = asyncio.create_task(server.stop(5.0))
        await peer.until(lambda: peer.of(h2.events.ConnectionTerminated))
        # h2 sends nothing more on a connection that is about to end.
        peer.raw(frame(DATA, END_STREAM, stream, message(b"after")))
        await stopping
        assert service.messages == [b"before", b"after"]


async def test_a_ping_is_answered_while_the_server_stops(service: Service) -> None:
    async with serving(service) as (server, port), connected(port) as peer:
        peer.begin("Wait")
        await service.until(lambda: service.running == 1)
        stopping = asyncio.create_task(server.stop(5.0))
        await peer.until(lambda: peer.of(h2.events.ConnectionTerminated))
        peer.raw(frame(PING, 0, 0, b"are you?"))
        data = await peer._reader.read(1000)
        service.may_end.set()
        await stopping
        assert frame(PING, ACK, 0, b"are you?") in data


async def test_a_call_that_does_not_end_is_cancelled_behind_the_grace(service: Service) -> None:
    async with serving(service) as (server, port), connected(port) as peer:
        peer.begin("Wait")
        await service.until(lambda: service.running == 1)
        await server.stop(0.01)
        assert (service.running, service.cancelled) == (0, 1)
        assert await peer.goodbye() == ErrorCode.NO_ERROR


# Offences

LARGEST = (1 << 31) - 1
OFFENCES = {
    "window overflow": (frame(WINDOW_UPDATE, 0, 0, LARGEST.to_bytes(4, "big")), ErrorCode.FLOW_CONTROL_ERROR),
    "no increment": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "size of increment": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "increment of idle": (frame(WINDOW_UPDATE, 0, 5, bytes(3) + b"\1"), ErrorCode.PROTOCOL_ERROR),
    "size of ping": (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "ping of a stream": (frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "size of settings": (frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "settings with ack": (frame(SETTINGS, ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "settings of a stream": (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "largest window": (frame(SETTINGS, 0, 0, b"\0\4\x80\0\0\0"), ErrorCode.FLOW_CONTROL_ERROR),
    "smallest frame": (frame(SETTINGS, 0, 0, b"\0\5\0\0\x3f\xff"), ErrorCode.PROTOCOL_ERROR),
    "largest frame": (frame(SETTINGS, 0, 0, b"\0\5\1\0\0\0"), ErrorCode.PROTOCOL_ERROR),
    "push": (frame(SETTINGS, 0, 0, b"\0\2\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "size of reset": (frame(RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "reset of connection": (frame(RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "reset of idle": (frame(RST_STREAM, 0, 5, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "size of goaway": (frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "goaway of a stream": (frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "priority of connection": (frame(PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "promise": (frame(PUSH_PROMISE, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "data of connection": (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data of idle": (frame(DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "padding of data": (frame(DATA, PADDED, 1, b"\2x"), ErrorCode.PROTOCOL_ERROR),
    "padding of headers": (frame(HEADERS, PADDED | END_HEADERS, 3, b"\2x"), ErrorCode.PROTOCOL_ERROR),
    "headers of connection": (frame(HEADERS, END_HEADERS, 0, block("Wait")), ErrorCode.PROTOCOL_ERROR),
    "even number": (frame(HEADERS, END_HEADERS, 2, block("Wait")), ErrorCode.PROTOCOL_ERROR),
    "no headers": (frame(HEADERS, END_HEADERS, 3, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "interleaved": (frame(HEADERS, 0, 3) + frame(PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "other continued": (frame(HEADERS, 0, 3) + frame(CONTINUATION, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "unknown within": (frame(HEADERS, 0, 3) + frame(0xEE, 0, 0), ErrorCode.PROTOCOL_ERROR),
    "nothing continued": (frame(CONTINUATION, END_HEADERS, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "size of any": (b"\xff\xff\xff" + frame(DATA, 0, 1)[3:], ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", OFFENCES)
async def test_offences_end_the_connection(peer: Peer, service: Service, name: str) -> None:
    sent, code = OFFENCES[name]
    peer.begin("Wait")
    await service.until(lambda: service.running == 1)
    peer.raw(sent)
    assert await peer.goodbye() == code
    await service.until(lambda: (service.running, service.cancelled) == (0, 1))


async def test_settings_that_make_a_window_too_large_end_the_connection(peer: Peer, service: Service) -> None:
    stream = peer.begin("Wait")
    peer.h2.increment_flow_control_window(LARGEST - 65_535, stream)
    peer.raw(frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0"))
    assert await peer.goodbye() == ErrorCode.FLOW_CONTROL_ERROR


STREAM_OFFENCES = {
    "window overflow": (frame(WINDOW_UPDATE, 0, 1, LARGEST.to_bytes(4, "big")), ErrorCode.FLOW_CONTROL_ERROR),
    "no increment": (frame(WINDOW_UPDATE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "second headers": (frame(HEADERS, END_HEADERS, 1, block("Wait")), ErrorCode.PROTOCOL_ERROR),
    "data behind the end": (frame(DATA, END_STREAM, 1) + frame(DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "headers behind the end": (
        frame(DATA, END_STREAM, 1) + frame(HEADERS, END_HEADERS | END_STREAM, 1, b""),
        ErrorCode.STREAM_CLOSED,
    ),
    "size of priority": (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", STREAM_OFFENCES)
async def test_offences_of_a_call_end_that_call(peer: Peer, service: Service, name: str) -> None:
    sent, code = STREAM_OFFENCES[name]
    stream = peer.begin("Wait")
    peer.raw(sent)
    assert await peer.reset_code(stream) == code
    await still_serves(peer)
    await service.until(lambda: service.running == 0)


@pytest.mark.parametrize(
    "sent", [frame(DATA, 0, 1, b"x"), frame(RST_STREAM, 0, 1, bytes(4)), frame(PRIORITY, 0, 1, bytes(5))]
)
async def test_what_comes_late_is_ignored(peer: Peer, sent: bytes) -> None:
    await peer.call("Echo", b"x")
    peer.raw(sent + frame(WINDOW_UPDATE, 0, 1, bytes(3) + b"\1"))
    await still_serves(peer)


async def test_trailers_of_a_client_end_its_messages(peer: Peer, service: Service) -> None:
    stream = peer.begin("Collect")
    await peer.send(stream, message(b"x"))
    peer.h2.send_headers(stream, [(b"key", b"value")], end_stream=True)
    peer.flush()
    assert (await peer.response(stream)).status == OK
