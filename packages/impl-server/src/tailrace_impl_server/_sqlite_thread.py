"""One SQLite file with one thread that writes it.

What waits to be written is committed together, so that a burst of small changes costs one synchronisation of the disk.
Reads have a thread and a connection of their own: with a write-ahead log neither waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from tailrace_common_api import ConfigurationError, StorageFailure, StorageFull, TailraceError
from tailrace_impl_server._sqlite_emptying import Emptied, empty_file
from tailrace_server_api import Durability

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_BATCH = 256
"""Most pieces of work that are committed together."""
_BUSY_SECONDS = 30.0
"""Time that a lock of another process on the file is waited for."""


class _Work:
    """A piece of work that waits for the writing thread."""

    __slots__ = ("alone", "apply", "attach", "error", "future", "result", "unused")

    def __init__(
        self,
        apply: Callable[[sqlite3.Connection], object],
        future: asyncio.Future[object],
        *,
        alone: bool,
        attach: Path | None,
    ) -> None:
        self.apply = apply
        self.future = future
        self.alone = alone
        self.attach = attach
        self.result: object = None
        self.error: Exception | None = None
        # Work that empties the file asks this first.
        self.unused: Callable[[sqlite3.Connection], bool] | None = None


class SqliteThread:
    """Writes and reads one file. Belongs to one event loop and never blocks it.

    Several ends share one: each starts and closes it, and it is open from the first start to the last close.
    """

    def __init__(
        self, path: Path, *, durability: Durability, setup: Callable[[sqlite3.Connection], None] | None = None
    ) -> None:
        """Describe the file; nothing is touched before :meth:`start`.

        Args:
            path: The file; made if it is not there. SQLite puts two more beside it.
            durability: With ``FSYNC`` a change is on disk when it is answered.
            setup: Called in the writing thread, outside of a transaction, when the file has been opened: makes tables.
        """
        self.path = path
        """The file."""
        self.ended: set[int] = set()
        """Numbers of what has ended and could not be deleted from the file yet, kept for all who share it."""
        self._durability = durability
        self._setup = setup
        self._starts = 0
        self._changing = asyncio.Lock()
        self._open: _OpenFile | None = None

    async def start(self) -> None:
        """Open the file, unless it is open.

        Raises:
            ConfigurationError: It cannot be opened, or is no database.
        """
        async with self._changing:
            if self._open is None:
                loop = asyncio.get_running_loop()
                opened = _OpenFile(self.path, self._durability, loop)
                await asyncio.to_thread(opened.begin, self._setup)
                self._open = opened
            self._starts += 1

    async def close(self) -> None:
        """Close the file if everyone who started it has closed it; once for each start. What waits is done first."""
        async with self._changing:
            if self._starts:
                self._starts -= 1
            opened = self._open
            if self._starts or opened is None:
                return
            self._open = None
            await asyncio.to_thread(opened.end)

    async def run(
        self, work: Callable[[sqlite3.Connection], _T], *, alone: bool = False, attach: Path | None = None
    ) -> _T:
        """Do ``work`` in the writing thread and return what it returns, when it has been committed.

        It shares a transaction with others and may be done again from its beginning when that cannot be committed; it
        must neither begin nor end one. What it did before it raised is undone. When it runs, cancelling is too late.

        Args:
            work: Called with the connection.
            alone: Whether it has a transaction of its own, because it takes long: nothing waits for it that came first.
            attach: Another file, which is there, for work that is alone: its tables can be read under ``attached``.

        Raises:
            StorageFull: The disk is full.
            StorageFailure: The file is not open, or does not work, or others have locked it for too long.
            Exception: What ``work`` raises, errors of SQLite apart.
        """
        if self._open is None:
            raise StorageFailure(f"the database {self.path.name} is not open")
        change = _Work(work, asyncio.get_running_loop().create_future(), alone=alone, attach=attach)
        self._open.changes.put(change)
        result: _T = await change.future  # type: ignore[assignment]  # set to what the work returns
        return result

    async def empty(self, unused: Callable[[sqlite3.Connection], bool]) -> bool:
        """Empty the file, its tables apart, which needs no room on the disk; return whether that was possible.

        It is not while ``unused`` says no, or while anybody else has the file open. No number of a row is given again.

        Args:
            unused: Called with a connection, while nobody can write.

        Raises:
            StorageFailure: The file is not open, or could not be opened again.
        """
        opened = self._open
        if opened is None:
            raise StorageFailure(f"the database {self.path.name} is not open")
        change = _Work(lambda _: None, asyncio.get_running_loop().create_future(), alone=True, attach=None)
        change.unused = unused
        opened.changes.put(change)
        return bool(await change.future)

    async def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do ``work`` in the reading thread, with a connection that cannot write, and return what it returns.

        It sees one state of the file, all that :meth:`run` has answered included. Raises as :meth:`run` does.
        """
        if self._open is None:
            raise StorageFailure(f"the database {self.path.name} is not open")
        return await asyncio.get_running_loop().run_in_executor(self._open.reader, self._open.query, work)


