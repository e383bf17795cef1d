"""Results of a query of a file of SQLite, as records."""

from __future__ import annotations

import asyncio
import base64
import re
import sqlite3
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import orjson

from tailrace_common_api import Argument, ConfigurationError, RecordBatch, StorageFailure
from tailrace_impl_server._sql_parameters import Dialect, SqlStatement, check_columns
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import RecordSource

_THREADS = 4
"""Most queries of one source that fetch rows at the same time; no thread waits for a reader."""
_SLICE_BYTES = 256 * 1024
_SLICE_SECONDS = 0.005
"""Time after which rows that are there are handed on."""
_ROWS = 1024
"""Most rows that are fetched between two looks at the clock."""
_INTERRUPT_AGAIN = 0.02
"""Time between two attempts to interrupt a statement, in seconds."""
_BUSY_SECONDS = 30.0


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
            await asyncio.to_thread(threads.shutdown)
            await self._thread.close()

    def _check(self) -> None:
        field = f"sources.{self._name}.sql"
        # Any values do: nothing is run.
        values = {name: kind() for name, kind in self.parameters.items()}
        try:
            with closing(_connect(self._thread.path)) as connection:
                program = connection.execute(f"EXPLAIN {self._statement.text}", values).fetchall()
                if any(step[1] == "Transaction" and step[3] for step in program):
                    raise ConfigurationError(field=field, problem="the statement does not only read")
                columns = connection.execute(f"SELECT * FROM (\n{self._statement.text}\n) LIMIT 0", values).description
        except sqlite3.Error as error:
            raise ConfigurationError(field=field, problem=str(error)) from error
        # The second of two columns of a name is called `NAME:1` here.
        check_columns(self._name, [re.sub(r":\d+\Z", "", column[0]) for column in columns])

    async def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        if self._threads is None:
            raise StorageFailure(f"the source {self._name} is not open")
        loop, threads = asyncio.get_running_loop(), self._threads
        reading = _Reading(self._thread.path, self._statement.text, self._statement.named(arguments))
        fetching: asyncio.Future[list[bytes]] | None = None
        try:
            while True:
                fetching = loop.run_in_executor(threads, reading.slice)
                if not (data := await asyncio.shield(fetching)):
                    return
                yield RecordBatch(data)
        except sqlite3.OperationalError as error:
            raise StorageFailure(f"the database {self._thread.path} failed: {error}") from error
        finally:
            await _end(reading, fetching)


async def _end(reading: _Reading, fetching: asyncio.Future[list[bytes]] | None) -> None:
    """End a statement, wherever it is, and wait until its thread has let go of it."""
    reading.stop()
    while fetching is not None and not fetching.done():
        if fetching.cancel():
            break
        # An interruption just before the statement begins to run is lost.
        reading.stop()
        await asyncio.wait([fetching], timeout=_INTERRUPT_AGAIN)
    reading.close()


class _Reading:
    """One statement that runs. One thread at a time has it; :meth:`stop` is for any."""

    def __init__(self, path: Path, text: str, values: Mapping[str, Argument]) -> None:
        self._path = path
        self._text = text
        self._values = values
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._names: tuple[str, ...] = ()
        self._rows = 1
        self._first = True
        self._stopped = False

    def slice(self) -> list[bytes]:
        """Return the next rows as JSON: one at first, then what some milliseconds give; nothing at the end."""
        began = time.monotonic()
        cursor = self._cursor
        if cursor is None:
            self._connection = _connect(self._path)
            if self._stopped:
                return []
            cursor = self._cursor = self._connection.execute(self._text, self._values)
            self._names = tuple(column[0] for column in cursor.description)
        names = self._names
        records: list[bytes] = []
        size = 0
        while not self._stopped:
            rows = cursor.fetchmany(self._rows)
            fetched = [orjson.dumps(dict(zip(names, row, strict=True)), default=_as_json) for row in rows]
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

    def stop(self) -> None:
        """Have the statement end as soon as it can; called in any thread."""
        self._stopped = True
        if self._connection is not None:
            self._connection.interrupt()

    def close(self) -> None:
        """Release everything; no thread has it any more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(path: Path) -> sqlite3.Connection:
    # One thread at a time uses it, not always the same one.
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _as_json(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)
