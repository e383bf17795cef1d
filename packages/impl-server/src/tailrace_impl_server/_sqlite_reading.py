"""One statement of SQLite that runs, and its rows as records."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Lock
from time import monotonic

from tailrace_common_api import Argument
from tailrace_impl_server._row_encoding import RowEncoder

_SLICE_BYTES = 256 * 1024
_SLICE_SECONDS = 0.005
"""Time after which rows that are there are handed on."""
_LATE_SECONDS = 4 * _SLICE_SECONDS
"""Time after which a statement that has not come to its next row is not waited for with the rows before."""
_ROWS = 1024
"""Most rows that become records at once."""
_GROUP = 32
"""Most rows that are fetched between two looks at the clock. Rows need not be as large as those before them, but no
row is large and comes in no time: so this bounds what a statement can put into memory, too."""
_INTERRUPT_AGAIN = 0.02
"""Time between two attempts to interrupt a statement, in seconds."""
_BUSY_SECONDS = 30.0

_Row = tuple[object, ...]


class SqliteReading:
    """One statement that runs, in one thread at a time.

    Rows go from the statement to the reader in slices: a thread works off one of them when the reader wants it, and no
    thread waits for a reader. When the statement is silent within a slice, the reader gets what was there before that;
    the last row apart, which Python's ``sqlite3`` keeps until it knows whether there is another one.
    """

    def __init__(self, path: Path, text: str, values: Mapping[str, Argument], threads: ThreadPoolExecutor) -> None:
        """Describe the reading; nothing runs before the first rows are asked for.

        Args:
            path: The file.
            text: The statement.
            values: Its parameters.
            threads: Where it runs.
        """
        self._threads = threads
        self._job: Future[list[bytes]] | None = None
        self._waiter: asyncio.Future[list[bytes]] | None = None
        """The slice that is being worked off."""
        self._path = path
        self._text = text
        self._values = values
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._encoder: RowEncoder | None = None
        self._rows = 1
        """Most rows that become records at once next."""
        self._first = True
        self._began: float | None = None
        """When a thread began with the slice."""
        self._taking = Lock()
        """Held by whoever makes records of rows, or takes records."""
        self._fetched: list[_Row] = []
        """Rows that are no records yet. Only the thread of the slice changes this."""
        self._encoded = 0
        """How many of them have been handed on all the same."""
        self._records: list[bytes] = []
        self.ended = False
        """Whether it was ended before its last row."""

    async def next(self) -> list[bytes]:
        """Return the next rows as JSON: one at first, then what some milliseconds give; nothing at the end.

        Cancelling this does not stop the thread; :meth:`end` does.

        Raises:
            sqlite3.Error: The statement failed, or was interrupted by :meth:`end`.
        """
        waiter = self._waiter
        if waiter is None:
            self._began = None
            self._job = self._threads.submit(self._slice)
            self._waiter = waiter = asyncio.wrap_future(self._job)
            if await self._is_late(waiter) and (records := await self._hurry()):
                return records
        if not waiter.done():
            await asyncio.wait((waiter,))
        self._waiter = None
        # No thread had begun with it when it was ended.
        return [] if waiter.cancelled() else waiter.result()

    async def end(self) -> None:
        """End the statement, wherever it is, and wait until its thread has let go of it; idempotent."""
        self.ended = True
        job, waiter = self._job, self._waiter
        if job is not None and waiter is not None and not job.cancel():
            while not waiter.done():
                # Again and again: an interruption just before the statement begins to run is lost.
                if self._connection is not None:
                    self._connection.interrupt()
                await asyncio.wait((waiter,), timeout=_INTERRUPT_AGAIN)
            if not waiter.cancelled():
                # It is that of the interruption; whoever waits for the rows has it, too.
                waiter.exception()
        await asyncio.to_thread(self._release)

    async def _is_late(self, waiter: asyncio.Future[list[bytes]]) -> bool:
        """Wait for a slice; return whether a thread is at it for so long that its statement must be silent."""
        patience = _LATE_SECONDS
        while True:
            await asyncio.wait((waiter,), timeout=patience)
            if waiter.done():
                return False
            began = self._began
            if began is None:
                # All threads are at work, or the statement is looking for its first row.
                patience *= 2
            elif (patience := began + _LATE_SECONDS - monotonic()) <= 0:
                return True

    async def _hurry(self) -> list[bytes]:
        """End the slice with the next row that comes, and return what is there already."""
        if self._cursor is not None:
            # First this: a row that it does not see is among those that are taken.
            self._cursor.row_factory = self._last_row
        if not self._records and len(self._fetched) == self._encoded:
            # A thread that makes records just now ends the slice with them, by its clock.
            return []
        return await asyncio.to_thread(self._take)

    def _last_row(self, cursor: sqlite3.Cursor, row: _Row) -> object:
        self._fetched.append(row)
        raise _SliceEnded

    # In threads.

    def _slice(self) -> list[bytes]:
        cursor = self._cursor
        began = monotonic()
        if cursor is None:
            self._connection = connect_to_read(self._path)
            if self.ended:
                return []
            cursor = self._connection.execute(self._text, self._values)
            self._encoder = RowEncoder([column[0] for column in cursor.description])
            self._cursor = cursor
        cursor.row_factory = None
        self._began = began
        until = began + _SLICE_SECONDS
        count = size = 0
        while not self.ended:
            more = self._fetch(cursor, until)
            added = self._encode()
            count += len(added)
            size += sum(map(len, added))
            late = monotonic() >= until
            if not (self._first or not more or size >= _SLICE_BYTES or late):
                self._rows = min(2 * self._rows, _ROWS, 1 + _SLICE_BYTES * count // size)
                continue
            records = self._take()
            if more and not records:
                # The reader has them already, and is not to take this for the end.
                continue
            if late:
                # Less before the next look at the clock, if the rows come slowly.
                self._rows = max(1, min(self._rows, count // 4))
            self._first = False
            return records
        return []

    def _fetch(self, cursor: sqlite3.Cursor, until: float) -> bool:
        """Fetch rows, at least one; return whether there may be more of them."""
        fetched = self._fetched
        try:
            while (before := len(fetched)) < self._rows:
                wanted = min(self._rows - before, _GROUP)
                fetched.extend(islice(cursor, wanted))
                if len(fetched) < before + wanted:
                    return False
                if self.ended or monotonic() >= until:
                    break
        except _SliceEnded:
            pass
        return True

    def _encode(self) -> list[bytes]:
        """Make records of the rows, by the thread of the slice; return these."""
        assert self._encoder is not None
        with self._taking:
            added = self._encoder.encode(self._fetched[self._encoded :] if self._encoded else self._fetched)
            self._fetched.clear()
            self._encoded = 0
            self._records += added
        return added

    def _take(self) -> list[bytes]:
        """Take the records that are there, with those of the rows that are."""
        assert self._encoder is not None
        with self._taking:
            rows = self._fetched[self._encoded :]
            self._encoded += len(rows)
            records, self._records = self._records, []
            records += self._encoder.encode(rows)
        return records

    def _release(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            # A connection that is closed before would live on, with its view of the file, as long as the cursor.
            cursor.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _SliceEnded(Exception):
    """Ends the fetching of rows, behind the one that is there."""


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a file for one who only reads, in one thread at a time but not always the same one."""
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection
