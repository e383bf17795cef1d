"""A PostgreSQL database that ends of record streams share: its connections and its errors.

Importing this module without asyncpg raises ConfigurationError, which names the package that is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tailrace_common_api import ConfigurationError, StorageFailure, StorageFull
from tailrace_impl_server._postgres_bulks import Presence
from tailrace_impl_server._postgres_hints import PostgresHints

try:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy
except ImportError as _missing:
    raise ConfigurationError(
        field="databases", problem="PostgreSQL needs the package tailrace-impl-server[postgresql]"
    ) from _missing

Connection = asyncpg.Connection | PoolConnectionProxy
"""A connection of the pool, or one of one's own."""

_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
_SETTINGS = {
    "application_name": "tailrace",
    # Plans of a few lookups are not worth compiling, and those of a large move are not helped by it.
    "jit": "off",
    # A server that lost its connection must not hold locks for hours.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class PostgresDatabase:
    """A database with a pool of connections. Belongs to one event loop and never blocks it.

    Several ends share one: each starts and closes it, and it is open from the first start to the last close.
    """

    def __init__(self, name: str, url: str, *, max_connections: int = 10, max_queries: int = 20) -> None:
        """Describe the database; nothing is connected before :meth:`start`.

        Args:
            name: What errors call it.
            url: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``, with the options that libpq knows.
            max_connections: Most connections of the pool; who needs one more waits.
            max_queries: Most connections beside it, for queries: slow readers keep them, and nobody else waits for it.
        """
        self.name = name
        """What errors call it."""
        self._url = url
        self._max_connections = max_connections
        self._max_queries = max_queries
        self.moves = asyncio.Semaphore(max(1, max_connections // 2))
        """Held by what keeps a connection for long, so that others find one."""
        self.hints = PostgresHints(self)
        """What servers tell one another of the work that is there."""
        self.presence = Presence(self)
        """Tells other servers on the database that this one is alive."""
        self._pool: asyncpg.Pool | None = None
        self._readers: asyncpg.Pool | None = None
        self._starts = 0
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Open the pool, unless it is open.

        Raises:
            ConfigurationError: The URL, the user, the password or the database is wrong.
            StorageFailure: The database cannot be reached.
        """
        async with self._changing:
            if self._pool is None:
                self._pool = await self._open(1, self._max_connections)
                # None is connected before there is a query.
                self._readers = await self._open(0, self._max_queries)
            self._starts += 1

    async def close(self) -> None:
        """Close the pool if everyone who started it has closed it; once for each start.

        Connections that are in use are waited for some seconds, then cut off.
        """
        async with self._changing:
            if self._starts:
                self._starts -= 1
            pools = self._pool, self._readers
            if self._starts:
                return
            self._pool = self._readers = None
            for pool in pools:
                if pool is None:
                    continue
                try:
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await pool.close()
                except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pool.terminate()

    async def _open(self, min_size: int, max_size: int) -> asyncpg.Pool:
        try:
            return await asyncpg.create_pool(
                self._url,
                min_size=min_size,
                max_size=max_size,
                timeout=_CONNECT_SECONDS,
                server_settings=_SETTINGS,
                reset=_reset,
            )
        except (
            ValueError,
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
        ) as error:
            raise ConfigurationError(field=f"databases.{self.name}.url", problem=str(error)) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise self._failure(error) from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool; errors of the driver are turned into those of :meth:`errors`.

        Leaving with a transaction open, as a cancellation may, ends the connection and so the transaction.

        Raises:
            StorageFailure: The database is not open, or does not work.
            StorageFull: It is full.
        """
        if self._pool is None:
            raise StorageFailure(f"the database {self.name} is not open")
        with self.errors():
            async with self._pool.acquire() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """Lend a connection for a query that may last as long as its reader wants; else as :meth:`connection`.

        Raises:
            StorageFailure: Also when there are too many queries, after some seconds.
        """
        if self._readers is None:
            raise StorageFailure(f"the database {self.name} is not open")
        with self.errors():
            try:
                connection = await self._readers.acquire(timeout=_CONNECT_SECONDS)
            except TimeoutError as error:
                raise StorageFailure(f"the database {self.name} has too many queries that last") from error
            try:
                yield connection
            finally:
                await self._readers.release(connection)

    async def connect(self) -> asyncpg.Connection:
        """Return a connection outside the pool, for what lasts: listening, cursors. Who asks closes it.

        Raises:
            StorageFailure: The database does not work.
        """
        with self.errors():
            return await asyncpg.connect(self._url, timeout=_CONNECT_SECONDS, server_settings=_SETTINGS)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the driver and the network into StorageFailure and StorageFull, which name the database."""
        try:
            yield
        # The driver calls it an error of its own when a connection is lost between two of its steps.
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StorageFailure | StorageFull:
        if isinstance(error, asyncpg.DiskFullError):
            return StorageFull(f"the database {self.name} is full: {error}")
        return StorageFailure(f"the database {self.name} failed: {str(error) or type(error).__name__}")


async def _reset(connection: asyncpg.Connection) -> None:
    """Make a connection that comes back usable for others, without asking the server where nothing was left."""
    if connection.is_in_transaction():
        connection.terminate()
