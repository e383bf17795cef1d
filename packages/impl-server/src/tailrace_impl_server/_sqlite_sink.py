"""A sink on SQLite: staged in a file of its own, moved by one INSERT ... SELECT between the files."""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

from tailrace_common_api import (
    JSON,
    BulkConflict,
    BulkResult,
    ProblemKind,
    RecordProblem,
    StagingLost,
    StorageFailure,
    StorageFull,
)
from tailrace_impl_server import _sqlite_bulks as bulks
from tailrace_impl_server._bulk_endings import lost_to_another, rolled_back, taken_over
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._sql_tables import RecordTable, field_columns, problems_found, staged_columns
from tailrace_impl_server._sqlite_problems import dangling_problems, find_problems
from tailrace_impl_server._sqlite_target import POSITION_BITS, Target, places, prepare_fields, prepare_records
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import BulkOrigin, RecordSink, StagedBatch

_log = logging.getLogger(__name__)

_BLOCK = 100
"""Rows of one statement: between two of them the thread may have to wait for its turn."""
_SMALL = 20_000
"""Records that are purged before a commit is answered; the rows of more are purged behind it."""


class _Bulk:
    """A bulk that this server stages."""

    __slots__ = ("committing", "number", "origin", "staged")

    def __init__(self, number: int, origin: BulkOrigin) -> None:
        self.number = number
        self.origin = origin
        self.staged = 0
        self.committing: asyncio.Task[BulkResult] | None = None


