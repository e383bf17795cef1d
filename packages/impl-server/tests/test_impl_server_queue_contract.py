"""The queues of SQL databases pass the tests of the interface."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_queue import PostgresQueue
from tailrace_server_api.contracts.queue import OpenQueue, RecordQueueContract


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
