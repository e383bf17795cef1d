"""Conversations about records, against servers that follow a script and may break the protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from impl_websocket_peer import ID, STATUS, Peer, connection, scripted
from impl_websocket_server import frame

from tailrace_common_api import (
    Argument,
    BulkConflict,
    BulkResult,
    ConnectionLost,
    ProtocolError,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Settlement,
    Verdict,
)
from tailrace_impl_common.messages import GetStatus, Request, Status, Window
from tailrace_impl_common.record_messages import (
    BulkCommitted,
    BulkOpened,
    CommitBulk,
    Credit,
    CreditSet,
    Deliveries,
    GetQueue,
    Leave,
    Left,
    OpenBulk,
    Query,
    QueryEnd,
    QueryStarted,
    Settle,
    Settled,
    Work,
    WorkOpened,
)
from tailrace_impl_websocket._codec import Failure
from tailrace_impl_websocket._record_frame import frame_deliveries, frame_records, parse_records

LIMITS = RecordLimits(record_bytes=1000, bulk_records=1000, bulk_bytes=10_000, bulk_idle=60.0, window=1000)
RESULT = BulkResult(id="b", collection="c", records=3, size=11, digest=b"d" * 16, committed_at=1.0)
OPENED = BulkOpened(id="b", content_type="application/json", limits=LIMITS, until=1000)
WORK_OPENED = WorkOpened(consumer="c", content_type="application/json", lease=30.0)
ACKNOWLEDGED = Settle((Settlement(1, 1, Verdict.ACKNOWLEDGE),))


def records(request: int, size: int) -> bytes:
    """Return a frame of one record that counts for ``size`` bytes."""
    return frame_records(request, RecordBatch([bytes(size - 8)]))


def delivered(*sizes: int) -> Deliveries:
    """Return deliveries that count for these sizes."""
    return Deliveries(tuple(QueuedRecord(id_, 1, 0, bytes(size - 8)) for id_, size in enumerate(sizes, 1)))


async def test_bulk_is_sent_as_frames_and_ends_with_its_result() -> None:
    batches = [RecordBatch([b"one", b"two"], ["k", None]), RecordBatch([b"three"])]
    received: list[RecordBatch] = []

    async def script(peer: Peer) -> None:
        await peer.hello()
        opening = await peer.hear()
        assert (opening["type"], opening["collection"], opening["idempotency_key"]) == ("open_bulk", "c", "key")
        await peer.say(opening["request"], OPENED)
        for _ in batches:
            sent = await peer.hear()
            assert sent[4:8] == opening["request"].to_bytes(4, "big")
            received.append(parse_records(sent))
        assert (await peer.hear())["records"] == 3
        await peer.say(opening["request"], BulkCommitted(RESULT))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(OpenBulk(collection="c", idempotency_key="key"))
        assert await stream.receive() == OPENED
        for batch in batches:
            await stream.send(batch)
        await stream.send(CommitBulk(3, b"d" * 16))
        assert await stream.receive() == BulkCommitted(RESULT)
        assert await stream.receive() is None
        with pytest.raises(ConnectionLost):
            await stream.send(batches[0])
    assert received == batches


async def test_bulk_that_committed_before_is_over_at_once() -> None:
    opened = BulkOpened(id="b", content_type="application/json", limits=LIMITS, until=0, result=RESULT)

    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.say((await peer.hear())["request"], opened)

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(OpenBulk(collection="c"))
        assert await stream.receive() == opened
        assert await stream.receive() is None


async def test_refused_bulk_raises_what_the_server_says() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.say((await peer.hear())["request"], Failure(BulkConflict(id="b")))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(OpenBulk(collection="c"))
        with pytest.raises(BulkConflict):
            await stream.receive()


# Queries


async def test_results_arrive_until_their_end() -> None:
    batch = RecordBatch([b"one", b"two"], ["k", None])

    async def script(peer: Peer) -> None:
        await peer.hello()
        asked = await peer.hear()
        assert (asked["source"], asked["arguments"]) == ("s", {"user_id": 1, "text": "ü", "flag": True, "none": None})
        await peer.say(asked["request"], QueryStarted("application/json"))
        await peer.websocket.send(frame_records(asked["request"], batch))
        await peer.say(asked["request"], QueryEnd(2, b"d" * 16))

    async with scripted(script) as server, connection(server.url) as made:
        arguments: dict[str, Argument] = {"user_id": 1, "text": "ü", "flag": True, "none": None}
        stream = await made.open(Query(source="s", arguments=arguments))
        assert await stream.receive() == QueryStarted("application/json")
        assert await stream.receive() == batch
        assert await stream.receive() == QueryEnd(2, b"d" * 16)
        assert await stream.receive() is None


async def test_query_without_a_window_gets_one_that_is_renewed() -> None:
    windows: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.hello()
        asked = await peer.hear()
        windows.append(asked["window"])
        await peer.say(asked["request"], QueryStarted("application/json"))
        for _ in range(6):
            # A renewal for each quarter of a window.
            await peer.websocket.send(records(asked["request"], asked["window"] // 4))
            windows.append((await peer.hear())["until"])
        await peer.say(asked["request"], QueryEnd(6, bytes(16)))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Query(source="s"))
        while await stream.receive() is not None:
            pass
    # The server's greatest, since it is smaller than that of the client.
    assert windows == [2048, *(2048 + 512 * number for number in range(1, 7))]


async def test_window_that_is_asked_for_is_the_callers_to_renew() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        asked = await peer.hear()
        assert asked["window"] == 1000
        await peer.say(asked["request"], QueryStarted("application/json"))
        await peer.websocket.send(records(asked["request"], 900))
        assert (await peer.hear()) == {"type": "window", "request": asked["request"], "until": 1500}
        # The second of these overdraws, which one message may.
        for _ in range(3):
            await peer.websocket.send(records(asked["request"], 400))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Query(source="s", window=1000))
        assert isinstance(await stream.receive(), QueryStarted)
        assert isinstance(await stream.receive(), RecordBatch)
        await stream.send(Window(1500))
        assert isinstance(await stream.receive(), RecordBatch)
        assert isinstance(await stream.receive(), RecordBatch)
        with pytest.raises(ProtocolError, match="window"):
            await stream.receive()


async def test_reader_that_takes_nothing_holds_nobody_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        asked = await peer.hear()
        await peer.say(asked["request"], QueryStarted("application/json"))
        await peer.websocket.send(records(asked["request"], asked["window"]))
        status = await peer.hear()
        assert status["type"] == "get_status"
        await peer.say(status["request"], STATUS)
        peer.silent.set()
        # Nothing was granted for what nobody has taken.
        assert (await peer.hear())["type"] == "cancel"

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Query(source="s"))
        assert isinstance(await made.call(GetStatus(id=ID)), Status)
        await server.everything_arrived()
        await stream.close()


# What a server may not send


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (Query(source="s"), frame(1, 0, b"data")),
        (Query(source="s"), frame_deliveries(1, delivered(8))),
        (Work(queue="q", records=5, bytes=1000), records(1, 8)),
        (OpenBulk(collection="c"), records(1, 8)),
        (GetQueue(queue="q"), records(1, 8)),
        (Query(source="s"), records(1, 20)[:-1]),
    ],
)
async def test_frames_that_do_not_belong_end_their_stream_only(request_: Request, sent: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        assert (await peer.hear())["request"] == 1
        if isinstance(request_, Query):
            await peer.say(1, QueryStarted("application/json"))
        await peer.websocket.send(sent)
        while (message := await peer.hear())["type"] != "get_status":
            assert message["type"] in ("cancel", "window")
        await peer.say(message["request"], STATUS)

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(request_)
        if isinstance(request_, Query):
            await stream.receive()
        with pytest.raises(ProtocolError):
            await stream.receive()
        await stream.close()
        assert isinstance(await made.call(GetStatus(id=ID)), Status)


# Work


async def test_work_is_said_in_turns() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        asked = await peer.hear()
        assert (asked["queue"], asked["records"], asked["bytes"]) == ("q", 2, 1000)
        number = asked["request"]
        await peer.say(number, WORK_OPENED)
        await peer.websocket.send(frame_deliveries(number, delivered(20, 30)))
        assert (await peer.hear())["settlements"] == [{"id": 1, "attempt": 1, "verdict": "acknowledge"}]
        await peer.say(number, Settled((True,)))
        assert (await peer.hear())["sequence"] == 1
        await peer.say(number, CreditSet(1, 1, False))
        assert (await peer.hear())["type"] == "leave"
        await peer.say(number, Left())

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=2, bytes=1000))
        assert await stream.receive() == WORK_OPENED
        assert await stream.receive() == delivered(20, 30)
        await stream.send(ACKNOWLEDGED)
        assert await stream.receive() == Settled((True,))
        await stream.send(Credit(sequence=1, records=0, bytes=0))
        assert await stream.receive() == CreditSet(1, 1, False)
        await stream.send(Leave())
        assert await stream.receive() == Left()
        assert await stream.receive() is None


Deliver = Callable[[Peer, int], Awaitable[None]]


async def end_of_work(credit: tuple[int, int], deliver: Deliver, *, take: int) -> str | None:
    """Take the deliveries of a server; return why it was stopped behind these, or ``None``."""

    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, WORK_OPENED)
        await deliver(peer, number)

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=credit[0], bytes=credit[1]))
        await server.everything_arrived()
        assert isinstance(await stream.receive(), WorkOpened)
        for _ in range(take):
            assert isinstance(await stream.receive(), Deliveries)
        failure = stream._failure  # type: ignore[attr-defined]  # whether it was refused, without waiting for more
        return None if failure is None else str(failure.message)


def delivering(*messages: Deliveries) -> Deliver:
    async def deliver(peer: Peer, number: int) -> None:
        for message in messages:
            await peer.websocket.send(frame_deliveries(number, message))

    return deliver


async def test_deliveries_that_nobody_takes_are_bounded_by_the_credit() -> None:
    small = delivered(10)
    assert await end_of_work((3, 1000), delivering(small, delivered(10, 10)), take=2) is None
    beyond = await end_of_work((3, 1000), delivering(small, small, small, small), take=3)
    assert beyond is not None
    assert "credit of 3 records" in beyond
    assert await end_of_work((0, 1000), delivering(small), take=0) is not None


async def test_bytes_of_deliveries_are_bounded_by_the_credit() -> None:
    assert await end_of_work((10, 100), delivering(delivered(50), delivered(50)), take=2) is None
    assert await end_of_work((10, 100), delivering(delivered(50), delivered(51)), take=1) is not None
    # A record that is larger than the credit comes when nothing else is there.
    assert await end_of_work((10, 100), delivering(delivered(5000)), take=1) is None
    assert await end_of_work((10, 100), delivering(delivered(5000), delivered(8)), take=1) is not None


async def test_credit_that_is_taken_back_covers_what_is_on_its_way() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, WORK_OPENED)
        credits_ = [await peer.hear(), await peer.hear()]
        assert [each["records"] for each in credits_] == [3, 0]
        await peer.websocket.send(frame_deliveries(number, delivered(10, 10, 10)))
        await peer.say(number, CreditSet(2, 3, True))
        await peer.websocket.send(frame_deliveries(number, delivered(10)))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=1, bytes=1000))
        assert isinstance(await stream.receive(), WorkOpened)
        await stream.send(Credit(sequence=1, records=3, bytes=1000))
        await stream.send(Credit(sequence=2, records=0, bytes=0))
        await server.everything_arrived()
        assert await stream.receive() == delivered(10, 10, 10)
        assert await stream.receive() == CreditSet(2, 3, True)
        with pytest.raises(ProtocolError, match="credit"):
            await stream.receive()


async def test_what_was_taken_makes_room_for_more() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, WORK_OPENED)
        for _ in range(5):
            await peer.websocket.send(frame_deliveries(number, delivered(10)))
            assert (await peer.hear())["type"] == "settle"
            await peer.say(number, Settled((True,)))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=1, bytes=10))
        assert isinstance(await stream.receive(), WorkOpened)
        for _ in range(5):
            assert await stream.receive() == delivered(10)
            await stream.send(ACKNOWLEDGED)
            assert await stream.receive() == Settled((True,))


async def test_answers_that_nobody_gave_cannot_be_confirmed() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, WORK_OPENED)
        await peer.hear()
        for _ in range(2):
            await peer.say(number, Settled((True,)))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=1, bytes=10))
        assert isinstance(await stream.receive(), WorkOpened)
        await stream.send(ACKNOWLEDGED)
        assert await stream.receive() == Settled((True,))
        with pytest.raises(ProtocolError, match="nobody gave"):
            await stream.receive()


async def test_more_answers_are_confirmed_than_messages_may_wait() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, WORK_OPENED)
        for _ in range(5000):
            await peer.hear()
            await peer.say(number, Settled((False,), "busy"))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=1, bytes=10))
        for _ in range(5000):
            await stream.send(ACKNOWLEDGED)
        await server.everything_arrived()
        assert isinstance(await stream.receive(), WorkOpened)
        for _ in range(5000):
            assert await stream.receive() == Settled((False,), "busy")


async def test_newest_state_of_the_credit_is_enough() -> None:
    async def script(peer: Peer) -> None:
        await peer.hello()
        number = (await peer.hear())["request"]
        await peer.say(number, WORK_OPENED)
        for outstanding in range(10_000):
            await peer.say(number, CreditSet(0, outstanding, bool(outstanding % 2)))

    async with scripted(script) as server, connection(server.url) as made:
        stream = await made.open(Work(queue="q", records=1, bytes=10))
        await server.everything_arrived()
        assert isinstance(await stream.receive(), WorkOpened)
        assert await stream.receive() == CreditSet(0, 9999, True)


async def test_figures_of_a_queue_are_one_answer() -> None:
    figures = QueueFigures(queue="q", ready=1, delayed=2, in_flight=3, dead=4, consumers=5, stalled=6)

    async def script(peer: Peer) -> None:
        await peer.hello()
        asked = await peer.hear()
        assert (asked["type"], asked["queue"]) == ("get_queue", "q")
        await peer.say(asked["request"], figures)

    async with scripted(script) as server, connection(server.url) as made:
        assert await made.call(GetQueue(queue="q")) == figures
