"""The catalog contract over memory and SQLite."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tailrace_impl_server._memory_catalog import MemoryCatalog
from tailrace_impl_server._sqlite_catalog import SqliteCatalog
from tailrace_server_api import Catalog, Durability
from tailrace_server_api.contracts.catalog import CatalogContract


class TestMemoryCatalog(CatalogContract):
    persistent = False

    @asynccontextmanager
    async def new_catalog(self, folder: Path) -> AsyncGenerator[Catalog, None]:
        catalog = MemoryCatalog()
        await catalog.start()
        yield catalog
        await catalog.close()


class SqliteContract(CatalogContract):
    durability: Durability

    @asynccontextmanager
    async def new_catalog(self, folder: Path) -> AsyncGenerator[Catalog, None]:
        catalog = SqliteCatalog(folder / "catalog.sqlite", durability=self.durability)
        await catalog.start()
        yield catalog
        await catalog.close()


class TestSqliteCatalog(SqliteContract):
    durability = Durability.OS


class TestSyncedSqliteCatalog(SqliteContract):
    durability = Durability.FSYNC
