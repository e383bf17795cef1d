"""Bulks while processes die and networks fail: servers, clients and PostgreSQL, at every step."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest
from cells import POSTGRES_RECORD_CELLS, WIRED_RECORD_CELLS, RecordCell
from fault_points import BULK_POINTS, Fault, Injection
from faulty_server import FaultyServer
from manifest import proves
from message_faults import Direction
from postgres_server import PostgresServer
from record_databases import PostgresDatabase, RecordDatabase, contact, eventually
from server_process import spawn
from servers import connected
from soak import SEED, SOAK
from tcp_proxy import TcpProxy

from tailrace_common_api import BulkResult, StagingLost, TailraceError
from tailrace_impl_common import ConnectedClient

COUNT = 4000
"""Records of a bulk: several groups."""
COMMITTED_BY = BULK_POINTS.index("after bulk commit")

pytestmark = [pytest.mark.record_cells(WIRED_RECORD_CELLS), pytest.mark.timeout(600 if SOAK else 240)]


@pytest.fixture
def server(faulty_record_server: FaultyServer) -> FaultyServer:
    return faulty_record_server


async def send(client: ConnectedClient, key: str, first: int = 0) -> BulkResult:
    """Send contacts in a bulk of their own, from number ``first`` on."""
    async with client.bulk("contacts", idempotency_key=key) as bulk:
        for number in range(COUNT):
            await bulk.send(contact(first + number))
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
    async with connected(server.url(record_cell.transport), record_cell.transport, reconnect_timeout=0.0) as client:
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
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        again = await send(client, "key")
    # The retry says whether the first one came through; a database that was told to commit may have done so since.
    assert again.repeated == (visible == COUNT) or (again.repeated and point == "in bulk commit")
    assert await record_database.contacts() == COUNT
    assert server.stop() == 0


@proves("REC-2", "REC-5")
async def test_a_client_finds_out_what_became_of_its_commit(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server.start_faulty(Injection(faults=(Fault("after bulk commit", "kill"),)))
    async with (
        TcpProxy(server.url(record_cell.transport)) as proxy,
        connected(proxy.url, record_cell.transport) as client,
    ):
        sending = asyncio.create_task(send(client, "key"))
        assert await server.fault() == "killed"
        server.forget()
        server.start()
        proxy.aim(server.url(record_cell.transport))
        result = await sending
    assert result.records == COUNT
    assert await record_database.contacts() == COUNT


# The network fails


@proves("REC-2", "REC-5")
async def test_a_client_that_is_cut_off_behind_the_commit_has_its_result(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server.start()
    async with (
        TcpProxy(server.url(record_cell.transport)) as proxy,
        connected(proxy.url, record_cell.transport) as client,
    ):
        bulk = client.bulk("contacts", idempotency_key="key")
        await bulk.open()
        for number in range(COUNT):
            await bulk.send(contact(number))
        # The last windows are on their way still, and may be needed.
        await eventually(record_database.staged, COUNT)
        proxy.stall(Direction.TO_CLIENT)
        committing = asyncio.create_task(bulk.commit())
        await eventually(record_database.contacts, COUNT)
        proxy.cut()
        proxy.release()
        assert (await committing).records == COUNT
    assert await record_database.contacts() == COUNT


@proves("REC-2", "REC-5")
@pytest.mark.parametrize("direction", Direction)
async def test_a_connection_that_breaks_anywhere_leaves_nothing_or_all(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase, direction: Direction
) -> None:
    server.start()
    chance = random.Random(SEED)
    if direction is Direction.TO_SERVER:
        # A bulk of this size is about 280,000 bytes.
        places = [1, 1000, 100_000, *(chance.randrange(300_000) for _ in range(50 if SOAK else 2))]
    else:
        places = [1, *(chance.randrange(800) for _ in range(50 if SOAK else 3))]
    committed = 0
    async with TcpProxy(server.url(record_cell.transport)) as proxy:
        for turn, place in enumerate(places):
            proxy.cut_after[direction] = place
            outcome: BulkResult | TailraceError
            async with connected(proxy.url, record_cell.transport, reconnect_timeout=0.0) as client:
                try:
                    outcome = await send(client, f"key {turn}", committed)
                except TailraceError as error:
                    outcome = error
            proxy.cut_after.clear()
            # What was staged goes with the connection, and what had begun to commit goes on.
            await eventually(record_database.staged, 0)
            visible = await record_database.contacts() - committed
            assert visible in (0, COUNT), place
            if isinstance(outcome, BulkResult):
                assert visible == COUNT, place
            async with connected(proxy.url, record_cell.transport) as client:
                again = await send(client, f"key {turn}", committed)
            # What the server had received when the client went may have been committed meanwhile.
            assert again.repeated or not visible, place
            committed += COUNT
            assert await record_database.contacts() == committed


@proves("REC-2")
async def test_a_bulk_that_is_cancelled_at_any_moment_leaves_nothing_or_all(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server.start()
    chance = random.Random(SEED)
    committed = 0
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        for turn in range(100 if SOAK else 6):
            sending = asyncio.create_task(send(client, f"key {turn}", committed))
            await asyncio.wait((sending,), timeout=chance.random() * 0.4)
            done = sending.done()
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            await eventually(record_database.staged, 0)
            visible = await record_database.contacts() - committed
            assert visible in (0, COUNT), turn
            if done:
                assert visible == COUNT, turn
            again = await send(client, f"key {turn}", committed)
            # What the server had received when the client went may have been committed meanwhile.
            assert again.repeated or not visible, turn
            committed += COUNT
            assert await record_database.contacts() == committed


# The client dies


@proves("REC-2", "REC-3")
@pytest.mark.parametrize("lines", [0, 10, 2500])
async def test_a_client_that_is_killed_leaves_nothing(
    server: FaultyServer, record_cell: RecordCell, record_database: RecordDatabase, tmp_path: Path, lines: int
) -> None:
    server.start()
    with spawn(tmp_path, "bulk", "contacts", "-", "--server", server.url(record_cell.transport)) as process:
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
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        assert (await send(client, "other")).records == COUNT


# PostgreSQL dies


@proves("REC-2", "REC-3")
@pytest.mark.record_cells(POSTGRES_RECORD_CELLS)
async def test_a_crash_of_postgresql_between_two_groups_loses_no_rows_silently(
    mortal_postgres: PostgresServer, on_mortal_postgres: tuple[FaultyServer, PostgresDatabase], record_cell: RecordCell
) -> None:
    server, database = on_mortal_postgres
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        bulk = client.bulk("contacts", idempotency_key="key")
        await bulk.open()
        for number in range(1500):
            await bulk.send(contact(number))

        async def is_staged() -> int:
            return int(await database.staged() == 1500)

        await eventually(is_staged, 1)
        await asyncio.to_thread(mortal_postgres.crash)
        await asyncio.to_thread(mortal_postgres.start)
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
@pytest.mark.record_cells(POSTGRES_RECORD_CELLS)
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.05, 0.1] if SOAK else [0.0, 0.02])
async def test_a_crash_of_postgresql_around_the_commit_is_found_out(
    mortal_postgres: PostgresServer,
    on_mortal_postgres: tuple[FaultyServer, PostgresDatabase],
    record_cell: RecordCell,
    delay: float,
) -> None:
    server, database = on_mortal_postgres
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        bulk = client.bulk("contacts", idempotency_key="key")
        await bulk.open()
        for number in range(COUNT):
            await bulk.send(contact(number))
        committing = asyncio.create_task(bulk.commit())
        await asyncio.sleep(delay)
        await asyncio.to_thread(mortal_postgres.crash)
        await asyncio.to_thread(mortal_postgres.start)
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
