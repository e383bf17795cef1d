"""Work from the queue to the consumer, over the in-process transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from impl_common_work_bench import FakeQueue, WorkBench, parcels, settle_down

from tailrace_client_download_api import Delivery, RecordConsumer
from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    GoingAway,
    InternalError,
    InvalidArgument,
    LeaseLost,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    QueuedRecord,
    Settlement,
    StorageFailure,
    TailraceError,
    Verdict,
)
from tailrace_impl_common import ConnectedClient
from tailrace_impl_common._serve_work import message_parts
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Window
from tailrace_impl_common.record_messages import (
    MESSAGE_BYTES,
    MESSAGE_RECORDS,
    Credit,
    CreditSet,
    Deliveries,
    Leave,
    Left,
    Settle,
    Settled,
    Work,
    WorkOpened,
)


@pytest.fixture
async def bench() -> AsyncIterator[WorkBench]:
    before = asyncio.all_tasks()
    async with WorkBench() as bench:
        await bench.get_to_know()
        yield bench
    await settle_down()
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


async def take(consumer: RecordConsumer, count: int) -> list[Delivery]:
    taken: list[Delivery] = []
    async for delivery in consumer:
        taken.append(delivery)
        if len(taken) == count:
            break
    return taken


def credit_asked(bench: WorkBench) -> int:
    request = bench.connection.requests[-1]
    assert isinstance(request, Work)
    return request.records


# In order


async def test_outcomes_come_before_what_their_credit_brings(bench: WorkBench) -> None:
    bench.queue.put(parcels(40))
    async with bench.client.work("tasks", credit=2) as consumer:
        for _ in range(20):
            for delivery in await take(consumer, 2):
                await delivery.ack()
    with_consumer = 0
    answers = (len(message.settlements) for message in bench.connection.sent if isinstance(message, Settle))
    for message in bench.connection.received:
        if isinstance(message, Deliveries):
            with_consumer += len(message.records)
            assert with_consumer <= 2
        elif isinstance(message, Settled):
            assert len(message.counted) == next(answers)
            with_consumer -= len(message.counted)
    assert with_consumer == 0
    assert isinstance(bench.connection.received[-1], Left)
    assert bench.queue.acknowledged == list(range(1, 41))


async def test_a_consumer_leaves_in_order(bench: WorkBench) -> None:
    bench.queue.put(parcels(5))
    async with bench.client.work("tasks", credit=3) as consumer:
        held = await take(consumer, 1)
        answering = asyncio.ensure_future(held[0].ack())
        await asyncio.sleep(0)
    await answering
    said = [type(message) for message in bench.connection.sent]
    assert said[-1] is Leave
    assert said.count(Leave) == 1
    assert [session.ended for session in bench.queue.sessions] == ["left"]
    assert bench.queue.ready == 4


async def test_a_slow_server_gets_answers_together(bench: WorkBench) -> None:
    bench.queue.put(parcels(20))
    async with bench.client.work("tasks", credit=20) as consumer:
        held = await take(consumer, 20)
        bench.queue.settle_gate.shut()
        answering = []
        for delivery in held:
            answering.append(asyncio.ensure_future(delivery.ack()))
            await settle_down()
        bench.queue.settle_gate.open()
        await asyncio.gather(*answering)
    assert [len(m.settlements) for m in bench.connection.sent if isinstance(m, Settle)] == [1, 1, 18]


# Lost connections


async def test_what_is_held_counts_against_the_credit_of_the_next_session(bench: WorkBench) -> None:
    bench.queue.put(parcels(10))
    async with bench.client.work("tasks", credit=3) as consumer:
        held = await take(consumer, 3)
        await bench.lose_connection()
        await bench.queue.wait_for_consumers(1)
        assert credit_asked(bench) == 0
        for delivery in held:
            await delivery.ack()
            assert delivery.settled
        assert [delivery.json()["n"] for delivery in await take(consumer, 3)] == [3, 4, 5]
        await settle_down()
        assert consumer.outstanding == 3
        assert bench.queue.consumers[0].records == 3
    assert [session.ended for session in bench.queue.sessions] == ["lost", "left"]


async def test_answers_that_were_on_their_way_are_given_again(bench: WorkBench) -> None:
    bench.queue.put(parcels(3))
    async with bench.client.work("tasks", credit=3) as consumer:
        held = await take(consumer, 3)
        bench.queue.settle_gate.shut()
        answering = [asyncio.ensure_future(delivery.ack()) for delivery in held[:2]]
        await bench.queue.settle_gate.reached.wait()
        await bench.lose_connection()
        answering.append(asyncio.ensure_future(held[2].ack()))
        bench.queue.settle_gate.open()
        await asyncio.gather(*answering)
        assert consumer.outstanding == 0
    assert sorted(bench.queue.acknowledged) == [1, 2, 3]


async def test_an_answer_whose_outcome_was_lost_counts_again(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))

    def lose_outcome(message: ServerMessage) -> ServerMessage:
        if isinstance(message, Settled):
            bench.connection.change = None
            raise ConnectionLost("cut")
        return message

    bench.connection.change = lose_outcome
    async with bench.client.work("tasks", credit=1) as consumer:
        (delivery,) = await take(consumer, 1)
        await delivery.ack()
        assert delivery.settled
    assert len(bench.queue.settled) == 2
    assert bench.queue.acknowledged == [1]


async def test_a_record_that_somebody_else_got_meanwhile_is_lost(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))
    async with bench.client.work("tasks", credit=1) as consumer:
        (delivery,) = await take(consumer, 1)
        await bench.lose_connection()
        bench.queue.expire(delivery.id, delivery.attempt)
        async with bench.client.work("tasks", credit=1) as other:
            (again,) = await take(other, 1)
            with pytest.raises(LeaseLost):
                await delivery.ack()
            assert consumer.outstanding == 0
            await again.ack()


async def test_what_is_held_from_before_is_given_back_at_once(bench: WorkBench) -> None:
    bench.queue.put(parcels(4))
    async with bench.client.work("tasks", credit=4) as consumer:
        held = await take(consumer, 4)
        await bench.lose_connection()
        await held[0].ack()
    assert (bench.queue.acknowledged, bench.queue.ready) == ([1], 3)


async def test_a_server_that_goes_away_is_found_again(bench: WorkBench) -> None:
    bench.queue.put(parcels(3))
    async with bench.client.work("tasks", credit=1) as consumer:
        (first,) = await take(consumer, 1)
        bench.queue.fail(GoingAway(retry_after=0.0))
        await bench.queue.wait_for_consumers(0)
        bench.records.begin_errors = [GoingAway(retry_after=0.0), Overloaded(what="consumers", retry_after=0.0)]
        bench.queue.fail(None)
        await first.ack()
        (second,) = await take(consumer, 1)
        assert second.json()["n"] == 1
        assert bench.records.begin_errors == []


async def test_credit_that_is_set_while_away_is_in_force_afterwards(bench: WorkBench) -> None:
    bench.queue.put(parcels(9))
    async with bench.client.work("tasks", credit=1) as consumer:
        (first,) = await take(consumer, 1)
        bench.connection.failures = [ConnectionLost("away")] * 2
        await bench.lose_connection()
        await consumer.set_credit(3)
        assert (credit_asked(bench), bench.connection.failures) == (2, [])
        await first.ack()
        assert len(await take(consumer, 3)) == 3


async def test_extensions_begin_at_once_after_a_lost_connection_and_end_with_the_answer(bench: WorkBench) -> None:
    bench.queue.put(parcels(2))
    bench.queue.lease = 0.03
    async with bench.client.work("tasks", credit=2, extend=True) as consumer:
        first, second = await take(consumer, 2)
        await bench.queue.wait_for_answers(4)
        bench.queue.lease = 3600.0
        await bench.lose_connection()
        before = len(bench.queue.settled)
        await bench.queue.wait_for_answers(before + 2)
        await first.ack()
        await bench.lose_connection()
        del bench.queue.settled[:]
        await bench.queue.wait_for_answers(1)
        await second.ack()
    assert bench.queue.settled == [
        Settlement(second.id, 1, Verdict.EXTEND),
        Settlement(second.id, 1, Verdict.ACKNOWLEDGE),
    ]


# Failures


async def test_answers_that_were_not_taken_can_be_repeated(bench: WorkBench) -> None:
    bench.queue.put(parcels(2))
    async with bench.client.work("tasks", credit=1) as consumer:
        (delivery,) = await take(consumer, 1)
        bench.queue.settle_errors = [StorageFailure("the disk is gone")]
        with pytest.raises(StorageFailure, match="the disk is gone"):
            await delivery.ack()
        assert (delivery.settled, consumer.outstanding) == (False, 1)
        await delivery.ack()
        assert delivery.settled
        assert len(await take(consumer, 1)) == 1
    assert len(bench.queue.sessions) == 1


async def test_an_error_reaches_who_reads_and_who_answers(bench: WorkBench) -> None:
    bench.queue.put(parcels(2))
    async with bench.client.work("tasks", credit=2) as consumer:
        (first,) = await take(consumer, 1)
        # It was delivered before, and is still to be had.
        bench.queue.settle_gate.shut()
        reading = asyncio.ensure_future(take(consumer, 2))
        answering = asyncio.ensure_future(first.ack())
        await bench.queue.settle_gate.reached.wait()
        bench.queue.fail(PermissionDenied("no more"))
        with pytest.raises(PermissionDenied):
            await reading
        with pytest.raises(PermissionDenied):
            await answering
        with pytest.raises(PermissionDenied):
            await consumer.set_credit(1)
        with pytest.raises(PermissionDenied):
            await consumer.open()
        # Answers have a way of their own.
        bench.queue.fail(None)
        bench.queue.settle_gate.open()
        await first.ack()
        assert consumer.outstanding == 1
    assert bench.queue.acknowledged == [1]


async def test_a_wrong_address_fails_at_once() -> None:
    async with WorkBench() as bench:
        bench.connection.failures = [ConnectionLost("nobody is there")]
        with pytest.raises(ConnectionLost, match="nobody"):
            await bench.client.work("tasks", credit=1).open()
        assert len(bench.connection.requests) == 1


async def test_a_connection_that_does_not_come_back_is_told() -> None:
    settings = ClientSettings(reconnect_timeout=0.0)
    async with WorkBench(settings) as bench, bench.client.work("tasks", credit=1) as consumer:
        reading = asyncio.ensure_future(take(consumer, 1))
        await settle_down()
        await bench.lose_connection()
        with pytest.raises(ConnectionLost):
            await reading


async def test_a_defect_at_the_server_is_told(bench: WorkBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.queue.put(parcels(1))
    async with bench.client.work("tasks", credit=1) as consumer:
        (delivery,) = await take(consumer, 1)
        bench.queue.settle_errors = [ZeroDivisionError()]  # type: ignore[list-item]  # no typed error: a defect
        with pytest.raises(InternalError):
            await delivery.ack()
        with pytest.raises(InternalError):
            await take(consumer, 1)
    assert "Work failed" in caplog.text


async def test_a_defect_at_the_client_is_told(bench: WorkBench, caplog: pytest.LogCaptureFixture) -> None:
    def break_down(message: ServerMessage) -> ServerMessage:
        raise ZeroDivisionError

    bench.connection.change = break_down
    consumer = bench.client.work("tasks", credit=1)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        await take(consumer, 1)
    await consumer.close()
    assert "working on queue tasks failed" in caplog.text


def twice(message: ServerMessage) -> ServerMessage:
    return Deliveries(message.records * 2) if isinstance(message, Deliveries) else message


def too_many(message: ServerMessage) -> ServerMessage:
    if isinstance(message, Deliveries):
        return Deliveries((*message.records, QueuedRecord(10**6, 1, 0, b"")))
    return message


def as_settled(message: ServerMessage) -> ServerMessage:
    return Settled((True,)) if isinstance(message, Deliveries) else message


def as_left(message: ServerMessage) -> ServerMessage:
    return Left() if isinstance(message, Deliveries) else message


def not_opened(message: ServerMessage) -> ServerMessage:
    return CreditSet(0, 0, stalled=False) if isinstance(message, WorkOpened) else message


@pytest.mark.parametrize("change", [twice, too_many, as_settled, as_left, not_opened])
async def test_a_server_that_breaks_the_protocol_is_left(
    bench: WorkBench, change: Callable[[ServerMessage], ServerMessage]
) -> None:
    bench.queue.put(parcels(20))
    bench.connection.change = change
    async with asyncio.timeout(20):
        consumer = bench.client.work("tasks", credit=1)
        with pytest.raises(ProtocolError):
            await take(consumer, 1)
        assert consumer.outstanding == 0
        await consumer.close()
    # It was given some chances.
    assert 1 < len(bench.connection.requests) < 10
    assert bench.queue.consumers == []


# The end


async def test_closing_does_not_wait_for_a_connection_that_is_of_no_use(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))
    consumer = bench.client.work("tasks", credit=1)
    await take(consumer, 1)
    bench.connection.failures = [ConnectionLost("away")] * 1000
    await bench.lose_connection()
    reading = asyncio.ensure_future(take(consumer, 1))
    await settle_down()
    await consumer.close()
    assert await reading == []


async def test_answers_are_worth_a_connection_when_a_consumer_closes(bench: WorkBench) -> None:
    bench.queue.put(parcels(2))
    consumer = bench.client.work("tasks", credit=2)
    held = await take(consumer, 2)
    bench.connection.failures = [ConnectionLost("away")] * 2
    await bench.lose_connection()
    answering = asyncio.ensure_future(held[0].ack())
    await settle_down()
    await consumer.close()
    await answering
    assert (bench.queue.acknowledged, bench.queue.ready) == ([1], 1)


async def test_closing_gives_up_on_a_server_that_says_nothing() -> None:
    async with WorkBench() as bench:
        bench.queue.put(parcels(1))
        consumer = bench.client.work("tasks", credit=1)
        (delivery,) = await take(consumer, 1)
        bench.queue.settle_gate.shut()
        answering = asyncio.ensure_future(delivery.ack())
        await bench.queue.settle_gate.reached.wait()
        # What was answered until here may have taken longer.
        bench.client._link.settings = ClientSettings(answer_timeout=0.05)
        await consumer.close()
        with pytest.raises(ConnectionLost):
            await answering
        await bench.queue.wait_for_consumers(0)
        bench.queue.settle_gate.open()


async def test_an_answer_during_the_leave_is_given_behind_it(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))
    consumer = bench.client.work("tasks", credit=1)
    (delivery,) = await take(consumer, 1)
    bench.queue.leave_gate.shut()
    closing = asyncio.ensure_future(consumer.close())
    await bench.queue.leave_gate.reached.wait()
    answering = asyncio.ensure_future(delivery.ack())
    await settle_down()
    assert not answering.done()
    bench.queue.leave_gate.open()
    await closing
    await answering
    assert bench.queue.acknowledged == [1]
    assert consumer.outstanding == 0


async def test_closing_the_client_ends_its_consumers(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))
    consumer = bench.client.work("tasks", credit=2)
    (delivery,) = await take(consumer, 1)
    reading = asyncio.ensure_future(take(consumer, 1))
    await settle_down()
    await bench.client.close()
    with pytest.raises(ConnectionLost):
        await reading
    with pytest.raises(ConnectionLost):
        await delivery.ack()
    await consumer.close()


@pytest.mark.parametrize("steps", range(20))
async def test_cancelling_leaves_nothing_behind(bench: WorkBench, steps: int) -> None:
    bench.queue.put(parcels(3))

    async def work() -> None:
        async with bench.client.work("tasks", credit=1) as consumer:
            async for delivery in consumer:
                await delivery.ack()

    working = asyncio.ensure_future(work())
    for _ in range(steps):
        await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait((working,))
    await bench.queue.wait_for_consumers(0)
    # Whatever was neither answered nor lost on its way can be had.
    assert set(bench.queue.acknowledged) | set(bench.queue.entries) == {1, 2, 3}


async def test_an_opening_that_was_cancelled_can_be_repeated(bench: WorkBench) -> None:
    bench.records.begin_gate.shut()
    consumer = bench.client.work("tasks", credit=1)
    opening = asyncio.ensure_future(consumer.open())
    await bench.records.begin_gate.reached.wait()
    opening.cancel()
    await asyncio.wait((opening,))
    bench.records.begin_gate.open()
    async with consumer:
        assert consumer.lease == 30.0


async def test_who_else_opens_is_not_disturbed(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))
    bench.records.begin_gate.shut()
    consumer = bench.client.work("tasks", credit=1)
    opening, reading = asyncio.ensure_future(consumer.open()), asyncio.ensure_future(take(consumer, 1))
    await bench.records.begin_gate.reached.wait()
    opening.cancel()
    await asyncio.wait((opening,))
    bench.records.begin_gate.open()
    assert len(await reading) == 1
    assert len(bench.queue.sessions) == 1
    await consumer.close()


# The server


async def say(bench: WorkBench, *messages: ClientMessage, credit: int = 5) -> TailraceError | None:
    """Be a consumer that says these messages and reads up to the end; return how that was."""
    async with await bench.connection.open(Work(queue="tasks", records=credit, bytes=10**6)) as stream:
        try:
            for message in messages:
                await stream.send(message)
            while await stream.receive() is not None:
                pass
        except TailraceError as error:
            return error
    return None


SETTLE = Settle((Settlement(1, 1, Verdict.ACKNOWLEDGE),))


@pytest.mark.parametrize(
    ("messages", "error", "ended"),
    [
        ([Leave()], None, "left"),
        ([SETTLE, Leave()], None, "left"),
        ([Credit(sequence=1, records=1, bytes=1), Credit(sequence=5, records=0, bytes=0), Leave()], None, "left"),
        ([Window(5)], ProtocolError, "lost"),
        ([Work(queue="tasks", records=1, bytes=1)], ProtocolError, "lost"),
        ([Credit(sequence=0, records=1, bytes=1)], InvalidArgument, "lost"),
        ([Credit(sequence=1, records=10**9, bytes=1)], InvalidArgument, "lost"),
    ],
)
async def test_what_consumers_may_say(
    bench: WorkBench, messages: list[ClientMessage], error: type[TailraceError] | None, ended: str
) -> None:
    bench.queue.put(parcels(1))
    outcome = await say(bench, *messages)
    assert isinstance(outcome, error) if error else outcome is None
    assert [session.ended for session in bench.queue.sessions] == [ended]


async def test_a_first_credit_that_is_refused_leaves_no_consumer(bench: WorkBench) -> None:
    with pytest.raises(InvalidArgument):
        await bench.client.work("tasks", credit=10**6).open()
    assert [session.ended for session in bench.queue.sessions] == ["lost"]


async def test_answers_do_not_heap_up_at_the_server(bench: WorkBench) -> None:
    bench.queue.settle_gate.shut()
    saying = asyncio.ensure_future(say(bench, *[SETTLE] * 70))
    outcome = await saying
    assert isinstance(outcome, ProtocolError)
    assert bench.queue.consumers == []
    bench.queue.settle_gate.open()


async def test_a_consumer_that_does_not_read_may_be_lost(bench: WorkBench) -> None:
    bench.queue.put(parcels(50))
    async with await bench.connection.open(Work(queue="tasks", records=1, bytes=10**6)) as stream:
        assert isinstance(await stream.receive(), WorkOpened)
        for sequence in range(1, 30):
            await stream.send(Credit(sequence=sequence, records=1 + sequence, bytes=10**6))
            await settle_down()
        (session,) = bench.queue.consumers
        assert len(session.with_consumer) <= 30
    assert session.ended == "lost"


async def test_a_conversation_ends_while_answers_are_taken(bench: WorkBench) -> None:
    bench.queue.put(parcels(1))
    bench.queue.settle_gate.shut()
    async with await bench.connection.open(Work(queue="tasks", records=1, bytes=10**6)) as stream:
        await stream.send(SETTLE)
        await stream.send(Leave())
        await bench.queue.settle_gate.reached.wait()
        # The answer first, then the leave.
        assert bench.queue.sessions[0].ended == ""
        bench.queue.settle_gate.open()
        received = []
        while (message := await stream.receive()) is not None:
            received.append(type(message))
    assert received[0] is WorkOpened
    assert received[-2:] == [Settled, Left]
    assert bench.queue.acknowledged == [1]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([10], [1]),
        ([MESSAGE_BYTES - 8] * 3, [1, 1, 1]),
        ([MESSAGE_BYTES // 2 - 8] * 3, [2, 1]),
        ([MESSAGE_BYTES * 2, 10, 10], [1, 2]),
        ([10, MESSAGE_BYTES * 2, 10], [1, 1, 1]),
        ([0] * (MESSAGE_RECORDS + 1), [MESSAGE_RECORDS, 1]),
    ],
)
def test_deliveries_are_cut_into_messages(sizes: list[int], expected: list[int]) -> None:
    records = [QueuedRecord(number, 1, 0, bytes(size)) for number, size in enumerate(sizes)]
    parts = message_parts(records)
    assert [len(part) for part in parts] == expected
    assert [record for part in parts for record in part] == records


async def test_queues_do_not_mix(bench: WorkBench) -> None:
    dead = bench.records.queues["tasks.dead"]  # type: ignore[attr-defined]  # it is that of the bench
    assert isinstance(dead, FakeQueue)
    assert isinstance(bench.client, ConnectedClient)
    dead.put(parcels(1, first=7))
    async with bench.client.work("tasks", credit=5) as consumer, bench.client.work("tasks.dead", credit=5) as other:
        (delivery,) = await take(other, 1)
        assert (delivery.json()["n"], consumer.outstanding) == (7, 0)
