"""What a queue of records must do."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tailrace_common_api import QueuedRecord, RecordBatch, Settlement, StorageFailure, Verdict
from tailrace_server_api import BulkOrigin, Claim, Depth, RecordQueue, StagedBatch

LONG = 60.0
"""A lease that does not end in a test."""
SHORT = 0.05
"""A lease whose end is waited for."""
_OVERHEAD = 8


class OpenQueue(NamedTuple):
    """A started queue and that of its dead letters."""

    queue: RecordQueue
    dead: RecordQueue


async def feed(queue: RecordQueue, records: Sequence[bytes], *, priority: int = 0, keys: Sequence[str] = ()) -> None:
    """Submit records by one bulk."""
    origin = BulkOrigin(id=secrets.token_hex(16), principal="", key=None, priority=priority)
    assert await queue.sink.begin(origin) is None
    await queue.sink.stage(origin.id, StagedBatch(0, RecordBatch(records, keys), records))
    size = sum(map(len, records)) + sum(len(key.encode()) for key in keys)
    await queue.sink.commit(origin.id, records=len(records), size=size, digest=bytes(16))


def claim(consumer: str = "one", records: int = 1, *, bytes: int = 1 << 20, idle: bool = False) -> Claim:
    """Return what a consumer may be given: plenty of bytes unless something else is said."""
    return Claim(consumer=consumer, records=records, bytes=bytes, idle=idle)


def data(records: Sequence[QueuedRecord]) -> list[bytes]:
    """Return the contents of records."""
    return [record.data for record in records]


def answer(
    record: QueuedRecord, verdict: Verdict = Verdict.ACKNOWLEDGE, *, seconds: float = 0.0, reason: str = ""
) -> Settlement:
    """Return an answer to a delivery."""
    return Settlement(record.id, record.attempt, verdict, seconds, reason)


async def take(queue: RecordQueue, records: int = 100) -> Sequence[QueuedRecord]:
    """Claim for one consumer with plenty of credit."""
    [given] = await queue.claim([claim(records=records)])
    return given


async def take_when_due(queue: RecordQueue, records: int = 100) -> Sequence[QueuedRecord]:
    """Wait until a lease or a delay has ended, and claim."""
    async with asyncio.timeout(20):
        while True:
            due = await queue.next_due()
            if given := await take(queue, records):
                return given
            assert due is not None
            # Time is what is waited for: there is no sign of its passing but itself.
            await asyncio.sleep(due)


@pytest.mark.asyncio
class RecordQueueContract:
    """Subclass it, name the subclass ``Test…`` and implement the hook."""

    def open_queue(
        self, folder: Path, name: str, *, lease: float, max_attempts: int
    ) -> AbstractAsyncContextManager[OpenQueue]:
        """Return a context in which a queue is open, with what an earlier one of the name left in ``folder``.

        All queues of a folder are in one database.
        """
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def opened(
        self, tmp_path: Path
    ) -> AsyncGenerator[Callable[..., AbstractAsyncContextManager[OpenQueue]], None]:
        def open_(name: str = "tasks", *, lease: float = LONG, max_attempts: int = 0) -> object:
            return self.open_queue(tmp_path, name, lease=lease, max_attempts=max_attempts)

        yield open_  # type: ignore[misc]  # the defaults are what the type does not say

    @pytest_asyncio.fixture
    async def queue(self, tmp_path: Path) -> AsyncGenerator[RecordQueue, None]:
        async with self.open_queue(tmp_path, "tasks", lease=LONG, max_attempts=0) as opened:
            yield opened.queue

    # Order and credit.

    async def test_records_come_as_they_were_submitted(self, queue: RecordQueue) -> None:
        await feed(queue, [b"a", b"", b"\0\xff" * 40_000], keys=["k", "Schlüssel", "x" * 255])
        first, second, third = await take(queue)
        assert (first.data, first.key, first.attempt, first.priority) == (b"a", "k", 1, 0)
        assert (second.data, second.key) == (b"", "Schlüssel")
        assert (third.data, third.key) == (b"\0\xff" * 40_000, "x" * 255)
        assert len({first.id, second.id, third.id}) == 3

    async def test_there_is_nothing_in_a_new_queue(self, queue: RecordQueue) -> None:
        assert await queue.claim([claim(idle=True), claim("two", 5)]) == [[], []]
        assert await queue.next_due() is None
        assert await queue.depth() == Depth(0, 0, 0, 0)

    async def test_work_appears_all_at_once_or_never(self, queue: RecordQueue) -> None:
        origins = [BulkOrigin(id=letter * 32, principal="", key=None, priority=0) for letter in "ab"]
        for origin in origins:
            assert await queue.sink.begin(origin) is None
            await queue.sink.stage(origin.id, StagedBatch(0, RecordBatch([b"1", b"2"]), [b"1", b"2"]))
        assert await take(queue) == []
        assert (await queue.depth()).ready == 0
        await queue.sink.rollback(origins[0].id)
        await queue.sink.stage(origins[1].id, StagedBatch(2, RecordBatch([b"3"]), [b"3"]))
        assert await take(queue) == []
        await queue.sink.commit(origins[1].id, records=3, size=3, digest=bytes(16))
        assert (await queue.depth()).ready == 3
        assert data(await take(queue)) == [b"1", b"2", b"3"]

    async def test_higher_priorities_come_first_then_earlier_submissions(self, queue: RecordQueue) -> None:
        for priority, letter in ((0, b"a"), (5, b"b"), (-1000, b"c"), (0, b"d"), (1000, b"e"), (5, b"f")):
            await feed(queue, [letter + b"1", letter + b"2"], priority=priority)
        given = await take(queue)
        assert b"".join(record.data[:1] for record in given[::2]) == b"ebfadc"
        assert all(record.data.endswith(b"1") for record in given[::2])
        assert given[0].priority == 1000

    async def test_a_high_priority_overtakes_all_that_wait(self, queue: RecordQueue) -> None:
        await feed(queue, [b"%d" % number for number in range(2000)])
        assert data(await take(queue, 2)) == [b"0", b"1"]
        await feed(queue, [b"urgent"], priority=1)
        assert data(await take(queue, 2)) == [b"urgent", b"2"]

    async def test_nobody_gets_more_records_than_were_claimed(self, queue: RecordQueue) -> None:
        await feed(queue, [b"%d" % number for number in range(10)])
        given = await queue.claim([claim("one", 3), claim("two", 1), claim("three", 4)])
        assert [len(records) for records in given] == [3, 1, 4]
        assert sorted(data([record for records in given for record in records])) == [b"%d" % n for n in range(8)]
        for records in given:
            assert [record.id for record in records] == sorted(record.id for record in records)
        assert data(await take(queue)) == [b"8", b"9"]

    async def test_few_records_are_dealt_to_many_consumers(self, queue: RecordQueue) -> None:
        await feed(queue, [b"%d" % number for number in range(4)])
        given = await queue.claim([claim(str(number), 10) for number in range(4)])
        assert [len(records) for records in given] == [1, 1, 1, 1]

    async def test_many_records_are_claimed_at_once(self, queue: RecordQueue) -> None:
        await feed(queue, [b"%d" % number for number in range(2500)])
        assert data(await take(queue, 1700)) == [b"%d" % number for number in range(1700)]
        assert data(await take(queue, 1700)) == [b"%d" % number for number in range(1700, 2500)]

    async def test_nobody_gets_more_bytes_than_were_claimed(self, queue: RecordQueue) -> None:
        await feed(queue, [bytes(100)] * 6, keys=["key"] * 6)
        size = 100 + 3 + _OVERHEAD
        [given] = await queue.claim([claim(records=10, bytes=3 * size)])
        assert [record.size for record in given] == [size] * 3
        [given] = await queue.claim([claim(records=10, bytes=3 * size - 1)])
        assert len(given) == 2
        assert await queue.claim([claim(records=10, bytes=0), claim(records=10, bytes=-5)]) == [[], []]

    async def test_a_larger_record_goes_to_who_has_nothing_else(self, queue: RecordQueue) -> None:
        await feed(queue, [bytes(1000), bytes(10)])
        assert await queue.claim([claim(records=10, bytes=500)]) == [[]]
        [given] = await queue.claim([claim(records=10, bytes=500, idle=True)])
        # The small one does not fit any more.
        assert [len(record.data) for record in given] == [1000]
        assert [len(record.data) for record in await take(queue)] == [10]

    async def test_a_larger_record_is_not_overtaken_but_may_go_to_others(self, queue: RecordQueue) -> None:
        await feed(queue, [bytes(1000), bytes(10), bytes(11)])
        assert await queue.claim([claim(records=10, bytes=500), claim("two", 10, bytes=600)]) == [[], []]
        one, two = await queue.claim([claim(records=10, bytes=500), claim("two", 2, bytes=2000)])
        assert one == []
        assert [len(record.data) for record in two] == [1000, 10]

    async def test_concurrent_claims_never_share_a_record(self, queue: RecordQueue) -> None:
        await feed(queue, [b"%d" % number for number in range(1000)])
        seen: list[bytes] = []

        async def work(consumer: str) -> None:
            while True:
                [given] = await queue.claim([claim(consumer, 7)])
                if not given:
                    return
                seen.extend(data(given))
                assert all(await queue.settle([answer(record) for record in given]))

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(work(str(number)))
        # Who comes to a record that another one is claiming passes it by.
        seen += data(await take(queue, 1000))
        assert sorted(seen) == sorted(b"%d" % number for number in range(1000))

    async def test_queues_of_one_database_are_apart(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened("tasks") as tasks, opened("letters", max_attempts=1) as letters:
            await feed(tasks.queue, [b"task"])
            await feed(letters.queue, [b"letter"])
            [letter] = await take(letters.queue)
            [task] = await take(tasks.queue)
            assert (task.data, letter.data) == (b"task", b"letter")
            assert await tasks.queue.settle([answer(letter)]) == [False]
            await tasks.queue.release([(letter.id, letter.attempt)])
            assert await letters.queue.depth() == Depth(0, 0, 1, 0)
            assert await letters.queue.settle([answer(letter, Verdict.DEAD_LETTER)]) == [True]
            assert await tasks.queue.depth() == Depth(0, 0, 1, 0)
            assert await tasks.dead.depth() == Depth(0, 0, 0, 0)
            assert await letters.dead.depth() == Depth(1, 0, 0, 0)

    # Answers.

    async def test_what_is_acknowledged_is_gone(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"2", b"3"])
        one, two = await take(queue, 2)
        assert await queue.depth() == Depth(1, 0, 2, 0)
        assert await queue.settle([answer(two)]) == [True]
        assert await queue.depth() == Depth(1, 0, 1, 0)
        assert await queue.settle([answer(one)]) == [True]
        assert data(await take(queue)) == [b"3"]
        assert await queue.depth() == Depth(0, 0, 1, 0)

    async def test_no_answers_are_none(self, queue: RecordQueue) -> None:
        assert await queue.settle([]) == []
        await queue.release([])

    async def test_only_the_current_delivery_is_answered(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"never handed out"])
        [record] = await take(queue, 1)
        wrong = [
            answer(record._replace(attempt=2)),
            answer(record._replace(attempt=0)),
            answer(record._replace(id=record.id + 1, attempt=0)),
            answer(record._replace(id=record.id + 1)),
            answer(record._replace(id=record.id + 1000)),
        ]
        assert await queue.settle(wrong) == [False] * 5
        assert await queue.settle([*wrong, answer(record), *wrong]) == [False] * 5 + [True] + [False] * 5
        assert data(await take(queue)) == [b"never handed out"]

    @pytest.mark.parametrize("verdict", [Verdict.ACKNOWLEDGE, Verdict.REQUEUE, Verdict.DEAD_LETTER])
    async def test_the_same_answer_counts_again(self, queue: RecordQueue, verdict: Verdict) -> None:
        await feed(queue, [b"1"])
        [record] = await take(queue)
        assert await queue.settle([answer(record, verdict)]) == [True]
        assert await queue.settle([answer(record, verdict)]) == [True]
        if verdict is Verdict.REQUEUE:
            [again] = await take(queue)
            assert await queue.settle([answer(record, verdict)]) == [True]
            # It has changed nothing.
            assert await queue.settle([answer(again)]) == [True]
        others = [other for other in Verdict if other is not verdict]
        assert await queue.settle([answer(record, other) for other in others]) == [False] * 3

    async def test_of_two_answers_at_once_the_first_one_counts(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"2"])
        one, two = await take(queue)
        answers = [
            answer(one),
            answer(two, Verdict.DEAD_LETTER),
            answer(one),
            answer(one, Verdict.REQUEUE),
            answer(two),
        ]
        assert await queue.settle(answers) == [True, True, True, False, False]
        assert await queue.depth() == Depth(0, 0, 0, 1)

    async def test_what_is_requeued_comes_again_in_its_place(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"2", b"3"])
        await feed(queue, [b"high"], priority=1)
        high, first, second = await take(queue, 3)
        answers = [answer(item, Verdict.REQUEUE, reason="not now") for item in (second, first, high)]
        assert await queue.settle(answers) == [True] * 3
        again = await take(queue)
        assert data(again) == [b"high", b"1", b"2", b"3"]
        assert [record.attempt for record in again] == [2, 2, 2, 1]

    async def test_what_is_requeued_with_a_delay_comes_after_it(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"2"])
        soon, late = await take(queue)
        answers = [answer(late, Verdict.REQUEUE, seconds=LONG), answer(soon, Verdict.REQUEUE, seconds=SHORT)]
        assert await queue.settle(answers) == [True, True]
        due = await queue.next_due()
        assert due is not None
        assert due <= SHORT
        [again] = await take_when_due(queue)
        assert (again.data, again.attempt) == (b"1", 2)
        assert await queue.depth() == Depth(0, 1, 1, 0)

    async def test_dead_letters_are_a_queue(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened() as (queue, dead):
            await feed(queue, [b"1", b"2"], priority=7, keys=["a", "b"])
            [record] = await take(queue, 1)
            assert await queue.settle([answer(record, Verdict.DEAD_LETTER, reason="broken")]) == [True]
            assert await queue.depth() == Depth(1, 0, 0, 1)
            assert await dead.depth() == Depth(1, 0, 0, 0)
            [letter] = await take(dead)
            assert (letter.data, letter.key, letter.priority) == (b"1", "a", 7)
            # It is known how often it was tried before.
            assert letter.attempt == 2
            assert await queue.depth() == Depth(1, 0, 0, 1)
            assert await queue.settle([answer(letter)]) == [False]
            assert await dead.settle([answer(letter)]) == [True]
            assert await dead.depth() == Depth(0, 0, 0, 0)
            assert await queue.depth() == Depth(1, 0, 0, 0)

    async def test_what_is_refused_as_a_dead_letter_rests(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened() as (queue, dead):
            await feed(queue, [b"1"])
            [record] = await take(queue)
            await queue.settle([answer(record, Verdict.DEAD_LETTER)])
            [letter] = await take(dead)
            assert await dead.settle([answer(letter, Verdict.DEAD_LETTER)]) == [True]
            # It would come again at once, for ever.
            assert await take(dead) == []
            assert await dead.depth() == Depth(0, 1, 0, 0)
            assert await queue.depth() == Depth(0, 0, 0, 1)
            due = await dead.next_due()
            assert due is not None
            assert 0 < due <= LONG

    # Leases.

    async def test_an_ended_lease_has_the_record_come_again(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened(lease=SHORT) as (queue, _):
            assert queue.lease == SHORT
            await feed(queue, [b"1", b"2"])
            [record] = await take(queue, 1)
            due = await queue.next_due()
            assert due is not None
            assert 0 <= due <= SHORT
            await asyncio.sleep(due)
            # In its place: before what was submitted after it.
            again, other = await take_when_due(queue)
            assert (again.data, again.attempt, other.data, other.attempt) == (b"1", 2, b"2", 1)
            assert await queue.settle([answer(record), answer(again)]) == [False, True]

    async def test_an_answer_counts_until_somebody_else_has_the_record(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened(lease=SHORT) as (queue, _):
            await feed(queue, [b"1", b"2"])
            records = await take(queue)
            due = await queue.next_due()
            assert due is not None
            await asyncio.sleep(due)
            while await queue.next_due():
                pass
            assert await queue.depth() == Depth(2, 0, 0, 0)
            # What took the records back has given out another one.
            await feed(queue, [b"urgent"], priority=1)
            assert data(await take(queue, 1)) == [b"urgent"]
            assert await queue.settle([answer(records[0]), answer(records[1], Verdict.EXTEND, seconds=LONG)]) == [
                True,
                True,
            ]
            assert data(await take_when_due(queue)) == [b"urgent"]

    async def test_a_lease_is_extended(self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]) -> None:
        async with opened(lease=SHORT) as (queue, _):
            await feed(queue, [b"1", b"2"])
            kept, lost = await take(queue)
            extensions = [answer(kept, Verdict.EXTEND, seconds=LONG), answer(lost, Verdict.EXTEND)]
            assert await queue.settle(extensions) == [True, True]
            assert data(await take_when_due(queue)) == [b"2"]
            assert await queue.settle([answer(lost, Verdict.EXTEND), answer(kept, Verdict.EXTEND)]) == [False, True]
            # Now it has the lease that all have.
            while b"1" not in data(await take_when_due(queue)):
                pass

    async def test_an_extension_and_an_answer_at_once_both_count(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"2"])
        one, two = await take(queue)
        answers = [answer(one, Verdict.EXTEND), answer(one), answer(two), answer(two, Verdict.EXTEND)]
        assert (await queue.settle(answers))[:3] == [True, True, True]
        assert await queue.depth() == Depth(0, 0, 0, 0)

    @pytest.mark.parametrize("seconds", [0.0, LONG])
    async def test_what_was_given_back_is_not_extended(self, queue: RecordQueue, seconds: float) -> None:
        await feed(queue, [b"1", b"2"])
        requeued, released = await take(queue)
        assert await queue.settle([answer(requeued, Verdict.REQUEUE, seconds=seconds)]) == [True]
        await queue.release([(released.id, released.attempt)])
        assert await queue.settle([answer(item, Verdict.EXTEND) for item in (requeued, released)]) == [False, False]
        assert (await queue.depth()).in_flight == 0

    async def test_what_is_released_comes_at_once_and_was_counted(self, queue: RecordQueue) -> None:
        await feed(queue, [b"1", b"2", b"3"])
        one, two, _ = await take(queue)
        await queue.release([(two.id, two.attempt), (one.id, one.attempt + 1), (one.id + 1000, 1)])
        [again] = await take(queue)
        assert (again.data, again.attempt) == (b"2", 2)
        await queue.release([(two.id, two.attempt)])
        assert await take(queue) == []
        assert await queue.settle([answer(one), answer(two), answer(again)]) == [True, False, True]

    async def test_a_record_whose_last_lease_has_ended_is_a_dead_letter(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened(lease=SHORT, max_attempts=2) as (queue, dead):
            await feed(queue, [b"1"])
            await take(queue)
            [record] = await take_when_due(queue)
            assert record.attempt == 2
            woken = asyncio.Event()
            dead.subscribe(woken.set)
            async with asyncio.timeout(20):
                while await queue.next_due() is not None:
                    assert await take(queue) == []
                await woken.wait()
            assert await queue.depth() == Depth(0, 0, 0, 1)
            assert await queue.settle([answer(record)]) == [False]
            # It does not die a second time.
            [letter] = await take(dead)
            assert (letter.data, letter.attempt) == (b"1", 3)
            assert data(await take_when_due(dead)) == [b"1"]

    @pytest.mark.parametrize("seconds", [0.0, LONG])
    async def test_a_record_that_is_requeued_after_its_last_attempt_is_a_dead_letter(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]], seconds: float
    ) -> None:
        async with opened(max_attempts=2) as (queue, dead):
            await feed(queue, [b"1"])
            for attempt in (1, 2):
                [record] = await take(queue)
                assert record.attempt == attempt
                delay = seconds if attempt == 2 else 0.0
                assert await queue.settle([answer(record, Verdict.REQUEUE, seconds=delay)]) == [True]
            assert await queue.depth() == Depth(0, 0, 0, 1)
            # The same answer, in the words of the consumer.
            assert await queue.settle([answer(record, Verdict.REQUEUE)]) == [True]
            assert data(await take(dead)) == [b"1"]

    async def test_what_is_released_untouched_has_used_up_no_attempt(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened(max_attempts=1) as (queue, _):
            await feed(queue, [b"1"])
            for attempt in (1, 2, 3):
                [record] = await take(queue)
                assert record.attempt == attempt
                await queue.release([(record.id, record.attempt)])
            [record] = await take(queue)
            assert await queue.settle([answer(record, Verdict.REQUEUE)]) == [True]
            assert await queue.depth() == Depth(0, 0, 0, 1)

    # Hints.

    async def test_what_makes_work_wakes(self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]) -> None:
        async with opened() as (queue, dead):
            woken, dead_woken = asyncio.Event(), asyncio.Event()
            queue.subscribe(woken.set)
            dead.subscribe(dead_woken.set)

            async def wakes(event: asyncio.Event = woken) -> None:
                async with asyncio.timeout(20):
                    await event.wait()
                event.clear()

            await feed(queue, [b"1"])
            await wakes()
            [record] = await take(queue)
            await queue.release([(record.id, record.attempt)])
            await wakes()
            [record] = await take(queue)
            await queue.settle([answer(record, Verdict.REQUEUE, seconds=LONG)])
            await wakes()
            # Hints may come for nothing.
            dead_woken.clear()
            await queue.settle([answer(record, Verdict.DEAD_LETTER)])
            await wakes(dead_woken)

    # Closing and opening.

    async def test_everything_is_there_when_it_is_opened_again(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        async with opened(lease=LONG) as (queue, _):
            await feed(queue, [b"done", b"leased", b"delayed", b"dead", b"ready"])
            done, leased, delayed, dead = await take(queue, 4)
            answers = [
                answer(done),
                answer(delayed, Verdict.REQUEUE, seconds=LONG),
                answer(dead, Verdict.DEAD_LETTER),
            ]
            assert await queue.settle(answers) == [True] * 3
        async with opened(lease=LONG) as (queue, letters):
            assert await queue.depth() == Depth(1, 1, 1, 1)
            assert data(await take(queue)) == [b"ready"]
            assert data(await take(letters)) == [b"dead"]
            due = await queue.next_due()
            assert due is not None
            assert 0 < due <= LONG
            assert await queue.settle([answer(leased), *answers]) == [True] * 4

    async def test_a_closed_queue_says_so(self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]) -> None:
        async with opened() as (queue, _):
            pass
        await queue.close()
        for call in (queue.claim([claim()]), queue.settle([Settlement(1, 1, Verdict.ACKNOWLEDGE)]), queue.depth()):
            with pytest.raises(StorageFailure):
                await call

    async def test_random_work_is_accounted_for(
        self, opened: Callable[..., AbstractAsyncContextManager[OpenQueue]]
    ) -> None:
        """Every record is acknowledged once or is a dead letter, whatever consumers answer."""
        verdicts = itertools.cycle(
            [Verdict.ACKNOWLEDGE, Verdict.REQUEUE, Verdict.EXTEND, Verdict.ACKNOWLEDGE, Verdict.DEAD_LETTER, None]
        )
        acknowledged: list[bytes] = []
        async with opened() as (queue, dead):
            for priority in (0, 3, -3):
                await feed(queue, [b"%d %d" % (priority, number) for number in range(50)], priority=priority)
            held: list[QueuedRecord] = []
            while given := await take(queue, 13):
                for record, verdict in zip(given, verdicts, strict=False):
                    if verdict is None:
                        await queue.release([(record.id, record.attempt)])
                        continue
                    assert await queue.settle([answer(record, verdict)]) == [True]
                    if verdict is Verdict.EXTEND:
                        held.append(record)
                    elif verdict is Verdict.ACKNOWLEDGE:
                        acknowledged.append(record.data)
                depth = await queue.depth()
                assert depth.ready + depth.in_flight + depth.dead + len(acknowledged) == 150
                assert depth.in_flight == len(held)
            assert await queue.settle([answer(record) for record in held]) == [True] * len(held)
            letters = await take(dead, 150)
            everything = acknowledged + data(held) + data(letters)
            assert sorted(everything) == sorted(b"%d %d" % (p, n) for p in (0, 3, -3) for n in range(50))
            assert await queue.depth() == Depth(0, 0, 0, len(letters))
