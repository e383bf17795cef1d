"""Record streams while processes die: servers, clients and PostgreSQL, at every step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cells import WIRED_RECORD_CELLS, Database, RecordCell, Transport
from fault_points import BULK_POINTS, Fault, Injection
from faulty_server import FaultyServer
from manifest import proves
from postgres_server import PostgresServer
from record_databases import PostgresDatabase, RecordDatabase, contact, eventually
from server_process import spawn
from soak import SEED, SOAK
from tcp_proxy import TcpProxy

from tailrace_common_api import BulkResult, ClientSettings, LeaseLost, StagingLost, TailraceError
from tailrace_impl_common import ConnectedClient
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

COUNT = 4000
"""Records of a bulk: several groups."""
POSTGRES_CELLS = frozenset(cell for cell in WIRED_RECORD_CELLS if cell.database is Database.POSTGRESQL)
COMMITTED_BY = BULK_POINTS.index("after bulk commit")
OPTIONS = {"group_seconds": 0.01, "staging_retention": 1.0, "sweep_interval": 0.1}

pytestmark = [pytest.mark.record_cells(WIRED_RECORD_CELLS)]


@pytest.fixture
def server(record_database: RecordDatabase, tmp_path: Path) -> Iterator[FaultyServer]:
    record_database.settings(tmp_path)
    server = FaultyServer(tmp_path / "data", tmp_path, OPTIONS)
    yield server
    server.dispose()


@asynccontextmanager
async def connected(url: str, cell: RecordCell, **settings: Any) -> AsyncIterator[ConnectedClient]:
    connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    async with connect(url, ClientSettings(**settings)) as client:
        yield client


def url_of(server: FaultyServer, cell: RecordCell) -> str:
    return server.urls["grpc" if cell.transport is Transport.GRPC else "ws"]


async def send(client: ConnectedClient, key: str, count: int = COUNT) -> BulkResult:
    async with client.bulk("contacts", idempotency_key=key) as bulk:
        for number in range(count):
            await bulk.send(contact(number))
            if not number % 500:
                # Groups are staged meanwhile, and points are met before the commit.
                await asyncio.sleep(0.02)
    assert bulk.result is not None
    return bulk.result


# The server dies


@proves("REC-2", "REC-3", "REC-5")
@pytest.mark.parametrize("point", BULK_POINTS)
async def test_a_server_that_is_killed_leaves_nothing_or_all(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase, point: str
) -> None:
    server.start_faulty(Injection(faults=(Fault(point, "kill", 2 if "staging" in point else 1),)))
    outcome: BulkResult | TailraceError
    async with connected(url_of(server, record_cell), record_cell, reconnect_timeout=0.0) as client:
        try:
            outcome = await send(client, "key")
        except TailraceError as error:
            outcome = error
    assert await server.fault() == "killed"
    server.forget()
    visible = await record_database.contacts()
    assert visible in (0, COUNT)
    if BULK_POINTS.index(point) >= COMMITTED_BY:
        assert visible == COUNT
    elif point != "in bulk commit":
        assert visible == 0
    if isinstance(outcome, BulkResult):
        assert visible == COUNT
    server.start()
    await eventually(record_database.staged, 0)
    async with connected(url_of(server, record_cell), record_cell) as client:
        again = await send(client, "key")
    # The retry says whether the first one came through.
    assert again.repeated == (visible == COUNT)
    assert await record_database.contacts() == COUNT
    assert server.stop() == 0


@proves("REC-2", "REC-5")
async def test_a_client_finds_out_what_became_of_its_commit(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server.start_faulty(Injection(faults=(Fault("after bulk commit", "kill"),)))
    async with TcpProxy(url_of(server, record_cell)) as proxy, connected(proxy.url, record_cell) as client:
        sending = asyncio.create_task(send(client, "key"))
        assert await server.fault() == "killed"
        server.forget()
        server.start()
        proxy.aim(url_of(server, record_cell))
        result = await sending
    assert result.records == COUNT
    assert await record_database.contacts() == COUNT


# The client dies


@proves("REC-2", "REC-3")
@pytest.mark.parametrize("lines", [0, 10, 2500])
async def test_a_client_that_is_killed_leaves_nothing(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase, tmp_path: Path, lines: int
) -> None:
    server.start()
    with spawn(tmp_path, "bulk", "contacts", "-", "--server", url_of(server, record_cell)) as process:
        assert process.stdin is not None
        for number in range(lines):
            process.stdin.write(b'{"name":"a","email":"%d"}\n' % number)
        if lines:

            async def is_staged() -> int:
                return int(await record_database.staged() > 0)

            await eventually(is_staged, 1)
        process.kill()
    await eventually(record_database.staged, 0)
    assert await record_database.contacts() == 0
    async with connected(url_of(server, record_cell), record_cell) as client:
        assert (await send(client, "other")).records == COUNT


# PostgreSQL dies


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, which syncs its commits."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def record_database_of_its_own(mortal: PostgresServer, tmp_path: Path) -> PostgresDatabase:
    return PostgresDatabase(mortal.create_database(), tmp_path)


@pytest.fixture
async def on_mortal(
    record_database_of_its_own: PostgresDatabase, tmp_path: Path
) -> AsyncIterator[tuple[FaultyServer, PostgresDatabase]]:
    database = record_database_of_its_own
    await database.make_tables()
    database.settings(tmp_path)
    server = FaultyServer(tmp_path / "data", tmp_path, OPTIONS)
    server.start()
    yield server, database
    server.dispose()


@proves("REC-2", "REC-3")
@pytest.mark.record_cells(POSTGRES_CELLS)
async def test_a_crash_of_postgresql_between_two_groups_loses_no_rows_silently(
    mortal: PostgresServer, on_mortal: tuple[FaultyServer, PostgresDatabase], record_cell: RecordCell
) -> None:
    server, database = on_mortal
    async with connected(url_of(server, record_cell), record_cell) as client:
        bulk = client.bulk("contacts", idempotency_key="key")
        await bulk.open()
        for number in range(1500):
            await bulk.send(contact(number))

        async def is_staged() -> int:
            return int(await database.staged() >= 1000)

        await eventually(is_staged, 1)
        await asyncio.to_thread(mortal.crash)
        await asyncio.to_thread(mortal.start)
        # The tables of staging are empty; nobody has told the server.
        assert await database.staged() == 0

        async def go_on() -> None:
            for number in range(1500, 3000):
                await bulk.send(contact(number))
            await bulk.commit()

        with pytest.raises(TailraceError) as caught:
            await go_on()
        assert isinstance(caught.value, StagingLost) or "database" in str(caught.value)
        await bulk.cancel()
        assert await database.contacts() == 0
        await eventually(database.staged, 0)
        assert (await send(client, "key")).records == COUNT
    assert await database.contacts() == COUNT


@proves("REC-2", "REC-5")
@pytest.mark.record_cells(POSTGRES_CELLS)
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05])
async def test_a_crash_of_postgresql_around_the_commit_is_found_out(
    mortal: PostgresServer, on_mortal: tuple[FaultyServer, PostgresDatabase], record_cell: RecordCell, delay: float
) -> None:
    server, database = on_mortal
    async with connected(url_of(server, record_cell), record_cell) as client:
        bulk = client.bulk("contacts", idempotency_key="key")
        await bulk.open()
        for number in range(COUNT):
            await bulk.send(contact(number))
        committing = asyncio.create_task(bulk.commit())
        await asyncio.sleep(delay)
        await asyncio.to_thread(mortal.crash)
        await asyncio.to_thread(mortal.start)
        result: BulkResult | None = None
        with suppress(TailraceError):
            result = await committing
        visible = await database.contacts()
        assert visible in (0, COUNT)
        if result is not None:
            assert visible == COUNT
        # Whoever was not told asks again, and is told the truth.
        again = await send(client, "key")
        assert again.repeated == (visible == COUNT)
    assert await database.contacts() == COUNT
    await eventually(database.staged, 0)


# Work


async def left(client: ConnectedClient) -> int:
    """Count what is not done."""
    figures = await client.queue_figures("quick")
    return figures.ready + figures.delayed + figures.in_flight


@proves("REC-9", "REC-12")
async def test_no_acknowledged_record_comes_again_through_kills(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    kills = 100 if SOAK else 5
    count = 40 * kills
    chance = random.Random(SEED)
    server.start()
    acknowledged: set[int] = set()
    delivered: dict[int, int] = {}
    async with TcpProxy(url_of(server, record_cell)) as proxy:
        async with connected(proxy.url, record_cell) as client, client.bulk("quick") as bulk:
            for number in range(count):
                await bulk.send({"n": number})

        async def consume(credit: int) -> None:
            """Work until it is lost, again and again."""
            while True:
                with suppress(TailraceError):
                    async with connected(proxy.url, record_cell) as client, client.work("quick", credit=credit) as work:
                        async for delivery in work:
                            number = delivery.json()["n"]
                            assert number not in acknowledged, f"{number} came again"
                            delivered[number] = max(delivered.get(number, 0), delivery.attempt)
                            with suppress(LeaseLost):
                                await delivery.ack()
                                acknowledged.add(number)
                await asyncio.sleep(0.01)

        consumers = [asyncio.create_task(consume(1 + number)) for number in range(3)]
        for _ in range(kills):
            await asyncio.sleep(chance.random() * 0.2)
            server.kill()
            server.start()
            proxy.aim(url_of(server, record_cell))

        async with connected(proxy.url, record_cell) as client, asyncio.timeout(40 + 3 * kills):
            # What a consumer has to say may also be that something came again.
            while await left(client) and not any(task.done() for task in consumers):
                await asyncio.wait(consumers, timeout=0.05)
        for task in consumers:
            task.cancel()
        outcomes = await asyncio.gather(*consumers, return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError)] == []
    # An answer that counted may have been lost with its server, and is forgotten there after a lease.
    assert delivered.keys() == set(range(count))
    assert len(acknowledged) > count * 0.8


@proves("REC-9")
async def test_records_of_a_killed_worker_come_again_after_the_lease(
    server: FaultyServer, record_cell: RecordCell, tmp_path: Path
) -> None:
    server.start()
    async with connected(url_of(server, record_cell), record_cell) as client:
        async with client.bulk("quick") as bulk:
            for number in range(4):
                await bulk.send({"n": number})
        command = ("--credit", 2, "--", "sleep", 60)
        with spawn(tmp_path, "work", "quick", "--server", url_of(server, record_cell), *command) as worker:

            async def in_flight() -> int:
                return (await client.queue_figures("quick")).in_flight

            await eventually(in_flight, 2)
            worker.kill()
        attempts: dict[int, int] = {}
        async with client.work("quick", credit=1) as consumer:
            async for delivery in consumer:
                attempts[delivery.json()["n"]] = delivery.attempt
                await delivery.ack()
                if len(attempts) == 4:
                    break
    assert [attempts[number] for number in range(4)] == [2, 2, 1, 1]


@proves("REC-12")
@pytest.mark.record_cells(POSTGRES_CELLS)
async def test_queues_outlive_a_crash_of_postgresql(
    mortal: PostgresServer, on_mortal: tuple[FaultyServer, PostgresDatabase], record_cell: RecordCell
) -> None:
    server, _ = on_mortal
    async with connected(url_of(server, record_cell), record_cell) as client:
        async with client.bulk("quick") as bulk:
            for number in range(30):
                await bulk.send({"n": number})
        acknowledged: set[int] = set()
        async with client.work("quick", credit=3) as consumer:
            async for delivery in consumer:
                number = delivery.json()["n"]
                assert number not in acknowledged
                if len(acknowledged) == 10:
                    await asyncio.to_thread(mortal.crash)
                    await asyncio.to_thread(mortal.start)
                with suppress(TailraceError):
                    await delivery.ack()
                    acknowledged.add(number)
                if len(acknowledged) == 30:
                    break
    assert acknowledged == set(range(30))