class SqliteSink(RecordSink):
    """Takes the bulks of one collection into one table of a file.

    Only the final transaction touches that file, and it changes no other: so a crash leaves all of a bulk with its
    result there, or nothing. What is staged is worth nothing after a crash, and is purged by the next start.
    """

    def __init__(
        self,
        name: str,
        file: SqliteThread,
        staging: SqliteThread,
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
            file: Where its table is; started and closed with the sink.
            staging: Another file, for staging; the same for every sink on ``file``. Started and closed with the sink.
            table: A table that is there. Without it, and without ``into``, the table ``name`` is made for whole
                records: ``position``, ``key``, ``record``.
            columns: Which field goes to which column of ``table``, or names that both have; ``None`` for every column.
                Fields that go nowhere are left out; those that are not there are null, or the default of a column that
                cannot be null.
            content_type: Content type of whole records: JSON is kept as text, anything else as bytes.
            into: A table for whole records in place of that of a collection.
            committed: Called on the event loop when a bulk has become visible.

        Raises:
            ConfigurationError: ``columns`` make no sense.
        """
        self._name = name
        self._file = file
        self._staging = staging
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
        await self._file.start()
        try:
            await self._staging.start()
            try:
                self._target_found = await self._file.run(self._prepare)
                layout = self._target.layout
                await self._staging.run(functools.partial(bulks.make_staging, layout=layout))
                await self._purge_dead(older_than=None)
            except BaseException:
                self._target_found = None
                await self._staging.close()
                raise
        except BaseException:
            await self._file.close()
            raise

    def _prepare(self, connection: sqlite3.Connection) -> Target:
        bulks.make_results(connection)
        if self._table is None:
            return prepare_records(connection, self._name, self._into, self._content_type)
        return prepare_fields(connection, self._name, self._table, self._fields)

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
        await self._staging.close()
        await self._file.close()

    async def begin(self, origin: BulkOrigin) -> BulkResult | None:
        staging = self._target.staging
        begun = await self._staging.run(lambda connection: bulks.begin(connection, self._name, origin, staging))
        if origin.key is not None:
            find = functools.partial(bulks.find_result, principal=origin.principal, key=origin.key)
            # The other bulk of this key may be committing: what becomes of it is known when its writing is over.
            row = await (self._file.run(find) if begun.fenced else self._file.read(find))
            if row is not None:
                await self._staging.run(functools.partial(bulks.forget, number=begun.number))
                if (row["collection"], row["priority"]) != (self._name, origin.priority):
                    raise BulkConflict(id=row["id"])
                return bulks.result_of(row)
        for number, its_staging in begun.fenced:
            self._tasks.start(self._purge_quietly(number, its_staging), "tailrace-purge")
        self._bulks[origin.id] = _Bulk(begun.number, origin)
        return None

    async def stage(self, id: str, batch: StagedBatch) -> None:
        target = self._target
        bulk = self._known(id)
        if target.fields:
            columns = staged_columns(
                list(target.fields.values()), target.kinds, batch.first, batch.values, batch.batch.data
            )
        else:
            columns = [batch.batch.keys or repeat(None), batch.batch.data]
        size = len(batch.batch.data)
        first = (bulk.number << POSITION_BITS) + batch.first
        rows = list(zip(range(first, first + size), repeat(time.time()), *columns, strict=False))

        def insert(connection: sqlite3.Connection) -> None:
            staged = bulks.count(connection, bulk.number, bulk.staged, size)
            if staged is None:
                raise lost_to_another(bulk.origin.key)
            if staged != bulk.staged:
                raise StagingLost(staged=bulk.staged, found=staged)
            try:
                _insert(connection, target, rows)
            except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, OverflowError) as error:
                raise _misfit(connection, target, batch.first, rows, error) from error

        await self._staging.run(insert)
        bulk.staged += size

    def _known(self, id: str) -> _Bulk:
        if id not in self._bulks:
            raise rolled_back()
        return self._bulks[id]

    async def commit(self, id: str, *, records: int, size: int, digest: bytes) -> BulkResult:
        target = self._target
        bulk = self._known(id)

        def move(connection: sqlite3.Connection) -> BulkResult:
            result = BulkResult(
                id=id,
                collection=self._name,
                records=records,
                size=size,
                digest=digest,
                committed_at=time.time(),
            )
            self._move(connection, target, bulk, records)
            bulks.store_result(connection, bulk.origin, result)
            return result

        # The thread cannot be stopped: a rollback waits for what becomes of it.
        bulk.committing = self._tasks.start(self._file.run(move, alone=True, attach=self._staging.path))
        result = await asyncio.shield(bulk.committing)
        self._bulks.pop(id, None)
        purging = self._tasks.start(self._purge_quietly(bulk.number, target.staging), "tailrace-purge")
        if self._committed is not None:
            self._committed()
        if records <= _SMALL:
            await asyncio.shield(purging)
        return result

    def _move(self, connection: sqlite3.Connection, target: Target, bulk: _Bulk, records: int) -> None:
        """Move what is staged, in the final transaction."""
        staged = bulks.staged(connection, bulk.number)
        if staged is None:
            raise lost_to_another(bulk.origin.key)
        if bulks.has_result(connection, bulk.origin):
            raise taken_over()
        if staged != records:
            raise StagingLost(staged=records, found=staged)
        try:
            moved = connection.execute(target.move(), places(bulk.number, 0, 1 << POSITION_BITS)).rowcount
        except sqlite3.IntegrityError as error:
            refused = find_problems(connection, target, bulk.number, records)
            raise refused or error from error
        if moved != records:
            found = bulks.found(connection, target.staging, bulk.number)
            if found != records:
                raise StagingLost(staged=records, found=found)
            raise StorageFailure(f"the table {target.table} took {moved} of {records} records: it has a trigger")
        if target.deferred and (refused := dangling_problems(connection, target, bulk.number, records)):
            raise refused
        if self._into is not None and self._into.then is not None:
            connection.execute(self._into.then, (records,))

    async def rollback(self, id: str) -> None:
        bulk = self._bulks.pop(id, None)
        found: tuple[int, str] | None
        try:
            found = await self._staging.run(functools.partial(bulks.fence, id=id))
        except StorageFull:
            if bulk is None:
                raise
            # It is gone from those that run here: nobody stages or commits it any more.
            found = (bulk.number, self._target.staging)
        if bulk is not None and bulk.committing is not None:
            await asyncio.wait([bulk.committing])
        if found is not None:
            await self._purge(*found)

    async def _purge_quietly(self, number: int, staging: str) -> None:
        """Delete what was staged of a bulk that has ended; nothing of that makes anybody fail."""
        try:
            await self._purge(number, staging)
        except (StorageFailure, StorageFull) as error:
            _log.warning("what was staged of a bulk could not be purged; it is swept later: %s", error)

    async def _purge(self, number: int, staging: str) -> int:
        """Delete what is staged of a bulk, in pieces between which others write, and then what is known of the bulk.

        Deleting needs room too. Where there is none, everything goes at once, as soon as no other bulk runs.
        """
        purged, more = 0, True
        try:
            while more:
                deleted = await self._staging.run(functools.partial(bulks.delete_some, staging=staging, number=number))
                purged += deleted
                more = deleted > 0
            await self._staging.run(functools.partial(bulks.forget, number=number))
        except StorageFull:
            self._staging.ended.add(number)
            if not await self._empty():
                raise
        self._staging.ended.discard(number)
        if self._staging.ended:
            # Others found no room before, and this one may have been the last that ran.
            await self._empty()
        return purged

    async def _empty(self) -> bool:
        """Empty the file for staging; return whether that was possible: it is if no bulk runs there."""
        emptied = await self._staging.empty(functools.partial(bulks.all_ended, ended=self._staging.ended))
        if emptied:
            _log.warning("the disk is full: the file for staging was emptied, where no bulk runs")
            self._staging.ended.clear()
        return emptied

    async def sweep(self, older_than: float, *, results_older_than: float | None = None) -> int:
        purged = await self._purge_dead(older_than)
        if results_older_than is not None:
            before = time.time() - results_older_than
            await self._file.run(functools.partial(bulks.forget_results, collection=self._name, before=before))
        return purged

    async def _purge_dead(self, older_than: float | None) -> int:
        before = None if older_than is None else time.time() - older_than
        staging = self._target.staging
        # However long it takes, or waits for the writing thread.
        committing = {bulk.number for bulk in self._bulks.values() if bulk.committing is not None}
        fence = functools.partial(
            bulks.fence_dead,
            collection=self._name,
            staging=staging,
            before=before,
            spared=committing,
            ended=self._staging.ended,
        )
        try:
            dead = await self._staging.run(fence)
        except StorageFull:
            if not await self._empty():
                raise
            return 0
        return sum([await self._purge(number, its_staging) for number, its_staging in dead])


def _insert(connection: sqlite3.Connection, target: Target, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows with few statements: each lets other threads run, and waits for its turn when it has ended."""
    width = len(target.staged) + 2
    whole = len(rows) - len(rows) % _BLOCK
    flat = list(chain.from_iterable(rows))
    statement = target.insert(_BLOCK)
    for start in range(0, whole * width, _BLOCK * width):
        connection.execute(statement, flat[start : start + _BLOCK * width])
    if whole < len(rows):
        connection.execute(target.insert(len(rows) - whole), flat[whole * width :])


def _misfit(
    connection: sqlite3.Connection, target: Target, first: int, rows: Sequence[tuple[Any, ...]], error: Exception
) -> Exception:
    """Return which of some rows the file cannot hold; the transaction is undone afterwards."""
    statement = target.insert(1)
    for index, row in enumerate(rows, first):
        with suppress(sqlite3.Error):
            connection.execute("DELETE FROM main." + '"' + target.staging + '"' + " WHERE place = ?", row[:1])
        try:
            connection.execute(statement, row)
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, OverflowError) as single:
            problem = RecordProblem(index=index, kind=ProblemKind.INVALID, field=None, problem=str(single))
            return problems_found([problem])
    return error
