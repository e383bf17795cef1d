"""Results of a query of a file of SQLite, as records."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tailrace_common_api import Argument, ConfigurationError, RecordBatch, StorageFailure
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._sql_parameters import Dialect, SqlStatement, check_columns
from tailrace_impl_server._sqlite_reading import SqliteReading, connect_to_read
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import RecordSource

_THREADS = 8
"""Most queries of one source that fetch rows at the same time; no thread waits for a reader."""
_OF_THE_STATEMENT = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)
"""Codes of errors that a statement makes and not the database."""


class SqliteSource(RecordSource):
    """A statement that only reads; each of its rows becomes a JSON object of its columns.

    Numbers and text stay what they are, ``NULL`` becomes ``null``, and a BLOB becomes its base64 text. A query sees one
    state of the file, from its first row to its last; while it runs, the log of the file cannot be shortened.
    """

    def __init__(
        self,
        name: str,
        thread: SqliteThread,
        sql: str,
        *,
        parameters: Mapping[str, type] | None = None,
        defaults: Mapping[str, Argument] | None = None,
    ) -> None:
        """Describe the source; nothing is touched before :meth:`start`.

        Args:
            name: Name of the source.
            thread: The file; started and closed with the source, which reads it in threads of its own.
            sql: The statement, with parameters as ``:name``.
            parameters: Type of each: ``str``, ``int``, ``float`` or ``bool``.
            defaults: Values of those that need not be given.

        Raises:
            ConfigurationError: The statement and the parameters do not belong together.
        """
        self._name = name
        self._thread = thread
        self._statement = SqlStatement(name, sql, Dialect.SQLITE, parameters=parameters or {}, defaults=defaults or {})
        self._threads: ThreadPoolExecutor | None = None
        self._readings: set[SqliteReading] = set()
        self._tasks = RunningTasks()

    @property
    def parameters(self) -> Mapping[str, type]:
        return self._statement.parameters

    @property
    def required(self) -> frozenset[str]:
        return self._statement.required

    async def start(self) -> None:
        """Prepare the statement.

        Raises:
            ConfigurationError: The database does not understand it, or it does not only read.
        """
        await self._thread.start()
        try:
            await asyncio.to_thread(self._check)
        except BaseException:
            await self._thread.close()
            raise
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"tailrace-source-{self._name}")

    async def close(self) -> None:
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.gather(*map(self._end, tuple(self._readings)))
            await self._tasks.wait()
            await asyncio.to_thread(threads.shutdown)
            await self._thread.close()

    def _check(self) -> None:
        field = f"sources.{self._name}.sql"
        values = {name: kind() for name, kind in self.parameters.items()}
        try:
            with closing(connect_to_read(self._thread.path)) as connection:
                program = connection.execute(f"EXPLAIN {self._statement.text}", values).fetchall()
                if any(step[1] == "Transaction" and step[3] for step in program):
                    raise ConfigurationError(field=field, problem="the statement does not only read")
                # A view tells its columns, and is not run for it.
                connection.execute("PRAGMA query_only = OFF")
                connection.execute(f"CREATE TEMP VIEW tailrace_columns AS {self._statement.shape}")
                columns = connection.execute("PRAGMA temp.table_info(tailrace_columns)").fetchall()
        except sqlite3.Error as error:
            raise ConfigurationError(field=field, problem=str(error)) from error
        # The second of two columns of a name is called `NAME:1` there.
        check_columns(self._name, [re.sub(r":\d+\Z", "", column[1]) for column in columns])

    async def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        if self._threads is None:
            raise StorageFailure(f"the source {self._name} is not open")
        reading = SqliteReading(
            self._thread.path, self._statement.text, self._statement.named(arguments), self._threads
        )
        self._readings.add(reading)
        try:
            while data := await reading.next():
                yield RecordBatch(data)
            if reading.ended:
                raise StorageFailure(f"the source {self._name} was closed")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _OF_THE_STATEMENT:
                raise
            # Clients read that: which folders the server has is none of their business.
            raise StorageFailure(f"the database {self._thread.path.name} failed: {error}") from error
        finally:
            # A second cancellation must not leave a thread at work for nobody.
            await asyncio.shield(self._tasks.start(self._end(reading)))

    async def _end(self, reading: SqliteReading) -> None:
        await reading.end()
        self._readings.discard(reading)
