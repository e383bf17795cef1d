"""What a sink of records must do."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio

from tailrace_common_api import (
    BulkRefused,
    BulkResult,
    ConfigurationError,
    Fenced,
    ProblemKind,
    RecordBatch,
    StagingLost,
    StorageFailure,
    record_problems,
)
from tailrace_server_api import BulkOrigin, RecordSink, StagedBatch
from tailrace_server_api.contracts._sink_place import COLUMNS, Row, SinkPlace

__all__ = ["COLUMNS", "RecordSinkContract", "SinkPlace"]

DIGEST = bytes(range(16))


def contact(of: int, /, **other: object) -> dict[str, object]:
    """Return a record that can be beside those of other numbers."""
    return {"name": f"Name {of}", "email": f"{of}@example.org", "city": 1 + of % 2, "number": of, **other}


def staged_batch(first: int, rows: Sequence[Row], keys: Sequence[str | None] = ()) -> StagedBatch:
    """Return records as a validation hands them on."""
    return StagedBatch(first, RecordBatch([json.dumps(row).encode() for row in rows], keys), rows)


async def begin(sink: RecordSink, id: str, *, key: str | None = None, principal: str = "someone") -> BulkResult | None:
    return await sink.begin(BulkOrigin(id=id, principal=principal, key=key, priority=0))


async def stage(sink: RecordSink, id: str, rows: Sequence[Row], *, group: int = 1000) -> None:
    for first in range(0, len(rows), group):
        await sink.stage(id, staged_batch(first, rows[first : first + group]))


async def commit(sink: RecordSink, id: str, records: int) -> BulkResult:
    return await sink.commit(id, records=records, size=100 * records, digest=DIGEST)


async def deliver(sink: RecordSink, id: str, rows: Sequence[Row], *, key: str | None = None) -> BulkResult:
    """Make records visible, as a bulk of their own; it is rolled back if that fails."""
    assert await begin(sink, id, key=key) is None
    try:
        await stage(sink, id, rows)
        return await commit(sink, id, len(rows))
    except BaseException:
        await sink.rollback(id)
        raise


async def refused(sink: RecordSink, rows: Sequence[Row]) -> list[tuple[int, ProblemKind, str | None]]:
    """Return index, kind and field of the problems for which records are refused."""
    with pytest.raises(BulkRefused) as raised:
        await deliver(sink, "refused", rows)
    problems = record_problems(raised.value)
    assert raised.value.total == len(problems)
    assert all(problem.problem for problem in problems)
    return [(problem.index, problem.kind, problem.field) for problem in problems]


def row(record: Row) -> tuple[object, ...]:
    return tuple(record.get(column) for column in COLUMNS)


async def until(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Wait until something that happens behind an answer has happened."""
    async with asyncio.timeout(20):
        while await count() != wanted:  # noqa: ASYNC110 - it happens in a database.
            await asyncio.sleep(0.01)


async def cancelled_at(work: Coroutine[Any, Any, object], suspension: int) -> bool:
    """Run ``work`` and cancel it where it waits for the nth time; return whether it came that far."""
    reached = False

    def step(waited: int, resume: Callable[[], Any]) -> Any:
        nonlocal reached
        waits_for = resume()
        if waited == suspension:
            reached = True
            asyncio.get_running_loop().call_soon(task.cancel)
        return waits_for

    @types.coroutine
    def counted() -> Generator[Any, Any, object]:
        steps = work.__await__()
        resume = functools.partial(next, steps)
        for waited in itertools.count(1):
            try:
                waits_for = step(waited, resume)
            except StopIteration as ended:
                return ended.value
            try:
                resume = functools.partial(steps.send, (yield waits_for))
            except BaseException as error:  # noqa: BLE001 - it is passed on.
                resume = functools.partial(steps.throw, error)
        return None

    async def run() -> object:
        return await counted()

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return reached


