"""Work while servers, workers and PostgreSQL are killed: nothing is lost, and what is done is done."""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cells import POSTGRES_RECORD_CELLS, WIRED_RECORD_CELLS, RecordCell
from faulty_server import FaultyServer
from manifest import proves
from postgres_server import PostgresServer
from record_databases import PostgresDatabase, eventually
from server_process import spawn
from servers import connected
from soak import SEED, SOAK
from tcp_proxy import TcpProxy

from tailrace_common_api import LeaseLost, TailraceError
from tailrace_impl_common import ConnectedClient

pytestmark = [pytest.mark.record_cells(WIRED_RECORD_CELLS), pytest.mark.timeout(600 if SOAK else 240)]


@pytest.fixture
def server(faulty_record_server: FaultyServer) -> FaultyServer:
    return faulty_record_server


async def left(client: ConnectedClient) -> int:
    """Count what is not done."""
    figures = await client.queue_figures("quick")
    return figures.ready + figures.delayed + figures.in_flight


@proves("REC-9", "REC-12")
async def test_no_acknowledged_record_comes_again_through_kills(server: FaultyServer, record_cell: RecordCell) -> None:
    kills = 100 if SOAK else 5
    count = 40 * kills
    chance = random.Random(SEED)
    server.start()
    acknowledged: dict[int, int] = {}
    delivered: set[int] = set()
    async with TcpProxy(server.url(record_cell.transport)) as proxy:
        async with connected(proxy.url, record_cell.transport) as client, client.bulk("quick") as bulk:
            for number in range(count):
                await bulk.send({"n": number})

        async def consume(credit: int) -> None:
            """Work until it is lost, again and again."""
            while True:
                with suppress(TailraceError):
                    async with (
                        connected(proxy.url, record_cell.transport) as client,
                        client.work("quick", credit=credit) as work,
                    ):
                        async for delivery in work:
                            number = delivery.json()["n"]
                            # An older attempt may still wait here when another consumer has acknowledged a newer one.
                            newest = acknowledged.get(number, sys.maxsize)
                            assert delivery.attempt < newest, f"{number} came again"
                            delivered.add(number)
                            with suppress(LeaseLost):
                                await delivery.ack()
                                acknowledged[number] = delivery.attempt
                await asyncio.sleep(0.01)

        consumers = [asyncio.create_task(consume(1 + number)) for number in range(3)]
        for _ in range(kills):
            await asyncio.sleep(chance.random() * 0.2)
            if chance.random() < 0.3:
                proxy.cut()
                await asyncio.sleep(chance.random() * 0.1)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            proxy.aim(server.url(record_cell.transport))

        async with connected(proxy.url, record_cell.transport) as client, asyncio.timeout(120 + 3 * kills):
            # What a consumer has to say may also be that something came again.
            while await left(client) and not any(task.done() for task in consumers):
                await asyncio.wait(consumers, timeout=0.05)
        for task in consumers:
            task.cancel()
        outcomes = await asyncio.gather(*consumers, return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError)] == []
    # An answer that counted may have been lost with its server, and is forgotten there after a lease.
    assert delivered == set(range(count))
    assert len(acknowledged) > count * 0.8


@proves("REC-9")
async def test_records_of_a_killed_worker_come_again_after_the_lease(
    server: FaultyServer, record_cell: RecordCell, tmp_path: Path
) -> None:
    server.start()
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        async with client.bulk("quick") as bulk:
            for number in range(4):
                await bulk.send({"n": number})
        command = ("--credit", 2, "--", "sleep", 60)
        with spawn(tmp_path, "work", "quick", "--server", server.url(record_cell.transport), *command) as worker:

            async def in_flight() -> int:
                return (await client.queue_figures("quick")).in_flight

            await eventually(in_flight, 2)
            worker.kill()
        attempts: dict[int, int] = {}
        done = 0
        async with client.work("quick", credit=1) as consumer:
            async for delivery in consumer:
                attempts.setdefault(delivery.json()["n"], delivery.attempt)
                # A record that a busy machine does not answer within its lease comes once more.
                with suppress(LeaseLost):
                    await delivery.ack()
                    done += 1
                if done == 4:
                    break
    assert [attempts[number] for number in range(4)] == [2, 2, 1, 1]


@proves("REC-12")
@pytest.mark.record_cells(POSTGRES_RECORD_CELLS)
async def test_queues_outlive_a_crash_of_postgresql(
    mortal_postgres: PostgresServer, on_mortal_postgres: tuple[FaultyServer, PostgresDatabase], record_cell: RecordCell
) -> None:
    server, _ = on_mortal_postgres
    async with connected(server.url(record_cell.transport), record_cell.transport) as client:
        async with client.bulk("quick") as bulk:
            for number in range(30):
                await bulk.send({"n": number})
        acknowledged: set[int] = set()
        async with client.work("quick", credit=3) as consumer:
            async for delivery in consumer:
                number = delivery.json()["n"]
                assert number not in acknowledged
                if len(acknowledged) == 10:
                    await asyncio.to_thread(mortal_postgres.crash)
                    await asyncio.to_thread(mortal_postgres.start)
                with suppress(TailraceError):
                    await delivery.ack()
                    acknowledged.add(number)
                if len(acknowledged) == 30:
                    break
    assert acknowledged == set(range(30))
