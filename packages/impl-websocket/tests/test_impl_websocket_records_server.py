"""Conversations about records as the server's shell bounds them, with services that do as the tests say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from impl_websocket_server import Raw, Running, frame, raw

from tailrace_common_api import (
    BulkResult,
    MessageTooLarge,
    ProtocolError,
    QueuedRecord,
    RecordBatch,
    RecordLimits,
)
from tailrace_impl_common import MessageStream
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Window
from tailrace_impl_common.record_messages import (
    BulkCommitted,
    BulkOpened,
    CommitBulk,
    Credit,
    CreditSet,
    Deliveries,
    Leave,
    Left,
    QueryEnd,
    QueryStarted,
    Settle,
    Settled,
    WorkOpened,
)
from tailrace_impl_websocket import _server_streams
from tailrace_impl_websocket._chunk_frame import MAX_FRAME_SIZE
from tailrace_impl_websocket._record_frame import frame_deliveries, frame_records, parse_deliveries, parse_records

Stream = MessageStream[ServerMessage, ClientMessage]
Conversation = Callable[[Stream], Awaitable[None]]
LIMITS = RecordLimits(record_bytes=1000, bulk_records=1000, bulk_bytes=10_000, bulk_idle=60.0, window=1000)
RESULT = BulkResult(id="b", collection="c", records=1, size=1, digest=bytes(16), committed_at=1.0)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Conversation], None]:
    """Let a function of the test serve every conversation."""

    def put(conversation: Conversation) -> None:
        async def serve_conversation(request: object, stream: Stream, **more: object) -> None:
            await conversation(stream)

        monkeypatch.setattr(_server_streams, "serve_conversation", serve_conversation)

    return put


def opened(until: int, result: BulkResult | None = None) -> BulkOpened:
    return BulkOpened(id="b", content_type="application/json", limits=LIMITS, until=until, result=result)


def records(request: int, size: int) -> bytes:
    """Return a frame of one record that counts for ``size`` bytes."""
    return frame_records(request, RecordBatch([bytes(size - 8)]))


async def open_bulk(client: Raw, request: int = 1) -> Any:
    await client.say("open_bulk", request, collection="c")
    return await client.until("bulk_opened")


async def test_records_of_a_bulk_arrive_in_order(server: Running, serve: Callable[[Conversation], None]) -> None:
    received: list[ClientMessage | None] = []

    async def conversation(stream: Stream) -> None:
        await stream.send(opened(1000))
        while not isinstance(message := await stream.receive(), CommitBulk):
            received.append(message)
        await stream.send(BulkCommitted(RESULT))

    serve(conversation)
    batches = [RecordBatch([b"one", b"two"], ["k", None]), RecordBatch([b"three"])]
    async with raw(server.endpoint) as client:
        assert (await open_bulk(client))["until"] == 1000
        for batch in batches:
            await client.send(frame_records(1, batch))
        await client.say("commit_bulk", 1, records=3, digest="0" * 32)
        assert (await client.until("bulk_committed"))["result"]["records"] == 1
    assert received == batches


async def test_window_of_a_bulk_is_kept_by_the_connection(
    server: Running, serve: Callable[[Conversation], None]
) -> None:
    taken = 0

    async def conversation(stream: Stream) -> None:
        nonlocal taken
        await stream.send(opened(100))
        while True:
            message = await stream.receive()
            assert isinstance(message, RecordBatch)
            taken += message.size
            if taken == 100:
                await stream.send(Window(130))
                # A grant that is repeated, or late, grants nothing.
                await stream.send(Window(120))

    serve(conversation)
    async with raw(server.endpoint) as client:
        await open_bulk(client)
        for size in (60, 40):
            await client.send(records(1, size))
        assert (await client.until("window"))["until"] == 130
        await client.send(records(1, 30))
        await client.send(records(1, 8))
        error = await client.error(1)
        assert isinstance(error, ProtocolError)
        assert "8 bytes more than the window allows" in error.message
    # What was allowed has arrived.
    assert taken == 130


async def test_nothing_is_sent_before_the_bulk_is_open(server: Running, serve: Callable[[Conversation], None]) -> None:
    async def conversation(stream: Stream) -> None:
        await stream.receive()

    serve(conversation)
    async with raw(server.endpoint) as client:
        await client.say("open_bulk", 1, collection="c")
        await client.send(records(1, 8))
        assert isinstance(await client.error(1), ProtocolError)


async def test_nothing_is_sent_behind_an_earlier_result(server: Running, serve: Callable[[Conversation], None]) -> None:
    async def conversation(stream: Stream) -> None:
        await stream.send(opened(1000, RESULT))
        await stream.receive()

    serve(conversation)
    async with raw(server.endpoint) as client:
        assert (await open_bulk(client))["result"]["id"] == "b"
        await client.send(records(1, 8))
        assert isinstance(await client.error(1), ProtocolError)


@pytest.mark.parametrize(
    ("begin", "sent"),
    [
        ({"type": "open_bulk", "collection": "c"}, frame(1, 0, b"data")),
        ({"type": "open_bulk", "collection": "c"}, frame_deliveries(1, Deliveries((QueuedRecord(1, 1, 0, b""),)))),
        ({"type": "open_upload", "metadata": {"name": "x"}}, records(1, 8)),
        ({"type": "query", "source": "s"}, records(1, 8)),
        ({"type": "work", "queue": "q", "records": 1, "bytes": 1}, records(1, 8)),
        (
            {"type": "work", "queue": "q", "records": 1, "bytes": 1},
            frame_deliveries(1, Deliveries((QueuedRecord(1, 1, 0, b""),))),
        ),
    ],
)
async def test_each_conversation_has_frames_of_its_own_layout(
    server: Running, serve: Callable[[Conversation], None], begin: dict[str, Any], sent: bytes
) -> None:
    async def conversation(stream: Stream) -> None:
        await stream.send(opened(1000))
        await stream.receive()

    serve(conversation)
    async with raw(server.endpoint) as client:
        await client.say(begin.pop("type"), 1, **begin)
        await client.until("bulk_opened")
        await client.send(sent)
        error = await client.error(1)
        assert isinstance(error, ProtocolError)
        assert "layout" in error.message
        # Nobody else is concerned.
        await client.say("get_status", 2, id="0" * 32)
        assert (await client.error(2)).code == "not_found"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"\x02" + bytes(3) + b"\x00\x00\x00\x01" + bytes(8), ProtocolError),
        (records(1, 20)[:-1], ProtocolError),
        (b"\x02" + bytes(3) + b"\x00\x00\x00\x01" + bytes(MAX_FRAME_SIZE), MessageTooLarge),
    ],
)
async def test_hostile_frame_ends_its_bulk_only(
    server: Running, serve: Callable[[Conversation], None], sent: bytes, error: type[ProtocolError]
) -> None:
    async def conversation(stream: Stream) -> None:
        await stream.send(opened(MAX_FRAME_SIZE * 2))
        await stream.receive()

    serve(conversation)
    async with raw(server.endpoint) as client:
        await open_bulk(client)
        await client.send(sent)
        assert isinstance(await client.error(1), error)
        await open_bulk(client, 2)


async def test_frames_behind_the_end_of_a_bulk_are_late_and_no_mistake(
    server: Running, serve: Callable[[Conversation], None]
) -> None:
    async def conversation(stream: Stream) -> None:
        await stream.send(opened(1000))
        await stream.receive()
        raise ProtocolError("enough")

    serve(conversation)
    async with raw(server.endpoint) as client:
        await open_bulk(client)
        await client.send(records(1, 8))
        assert (await client.error(1)).message == "enough"
        await client.send(records(1, 8))
        await client.say("commit_bulk", 1, records=2, digest="0" * 32)
        await open_bulk(client, 2)


async def test_results_and_deliveries_are_sent_as_frames(
    server: Running, serve: Callable[[Conversation], None]
) -> None:
    batch = RecordBatch([b"one", b"two"], ["k", None])
    deliveries = Deliveries((QueuedRecord(7, 2, -1, b"data", "k"),))

    async def conversation(stream: Stream) -> None:
        await stream.send(QueryStarted("application/json"))
        await stream.send(batch)
        await stream.send(deliveries)
        await stream.send(QueryEnd(2, bytes(16)))

    serve(conversation)
    async with raw(server.endpoint) as client:
        await client.say("query", 9, source="s")
        assert (await client.receive())["type"] == "query_started"
        assert parse_records(await client.receive()) == batch
        assert parse_deliveries(await client.receive()) == deliveries
        assert (await client.receive())["records"] == 2


# Work

WORK = {"queue": "q", "records": 1, "bytes": 1}


def settlements(count: int, reason: str = "") -> list[dict[str, object]]:
    return [{"id": number, "attempt": 1, "verdict": "dead_letter", "reason": reason} for number in range(count)]


@contextmanager
def idle(serve: Callable[[Conversation], None]) -> Iterator[asyncio.Event]:
    """Serve a consumer that is not listened to until the event is set; it is then, until it leaves."""
    go_on = asyncio.Event()

    async def conversation(stream: Stream) -> None:
        await stream.send(WorkOpened(consumer="c", content_type="application/json", lease=30.0))
        await go_on.wait()
        while True:
            match await stream.receive():
                case Settle() as settle:
                    await stream.send(Settled((True,) * len(settle.settlements)))
                case Credit() as credit:
                    await stream.send(CreditSet(credit.sequence, 0, False))
                case Leave():
                    await stream.send(Left())
                    return

    serve(conversation)
    yield go_on


async def test_many_answers_wait_for_a_busy_server(server: Running, serve: Callable[[Conversation], None]) -> None:
    with idle(serve) as go_on:
        async with raw(server.endpoint) as client:
            await client.say("work", 1, **WORK)
            await client.until("work_opened")
            # Far more messages than may wait of any other kind.
            for _ in range(5000):
                await client.say("settle", 1, settlements=settlements(1))
            await client.say("credit", 1, sequence=1, records=5, bytes=5)
            await client.say("leave", 1)
            go_on.set()
            for _ in range(5000):
                assert (await client.receive())["counted"] == [True]
            assert (await client.receive())["sequence"] == 1
            assert (await client.receive())["type"] == "left"


@pytest.mark.parametrize(("count", "reason", "messages"), [(8192, "", 17), (800, "x" * 1024, 11)])
async def test_answers_that_nobody_can_have_end_the_conversation(
    server: Running, serve: Callable[[Conversation], None], count: int, reason: str, messages: int
) -> None:
    with idle(serve):
        async with raw(server.endpoint) as client:
            await client.say("work", 1, **WORK)
            await client.until("work_opened")
            for _ in range(messages):
                await client.say("settle", 1, settlements=settlements(count, reason))
            # Behind these nothing is listened to.
            await client.say("get_status", 2, id="0" * 32)
            assert (await client.error(2)).code == "not_found"
            stream = await served(server)
            assert stream._failure is not None
            assert "answers to deliveries" in stream._failure.message


async def test_credit_that_changes_without_end_ends_the_conversation(
    server: Running, serve: Callable[[Conversation], None]
) -> None:
    with idle(serve) as go_on:
        async with raw(server.endpoint) as client:
            await client.say("work", 1, **WORK)
            await client.until("work_opened")
            for sequence in range(1, 1026):
                await client.say("credit", 1, sequence=sequence, records=5, bytes=5)
            await client.say("get_status", 2, id="0" * 32)
            assert (await client.error(2)).code == "not_found"
            go_on.set()
            assert isinstance(await client.error(1), ProtocolError)


async def served(server: Running) -> Any:
    """Return the server's side of the one request that runs."""
    assert server.transport._endpoints is not None
    (connection,) = server.transport._endpoints._connections
    (stream,) = connection._streams.values()
    return stream
