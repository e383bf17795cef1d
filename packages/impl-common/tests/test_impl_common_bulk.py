"""A bulk from the client to the server, over the in-process transport."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from impl_common_record_bench import LIMITS, RecordBench

from tailrace_client_upload_api import RecordContent
from tailrace_common_api import (
    BulkConflict,
    BulkRefused,
    ClientSettings,
    ConnectionLost,
    DeadlineExceeded,
    GoingAway,
    InternalError,
    InvalidArgument,
    Overloaded,
    ProtocolError,
    QuotaExceeded,
    Record,
    RecordBatch,
    RecordEndNotFound,
    RecordProblem,
    Reporting,
    StorageFailure,
    TailraceError,
    UploadAborted,
    refused_records,
)
from tailrace_common_api import ProblemKind as Kind
from tailrace_impl_common import ConnectedBulk
from tailrace_impl_common.messages import ServerMessage, Window
from tailrace_impl_common.record_messages import (
    MESSAGE_BYTES,
    MESSAGE_RECORDS,
    BulkCommitted,
    CommitBulk,
    OpenBulk,
)

REFUSED = refused_records([RecordProblem(index=3, kind=Kind.INVALID, field="a", problem="no number")], 1)


@pytest.fixture
async def bench() -> AsyncIterator[RecordBench]:
    async with RecordBench() as bench:
        yield bench


async def all_ended(bench: RecordBench) -> None:
    """Wait until every bulk at the server has ended."""
    for bulk in bench.records.bulks:
        if bulk.result is None:
            await bulk.ended.wait()


def never_committed(bench: RecordBench) -> bool:
    """Whether every bulk was rolled back, and nothing was asked of it behind that."""
    return not bench.records.visible and all(bulk.calls[-1] == "rollback" for bulk in bench.records.bulks)


async def has_ended(bulk: ConnectedBulk) -> None:
    """Wait until the client knows that the bulk is over."""
    assert bulk._runner is not None
    await asyncio.wait((bulk._runner,))


# What arrives


async def test_records_of_every_kind_arrive_in_order(bench: RecordBench) -> None:
    changing = bytearray(b"{}")
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b'{"a": 1}')
        await bulk.send('{"b":"é"}')
        await bulk.send({"c": ["é", None, 1.5], "d": {}})
        await bulk.send(changing)
        changing[:] = b"[]"
        await bulk.send(memoryview(b"xx{}xx")[2:4], key="fünf")
        await bulk.send(Record(b"1", "six"))
        await bulk.send(Record(b"2", "six"), key="seven")
        assert bulk.count == 7
        assert bulk.id == "bulk-0"
        assert bulk.limits is LIMITS
    assert bench.records.visible == [
        (b'{"a": 1}', None),
        ('{"b":"é"}'.encode(), None),
        ('{"c":["é",null,1.5],"d":{}}'.encode(), None),
        (b"{}", None),
        (b"{}", "fünf"),
        (b"1", "six"),
        (b"2", "seven"),
    ]
    assert bulk.result is not None
    assert (bulk.result.records, bulk.result.id) == (7, "bulk-0")
    assert bench.bulk.calls.count("rollback") == 0


async def test_what_the_bulk_is_reaches_the_server(bench: RecordBench) -> None:
    bulk = bench.client.bulk(
        "things", idempotency_key="key", content_type="text/plain", reporting=Reporting.ALL, priority=-5
    )
    async with bulk:
        await bulk.send("x")
    asked = {"content_type": "text/plain", "key": "key", "reporting": Reporting.ALL, "priority": -5}
    assert bench.records.asked == asked


async def test_a_key_is_made_up_for_each_bulk(bench: RecordBench) -> None:
    keys = set()
    for _ in range(3):
        async with bench.client.bulk("things") as bulk:
            await bulk.send("x")
        keys.add(bench.records.asked["key"])
    assert len(keys) == 3
    assert all(isinstance(key, str) and len(key) >= 16 for key in keys)


async def test_many_records_travel_in_few_messages(bench: RecordBench) -> None:
    records = [b"%07d" % number for number in range(50_000)]
    async with bench.client.bulk("things") as bulk:
        assert await bulk.send_all(records) == 50_000
    assert [data for data, _ in bench.records.visible] == records
    sizes = [len(message.data) for message in bench.bulk.messages]
    assert max(sizes) <= MESSAGE_RECORDS
    assert len(sizes) < 20


async def test_messages_are_bounded_in_bytes_but_for_a_larger_record(bench: RecordBench) -> None:
    records = [b"x" * size for size in (100_000, 100_000, 100_000, 300_000, 10, 250_000, 20)]
    async with bench.client.bulk("things") as bulk:
        await bulk.send_all(records)
    assert [data for data, _ in bench.records.visible] == records
    for message in bench.bulk.messages:
        assert message.size <= MESSAGE_BYTES or len(message.data) == 1


async def test_a_single_record_leaves_without_waiting_for_more(bench: RecordBench) -> None:
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"1")
        await bench.bulk.wait_for(1)
        await bulk.send(b"2")
        await bench.bulk.wait_for(2)


async def test_records_come_from_an_async_generator(bench: RecordBench) -> None:
    async def produce() -> AsyncGenerator[RecordContent, None]:
        for number in range(3):
            await asyncio.sleep(0)
            yield {"n": number}

    async with bench.client.bulk("things") as bulk:
        assert await bulk.send_all(produce()) == 3
    assert len(bench.records.visible) == 3


async def test_bulks_run_side_by_side(bench: RecordBench) -> None:
    async def send(name: str) -> None:
        async with bench.client.bulk("things") as bulk:
            for number in range(500):
                await bulk.send(f"{name}{number}")
                if number % 50 == 0:
                    await asyncio.sleep(0)

    await asyncio.gather(*(send(name) for name in "abcd"))
    assert len(bench.records.visible) == 2000
    for bulk in bench.records.bulks:
        assert {data[:1] for data, _ in bulk.data} == {bulk.data[0][0][:1]}


# What cannot be sent


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"a": float("nan")}, None),
        ({"a": object()}, None),
        ({"a": b"bytes"}, None),
        (None, None),
        (5, None),
        ("\ud800", None),
        (b"x" * (LIMITS.record_bytes + 1), None),
        (b"x" * LIMITS.record_bytes, "k"),
        (b"x", ""),
        (b"x", "k" * 256),
        (b"x", "é" * 128),
        (b"x", "\ud800"),
        (b"x", 5),
        (Record(b"x", ""), None),
    ],
)
async def test_what_cannot_be_a_record_is_refused_and_leaves_the_bulk_as_it_was(
    bench: RecordBench, record: Any, key: Any
) -> None:
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"before")
        with pytest.raises(InvalidArgument):
            await bulk.send(record, key=key)
        assert bulk.count == 1
        await bulk.send(b"after", key="k" * 255)
    assert [data for data, _ in bench.records.visible] == [b"before", b"after"]


async def test_the_largest_record_passes(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, record_bytes=1000, window=1008)
    async with bench.client.bulk("things") as bulk:
        for _ in range(5):
            await bulk.send(b"x" * 1000)
    assert len(bench.records.visible) == 5


async def test_the_limits_of_a_bulk_are_told_at_once(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, bulk_records=2, bulk_bytes=10)
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"12345")
        with pytest.raises(QuotaExceeded):
            await bulk.send(b"123456")
        await bulk.send(b"12345")
        with pytest.raises(QuotaExceeded):
            await bulk.send(b"")
    assert len(bench.records.visible) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"collection": ""},
        {"collection": "no name"},
        {"priority": 1001},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 256},
        {"idempotency_key": "a\nb"},
    ],
    ids=str,
)
def test_a_bulk_that_cannot_be_is_refused_at_once(arguments: dict[str, Any]) -> None:
    async def prepare() -> None:
        async with RecordBench() as bench:
            with pytest.raises(InvalidArgument):
                bench.client.bulk(**{"collection": "things", **arguments})
            assert bench.connection.requests == []

    asyncio.run(prepare())


async def test_a_bulk_that_is_not_open_takes_nothing(bench: RecordBench) -> None:
    bulk = bench.client.bulk("things")
    with pytest.raises(RuntimeError):
        await bulk.send(b"x")
    with pytest.raises(RuntimeError):
        await bulk.commit()
    with pytest.raises(RuntimeError):
        _ = bulk.id
    await bulk.cancel()


# The window


async def test_a_window_that_is_used_up_holds_the_client(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, record_bytes=100, window=1000)
    bench.records.consuming = False
    async with bench.client.bulk("things") as bulk:
        # Beyond the window there is room for what is gathered: one message.
        sending = asyncio.create_task(bulk.send_all([b"x" * 92] * 5000))
        await bench.bulk.wait_for(10)
        for turn in range(1, 5):
            assert len(bench.bulk.data) == 10 * turn
            assert not sending.done()
            bench.bulk.consume(1000)
            await bench.bulk.wait_for(10 * (turn + 1))
        bench.bulk.consume(10**6)
        await sending
    assert len(bench.records.visible) == 5000


async def test_a_commit_waits_for_the_window(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, record_bytes=100, window=150)
    bench.records.consuming = False
    async with bench.client.bulk("things") as bulk:
        await bulk.send_all([b"x" * 92] * 3)
        committing = asyncio.create_task(bulk.commit())
        await bench.bulk.wait_for(1)
        assert "commit" not in bench.bulk.calls
        bench.bulk.consume(100)
        await bench.bulk.wait_for(2)
        bench.bulk.consume(100)
        assert (await committing).records == 3


async def test_a_client_that_overdraws_is_refused(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, record_bytes=100, window=150)
    bench.records.consuming = False
    async with await bench.connection.open(OpenBulk(collection="things")) as stream:
        await stream.receive()
        await stream.send(RecordBatch([b"x" * 92]))
        await stream.send(RecordBatch([b"x" * 92]))
        with pytest.raises(ProtocolError):
            await stream.receive()
    assert never_committed(bench)
    assert len(bench.bulk.data) == 1


@pytest.mark.parametrize("message", [Window(5), RecordBatch([])], ids=["Window", "nothing"])
async def test_a_message_that_does_not_belong_there_ends_the_bulk(bench: RecordBench, message: Any) -> None:
    async with await bench.connection.open(OpenBulk(collection="things")) as stream:
        await stream.receive()
        await stream.send(RecordBatch([b"x"]))
        await stream.send(message)
        with pytest.raises(ProtocolError):
            await stream.receive()
    assert never_committed(bench)


async def test_a_server_that_has_no_room_for_any_record_is_refused(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, window=8)
    with pytest.raises(ProtocolError):
        await bench.client.bulk("things").open()
    await all_ended(bench)
    assert never_committed(bench)


# The end


async def test_a_commit_is_repeated_without_being_done_again(bench: RecordBench) -> None:
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"x")
        result = await bulk.commit()
        assert await bulk.commit() is result
        with pytest.raises(UploadAborted):
            await bulk.send(b"y")
        await bulk.cancel()
        assert await bulk.commit() is result
    assert bulk.result is result
    assert bench.bulk.calls == ["submit", "commit"]


async def test_a_bulk_without_records_is_refused(bench: RecordBench) -> None:
    with pytest.raises(BulkRefused) as caught:
        async with bench.client.bulk("things"):
            pass
    assert caught.value.total == 0
    assert bench.bulk.calls == ["commit", "rollback"]


async def test_leaving_with_an_exception_cancels(bench: RecordBench) -> None:
    bulk = bench.client.bulk("things")

    async def use() -> None:
        async with bulk:
            await bulk.send(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    await all_ended(bench)
    assert never_committed(bench)
    assert bulk.result is None
    with pytest.raises(UploadAborted):
        await bulk.commit()
    with pytest.raises(UploadAborted):
        await bulk.send(b"y")


async def test_records_that_are_refused_at_the_commit_leave_nothing(bench: RecordBench) -> None:
    bench.records.commit_error = REFUSED
    with pytest.raises(BulkRefused) as caught:
        async with bench.client.bulk("things") as bulk:
            await bulk.send(b"x")
    assert caught.value.problems == REFUSED.problems
    assert bench.bulk.calls == ["submit", "commit", "rollback"]
    with pytest.raises(BulkRefused):
        await bulk.commit()


async def test_a_defect_of_the_server_is_no_success(bench: RecordBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.records.commit_error = ZeroDivisionError()
    with pytest.raises(InternalError):
        async with bench.client.bulk("things") as bulk:
            await bulk.send(b"x")
    assert never_committed(bench)
    assert "OpenBulk failed" in caplog.text


async def test_other_records_than_were_sent_are_no_success(bench: RecordBench) -> None:
    def loses(batch: RecordBatch) -> None:
        bench.bulk.data.pop()

    bench.records.checks.append(loses)
    with pytest.raises(TailraceError) as caught:
        async with bench.client.bulk("things") as bulk:
            await bulk.send_all([b"x", b"y"])
    assert caught.value.code == "integrity"
    assert never_committed(bench)


# Errors of the server


async def test_an_error_reaches_a_client_that_is_silent(bench: RecordBench) -> None:
    bulk = bench.client.bulk("things")
    await bulk.open()
    await bulk.send(b"x")
    await bench.bulk.wait_for(1)
    bench.bulk.fail(REFUSED)
    await has_ended(bulk)
    with pytest.raises(BulkRefused):
        await bulk.send(b"y")
    with pytest.raises(BulkRefused):
        await bulk.commit()
    assert never_committed(bench)


async def test_an_error_reaches_a_client_that_waits_for_its_window(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, record_bytes=100, window=150)
    bench.records.consuming = False
    bulk = bench.client.bulk("things")
    await bulk.open()
    sending = asyncio.create_task(bulk.send_all([b"x" * 92] * 5000))
    await bench.bulk.wait_for(1)
    bench.bulk.fail(REFUSED)
    with pytest.raises(BulkRefused):
        await sending
    assert never_committed(bench)


async def test_an_error_reaches_a_client_whose_commit_waits_for_the_window(bench: RecordBench) -> None:
    bench.records.limits = replace(LIMITS, record_bytes=100, window=150)
    bench.records.consuming = False
    bulk = bench.client.bulk("things")
    await bulk.open()
    await bulk.send_all([b"x" * 92] * 3)
    committing = asyncio.create_task(bulk.commit())
    await bench.bulk.wait_for(1)
    bench.bulk.fail(StorageFailure("the database is gone"))
    with pytest.raises(StorageFailure):
        await committing
    assert never_committed(bench)


async def test_a_record_that_is_refused_as_it_arrives_ends_the_bulk(bench: RecordBench) -> None:
    def refuse(batch: RecordBatch) -> None:
        raise REFUSED

    bench.records.checks.append(refuse)

    async def produce() -> AsyncGenerator[RecordContent, None]:
        for number in itertools.count():
            yield b"%d" % number
            await asyncio.sleep(0)

    with pytest.raises(BulkRefused) as caught:
        async with bench.client.bulk("things") as bulk:
            await bulk.send_all(produce())
    assert caught.value.problems == REFUSED.problems
    assert never_committed(bench)


async def test_a_rollback_that_fails_hides_no_error(bench: RecordBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.records.commit_error, bench.records.rollback_error = REFUSED, StorageFailure("the database is gone")
    with pytest.raises(BulkRefused):
        async with bench.client.bulk("things") as bulk:
            await bulk.send(b"x")
    assert "could not be rolled back" in caplog.text


@pytest.mark.parametrize("collection", ["nothing", "things.dead"])
async def test_an_unknown_name_is_told(bench: RecordBench, collection: str) -> None:
    with pytest.raises(RecordEndNotFound):
        async with bench.client.bulk(collection):
            pass
    assert bench.connection.closed == 1


# Cancelling


@pytest.mark.parametrize("step", ["opening", "sending", "waiting", "committing"])
async def test_cancelled_at_any_step_nothing_is_left(bench: RecordBench, step: str) -> None:
    records = bench.records
    at_step = asyncio.Event()
    if step == "opening":
        records.begin_gate.shut()
    elif step == "waiting":
        records.limits = replace(LIMITS, record_bytes=100, window=150)
        records.consuming = False
    elif step == "committing":
        records.commit_gate.shut()
        records.commit_error = REFUSED

    async def use() -> None:
        async with bench.client.bulk("things") as bulk:
            await bulk.send(b"x" * 92)
            if step == "sending":
                at_step.set()
                while True:
                    await bulk.send(b"y" * 92)
                    await asyncio.sleep(0)
            await bulk.send_all([b"x" * 92] * 5000)

    using = asyncio.create_task(use())
    match step:
        case "opening":
            await records.begin_gate.reached.wait()
        case "sending":
            await at_step.wait()
        case "waiting":
            await records.wait_for_bulks(1)
            await bench.bulk.wait_for(1)
        case "committing":
            await records.commit_gate.reached.wait()
    using.cancel()
    if step == "committing":
        # What the database does with it is its own affair, and the rollback waits for that.
        records.commit_gate.open()
    with pytest.raises(asyncio.CancelledError):
        await using
    await all_ended(bench)
    assert never_committed(bench)
    assert len(records.bulks) == (step != "opening")


async def test_a_commit_that_is_cancelled_may_be_done_and_the_key_tells(bench: RecordBench) -> None:
    bench.records.commit_gate.shut()
    bulk = bench.client.bulk("things", idempotency_key="key")
    await bulk.open()
    await bulk.send(b"x")
    committing = asyncio.create_task(bulk.commit())
    await bench.records.commit_gate.reached.wait()
    committing.cancel()
    bench.records.commit_gate.open()
    with pytest.raises(asyncio.CancelledError):
        await committing
    await bulk.cancel()
    await bench.bulk.ended.wait()
    async with bench.client.bulk("things", idempotency_key="key") as again:
        assert again.result is not None
        await again.send(b"x")
    assert len(bench.records.visible) == 1


async def test_closing_the_client_ends_its_bulks(bench: RecordBench) -> None:
    bulk = bench.client.bulk("things")
    await bulk.open()
    await bulk.send(b"x")
    await bench.bulk.wait_for(1)
    await bench.client.close()
    assert never_committed(bench)
    await has_ended(bulk)
    with pytest.raises(ConnectionLost):
        await bulk.send(b"y")
    await bulk.cancel()


# Keys


async def test_a_repeated_key_gives_the_first_result_and_sends_nothing(bench: RecordBench) -> None:
    async with bench.client.bulk("things", idempotency_key="key") as first:
        await first.send_all([b"x", b"y"])
    bench.connection.sent.clear()
    async with bench.client.bulk("things", idempotency_key="key") as again:
        assert first.result is not None
        known = replace(first.result, repeated=True)
        assert again.result == known
        await again.send_all([b"x", b"y"])
        assert again.count == 2
        assert await again.commit() == known
    assert await again.commit() == known
    assert bench.connection.sent == []
    assert len(bench.records.visible) == 2


async def test_more_than_a_message_is_compared_under_a_repeated_key(bench: RecordBench) -> None:
    records = [b"x" * 100] * 10_000
    for _ in range(2):
        async with bench.client.bulk("things", idempotency_key="key") as bulk:
            await bulk.send_all(records)
    assert len(bench.records.visible) == 10_000


@pytest.mark.parametrize("records", [[], [b"x"], [b"x", b"z"], [b"x", b"y", b""], [b"xy"]], ids=len)
async def test_other_content_under_a_key_is_an_error(bench: RecordBench, records: list[bytes]) -> None:
    async with bench.client.bulk("things", idempotency_key="key") as bulk:
        await bulk.send_all([b"x", b"y"])
    with pytest.raises(BulkConflict):
        async with bench.client.bulk("things", idempotency_key="key") as bulk:
            await bulk.send_all(records)
    with pytest.raises(BulkConflict):
        await bulk.commit()


async def test_a_repeated_bulk_can_be_left_with_an_exception(bench: RecordBench) -> None:
    async with bench.client.bulk("things", idempotency_key="key") as bulk:
        await bulk.send(b"x")
    with pytest.raises(ZeroDivisionError):
        async with bench.client.bulk("things", idempotency_key="key") as bulk:
            raise ZeroDivisionError
    assert len(bench.records.visible) == 1


# Lost connections


async def test_a_connection_lost_before_the_commit_ends_the_bulk(bench: RecordBench) -> None:
    bulk = bench.client.bulk("things")
    await bulk.open()
    await bulk.send(b"x")
    await bench.bulk.wait_for(1)
    waiting = asyncio.create_task(bulk.failed())
    await asyncio.sleep(0)
    assert not waiting.done()
    bench.connection.cut()
    # Also who neither sends nor commits learns of it.
    failure = await waiting
    assert isinstance(failure, ConnectionLost)
    with pytest.raises(ConnectionLost, match=r"; nothing was committed$"):
        await bulk.commit()
    assert not bulk.in_doubt
    await all_ended(bench)
    assert never_committed(bench)
    assert len(bench.connection.requests) == 1


async def test_a_connection_lost_before_the_first_record_is_made_again(bench: RecordBench) -> None:
    async with bench.client.bulk("things") as bulk:
        bench.connection.cut()
        await bench.records.wait_for_bulks(2)
        await bulk.send_all([b"x", b"y"])
    first, second = bench.connection.requests
    assert first == second
    assert [bulk.calls for bulk in bench.records.bulks] == [["rollback"], ["submit", "commit"]]
    assert bulk.id == "bulk-1"


async def test_a_bulk_that_committed_elsewhere_meanwhile_is_compared(bench: RecordBench) -> None:
    async with bench.client.bulk("things", idempotency_key="key") as bulk:
        bench.connection.cut()
        await bench.bulk.ended.wait()
        other = RecordBench()
        other.records.results = bench.records.results
        async with other, other.client.bulk("things", idempotency_key="key") as elsewhere:
            await elsewhere.send(b"x")
        await bulk.send(b"x")
        assert (await bulk.commit()).records == 1
    assert bench.records.visible == []


async def test_a_commit_whose_answer_was_lost_is_asked_for(bench: RecordBench) -> None:
    bench.records.commit_gate.shut()
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"x")
        committing = asyncio.create_task(bulk.commit())
        await bench.records.commit_gate.reached.wait()
        bench.connection.cut()
        bench.records.commit_gate.open()
        result = await committing
    assert (result.id, result.records, result.repeated) == ("bulk-0", 1, False)
    assert bulk.result == result
    assert bench.records.visible == [(b"x", None)]
    first, second = bench.connection.requests
    assert first == second


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_commit_that_was_not_reached_is_said_to_be_so(bench: RecordBench, attempts: int) -> None:
    bench.records.commit_gate.shut()
    bench.records.commit_error = REFUSED
    bulk = bench.client.bulk("things")
    await bulk.open()
    await bulk.send(b"x")
    committing = asyncio.create_task(bulk.commit())
    await bench.records.commit_gate.reached.wait()
    bench.connection.failures = [ConnectionLost("no way")] * (attempts - 1)
    bench.connection.cut()
    bench.records.commit_gate.open()
    assert [bulk.in_doubt] == [True]
    with pytest.raises(ConnectionLost, match="nothing was committed"):
        await committing
    assert not bulk.in_doubt
    await all_ended(bench)
    assert never_committed(bench)
    assert len(bench.connection.requests) == attempts + 1


async def test_a_server_that_goes_away_while_it_commits_is_asked_later(bench: RecordBench) -> None:
    def going(message: ServerMessage) -> ServerMessage:
        if isinstance(message, BulkCommitted):
            bench.connection.change = None
            bench.records.begin_errors = [GoingAway(retry_after=0), Overloaded(what="bulks", retry_after=0)]
            raise GoingAway(retry_after=0)
        return message

    bench.connection.change = going
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"x")
    assert bulk.result is not None
    assert len(bench.connection.requests) == 4


async def test_a_database_that_does_not_know_is_asked_later(bench: RecordBench) -> None:
    def unknown(message: ServerMessage) -> ServerMessage:
        if isinstance(message, BulkCommitted):
            bench.connection.change = None
            bench.records.begin_errors = [StorageFailure("not back yet")]
            raise StorageFailure("it is not known whether it committed")
        return message

    bench.connection.change = unknown
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"x")
    assert bulk.result is not None


async def test_a_database_that_failed_for_good_is_told(bench: RecordBench) -> None:
    bench.records.commit_error = StorageFailure("the disk is broken")
    with pytest.raises(StorageFailure):
        async with bench.client.bulk("things") as bulk:
            await bulk.send(b"x")
    await all_ended(bench)
    assert never_committed(bench)


async def test_without_an_answer_it_is_said_that_nobody_knows(bench: RecordBench) -> None:
    def refused(message: ServerMessage) -> ServerMessage:
        if isinstance(message, BulkCommitted):
            bench.records.begin_errors = [RecordEndNotFound(kind="collection or queue", id="things")]
            raise ConnectionLost("cut")
        return message

    bench.connection.change = refused
    with pytest.raises(ConnectionLost, match="not known"):
        async with bench.client.bulk("things") as bulk:
            await bulk.send(b"x")


async def test_a_client_that_does_not_reconnect_leaves_it_open() -> None:
    async with RecordBench(ClientSettings(reconnect_timeout=0)) as bench:
        bench.records.commit_gate.shut()
        bulk = bench.client.bulk("things")
        await bulk.open()
        await bulk.send(b"x")
        committing = asyncio.create_task(bulk.commit())
        await bench.records.commit_gate.reached.wait()
        bench.connection.cut()
        bench.records.commit_gate.open()
        with pytest.raises(ConnectionLost):
            await committing
        assert len(bench.connection.requests) == 1


async def test_a_commit_has_a_deadline() -> None:
    async with RecordBench(ClientSettings(finish_timeout=0.05)) as bench:
        bench.records.commit_gate.shut()
        bulk = bench.client.bulk("things")
        await bulk.open()
        await bulk.send(b"x")
        # Who gives up waits for the rollback, and that for the commit; the server may not even have heard of it.
        opening = asyncio.create_task(bench.records.rollback_gate.reached.wait())
        opening.add_done_callback(lambda _: bench.records.commit_gate.open())
        with pytest.raises(DeadlineExceeded):
            await bulk.commit()
        await opening


async def test_cancelled_while_it_asks_for_the_result_it_ends() -> None:
    async with RecordBench() as bench:
        bench.records.commit_gate.shut()
        bulk = bench.client.bulk("things")
        await bulk.open()
        await bulk.send(b"x")
        committing = asyncio.create_task(bulk.commit())
        await bench.records.commit_gate.reached.wait()
        bench.records.begin_gate.reached.clear()
        bench.records.begin_gate.shut()
        bench.connection.cut()
        await bench.records.begin_gate.reached.wait()
        await bulk.cancel()
        with pytest.raises(UploadAborted):
            await committing
        bench.records.begin_gate.open()
        bench.records.commit_gate.open()


# Opening again


@pytest.mark.parametrize(
    "error",
    [GoingAway(retry_after=0), Overloaded(what="bulks", retry_after=0), ConnectionLost("cut")],
    ids=lambda error: type(error).__name__,
)
async def test_opening_is_tried_again_once_the_server_is_known(bench: RecordBench, error: TailraceError) -> None:
    await bench.get_to_know()
    if isinstance(error, ConnectionLost):
        bench.connection.failures = [error] * 2
    else:
        bench.records.begin_errors = [error] * 2
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"x")
    assert len(bench.connection.requests) == 3
    assert len({request.idempotency_key for request in bench.connection.requests if isinstance(request, OpenBulk)}) == 1


async def test_a_server_that_nobody_has_met_is_not_tried_again(bench: RecordBench) -> None:
    bench.connection.failures = [ConnectionLost("no such address")]
    with pytest.raises(ConnectionLost):
        await bench.client.bulk("things").open()
    assert len(bench.connection.requests) == 1


async def test_an_answer_to_the_opening_has_a_deadline() -> None:
    async with RecordBench(ClientSettings(connect_timeout=0.05)) as bench:
        bench.records.begin_gate.shut()
        with pytest.raises(DeadlineExceeded):
            await bench.client.bulk("things").open()
        bench.records.begin_gate.open()


async def test_a_wrong_answer_is_refused(bench: RecordBench) -> None:
    bench.connection.change = lambda message: Window(5)
    with pytest.raises(ProtocolError):
        await bench.client.bulk("things").open()
    await all_ended(bench)
    assert never_committed(bench)


async def test_a_server_that_ends_in_silence_has_not_committed(bench: RecordBench) -> None:
    def silent(message: ServerMessage) -> ServerMessage | None:
        return None if isinstance(message, BulkCommitted) else message

    bench.connection.change = silent
    async with bench.client.bulk("things") as bulk:
        await bulk.send(b"x")
        # It had, and the key tells.
        assert (await bulk.commit()).id == "bulk-0"
    assert [type(message) for message in bench.connection.sent].count(CommitBulk) == 1
