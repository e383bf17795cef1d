"""The contract of sinks over SQLite and PostgreSQL."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from impl_server_sink_places import PostgresPlace, SqlitePlace

from tailrace_server_api import Durability
from tailrace_server_api.contracts.sink import RecordSinkContract, SinkPlace


class SqliteContract(RecordSinkContract):
    durability: Durability

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @asynccontextmanager
    async def new_place(self) -> AsyncGenerator[SinkPlace, None]:
        async with SqlitePlace(self.folder, self.durability) as place:
            yield place


class TestSqliteSink(SqliteContract):
    durability = Durability.OS


class TestSyncedSqliteSink(SqliteContract):
    durability = Durability.FSYNC


class TestPostgresSink(RecordSinkContract):
    @pytest.fixture(autouse=True)
    def _url(self, postgres_url: str) -> None:
        self.url = postgres_url

    @asynccontextmanager
    async def new_place(self) -> AsyncGenerator[SinkPlace, None]:
        async with PostgresPlace(self.url) as place:
            yield place
