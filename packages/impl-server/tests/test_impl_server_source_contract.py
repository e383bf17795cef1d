"""The sources over SQL statements pass the tests of the interface."""

import contextlib
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_source import PostgresSource
from tailrace_impl_server._sqlite_source import SqliteSource
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability, RecordSource
from tailrace_server_api.contracts import RecordSourceContract
from tailrace_server_api.contracts.source import OpenSources


@contextlib.asynccontextmanager
async def opened(
    make: Callable[..., RecordSource], numbers: str, endless: str, stuck: str
) -> AsyncGenerator[list[RecordSource], None]:
    """Start the three sources of the contract."""
    sources = [
        make("numbers", numbers, parameters={"count": int, "first": int}, defaults={"first": 1}),
        make("endless", endless),
        make("stuck", stuck),
    ]
    async with contextlib.AsyncExitStack() as stack:
        for source in sources:
            await source.start()
            stack.push_async_callback(source.close)
        yield sources


class TestPostgresSource(RecordSourceContract):
    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.url = postgres_url

    @contextlib.asynccontextmanager
    async def open_sources(self, folder: Path) -> AsyncIterator[OpenSources]:
        database = PostgresDatabase("shop", self.url)
        watching = await asyncpg.connect(self.url)

        async def running() -> int:
            statement = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return int(await watching.fetchval(f"{statement} AND (state = 'active' OR xact_start IS NOT NULL)"))

        def make(name: str, sql: str, **more: object) -> RecordSource:
            return PostgresSource(name, database, sql, **more)  # type: ignore[arg-type]  # options by name

        forever = "generate_series(1, 9000000000000000000)"
        try:
            async with opened(
                make,
                "SELECT n FROM generate_series(:first, :first + :count - 1) AS n",
                "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto) SELECT n FROM upto",
                f"SELECT a.n FROM {forever} AS a (n) WHERE a.n < 0",
            ) as (numbers, endless, stuck):
                yield OpenSources(numbers=numbers, endless=endless, stuck=stuck, running=running)
        finally:
            await watching.close()


class TestSqliteSource(RecordSourceContract):
    @contextlib.asynccontextmanager
    async def open_sources(self, folder: Path) -> AsyncIterator[OpenSources]:
        thread = SqliteThread(folder / "shop.sqlite", durability=Durability.OS)
        await thread.start()
        await thread.run(lambda connection: connection.execute("CREATE TABLE one AS SELECT 0 AS zero"))

        async def running() -> int:
            stacks = map(traceback.extract_stack, sys._current_frames().values())
            return sum(any(frame.name == "_slice" for frame in stack) for stack in stacks)

        def make(name: str, sql: str, **more: object) -> RecordSource:
            return SqliteSource(name, thread, sql, **more)  # type: ignore[arg-type]  # options by name

        numbers = (
            "WITH RECURSIVE upto (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM upto WHERE n + 1 < :first + :count)"
        )
        forever = "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto)"
        try:
            async with opened(
                make,
                f"{numbers} SELECT n FROM upto WHERE :count > 0",
                f"{forever} SELECT n + (SELECT zero FROM one) AS n FROM upto",
                f"{forever} SELECT n FROM upto WHERE n < (SELECT zero FROM one)",
            ) as (numbers_, endless, stuck):
                yield OpenSources(numbers=numbers_, endless=endless, stuck=stuck, running=running)
        finally:
            await thread.close()
