"""The table of SQLite that a sink fills: what the schema says of it, and the statements that are made of that."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailrace_common_api import JSON, ConfigurationError
from tailrace_impl_server import _sql_tables as kinds
from tailrace_impl_server._sql_tables import ColumnKind, RecordTable, layout_name, quoted

POSITION_BITS = 32
"""Bits of the place of a staged record that say its position in the bulk; those above are the bulk's number."""


@dataclass(frozen=True, slots=True)
class Target:
    """A table with the place for staging before it, which is in another file."""

    table: str
    """The table, quoted."""
    staging: str
    """The table for staging, not quoted."""
    layout: str
    """Statement that makes it."""
    fields: Mapping[str, str]
    """Field of each column that takes one; empty where whole records are taken."""
    kinds: Sequence[ColumnKind]
    """What these columns take."""
    staged: Sequence[str]
    """Columns for staging after ``place`` and ``staged_at``."""
    values: Mapping[str, str]
    """Value of each column of the table that gets one, as an expression over ``staged`` and ``bulk``."""
    deferred: bool
    """Whether references may be looked at no earlier than at the commit."""

    def insert(self, rows: int) -> str:
        """Return the statement that stages some rows."""
        one = f"({', '.join('?' * (len(self.staged) + 2))})"
        columns = ", ".join(("place", "staged_at", *self.staged))
        return f"INSERT INTO {quoted(self.staging)} ({columns}) VALUES {', '.join([one] * rows)}"

    @property
    def origin(self) -> str:
        """What follows FROM for the staged records of bulk ``?1`` at the places from ``?2`` up to ``?3``, excluded."""
        return (
            f"attached.tailrace_bulks AS bulk CROSS JOIN attached.{quoted(self.staging)} AS staged "
            "WHERE bulk.number = ?1 AND staged.place >= ?2 AND staged.place < ?3"
        )

    def move(self, otherwise: str = "ABORT") -> str:
        """Return the statement that moves these records, in order; what is refused ends it, or is left out."""
        names, values = ", ".join(map(quoted, self.values)), ", ".join(self.values.values())
        return (
            f"INSERT OR {otherwise} INTO main.{self.table} ({names}) "
            f"SELECT {values} FROM {self.origin} ORDER BY staged.place"
        )


def places(bulk: int, first: int, end: int) -> tuple[int, int, int]:
    """Return the parameters of statements over :attr:`Target.origin`, for records ``[first, end)`` of a bulk."""
    base = bulk << POSITION_BITS
    return bulk, base + first, base + end


def prepare_fields(
    connection: sqlite3.Connection, collection: str, table: str, fields: Mapping[str, str] | None
) -> Target:
    """Return the target whose columns take the fields of records.

    Raises:
        ConfigurationError: The table or a column is not there, or cannot be inserted into.
    """
    place = f"collections.{collection}"
    strict = _find(connection, table, place)
    found = {row[1]: row for row in connection.execute(f"PRAGMA table_xinfo({quoted(table)})")}
    if fields is None:
        fields = {name: name for name, row in found.items() if not row[6]}
    values: dict[str, str] = {}
    definitions: list[str] = []
    column_kinds: list[ColumnKind] = []
    for position, name in enumerate(fields.values()):
        if name not in found:
            raise ConfigurationError(field=f"{place}.columns", problem=f"the table {table} has no column {name!a}")
        _, _, declared, not_null, default, _, hidden = found[name]
        if hidden:
            raise ConfigurationError(field=f"{place}.columns", problem=f"the database makes the values of {name!a}")
        values[name] = f"staged.c{position}"
        if default is not None and not_null:
            # Null would be refused: a field that is not there gets what the table has for that.
            values[name] = f"COALESCE({values[name]}, {default})"
        definitions.append(f"c{position} {declared}")
        column_kinds.append(_kind(declared))
    for name, (_, _, _, not_null, default, _, hidden) in found.items():
        if not_null and default is None and not hidden and name not in values:
            problem = f"nothing goes to {name!a}, which must have a value"
            raise ConfigurationError(field=f"{place}.columns", problem=problem)
    staging, layout = _staging(collection, definitions, strict=strict)
    deferred = "DEFERRED" in _definition(connection, table).upper()
    names = {column: field for field, column in fields.items()}
    staged = [f"c{position}" for position in range(len(fields))]
    return Target(quoted(table), staging, layout, names, column_kinds, staged, values, deferred)


def prepare_records(connection: sqlite3.Connection, collection: str, table: RecordTable | None, content: str) -> Target:
    """Return the target that takes whole records; without ``table`` one with the collection's name is made.

    Raises:
        ConfigurationError: The table is not there.
    """
    if table is None:
        text = content == JSON
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {quoted(collection)} "
            f"(position INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, record {'TEXT' if text else 'BLOB'} NOT NULL)"
        )
        name = collection
        values = {"key": "staged.key", "record": "CAST(staged.record AS TEXT)" if text else "staged.record"}
    else:
        name, values = table.name, dict(table.columns)
    _find(connection, name, f"collections.{collection}")
    staging, layout = _staging(collection, ["key TEXT", "record BLOB NOT NULL"], strict=False)
    return Target(quoted(name), staging, layout, {}, [], ["key", "record"], values, deferred=False)


def _find(connection: sqlite3.Connection, table: str, place: str) -> bool:
    """Return whether a table is strict about types."""
    for row in connection.execute(
        "SELECT type, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?", (table,)
    ):
        if row[0] != "table":
            raise ConfigurationError(field=f"{place}.table", problem=f"{table} is no table")
        return bool(row[1])
    raise ConfigurationError(field=f"{place}.table", problem=f"there is no table {table}")


def _definition(connection: sqlite3.Connection, table: str) -> str:
    row: Any = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).fetchone()
    return str(row[0]) if row else ""


def _staging(collection: str, definitions: Sequence[str], *, strict: bool) -> tuple[str, str]:
    columns = ", ".join(definitions)
    name = layout_name("tailrace_staging", collection, f"{columns} {strict}")
    # Places are those of the rows in the file, which is thus in the order of bulks and positions.
    layout = (
        f"CREATE TABLE IF NOT EXISTS {quoted(name)} (place INTEGER PRIMARY KEY, "
        f"bulk INTEGER GENERATED ALWAYS AS (place >> {POSITION_BITS}) VIRTUAL, "
        f"position INTEGER GENERATED ALWAYS AS (place & {(1 << POSITION_BITS) - 1}) VIRTUAL, "
        f"staged_at REAL NOT NULL, {columns}){' STRICT' if strict else ''}"
    )
    return name, layout


def _kind(declared: str) -> ColumnKind:
    """Return what a column takes; the rules are those by which SQLite finds the affinity of a column."""
    upper = declared.upper()
    if "INT" in upper:
        return kinds.SQLITE_INTEGER
    if any(part in upper for part in ("CHAR", "CLOB", "TEXT")):
        return kinds.SQLITE_TEXT
    if "BLOB" in upper:
        return kinds.BLOB
    if any(part in upper for part in ("REAL", "FLOA", "DOUB")):
        return kinds.real_number()
    return kinds.ANYTHING