@pytest.mark.asyncio
class RecordSinkContract:
    """Subclass it, name the subclass ``Test…`` and implement :meth:`new_place`."""

    def new_place(self) -> AbstractAsyncContextManager[SinkPlace]:
        """Return a context in which there is a database."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def place(self) -> AsyncGenerator[SinkPlace, None]:
        async with self.new_place() as place:
            yield place

    @pytest_asyncio.fixture
    async def sink(self, place: SinkPlace) -> AsyncGenerator[RecordSink, None]:
        sink = place.new_sink()
        await sink.start()
        yield sink
        await sink.close()
        await sink.close()

    # All or nothing.

    async def test_nothing_is_visible_before_the_commit_and_everything_after_it(
        self, sink: RecordSink, place: SinkPlace
    ) -> None:
        rows = [contact(number) for number in range(2345)]
        assert await begin(sink, "bulk") is None
        await stage(sink, "bulk", rows, group=100)
        assert await place.rows() == []
        assert await place.staged() == 2345
        result = await commit(sink, "bulk", 2345)
        assert await place.rows() == [row(record) for record in rows]
        assert (result.id, result.collection, result.records, result.size) == ("bulk", "contacts", 2345, 234_500)
        assert (result.digest, result.repeated) == (DIGEST, False)
        assert await place.staged() == 0

    async def test_what_is_staged_of_many_is_purged_behind_the_commit(self, sink: RecordSink, place: SinkPlace) -> None:
        rows = [contact(number) for number in range(25_000)]
        await deliver(sink, "bulk", rows)
        assert len(await place.rows()) == 25_000
        await until(place.staged, 0)

    async def test_groups_of_any_size_are_staged(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk")
        rows = [contact(number) for number in range(1 + 99 + 100 + 101 + 512)]
        first = 0
        for size in (1, 99, 100, 101, 512):
            await sink.stage("bulk", staged_batch(first, rows[first : first + size]))
            first += size
        await commit(sink, "bulk", first)
        assert await place.rows() == [row(record) for record in rows]

    async def test_bulks_run_concurrently(self, sink: RecordSink, place: SinkPlace) -> None:
        async def run(number: int) -> None:
            await deliver(sink, f"bulk-{number}", [contact(100 * number + other) for other in range(100)])

        await asyncio.gather(*(run(number) for number in range(8)))
        assert sorted(int(str(found[3])) for found in await place.rows()) == list(range(800))
        assert await place.staged() == 0

    async def test_a_bulk_that_is_rolled_back_leaves_nothing(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk")
        await begin(sink, "other")
        await stage(sink, "bulk", [contact(number) for number in range(1500)])
        await stage(sink, "other", [contact(1)])
        for _ in range(2):
            await sink.rollback("bulk")
        assert await place.staged() == 1
        for refuse in (stage(sink, "bulk", [contact(2)]), commit(sink, "bulk", 1500)):
            with pytest.raises(Fenced):
                await refuse
        await commit(sink, "other", 1)
        assert await place.rows() == [row(contact(1))]

    async def test_rolling_back_what_is_unknown_or_committed_does_nothing(
        self, sink: RecordSink, place: SinkPlace
    ) -> None:
        await sink.rollback("unknown")
        await deliver(sink, "bulk", [contact(1)])
        await sink.rollback("bulk")
        assert await place.rows() == [row(contact(1))]

    async def test_a_field_that_is_not_there_is_null(self, sink: RecordSink, place: SinkPlace) -> None:
        await deliver(sink, "bulk", [contact(1), {"name": "a", "email": "b", "other": 1}, contact(2, city=None)])
        assert list(await place.rows()) == [row(contact(1)), ("a", "b", None, None), row(contact(2, city=None))]

    async def test_whole_records_are_kept_with_their_keys(self, place: SinkPlace) -> None:
        sink = place.new_sink(name="notes.of-all", table=None, columns=None)
        await sink.start()
        rows = [{"n": number, "text": "é\n🙂"} for number in range(5)]
        await begin(sink, "bulk")
        await sink.stage("bulk", staged_batch(0, rows[:3]))
        await sink.stage("bulk", staged_batch(3, rows[3:], [None, "schlüssel"]))
        result = await commit(sink, "bulk", 5)
        assert result.collection == "notes.of-all"
        found = await place.records("notes.of-all")
        assert [key for key, _ in found] == [None, None, None, None, "schlüssel"]
        assert [json.loads(data) for _, data in found] == rows
        await sink.close()

    # Records that are lost, or cannot be taken.

    async def test_a_staged_record_that_is_lost_is_noticed(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(number) for number in range(1500)])
        await place.lose(1)
        with pytest.raises(StagingLost) as raised:
            await commit(sink, "bulk", 1500)
        assert (raised.value.staged, raised.value.found) == (1500, 1499)
        await sink.rollback("bulk")
        assert await place.rows() == []

    async def test_records_that_were_never_staged_are_noticed(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(1)])
        with pytest.raises(StagingLost):
            await commit(sink, "bulk", 2)
        await sink.rollback("bulk")
        assert await place.rows() == []

    @pytest.mark.parametrize(
        ("value", "field"),
        [
            ({"number": "five"}, "number"),
            ({"number": 1 << 70}, "number"),
            ({"number": 1.5}, "number"),
            ({"name": 5}, "name"),
            ({"name": "\ud800"}, "name"),
        ],
    )
    async def test_a_value_that_does_not_fit_its_column_is_named(
        self, sink: RecordSink, place: SinkPlace, value: Row, field: str
    ) -> None:
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(number) for number in range(1000)])
        rows = [contact(number) for number in range(1000, 1100)]
        for bad in (7, 99):
            rows[bad] = {**rows[bad], **value}
        with pytest.raises(BulkRefused) as raised:
            await sink.stage("bulk", staged_batch(1000, rows))
        problems = record_problems(raised.value)
        assert [(problem.index, problem.kind, problem.field) for problem in problems] == [
            (1007, ProblemKind.INVALID, field),
            (1099, ProblemKind.INVALID, field),
        ]
        await sink.rollback("bulk")
        assert await place.staged() == 0

    async def test_numbers_that_fit_are_taken_however_they_are_written(
        self, sink: RecordSink, place: SinkPlace
    ) -> None:
        await deliver(sink, "bulk", [contact(1, number=7.0), contact(2, number=(1 << 31) - 1)])
        assert [found[3] for found in await place.rows()] == [7, (1 << 31) - 1]

    async def test_duplicates_within_a_bulk_are_named(self, sink: RecordSink, place: SinkPlace) -> None:
        rows = [contact(number) for number in range(1200)]
        rows[600] = contact(600, email="7@example.org")
        rows[1100] = contact(5000, name="Name 8", number=8)
        assert await refused(sink, rows) == [
            (600, ProblemKind.DUPLICATE, "email"),
            (1100, ProblemKind.DUPLICATE, "name, number"),
        ]
        assert await place.rows() == []
        assert await place.staged() == 0

    async def test_duplicates_of_what_is_there_are_named(self, sink: RecordSink, place: SinkPlace) -> None:
        await place.insert(*(row(contact(number, number=None)) for number in (3, 1003)))
        rows = [contact(number) for number in range(1200)]
        assert await refused(sink, rows) == [
            (3, ProblemKind.DUPLICATE, "email"),
            (1003, ProblemKind.DUPLICATE, "email"),
        ]
        assert len(await place.rows()) == 2
        await deliver(sink, "again", [contact(1200)])

    async def test_unknown_references_are_named(self, sink: RecordSink, place: SinkPlace) -> None:
        rows = [contact(number) for number in range(1200)]
        rows[0] = contact(0, city=77)
        rows[1] = contact(1, city=None)
        rows[1199] = contact(1199, city=-1)
        assert await refused(sink, rows) == [
            (0, ProblemKind.REFERENCE, "city"),
            (1199, ProblemKind.REFERENCE, "city"),
        ]
        assert await place.rows() == []

    async def test_other_rules_of_the_table_are_named(self, sink: RecordSink) -> None:
        rows = [contact(number) for number in range(1200)]
        rows[5] = contact(5, name=None)
        rows[1100] = contact(1100, name="")
        found = await refused(sink, rows)
        assert [(index, kind) for index, kind, _ in found] == [
            (5, ProblemKind.CONSTRAINT),
            (1100, ProblemKind.CONSTRAINT),
        ]
        assert found[0][2] == "name"

    async def test_problems_of_several_kinds_are_told_together(self, sink: RecordSink, place: SinkPlace) -> None:
        await place.insert(row(contact(3, number=None)))
        rows = [contact(number) for number in range(10)]
        rows[1] = contact(1, city=9)
        rows[9] = contact(3, city=9)
        found = await refused(sink, rows)
        assert [index for index, _, _ in found] == [1, 3, 9]
        assert found[:2] == [(1, ProblemKind.REFERENCE, "city"), (3, ProblemKind.DUPLICATE, "email")]

    async def test_the_problems_that_are_named_are_bounded(self, sink: RecordSink) -> None:
        rows = [contact(number) for number in range(5000)]
        await deliver(sink, "first", rows)
        with pytest.raises(BulkRefused) as raised:
            await deliver(sink, "second", [contact(-1), *rows])
        assert raised.value.total == 5000
        assert [problem.index for problem in record_problems(raised.value)] == list(range(1, 101))

    async def test_of_bulks_with_the_same_records_one_commits(self, sink: RecordSink, place: SinkPlace) -> None:
        rows = [contact(number) for number in range(300)]
        outcomes = await asyncio.gather(
            *(deliver(sink, f"bulk-{number}", rows[:: 1 - 2 * (number % 2)]) for number in range(4)),
            return_exceptions=True,
        )
        losers = [outcome for outcome in outcomes if isinstance(outcome, BulkRefused)]
        assert len(losers) == 3, outcomes
        for loser in losers:
            assert loser.total == 300
            assert {problem.kind for problem in record_problems(loser)} == {ProblemKind.DUPLICATE}
        assert len(await place.rows()) == 300

    # Keys.

    async def test_a_key_gives_the_first_result_again(self, sink: RecordSink, place: SinkPlace) -> None:
        first = await deliver(sink, "first", [contact(1)], key="once")
        for again in ("second", "third"):
            result = await begin(sink, again, key="once")
            assert result is not None
            assert result.repeated
            assert (result.id, result.collection, result.records, result.size, result.digest, result.committed_at) == (
                (first.id, first.collection, first.records, first.size, first.digest, first.committed_at)
            )
        assert await begin(sink, "fourth", key="once", principal="other") is None
        assert await begin(sink, "fifth", key="other") is None
        assert len(await place.rows()) == 1

    async def test_results_outlive_a_sink(self, sink: RecordSink, place: SinkPlace) -> None:
        first = await deliver(sink, "first", [contact(1)], key="once")
        other = place.new_sink()
        await other.start()
        result = await begin(other, "second", key="once")
        assert result is not None
        assert result.id == first.id
        await other.close()

    async def test_a_key_that_did_not_commit_can_be_used_again(self, sink: RecordSink, place: SinkPlace) -> None:
        with pytest.raises(BulkRefused):
            await deliver(sink, "first", [contact(1), contact(1)], key="once")
        assert (await deliver(sink, "second", [contact(1)], key="once")).id == "second"
        assert len(await place.rows()) == 1

    async def test_a_newer_bulk_of_a_key_fences_the_other(self, sink: RecordSink, place: SinkPlace) -> None:
        second = place.new_sink()
        await second.start()
        await begin(sink, "first", key="once")
        await stage(sink, "first", [contact(1)])
        assert await begin(second, "second", key="once") is None
        await stage(second, "second", [contact(2)])
        for fenced in (sink.stage("first", staged_batch(1, [contact(3)])), commit(sink, "first", 1)):
            with pytest.raises(Fenced):
                await fenced
        await sink.rollback("first")
        await commit(second, "second", 1)
        assert await place.rows() == [row(contact(2))]
        await until(place.staged, 0)
        await second.close()

    async def test_a_bulk_that_is_committing_is_waited_for_or_fenced(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "first", key="once")
        await stage(sink, "first", [contact(1)])
        async with place.held():
            committing = asyncio.create_task(commit(sink, "first", 1))
            await asyncio.sleep(0.05)
            beginning = asyncio.create_task(begin(sink, "second", key="once"))
            await asyncio.sleep(0.05)
            assert not committing.done()
        found, committed = await asyncio.gather(beginning, committing, return_exceptions=True)
        if isinstance(committed, BulkResult):
            assert isinstance(found, BulkResult)
            assert found.id == "first"
        else:
            assert isinstance(committed, Fenced)
            assert found is None
        assert len(await place.rows()) == isinstance(committed, BulkResult)

    # Cancellation, time and crashes.

    async def test_a_bulk_that_is_cancelled_anywhere_is_whole_or_not_there(
        self, sink: RecordSink, place: SinkPlace
    ) -> None:
        rows = [contact(number) for number in range(250)]
        suspension = 0
        reached = True
        while reached:
            suspension += 1
            id = f"bulk-{suspension}"  # noqa: A001 - that of the bulk.
            try:
                reached = await cancelled_at(self._run(sink, id, rows), suspension)
            finally:
                await sink.rollback(id)
            found = len(await place.rows())
            assert found in (0, 250)
            await until(place.staged, 0)
            if found:
                result = await begin(sink, f"again-{suspension}", key=id)
                assert result is not None
                assert result.id == id
                await place.clear()
        assert suspension > 5

    async def _run(self, sink: RecordSink, id: str, rows: Sequence[Row]) -> None:
        assert await begin(sink, id, key=id) is None
        await stage(sink, id, rows, group=100)
        await commit(sink, id, len(rows))

    async def test_what_is_old_is_swept(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(number) for number in range(1500)])
        assert await sink.sweep(3600) == 0
        assert await place.staged() == 1500
        assert await sink.sweep(0) == 1500
        assert await place.staged() == 0
        for refuse in (stage(sink, "bulk", [contact(2)]), commit(sink, "bulk", 1500)):
            with pytest.raises(Fenced):
                await refuse
        assert await sink.sweep(0) == 0

    async def test_old_results_are_forgotten_where_that_is_asked_for(self, sink: RecordSink, place: SinkPlace) -> None:
        await deliver(sink, "first", [contact(1)], key="once")
        await sink.sweep(0)
        await sink.sweep(0, results_older_than=3600)
        assert await begin(sink, "second", key="once") is not None
        await sink.sweep(3600, results_older_than=0)
        assert await begin(sink, "third", key="once") is None
        assert len(await place.rows()) == 1

    async def test_what_a_crash_left_is_purged_by_the_next_start(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk", key="once")
        await stage(sink, "bulk", [contact(number) for number in range(1500)])
        await place.orphan()
        other = place.new_sink()
        await other.start()
        assert await place.staged() == 0
        assert await begin(other, "second", key="once") is None
        with pytest.raises(Fenced):
            await commit(sink, "bulk", 1500)
        await other.close()

    async def test_the_bulks_of_another_sink_are_left_alone(self, sink: RecordSink, place: SinkPlace) -> None:
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(1)])
        other = place.new_sink()
        await other.start()
        assert await other.sweep(3600) == 0
        await other.close()
        await commit(sink, "bulk", 1)
        assert await place.rows() == [row(contact(1))]

    async def test_what_runs_when_a_sink_is_closed_is_rolled_back(self, place: SinkPlace) -> None:
        sink = place.new_sink()
        await sink.start()
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(1)])
        await sink.close()
        assert await place.staged() == 0
        with pytest.raises(StorageFailure):
            await begin(sink, "another")

    # Settings.

    @pytest.mark.parametrize(
        ("table", "columns"),
        [
            ("nothing", None),
            ('contacts"; DROP TABLE contacts; --', None),
            ("contacts", ["name", "email", "nothing"]),
            ("contacts", ["email", "city"]),
            ("contacts", {"a": "name", "b": "name"}),
            ("contacts", []),
        ],
    )
    async def test_a_target_that_cannot_be_is_an_error_of_the_settings(
        self, place: SinkPlace, table: str, columns: Any
    ) -> None:
        with pytest.raises(ConfigurationError):
            await place.new_sink(table=table, columns=columns).start()
        assert await place.rows() == []

    async def test_fields_go_to_the_columns_that_are_told(self, place: SinkPlace) -> None:
        sink = place.new_sink(columns={"label": "name", "mail": "email"})
        await sink.start()
        await deliver(sink, "bulk", [{"label": "a", "mail": "b", "city": 99}])
        assert list(await place.rows()) == [("a", "b", None, None)]
        assert await refused(sink, [{"label": "c", "mail": "b"}]) == [(0, ProblemKind.DUPLICATE, "mail")]
        await sink.close()

    async def test_without_columns_each_column_takes_the_field_of_its_name(self, place: SinkPlace) -> None:
        sink = place.new_sink(columns=None)
        await sink.start()
        await deliver(sink, "bulk", [contact(5)])
        assert await place.rows() == [row(contact(5))]
        await sink.close()
