"""What rows of SQL become as records, and which statements are refused."""

import asyncio
import itertools
import json
import sqlite3
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from postgres_server import PostgresServer

from tailrace_common_api import Argument, ConfigurationError, Overloaded, StorageFailure
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_source import PostgresSource
from tailrace_impl_server._sqlite_source import SqliteSource
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability, RecordSource

Make = Callable[..., RecordSource]


async def read(source: RecordSource, **arguments: Argument) -> list[bytes]:
    """Start a source, return what a query gives, and close it."""
    await source.start()
    try:
        async with aclosing(source.query(arguments)) as batches:
            return [record async for batch in batches for record in batch.data]
    finally:
        await source.close()


async def problem(source: RecordSource) -> str:
    """Return why a source does not start."""
    with pytest.raises(ConfigurationError) as caught:
        await source.start()
    return str(caught.value)


class TestSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "shop.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, price REAL, cover BLOB)")
            connection.executemany(
                "INSERT INTO book VALUES (?, ?, ?, ?)",
                [(1, 'Zoë\n"q"', 1.5, b"\0\xff"), (2**63 - 1, None, None, None), (3, "", 1e300, b"")],
            )
            connection.commit()
        return path

    @pytest.fixture
    def make(self, path: Path) -> Make:
        thread = SqliteThread(path, durability=Durability.OS)

        def make_(sql: str, **more: object) -> RecordSource:
            return SqliteSource("books", thread, sql, **more)  # type: ignore[arg-type]  # options by name

        return make_

    async def test_values_become_json(self, make: Make) -> None:
        first, third, last = await read(make("SELECT * FROM book ORDER BY id"))
        assert json.loads(first) == {"id": 1, "title": 'Zoë\n"q"', "price": 1.5, "cover": "AP8="}
        assert json.loads(third) == {"id": 3, "title": "", "price": 1e300, "cover": ""}
        assert last == b'{"id":9223372036854775807,"title":null,"price":null,"cover":null}'

    async def test_parameters_have_types_and_defaults(self, make: Make) -> None:
        sql = "SELECT :name AS name, :rate AS rate, :flag AS flag, id FROM book ORDER BY id LIMIT :max_results"
        types = {"name": str, "rate": float, "flag": bool}
        rows = await read(make(sql, parameters=types, defaults={"name": "'; DROP TABLE book"}), rate=0.5, flag=None)
        assert [json.loads(row)["id"] for row in rows] == [1, 3, 2**63 - 1]
        assert json.loads(rows[0]) == {"name": "'; DROP TABLE book", "rate": 0.5, "flag": None, "id": 1}
        assert len(await read(make(sql, parameters=types), rate=0.5, flag=True, name="n", max_results=2)) == 2

    async def test_what_does_not_only_read_is_refused(self, make: Make, path: Path) -> None:
        for sql in ("DELETE FROM book", "INSERT INTO book (title) VALUES ('x') RETURNING id", "DROP TABLE book"):
            assert await problem(make(sql)) == "sources.books.sql: the statement does not only read"
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM book").fetchone() == (3,)

    async def test_what_is_not_understood_is_refused(self, make: Make) -> None:
        assert await problem(make("SELECT gone FROM book")) == "sources.books.sql: no such column: gone"
        assert "syntax error" in await problem(make("SELEC 1"))
        assert (
            await problem(make("SELECT id, title AS id FROM book")) == "sources.books.sql: there are two columns 'id'"
        )

    async def test_a_statement_is_not_run_to_be_checked(self, make: Make) -> None:
        endless = "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto)"
        source = make(f"{endless} SELECT count(*) AS n FROM upto a, upto b")
        await source.start()
        await source.close()

    async def test_closing_ends_queries_as_failures(self, make: Make) -> None:
        source = make("WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto) SELECT n FROM upto")
        await source.start()
        async with aclosing(source.query({})) as batches:
            await anext(batches)
            await source.close()
            with pytest.raises((StorageFailure, RuntimeError)):
                await anext(batches)

    async def test_errors_of_a_statement_are_not_those_of_the_database(self, make: Make) -> None:
        with pytest.raises(sqlite3.OperationalError, match="malformed JSON"):
            await read(make("SELECT json_extract(:text, '$') AS x", parameters={"text": str}), text="{")


