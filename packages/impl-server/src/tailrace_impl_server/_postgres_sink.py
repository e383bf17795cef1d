"""A sink on PostgreSQL: staged by COPY into an unlogged table, moved by one INSERT ... SELECT."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count, repeat
from typing import Any

import asyncpg

from tailrace_common_api import (
    JSON,
    BulkConflict,
    BulkRefused,
    BulkResult,
    ProblemKind,
    RecordProblem,
    StagingLost,
    StorageFailure,
    StorageFull,
)
from tailrace_impl_server import _postgres_bulks as bulks
from tailrace_impl_server._bulk_endings import lost_to_another, rolled_back
from tailrace_impl_server._postgres import Connection, PostgresDatabase
from tailrace_impl_server._postgres_problems import find_problems, first_refused
from tailrace_impl_server._postgres_target import Target, prepare_fields, prepare_records
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._sql_tables import RecordTable, field_columns, problems_found, quoted, staged_columns
from tailrace_server_api import BulkOrigin, RecordSink, StagedBatch

_log = logging.getLogger(__name__)

_LOCKED_WAIT = (0.005, 0.25)
"""Shortest and longest time between two looks at a bulk that somebody else holds, in seconds."""
_ATTEMPTS = 5
"""How often a move is tried that other transactions get in the way of."""
_OUTCOME_SECONDS = 15.0
"""Time in which it must be found out whether a commit succeeded whose connection was lost."""
_SMALL = 20_000
"""Records that are purged before a commit is answered; the rows of more are purged behind it."""
_REFUSED = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.RaiseError)
_IN_THE_WAY = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError)
_UNFIT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, TypeError, OverflowError)


class _Bulk:
    """A bulk that this server stages."""

    __slots__ = ("committing", "key", "number", "staged")

    def __init__(self, number: int, key: str | None) -> None:
        self.number = number
        self.key = key
        self.staged = 0
        self.committing = False
        """Whether it waits for its commit, or commits: however long that takes, it is not swept."""


class PostgresSink(RecordSink):
    """Takes the bulks of one collection into one table; any number of servers may do so at the same time.

    What the table demands is the database's own: unique indexes, references, checks and triggers hold as for every
    other insertion, and are looked up when a bulk breaks one.
    """

    def __init__(
        self,
        name: str,
        database: PostgresDatabase,
        *,
        table: str | None = None,
        columns: Mapping[str, str] | Sequence[str] | None = None,
        content_type: str = JSON,
        into: RecordTable | None = None,
        committed: Callable[[], None] | None = None,
    ) -> None:
        """Describe the sink; nothing is touched before :meth:`start`.

        Args:
            name: Name of the collection.
            database: Where its table is; started and closed with the sink.
            table: A table that is there, perhaps with its schema and a dot before it. Without it, and without ``into``,
                the table ``name`` is made for whole records: ``position``, ``key``, ``record``.
            columns: Which field goes to which column of ``table``, or names that both have; ``None`` for every column.
                Fields that go nowhere are left out; those that are not there are null, or the default of a column that
                cannot be null.
            content_type: Content type of whole records: JSON is kept as such, anything else as bytes.
            into: A table for whole records in place of that of a collection.
            committed: Called on the event loop when a bulk has become visible.

        Raises:
            ConfigurationError: ``columns`` make no sense.
        """
        self._name = name
        self._database = database
        self._table = table
        self._fields = field_columns(columns, f"collections.{name}.columns")
        self._content_type = content_type
        self._into = into
        self._committed = committed
        self._bulks: dict[str, _Bulk] = {}
        self._tasks = RunningTasks()
        self._target_found: Target | None = None

    @property
    def _target(self) -> Target:
        if self._target_found is None:
            raise StorageFailure(f"the collection {self._name} is not open")
        return self._target_found

    async def start(self) -> None:
        await self._database.start()
        try:
            async with self._database.connection() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", bulks.MAKING_TABLES)
                await connection.execute(bulks.TABLES)
                if self._table is None:
                    target = await prepare_records(connection, self._name, self._into, self._content_type)
                else:
                    target = await prepare_fields(connection, self._name, self._table, self._fields)
            await self._database.presence.start()
        except BaseException:
            await self._database.close()
            raise
        self._target_found = target
        try:
            await self._purge_dead(older_than=None)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._target_found is None:
            return
        for bulk in list(self._bulks):
            try:
                await self.rollback(bulk)
            except (StorageFailure, StorageFull) as error:
                _log.warning("a bulk could not be purged; it is at the next start: %s", error, extra={"bulk": bulk})
        await self._tasks.wait()
        self._target_found = None
        await self._database.presence.close()
        await self._database.close()

    async def begin(self, origin: BulkOrigin) -> BulkResult | None:
        found = await self._until_free(functools.partial(self._begin, origin))
        if isinstance(found, BulkResult):
            return found
        self._bulks[origin.id] = _Bulk(found, origin.key)
        return None

    async def _begin(self, origin: BulkOrigin, connection: Connection) -> BulkResult | int:
        async with connection.transaction(isolation="read_committed"):
            if origin.key is not None:
                row = await connection.fetchrow(bulks.FIND_KEY, origin.principal, origin.key)
                if row is not None and row["state"] == "committed":
                    if (row["collection"], row["priority"]) == (self._name, origin.priority):
                        return bulks.result_of(row, repeated=True)
                    raise BulkConflict(id=row["id"])
                if row is not None:
                    await connection.execute(bulks.FENCE, row["number"])
            number: int = await connection.fetchval(
                bulks.INSERT,
                origin.id,
                self._name,
                origin.principal,
                origin.key,
                origin.priority,
                self._database.presence.owner,
                self._target.staging,
            )
        return number

    async def _until_free(self, work: Callable[[Connection], Any]) -> Any:
        """Do something with a bulk when nobody else holds it, without keeping a connection while it waits."""
        wait, longest = _LOCKED_WAIT
        while True:
            async with self._database.connection() as connection:
                try:
                    return await work(connection)
                except asyncpg.LockNotAvailableError:
                    _log.debug("somebody stages or commits a bulk that is asked for")
                except asyncpg.UniqueViolationError as error:
                    # Somebody begins with the same key at the same time.
                    if error.constraint_name != bulks.KEY_INDEX:
                        raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    async def stage(self, id: str, batch: StagedBatch) -> None:
        target = self._target
        bulk = self._known(id)
        if target.columns:
            fields = [column.field for column in target.columns]
            columns = staged_columns(fields, target.kinds, batch.first, batch.values, batch.batch.data)
        else:
            columns = [batch.batch.keys or repeat(None), batch.batch.data]
        rows = functools.partial(zip, repeat(bulk.number), count(batch.first), *columns)
        size = len(batch.batch.data)
        async with self._database.connection() as connection:
            try:
                async with connection.transaction():
                    if await connection.fetchval(bulks.COUNT, bulk.number, bulk.staged, size) is None:
                        await self._raise_why(connection, bulk, bulk.staged)
                    await connection.copy_records_to_table(
                        target.staging, records=rows(), columns=["bulk", "position", *target.staged]
                    )
            except _UNFIT as error:
                raise await self._misfit(connection, batch.first, list(rows()), error) from error
        bulk.staged += size

    def _known(self, id: str) -> _Bulk:
        if id not in self._bulks:
            raise rolled_back()
        return self._bulks[id]

    async def _raise_why(self, connection: Connection, bulk: _Bulk, expected: int) -> None:
        """Raise the reason why a bulk is not as it is known here."""
        staged: int | None = await connection.fetchval(bulks.LOCK_STAGING, bulk.number)
        if staged is None:
            raise lost_to_another(bulk.key)
        raise StagingLost(staged=expected, found=staged)

    async def _misfit(
        self, connection: Connection, first: int, rows: Sequence[tuple[object, ...]], error: Exception
    ) -> BulkRefused:
        """Return which of some rows the database cannot hold."""
        told = re.search(r"COPY .*?, line (\d+)(?:, column (c\d+))?", getattr(error, "context", None) or "")
        if told is not None:
            names = {column.staged: column.field for column in self._target.columns}
            return problems_found([_invalid(first + int(told[1]) - 1, names.get(told[2]), error)])
        for index, row in enumerate(rows, first):
            # The driver names no row, but each of them alone fails or does not.
            attempt = connection.transaction()
            await attempt.start()
            try:
                await connection.copy_records_to_table(
                    self._target.staging, records=[row], columns=["bulk", "position", *self._target.staged]
                )
            except _UNFIT as single:
                return problems_found([_invalid(index, None, single)])
            finally:
                await attempt.rollback()
        raise error

    async def commit(self, id: str, *, records: int, size: int, digest: bytes) -> BulkResult:
        bulk = self._known(id)
        bulk.committing = True
        try:
            result = await self._commit(id, bulk, records, size, digest)
        finally:
            bulk.committing = False
        self._bulks.pop(id, None)
        purging = self._tasks.start(self._purge_committed(bulk.number, self._target.staging), "tailrace-purge")
        if self._committed is not None:
            self._committed()
        if records <= _SMALL:
            await asyncio.shield(purging)
        return result

    async def _commit(self, id: str, bulk: _Bulk, records: int, size: int, digest: bytes) -> BulkResult:
        """Try to make a bulk visible until it is, or is refused."""
        error: Exception | None = None
        async with self._database.moves:
            for attempt in range(_ATTEMPTS):
                await asyncio.sleep(0.02 * attempt)
                result = await self._move(id, bulk, records, size, digest)
                if isinstance(result, BulkResult):
                    return result
                error = result
                if isinstance(error, _REFUSED) and (refused := await self._problems(bulk, records, error, attempt)):
                    raise refused
        raise StorageFailure(f"the database {self._database.name} refuses the bulk: {error}") from error

    async def _move(
        self, id: str, bulk: _Bulk, records: int, size: int, digest: bytes
    ) -> BulkResult | asyncpg.PostgresError:
        """Make a bulk visible, or return the error of the database that kept it from that."""
        committed_at: float | None = None
        try:
            async with self._database.connection() as connection:
                try:
                    async with connection.transaction(isolation="read_committed"):
                        staged = await connection.fetchval(bulks.LOCK_STAGING, bulk.number)
                        if staged != records:
                            await self._raise_why(connection, bulk, records)
                        await self._insert(connection, bulk.number, records)
                        committed_at = await connection.fetchval(bulks.COMMIT, bulk.number, records, size, digest)
                except (*_REFUSED, *_IN_THE_WAY) as error:
                    return error
        except StorageFailure as error:
            if committed_at is None:
                raise
            return await self._outcome(id, error)
        assert committed_at is not None
        return BulkResult(
            id=id, collection=self._name, records=records, size=size, digest=digest, committed_at=committed_at
        )

    async def _insert(self, connection: Connection, bulk: int, records: int) -> None:
        target = self._target
        # What is deferred to the commit is wanted before it, and limits are for what people type.
        await connection.execute("SET LOCAL statement_timeout = 0; SET CONSTRAINTS ALL IMMEDIATE")
        moved = int((await connection.execute(target.move, bulk)).split()[-1])
        if moved != records:
            found: int = await connection.fetchval(
                f"SELECT count(*) FROM {quoted(target.staging)} WHERE bulk = $1",
                bulk,
            )
            if found != records:
                raise StagingLost(staged=records, found=found)
            raise StorageFailure(
                f"the table {target.table} took {moved} of {records} records: it has a trigger or rule"
            )
        if self._into is not None and self._into.then is not None:
            await connection.execute(self._into.then, records)

    async def _problems(self, bulk: _Bulk, records: int, error: Exception, attempt: int) -> BulkRefused | None:
        """Return which records keep a bulk from being moved; ``None``: none do by now."""
        async with self._database.connection() as connection:
            if not isinstance(error, asyncpg.RaiseError):
                found = await find_problems(connection, self._target, bulk.number)
                if found is not None or attempt < _ATTEMPTS - 2:
                    return found
            return await first_refused(connection, self._target, bulk.number, records)

    async def _outcome(self, id: str, lost: StorageFailure) -> BulkResult:
        """Find out what became of a commit whose answer was lost."""
        try:
            async with asyncio.timeout(_OUTCOME_SECONDS):
                row = await self._row(id)
        except TimeoutError:
            raise StorageFailure(
                f"the connection to the database {self._database.name} was lost during the commit, and it is not known "
                f"whether it succeeded: {lost}"
            ) from lost
        if row is None or row["state"] != "committed":
            raise StorageFailure(f"nothing was committed: {lost}") from lost
        return bulks.result_of(row, repeated=False)

    async def _row(self, id: str) -> Any:
        async def find(connection: Connection) -> Any:
            async with connection.transaction():
                return await connection.fetchrow(bulks.FIND_ID, id)

        while True:
            try:
                return await self._until_free(find)
            except StorageFailure as error:
                _log.debug("the outcome of a commit is not known yet: %s", error)
            await asyncio.sleep(_LOCKED_WAIT[1])

    async def rollback(self, id: str) -> None:
        self._bulks.pop(id, None)
        async with self._database.connection() as connection:
            ended = await connection.fetchrow(bulks.FENCE_ID, id)
        if ended is not None:
            await self._purge(ended["number"], ended["staging"])

    async def _purge_committed(self, number: int, staging: str) -> None:
        """Delete what was staged of a bulk that is visible; nothing of that can make it fail any more."""
        try:
            await self._purge(number, staging)
        except (StorageFailure, StorageFull) as error:
            _log.warning("what was staged of a bulk could not be purged; it is swept later: %s", error)

    async def _purge(self, number: int, staging: str | None) -> int:
        """Delete what is staged of a bulk that is fenced or has committed, and then what is known of a fenced one."""
        async with self._database.connection() as connection, connection.transaction():
            purged = await _delete_staged(connection, number, staging)
            await connection.execute(bulks.PURGED, number)
            await connection.execute(bulks.FORGET, number)
        return purged

    async def sweep(self, older_than: float, *, results_older_than: float | None = None) -> int:
        purged = await self._purge_dead(older_than)
        if results_older_than is not None:
            async with self._database.connection() as connection:
                await connection.execute(bulks.FORGET_RESULTS, self._name, results_older_than)
        return purged

    async def _purge_dead(self, older_than: float | None) -> int:
        """Purge bulks of servers that are gone, and of this one those that were not touched for long."""
        purged = 0
        owner = self._database.presence.owner
        committing = [bulk.number for bulk in self._bulks.values() if bulk.committing]
        async with self._database.connection() as connection, connection.transaction(isolation="read_committed"):
            dead = await connection.fetch(bulks.DEAD, self._name, owner, older_than, committing)
            for row in dead:
                if row["state"] != "committed":
                    await connection.execute(bulks.FENCE, row["number"])
        for row in dead:
            count_of_bulk = await self._purge(row["number"], row["staging"])
            if row["state"] != "committed":
                purged += count_of_bulk
        return purged


async def _delete_staged(connection: Connection, number: int, staging: str | None) -> int:
    if staging is None or await connection.fetchval("SELECT to_regclass($1)", quoted(staging)) is None:
        return 0
    return int((await connection.execute(f"DELETE FROM {quoted(staging)} WHERE bulk = $1", number)).split()[-1])


def _invalid(index: int, field: str | None, error: Exception) -> RecordProblem:
    return RecordProblem(index=index, kind=ProblemKind.INVALID, field=field, problem=str(error))
