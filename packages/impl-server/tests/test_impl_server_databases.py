"""The databases that ends of record streams share: PostgreSQL with its pool, SQLite with its thread."""

import asyncio
import functools
import logging
import sqlite3
import threading
from collections.abc import AsyncGenerator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from postgres_server import PostgresServer

from tailrace_common_api import ConfigurationError, StorageFailure
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability


class TestPostgresDatabase:
    @pytest_asyncio.fixture
    async def database(self, postgres_url: str) -> AsyncGenerator[PostgresDatabase, None]:
        database = PostgresDatabase("shop", postgres_url, max_connections=2)
        await database.start()
        yield database
        await database.close()

    async def test_it_is_open_from_the_first_start_to_the_last_close(self, database: PostgresDatabase) -> None:
        await database.start()
        await database.close()
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await database.close()
        with pytest.raises(StorageFailure, match="shop is not open"):
            async with database.connection():
                pass
        await database.close()
        await database.start()
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1

    async def test_errors_of_the_driver_name_the_database(self, database: PostgresDatabase) -> None:
        with pytest.raises(StorageFailure, match='shop failed: relation "nothing" does not exist'):
            async with database.connection() as connection:
                await connection.execute("SELECT * FROM nothing")

    async def test_a_transaction_that_is_left_open_is_undone(
        self, database: PostgresDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with database.connection() as connection:
            await connection.execute("CREATE TABLE things (id int)")
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO things VALUES (1)")
        async with database.connection() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT count(*) FROM things") == 0
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []

    async def test_a_connection_that_was_cut_is_replaced(self, database: PostgresDatabase) -> None:
        with pytest.raises(StorageFailure):
            async with database.connection() as connection:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1

    async def test_a_connection_of_ones_own_is_outside_the_pool(self, database: PostgresDatabase) -> None:
        own = await database.connect()
        async with database.connection() as first, database.connection() as second:
            pids = {await held.fetchval("SELECT pg_backend_pid()") for held in (own, first, second)}
        assert len(pids) == 3
        await own.close()

    async def test_a_wrong_database_is_an_error_of_the_settings(self, postgres_server: PostgresServer) -> None:
        database = PostgresDatabase("shop", postgres_server.url("nowhere"))
        with pytest.raises(ConfigurationError, match="nowhere") as raised:
            await database.start()
        assert raised.value.field == "databases.shop.url"

    async def test_a_wrong_url_is_an_error_of_the_settings(self) -> None:
        with pytest.raises(ConfigurationError):
            await PostgresDatabase("shop", "mysql://localhost/x").start()

    async def test_a_server_that_is_not_there_when_it_starts_is_named_by_its_setting(self) -> None:
        database = PostgresDatabase("shop", "postgresql://postgres@127.0.0.1:1/x")
        with pytest.raises(ConfigurationError, match=r"databases\.shop\.url: .*Connection refused"):
            await database.start()


@pytest.mark.parametrize("durability", Durability)
class TestSqliteThread:
    @pytest_asyncio.fixture
    async def file(self, tmp_path: Path, durability: Durability) -> AsyncGenerator[SqliteThread, None]:
        file = SqliteThread(tmp_path / "a" / "b.sqlite", durability=durability, setup=_make_table)
        await file.start()
        yield file
        await file.close()

    async def test_what_was_answered_is_there(self, file: SqliteThread) -> None:
        await asyncio.gather(*(file.run(functools.partial(_insert, id=number)) for number in range(1000)))
        assert await file.read(_count) == 1000
        with closing(sqlite3.connect(file.path)) as other:
            assert _count(other) == 1000

    async def test_work_that_fails_undoes_itself_only(self, file: SqliteThread) -> None:
        # The thread is held until all of them wait, so that they share a transaction.
        hold = threading.Event()
        held = asyncio.ensure_future(file.run(lambda connection: hold.wait()))
        works = [asyncio.ensure_future(file.run(work)) for work in (_insert_one, _insert_and_raise, _insert_one_again)]
        await asyncio.sleep(0)
        hold.set()
        await held
        done = await asyncio.gather(*works, return_exceptions=True)
        assert [type(item) for item in done] == [type(None), KeyError, StorageFailure]
        assert await file.read(_count) == 1

    async def test_work_that_ends_the_transaction_of_others_is_done_apart(self, file: SqliteThread) -> None:
        hold = threading.Event()
        held = asyncio.ensure_future(file.run(lambda connection: hold.wait()))
        works = [asyncio.ensure_future(file.run(work)) for work in (_insert_one, _undo_everything)]
        await asyncio.sleep(0)
        hold.set()
        await held
        done = await asyncio.gather(*works, return_exceptions=True)
        assert [type(item) for item in done] == [type(None), StorageFailure]
        assert await file.read(_count) == 1

    async def test_work_with_a_transaction_of_its_own_holds_up_nothing_before_it(self, file: SqliteThread) -> None:
        hold, wait = threading.Event(), threading.Event()
        held = asyncio.ensure_future(file.run(lambda connection: hold.wait()))
        before = asyncio.ensure_future(file.run(_insert_one))
        long = asyncio.ensure_future(file.run(lambda connection: wait.wait(), alone=True))
        after = asyncio.ensure_future(file.run(lambda connection: _insert(connection, 2)))
        await asyncio.sleep(0)
        hold.set()
        await held
        await before
        assert not long.done()
        wait.set()
        await asyncio.gather(long, after)
        assert await file.read(_count) == 2

    async def test_work_that_was_cancelled_before_it_began_is_not_done(self, file: SqliteThread) -> None:
        hold = threading.Event()
        held = asyncio.ensure_future(file.run(lambda connection: hold.wait()))
        cancelled = asyncio.ensure_future(file.run(_insert_one))
        await asyncio.sleep(0)
        cancelled.cancel()
        hold.set()
        await held
        await file.run(lambda connection: None)
        assert cancelled.cancelled()
        assert await file.read(_count) == 0

    async def test_reading_sees_one_state_and_cannot_write(self, file: SqliteThread) -> None:
        def look_twice(connection: sqlite3.Connection) -> tuple[int, int]:
            first = _count(connection)
            asyncio.run_coroutine_threadsafe(file.run(_insert_one), loop).result()
            return first, _count(connection)

        loop = asyncio.get_running_loop()
        assert await file.read(look_twice) == (0, 0)
        assert await file.read(_count) == 1
        with pytest.raises(StorageFailure, match="readonly"):
            await file.read(_insert_one)

    async def test_a_lock_of_somebody_else_is_waited_for(self, file: SqliteThread) -> None:
        with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(file.run(_insert_one))
            assert await file.read(_count) == 0
            assert not waiting.done()
            other.execute("COMMIT")
            await waiting
        assert await file.read(_count) == 1

    async def test_it_is_open_from_the_first_start_to_the_last_close(self, file: SqliteThread) -> None:
        await file.start()
        await file.close()
        await file.run(_insert_one)
        await file.close()
        for call in (file.run, file.read):
            with pytest.raises(StorageFailure, match="not open"):
                await call(_count)
        await file.close()
        await file.start()
        assert await file.read(_count) == 1

    async def test_a_file_that_is_no_database_is_an_error_of_the_settings(
        self, tmp_path: Path, durability: Durability
    ) -> None:
        path = tmp_path / "text"
        path.write_text("no database at all, but longer than the head of one\n" * 100)
        with pytest.raises(ConfigurationError, match="text"):
            await SqliteThread(path, durability=durability).start()


def _make_table(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS things (id INTEGER PRIMARY KEY)")


def _count(connection: sqlite3.Connection) -> int:
    count: int = connection.execute("SELECT count(*) FROM things").fetchone()[0]
    return count


def _insert(connection: sqlite3.Connection, id: int) -> None:
    connection.execute("INSERT INTO things VALUES (?)", (id,))


def _insert_one(connection: sqlite3.Connection) -> None:
    _insert(connection, 1)


def _insert_one_again(connection: sqlite3.Connection) -> None:
    _insert(connection, 3)
    _insert(connection, 1)


def _insert_and_raise(connection: sqlite3.Connection) -> None:
    _insert(connection, 2)
    raise KeyError("of the work")


def _undo_everything(connection: sqlite3.Connection) -> None:
    _insert(connection, 2)
    connection.execute("INSERT OR ROLLBACK INTO things VALUES (2)")
