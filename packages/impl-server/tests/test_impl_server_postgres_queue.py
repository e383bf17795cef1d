"""Queues in PostgreSQL: several servers, crashes of the database, and what waits in great numbers."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from postgres_server import PostgresServer

from tailrace_common_api import QueuedRecord, Settlement, StorageFailure, Verdict
from tailrace_impl_server import _postgres_queue_statements
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_queue import PostgresQueue
from tailrace_server_api import Claim, Depth
from tailrace_server_api.contracts.queue import answer, data, feed, take


@contextlib.asynccontextmanager
async def server(url: str, *, lease: float = 60.0) -> AsyncIterator[PostgresQueue]:
    """Open the queue as one more server has it."""
    queue = PostgresQueue("tasks", PostgresDatabase("shop", url), lease=lease)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close()


async def test_a_claim_that_is_cancelled_while_its_transaction_begins_leaves_none(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(postgres_url) as queue, asyncio.timeout(30):
        await feed(queue, [b"1"])
        with monkeypatch.context() as patched:
            patched.setattr(_postgres_queue_statements, "BEGIN", "BEGIN; SELECT pg_sleep(600)")
            claiming = asyncio.create_task(take(queue))
            async with queue._database.connection() as connection:
                beginning = (
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; SELECT pg_sleep%'"
                    " AND state = 'active' AND datname = current_database()"
                )
                while not await connection.fetchval(beginning):  # noqa: ASYNC110 - the database tells nobody.
                    await asyncio.sleep(0.01)
            claiming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await claiming
        assert data(await take(queue)) == [b"1"]
    # The driver reports a transaction that nobody has ended nowhere else.
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


class TestSeveralServers:
    async def test_they_share_the_work(self, postgres_url: str) -> None:
        async with server(postgres_url) as one, server(postgres_url) as two:
            await feed(one, [b"%d" % number for number in range(600)])
            seen: list[bytes] = []

            async def work(queue: PostgresQueue) -> None:
                while given := await take(queue, 7):
                    seen.extend(data(given))
                    assert all(await queue.settle([answer(record) for record in given]))

            await asyncio.gather(work(one), work(two), work(two))
            while given := await take(one):
                seen += data(given)
            assert sorted(seen) == sorted(b"%d" % number for number in range(600))

    async def test_an_answer_may_come_by_way_of_another_one(self, postgres_url: str) -> None:
        async with server(postgres_url) as one, server(postgres_url) as two:
            await feed(one, [b"1"])
            [record] = await take(one)
            assert await two.settle([answer(record)]) == [True]
            assert await one.settle([answer(record)]) == [True]
            assert await one.depth() == Depth(0, 0, 0, 0)

    async def test_each_hears_of_the_work_of_the_others(self, postgres_url: str) -> None:
        async with server(postgres_url) as one, server(postgres_url) as two, asyncio.timeout(20):
            await two._database.hints.listening.wait()
            await one._database.hints.listening.wait()
            woken = asyncio.Event()
            two.subscribe(woken.set)
            await feed(one, [b"1"])
            await woken.wait()
            [record] = await take(one)
            woken.clear()
            await one.release([(record.id, record.attempt)])
            await woken.wait()
            assert data(await take(two)) == [b"1"]

    async def test_hints_come_again_after_the_connection_was_lost(self, postgres_url: str) -> None:
        async with server(postgres_url) as one, server(postgres_url) as two, asyncio.timeout(20):
            await two._database.hints.listening.wait()
            woken = asyncio.Event()
            two.subscribe(woken.set)
            watching = await asyncpg.connect(postgres_url)
            try:
                await watching.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                )
            finally:
                await watching.close()
            # Whatever was missed meanwhile is looked for.
            await woken.wait()
            await two._database.hints.listening.wait()
            await one._database.hints.listening.wait()
            woken.clear()
            await feed(one, [b"1"])
            await woken.wait()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer() as own:
        yield own


@pytest.fixture
async def url(own_server: PostgresServer) -> str:
    return await asyncio.to_thread(own_server.create_database)


async def answered(queue: PostgresQueue, work: int = 20) -> list[QueuedRecord]:
    """Acknowledge records and return those whose acknowledgement was answered, until the database fails."""
    done: list[QueuedRecord] = []
    while True:
        try:
            given = await take(queue, work)
            counting = await queue.settle([answer(record) for record in given])
        except StorageFailure:
            return done
        done += [record for record, counts in zip(given, counting, strict=True) if counts]


class TestCrashes:
    async def test_a_crash_of_the_database_loses_no_answer_and_no_record(
        self, own_server: PostgresServer, url: str
    ) -> None:
        everything = {b"%d" % number for number in range(20_000)}
        async with server(url, lease=0.2) as queue:
            await feed(queue, sorted(everything))
            done: list[QueuedRecord] = []
            for _ in range(3):
                working = asyncio.create_task(answered(queue))
                before = len(everything) - (await queue.depth()).ready
                while len(everything) - (await queue.depth()).ready < before + 300:
                    pass
                await asyncio.to_thread(own_server.crash)
                done += await working
                await asyncio.to_thread(own_server.start)
            gone = set(data(done))
            assert len(gone) == len(done), "an acknowledged record came again"
            # The reply to these was lost with the connection: they were taken or not, and come again if not.
            again: list[bytes] = []
            async with asyncio.timeout(50):
                while (depth := await queue.depth()).ready or depth.in_flight:
                    given = await take(queue, 1000)
                    assert all(await queue.settle([answer(record) for record in given]))
                    again += data(given)
                    if not given:
                        await asyncio.sleep(await queue.next_due() or 0)
            assert not gone & set(again), "an acknowledged record came again"
            assert len(again) == len(set(again))
            lost = everything - gone - set(again)
            # At most what one call each was about when the database went.
            assert len(lost) <= 3 * 20
            assert await queue.depth() == Depth(0, 0, 0, 0)

    async def test_attempts_and_taken_answers_survive_a_crash(self, own_server: PostgresServer, url: str) -> None:
        async with server(url) as queue:
            await feed(queue, [b"done", b"given back", b"leased"])
            done, back, leased = await take(queue)
            assert await queue.settle([answer(done), answer(back, Verdict.REQUEUE)]) == [True, True]
            await asyncio.to_thread(own_server.crash)
            with pytest.raises(StorageFailure):
                await queue.claim([Claim("one", 1, 1000, True)])
            await asyncio.to_thread(own_server.start)
            assert await queue.depth() == Depth(1, 0, 1, 0)
            [again] = await take(queue)
            assert (again.data, again.attempt) == (b"given back", 2)
            repeated: list[Settlement] = [answer(done), answer(back, Verdict.REQUEUE), answer(leased), answer(again)]
            assert await queue.settle(repeated) == [True] * 4
            assert await queue.depth() == Depth(0, 0, 0, 0)
