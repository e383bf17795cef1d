"""Databases for tests of sinks, with raw access past every sink."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg

from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_sink import PostgresSink
from tailrace_impl_server._sqlite_sink import SqliteSink
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability, RecordSink
from tailrace_server_api.contracts.sink import COLUMNS, SinkPlace

TABLES = (
    "CREATE TABLE cities (id INTEGER PRIMARY KEY)",
    "INSERT INTO cities VALUES (1), (2)",
    """CREATE TABLE contacts (
        name TEXT NOT NULL CHECK (length(name) > 0),
        email TEXT UNIQUE,
        city INTEGER REFERENCES cities (id),
        number INTEGER,
        UNIQUE (name, number)
    )""",
)
_SELECT = "SELECT name, email, city, number FROM contacts ORDER BY "


class SqlitePlace(SinkPlace):
    """Two files of SQLite: records and staging."""

    def __init__(self, folder: Path, durability: Durability, tables: Sequence[str] = TABLES) -> None:
        self.path = folder / "shop.sqlite"
        self.staging_path = folder / "shop.staging.sqlite"
        self.durability = durability
        self._tables = tables

    async def __aenter__(self) -> SqlitePlace:
        await self.run(self.path, "PRAGMA journal_mode = WAL", *self._tables)
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def run(self, path: Path, *statements: str) -> list[Any]:
        """Run statements over a connection of their own; return what the last one gives."""

        def run() -> list[Any]:
            rows: list[Any] = []
            with closing(self.connect(path)) as connection:
                for statement in statements:
                    rows = connection.execute(statement).fetchall()
            return rows

        return await asyncio.to_thread(run)

    def connect(self, path: Path | None = None) -> sqlite3.Connection:
        """Return a connection for any thread; blocking."""
        return sqlite3.connect(path or self.path, isolation_level=None, timeout=20, check_same_thread=False)

    def new_sink(
        self, *, name: str = "contacts", table: str | None = "contacts", columns: Any = COLUMNS, **other: Any
    ) -> RecordSink:
        file = SqliteThread(self.path, durability=self.durability)
        staging = SqliteThread(self.staging_path, durability=Durability.OS)
        return SqliteSink(name, file, staging, table=table, columns=columns, **other)

    async def rows(self) -> Sequence[tuple[object, ...]]:
        return await self.run(self.path, f"{_SELECT} rowid")

    async def records(self, name: str) -> Sequence[tuple[str | None, bytes]]:
        return await self.run(self.path, f'SELECT key, CAST(record AS BLOB) FROM "{name}" ORDER BY position')

    async def insert(self, *rows: tuple[object, ...]) -> None:
        def insert() -> None:
            with closing(self.connect()) as connection:
                connection.executemany("INSERT INTO contacts VALUES (?, ?, ?, ?)", rows)

        await asyncio.to_thread(insert)

    async def clear(self) -> None:
        await self.run(self.path, "DELETE FROM contacts")

    async def _staging_tables(self) -> list[str]:
        named = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%staged_at%'"
        return [name for (name,) in await self.run(self.staging_path, named)]

    async def staged(self) -> int:
        counts = [f'SELECT count(*) AS n FROM "{table}"' for table in await self._staging_tables()]
        total: int = (await self.run(self.staging_path, f"SELECT sum(n) FROM ({' UNION ALL '.join(counts)})"))[0][0]
        return total

    async def lose(self, records: int) -> None:
        for table in await self._staging_tables():
            some = f'SELECT place FROM "{table}" LIMIT {records}'
            await self.run(self.staging_path, f'DELETE FROM "{table}" WHERE place IN ({some})')

    async def orphan(self) -> None:
        # No process can have this number.
        await self.run(self.staging_path, "UPDATE tailrace_bulks SET owner = '4194305 x'")

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        connection = await asyncio.to_thread(self.connect)
        await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
        yield
        await asyncio.to_thread(connection.execute, "COMMIT")
        connection.close()


class PostgresPlace(SinkPlace):
    """A database of PostgreSQL; it must be entered."""

    def __init__(self, url: str, tables: Sequence[str] = TABLES) -> None:
        self.url = url
        self._tables = tables

    async def __aenter__(self) -> PostgresPlace:
        self.raw = await asyncpg.connect(self.url)
        for statement in self._tables:
            await self.raw.execute(statement)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.raw.close()

    def new_database(self, **other: Any) -> PostgresDatabase:
        return PostgresDatabase("shop", self.url, **other)

    def new_sink(
        self, *, name: str = "contacts", table: str | None = "contacts", columns: Any = COLUMNS, **other: Any
    ) -> RecordSink:
        return PostgresSink(name, self.new_database(), table=table, columns=columns, **other)

    async def rows(self) -> Sequence[tuple[object, ...]]:
        return [tuple(row) for row in await self.raw.fetch(f"{_SELECT} ctid")]

    async def records(self, name: str) -> Sequence[tuple[str | None, bytes]]:
        rows = await self.raw.fetch(f'SELECT key, record FROM "{name}" ORDER BY position')
        return [(row["key"], row["record"].encode()) for row in rows]

    async def insert(self, *rows: tuple[object, ...]) -> None:
        await self.raw.executemany("INSERT INTO contacts VALUES ($1, $2, $3, $4)", rows)

    async def clear(self) -> None:
        await self.raw.execute("DELETE FROM contacts")

    async def _staging_tables(self) -> list[str]:
        named = "SELECT table_name FROM information_schema.columns WHERE column_name = 'staged_at'"
        return [row[0] for row in await self.raw.fetch(named)]

    async def staged(self) -> int:
        tables = await self._staging_tables()
        return sum([await self.raw.fetchval(f'SELECT count(*) FROM "{table}"') for table in tables])

    async def lose(self, records: int) -> None:
        for table in await self._staging_tables():
            some = f'SELECT ctid FROM "{table}" LIMIT {records}'
            await self.raw.execute(f'DELETE FROM "{table}" WHERE ctid = ANY (ARRAY({some}))')

    async def orphan(self) -> None:
        await self.raw.execute("UPDATE tailrace_bulks SET owner = 2147483647")

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        async with self.raw.transaction():
            await self.raw.execute("LOCK TABLE contacts IN SHARE ROW EXCLUSIVE MODE")
            yield

    async def until_waiting(self) -> None:
        """Wait until somebody waits for a lock."""
        # Whatever limits the user has.
        other = await asyncpg.connect(self.url, server_settings={"statement_timeout": "0"})
        try:
            async with asyncio.timeout(20):
                while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            await other.close()
