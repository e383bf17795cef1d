"""A PostgreSQL database that ends of record streams share: its connections and its errors.

Importing this module without asyncpg raises ConfigurationError, which names the package that is missing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tailrace_common_api import ConfigurationError, Overloaded, StorageFailure, StorageFull
from tailrace_impl_server._postgres_bulks import Presence
from tailrace_impl_server._postgres_hints import PostgresHints
from tailrace_impl_server._postgres_pulse import Pulse, keep_alive

try:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy
except ImportError as _missing:
    raise ConfigurationError(
        field="databases", problem="PostgreSQL needs the package tailrace-impl-server[postgresql]"
    ) from _missing

Connection = asyncpg.Connection | PoolConnectionProxy
"""A connection of the pool, or one of one's own."""

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
"""Time that a database has for the easiest of questions."""
_FREE_SECONDS = 60.0
"""Time in which a connection of the pool becomes free, unless all of them are stuck."""
_QUERY_SECONDS = 10.0
"""Time that a query waits for others to end."""
_RETRY_AFTER = 1.0
_SETTINGS = {
    "application_name": "tailrace",
    # Plans of a few lookups are not worth compiling, and those of a large move are not helped by it.
    "jit": "off",
    # A reader may take its time between two of its records.
    "idle_in_transaction_session_timeout": "0",
    # A server that lost its connection must not hold locks for hours.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_WRITING_SETTINGS = {**_SETTINGS, "statement_timeout": "0"}
"""Limits of the database are for what people type, and for queries; a bulk takes as long as it has records."""
_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""The driver calls it an error of its own when a connection is lost between two of its steps."""


class _KeptAlive(asyncpg.Connection):
    """A connection whose other side is missed when it is gone, however quiet it has been."""

    __slots__ = ()

    def __init__(self, protocol: Any, transport: Any, *others: Any) -> None:
        super().__init__(protocol, transport, *others)
        keep_alive(transport)


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
        self._pulse = Pulse(name, self._says_anything)
        self._pool: asyncpg.Pool | None = None
        self._readers: asyncpg.Pool | None = None
        self._starts = 0
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Open the pool, unless it is open.

        Raises:
            ConfigurationError: The URL, the user, the password or the database is wrong, or nobody answers there.
            StorageFailure: The database does not work.
        """
        async with self._changing:
            if self._pool is None:
                pool = await self._open(1, self._max_connections, _WRITING_SETTINGS)
                # None is connected before there is a query.
                self._readers = await self._open(0, self._max_queries, _SETTINGS)
                self._pool = pool
                self._pulse.start()
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
            await self._pulse.close()
            for pool in pools:
                if pool is None:
                    continue
                try:
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await pool.close()
                except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pool.terminate()

    async def _open(self, min_size: int, max_size: int, settings: dict[str, str]) -> asyncpg.Pool:
        try:
            return await asyncpg.create_pool(
                self._url,
                min_size=min_size,
                max_size=max_size,
                timeout=_CONNECT_SECONDS,
                server_settings=settings,
                connection_class=_KeptAlive,
                reset=_reset,
            )
        except (
            ValueError,
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
        ) as error:
            raise ConfigurationError(field=f"databases.{self.name}.url", problem=str(error)) from error
        except OSError as error:
            # It may come up later, but whoever starts the server looks for what to mend.
            why = f"no answer within {_CONNECT_SECONDS:g} s" if isinstance(error, TimeoutError) else _told(error)
            problem = f"the database cannot be reached: {why}"
            raise ConfigurationError(field=f"databases.{self.name}.url", problem=problem) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise self._failure(error) from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool; errors of the driver are turned into those of :meth:`errors`.

        Leaving with a transaction open, as a cancellation may, ends the connection and so the transaction. What is done
        with the connection may take any time, as long as the database answers others meanwhile.

        Raises:
            StorageFailure: The database is not open, does not work or does not answer; or no connection became free.
            StorageFull: It is full.
        """
        pool = self._pool
        if pool is None:
            raise StorageFailure(f"the database {self.name} is not open")
        async with self._lent(pool, _FREE_SECONDS) as connection:
            if connection is None:
                problem = f"all {pool.get_size()} connections to the database {self.name} are in use"
                raise StorageFailure(f"{problem}, and none became free within {_FREE_SECONDS:g} s")
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """Lend a connection for a query that may last as long as its reader wants; else as :meth:`connection`.

        Raises:
            Overloaded: Other queries have all connections for queries, and none of them ended within some seconds.
        """
        pool = self._readers
        if pool is None:
            raise StorageFailure(f"the database {self.name} is not open")
        async with self._lent(pool, _QUERY_SECONDS) as connection:
            if connection is None:
                raise Overloaded(what=f"queries of the database {self.name}", retry_after=_RETRY_AFTER)
            yield connection

    @asynccontextmanager
    async def _lent(self, pool: asyncpg.Pool, seconds: float) -> AsyncIterator[Connection | None]:
        """Lend a connection of a pool, or ``None`` when none became free in so many seconds."""
        with self.errors():
            try:
                connection = await pool.acquire(timeout=seconds)
            except TimeoutError:
                if pool.get_size() < pool.get_max_size() or pool.get_idle_size():
                    raise
                connection = None
            if connection is None:
                yield None
                return
            try:
                with self._pulse.used(connection):
                    yield connection
            finally:
                if not connection.is_closed() and connection.is_in_transaction():
                    # The driver would complain of it in the log, and end the transaction in its own time.
                    connection.terminate()
                try:
                    await pool.release(connection, timeout=_ANSWER_SECONDS)
                except _DRIVER_ERRORS as error:
                    # It has ended, and is no concern of what was done with it.
                    _log.debug("a connection to the database %s did not come back: %s", self.name, error)

    async def connect(self) -> asyncpg.Connection:
        """Return a connection outside the pool, for what lasts: listening, cursors. Who asks closes it.

        Raises:
            StorageFailure: The database does not work.
        """
        with self.errors():
            return await asyncpg.connect(
                self._url, timeout=_CONNECT_SECONDS, server_settings=_SETTINGS, connection_class=_KeptAlive
            )

    async def is_alive(self, connection: asyncpg.Connection) -> bool:
        """Return whether a connection outside the pool works; one that does not is terminated."""
        try:
            await connection.fetchval("SELECT 1", timeout=_ANSWER_SECONDS)
        except _DRIVER_ERRORS:
            connection.terminate()
            return False
        return True

    async def _says_anything(self) -> bool:
        """Return whether the database has an answer to somebody new, be it that there are too many."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                connection = await asyncpg.connect(self._url, timeout=_ANSWER_SECONDS, server_settings=_SETTINGS)
        except asyncpg.PostgresError:
            return True
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            return False
        try:
            return await self.is_alive(connection)
        finally:
            connection.terminate()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the driver and the network into StorageFailure and StorageFull, which name the database."""
        try:
            yield
        except _DRIVER_ERRORS as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StorageFailure | StorageFull:
        if isinstance(error, asyncpg.DiskFullError):
            return StorageFull(f"the database {self.name} is full: {error}")
        if self._pulse.silent or isinstance(error, TimeoutError):
            return StorageFailure(f"the database {self.name} does not answer")
        if isinstance(error, ConnectionRefusedError):
            return StorageFailure(f"the database {self.name} cannot be reached: {_told(error)}")
        return StorageFailure(f"the database {self.name} failed: {str(error) or type(error).__name__}")


def _told(error: OSError) -> str:
    """Return the system's words for an error: event loops have different ones, with addresses in some."""
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def without_traceback(record: logging.LogRecord) -> bool:
    """Shorten what the driver's pool says each second of a database that cannot be reached: a filter of its log."""
    if record.exc_info and isinstance(error := record.exc_info[1], OSError):
        record.msg, record.args = f"{record.getMessage()}: {_told(error)}", ()
        record.exc_info = record.exc_text = None
    return True


# The same one is added once.
logging.getLogger("asyncpg.pool").addFilter(without_traceback)


async def _reset(connection: asyncpg.Connection) -> None:
    """Leave a connection that comes back as it is: one with a transaction was ended, and nothing else is ever set."""