class TestPostgres:
    @pytest_asyncio.fixture
    async def make(self, postgres_url: str) -> AsyncGenerator[Make, None]:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("CREATE TABLE book (id bigint PRIMARY KEY, title text, cover bytea)")
        await connection.executemany(
            "INSERT INTO book VALUES ($1, $2, $3)",
            [(1, 'Zoë\n"q"', b"\0\xff" * 100), (2**63 - 1, None, None), (3, "", b"")],
        )
        await connection.close()
        database = PostgresDatabase("shop", postgres_url, max_queries=2)

        def make_(sql: str, **more: object) -> RecordSource:
            return PostgresSource("books", database, sql, **more)  # type: ignore[arg-type]  # options by name

        yield make_

    async def test_values_become_json(self, make: Make) -> None:
        [row] = await read(
            make(
                """SELECT 12345678901234567890.123456789 AS amount, 1::smallint AS small, 0.5::real AS rate,
                DATE '2026-11-21' AS day, TIMESTAMP '2026-11-21 10:00:00.25' AS at,
                TIMESTAMPTZ '2026-11-21 10:00:00+00' = now() AS now, ARRAY[1, 2] AS list, NULL::int AS nothing,
                '{"a" :\n 1}'::json AS json, '{"b": [true]}'::jsonb AS jsonb, 'x\\y'::text AS "text: \"\"",
                '00000000-0000-0000-0000-000000000001'::uuid AS id; -- the end"""
            )
        )
        assert b'"amount":12345678901234567890.123456789' in row
        assert b"\n" not in row
        document = json.loads(row)
        assert document["day"] == "2026-11-21"
        assert document["at"] == "2026-11-21T10:00:00.25"
        assert (document["now"], document["list"], document["nothing"]) == (False, [1, 2], None)
        assert (document["json"], document["jsonb"]) == ({"a": 1}, {"b": [True]})
        assert (document['text: "'], document["small"], document["rate"]) == ("x\\y", 1, 0.5)
        assert document["id"] == "00000000-0000-0000-0000-000000000001"

    async def test_bytes_become_base64(self, make: Make) -> None:
        rows = [json.loads(row) for row in await read(make("SELECT cover, id, title FROM book ORDER BY id"))]
        assert rows[0] == {"cover": b64encode(b"\0\xff" * 100).decode(), "id": 1, "title": 'Zoë\n"q"'}
        assert rows[1:] == [{"cover": "", "id": 3, "title": ""}, {"cover": None, "id": 2**63 - 1, "title": None}]

    async def test_parameters_have_types_and_defaults(self, make: Make) -> None:
        sql = (
            "SELECT :name AS name, :rate AS rate, :flag AS flag, :day::date AS day, id FROM book WHERE id >= :low "
            "ORDER BY id LIMIT :max_results"
        )
        types = {"name": str, "rate": float, "flag": bool, "day": str, "low": int}
        source = make(sql, parameters=types, defaults={"low": 1, "name": "'; DROP TABLE book"})
        rows = await read(source, rate=0.5, flag=None, day="2026-11-21")
        assert [json.loads(row)["id"] for row in rows] == [1, 3, 2**63 - 1]
        wanted = {"name": "'; DROP TABLE book", "rate": 0.5, "flag": None, "day": "2026-11-21", "id": 1}
        assert json.loads(rows[0]) == wanted
        again = await read(make(sql, parameters=types), rate=1, flag=True, day=None, name="n", low=2, max_results=1)
        assert [json.loads(row)["id"] for row in again] == [3]

    async def test_what_does_not_only_read_is_refused(self, make: Make) -> None:
        for sql in ("DELETE FROM book", "DROP TABLE book", "INSERT INTO book (id) VALUES (9) RETURNING id"):
            assert "syntax error" in await problem(make(sql))
        changing = "WITH gone AS (DELETE FROM book RETURNING id) SELECT id FROM gone"
        assert "sources.books.sql: " in await problem(make(changing))
        source = make("SELECT nextval('numbers') AS n", parameters={})
        assert "does not exist" in await problem(source)
        assert len(await read(make("SELECT id FROM book"))) == 3

    async def test_a_function_cannot_write_either(self, make: Make, postgres_url: str) -> None:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("CREATE SEQUENCE numbers")
        with pytest.raises(ValueError, match="read-only transaction"):
            await read(make("SELECT nextval('numbers') AS n"))
        assert await connection.fetchval("SELECT is_called FROM numbers") is False
        await connection.close()

    async def test_what_is_not_understood_is_refused(self, make: Make) -> None:
        assert 'column "nothing" does not exist' in await problem(make("SELECT nothing FROM book"))
        assert "syntax error" in await problem(make("SELEC 1"))
        assert await problem(make("SELECT id, 1 AS id FROM book")) == "sources.books.sql: there are two columns 'id'"

    async def test_errors_of_a_statement_are_not_those_of_the_database(self, make: Make) -> None:
        with pytest.raises(ValueError, match="division by zero"):
            await read(make("SELECT 1 / (:n - 1) AS x", parameters={"n": int}), n=1)

    async def test_a_statement_that_stops_is_not_waited_for(self, make: Make) -> None:
        """Rows that come slowly are handed on one by one."""
        source = make(
            "SELECT n, pg_sleep(CASE WHEN n > 3 THEN 3600 ELSE 0.001 END)::text AS slept "
            "FROM generate_series(1, 10) AS n"
        )
        await source.start()
        async with aclosing(source.query({})) as batches:
            first = await anext(batches)
            assert [json.loads(record)["n"] for record in first.data] == [1]
            seen: list[int] = []
            while len(seen) < 2:
                seen += [json.loads(record)["n"] for record in (await anext(batches)).data]
            assert seen == [2, 3]
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await source.close()

    async def test_a_slow_reader_has_few_rows_fetched(self, make: Make, postgres_url: str) -> None:
        """The database waits to be asked for more."""
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("INSERT INTO book SELECT n FROM generate_series(1000, 200000) AS n")
        source = make("SELECT id FROM book WHERE id >= 1000")
        await source.start()
        async with aclosing(source.query({})) as batches:
            read_ = [len((await anext(batches)).data) for _ in range(8)]
            assert read_[0] == 1
            assert all(count <= 2 * before for before, count in itertools.pairwise(read_))
            state = await connection.fetchval(
                "SELECT state FROM pg_stat_activity WHERE query LIKE 'FETCH%' AND datname = current_database()"
            )
            assert state == "idle in transaction"
        await source.close()
        await connection.close()

    async def test_too_many_queries_do_not_wait_for_ever(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        source = make("SELECT n FROM generate_series(1, 1000000) AS n")
        await source.start()
        readers = [source.query({}) for _ in range(3)]
        await anext(readers[0])
        await anext(readers[1])
        # Those that have one may have had to wait for it to be made.
        monkeypatch.setattr("tailrace_impl_server._postgres._QUERY_SECONDS", 0.05)
        with pytest.raises(Overloaded, match="queries of the database"):
            await anext(readers[2])
        for reader in readers:
            await reader.aclose()
        await source.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer(fsync=False) as own:
        yield own


async def test_a_query_whose_database_goes_fails(own_server: PostgresServer) -> None:
    database = PostgresDatabase("shop", await asyncio.to_thread(own_server.create_database))
    source = PostgresSource("numbers", database, "SELECT generate_series(1, 100000000) AS n")
    await source.start()
    async with aclosing(source.query({})) as batches:
        await anext(batches)
        await asyncio.to_thread(own_server.crash)

        async def rest() -> None:
            async for _ in batches:
                pass

        with pytest.raises(StorageFailure, match="shop failed"):
            await rest()
    await asyncio.to_thread(own_server.start)
    async with aclosing(source.query({})) as batches:
        assert len((await anext(batches)).data) == 1
    await source.close()


async def test_a_query_whose_file_is_none_any_more_fails_and_tells_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    source = SqliteSource("numbers", SqliteThread(path, durability=Durability.OS), "SELECT 1 AS n")
    await source.start()
    path.rename(tmp_path / "moved.sqlite")
    path.mkdir()
    with pytest.raises(StorageFailure) as caught:
        await anext(source.query({}))
    assert str(caught.value) == "the database shop.sqlite failed: unable to open database file"
    await source.close()


async def test_an_ended_query_of_sqlite_holds_no_view_of_the_file(tmp_path: Path) -> None:
    """The log of the file can be cut: nothing of the query is left, although its error may still be referred to."""
    thread = SqliteThread(tmp_path / "shop.sqlite", durability=Durability.OS)
    await thread.start()
    await thread.run(lambda connection: connection.execute("CREATE TABLE book AS SELECT 1 AS id"))
    source = SqliteSource("books", thread, "SELECT b.id FROM book, (SELECT 1 AS id UNION ALL SELECT 2) AS b")
    await source.start()
    async with aclosing(source.query({})) as batches:
        await anext(batches)
        await thread.run(lambda connection: connection.execute("UPDATE book SET id = 2"))

    def cut() -> object:
        with closing(sqlite3.connect(thread.path, timeout=0, isolation_level=None)) as connection:
            return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    assert await asyncio.to_thread(cut) == (0, 0, 0)
    await source.close()
    await thread.close()
