"""Bulks between clients and sinks: validated, grouped, bounded, committed once or purged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from impl_server_recording_sink import RecordingSink, Sender, Streams, objects

from tailrace_common_api import (
    RECORD_OVERHEAD,
    BulkConflict,
    BulkRefused,
    DeadlineExceeded,
    Fenced,
    GoingAway,
    IntegrityError,
    InvalidArgument,
    Overloaded,
    ProblemKind,
    ProtocolError,
    QuotaExceeded,
    RecordBatch,
    RecordEndNotFound,
    RecordProblem,
    Reporting,
    StorageFailure,
    TailraceError,
    record_problems,
    refused_records,
)
from tailrace_impl_server import _bulk_ingest
from tailrace_impl_server._record_validation import JsonSchemaValidator

WINDOW = 64 * 1024
SMALL: dict[str, Any] = {"bulk_window": WINDOW, "max_record_size": WINDOW // 2}


@pytest.fixture
async def bench() -> AsyncGenerator[Streams, None]:
    async with Streams() as bench:
        yield bench


async def settled(bench: Streams) -> None:
    """Wait until nothing goes on in the background."""
    await bench.streams._tasks.wait()


def problem(index: int) -> RecordProblem:
    return RecordProblem(index=index, kind=ProblemKind.CONSTRAINT, field="f", problem="no")


# One bulk.


async def test_a_bulk_is_staged_and_committed(bench: Streams) -> None:
    sender = await bench.begin()
    await sender.send(*objects(3))
    await sender.send(*objects(2, first=3))
    result = await sender.commit()
    assert (result.records, result.size) == (5, 5 * len(b'{"n":0}'))
    assert result.digest == sender.digest.digest()
    assert bench.sink.visible == objects(5)
    await settled(bench)
    assert bench.sink.calls[-1] == "commit"


async def test_the_sink_gets_values_keys_and_places() -> None:
    async with Streams(group_records=4, group_seconds=3600.0) as bench:
        sender = await bench.begin()
        await sender.send(b'{"n":0}', b'{"n":1}')
        await sender.send(b'{"n":2}', b'{"n":3}', b'{"n":4}', keys=("two", None, "four"))
        await sender.send(b'{"n":5}')
        bench.sink.pause("commit")
        ending = asyncio.create_task(sender.commit())
        await bench.sink.reached("commit")
        (groups,) = bench.sink.staged.values()
        assert [group.first for group in groups] == [0, 4]
        assert [list(group.batch.keys) for group in groups] == [[None, None, "two", None], ["four", None]]
        assert [value for group in groups for value in group.values] == [{"n": number} for number in range(6)]
        bench.sink.resume("commit")
        await ending


async def test_an_empty_bulk_is_refused_and_leaves_nothing(bench: Streams) -> None:
    sender = await bench.begin()
    with pytest.raises(BulkRefused) as caught:
        await sender.commit()
    assert record_problems(caught.value) == ()
    await sender.bulk.rollback()
    assert bench.sink.staged == {}
    assert "commit" not in bench.sink.calls


@pytest.mark.parametrize(("records", "digest"), [(2, None), (4, None), (3, bytes(16))])
async def test_what_did_not_arrive_as_it_was_sent_is_not_committed(
    bench: Streams, records: int, digest: bytes | None
) -> None:
    sender = await bench.begin()
    await sender.send(*objects(3))
    with pytest.raises(IntegrityError):
        await sender.bulk.commit(records=records, digest=digest or sender.digest.digest())
    await sender.bulk.rollback()
    assert "commit" not in bench.sink.calls
    assert bench.sink.staged == {}


# Groups and windows.


@pytest.mark.parametrize("size", [1, 10, 1000])
async def test_groups_have_the_size_that_is_set(size: int) -> None:
    async with Streams(group_records=size, group_seconds=3600.0) as bench:
        bench.sink.pause("commit")
        sender = await bench.begin()
        for first in range(0, 2030, 70):
            await sender.send(*objects(70, first))
        ending = asyncio.create_task(sender.commit())
        await bench.sink.reached("commit")
        full, rest = divmod(2030, size)
        assert bench.sink.groups == [size] * full + [rest] * bool(rest)
        bench.sink.resume("commit")
        assert (await ending).records == 2030


async def test_a_group_that_is_not_full_is_staged_when_its_time_has_come() -> None:
    async with Streams(group_seconds=0.01) as bench:
        bench.sink.pause("stage")
        sender = await bench.begin()
        await sender.send(*objects(3))
        await bench.sink.reached("stage")
        bench.sink.resume("stage")
        await sender.commit()


async def test_the_windows_of_all_bulks_are_bounded_together() -> None:
    largest = 4096
    least = largest + RECORD_OVERHEAD
    options: dict[str, Any] = {
        "bulk_window": WINDOW,
        "max_record_size": largest,
        "bulk_windows_total": 8 * WINDOW,
        "max_bulks": 200,
    }
    async with Streams(**options) as bench:
        senders = [await bench.begin() for _ in range(200)]
        windows = [sender.bulk.granted for sender in senders]
        assert windows == [sender.bulk.limits.window for sender in senders]
        assert windows == sorted(windows, reverse=True)
        assert windows[0] == WINDOW // 2
        assert windows[-1] == least
        assert sum(window for window in windows if window > least) <= 8 * WINDOW
        # Also the smallest window moves the largest records, and many of them.
        smallest = senders[-1]
        for _ in range(5):
            await smallest.send(b'{"n":"%s"}' % (b"x" * (largest - 8)))
            await smallest.send(*objects(100))
        assert (await smallest.commit()).records == 505
        for sender in senders[:-1]:
            await sender.bulk.rollback()
        await settled(bench)
        assert (await bench.begin()).bulk.granted == windows[0]


async def test_half_a_window_does_not_wait_for_the_rest_of_its_group() -> None:
    async with Streams(group_seconds=3600.0, **SMALL) as bench:
        sender = await bench.begin()
        record = b'{"text":"%s"}' % (b"x" * (WINDOW // 8))
        # More than a window: the client would stand still for an hour.
        for _ in range(20):
            await sender.send(record)
        assert (await sender.commit()).records == 20


async def test_the_grant_grows_with_what_is_staged_and_bounds_what_waits() -> None:
    async with Streams(**SMALL) as bench:
        bench.sink.pause("stage")
        sender = await bench.begin()
        assert sender.bulk.granted == WINDOW
        record = b'{"text":"%s"}' % (b"x" * 1000)
        fitting = WINDOW // (len(record) + RECORD_OVERHEAD)
        await sender.send(*[record] * fitting)
        await bench.sink.reached("stage")
        assert sender.bulk.granted == WINDOW
        more = asyncio.create_task(sender.bulk.changed(WINDOW))
        await asyncio.sleep(0)
        assert not more.done()
        bench.sink.resume("stage")
        assert await more > WINDOW
        while sender.bulk.granted < WINDOW + sender.sent:
            await sender.bulk.changed(sender.bulk.granted)
        assert sender.bulk.granted == WINDOW + sender.sent
        await sender.bulk.rollback()


async def test_more_than_was_granted_is_refused() -> None:
    async with Streams(**SMALL) as bench:
        sender = await bench.begin()
        with pytest.raises(ProtocolError):
            sender.bulk.submit(RecordBatch([b'{"text":"%s"}' % (b"x" * 1000)] * 100))
        with pytest.raises(ProtocolError):
            await sender.bulk.changed(sender.bulk.granted)


async def test_a_large_message_is_validated_in_slices(bench: Streams) -> None:
    class Counting(JsonSchemaValidator):
        slices: list[int] = []  # noqa: RUF012  # of the one validator

        def parse(self, batch: RecordBatch) -> Sequence[object]:
            self.slices.append(len(batch.data))
            return super().parse(batch)

    async with Streams(validator=Counting({"type": "object"})) as bench:
        sender = await bench.begin()
        await sender.send(*objects(8192))
        # Only the first slice is looked at before others have their turn.
        assert sum(Counting.slices) < 8192
        assert (await sender.commit()).records == 8192
        assert sum(Counting.slices) == 8192


# Records that are not taken.


@pytest.mark.parametrize("bad", [b"not JSON", b"[1]", b"1", b'"text"', b"null", b"\xff{}", b'{"n":NaN}', b""])
async def test_the_first_invalid_record_ends_the_bulk_at_once(
    bench: Streams, bad: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long a few records take on a busy machine, more of them are looked at before others have their turn.
    monkeypatch.setattr(_bulk_ingest, "_SLICE_SECONDS", 3600.0)
    sender = await bench.begin()
    await sender.send(*objects(5))
    with pytest.raises(BulkRefused) as caught:
        await sender.send(*objects(2), bad, bad)
    (found,) = record_problems(caught.value)
    assert (found.index, found.kind, found.field) == (7, ProblemKind.INVALID, None)
    assert caught.value.total == 1
    for ending in (sender.commit(), sender.bulk.changed(sender.bulk.granted)):
        with pytest.raises(BulkRefused):
            await ending
    await sender.bulk.rollback()
    assert bench.sink.staged == {}
    assert "commit" not in bench.sink.calls


async def test_an_invalid_record_far_back_in_a_message_is_told_to_who_waits(bench: Streams) -> None:
    sender = await bench.begin()
    records = objects(8000)
    records[7999] = b"?"
    await sender.send(*records)
    with pytest.raises(BulkRefused) as caught:
        await sender.watch()
    assert [found.index for found in record_problems(caught.value)] == [7999]


async def test_all_problems_are_collected_up_to_a_bound() -> None:
    schema = JsonSchemaValidator({"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}})
    async with Streams(validator=schema) as bench:
        sender = await bench.begin(reporting=Reporting.ALL)
        for first in range(0, 1000, 10):
            await sender.send(*objects(10, first))
        with pytest.raises(BulkRefused) as caught:
            await sender.commit()
        found = record_problems(caught.value)
        assert caught.value.total == 990
        assert [item.index for item in found] == list(range(10, 110))
        assert {item.field for item in found} == {"n"}
        await sender.bulk.rollback()
        assert "commit" not in bench.sink.calls
        assert bench.sink.staged == {}


async def test_nothing_is_staged_any_more_behind_a_problem() -> None:
    async with Streams(**SMALL) as bench:
        sender = await bench.begin(reporting=Reporting.ALL)
        await sender.send(b"?")
        # Far more than a window: what is only looked at does not stop the client.
        for first in range(0, 20_000, 100):
            await sender.send(*objects(100, first))
        with pytest.raises(BulkRefused) as caught:
            await sender.commit()
        assert caught.value.total == 1
        assert "stage" not in bench.sink.calls


async def test_records_behind_a_problem_are_looked_at_however_many_there_are() -> None:
    async with Streams(group_records=1) as bench:
        sender = await bench.begin(reporting=Reporting.ALL)
        records = objects(8000)
        records[10] = records[7999] = b"?"
        await sender.send(*records)
        with pytest.raises(BulkRefused) as caught:
            await sender.commit()
        assert [found.index for found in record_problems(caught.value)] == [10, 7999]


async def test_no_more_is_validated_than_is_about_to_be_staged() -> None:
    class Counting(JsonSchemaValidator):
        parsed = 0

        def parse(self, batch: RecordBatch) -> Sequence[object]:
            Counting.parsed += len(batch.data)
            return super().parse(batch)

    async with Streams(validator=Counting({}), group_records=10) as bench:
        bench.sink.pause("stage")
        sender = await bench.begin()
        for first in range(0, 20_000, 5000):
            await sender.send(*objects(5000, first))
        await bench.sink.reached("stage")
        parsed = -1
        while parsed != Counting.parsed:
            parsed = Counting.parsed
            for _ in range(20):
                await asyncio.sleep(0)
        # One slice may be larger than the groups.
        assert parsed < 5000
        bench.sink.resume("stage")
        assert (await sender.commit()).records == 20_000


@pytest.mark.parametrize("reporting", Reporting)
async def test_what_the_database_cannot_hold_is_told(bench: Streams, reporting: Reporting) -> None:
    bench.sink.failures["stage"].append(refused_records([problem(1), problem(3)], 2))
    sender = await bench.begin(reporting=reporting)
    await sender.send(*objects(5))
    with pytest.raises(BulkRefused) as caught:
        await sender.commit()
    expected = [1] if reporting is Reporting.FIRST else [1, 3]
    assert [found.index for found in record_problems(caught.value)] == expected
    await sender.bulk.rollback()
    assert bench.sink.staged == {}


async def test_what_the_commit_refuses_is_told_and_purged(bench: Streams) -> None:
    bench.sink.failures["commit"].append(refused_records([problem(1), problem(3)], 2))
    sender = await bench.begin()
    await sender.send(*objects(5))
    with pytest.raises(BulkRefused) as caught:
        await sender.commit()
    assert [found.index for found in record_problems(caught.value)] == [1, 3]
    await settled(bench)
    assert bench.sink.staged == {}
    assert bench.sink.visible == []


@pytest.mark.parametrize("key", ["", "x" * 256, "é" * 128, "\ud800"])
async def test_a_key_that_is_none_is_refused(bench: Streams, key: str) -> None:
    sender = await bench.begin()
    await sender.send(*objects(2))
    with pytest.raises(BulkRefused) as caught:
        sender.bulk.submit(RecordBatch([b"{}", b"{}"], [None, key]))
    assert [found.index for found in record_problems(caught.value)] == [3]


# Limits.


@pytest.mark.parametrize(
    ("options", "limit", "accepted"),
    [
        ({"max_record_size": 100}, "bytes per record", 1000),
        ({"max_bulk_records": 2}, "records per bulk", 2),
        ({"max_bulk_bytes": 250}, "bytes per bulk", 2),
    ],
)
async def test_limits_hold(options: dict[str, Any], limit: str, accepted: int) -> None:
    async with Streams(**options) as bench:
        record = b'{"text":"%s"}' % (b"x" * 89)
        assert len(record) == 100
        sender = await bench.begin()
        if accepted == 1000:
            await sender.send(record)
            with pytest.raises(QuotaExceeded) as caught:
                await sender.send(record + b" ")
        else:
            for _ in range(accepted):
                await sender.send(record)
            with pytest.raises(QuotaExceeded) as caught:
                await sender.send(record)
        assert caught.value.limit == limit
        with pytest.raises(QuotaExceeded):
            await sender.commit()
        await sender.bulk.rollback()
        assert bench.sink.staged == {}


async def test_keys_count_for_the_size_of_a_record() -> None:
    async with Streams(max_record_size=10) as bench:
        sender = await bench.begin()
        await sender.send(b'{"n":0}', keys=["abc"])
        with pytest.raises(QuotaExceeded):
            await sender.send(b'{"n":0}', keys=["abcd"])


async def test_a_client_that_sends_nothing_for_too_long_is_given_up() -> None:
    async with Streams(bulk_idle=0.2) as bench:
        sender = await bench.begin()
        await sender.send(*objects(1))
        with pytest.raises(DeadlineExceeded) as caught:
            await sender.watch()
        assert caught.value.seconds == 0.2
        await settled(bench)
        assert bench.sink.staged == {}


async def test_a_client_is_not_idle_while_the_database_is_what_it_waits_for() -> None:
    async with Streams(bulk_idle=0.2) as bench:
        bench.sink.pause("stage")
        sender = await bench.begin()
        await sender.send(*objects(1))
        await bench.sink.reached("stage")
        waiting = asyncio.create_task(sender.bulk.changed(sender.bulk.granted))
        # Long enough for several looks.
        done, _ = await asyncio.wait([waiting], timeout=0.7)
        assert not done
        bench.sink.resume("stage")
        await waiting
        assert (await sender.commit()).records == 1


async def test_the_number_of_bulks_is_limited() -> None:
    async with Streams(max_bulks=2) as bench:
        first, second = await bench.begin(), await bench.begin()
        with pytest.raises(Overloaded):
            await bench.begin()
        await first.bulk.rollback()
        third = await bench.begin()
        await third.send(*objects(1))
        await third.commit()
        await settled(bench)
        await bench.begin()
        await second.bulk.rollback()


async def test_bulks_that_are_being_begun_count() -> None:
    async with Streams(max_bulks=1) as bench:
        bench.sink.pause("begin")
        first = asyncio.create_task(bench.begin())
        await bench.sink.reached("begin")
        with pytest.raises(Overloaded):
            await bench.begin()
        bench.sink.resume("begin")
        await first


# What may be asked for.


async def test_what_cannot_be_begun_is_refused_before_the_sink_is_asked(bench: Streams) -> None:
    streams = bench.streams
    with pytest.raises(RecordEndNotFound):
        await streams.begin_bulk("nowhere")
    with pytest.raises(InvalidArgument, match="content_type"):
        await streams.begin_bulk("things", content_type="text/plain")
    with pytest.raises(InvalidArgument, match="priority"):
        await streams.begin_bulk("things", priority=1)
    for key in ("", "x" * 256, "line\nbreak"):
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            await streams.begin_bulk("things", key=key)
    assert "begin" not in bench.sink.calls
    await streams.begin_bulk("things", content_type="application/json")


# Keys.


async def test_a_key_answers_the_first_result(bench: Streams) -> None:
    sender = await bench.begin(key="once")
    await sender.send(*objects(3))
    first = await sender.commit()
    again = (await bench.begin(key="once")).bulk
    assert again.result == first
    assert again.granted == 0
    with pytest.raises(ProtocolError):
        again.submit(RecordBatch([b"{}"]))
    assert await again.commit(records=3, digest=sender.digest.digest()) == first
    for records, digest in ((2, sender.digest.digest()), (3, bytes(16))):
        with pytest.raises(BulkConflict):
            await again.commit(records=records, digest=digest)
    await again.rollback()
    assert bench.sink.visible == objects(3)


async def test_a_newer_bulk_with_the_key_fences_the_older_one_at_once(bench: Streams) -> None:
    older = await bench.begin(key="once")
    await older.send(*objects(3))
    watching = asyncio.create_task(older.watch())
    newer = await bench.begin(key="once")
    with pytest.raises(Fenced, match="a newer bulk has the same idempotency key"):
        await watching
    with pytest.raises(Fenced):
        await older.commit()
    await newer.send(*objects(2))
    assert (await newer.commit()).records == 2
    await settled(bench)
    assert bench.sink.visible == objects(2)


async def test_a_key_belongs_to_one_target() -> None:
    async with Streams(RecordingSink(), RecordingSink("others")) as bench:
        await bench.begin(key="once")
        with pytest.raises(BulkConflict):
            await bench.begin("others", key="once")
        await bench.streams.begin_bulk("others", key="once", principal="somebody else")


async def test_a_result_from_elsewhere_is_a_conflict() -> None:
    here, there = RecordingSink(), RecordingSink("others")
    there.results = here.results
    async with Streams(here, there) as bench:
        sender = await bench.begin(key="once")
        await sender.send(*objects(1))
        await sender.commit()
        await settled(bench)
        with pytest.raises(BulkConflict):
            await bench.begin("others", key="once")


# Failures and cancelling.


@pytest.mark.parametrize("method", ["begin", "stage", "commit"])
@pytest.mark.parametrize("error", [StorageFailure("gone"), Fenced(epoch=2)])
async def test_what_fails_in_the_sink_is_told_and_purged(bench: Streams, method: str, error: TailraceError) -> None:
    bench.sink.failures[method].append(error)

    async def whole() -> None:
        sender = await bench.begin()
        await sender.send(*objects(3))
        await sender.commit()

    with pytest.raises(type(error)):
        await whole()
    await settled(bench)
    assert bench.sink.calls[-1] == "rollback"
    assert bench.sink.staged == {}
    assert bench.sink.visible == []


async def test_a_defect_of_a_sink_is_logged_and_not_shown(bench: Streams, caplog: pytest.LogCaptureFixture) -> None:
    bench.sink.failures["stage"].append(ValueError("a secret"))
    sender = await bench.begin()
    await sender.send(*objects(3))
    with pytest.raises(TailraceError) as caught:
        await sender.commit()
    assert "secret" not in str(caught.value)
    assert any("secret" in str(record.exc_info) for record in caplog.records if record.exc_info)
    await settled(bench)
    assert bench.sink.staged == {}


@pytest.mark.parametrize("method", ["begin", "stage", "commit"])
async def test_cancelled_at_any_await_a_bulk_is_purged_or_committed(bench: Streams, method: str) -> None:
    bench.sink.pause(method)

    async def whole() -> None:
        sender = await bench.begin()
        try:
            await sender.send(*objects(3))
            await sender.commit()
        except BaseException:
            with suppress(TailraceError):
                await sender.bulk.rollback()
            raise

    task = asyncio.create_task(whole())
    await bench.sink.reached(method)
    task.cancel()
    if method != "commit":
        with pytest.raises(asyncio.CancelledError):
            await task
    bench.sink.resume(method)
    with suppress(asyncio.CancelledError):
        await task
    await settled(bench)
    assert bench.sink.staged == {}
    # A transaction that has begun to commit is not stopped, and is not purged behind its end.
    assert bench.sink.visible == (objects(3) if method == "commit" else [])
    assert ("rollback" in bench.sink.calls) == (method != "commit")


async def test_cancelled_at_every_step_a_bulk_is_visible_as_a_whole_or_gone() -> None:
    outcomes: list[int] = []
    finished = False
    step = 0
    while not finished:
        async with Streams(group_records=2) as bench:
            bench.sink.steps = 2

            async def whole(bench: Streams = bench) -> None:
                sender = await bench.begin(key="once")
                try:
                    for first in range(0, 10, 5):
                        await sender.send(*objects(5, first))
                    await sender.commit()
                except BaseException:
                    await sender.bulk.rollback()
                    raise

            task = asyncio.create_task(whole())
            for _ in range(step):
                await asyncio.sleep(0)
            finished = task.done()
            task.cancel()
            await asyncio.wait([task])
            await settled(bench)
            assert bench.sink.staged == {}
            assert bench.streams._bulks == {}
            assert bench.sink.visible in ([], objects(10))
            outcomes.append(len(bench.sink.visible))
            # The same key tells which it was.
            again = await bench.begin(key="once")
            assert (again.bulk.result is not None) == bool(outcomes[-1])
            await again.bulk.rollback()
        step += 1
    assert step > 30
    # From the moment on in which the transaction begins, nothing can be stopped any more.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 10}


async def test_a_commit_that_is_cancelled_before_everything_is_staged_never_commits(bench: Streams) -> None:
    bench.sink.pause("stage")
    sender = await bench.begin()
    await sender.send(*objects(3))
    committing = asyncio.create_task(sender.commit())
    await bench.sink.reached("stage")
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    bench.sink.resume("stage")
    await settled(bench)
    assert "commit" not in bench.sink.calls
    assert bench.sink.staged == {}


async def test_a_rollback_waits_for_a_commit_that_runs_and_purges_nothing_then(bench: Streams) -> None:
    bench.sink.pause("commit")
    sender = await bench.begin()
    await sender.send(*objects(3))
    committing = asyncio.create_task(sender.commit())
    await bench.sink.reached("commit")
    rolling = asyncio.create_task(sender.bulk.rollback())
    await asyncio.sleep(0)
    assert not rolling.done()
    bench.sink.resume("commit")
    await rolling
    assert (await committing).records == 3
    assert "rollback" not in bench.sink.calls
    assert bench.sink.visible == objects(3)


async def test_a_rollback_while_the_rest_is_staged_keeps_the_commit_from_beginning(bench: Streams) -> None:
    bench.sink.pause("stage")
    sender = await bench.begin()
    await sender.send(*objects(3))
    committing = asyncio.create_task(sender.commit())
    await bench.sink.reached("stage")
    await sender.bulk.rollback()
    with pytest.raises(TailraceError):
        await committing
    assert "commit" not in bench.sink.calls
    assert bench.sink.staged == {}


async def test_a_rollback_is_finished_in_the_background_and_done_once(bench: Streams) -> None:
    sender = await bench.begin()
    await sender.send(*objects(3))
    bench.sink.pause("rollback")
    rolling = asyncio.create_task(sender.bulk.rollback())
    await bench.sink.reached("rollback")
    rolling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rolling
    bench.sink.resume("rollback")
    await sender.bulk.rollback()
    await sender.bulk.rollback()
    assert bench.sink.calls.count("rollback") == 1
    assert bench.sink.staged == {}
    for late in (sender.commit(), sender.bulk.changed(sender.bulk.granted)):
        with pytest.raises(ProtocolError):
            await late


async def test_a_purge_that_fails_is_left_to_the_sweeper(bench: Streams, caplog: pytest.LogCaptureFixture) -> None:
    bench.sink.failures["rollback"].append(StorageFailure("gone"))
    sender = await bench.begin()
    await sender.send(*objects(3))
    await sender.bulk.rollback()
    assert "gone" in caplog.text


# Shutting down.


async def test_a_server_that_goes_tells_bulks_and_purges_them() -> None:
    bench = Streams()
    await bench.streams.start()
    sender = await bench.begin()
    await sender.send(*objects(3))
    watching = asyncio.create_task(sender.watch())
    bench.streams.go_away()
    with pytest.raises(GoingAway):
        await watching
    for late in (sender.commit(), sender.send(b"{}"), bench.begin()):
        with pytest.raises(GoingAway):
            await late
    await bench.streams.close()
    assert bench.sink.staged == {}
    assert bench.sink.calls[-2:] == ["rollback", "close"]


@pytest.mark.parametrize("method", ["stage", "commit"])
async def test_a_server_that_goes_waits_for_commits_that_run(method: str) -> None:
    bench = Streams()
    await bench.streams.start()
    bench.sink.pause(method)
    sender = await bench.begin()
    await sender.send(*objects(3))
    committing = asyncio.create_task(sender.commit())
    await bench.sink.reached(method)
    closing = asyncio.create_task(bench.streams.close())
    await asyncio.sleep(0)
    assert not closing.done()
    bench.sink.resume(method)
    await closing
    assert (await committing).records == 3
    assert bench.sink.visible == objects(3)
    assert bench.sink.calls[-2:] == ["commit", "close"]


async def test_a_bulk_that_is_begun_while_the_server_goes_is_purged() -> None:
    bench = Streams()
    await bench.streams.start()
    bench.sink.pause("begin")
    beginning = asyncio.create_task(bench.begin())
    await bench.sink.reached("begin")
    closing = asyncio.create_task(bench.streams.close())
    await asyncio.sleep(0)
    bench.sink.resume("begin")
    with pytest.raises(GoingAway):
        await beginning
    await closing
    assert bench.sink.staged == {}
    assert bench.sink.calls[-2:] == ["rollback", "close"]


async def test_ends_that_were_started_are_closed_when_another_cannot_be() -> None:
    good, bad = RecordingSink("good"), RecordingSink("more")
    bad.failures["start"].append(StorageFailure("unreachable"))
    bench = Streams(good, bad)
    with pytest.raises(StorageFailure, match="unreachable"):
        await bench.streams.start()
    assert good.calls == ["start", "close"]
    await bench.streams.close()
    assert good.calls == ["start", "close"]


# Beside one another.


async def test_many_bulks_at_the_same_time_stay_apart(bench: Streams) -> None:
    async def one(number: int) -> None:
        sender: Sender = await bench.begin()
        for first in range(0, 300, 30):
            await sender.send(*objects(30, 1000 * number + first))
        if number % 2:
            await sender.bulk.rollback()
        else:
            await sender.commit()

    await asyncio.gather(*(one(number) for number in range(20)))
    expected = {record for number in range(0, 20, 2) for record in objects(300, 1000 * number)}
    assert set(bench.sink.visible) == expected
    assert len(bench.sink.visible) == len(expected)
    await settled(bench)
    assert bench.sink.staged == {}


# The sweeper.


async def test_what_nobody_commits_is_swept() -> None:
    sink, other = RecordingSink(), RecordingSink("others")
    sink.failures["sweep"].extend([StorageFailure("gone"), ValueError("odd")])
    async with Streams(sink, other, staging_retention=0.2, bulk_result_retention=5, sweep_interval=0.01):
        async with asyncio.timeout(10):
            # A sink that fails keeps neither itself nor others from being swept later.
            while len(sink.swept) < 2 or len(other.swept) < 2:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
    assert set(sink.swept + other.swept) == {(0.2, 5)}
