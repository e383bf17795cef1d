"""What SQLite keeps of bulks: in the file for staging those that run, beside the records the results of the others.

Each function runs in the thread that writes the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from tailrace_common_api import BulkResult
from tailrace_impl_server._sql_tables import quoted
from tailrace_impl_server._sqlite_target import POSITION_BITS
from tailrace_server_api import BulkOrigin

_PIECE = 10_000
"""Records that are purged in one transaction."""
_OWN = os.urandom(8).hex()
"""Tells this process from an earlier one of its number."""

_RUNNING = """
CREATE TABLE IF NOT EXISTS tailrace_bulks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    collection TEXT NOT NULL,
    principal TEXT NOT NULL,
    key TEXT,
    priority INTEGER NOT NULL,
    -- The process that stages, and the table.
    owner TEXT NOT NULL,
    staging TEXT NOT NULL,
    fenced INTEGER NOT NULL DEFAULT 0,
    staged INTEGER NOT NULL DEFAULT 0,
    touched_at REAL NOT NULL
)
"""
_RUNNING_KEY = """
CREATE UNIQUE INDEX IF NOT EXISTS tailrace_bulks_key ON tailrace_bulks (principal, key) WHERE key IS NOT NULL
"""
_RESULTS = """
CREATE TABLE IF NOT EXISTS tailrace_results (
    principal TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    collection TEXT NOT NULL,
    priority INTEGER NOT NULL,
    records INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    committed_at REAL NOT NULL,
    PRIMARY KEY (principal, key)
) WITHOUT ROWID
"""
_FIELDS = ("id", "collection", "priority", "records", "size", "digest", "committed_at")


class Begun(NamedTuple):
    """A bulk that was begun, and those that it has fenced: their numbers and tables for staging."""

    number: int
    fenced: list[tuple[int, str]]


def make_staging(connection: sqlite3.Connection, *, layout: str) -> None:
    """Make the tables of a file for staging."""
    for statement in (_RUNNING, _RUNNING_KEY, layout):
        connection.execute(statement)


def make_results(connection: sqlite3.Connection) -> None:
    """Make the table of the results."""
    connection.execute(_RESULTS)


def begin(connection: sqlite3.Connection, collection: str, origin: BulkOrigin, staging: str) -> Begun:
    """Begin a bulk and fence another one of its key."""
    fenced: list[tuple[int, str]] = []
    if origin.key is not None:
        fenced = connection.execute(
            "UPDATE tailrace_bulks SET fenced = 1, key = NULL WHERE principal = ? AND key = ? "
            "RETURNING number, staging",
            (origin.principal, origin.key),
        ).fetchall()
    cursor = connection.execute(
        "INSERT INTO tailrace_bulks (id, collection, principal, key, priority, owner, staging, touched_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            origin.id,
            collection,
            origin.principal,
            origin.key,
            origin.priority,
            _own(),
            staging,
            time.time(),
        ),
    )
    assert cursor.lastrowid is not None
    return Begun(cursor.lastrowid, fenced)


def count(connection: sqlite3.Connection, number: int, before: int, size: int) -> int | None:
    """Count records of a bulk that has as many as are known; return how many it had, ``None`` if it is fenced."""
    cursor = connection.execute(
        "UPDATE tailrace_bulks SET staged = staged + ?, touched_at = ? WHERE number = ? AND NOT fenced AND staged = ?",
        (size, time.time(), number, before),
    )
    if cursor.rowcount:
        return before
    row = connection.execute("SELECT staged FROM tailrace_bulks WHERE number = ? AND NOT fenced", (number,)).fetchone()
    return None if row is None else int(row[0])


def staged(connection: sqlite3.Connection, number: int) -> int | None:
    """Return how many records were counted of a bulk, seen from the file of the results; ``None`` if it is fenced."""
    row = connection.execute(
        "SELECT staged FROM attached.tailrace_bulks WHERE number = ? AND NOT fenced", (number,)
    ).fetchone()
    return None if row is None else int(row[0])


def found(connection: sqlite3.Connection, staging: str, number: int) -> int:
    """Return how many records are there of a bulk, seen from the file of the results."""
    row = connection.execute(
        f"SELECT count(*) FROM attached.{quoted(staging)} WHERE place >= ? AND place < ?",
        (number << POSITION_BITS, (number + 1) << POSITION_BITS),
    ).fetchone()
    return int(row[0])


def fence(connection: sqlite3.Connection, *, id: str) -> tuple[int, str] | None:
    """Keep a bulk from being staged and committed; return its number and table, ``None`` if it does not run."""
    row: tuple[int, str] | None = connection.execute(
        "UPDATE tailrace_bulks SET fenced = 1, key = NULL WHERE id = ? RETURNING number, staging", (id,)
    ).fetchone()
    return row


def fence_dead(
    connection: sqlite3.Connection,
    *,
    collection: str,
    staging: str,
    before: float | None,
    spared: Set[int],
    ended: Set[int],
) -> list[tuple[int, str]]:
    """Fence the bulks of a collection whose process is gone, or that were not touched since ``before`` by this one.

    Those in ``spared`` are left alone, and those that have ``ended`` are fenced in any case.
    """
    rows = connection.execute(
        "SELECT number, staging, owner, touched_at FROM tailrace_bulks WHERE collection = ?", (collection,)
    ).fetchall()
    dead: list[tuple[int, str]] = []
    for number, its_staging, owner, touched_at in rows:
        if number in spared:
            continue
        idle = before is not None and touched_at <= before
        if number in ended or (idle if owner == _own() else not _is_alive(owner)):
            connection.execute("UPDATE tailrace_bulks SET fenced = 1, key = NULL WHERE number = ?", (number,))
            dead.append((number, its_staging))
    return dead + _orphans(connection, staging)


def all_ended(connection: sqlite3.Connection, *, ended: Set[int]) -> bool:
    """Whether no bulk in a file for staging runs: each is fenced, or among ``ended``, or its process is gone."""
    rows = connection.execute("SELECT number, owner FROM tailrace_bulks WHERE NOT fenced").fetchall()
    return all(number in ended or (owner != _own() and not _is_alive(owner)) for number, owner in rows)


def _orphans(connection: sqlite3.Connection, staging: str) -> list[tuple[int, str]]:
    """Return the bulks that have records in a table, and of which nothing else is known."""
    orphans: list[tuple[int, str]] = []
    place = 0
    while (row := _first_place(connection, staging, place)) is not None:
        number = row >> POSITION_BITS
        if connection.execute("SELECT 1 FROM tailrace_bulks WHERE number = ?", (number,)).fetchone() is None:
            orphans.append((number, staging))
        place = (number + 1) << POSITION_BITS
    return orphans


def _first_place(connection: sqlite3.Connection, staging: str, place: int) -> int | None:
    row: Any = connection.execute(f"SELECT min(place) FROM {quoted(staging)} WHERE place >= ?", (place,)).fetchone()
    return None if row[0] is None else int(row[0])


def _own() -> str:
    return f"{os.getpid()} {_OWN}"


def _is_alive(owner: str) -> bool:
    process = int(owner.partition(" ")[0])
    if process == os.getpid():
        # An earlier one had the number that this one has.
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It is there, and somebody else's.
        return True
    return True


def delete_some(connection: sqlite3.Connection, *, staging: str, number: int) -> int:
    """Delete some of the records that are staged of a bulk; return how many."""
    first = _first_place(connection, staging, number << POSITION_BITS)
    if first is None or first >> POSITION_BITS != number:
        return 0
    end = min(first + _PIECE, (number + 1) << POSITION_BITS)
    return connection.execute(f"DELETE FROM {quoted(staging)} WHERE place >= ? AND place < ?", (first, end)).rowcount


def forget(connection: sqlite3.Connection, *, number: int) -> None:
    """Forget a bulk that has ended."""
    connection.execute("DELETE FROM tailrace_bulks WHERE number = ?", (number,))


def has_result(connection: sqlite3.Connection, origin: BulkOrigin) -> bool:
    """Whether another bulk has committed under the same key."""
    return origin.key is not None and find_result(connection, principal=origin.principal, key=origin.key) is not None


def find_result(connection: sqlite3.Connection, *, principal: str, key: str) -> Mapping[str, Any] | None:
    """Return what is known of the bulk that has committed under a key."""
    row = connection.execute(
        f"SELECT {', '.join(_FIELDS)} FROM tailrace_results WHERE principal = ? AND key = ?", (principal, key)
    ).fetchone()
    return None if row is None else dict(zip(_FIELDS, row, strict=True))


def store_result(connection: sqlite3.Connection, origin: BulkOrigin, result: BulkResult) -> None:
    """Keep the result of a bulk that has a key, in the transaction that makes it visible."""
    if origin.key is None:
        return
    row = (result.id, result.collection, origin.priority, result.records, result.size, result.digest)
    connection.execute(
        f"INSERT INTO tailrace_results (principal, key, {', '.join(_FIELDS)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (origin.principal, origin.key, *row, result.committed_at),
    )


def forget_results(connection: sqlite3.Connection, *, collection: str, before: float) -> None:
    """Forget the results of a collection that are from ``before``."""
    connection.execute("DELETE FROM tailrace_results WHERE collection = ? AND committed_at <= ?", (collection, before))


def result_of(row: Mapping[str, Any]) -> BulkResult:
    """Return the result of a bulk that has committed before."""
    return BulkResult(**{name: row[name] for name in _FIELDS if name != "priority"}, repeated=True)
