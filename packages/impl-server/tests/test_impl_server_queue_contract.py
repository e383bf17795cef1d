"""The queues of SQL databases pass the tests of the interface."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_queue import PostgresQueue
from tailrace_impl_server._sqlite_queue import SqliteQueue
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability
from tailrace_server_api.contracts import RecordQueueContract
from tailrace_server_api.contracts.queue import OpenQueue


class TestPostgresQueue(RecordQueueContract):
    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.url = postgres_url

    @contextlib.asynccontextmanager
    async def open_queue(self, folder: Path, name: str, *, lease: float, max_attempts: int) -> AsyncIterator[OpenQueue]:
        database = PostgresDatabase("shop", self.url)
        queue = PostgresQueue(name, database, lease=lease, max_attempts=max_attempts)
        await queue.start()
        await queue.dead.start()
        try:
            yield OpenQueue(queue, queue.dead)
        finally:
            await queue.dead.close()
            await queue.close()


class TestSqliteQueue(RecordQueueContract):
    @contextlib.asynccontextmanager
    async def open_queue(self, folder: Path, name: str, *, lease: float, max_attempts: int) -> AsyncIterator[OpenQueue]:
        # One server has a file: its queues share the threads.
        file, staging = self.files.setdefault(
            folder,
            (
                SqliteThread(folder / "queue.sqlite", durability=Durability.FSYNC),
                SqliteThread(folder / "queue.staging.sqlite", durability=Durability.OS),
            ),
        )
        queue = SqliteQueue(name, file, staging, lease=lease, max_attempts=max_attempts)
        await queue.start()
        await queue.dead.start()
        try:
            yield OpenQueue(queue, queue.dead)
        finally:
            await queue.dead.close()
            await queue.close()

    @pytest.fixture(autouse=True)
    def _files(self) -> None:
        self.files: dict[Path, tuple[SqliteThread, SqliteThread]] = {}
