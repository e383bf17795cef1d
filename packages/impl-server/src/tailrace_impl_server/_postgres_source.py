"""Results of a query of a PostgreSQL database, as records."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import TypeVar

import asyncpg

from tailrace_common_api import Argument, ConfigurationError, RecordBatch
from tailrace_impl_server._postgres import Connection, PostgresDatabase
from tailrace_impl_server._sql_parameters import Dialect, SqlStatement, check_columns
from tailrace_impl_server._sql_tables import quoted
from tailrace_server_api import RecordSource

_T = TypeVar("_T")

_ROWS = 2048
"""Most rows that are fetched at once."""
_FETCH_BYTES = 256 * 1024
_QUICK, _SLOW = 0.01, 0.05
"""A fetch that takes less, or more, has the next one ask for more, or for less; in seconds."""
_BYTES = "bytea"
_OF_THE_STATEMENT = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.PLPGSQLError,
)


class PostgresSource(RecordSource):
    """A statement that only reads; each of its rows becomes a JSON object of its columns, made by the database.

    Numbers are written in full, dates and times as ISO 8601 has them, ``NULL`` becomes ``null``, columns of JSON become
    part of the object, and a column of ``bytea`` becomes its base64 text. A query sees one state of the database, from
    its first row to its last. It has a connection for itself, apart from what bulks and queues use.
    """

    def __init__(
        self,
        name: str,
        database: PostgresDatabase,
        sql: str,
        *,
        parameters: Mapping[str, type] | None = None,
        defaults: Mapping[str, Argument] | None = None,
    ) -> None:
        """Describe the source; nothing is touched before :meth:`start`.

        Args:
            name: Name of the source.
            database: Where it reads; started and closed with the source.
            sql: The statement, with parameters as ``:name``.
            parameters: Type of each: ``str``, ``int``, ``float`` or ``bool``; in the statement ``text``, ``bigint``,
                ``double precision`` and ``boolean``, which it casts where it needs others: ``:day::date``.
            defaults: Values of those that need not be given.

        Raises:
            ConfigurationError: The statement and the parameters do not belong together.
        """
        self._name = name
        self._database = database
        self._statement = SqlStatement(
            name, sql, Dialect.POSTGRESQL, parameters=parameters or {}, defaults=defaults or {}
        )
        self._text = ""
        self._open = False

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
        await self._database.start()
        try:
            async with self._database.reading() as connection:
                self._text = await self._prepared(connection)
        except BaseException:
            await self._database.close()
            raise
        self._open = True

    async def close(self) -> None:
        if self._open:
            self._open = False
            await self._database.close()

    async def _prepared(self, connection: Connection) -> str:
        """Return the statement that makes records, when the database has understood it."""
        given = f"(\n{self._statement.text}\n)"
        try:
            async with connection.transaction(readonly=True):
                prepared = await connection.prepare(f"SELECT * FROM {given} AS source")
        except _OF_THE_STATEMENT as error:
            raise ConfigurationError(field=f"sources.{self._name}.sql", problem=str(error)) from error
        columns = prepared.get_attributes()
        check_columns(self._name, [column.name for column in columns])
        if any(column.type.name == _BYTES for column in columns):
            values = ", ".join(_value(column.name, column.type.name) for column in columns)
            given = f"(SELECT {values} FROM {given} AS given)"
        # A plan for a cursor is one whose first rows come early.
        record = "convert_to(row_to_json(source)::text, 'UTF8')"
        return f"DECLARE records NO SCROLL CURSOR FOR SELECT {record} FROM {given} AS source"

    async def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        values = self._statement.positional(arguments)
        async with self._database.reading() as connection, connection.transaction(readonly=True):
            await self._step(connection.execute(self._text, *values))
            wanted = 1
            while True:
                began = time.monotonic()
                # Cancelling this cancels the statement in the database; the connection comes back when that has ended.
                rows = await self._step(connection.fetch(f"FETCH {wanted} FROM records"))
                elapsed = time.monotonic() - began
                if rows:
                    # A value of the type json may have line feeds, between its parts only; a record is one line.
                    records = [row[0].replace(b"\n", b" ") for row in rows]
                    yield RecordBatch(records)
                if len(rows) < wanted:
                    return
                if elapsed < _QUICK:
                    fitting = 1 + _FETCH_BYTES * len(records) // sum(map(len, records))
                    # A power of two: each number is a statement of its own for the driver, which keeps it.
                    wanted = min(2 * wanted, _ROWS, 1 << (fitting.bit_length() - 1))
                elif elapsed > _SLOW:
                    wanted = max(1, wanted // 2)

    async def _step(self, step: Awaitable[_T]) -> _T:
        """Take a step of the statement; what is wrong with that, and not with the database, is no StorageFailure."""
        try:
            return await step
        except _OF_THE_STATEMENT as error:
            raise ValueError(f"the statement of the source {self._name} failed: {error}") from error


def _value(name: str, type: str) -> str:
    column = quoted(name)
    return f"translate(encode({column}, 'base64'), E'\\n', '') AS {column}" if type == _BYTES else column
