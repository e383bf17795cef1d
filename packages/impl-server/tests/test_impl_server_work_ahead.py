"""Work is claimed for the credit that answers give back while they are being taken, and handed over behind them."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
from impl_server_consumers import SIZE, ack, consumer, settle_down, take
from impl_server_memory_queue import ConcurrentMemoryQueue, MemoryQueue, storage_failure

from tailrace_common_api import QueuedRecord, Settlement, StorageFailure, TailraceError, Verdict
from tailrace_impl_server import ServerSettings
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_queue import PostgresQueue
from tailrace_impl_server._work_dispatcher import WorkDispatcher
from tailrace_impl_server._work_session import DispatchedSession
from tailrace_server_api import CreditState, Handed, Queue, WorkSession
from tailrace_server_api.contracts.queue import feed


@pytest.fixture
def queue() -> MemoryQueue:
    return ConcurrentMemoryQueue()


@pytest.fixture
async def dispatcher(queue: MemoryQueue) -> AsyncIterator[WorkDispatcher]:
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    yield dispatcher
    # A test that fails must not hang besides.
    for gate in (queue.before_claim, queue.after_claim, queue.before_settle):
        gate.open()
    await dispatcher.close()


async def handed(session: WorkSession) -> list[tuple[int, int]]:
    """Return numbers and attempts of what is handed over next, whatever is told before."""
    while not isinstance(told := await session.next(), Handed):
        pass
    return [(record.id, record.attempt) for record in told.records]


async def being_taken(queue: MemoryQueue, session: WorkSession, *records: QueuedRecord) -> asyncio.Task[None]:
    """Acknowledge records, and return when the queue has the answers, and whoever can has done something about it."""
    queue.before_settle.shut()
    answering = asyncio.create_task(ack(session, *records))
    await queue.before_settle.reached.wait()
    await settle_down()
    return answering


def leased(queue: MemoryQueue) -> list[int]:
    return [entry.id for entry in queue.entries.values() if entry.leased_until is not None]


async def test_the_next_ones_are_claimed_meanwhile_and_handed_over_behind(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(5)
    session = consumer(dispatcher, 3)
    held = await take(session, 3)
    answering = await being_taken(queue, session, *held[:2])
    assert leased(queue) == [1, 2, 3, 4, 5]
    more = asyncio.ensure_future(handed(session))
    await settle_down()
    assert not more.done()
    queue.before_settle.open()
    await answering
    assert await more == [(4, 1), (5, 1)]
    assert queue.released == []


async def test_a_claim_that_takes_longer_than_the_answers_is_handed_over_at_once(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    held = await take(session, 1)
    claims = len(queue.claims)
    queue.before_claim.shut()
    answering = await being_taken(queue, session, *held)
    await queue.before_claim.reached.wait()
    queue.before_settle.open()
    await answering
    await settle_down()
    queue.before_claim.open()
    assert await handed(session) == [(2, 1)]
    assert len(queue.claims) == claims + 1


async def test_queues_that_do_one_thing_at_a_time_are_asked_for_one() -> None:
    queue = MemoryQueue()
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    queue.put(2)
    session = consumer(dispatcher, 1)
    answering = await being_taken(queue, session, *await take(session, 1))
    assert leased(queue) == [1]
    queue.before_settle.open()
    await answering
    assert await handed(session) == [(2, 1)]
    await dispatcher.close()


@pytest.mark.parametrize("verdict", [Verdict.REQUEUE, Verdict.EXTEND, Verdict.DEAD_LETTER])
async def test_only_acknowledgements_are_counted_on(
    dispatcher: WorkDispatcher, queue: MemoryQueue, verdict: Verdict
) -> None:
    """What is given back may be what comes next."""
    queue.put(3)
    session = consumer(dispatcher, 2)
    await take(session, 2)
    queue.before_settle.shut()
    answers = [Settlement(1, 1, verdict), Settlement(2, 1, Verdict.ACKNOWLEDGE)]
    answering = asyncio.create_task(session.settle(answers))
    await queue.before_settle.reached.wait()
    await settle_down()
    assert leased(queue) == [1, 2]
    queue.before_settle.open()
    assert await answering == [True, True]
    expected = {Verdict.REQUEUE: [(1, 2), (3, 1)], Verdict.EXTEND: [(3, 1)], Verdict.DEAD_LETTER: [(3, 1)]}
    assert await handed(session) == expected[verdict]


# Failures.


async def test_what_was_claimed_for_answers_that_are_not_taken_is_given_back(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(4)
    session = consumer(dispatcher, 2)
    held = await take(session, 2)
    queue.settle_failures.append(storage_failure())
    answering = await being_taken(queue, session, *held)
    assert leased(queue) == [1, 2, 3, 4]
    queue.before_settle.open()
    with pytest.raises(StorageFailure):
        await answering
    await settle_down()
    assert queue.released == [(3, 1), (4, 1)]
    assert leased(queue) == [1, 2]
    await ack(session, *held)
    assert await handed(session) == [(3, 2), (4, 2)]


async def test_so_is_what_the_claim_brings_when_they_have_failed(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    held = await take(session, 1)
    queue.settle_failures.append(storage_failure())
    queue.after_claim.shut()
    answering = await being_taken(queue, session, *held)
    await queue.after_claim.reached.wait()
    queue.before_settle.open()
    with pytest.raises(StorageFailure):
        await answering
    queue.after_claim.open()
    await settle_down()
    assert queue.released == [(2, 1)]
    await ack(session, *held)
    assert await handed(session) == [(2, 2)]


async def test_when_some_answers_are_not_taken_the_others_have_their_credit(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(4)
    session = consumer(dispatcher, 2)
    held = await take(session, 2)
    queue.poison = held[1].id
    queue.before_settle.shut()
    answering = [asyncio.create_task(ack(session, record)) for record in held]
    await queue.before_settle.reached.wait()
    await settle_down()
    assert leased(queue) == [1, 2, 3, 4]
    queue.before_settle.open()
    outcomes = await asyncio.gather(*answering, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), StorageFailure]
    assert await handed(session) == [(3, 2)]
    await settle_down()
    assert queue.released == [(3, 1), (4, 1)]
    assert leased(queue) == [2, 3]


async def test_a_claim_that_fails_harms_no_answer_and_comes_again(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    held = await take(session, 1)
    queue.failures.append(storage_failure())
    answering = await being_taken(queue, session, *held)
    queue.before_settle.open()
    await answering
    assert queue.acknowledged == [1]
    assert await handed(session) == [(2, 1)]


async def test_who_stops_waiting_for_an_answer_gets_nothing_for_it(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    answering = await being_taken(queue, session, *await take(session, 1))
    assert leased(queue) == [1, 2]
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    queue.before_settle.open()
    await settle_down()
    assert queue.released == [(2, 1)]


async def test_what_waited_for_half_of_its_lease_is_given_back() -> None:
    """Whoever is given it needs time, and behind the lease it is somebody else's."""
    queue = ConcurrentMemoryQueue(lease=1e-9)
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    queue.put(2)
    session = consumer(dispatcher, 1)
    answering = await being_taken(queue, session, *await take(session, 1))
    assert leased(queue) == [1, 2]
    queue.before_settle.open()
    await answering
    assert await handed(session) == [(2, 2)]
    assert queue.released == [(2, 1)]
    await dispatcher.close()


