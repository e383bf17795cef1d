"""Results of a query of a file of SQLite, as records."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tailrace_common_api import Argument, ConfigurationError, RecordBatch, StorageFailure
from tailrace_impl_server._row_encoding import RowEncoder
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._sql_parameters import Dialect, SqlStatement, check_columns
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import RecordSource

_THREADS = 8
"""Most queries of one source that fetch rows at the same time; no thread waits for a reader."""
_SLICE_BYTES = 256 * 1024
_SLICE_SECONDS = 0.005
"""Time after which rows that are there are handed on."""
_ROWS = 1024
"""Most rows that are fetched between two looks at the clock."""
_INTERRUPT_AGAIN = 0.02
"""Time between two attempts to interrupt a statement, in seconds."""
_BUSY_SECONDS = 30.0
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
        self._readings: set[_Reading] = set()
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
            with closing(_connect(self._thread.path)) as connection:
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
        reading = _Reading(self._thread.path, self._statement.text, self._statement.named(arguments), self._threads)
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

    async def _end(self, reading: _Reading) -> None:
        await reading.end()
        self._readings.discard(reading)


class _Reading:
    """One statement that runs, in one thread at a time."""

    def __init__(self, path: Path, text: str, values: Mapping[str, Argument], threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._job: Future[list[bytes]] | None = None
        self._waiter: asyncio.Future[list[bytes]] | None = None
        self._path = path
        self._text = text
        self._values = values
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._encoder: RowEncoder | None = None
        self._rows = 1
        self._first = True
        self.ended = False
        """Whether it was ended before its last row."""

    async def next(self) -> list[bytes]:
        """Return the next rows, as :meth:`_slice` does."""
        self._job = self._threads.submit(self._slice)
        self._waiter = asyncio.wrap_future(self._job)
        shielded = asyncio.shield(self._waiter)
        try:
            return await shielded
        except asyncio.CancelledError:
            if shielded.done() and not shielded.cancelled():
                # The statement failed in the same turn of the loop, and nobody is left to be told.
                shielded.exception()
            raise

    async def end(self) -> None:
        """End the statement, wherever it is, and wait until its thread has let go of it; idempotent."""
        self.ended = True
        job, waiter = self._job, self._waiter
        if job is not None and waiter is not None and not job.cancel():
            while not waiter.done():
                # Again and again: an interruption just before the statement begins to run is lost.
                if self._connection is not None:
                    self._connection.interrupt()
                await asyncio.wait([waiter], timeout=_INTERRUPT_AGAIN)
            if not waiter.cancelled():
                # It is that of the interruption; whoever waits for the rows has it, too.
                waiter.exception()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            # A connection that is closed before would live on, with its view of the file, as long as the cursor.
            cursor.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _slice(self) -> list[bytes]:
        """Return the next rows as JSON: one at first, then what some milliseconds give; nothing at the end."""
        began = time.monotonic()
        cursor = self._cursor
        if cursor is None:
            self._connection = _connect(self._path)
            if self.ended:
                return []
            cursor = self._cursor = self._connection.execute(self._text, self._values)
            self._encoder = RowEncoder([column[0] for column in cursor.description])
        encoder = self._encoder
        assert encoder is not None
        records: list[bytes] = []
        size = 0
        while not self.ended:
            rows = cursor.fetchmany(self._rows)
            fetched = encoder.encode(rows)
            records += fetched
            size += sum(map(len, fetched))
            elapsed = time.monotonic() - began
            if self._first or not rows or size >= _SLICE_BYTES or elapsed >= _SLICE_SECONDS:
                break
            self._rows = min(2 * self._rows, _ROWS, 1 + _SLICE_BYTES * len(records) // size)
        else:
            return []
        if elapsed >= _SLICE_SECONDS:
            # Less before the next look at the clock, if the rows come slowly.
            self._rows = max(1, min(self._rows, len(records) // 4))
        self._first = False
        return records


def _connect(path: Path) -> sqlite3.Connection:
    # One thread at a time uses it, not always the same one.
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection
