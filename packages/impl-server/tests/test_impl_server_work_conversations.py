"""Consumers over a transport: credit holds across sessions, and no answer and no record is lost on the way."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from impl_server_memory_queue import MemoryQueue, storage_failure

from tailrace_client_download_api import Delivery, RecordConsumer
from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    InvalidArgument,
    LeaseLost,
    ProtocolError,
    Settlement,
    StorageFailure,
    TailraceError,
    Verdict,
)
from tailrace_impl_common import ClientStream, ConnectedClient, InProcessConnection
from tailrace_impl_common.messages import ClientMessage, Request, ServerMessage
from tailrace_impl_common.record_messages import Credit, Deliveries, Leave, Settle, Work
from tailrace_impl_server import ServerSettings
from tailrace_impl_server._work_dispatcher import WorkDispatcher
from tailrace_server_api import Queue, ResourceManager, Telemetry, WorkSession


class TappedStream(ClientStream):
    def __init__(self, stream: ClientStream, connection: "TappedConnection") -> None:
        self._stream = stream
        self._connection = connection

    async def send(self, message: ClientMessage) -> None:
        self._connection.sent.append(message)
        await self._stream.send(message)

    async def receive(self) -> ServerMessage | None:
        message = await self._stream.receive()
        self._connection.received(message)
        return message

    async def close(self) -> None:
        await self._stream.close()


class TappedConnection(InProcessConnection):
    """The in-process transport; it can be cut, and shows what is said."""

    def __init__(self, manager: ResourceManager, settings: ClientSettings) -> None:
        super().__init__(manager, settings)
        self.requests: list[Request] = []
        self.sent: list[ClientMessage] = []
        self.received: Callable[[ServerMessage | None], None] = lambda message: None

    async def open(self, request: Request) -> ClientStream:
        self.requests.append(request)
        return TappedStream(await super().open(request), self)


class Bench:
    """A queue in memory, its dispatcher, and clients."""

    def __init__(self, lease: float = 30.0) -> None:
        self.queue = MemoryQueue(lease)
        self.dispatcher = WorkDispatcher("tasks", Queue(queue=self.queue), ServerSettings(max_credit=1000))
        self.clients: list[ConnectedClient] = []
        self.admitted = asyncio.Event()
        self.admitted.set()
        self.manager = SimpleNamespace(
            admit=lambda: None,
            authenticate=self._authenticate,
            limits=ServerSettings().limits,
            telemetry=Telemetry(),
            records=SimpleNamespace(work=self._work),
        )

    async def _authenticate(self, credentials: object) -> object:
        await self.admitted.wait()
        return self.manager

    async def _work(self, queue: str) -> WorkSession:
        return self.dispatcher.open()

    def connect(self, **settings: Any) -> tuple[ConnectedClient, TappedConnection]:
        told = ClientSettings(**settings)
        connection = TappedConnection(cast(ResourceManager, self.manager), told)
        self.clients.append(ConnectedClient(connection, told))
        return self.clients[-1], connection

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        await self.dispatcher.close()

    @property
    def leased(self) -> int:
        """Records that somebody has."""
        return sum(entry.leased_until is not None for entry in self.queue.entries.values())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.dispatcher.start()
    yield bench
    await bench.close()


async def take(consumer: RecordConsumer, count: int) -> list[Delivery]:
    taken: list[Delivery] = []
    async for delivery in consumer:
        taken.append(delivery)
        if len(taken) == count:
            break
    return taken


async def settle_down() -> None:
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no sign of its own
            await asyncio.sleep(0.005)


# Credit.


async def test_what_is_held_counts_in_the_next_session(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(10)
    async with client.work("tasks", credit=4) as consumer:
        held = await take(consumer, 3)
        await until(lambda: consumer.outstanding == 4)
        connection.cut()
        await until(lambda: len(connection.requests) == 2)
        await settle_down()
        again = connection.requests[1]
        assert isinstance(again, Work)
        assert again.records == 0
        assert bench.leased == 4
        await held[0].ack()
        await until(lambda: bench.leased == 4)
        assert [message.records for message in connection.sent if isinstance(message, Credit)] == [1]
        assert [delivery.id for delivery in await take(consumer, 2)] == [4, 5]
        for delivery in held[1:]:
            await delivery.ack()
        await until(lambda: consumer.outstanding == 4)
        assert bench.queue.acknowledged == [1, 2, 3]


async def test_nothing_is_asked_for_that_may_not_fit_beside_what_is_held(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(2)
    async with client.work("tasks", credit=4, credit_bytes=1000) as consumer:
        held = await take(consumer, 2)
        connection.cut()
        # The server knows nothing of what is held, and would give this to a consumer without anything else.
        bench.queue.put(1, size=5000)
        await until(lambda: len(connection.requests) == 2)
        await held[0].ack()
        await settle_down()
        assert bench.leased == 1
        await held[1].ack()
        assert len((await take(consumer, 1))[0].record.data) == 5000


async def test_a_refused_credit_leaves_the_one_before(bench: Bench) -> None:
    client, _ = bench.connect()
    bench.queue.put(4)
    async with client.work("tasks", credit=2) as consumer:
        held = await take(consumer, 2)
        with pytest.raises(InvalidArgument):
            await consumer.set_credit(1001)
        with pytest.raises(InvalidArgument):
            await consumer.set_credit(-1)
        await held[0].ack()
        assert [delivery.id for delivery in await take(consumer, 1)] == [3]
        await settle_down()
        assert bench.leased == 2
        await consumer.set_credit(3)
        assert [delivery.id for delivery in await take(consumer, 1)] == [4]
    with pytest.raises(InvalidArgument):
        await client.work("tasks", credit=1001).open()


async def test_a_consumer_that_is_cancelled_while_it_opens_takes_nothing(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(2)
    bench.admitted.clear()
    consumer = client.work("tasks", credit=2)
    opening = asyncio.create_task(consumer.open())
    await until(lambda: len(connection.requests) == 1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    bench.admitted.set()
    await settle_down()
    assert (bench.leased, bench.dispatcher.consumers) == (0, 0)
    async with consumer:
        assert len(await take(consumer, 2)) == 2


# Answers.


async def test_answers_are_gathered(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(100)
    async with client.work("tasks", credit=100) as consumer:
        held = await take(consumer, 100)
        await asyncio.gather(*(delivery.ack() for delivery in held))
        sizes = [len(message.settlements) for message in connection.sent if isinstance(message, Settle)]
        assert sum(sizes) == 100
        assert len(sizes) <= 3
    assert sorted(bench.queue.acknowledged) == list(range(1, 101))


async def test_answers_on_their_way_are_repeated_in_the_next_session(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(3)
    async with client.work("tasks", credit=3) as consumer:
        held = await take(consumer, 3)
        bench.queue.before_settle.shut()
        answering = [asyncio.create_task(delivery.ack()) for delivery in held]
        await bench.queue.before_settle.reached.wait()
        connection.cut()
        bench.queue.before_settle.open()
        await asyncio.gather(*answering)
        assert all(delivery.settled for delivery in held)
        # Said twice, done once.
        settles = [message.settlements for message in connection.sent if isinstance(message, Settle)]
        assert len(settles) >= 2
        assert sorted(bench.queue.acknowledged) == [1, 2, 3]
        assert consumer.outstanding == 0


async def test_what_was_not_taken_can_be_said_again(bench: Bench) -> None:
    client, _ = bench.connect()
    bench.queue.put(2)
    async with client.work("tasks", credit=1) as consumer:
        (held,) = await take(consumer, 1)
        bench.queue.settle_failures.append(storage_failure())
        with pytest.raises(StorageFailure):
            await held.ack()
        assert (held.settled, consumer.outstanding) == (False, 1)
        await held.ack()
        assert held.settled
        await take(consumer, 1)


async def test_a_lost_lease_is_told_and_gives_the_credit_back(bench: Bench) -> None:
    client, _ = bench.connect()
    other, _ = bench.connect()
    bench.queue.put(1)
    async with client.work("tasks", credit=1) as slow, other.work("tasks", credit=1) as quick:
        (late,) = await take(slow, 1)
        bench.queue.advance(31)
        (again,) = await take(quick, 1)
        with pytest.raises(LeaseLost):
            await late.extend()
        assert slow.outstanding == 1
        with pytest.raises(LeaseLost):
            await late.ack()
        assert (slow.outstanding, late.settled) == (0, False)
        await again.ack()


async def test_reasons_are_text_of_bounded_length(bench: Bench) -> None:
    client, _ = bench.connect()
    bench.queue.put(1)
    async with client.work("tasks", credit=1) as consumer:
        (held,) = await take(consumer, 1)
        for wrong in (-1.0, float("nan"), float("inf"), 1e9):
            with pytest.raises(InvalidArgument):
                await held.reject(delay=wrong)
            with pytest.raises(InvalidArgument):
                await held.extend(wrong)
        await held.reject("\udcff" + "x" * 5000, delay=60)
    assert bench.queue.settled[0] == (Settlement(1, 1, Verdict.REQUEUE, 60.0, "?" + "x" * 1023),)


async def test_leases_of_what_is_not_answered_begin_again_by_themselves(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(3)
    async with client.work("tasks", credit=3, extend=True) as consumer:
        held = await take(consumer, 3)
        await held[0].ack()
        bench.queue.now += 20
        # Time has passed without a connection: they are begun again at once when there is one.
        connection.cut()
        await until(lambda: bench.queue.entries[3].leased_until == 50)
        assert bench.queue.entries[2].leased_until == 50
        bench.queue.before_settle.shut()
        rejecting = asyncio.create_task(held[1].reject(delay=60))
        await bench.queue.before_settle.reached.wait()
        connection.cut()
        bench.queue.before_settle.open()
        await rejecting
        await until(lambda: sum(place.verdict is Verdict.EXTEND for part in bench.queue.settled for place in part) >= 3)
        # What was sent back is not taken again.
        assert bench.queue.entries[2].leased_until is None


async def test_answering_behind_the_end(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(3)
    async with client.work("tasks", credit=3) as consumer:
        held = await take(consumer, 3)
    assert (bench.leased, bench.dispatcher.consumers) == (0, 0)
    await held[0].ack()
    assert held[0].settled
    other, _ = bench.connect()
    async with other.work("tasks", credit=1) as quick:
        (again,) = await take(quick, 1)
        with pytest.raises(LeaseLost):
            await held[1].ack()
        await again.ack()
    assert bench.queue.acknowledged == [1, 2]
    assert [type(message) for message in connection.sent].count(Leave) == 3
    await client.close()
    with pytest.raises(ConnectionLost):
        await held[2].ack()


async def test_answering_while_it_ends(bench: Bench) -> None:
    client, connection = bench.connect()
    bench.queue.put(2)
    consumer = client.work("tasks", credit=2)
    first, second = await take(consumer, 2)
    bench.queue.before_settle.shut()
    early = asyncio.create_task(first.ack())
    await bench.queue.before_settle.reached.wait()
    closing = asyncio.create_task(consumer.close())
    bench.queue.before_release.shut()
    bench.queue.before_settle.open()
    # What was said before is taken before it leaves.
    await early
    await bench.queue.before_release.reached.wait()
    assert isinstance(connection.sent[-1], Leave)
    late = asyncio.create_task(second.ack())
    await settle_down()
    bench.queue.before_release.open()
    await closing
    await late
    assert bench.queue.acknowledged == [1, 2]


async def test_closing_ends_the_iteration(bench: Bench) -> None:
    client, _ = bench.connect()
    bench.queue.put(1)
    consumer = client.work("tasks", credit=5)
    seen = asyncio.Event()

    async def work() -> None:
        async for _ in consumer:
            seen.set()

    working = asyncio.create_task(work())
    await seen.wait()
    await consumer.close()
    await working
    assert bench.leased == 0
    with pytest.raises(ConnectionLost):
        await consumer.open()
    assert [delivery async for delivery in consumer] == []


async def test_a_consumer_that_does_not_come_back_says_why(bench: Bench) -> None:
    client, connection = bench.connect(reconnect_timeout=0.2)
    bench.queue.put(1)
    consumer = client.work("tasks", credit=2)
    (held,) = await take(consumer, 1)
    reading = asyncio.create_task(take(consumer, 1))
    bench.admitted.clear()
    connection.cut()

    async def refuse() -> None:
        while not reading.done():
            connection.cut()
            await asyncio.sleep(0.01)

    await asyncio.gather(refuse(), reading, return_exceptions=True)
    assert isinstance(reading.exception(), TailraceError)
    bench.admitted.set()
    # It can still answer.
    await held.ack()
    assert bench.queue.acknowledged == [1]
    await consumer.close()


# What a server bears.


async def test_answers_without_end_are_refused(bench: Bench) -> None:
    _, connection = bench.connect()
    bench.queue.before_settle.shut()
    stream = await connection.open(Work(queue="tasks", records=0, bytes=0))
    await stream.receive()

    async def say_too_much() -> None:
        for _ in range(200):
            await stream.send(Settle((Settlement(1, 1, Verdict.ACKNOWLEDGE),)))
        await stream.receive()

    with pytest.raises(ProtocolError):
        await say_too_much()
    bench.queue.before_settle.open()
    await stream.close()


@pytest.mark.parametrize("message", [Work(queue="tasks", records=1, bytes=1), Credit(sequence=0, records=1, bytes=1)])
async def test_what_is_out_of_place_ends_the_conversation(bench: Bench, message: ClientMessage) -> None:
    _, connection = bench.connect()
    stream = await connection.open(Work(queue="tasks", records=0, bytes=0))
    await stream.receive()
    await stream.send(message)
    with pytest.raises((ProtocolError, InvalidArgument)):
        await stream.receive()
    await stream.close()
    await until(lambda: bench.dispatcher.consumers == 0)


async def test_deliveries_are_cut_into_messages(bench: Bench) -> None:
    client, connection = bench.connect()
    packed: list[tuple[int, int]] = []

    def see(message: ServerMessage | None) -> None:
        if isinstance(message, Deliveries):
            packed.append((len(message.records), sum(record.size for record in message.records)))

    connection.received = see
    bench.queue.put(10, size=100_000, silent=True)
    bench.queue.put(1, size=500_000, silent=True)
    bench.queue.put(3)
    async with client.work("tasks", credit=50) as consumer:
        assert len(await take(consumer, 14)) == 14
    assert sum(count for count, _ in packed) == 14
    assert all(size <= 256 * 1024 or count == 1 for count, size in packed)
    assert (2, 200_016) in packed


# Everything at once.


@pytest.mark.parametrize("seed", range(8))
async def test_connections_that_are_cut_lose_nothing_and_keep_the_credit(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    count = 120
    bench.queue.put(count, silent=True)
    acknowledged: list[int] = []
    connections: list[TappedConnection] = []

    async def work(credit: int) -> None:
        client, connection = bench.connect()
        connections.append(connection)
        async with client.work("tasks", credit=credit, extend=chance.random() < 0.5) as consumer:
            held: list[Delivery] = []
            async for delivery in consumer:
                held.append(delivery)
                assert consumer.outstanding <= credit
                while held and (len(held) == credit or chance.random() < 0.5):
                    one = held.pop(chance.randrange(len(held)))
                    try:
                        if chance.random() < 0.2:
                            await one.reject("not this time")
                        else:
                            await one.ack()
                            acknowledged.append(one.id)
                    except LeaseLost:
                        pass
                    except StorageFailure:
                        held.append(one)
                if len(bench.queue.acknowledged) == count:
                    return

    async def harm() -> None:
        while len(bench.queue.acknowledged) < count:
            await asyncio.sleep(chance.random() * 0.02)
            match chance.randrange(4):
                case 0:
                    chance.choice(connections).cut()
                case 1:
                    bench.queue.advance(31)
                case 2:
                    bench.queue.settle_failures.append(storage_failure())
                case 3:
                    bench.queue.wake()

    workers = [asyncio.create_task(work(credit)) for credit in (1, 3, 7)]
    harming = asyncio.create_task(harm())
    try:
        async with asyncio.timeout(40):
            await until(lambda: len(bench.queue.acknowledged) == count or any(task.done() for task in workers))
            for task in workers:
                if task.done():
                    task.result()
            await until(lambda: len(bench.queue.acknowledged) == count)
    finally:
        for task in (*workers, harming):
            task.cancel()
        results = await asyncio.gather(*workers, harming, return_exceptions=True)
    assert not [result for result in results if isinstance(result, Exception)]
    # Each was acknowledged once, and only one consumer was told so.
    assert sorted(bench.queue.acknowledged) == list(range(1, count + 1))
    assert len(set(acknowledged)) == len(acknowledged)