# Ends.


@pytest.mark.parametrize("lost", [True, False])
async def test_a_consumer_that_goes_meanwhile_keeps_nothing_from_others(
    dispatcher: WorkDispatcher, queue: MemoryQueue, lost: bool
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    answering = await being_taken(queue, session, *await take(session, 1))
    going = asyncio.create_task(session.release() if lost else session.leave())
    await settle_down()
    queue.before_settle.open()
    await asyncio.gather(answering, going)
    assert (2, 1) in queue.released
    assert await handed(consumer(dispatcher, 1)) == [(2, 2)]


@pytest.mark.parametrize("lost", [True, False])
async def test_a_consumer_that_goes_during_the_claim_keeps_nothing_either(
    dispatcher: WorkDispatcher, queue: MemoryQueue, lost: bool
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    held = await take(session, 1)
    queue.after_claim.shut()
    answering = await being_taken(queue, session, *held)
    await queue.after_claim.reached.wait()
    queue.before_settle.open()
    await answering
    await (session.release() if lost else session.leave())
    queue.after_claim.open()
    assert await handed(consumer(dispatcher, 1)) == [(2, 2)]


@pytest.mark.parametrize("closing", [True, False])
async def test_a_claim_does_not_bring_back_what_its_consumer_leaves(
    dispatcher: WorkDispatcher, queue: MemoryQueue, closing: bool
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 2)
    held = await take(session, 2)
    queue.before_claim.shut()
    answering = await being_taken(queue, session, held[1])
    await queue.before_claim.reached.wait()
    queue.before_settle.open()
    await answering
    going = [asyncio.create_task(session.leave())]
    await settle_down()
    if closing:
        going.append(asyncio.create_task(dispatcher.close()))
        await settle_down()
    assert queue.released == []
    queue.before_claim.open()
    await asyncio.gather(*going)
    assert queue.released == [(1, 1)]
    assert queue.entries[1].attempt == 1


# Credit.


async def test_a_lower_credit_is_in_force_behind_what_was_claimed_ahead(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(3)
    session = consumer(dispatcher, 1)
    answering = await being_taken(queue, session, *await take(session, 1))
    session.set_credit(1, records=0, bytes=0)
    telling = asyncio.ensure_future(session.next())
    await settle_down()
    assert not telling.done()
    queue.before_settle.open()
    await answering
    told = await telling
    assert isinstance(told, Handed)
    assert [record.id for record in told.records] == [2]
    assert await session.next() == CreditState(1, 1, False)
    await ack(session, *told.records)
    await settle_down()
    assert leased(queue) == []


async def test_what_is_claimed_ahead_is_not_with_the_consumer(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    answering = await being_taken(queue, session, *await take(session, 1))
    assert isinstance(session, DispatchedSession)
    session.set_stalled(True)
    assert await session.next() == CreditState(0, 1, True)
    queue.before_settle.open()
    await answering


async def test_a_record_of_any_size_comes_ahead_only_to_who_will_hold_nothing(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(2)
    queue.put(size=500)
    session = consumer(dispatcher, 10, 2 * SIZE)
    first, second = await take(session, 2)
    answering = await being_taken(queue, session, first)
    assert leased(queue) == [1, 2]
    queue.before_settle.open()
    await answering
    await settle_down()
    assert leased(queue) == [2]
    answering = await being_taken(queue, session, second)
    assert leased(queue) == [2, 3]
    more = asyncio.ensure_future(handed(session))
    await settle_down()
    assert not more.done()
    queue.before_settle.open()
    await answering
    assert await more == [(3, 1)]


async def test_bytes_are_kept_to_ahead_too(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(6)
    session = consumer(dispatcher, 10, 3 * SIZE)
    held = await take(session, 3)
    answering = await being_taken(queue, session, *held[:2])
    assert leased(queue) == [1, 2, 3, 4, 5]
    queue.before_settle.open()
    await answering
    assert await handed(session) == [(4, 1), (5, 1)]
    await settle_down()
    assert leased(queue) == [3, 4, 5]


async def test_what_fits_without_the_answers_does_not_wait_for_them(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(1)
    session = consumer(dispatcher, 3)
    answering = await being_taken(queue, session, *await take(session, 1))
    queue.put(2)
    assert await handed(session) == [(2, 1), (3, 1)]
    assert not answering.done()
    queue.before_settle.open()
    await answering


async def test_nothing_is_asked_twice(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(2)
    session = consumer(dispatcher, 2)
    held = await take(session, 2)
    for record in held:
        claims = len(queue.claims)
        answering = await being_taken(queue, session, record)
        assert len(queue.claims) == claims + 1
        queue.before_settle.open()
        await answering
        await settle_down()
        assert len(queue.claims) == claims + 1
    queue.put(1)
    assert await handed(session) == [(3, 1)]


# PostgreSQL.


async def leased_records(connection: asyncpg.Connection) -> Sequence[int]:
    rows = await connection.fetch("SELECT id FROM tailrace_work WHERE state = 1 ORDER BY id")
    return [row["id"] for row in rows]


async def test_postgresql_claims_while_answers_wait(postgres_url: str) -> None:
    queue = PostgresQueue("tasks", PostgresDatabase("shop", postgres_url))
    await queue.start()
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    others = await asyncpg.connect(postgres_url)
    try:
        await feed(queue, [b"1", b"2"])
        session = consumer(dispatcher, 1)
        [first] = await take(session, 1)
        async with asyncio.timeout(20):
            async with others.transaction():
                await others.execute("SELECT FROM tailrace_work WHERE id = $1 FOR UPDATE", first.id)
                answering = asyncio.create_task(ack(session, first))
                while len(await leased_records(others)) < 2:
                    pass
                more = asyncio.ensure_future(handed(session))
                await settle_down()
                assert not answering.done()
                assert not more.done()
            await answering
            assert await more == [(first.id + 1, 1)]
            assert await leased_records(others) == [first.id + 1]
    finally:
        await others.close()
        await dispatcher.close()
        await queue.close()


async def test_one_connection_is_enough(postgres_url: str) -> None:
    queue = PostgresQueue("tasks", PostgresDatabase("shop", postgres_url, max_connections=1))
    await queue.start()
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    try:
        await feed(queue, [b"%d" % number for number in range(50)])
        session = consumer(dispatcher, 4)
        seen: list[bytes] = []
        async with asyncio.timeout(20):
            while len(seen) < 50:
                if isinstance(told := await session.next(), Handed):
                    seen += [record.data for record in told.records]
                    await ack(session, *told.records)
        assert seen == [b"%d" % number for number in range(50)]
    finally:
        await dispatcher.close()
        await queue.close()


async def test_a_database_that_ends_connections_meanwhile_loses_and_doubles_nothing(postgres_url: str) -> None:
    """Settlements and claims fail in any order; what counted does not come again, and all else does."""
    queue = PostgresQueue("tasks", PostgresDatabase("shop", postgres_url), lease=4.0)
    await queue.start()
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings(poll_interval=0.1))
    await dispatcher.start()
    killer = await asyncpg.connect(postgres_url)
    total = {b"%d" % number for number in range(400)}
    counted: set[bytes] = set()
    failures = 0
    try:
        await feed(queue, sorted(total))
        session = consumer(dispatcher, 8)
        async with asyncio.timeout(50):
            while len(counted) < len(total):
                if not isinstance(told := await session.next(), Handed):
                    continue
                assert len(told.records) <= 8
                for record in told.records:
                    assert record.data not in counted
                answers = [Settlement(record.id, record.attempt, Verdict.ACKNOWLEDGE) for record in told.records]
                answering = asyncio.ensure_future(session.settle(answers))
                if failures < 5:
                    await asyncio.sleep(0)
                    await killer.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                try:
                    counts = await answering
                except TailraceError:
                    failures += 1
                    counts = await settle_again(session, answers)
                counted.update(record.data for record, counts_ in zip(told.records, counts, strict=True) if counts_)
        assert failures
        assert counted == total
        depth = await queue.depth()
        assert (depth.ready, depth.delayed, depth.in_flight) == (0, 0, 0)
    finally:
        await killer.close()
        await dispatcher.close()
        await queue.close()


async def settle_again(session: WorkSession, answers: Sequence[Settlement]) -> Sequence[bool]:
    """Say the same until it is taken, as consumers do."""
    while True:
        try:
            return await session.settle(answers)
        except TailraceError:
            await asyncio.sleep(0)
