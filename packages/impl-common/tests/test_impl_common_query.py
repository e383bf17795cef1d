"""A query from the client to the source, over the in-process transport."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from impl_common_record_bench import KIB, SERVER_LIMITS, RecordBench

from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    DeadlineExceeded,
    GoingAway,
    IntegrityError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    QueryFailed,
    Record,
    RecordBatch,
    RecordEndNotFound,
    TailraceError,
)
from tailrace_impl_common.messages import ServerMessage, Window
from tailrace_impl_common.record_messages import CommitBulk, Query, QueryEnd, QueryStarted

BATCH = RecordBatch([b"%015d" % number for number in range(10)])
"""Ten records of 23 bytes with their overhead."""


class Source:
    """Yields batches, and tells how far it has come and whether it was closed."""

    def __init__(self, *batches: RecordBatch, count: int = 1, error: Exception | None = None) -> None:
        self._batches = batches
        self._count = count
        self._error = error
        self.produced = 0
        self.opened = 0
        self.closed = asyncio.Event()
        self.waiting = asyncio.Event()
        self.hold_at: int | None = None

    async def __call__(self) -> AsyncGenerator[RecordBatch, None]:
        self.opened += 1
        try:
            for _ in range(self._count):
                for batch in self._batches:
                    if self.produced == self.hold_at:
                        self.waiting.set()
                        await asyncio.Event().wait()
                    self.produced += 1
                    yield batch
                    await asyncio.sleep(0)
            if self._error is not None:
                raise self._error
        finally:
            # As a cursor that is closed at its database.
            await asyncio.sleep(0)
            self.closed.set()


@pytest.fixture
async def bench() -> AsyncIterator[RecordBench]:
    async with RecordBench() as bench:
        yield bench


async def read(bench: RecordBench, **arguments: Any) -> list[Record]:
    return [record async for record in bench.client.query("source", **arguments)]


# What arrives


async def test_records_come_in_order_and_whole(bench: RecordBench) -> None:
    bench.records.source = source = Source(BATCH, RecordBatch([b"a", b"b"], ["k", None]), count=3)
    async with bench.client.query("source") as stream:
        assert stream.content_type == "application/json"
        records = [record async for record in stream]
    assert records == [*BATCH.records(), Record(b"a", "k"), Record(b"b")] * 3
    assert source.closed.is_set()
    assert isinstance(bench.connection.received[-1], QueryEnd)


async def test_no_records_are_no_records(bench: RecordBench) -> None:
    bench.records.source = Source()
    assert await read(bench) == []


async def test_arguments_reach_the_source(bench: RecordBench) -> None:
    bench.records.source = Source()
    await read(bench, user_id=1, text="é", ratio=0.5, flag=True, nothing=None, source="x", window=3)
    assert bench.records.queries == [
        {"user_id": 1, "text": "é", "ratio": 0.5, "flag": True, "nothing": None, "source": "x", "window": 3}
    ]


async def test_batches_are_those_of_the_messages(bench: RecordBench) -> None:
    bench.records.source = Source(RecordBatch([b"a"]), BATCH, RecordBatch([b"x" * 100_000] * 5))
    batches = [len(batch) async for batch in bench.client.query("source").batches()]
    assert batches == [1, 10, 2, 2, 1]


async def test_a_record_larger_than_the_window_comes(bench: RecordBench) -> None:
    bench.records.source = Source(RecordBatch([b"x" * 5000]), BATCH, count=5)
    async with RecordBench(ClientSettings(download_window=KIB)) as small:
        small.records.source = bench.records.source
        assert len(await read(small)) == 55


async def test_a_window_that_the_server_refuses_is_left_to_the_transport() -> None:
    async with RecordBench(ClientSettings(download_window=SERVER_LIMITS.max_download_window + 1)) as bench:
        bench.records.source = Source(BATCH, count=5)
        for _ in range(2):
            assert await read(bench) == BATCH.records() * 5
        windows = [request.window for request in bench.connection.requests if isinstance(request, Query)]
        assert windows == [SERVER_LIMITS.max_download_window + 1, 0, 0]


@pytest.mark.parametrize("window", [1, 30, 1000, 0])
async def test_any_window_brings_all_records(window: int) -> None:
    async with RecordBench(ClientSettings(download_window=window)) as bench:
        bench.records.source = Source(BATCH, count=50)
        assert await read(bench) == BATCH.records() * 50


async def test_queries_run_side_by_side(bench: RecordBench) -> None:
    bench.records.source = lambda: Source(BATCH, count=20)()
    for records in await asyncio.gather(*(read(bench) for _ in range(5))):
        assert records == BATCH.records() * 20


# The pace of the reader


async def test_a_slow_reader_slows_the_source() -> None:
    async with RecordBench(ClientSettings(download_window=230 * 4)) as bench:
        bench.records.source = source = Source(BATCH, count=1000)
        async with aclosing(bench.client.query("source").batches()) as batches:
            for turn in range(20):
                await anext(batches)
                for _ in range(100):
                    await asyncio.sleep(0)
                # Four batches fit, and one more was made and waits for its window.
                assert source.produced <= turn + 6
        await source.closed.wait()


async def test_without_a_window_the_transport_holds_the_source() -> None:
    async with RecordBench(ClientSettings(download_window=0)) as bench:
        bench.records.source = source = Source(BATCH, count=1000)
        async with bench.client.query("source"):
            for _ in range(200):
                await asyncio.sleep(0)
            assert 0 < source.produced < 20


# The reader leaves


async def leave_the_loop(bench: RecordBench) -> None:
    async for _ in bench.client.query("source"):
        break
    gc.collect()


async def leave_the_block(bench: RecordBench) -> None:
    async with bench.client.query("source") as stream, aclosing(stream.batches()) as batches:
        await anext(batches)


async def leave_by_closing(bench: RecordBench) -> None:
    stream = bench.client.query("source")
    await stream.open()
    await stream.close()
    await stream.close()


async def leave_by_an_error(bench: RecordBench) -> None:
    async def use() -> None:
        async with bench.client.query("source") as stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()


async def leave_by_losing_the_connection(bench: RecordBench) -> None:
    async with aclosing(bench.client.query("source").batches()) as batches:
        await anext(batches)
        bench.connection.cut()
        with pytest.raises(ConnectionLost):
            async for _ in batches:
                pass


@pytest.mark.parametrize(
    "leave",
    [leave_the_loop, leave_the_block, leave_by_closing, leave_by_an_error, leave_by_losing_the_connection],
    ids=lambda leave: leave.__name__,
)
@pytest.mark.parametrize("hold_at", [None, 2], ids=["sending", "waiting for its database"])
async def test_a_reader_that_leaves_ends_the_source(bench: RecordBench, leave: Any, hold_at: int | None) -> None:
    bench.records.source = source = Source(BATCH, count=10**9)
    source.hold_at = hold_at
    await leave(bench)
    if source.opened and source.produced:
        await source.closed.wait()
    produced = source.produced
    for _ in range(50):
        await asyncio.sleep(0)
    assert source.produced == produced
    assert source.opened <= 1


async def test_a_reader_that_is_cancelled_while_the_source_waits_ends_it(bench: RecordBench) -> None:
    bench.records.source = source = Source(BATCH, count=10)
    source.hold_at = 3
    reading = asyncio.create_task(read(bench))
    await source.waiting.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await source.closed.wait()


async def test_closing_the_client_ends_its_queries(bench: RecordBench) -> None:
    bench.records.source = source = Source(BATCH, count=10)
    source.hold_at = 3
    reading = asyncio.create_task(read(bench))
    await source.waiting.wait()
    await bench.client.close()
    assert source.closed.is_set()
    with pytest.raises(ConnectionLost):
        await reading


async def test_a_source_that_nobody_has_read_is_closed(bench: RecordBench) -> None:
    bench.records.source = source = Source(BATCH)
    bench.records.begin_gate.shut()
    opening = asyncio.create_task(bench.client.query("source").open())
    await bench.records.begin_gate.reached.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert source.opened == 0


# Errors


async def test_a_source_that_fails_has_given_what_came_before(
    bench: RecordBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.records.source = source = Source(BATCH, count=2, error=ZeroDivisionError("secret"))
    seen: list[Record] = []

    async def collect() -> None:
        async for batch in bench.client.query("source").batches():
            seen.extend(batch)

    with pytest.raises(QueryFailed) as caught:
        await collect()
    assert seen == BATCH.records() * 2
    assert "secret" not in str(caught.value)
    assert "ZeroDivisionError: secret" in caplog.text
    assert source.opened == 1


async def test_what_a_source_says_is_told(bench: RecordBench) -> None:
    bench.records.source = Source(BATCH, error=PermissionDenied("not yours"))
    with pytest.raises(PermissionDenied):
        await read(bench)


async def test_an_unknown_source_is_told(bench: RecordBench) -> None:
    with pytest.raises(RecordEndNotFound):
        await read(bench)
    assert len(bench.connection.requests) == 1


@pytest.mark.parametrize("arguments", [{"a": b"bytes"}, {"a": [1]}, {"a b": 1}], ids=str)
async def test_what_is_no_argument_is_refused_at_once(bench: RecordBench, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        bench.client.query("source", **arguments)
    with pytest.raises(InvalidArgument):
        bench.client.query("no name")
    assert bench.connection.requests == []


@pytest.mark.parametrize("window", [-1, 64 * KIB * KIB + 1])
async def test_a_window_beyond_the_limits_is_refused(bench: RecordBench, window: int) -> None:
    async with await bench.connection.open(Query(source="source", window=window)) as stream:
        with pytest.raises(InvalidArgument):
            await stream.receive()


@pytest.mark.parametrize("message", [CommitBulk(0, bytes(16)), Window(5)], ids=lambda message: type(message).__name__)
async def test_a_message_that_does_not_belong_there_ends_the_query(bench: RecordBench, message: Any) -> None:
    bench.records.source = source = Source(BATCH, count=10)
    source.hold_at = 1
    async with await bench.connection.open(Query(source="source", window=0)) as stream:
        await source.waiting.wait()
        await stream.send(message)
        await stream.receive()
        await stream.receive()
        with pytest.raises(ProtocolError):
            await stream.receive()
    assert source.closed.is_set()


async def test_a_mistake_of_a_reader_whose_window_is_used_up_is_told_as_such(bench: RecordBench) -> None:
    bench.records.source = Source(BATCH, count=10)
    async with await bench.connection.open(Query(source="source", window=1)) as stream:
        assert isinstance(await stream.receive(), QueryStarted)
        assert isinstance(await stream.receive(), RecordBatch)
        await stream.send(CommitBulk(0, bytes(16)))
        with pytest.raises(ProtocolError, match="CommitBulk received from the reader"):
            await stream.receive()


async def test_records_that_change_on_the_way_are_noticed(bench: RecordBench) -> None:
    def change(message: ServerMessage) -> ServerMessage:
        return RecordBatch([b"x" * 15] * 10) if isinstance(message, RecordBatch) else message

    bench.records.source = Source(BATCH)
    bench.connection.change = change
    with pytest.raises(IntegrityError):
        await read(bench)
    async with RecordBench(ClientSettings(verify=False)) as careless:
        careless.records.source = Source(BATCH)
        careless.connection.change = change
        assert len(await read(careless)) == 10


async def test_records_that_are_lost_on_the_way_are_noticed(bench: RecordBench) -> None:
    bench.connection.change = lambda message: (
        RecordBatch(message.data[:5]) if isinstance(message, RecordBatch) else message
    )
    bench.records.source = Source(BATCH)
    with pytest.raises(IntegrityError):
        await read(bench)


async def test_an_end_without_its_message_is_no_end(bench: RecordBench) -> None:
    bench.connection.change = lambda message: None if isinstance(message, QueryEnd) else message
    bench.records.source = Source(BATCH)
    with pytest.raises(ConnectionLost):
        await read(bench)


async def test_records_are_read_once(bench: RecordBench) -> None:
    bench.records.source = Source(BATCH)
    stream = bench.client.query("source")
    assert len([record async for record in stream]) == 10
    with pytest.raises(RuntimeError):
        await anext(stream.batches())


async def test_a_query_that_has_not_begun_has_nothing(bench: RecordBench) -> None:
    stream = bench.client.query("source")
    with pytest.raises(RuntimeError):
        _ = stream.content_type
    await stream.close()
    with pytest.raises(ConnectionLost):
        await stream.open()
    assert bench.connection.requests == []


# Lost connections


@pytest.mark.parametrize(
    "error",
    [GoingAway(retry_after=0), Overloaded(what="queries", retry_after=0), ConnectionLost("cut")],
    ids=lambda error: type(error).__name__,
)
async def test_what_has_not_begun_is_tried_again(bench: RecordBench, error: TailraceError) -> None:
    await bench.get_to_know()
    bench.records.source = Source(BATCH)
    if isinstance(error, ConnectionLost):
        bench.connection.failures = [error] * 2
    else:
        bench.records.begin_errors = [error] * 2
    assert await read(bench) == BATCH.records()
    assert len(bench.connection.requests) == 3


async def test_a_server_that_nobody_has_met_is_not_tried_again(bench: RecordBench) -> None:
    bench.connection.failures = [ConnectionLost("no such address")]
    with pytest.raises(ConnectionLost):
        await read(bench)
    assert len(bench.connection.requests) == 1


async def test_a_connection_lost_before_the_first_record_is_made_again(bench: RecordBench) -> None:
    first, second = Source(BATCH), Source(BATCH)
    first.hold_at = 0
    sources = iter((first, second))
    bench.records.source = lambda: next(sources)()
    reading = asyncio.create_task(read(bench))
    await first.waiting.wait()
    bench.connection.cut()
    assert await reading == BATCH.records()
    assert first.closed.is_set()
    assert len(bench.connection.requests) == 2


async def test_a_connection_lost_behind_a_record_is_told(bench: RecordBench) -> None:
    bench.records.source = source = Source(BATCH, count=2)
    source.hold_at = 1
    seen: list[Record] = []

    async def collect() -> None:
        async for record in bench.client.query("source"):
            seen.append(record)
            if len(seen) == 10:
                bench.connection.cut()

    with pytest.raises(ConnectionLost):
        await collect()
    assert seen == BATCH.records()
    assert len(bench.connection.requests) == 1
    await source.closed.wait()


async def test_the_first_answer_has_a_deadline() -> None:
    async with RecordBench(ClientSettings(answer_timeout=0.05)) as bench:
        bench.records.begin_gate.shut()
        with pytest.raises(DeadlineExceeded):
            await bench.client.query("source").open()


async def test_the_figures_of_a_queue(bench: RecordBench) -> None:
    figures = await bench.client.queue_figures("queue")
    assert (figures.queue, figures.ready, figures.stalled) == ("queue", 1, 6)
    with pytest.raises(RecordEndNotFound):
        await bench.client.queue_figures("nothing")
    with pytest.raises(InvalidArgument):
        await bench.client.queue_figures("no name")
