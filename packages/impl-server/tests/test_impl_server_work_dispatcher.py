"""A dispatcher hands out work under credit, and what it has claimed is never in nobody's hands."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from impl_server_consumers import PLENTY, SIZE, ack, consumer, settle_down, take
from impl_server_memory_queue import ConcurrentMemoryQueue, MemoryQueue, storage_failure

from tailrace_common_api import (
    GoingAway,
    InvalidArgument,
    Settlement,
    StorageFailure,
    Verdict,
)
from tailrace_impl_server import ServerSettings
from tailrace_impl_server._work_dispatcher import WorkDispatcher
from tailrace_server_api import CreditState, Handed, Queue, WorkSession


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
async def dispatcher(queue: MemoryQueue) -> AsyncIterator[WorkDispatcher]:
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings(max_credit=10_000))
    await dispatcher.start()
    yield dispatcher
    await dispatcher.close()


async def state(session: WorkSession) -> CreditState:
    told = await session.next()
    assert isinstance(told, CreditState)
    return told


async def test_credit_is_kept_and_comes_back_with_answers(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(10)
    session = consumer(dispatcher, 3)
    first = await take(session, 3)
    more = asyncio.ensure_future(take(session, 2))
    await settle_down()
    assert sum(entry.leased_until is not None for entry in queue.entries.values()) == 3
    await ack(session, *first[:2])
    assert [record.id for record in await more] == [4, 5]
    assert (await dispatcher.figures()).in_flight == 3
    await session.leave()


async def test_a_late_consumer_and_a_high_priority_are_next(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(100)
    slow = consumer(dispatcher, 2)
    held = await take(slow, 2)
    (urgent,) = queue.put(priority=5)
    late = consumer(dispatcher, 1)
    assert [record.id for record in await take(late, 1)] == [urgent]
    (other,) = queue.put(priority=9)
    await ack(slow, held[0])
    assert [record.id for record in await take(slow, 1)] == [other]


async def test_bytes_are_counted_and_a_larger_record_comes_alone(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(3)
    (large,) = queue.put(size=500)
    queue.put(1)
    session = consumer(dispatcher, 10, 3 * SIZE)
    held = await take(session, 3)
    await ack(session, *held[:2])
    await settle_down()
    assert queue.entries[large].leased_until is None
    await ack(session, held[2])
    assert [record.id for record in await take(session, 1)] == [large]
    await settle_down()
    assert sum(entry.leased_until is not None for entry in queue.entries.values()) == 1


async def test_bytes_that_come_back_let_a_larger_record_through(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    """Other room than before is a reason to look again, also for who had some."""
    queue.put(2)
    (large,) = queue.put(size=40)
    session = consumer(dispatcher, 10, 60)
    held = await take(session, 2)
    await settle_down()
    assert queue.entries[large].leased_until is None
    await ack(session, held[0])
    # 42 bytes are free, and it counts for 48.
    await settle_down()
    assert queue.entries[large].leased_until is None
    session.set_credit(1, records=10, bytes=70)
    assert [record.id for record in await take(session, 1)] == [large]


async def test_an_expired_lease_gives_no_credit_back(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(2)
    hung = consumer(dispatcher, 1)
    (late,) = await take(hung, 1)
    busy = consumer(dispatcher, 5)
    (second,) = await take(busy, 1)
    queue.advance(31)
    first, again = sorted(await take(busy, 2))
    assert (first.id, first.attempt, again.id) == (late.id, 2, second.id)
    queue.put(1)
    await take(busy, 1)
    (waiting,) = queue.put(1)
    busy.set_credit(1, records=0, bytes=0)
    queue.put(1)
    await settle_down()
    # An answer that does not count gives the credit back.
    assert await hung.settle([Settlement(late.id, 1, Verdict.ACKNOWLEDGE)]) == [False]
    assert (await take(hung, 1))[0].id in (waiting, waiting + 1)


async def test_extensions_give_nothing_back(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    (held,) = await take(session, 1)
    assert await session.settle([Settlement(held.id, 1, Verdict.EXTEND, 100.0)]) == [True]
    await settle_down()
    assert queue.entries[2].leased_until is None
    assert queue.entries[1].leased_until == 100.0


async def test_what_is_requeued_and_due_comes_without_a_hint(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(1)
    session = consumer(dispatcher, 2)
    (record,) = await take(session, 1)
    await session.settle([Settlement(record.id, 1, Verdict.REQUEUE, 0.05)])
    await settle_down()
    queue.now += 0.06
    (again,) = await take(session, 1)
    assert (again.id, again.attempt) == (record.id, 2)


# Stalls.


async def test_who_is_out_of_credit_is_told_also_while_others_work(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(100_000)
    hung = consumer(dispatcher, 1)
    (held,) = await take(hung, 1)
    busy = consumer(dispatcher, 1)

    async def work() -> None:
        while True:
            await ack(busy, *await take(busy, 1))

    working = asyncio.create_task(work())
    try:
        assert await state(hung) == CreditState(0, 1, True)
        assert (await dispatcher.figures()).stalled >= 1
    finally:
        working.cancel()
    for number in list(queue.entries):
        if number != held.id:
            queue.entries.pop(number)
    assert await state(hung) == CreditState(0, 1, False)


async def test_who_has_credit_is_not_asked_after(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(1)
    session = consumer(dispatcher, 5)
    await take(session, 1)
    for _ in range(3):
        await asyncio.sleep(0.06)
        queue.wake()
    assert queue.depths == 0
    assert dispatcher.stalled == 0


async def test_nothing_is_asked_while_nothing_happens(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    consumer(dispatcher, 5)
    await settle_down()
    before = len(queue.claims)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(queue.claims) == before == 1


# Changes of credit.


async def test_credit_is_in_force_when_no_claim_has_the_old_one(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    session = consumer(dispatcher, 5)
    await settle_down()
    queue.before_claim.shut()
    queue.put(2)
    await queue.before_claim.reached.wait()
    session.set_credit(1, records=1, bytes=PLENTY)
    session.set_credit(2, records=0, bytes=0)
    telling = asyncio.ensure_future(session.next())
    await settle_down()
    assert not telling.done()
    queue.before_claim.open()
    handed = await telling
    assert isinstance(handed, Handed)
    assert len(handed.records) == 2
    assert (await state(session)).sequence == 2
    queue.put(1)
    await ack(session, *handed.records)
    await settle_down()
    assert queue.entries[3].leased_until is None


async def test_a_change_during_a_claim_that_fails_is_in_force(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    session = consumer(dispatcher, 5)
    await settle_down()
    queue.before_claim.shut()
    queue.failures.append(storage_failure())
    queue.put(1)
    await queue.before_claim.reached.wait()
    session.set_credit(1, records=0, bytes=0)
    telling = asyncio.ensure_future(session.next())
    await settle_down()
    assert not telling.done()
    queue.before_claim.open()
    assert await telling == CreditState(1, 0, False)


@pytest.mark.parametrize(
    ("sequence", "records", "size"), [(0, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 10_001, 1), (1, 1, -1), (1, 1, 2**40 + 1)]
)
async def test_credits_are_checked(dispatcher: WorkDispatcher, sequence: int, records: int, size: int) -> None:
    session = consumer(dispatcher, 1)
    with pytest.raises(InvalidArgument):
        session.set_credit(sequence, records=records, bytes=size)


async def test_no_claim_asks_for_all_that_a_large_credit_allows(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(5000)
    session = consumer(dispatcher, 10_000, 2**40)
    assert len(await take(session, 5000)) == 5000
    claims = [claim for part in queue.claims for claim in part]
    assert max(claim.records for claim in claims) <= 2048
    assert max(claim.bytes for claim in claims) <= 32 << 20


async def test_a_consumer_that_does_not_read_holds_one_claim(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(5000)
    consumer(dispatcher, 10_000)
    await settle_down()
    assert sum(entry.leased_until is not None for entry in queue.entries.values()) == 2048


# Ends.


async def test_who_leaves_gives_everything_back_and_who_is_lost_keeps_it(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(3)
    leaving, lost = consumer(dispatcher, 1), consumer(dispatcher, 1)
    await take(leaving, 1)
    await take(lost, 1)
    await leaving.leave()
    await lost.release()
    assert [entry.leased_until is None for entry in queue.entries.values()] == [True, False, True]
    assert dispatcher.consumers == 0
    other = consumer(dispatcher, 3)
    assert [(record.id, record.attempt) for record in await take(other, 2)] == [(1, 2), (3, 1)]


async def test_what_was_claimed_and_never_handed_over_is_given_back(
    dispatcher: WorkDispatcher, queue: MemoryQueue
) -> None:
    queue.put(2)
    session = consumer(dispatcher, 2)
    await settle_down()
    await session.release()
    assert sorted(queue.released) == [(1, 1), (2, 1)]


@pytest.mark.parametrize("lost", [True, False])
async def test_a_consumer_that_goes_during_its_claim(
    dispatcher: WorkDispatcher, queue: MemoryQueue, lost: bool
) -> None:
    queue.after_claim.shut()
    queue.put(2)
    session = consumer(dispatcher, 2)
    await queue.after_claim.reached.wait()
    await (session.release() if lost else session.leave())
    queue.after_claim.open()
    other = consumer(dispatcher, 2)
    assert [(record.id, record.attempt) for record in await take(other, 2)] == [(1, 2), (2, 2)]


async def test_a_dispatcher_that_closes_during_a_claim_gives_it_back(queue: MemoryQueue) -> None:
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    queue.after_claim.shut()
    queue.put(2)
    session = consumer(dispatcher, 2)
    await queue.after_claim.reached.wait()
    closing = asyncio.create_task(dispatcher.close())
    await settle_down()
    with pytest.raises(GoingAway):
        await session.next()
    queue.after_claim.open()
    await closing
    assert sorted(queue.released) == [(1, 1), (2, 1)]
    await session.release()
    with pytest.raises(GoingAway):
        dispatcher.open()
    with pytest.raises(GoingAway):
        await session.settle([Settlement(1, 1, Verdict.ACKNOWLEDGE)])


async def test_cancelling_next_loses_nothing(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    session = consumer(dispatcher, 2)
    for turn in range(20):
        waiting = asyncio.create_task(session.next())
        await asyncio.sleep(0)
        queue.put(1)
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        waiting.cancel()
        try:
            told = await waiting
        except asyncio.CancelledError:
            told = await session.next()
        assert isinstance(told, Handed)
        await ack(session, *told.records)
    assert queue.acknowledged == list(range(1, 21))


# Databases that fail.


async def test_a_database_that_fails_is_asked_again(
    dispatcher: WorkDispatcher, queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.failures.extend([storage_failure(), ValueError("odd")])
    queue.put(1)
    assert [record.id for record in await take(consumer(dispatcher, 1), 1)] == [1]
    assert "the database is away" in caplog.text
    assert "odd" in caplog.text


async def test_answers_that_are_not_taken_give_no_credit_back(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(2)
    session = consumer(dispatcher, 1)
    (held,) = await take(session, 1)
    queue.settle_failures.append(storage_failure())
    with pytest.raises(StorageFailure):
        await ack(session, held)
    await settle_down()
    assert queue.entries[2].leased_until is None
    await ack(session, held)
    assert [record.id for record in await take(session, 1)] == [2]


async def test_answers_of_all_consumers_are_taken_together(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(20)
    sessions = [consumer(dispatcher, 1) for _ in range(20)]
    held = [(session, (await take(session, 1))[0]) for session in sessions]
    queue.before_settle.shut()
    first = asyncio.create_task(ack(*held[0]))
    await queue.before_settle.reached.wait()
    others = [asyncio.create_task(ack(*one)) for one in held[1:]]
    await settle_down()
    queue.before_settle.open()
    await asyncio.gather(first, *others)
    assert [len(together) for together in queue.settled] == [1, 19]
    assert sorted(queue.acknowledged) == list(range(1, 21))


async def test_answers_that_break_the_queue_harm_no_others(
    dispatcher: WorkDispatcher, queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(3)
    sessions = [consumer(dispatcher, 1) for _ in range(3)]
    held = [(session, (await take(session, 1))[0]) for session in sessions]
    queue.poison = held[1][1].id
    queue.before_settle.shut()
    first = asyncio.create_task(ack(*held[0]))
    await queue.before_settle.reached.wait()
    others = [asyncio.create_task(ack(*one)) for one in held[1:]]
    await settle_down()
    queue.before_settle.open()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), StorageFailure, type(None)]
    assert caplog.records[-1].levelno == logging.ERROR


async def test_who_stops_waiting_withdraws_no_answer(dispatcher: WorkDispatcher, queue: MemoryQueue) -> None:
    queue.put(1)
    session = consumer(dispatcher, 1)
    (held,) = await take(session, 1)
    queue.before_settle.shut()
    answering = asyncio.create_task(ack(session, held))
    await queue.before_settle.reached.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    queue.before_settle.open()
    await session.leave()
    assert queue.acknowledged == [held.id]


@pytest.mark.parametrize(
    "answer",
    [
        Settlement(-1, 1, Verdict.ACKNOWLEDGE),
        Settlement(2**63, 1, Verdict.ACKNOWLEDGE),
        Settlement(1, 0, Verdict.ACKNOWLEDGE),
        Settlement(1, 1, Verdict.REQUEUE, -1.0),
        Settlement(1, 1, Verdict.REQUEUE, float("nan")),
        Settlement(1, 1, Verdict.EXTEND, float("inf")),
        Settlement(1, 1, Verdict.REQUEUE, 0.0, "x" * 1025),
    ],
)
async def test_answers_are_checked(dispatcher: WorkDispatcher, answer: Settlement) -> None:
    with pytest.raises(InvalidArgument):
        await consumer(dispatcher, 1).settle([answer])


@pytest.mark.parametrize(
    ("said", "taken"), [("a\0b", "a\N{REPLACEMENT CHARACTER}b"), ("a\ud800b", "a?b"), ("é", "é")], ids=ascii
)
async def test_reasons_are_what_databases_take(
    dispatcher: WorkDispatcher, queue: MemoryQueue, said: str, taken: str
) -> None:
    queue.put(1)
    session = consumer(dispatcher, 1)
    await take(session, 1)
    await session.settle([Settlement(1, 1, Verdict.REQUEUE, 0.0, said)])
    assert queue.settled[0][0].reason == taken


# Everything at once.

_STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 5), st.sampled_from([1, 10, 40, 200]), st.integers(-1, 1)),
    st.tuples(st.just("credit"), st.integers(0, 2), st.integers(0, 4), st.sampled_from([0, 60, 150, PLENTY])),
    st.tuples(st.just("answer"), st.integers(0, 2), st.integers(0, 9), st.sampled_from([*Verdict])),
    st.tuples(st.just("expire"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("slow"), st.integers(0, 4), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("refuse"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 2), st.booleans(), st.just(0)),
    st.tuples(st.just("run"), st.integers(1, 12), st.just(0), st.just(0)),
)


class Worker:
    """A consumer that holds what it is given, and checks its credit with everything that it is told."""

    def __init__(self, dispatcher: WorkDispatcher) -> None:
        self.session = dispatcher.open()
        self.granted = [(0, 0)]
        """Credits by sequence; those before the one in force are cleared."""
        self.sequence = -1
        self.in_force = 0
        self.held: dict[tuple[int, int], int] = {}
        self.grant(2, PLENTY)
        self.task = asyncio.create_task(self.run())

    def grant(self, records: int, size: int) -> None:
        self.sequence += 1
        self.granted[self.sequence : self.sequence + 1] = [(records, size)]
        self.session.set_credit(self.sequence, records=records, bytes=size)

    async def run(self) -> None:
        while True:
            told = await self.session.next()
            if isinstance(told, CreditState):
                self.in_force = told.sequence
                continue
            allowed = self.granted[self.in_force :]
            for record in told.records:
                self.held[record.id, record.attempt] = record.size
            assert len(self.held) <= max(records for records, _ in allowed)
            assert sum(self.held.values()) <= max(size for _, size in allowed) or len(self.held) == 1

    async def answer(self, place: tuple[int, int], verdict: Verdict) -> None:
        try:
            await self.session.settle([Settlement(*place, verdict)])
        except StorageFailure:
            return
        if verdict is not Verdict.EXTEND:
            self.held.pop(place, None)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([MemoryQueue, ConcurrentMemoryQueue]), st.lists(_STEP, max_size=40))
def test_credit_holds_and_nothing_is_lost_whatever_happens(
    kind: type[MemoryQueue], steps: list[tuple[str, int, int, object]]
) -> None:
    asyncio.run(play(kind(), steps))


async def play(queue: MemoryQueue, steps: list[tuple[str, int, int, object]]) -> None:
    dispatcher = WorkDispatcher("tasks", Queue(queue=queue), ServerSettings())
    await dispatcher.start()
    workers = [Worker(dispatcher) for _ in range(3)]
    answering: list[asyncio.Task[None]] = []
    total: list[int] = []
    for kind, first, second, third in steps:
        match kind:
            case "put":
                assert isinstance(third, int)
                total += queue.put(first, size=second, priority=third)
            case "credit":
                assert isinstance(third, int)
                workers[first].grant(second, third)
            case "answer":
                held = list(workers[first].held)
                if held:
                    assert isinstance(third, Verdict)
                    place = held[second % len(held)]
                    answering.append(asyncio.create_task(workers[first].answer(place, third)))
            case "expire":
                queue.advance(31)
            case "slow":
                queue.steps = first, second
            case "refuse":
                queue.settle_failures.append(storage_failure())
            case "leave":
                worker = workers[first]
                worker.task.cancel()
                await asyncio.wait((worker.task,))
                await (worker.session.leave() if second else worker.session.release())
                workers[first] = Worker(dispatcher)
            case "run":
                for _ in range(first):
                    await asyncio.sleep(0)
        for worker in workers:
            if worker.task.done():
                worker.task.result()
    await asyncio.gather(*answering)
    queue.settle_failures.clear()
    for worker in workers:
        worker.task.cancel()
        await asyncio.wait((worker.task,))
        assert worker.task.cancelled()
        await worker.session.leave()
    # Everything is done, dead, or still to be had.
    last = consumer(dispatcher, 1000)
    queue.advance(31)
    left = len(total) - len(queue.acknowledged) - len(queue.dead)
    await ack(last, *await take(last, left))
    assert sorted(queue.acknowledged + queue.dead) == total
    await dispatcher.close()
