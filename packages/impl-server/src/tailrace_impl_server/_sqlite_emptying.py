"""Empties a file of SQLite where deleting from it would need room that the disk does not have."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple


class Emptied(NamedTuple):
    """What a file had that is not its rows."""

    statements: list[tuple[str, str]]
    """Name of each table and index, and the statement that makes it."""
    numbers: list[tuple[str, int]]
    """The last number that each table with numbers of its own has given."""

    def restore(self, connection: sqlite3.Connection) -> None:
        """Make the tables that are not there again, in the transaction of others."""
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for name, statement in self.statements:
            if name not in there:
                connection.execute(statement)
        for table, number in self.numbers:
            if connection.execute("SELECT 1 FROM sqlite_sequence WHERE name = ?", (table,)).fetchone() is None:
                connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, number))


def empty_file(path: Path, unused: Callable[[sqlite3.Connection], bool]) -> Emptied | None:
    """Cut a file and its log to nothing, which needs no room; return what it had, ``None`` if it is in use.

    Nobody of this process may have it open. An empty file is an empty database to everyone who opens it afterwards.
    """
    try:
        connection = sqlite3.connect(path.absolute().as_uri(), timeout=0, isolation_level=None, uri=True)
        with closing(connection):
            # The lock keeps others out of the file altogether, and the index of the log in memory.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            if not unused(connection):
                return None
            emptied = Emptied(
                connection.execute(
                    "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL "
                    "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type DESC"
                ).fetchall(),
                connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall(),
            )
            # By name: closing a descriptor of the file would drop the lock. The log goes last: after a crash between
            # the two SQLite drops the log of a file that is empty.
            os.truncate(path, 0)
            with suppress(FileNotFoundError):
                os.truncate(f"{path}-wal", 0)
            return emptied
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return None
        raise
