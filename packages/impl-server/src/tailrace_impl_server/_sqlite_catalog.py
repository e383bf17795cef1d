"""A catalog in one SQLite file.

One thread writes: it takes all changes that wait and commits them together, so that a burst of creations costs one
commit. Reads have connections of their own in other threads; with a write-ahead log neither waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from tailrace_common_api import ConfigurationError, ListFilter, ResourceState, StorageFailure, StorageFull
from tailrace_impl_server import _sqlite_catalog_pages as pages
from tailrace_impl_server import _sqlite_catalog_statements as statements
from tailrace_impl_server._descriptor import descriptor_to_json
from tailrace_server_api import Catalog, CatalogEntry, ContextEntry, Durability, Usage

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_BATCH = 256
_READER_THREADS = 2
_CHECKED_BYTES = 32 * 1024 * 1024
"""Largest file that is checked whole before it is used; a larger one is checked while it is used."""
_BUSY_SECONDS = 60.0
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _Change:
    """A change that waits for the writing thread."""

    __slots__ = ("apply", "future", "result")

    def __init__(self, apply: Callable[[sqlite3.Connection], object], future: asyncio.Future[object]) -> None:
        self.apply = apply
        self.future = future
        self.result: object = None


_Outcome = tuple[_Change, StorageFull | StorageFailure | None]


class SqliteCatalog(Catalog):
    """Keeps entries in a file that can be thrown away: a server rebuilds it from its storage."""

    def __init__(self, path: Path, *, durability: Durability) -> None:
        """Describe the catalog; nothing is touched before :meth:`start`.

        Args:
            path: The file; made if it is not there. SQLite puts two more beside it.
            durability: With ``FSYNC`` every change is on disk when it returns.
        """
        self._path = path
        self._durability = durability
        self._changes: SimpleQueue[_Change | None] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(_READER_THREADS, thread_name_prefix="tailrace-catalog-reader")
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Its presence has the next start make the catalog anew.
        self._damage_mark = path.with_name(f"{path.name}.damaged")
        self._check: _BackgroundCheck | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        connection = await self._loop.run_in_executor(self._readers, self._open_or_recreate)
        self._writer = threading.Thread(target=self._write, args=(connection,), name="tailrace-catalog", daemon=True)
        self._writer.start()
        if await self._loop.run_in_executor(self._readers, self._is_large):
            self._check = _BackgroundCheck(self._connect, self._note_damage)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        if self._check is not None:
            self._check.stop()
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._writer is not None:
            self._changes.put(None)
            self._writer.join()

    # Opening.

    def _is_large(self) -> bool:
        return self._path.stat().st_size > _CHECKED_BYTES

    def _note_damage(self, error: sqlite3.Error) -> None:
        """Have the next start make the catalog anew, if that is what an error means; called in any thread."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE or self._damage_mark.exists():
            return
        _log.error("The catalog %s is damaged (%s); the next start of the server makes it anew", self._path, error)
        try:
            self._damage_mark.touch()
        except OSError:
            _log.exception("The damage of the catalog could not be noted down")

    def _open_or_recreate(self) -> sqlite3.Connection:
        try:
            if self._damage_mark.exists():
                raise _damage("as was seen while it was used")
            return self._open()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
                raise ConfigurationError(field="data", problem=f"cannot open {self._path}: {error}") from error
            aside = self._move_aside()
            self._damage_mark.unlink(missing_ok=True)
            _log.warning("The catalog %s is damaged (%s); it is kept as %s and made anew", self._path, error, aside)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = self._connect()
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > statements.SCHEMA_VERSION:
                raise ConfigurationError(
                    field="data",
                    problem=f"{self._path} is of version {version}; {statements.SCHEMA_VERSION} is understood",
                )
            if not self._is_large():
                _check_whole(connection)
            if version == 0:
                connection.executescript(statements.SCHEMA)
            for earlier in range(version, statements.SCHEMA_VERSION) if version else ():
                connection.executescript(statements.UPGRADES[earlier])
                _log.info("The catalog %s was made one of version %d", self._path, earlier + 1)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Made in one thread, used in one thread, closed in another when that one has ended.
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        synchronous = "FULL" if self._durability is Durability.FSYNC else "NORMAL"
        try:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self) -> Path:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            # What the log holds belongs to the damaged file and must not be applied to the next one.
            beside = self._path.with_name(self._path.name + suffix)
            if beside.exists():
                beside.rename(aside.with_name(aside.name + suffix))
        return aside

    # Writing.

    async def insert(self, entry: CatalogEntry) -> str | None:
        text = descriptor_to_json(entry.descriptor)
        return await self._change(lambda connection: statements.insert(connection, entry, text))

    async def set_state(self, id: str, state: ResourceState, ended_at: float | None, *, size: int = 0) -> None:
        await self._change(lambda connection: statements.set_state(connection, id, state, ended_at, size))

    async def insert_context(self, entry: ContextEntry) -> None:
        await self._change(lambda connection: statements.insert_context(connection, entry))

    async def close_context(self, id: str, closed_at: float) -> None:
        await self._change(lambda connection: statements.close_context(connection, id, closed_at))

    async def delete_empty_contexts(self, before: float, *, limit: int) -> tuple[str, ...]:
        return await self._change(lambda connection: statements.delete_empty_contexts(connection, before, limit))

    async def delete(self, id: str) -> None:
        await self._change(lambda connection: statements.delete(connection, id))

    async def _change(self, apply: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._loop is None or self._closed:
            raise StorageFailure("the catalog is not open")
        change = _Change(apply, self._loop.create_future())
        self._changes.put(change)
        result: _T = await change.future  # type: ignore[assignment]  # set to what apply returns
        return result

    def _write(self, connection: sqlite3.Connection) -> None:
        """Commit what waits, again and again, until the catalog is closed."""
        assert self._loop is not None
        closing = False
        try:
            while not closing:
                batch: list[_Change] = []
                change = self._changes.get()
                try:
                    while change is not None:
                        batch.append(change)
                        if len(batch) == _BATCH:
                            break
                        change = self._changes.get_nowait()
                except Empty:
                    pass
                closing = change is None
                if batch:
                    outcomes = self._committed(connection, batch)
                    try:
                        self._loop.call_soon_threadsafe(_deliver, outcomes)
                    except RuntimeError:
                        _log.debug("the event loop of the catalog is closed")
        finally:
            connection.close()

    def _committed(self, connection: sqlite3.Connection, batch: list[_Change]) -> list[_Outcome]:
        try:
            return _commit(connection, batch, self._note_damage)
        except Exception as error:  # noqa: BLE001 - who waits is told.
            # The thread serves everyone: without it all who come later would wait for ever.
            _log.exception("changes of the catalog failed unexpectedly")
            return [(change, StorageFailure(f"the catalog cannot be changed: {error!r}")) for change in batch]

    # Reading.

    async def get(self, id: str) -> CatalogEntry | None:
        return await self._read(lambda connection: statements.get(connection, id))

    async def find_key(self, principal: str, key: str) -> CatalogEntry | None:
        return await self._read(lambda connection: statements.find_key(connection, principal, key))

    async def list(self, filter: ListFilter, *, after: str | None, limit: int) -> tuple[CatalogEntry, ...]:
        return await self._read(lambda connection: pages.page(connection, filter, after, limit))

    async def unfinished(self) -> tuple[str, ...]:
        return await self._read(statements.unfinished)

    async def ended_before(self, state: ResourceState, before: float, *, limit: int) -> tuple[str, ...]:
        return await self._read(lambda connection: statements.ended_before(connection, state, before, limit))

    async def known(self) -> frozenset[str]:
        return await self._read(statements.known)

    async def usage(self) -> tuple[Usage, ...]:
        return await self._read(statements.usage)

    async def unfinished_in(self, context: str) -> tuple[str, ...]:
        return await self._read(lambda connection: statements.unfinished_in(connection, context))

    async def get_context(self, id: str) -> ContextEntry | None:
        return await self._read(lambda connection: statements.get_context(connection, id))

    async def open_contexts(self) -> int:
        return await self._read(statements.open_contexts)

    async def _read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._loop is None or self._closed:
            raise StorageFailure("the catalog is not open")
        return await self._loop.run_in_executor(self._readers, self._query, query)

    def _query(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
            if connection is None:
                connection = self._connect()
                self._own.connection = connection
                self._connections.append(connection)
            return query(connection)
        except sqlite3.Error as error:
            self._note_damage(error)
            raise StorageFailure(f"the catalog cannot be read: {error}") from error


_INTERRUPT_AGAIN = 0.05
"""Time between two attempts to interrupt a check, in seconds."""


class _BackgroundCheck:
    """Looks through a whole catalog in a thread of its own while it is used."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], note_damage: Callable[[sqlite3.Error], None]) -> None:
        self._connect = connect
        self._note_damage = note_damage
        self._connection: sqlite3.Connection | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tailrace-catalog-check", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the check, wherever it is."""
        while self._thread.is_alive():
            with self._lock:
                self._stopping = True
                if self._connection is not None:
                    self._connection.interrupt()
            # An interruption between two statements is lost: the next one ends the statement that has begun.
            self._thread.join(_INTERRUPT_AGAIN)

    def wait(self) -> None:
        """Wait until the whole catalog has been looked through."""
        self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
            with self._lock:
                if self._stopping:
                    return
                self._connection = connection
            _check_whole(connection)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
                self._note_damage(error)
        finally:
            with self._lock:
                self._connection = None
            if connection is not None:
                connection.close()


def _check_whole(connection: sqlite3.Connection) -> None:
    """Raise an error that means damage unless the whole file is as it should be."""
    found: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _damage(found)


def _damage(problem: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(problem)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _commit(
    connection: sqlite3.Connection, batch: list[_Change], note_damage: Callable[[sqlite3.Error], None]
) -> list[_Outcome]:
    """Apply changes in one transaction; when that fails, each in its own, so that each gets its own outcome."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for change in batch:
            change.result = change.apply(connection)
        connection.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - the thread serves everyone; the one who waits is told.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(batch) > 1:
            return [outcome for change in batch for outcome in _commit(connection, [change], note_damage)]
        if isinstance(error, sqlite3.Error):
            note_damage(error)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            # No defect, and told often: whoever wants to change anything meets it.
            _log.warning("a change of the catalog failed: %s", error)
            return [(batch[0], StorageFull(f"the server cannot change its catalog: {error}"))]
        _log.warning("a change of the catalog failed", exc_info=error)
        return [(batch[0], StorageFailure(f"the catalog cannot be changed: {error}"))]
    return [(change, None) for change in batch]


def _deliver(outcomes: list[_Outcome]) -> None:
    for change, error in outcomes:
        # Who asked may have been cancelled meanwhile.
        if change.future.done():
            continue
        if error is None:
            change.future.set_result(change.result)
        else:
            change.future.set_exception(error)