class _OpenFile:
    """The threads and connections of a file, from its opening to its closing."""

    def __init__(self, path: Path, durability: Durability, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._durability = durability
        self._loop = loop
        self.changes: SimpleQueue[_Work | None] = SimpleQueue()
        self.reader = ThreadPoolExecutor(1, thread_name_prefix=f"tailrace-read-{path.name}")
        self._reading: sqlite3.Connection | None = None
        self._writer: threading.Thread | None = None
        self._emptied: Emptied | None = None

    # Opening and closing; blocking.

    def begin(self, setup: Callable[[sqlite3.Connection], None] | None) -> None:
        """Open the file and start to write."""
        connection: sqlite3.Connection | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connect()
            connection.execute("PRAGMA journal_mode = WAL")
            if setup is not None:
                setup(connection)
            self._reading = self._connect()
            self._reading.execute("PRAGMA query_only = ON")
        except BaseException as error:
            if connection is not None:
                connection.close()
            self.reader.shutdown()
            if isinstance(error, sqlite3.Error | OSError):
                problem = f"cannot open {self._path}: {error}"
                raise ConfigurationError(field="databases", problem=problem) from error
            raise
        name = f"tailrace-write-{self._path.name}"
        self._writer = threading.Thread(target=self._write, args=(connection,), name=name, daemon=True)
        self._writer.start()

    def end(self) -> None:
        """Do what waits, and close the file."""
        self.reader.shutdown()
        if self._reading is not None:
            self._reading.close()
        self.changes.put(None)
        if self._writer is not None:
            self._writer.join()

    def _connect(self) -> sqlite3.Connection:
        # Made in one thread, used in one thread, closed in another when that one has ended.
        connection = sqlite3.connect(
            self._path.absolute().as_uri(),
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            # For files that are attached.
            uri=True,
        )
        synchronous = "FULL" if self._durability is Durability.FSYNC else "NORMAL"
        try:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    # Reading.

    def query(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do a piece of work in the reading thread."""
        connection = self._reading
        if connection is None:
            raise StorageFailure(f"the database {self._path.name} is being opened again")
        try:
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._failure(error, "read") from error

    # Writing.

    def _write(self, connection: sqlite3.Connection) -> None:
        """Commit what waits, again and again, until the file is closed."""
        try:
            following: _Work | None = self.changes.get()
            while following is not None:
                batch = [following]
                following = self._fill(batch)
                if batch[0].unused is None:
                    connection = self._reopened(connection)
                    self._committed(connection, batch)
                else:
                    connection = self._empty(connection, batch[0], batch[0].unused)
                try:
                    self._loop.call_soon_threadsafe(_deliver, batch)
                except RuntimeError:
                    _log.debug("the event loop of %s is closed", self._path)
                if following is batch[-1]:
                    following = self.changes.get()
        finally:
            connection.close()

    def _empty(
        self, connection: sqlite3.Connection, work: _Work, unused: Callable[[sqlite3.Connection], bool]
    ) -> sqlite3.Connection:
        """Close the file, empty it, and return a new connection."""
        try:
            if self._emptied is not None or not unused(connection):
                # It is empty still, or in use: nothing is closed in vain.
                work.result = self._emptied is not None
                return connection
            # In the thread that reads, which is between two pieces of work then.
            reading, self._reading = self._reading, None
            if reading is not None:
                self.reader.submit(reading.close).result()
            connection.close()
            self._emptied = empty_file(self._path, unused)
            work.result = self._emptied is not None
        except Exception as error:  # noqa: BLE001 - as in _committed
            work.error = StorageFailure(f"cannot empty the database {self._path.name}: {error}")
        connection = self._reopened(connection)
        if self._emptied is not None:
            # Others may have taken the room meanwhile: then the tables are made by the first change that finds some.
            self._committed(connection, [_Work(lambda _: None, work.future, alone=True, attach=None)])
        return connection

    def _reopened(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Return a new connection if the file is closed, or the old one while it cannot be opened."""
        if self._reading is not None:
            return connection
        opened: sqlite3.Connection | None = None
        try:
            opened = self._connect()
            opened.execute("PRAGMA journal_mode = WAL")
            reading = self._connect()
            reading.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            _log.warning("cannot open %s again; it is tried with the next change: %s", self._path, error)
            if opened is not None:
                opened.close()
            return connection
        self._reading = reading
        return opened

    def _fill(self, batch: list[_Work]) -> _Work | None:
        """Add what waits to a batch; return what comes after it, the last of the batch if that is not known yet."""
        while not batch[0].alone and len(batch) < _BATCH:
            try:
                work = self.changes.get_nowait()
            except Empty:
                break
            if work is None or work.alone:
                return work
            batch.append(work)
        return batch[-1]

    def _committed(self, connection: sqlite3.Connection, batch: list[_Work]) -> None:
        """Do pieces of work in one transaction; when that fails, each in its own, so that each gets its own outcome."""
        attach = batch[0].attach
        try:
            if attach is not None:
                # Nothing of it can be changed, and so no lock is taken on it: others write it meanwhile.
                connection.execute("ATTACH ? AS attached", (f"{attach.absolute().as_uri()}?mode=ro",))
            connection.execute("BEGIN IMMEDIATE")
            if self._emptied is not None:
                self._emptied.restore(connection)
            for work in batch:
                self._apply(connection, work, nested=len(batch) > 1)
            connection.execute("COMMIT")
            self._emptied = None
        except Exception as error:  # noqa: BLE001 - the thread serves everyone; the one who waits is told.
            with suppress(sqlite3.ProgrammingError):
                # Of a file that could not be opened again the connection is closed.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if len(batch) > 1:
                for work in batch:
                    self._committed(connection, [work])
                return
            if isinstance(error, sqlite3.Error):
                error = self._failure(error, "change")
            batch[0].error = error
        finally:
            if attach is not None:
                _detach(connection)

    def _apply(self, connection: sqlite3.Connection, work: _Work, *, nested: bool) -> None:
        work.error = None
        if work.future.cancelled():
            return
        if not nested:
            work.result = work.apply(connection)
            return
        connection.execute("SAVEPOINT work")
        try:
            work.result = work.apply(connection)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not connection.in_transaction:
                # SQLite has undone everything, of the others too.
                raise
            connection.execute("ROLLBACK TO work")
            work.error = self._failure(error, "change") if isinstance(error, sqlite3.Error) else error
        connection.execute("RELEASE work")

    def _failure(self, error: sqlite3.Error, doing: str) -> TailraceError:
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        kind = StorageFull if full else StorageFailure
        # Clients read that: which folders the server has is none of their business.
        failure = kind(f"the server cannot {doing} the database {self._path.name}: {error}")
        failure.__cause__ = error
        return failure


def _detach(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("DETACH attached")
    except sqlite3.Error as error:
        # It was not attached: who asked for it is told.
        _log.debug("nothing to detach: %s", error)


def _deliver(batch: list[_Work]) -> None:
    for work in batch:
        # Who asked may have been cancelled meanwhile.
        if work.future.done():
            continue
        if work.error is None:
            work.future.set_result(work.result)
        else:
            work.future.set_exception(work.error)
