"""Contract tests of work.

A subclass overrides the fixture and the hook::

    class TestMyWork(WorkClientContract):
        @pytest.fixture
        async def work_client(self): ...

        async def put(self, records, *, priority=0): ...
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence

import pytest

from tailrace_client_download_api._records import Delivery, RecordClient, RecordConsumer
from tailrace_common_api import ConnectionLost, InvalidArgument, LeaseLost, QueueFigures, RecordEndNotFound

_KIB = 1024


class WorkClientContract:
    """What every client that works on a queue does, at a server with one queue and its dead letters.

    The queue is empty, its leases last longer than the tests do, and attempts have no limit.
    """

    queue = "tasks"
    """Name of the queue."""
    missing = "nothing.of.this.name"
    """Name of no queue."""

    @pytest.fixture
    def work_client(self) -> RecordClient:
        """Give the client under test."""
        raise NotImplementedError("the fixture `work_client` gives the client under test")

    async def put(self, records: Sequence[bytes], *, priority: int = 0) -> None:
        """Put records into the queue, in this order; each is a JSON object."""
        raise NotImplementedError("the hook `put` feeds the queue")

    async def feed(self, numbers: Iterable[int], *, priority: int = 0, padding: int = 0) -> None:
        """Put numbered records into the queue, each longer by ``padding`` bytes than it need be."""
        records = [json.dumps({"n": number, "padding": "x" * padding}).encode() for number in numbers]
        await self.put(records, priority=priority)

    async def figures(self, work_client: RecordClient) -> QueueFigures:
        """Return how much there is in the queue."""
        return await work_client.queue_figures(self.queue)

    # Delivery

    async def test_records_come_in_order_and_once(self, work_client: RecordClient) -> None:
        await self.feed(range(20))
        async with work_client.work(self.queue, credit=4) as consumer:
            seen: list[int] = []
            async for delivery in consumer:
                assert (delivery.attempt, delivery.priority, delivery.settled) == (1, 0, False)
                assert delivery.record.json() == delivery.json()
                seen.append(delivery.json()["n"])
                await delivery.ack()
                assert delivery.settled
                if len(seen) == 20:
                    break
            assert seen == list(range(20))
            assert consumer.outstanding == 0
        figures = await self.figures(work_client)
        assert (figures.queue, figures.ready, figures.in_flight) == (self.queue, 0, 0)
        assert (figures.delayed, figures.dead, figures.consumers) == (0, 0, 0)

    async def test_work_that_comes_later_is_delivered(self, work_client: RecordClient) -> None:
        async with work_client.work(self.queue, credit=1) as consumer:
            waiting = asyncio.ensure_future(_take(consumer, 1))
            await self.feed([7])
            (delivery,) = await waiting
            assert delivery.json()["n"] == 7
            await delivery.ack()

    async def test_no_more_is_unanswered_than_was_granted(self, work_client: RecordClient) -> None:
        await self.feed(range(10))
        async with work_client.work(self.queue, credit=3) as consumer:
            assert consumer.lease > 0
            held = await _take(consumer, 3)
            # Everything else is there for others.
            async with work_client.work(self.queue, credit=10) as other:
                assert _numbers(await _take(other, 7)) == list(range(3, 10))
                assert consumer.outstanding == 3
                assert (await self.figures(work_client)).consumers == 2
            await held[1].ack()
            (another,) = await _take(consumer, 1)
            assert (another.json()["n"], another.attempt) == (3, 2)
            assert consumer.outstanding == 3

    async def test_bytes_are_bounded_too(self, work_client: RecordClient) -> None:
        await self.feed(range(2), padding=100 * _KIB)
        await self.feed(range(2, 7), padding=10 * _KIB)
        async with work_client.work(self.queue, credit=10, credit_bytes=32 * _KIB) as consumer:
            for number in range(2):
                # It is larger than the credit, and comes alone.
                (large,) = await _take(consumer, 1)
                assert large.json()["n"] == number
                assert consumer.outstanding == 1
                await large.ack()
            assert _numbers(await _take(consumer, 3)) == [2, 3, 4]
            async with work_client.work(self.queue, credit=2) as other:
                assert _numbers(await _take(other, 2)) == [5, 6]
                assert consumer.outstanding == 3

    async def test_higher_priority_comes_first(self, work_client: RecordClient) -> None:
        await self.feed(range(50))
        async with work_client.work(self.queue, credit=1) as consumer:
            (first,) = await _take(consumer, 1)
            await self.feed([-1], priority=-3)
            await self.feed([100], priority=3)
            await first.ack()
            (second,) = await _take(consumer, 1)
            assert (second.json()["n"], second.priority) == (100, 3)

    async def test_consumers_work_side_by_side(self, work_client: RecordClient) -> None:
        await self.feed(range(100))
        done: list[int] = []

        async def work(consumer: RecordConsumer) -> None:
            async for delivery in consumer:
                done.append(delivery.json()["n"])
                await delivery.ack()
                if len(done) == 100:
                    return

        async with (
            work_client.work(self.queue, credit=3) as first,
            work_client.work(self.queue, credit=1) as second,
            work_client.work(self.queue, credit=20) as third,
        ):
            tasks = [asyncio.ensure_future(work(consumer)) for consumer in (first, second, third)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for consumer in (first, second, third):
                await consumer.close()
            await asyncio.gather(*tasks)
        assert sorted(done) == list(range(100))

    # Answers

    async def test_what_failed_comes_again(self, work_client: RecordClient) -> None:
        await self.feed(range(2))
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            await delivery.reject("out of order")
            assert delivery.settled
            given = sorted([await _next_and_ack(consumer), await _next_and_ack(consumer)])
            assert given == [(0, 2), (1, 1)]

    async def test_what_failed_comes_again_later(self, work_client: RecordClient) -> None:
        await self.feed(range(2))
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            await delivery.reject("no paper", delay=3600)
            assert await _next_and_ack(consumer) == (1, 1)
        figures = await self.figures(work_client)
        assert (figures.ready, figures.delayed) == (0, 1)

    async def test_what_cannot_be_done_is_a_dead_letter(self, work_client: RecordClient) -> None:
        await self.feed([5])
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            await delivery.reject("no such address", dead_letter=True)
        figures = await self.figures(work_client)
        assert (figures.ready, figures.in_flight, figures.dead) == (0, 0, 1)
        async with work_client.work(f"{self.queue}.dead", credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            assert delivery.json()["n"] == 5
            await delivery.ack()
        assert (await self.figures(work_client)).dead == 0

    async def test_answers_come_in_any_order_from_any_task(self, work_client: RecordClient) -> None:
        await self.feed(range(30))
        async with work_client.work(self.queue, credit=30) as consumer:
            held = await _take(consumer, 30)
            await asyncio.gather(*(delivery.ack() for delivery in reversed(held)))
            assert consumer.outstanding == 0
        assert (await self.figures(work_client)).in_flight == 0

    async def test_an_answer_can_be_repeated(self, work_client: RecordClient) -> None:
        await self.feed([0])
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            await delivery.ack()
            await delivery.ack()
            with pytest.raises(LeaseLost):
                await delivery.reject()

    async def test_a_lease_can_be_extended_until_the_answer(self, work_client: RecordClient) -> None:
        await self.feed([0])
        async with work_client.work(self.queue, credit=1, extend=True) as consumer:
            (delivery,) = await _take(consumer, 1)
            await delivery.extend()
            await delivery.extend(3600)
            assert not delivery.settled
            assert consumer.outstanding == 1
            await delivery.ack()
            with pytest.raises(LeaseLost):
                await delivery.extend()
        assert (await self.figures(work_client)).in_flight == 0

    async def test_an_answer_that_nobody_waits_for_counts(self, work_client: RecordClient) -> None:
        await self.feed(range(2))
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            answering = asyncio.ensure_future(delivery.ack())
            await asyncio.sleep(0)
            answering.cancel()
            # Its credit is free again: the next one comes.
            assert await _next_and_ack(consumer) == (1, 1)
            assert delivery.settled
        figures = await self.figures(work_client)
        assert (figures.ready, figures.in_flight) == (0, 0)

    async def test_a_late_answer_counts_while_nobody_else_has_the_record(self, work_client: RecordClient) -> None:
        await self.feed(range(2))
        async with work_client.work(self.queue, credit=2) as consumer:
            held = await _take(consumer, 2)
        await held[0].ack()
        assert held[0].settled
        async with work_client.work(self.queue, credit=1) as other:
            (again,) = await _take(other, 1)
            assert (again.id, again.attempt) == (held[1].id, 2)
            with pytest.raises(LeaseLost):
                await held[1].ack()
            assert not held[1].settled
            await again.ack()

    async def test_answers_are_checked(self, work_client: RecordClient) -> None:
        await self.feed([0])
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            for delay in (-1.0, float("nan"), float("inf"), 1e12):
                with pytest.raises(InvalidArgument):
                    await delivery.reject(delay=delay)
            for seconds in (-1.0, 0.0, float("nan"), 1e12):
                with pytest.raises(InvalidArgument):
                    await delivery.extend(seconds)
            # A reason of any text will do, and none of this has done any harm.
            await delivery.reject("\0\ud800" + "é" * 5000, dead_letter=True)
        assert (await self.figures(work_client)).dead == 1

    # Credit

    async def test_credit_can_be_taken_back_and_given_again(self, work_client: RecordClient) -> None:
        async with work_client.work(self.queue, credit=5) as consumer:
            await consumer.set_credit(0)
            await self.feed(range(10))
            waiting = asyncio.ensure_future(_take(consumer, 1))
            async with work_client.work(self.queue, credit=3) as other:
                for delivery in await _take(other, 3):
                    await delivery.ack()
                assert not waiting.done()
                assert consumer.outstanding == 0
                await consumer.set_credit(2)
                (delivery,) = await waiting
                await delivery.ack()

    async def test_credit_that_is_refused_leaves_everything_as_it_was(self, work_client: RecordClient) -> None:
        await self.feed(range(3))
        async with work_client.work(self.queue, credit=1) as consumer:
            (delivery,) = await _take(consumer, 1)
            for records, size in ((-1, 1), (1, -1), (2**60, 1), (2**40, 1)):
                with pytest.raises(InvalidArgument):
                    await consumer.set_credit(records, size)
            await delivery.ack()
            assert await _next_and_ack(consumer) == (1, 1)
            assert await _next_and_ack(consumer) == (2, 1)
        with pytest.raises(InvalidArgument):
            work_client.work(self.queue, credit=-1)
        with pytest.raises(InvalidArgument):
            work_client.work(self.queue, credit=1, credit_bytes=-1)

    # Beginnings and ends

    async def test_closing_gives_back_what_is_unanswered(self, work_client: RecordClient) -> None:
        await self.feed(range(4))
        consumer = work_client.work(self.queue, credit=3)
        held = await _take(consumer, 2)
        await held[0].ack()
        await consumer.close()
        await consumer.close()
        while (figures := await self.figures(work_client)).in_flight:
            # What was just being claimed for it comes back a moment later.
            pass
        assert (figures.ready, figures.consumers) == (3, 0)
        assert [delivery async for delivery in consumer] == []
        with pytest.raises(ConnectionLost):
            await consumer.open()

    async def test_closing_ends_the_loop_of_another_task(self, work_client: RecordClient) -> None:
        async with work_client.work(self.queue, credit=1) as consumer:
            reading = asyncio.ensure_future(_take(consumer, 1))
            await asyncio.sleep(0)
            await consumer.close()
            assert await reading == []

    async def test_a_loop_that_is_cancelled_loses_nothing(self, work_client: RecordClient) -> None:
        async with work_client.work(self.queue, credit=2) as consumer:
            for number in range(5):
                reading = asyncio.ensure_future(_take(consumer, 1))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait((reading,))
                assert reading.cancelled()
                await self.feed([number])
                assert await _next_and_ack(consumer) == (number, 1)

    async def test_who_is_cancelled_while_it_opens_leaves_nothing_behind(self, work_client: RecordClient) -> None:
        async def work() -> None:
            async with work_client.work(self.queue, credit=1) as consumer:
                await _take(consumer, 1)

        for steps in range(12):
            working = asyncio.ensure_future(work())
            for _ in range(steps):
                await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait((working,))
            assert working.cancelled()
        while (await self.figures(work_client)).consumers:
            # A server comes to know by itself, and answers this meanwhile.
            pass
        await self.feed([0])
        async with work_client.work(self.queue, credit=1) as consumer:
            # A request that was still on its way may have had it for a moment.
            (number, _) = await _next_and_ack(consumer)
            assert number == 0

    async def test_an_unknown_queue_is_told(self, work_client: RecordClient) -> None:
        with pytest.raises(RecordEndNotFound):
            await work_client.work(self.missing, credit=1).open()
        with pytest.raises(RecordEndNotFound):
            await _take(work_client.work(self.missing, credit=1), 1)
        with pytest.raises(RecordEndNotFound):
            await work_client.queue_figures(self.missing)
        with pytest.raises(InvalidArgument):
            work_client.work("no name", credit=1)

    async def test_a_consumer_that_is_not_open_says_nothing(self, work_client: RecordClient) -> None:
        consumer = work_client.work(self.queue, credit=1)
        with pytest.raises(RuntimeError):
            _ = consumer.lease
        assert (consumer.stalled, consumer.outstanding) == (False, 0)
        await consumer.close()
        assert [delivery async for delivery in consumer] == []
        assert (await self.figures(work_client)).consumers == 0


async def _take(consumer: RecordConsumer, count: int) -> list[Delivery]:
    """Take deliveries until there are ``count``, or the consumer is closed, and answer none."""
    taken: list[Delivery] = []
    async for delivery in consumer:
        taken.append(delivery)
        if len(taken) == count:
            break
    return taken


async def _next_and_ack(consumer: RecordConsumer) -> tuple[int, int]:
    """Take the next delivery, acknowledge it, and return its number and attempt."""
    (delivery,) = await _take(consumer, 1)
    await delivery.ack()
    return delivery.json()["n"], delivery.attempt


def _numbers(deliveries: Iterable[Delivery]) -> list[int]:
    return [delivery.json()["n"] for delivery in deliveries]
