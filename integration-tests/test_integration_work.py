"""Work: records are handed out under credit and leases, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from cells import WIRED_RECORD_CELLS, RecordCell, Transport
from manifest import proves
from record_databases import RecordDatabase, eventually
from server_process import DEADLINE
from servers import LocalServer, NewServer
from soak import SOAK
from tcp_proxy import TcpProxy

from tailrace_client_download_api import Delivery, RecordConsumer
from tailrace_common_api import InvalidArgument, LeaseLost, RecordEndNotFound
from tailrace_impl_common import ConnectedClient


async def feed(client: ConnectedClient, numbers: Iterable[int], queue: str = "tasks", **arguments: Any) -> None:
    """Put work into a queue, all at once."""
    async with client.bulk(queue, **arguments) as bulk:
        for number in numbers:
            await bulk.send({"n": number})


async def take(consumer: RecordConsumer, count: int) -> list[Delivery]:
    """Take deliveries, and answer none of them."""
    taken: list[Delivery] = []
    async for delivery in consumer:
        taken.append(delivery)
        if len(taken) == count:
            break
    return taken


async def quickly_acknowledged(consumer: RecordConsumer, delivery: Delivery) -> None:
    """Acknowledge a record whose lease is so short that a busy machine may miss it: then it comes again."""
    while True:
        with suppress(LeaseLost):
            await delivery.ack()
            return
        (delivery,) = await take(consumer, 1)


def numbers_of(deliveries: Iterable[Delivery]) -> list[int]:
    return [delivery.json()["n"] for delivery in deliveries]


async def drained(client: ConnectedClient, queue: str = "tasks") -> int:
    """Count what is not done."""
    figures = await client.queue_figures(queue)
    return figures.ready + figures.delayed + figures.in_flight


# Delivery


@proves("REC-8", "REC-9")
async def test_work_appears_at_once_and_is_done_once(record_client: ConnectedClient) -> None:
    done: list[int] = []
    async with record_client.work("tasks", credit=4) as consumer:
        await feed(record_client, range(100))
        async for delivery in consumer:
            assert delivery.attempt == 1
            done.append(delivery.json()["n"])
            await delivery.ack()
            assert delivery.settled
            if len(done) == 100:
                break
    assert done == list(range(100))
    figures = await record_client.queue_figures("tasks")
    assert (figures.ready, figures.delayed, figures.in_flight, figures.dead) == (0, 0, 0, 0)


@proves("REC-8")
async def test_a_bulk_of_work_that_fails_leaves_none(record_client: ConnectedClient) -> None:
    with suppress(ZeroDivisionError):
        async with record_client.bulk("tasks") as bulk:
            await bulk.send_all([{"n": n} for n in range(2000)])
            raise ZeroDivisionError
    assert (await record_client.queue_figures("tasks")).ready == 0
    with pytest.raises(RecordEndNotFound):
        await record_client.queue_figures("nowhere")
    with pytest.raises(RecordEndNotFound):
        await record_client.work("nowhere", credit=1).open()
    with pytest.raises(InvalidArgument):
        await record_client.work("tasks", credit=-1).open()


@proves("REC-8")
@pytest.mark.parametrize("credit", [1, 2, 10])
async def test_no_more_than_the_credit_is_with_a_consumer(record_client: ConnectedClient, credit: int) -> None:
    await feed(record_client, range(200))
    async with record_client.work("tasks", credit=credit) as consumer:
        held = await take(consumer, credit)
        # It asks for more, and there is more, and yet nothing comes before an answer is given.
        another = asyncio.ensure_future(anext(aiter(consumer)))
        for _ in range(20):
            await asyncio.sleep(0.01)
            figures = await record_client.queue_figures("tasks")
            assert figures.in_flight == credit
            assert figures.ready == 200 - credit
        assert not another.done()
        await held[0].ack()
        assert (await another).json() == {"n": credit}


@proves("REC-8")
async def test_credit_counts_bytes_and_a_large_record_comes_alone(record_client: ConnectedClient) -> None:
    async with record_client.bulk("tasks") as bulk:
        for size in (100, 100, 5000, 100):
            await bulk.send({"size": size, "text": "x" * size})
    async with record_client.work("tasks", credit=10, credit_bytes=1000) as consumer:
        small = await take(consumer, 2)
        assert [delivery.json()["size"] for delivery in small] == [100, 100]
        another = asyncio.ensure_future(anext(aiter(consumer)))
        await small[0].ack()
        await asyncio.sleep(0.1)
        # The large one is next: it neither comes beside others, nor is it overtaken.
        assert not another.done()
        await small[1].ack()
        large = await another
        assert large.json()["size"] == 5000
        assert (await record_client.queue_figures("tasks")).in_flight == 1
        await large.ack()
        assert (await take(consumer, 1))[0].json()["size"] == 100


@proves("REC-8", "REC-10")
async def test_a_consumer_that_joins_late_has_work_at_once(
    record_server: LocalServer, record_client: ConnectedClient, record_cell: RecordCell
) -> None:
    await feed(record_client, range(1000))
    async with record_client.work("tasks", credit=5) as slow:
        assert numbers_of(await take(slow, 5)) == [0, 1, 2, 3, 4]
        late_client = record_server.connect(record_cell.transport)
        async with late_client.work("tasks", credit=3) as late:
            assert numbers_of(await take(late, 3)) == [5, 6, 7]


# Answers


@proves("REC-9")
async def test_rejected_records_come_again(record_client: ConnectedClient) -> None:
    await feed(record_client, range(2))
    async with record_client.work("tasks", credit=1) as consumer:
        (first,) = await take(consumer, 1)
        # Longer than this takes, however slow the machine is.
        await first.reject("not today", delay=3600.0)
        (second,) = await take(consumer, 1)
        assert second.json() == {"n": 1}
        assert (await record_client.queue_figures("tasks")).delayed == 1
        await second.reject("not now", delay=0.3)
        (again,) = await take(consumer, 1)
        assert (again.json(), again.attempt, again.id) == ({"n": 1}, 2, second.id)
        await again.ack()
    figures = await record_client.queue_figures("tasks")
    assert (figures.ready, figures.delayed, figures.in_flight, figures.dead) == (0, 1, 0, 0)


@proves("REC-9")
async def test_dead_letters_are_a_queue_of_their_own(record_client: ConnectedClient) -> None:
    await feed(record_client, range(3))
    async with record_client.work("tasks", credit=1) as consumer:
        async for delivery in consumer:
            if delivery.json() == {"n": 1}:
                await delivery.reject("it cannot be done", dead_letter=True)
            else:
                await delivery.ack()
            if delivery.json() == {"n": 2}:
                break
    assert (await record_client.queue_figures("tasks")).dead == 1
    async with record_client.work("tasks.dead", credit=1) as consumer:
        (dead,) = await take(consumer, 1)
        assert dead.json() == {"n": 1}
        await dead.ack()
    assert (await record_client.queue_figures("tasks")).dead == 0


@proves("REC-9")
async def test_a_record_that_fails_too_often_is_a_dead_letter(record_client: ConnectedClient) -> None:
    await feed(record_client, [7], "few")
    async with record_client.work("few", credit=1) as consumer:
        for attempt in (1, 2):
            (delivery,) = await take(consumer, 1)
            assert delivery.attempt == attempt
            await delivery.reject()

        async def dead() -> int:
            return (await record_client.queue_figures("few")).dead

        await eventually(dead, 1)
    assert await drained(record_client, "few") == 0


@proves("REC-9")
async def test_an_expired_lease_goes_to_somebody_else(
    record_server: LocalServer, record_client: ConnectedClient, record_cell: RecordCell
) -> None:
    await feed(record_client, [1], "quick")
    other_client = record_server.connect(record_cell.transport)
    async with record_client.work("quick", credit=1) as slow, other_client.work("quick", credit=1) as quick:
        (late,) = await take(slow, 1)
        (again,) = await take(quick, 1)
        assert (again.id, again.attempt, late.attempt) == (late.id, 2, 1)
        with pytest.raises(LeaseLost) as caught:
            await late.ack()
        assert (caught.value.id, caught.value.attempt) == (late.id, 1)
        assert not late.settled
        await quickly_acknowledged(quick, again)
    assert await drained(record_client, "quick") == 0


@proves("REC-8", "REC-9")
async def test_an_expired_lease_gives_no_credit_back(
    record_server: LocalServer, record_client: ConnectedClient, record_cell: RecordCell
) -> None:
    await feed(record_client, range(10), "quick")
    other_client = record_server.connect(record_cell.transport)
    async with record_client.work("quick", credit=2) as hung, other_client.work("quick", credit=10) as busy:
        held = await take(hung, 2)
        another = asyncio.ensure_future(anext(aiter(hung)))
        done = 0
        async for delivery in busy:
            # On a busy machine it misses a lease itself; then that record comes again.
            with suppress(LeaseLost):
                await delivery.ack()
                done += 1
            if done == 10:
                break
        await feed(record_client, range(10, 20), "quick")
        await take(busy, 10)
        assert not another.done()
        # Its leases are over; it is given more only when it answers.
        with pytest.raises(LeaseLost):
            await held[0].ack()
        await another


@proves("REC-9")
async def test_leases_are_extended(new_record_server: NewServer, record_cell: RecordCell) -> None:
    # Long enough for a busy machine to begin it again in time, several times over.
    server = await new_record_server(ends={"queues": {"patient": {"lease": 2.5}}})
    client, other_client = server.connect(record_cell.transport), server.connect(record_cell.transport)
    await feed(client, range(2), "patient")
    async with (
        client.work("patient", credit=1, extend=True) as lasting,
        other_client.work("patient", credit=1) as by_hand,
    ):
        (first,) = await take(lasting, 1)
        (second,) = await take(by_hand, 1)
        for _ in range(6):
            await asyncio.sleep(0.5)
            await second.extend()
        assert (await client.queue_figures("patient")).in_flight == 2
        await first.ack()
        await second.ack()
    assert await drained(client, "patient") == 0


@proves("REC-9")
async def test_what_a_consumer_leaves_is_given_back_at_once(
    record_server: LocalServer, record_client: ConnectedClient, record_cell: RecordCell
) -> None:
    await feed(record_client, range(5))
    async with record_client.work("tasks", credit=5) as leaving:
        held = await take(leaving, 5)
        await held[4].ack()
    # The lease is long: waiting for it would take half a minute.
    async with record_server.connect(record_cell.transport).work("tasks", credit=5) as other:
        given = await take(other, 4)
        assert numbers_of(given) == [0, 1, 2, 3]
        assert {delivery.attempt for delivery in given} == {2}


@proves("REC-9", "REC-12")
@pytest.mark.record_cells(WIRED_RECORD_CELLS)
async def test_a_consumer_that_comes_back_still_answers(record_server: LocalServer, record_cell: RecordCell) -> None:
    feeder = record_server.connect(record_cell.transport)
    await feed(feeder, range(6))
    async with TcpProxy(record_server.url(record_cell.transport)) as proxy:
        client = record_server.connect(record_cell.transport, url=proxy.url)
        async with client.work("tasks", credit=3) as consumer:
            held = await take(consumer, 3)
            proxy.cut()
            for delivery in held:
                await delivery.ack()
            assert numbers_of(await take(consumer, 3)) == [3, 4, 5]
    assert await drained(feeder) == 3


@proves("REC-8", "REC-9")
@pytest.mark.record_cells(WIRED_RECORD_CELLS)
async def test_what_is_held_counts_for_a_consumer_that_comes_back(
    record_server: LocalServer, record_cell: RecordCell
) -> None:
    feeder = record_server.connect(record_cell.transport)
    await feed(feeder, range(6))
    async with TcpProxy(record_server.url(record_cell.transport)) as proxy:
        client = record_server.connect(record_cell.transport, url=proxy.url)
        async with client.work("tasks", credit=3) as consumer:
            held = await take(consumer, 3)
            proxy.cut()
            # In force: it is back.
            await consumer.set_credit(4)
            (fourth,) = await take(consumer, 1)
            async with feeder.work("tasks", credit=6) as other:
                assert numbers_of(await take(other, 2)) == [4, 5]
                assert consumer.outstanding == 4
            await held[0].ack()
            # What it held before the connection was lost makes room for others, too.
            assert numbers_of([fourth, *await take(consumer, 1)]) == [3, 4]
        # It gives all of it back, whichever connection it came over.
        assert (await feeder.queue_figures("tasks")).delayed == 0
        async with feeder.work("tasks", credit=6) as other:
            assert sorted(numbers_of(await take(other, 5))) == [1, 2, 3, 4, 5]


# Priorities and credit


@proves("REC-10")
async def test_higher_priority_overtakes_everything_that_is_not_granted(record_client: ConnectedClient) -> None:
    waiting = 100_000 if SOAK else 2000
    await feed(record_client, range(waiting))
    async with record_client.work("tasks", credit=2) as consumer:
        held = await take(consumer, 2)
        await feed(record_client, [-1], priority=5)
        await feed(record_client, [-2], priority=-5)
        await feed(record_client, [-3], priority=9)
        await held[0].ack()
        (third,) = await take(consumer, 1)
        await held[1].ack()
        (fourth,) = await take(consumer, 1)
        assert (numbers_of([third, fourth]), third.priority, fourth.priority) == ([-3, -1], 9, 5)
        await third.ack()
        (fifth,) = await take(consumer, 1)
        assert numbers_of([fifth]) == [2]
        # Three are done, and two are here.
        assert (await record_client.queue_figures("tasks")).ready == waiting + 3 - 3 - 2


@proves("REC-11")
async def test_a_consumer_without_credit_is_told_so(record_server: LocalServer, record_client: ConnectedClient) -> None:
    async with record_client.work("tasks", credit=1) as consumer:
        assert not consumer.stalled
        await feed(record_client, range(2))
        (first,) = await take(consumer, 1)

        async def stalled() -> int:
            return int(consumer.stalled)

        await eventually(stalled, 1)
        assert (await record_client.queue_figures("tasks")).stalled == 1

        async def shown() -> int:
            body = (await asyncio.to_thread(record_server.manager.telemetry.exposition))[1].decode()
            lines = [line for line in body.splitlines() if "stalled" in line and '"tasks"' in line]
            assert len(lines) == 1, lines
            return int(float(lines[0].rsplit(" ", 1)[1]))

        await eventually(shown, 1)
        await first.ack()
        (second,) = await take(consumer, 1)
        await eventually(stalled, 0)
        await second.ack()
    assert (await record_client.queue_figures("tasks")).consumers == 0


@proves("REC-11")
async def test_unused_credit_is_taken_back(
    record_server: LocalServer, record_client: ConnectedClient, record_cell: RecordCell
) -> None:
    async with record_client.work("tasks", credit=10) as consumer:
        await consumer.set_credit(0)
        await feed(record_client, range(5))
        another = asyncio.ensure_future(anext(aiter(consumer)))
        # In force: what appears from here on goes to others.
        async with record_server.connect(record_cell.transport).work("tasks", credit=5) as other:
            assert numbers_of(await take(other, 3)) == [0, 1, 2]
        assert not another.done()
        await consumer.set_credit(1)
        await another
        assert consumer.outstanding == 1


# Nothing is lost


@proves("REC-12")
async def test_queues_outlive_the_server(
    record_server: LocalServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    client = record_server.connect(record_cell.transport)
    await feed(client, range(10), "quick")
    done: list[int] = []
    async with client.work("quick", credit=4) as consumer:
        for delivery in (await take(consumer, 4))[:2]:
            # What is answered too late, on a busy machine, comes again.
            with suppress(LeaseLost):
                await delivery.ack()
                done.append(delivery.json()["n"])
        await record_server.restart()
        await record_server.listen(record_cell.transport)
    client = record_server.connect(record_cell.transport)
    async with client.work("quick", credit=3) as consumer:
        async for delivery in consumer:
            with suppress(LeaseLost):
                await delivery.ack()
                done.append(delivery.json()["n"])
            if len(done) == 10:
                break
    # None is lost, and none that was done comes again.
    assert sorted(done) == list(range(10))
    assert await drained(client, "quick") == 0


@proves("REC-12")
async def test_many_consumers_that_come_and_go_lose_nothing(
    record_server: LocalServer, record_client: ConnectedClient, record_cell: RecordCell
) -> None:
    count = 400
    await feed(record_client, range(count), "quick")
    acknowledged: list[int] = []
    begun: set[int] = set()

    async def work_and_leave(patience: int) -> None:
        client = record_server.connect(record_cell.transport)
        async with client.work("quick", credit=1 + patience % 5) as consumer:
            seen = 0
            async for delivery in consumer:
                seen += 1
                if seen > patience:
                    break
                with suppress(LeaseLost):
                    if seen % 7 == 3:
                        await delivery.reject(delay=0.01)
                        continue
                    begun.add(delivery.json()["n"])
                    await delivery.ack()
                    acknowledged.append(delivery.json()["n"])

    running: set[asyncio.Task[None]] = set()
    for turn in range(60):
        running.add(asyncio.create_task(work_and_leave(3 + turn % 11)))
        if len(running) >= 6:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if len(acknowledged) > count - 60:
            break
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    async with record_client.work("quick", credit=20) as consumer:
        deliveries = aiter(consumer)
        while await drained(record_client, "quick"):
            with suppress(TimeoutError, LeaseLost):
                async with asyncio.timeout(0.2):
                    delivery = await anext(deliveries)
                # Without a limit: who stops waiting for it does not know whether it counts.
                await delivery.ack()
                acknowledged.append(delivery.json()["n"])
    # No acknowledged record came again, and none is missing but where nobody waited for the answer any more.
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(range(count)) - set(acknowledged) <= begun


@proves("REC-11")
@pytest.mark.record_cells(WIRED_RECORD_CELLS)
async def test_metrics_show_queues(record_server: LocalServer, record_client: ConnectedClient) -> None:
    await record_server.listen(Transport.WEBSOCKET)
    await feed(record_client, range(3))
    async with record_client.work("tasks", credit=2) as consumer, httpx.AsyncClient(timeout=DEADLINE) as http:
        await take(consumer, 2)
        text = (await http.get(record_server.url(Transport.WEBSOCKET, "http") + "/metrics")).text
    lines = [line for line in text.splitlines() if 'queue="tasks"' in line]
    assert lines
