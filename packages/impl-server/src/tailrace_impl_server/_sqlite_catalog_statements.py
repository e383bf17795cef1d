"""Schema and statements of the SQLite catalog. All of it blocks and raises ``sqlite3.Error``."""

from __future__ import annotations

import sqlite3

from tailrace_common_api import ListFilter, ResourceState, Visibility
from tailrace_impl_server._descriptor import descriptor_from_json
from tailrace_server_api import CatalogEntry

SCHEMA_VERSION = 1

# States are numbers so that an index can hold them shortly; 0 and 1 are those of an upload that goes on.
_STATES = (ResourceState.INITIATED, ResourceState.IN_PROGRESS, ResourceState.COMPLETED, ResourceState.FAILED)
_NUMBERS = {state: number for number, state in enumerate(_STATES)}
_COMPLETED = _NUMBERS[ResourceState.COMPLETED]

# Each way of listing has an index that ends with the id, so that a page starts where the one before ended and nothing
# is ever sorted. `hidden` marks atomic resources, which are listed only when they are COMPLETED.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE resource (
    id TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    ended_at REAL,
    created_at REAL NOT NULL,
    context TEXT,
    hidden INTEGER NOT NULL,
    principal TEXT NOT NULL,
    key TEXT,
    descriptor TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX resource_by_key ON resource (principal, key) WHERE key IS NOT NULL;
CREATE INDEX resource_by_state ON resource (state, id);
CREATE INDEX resource_by_context ON resource (context, id) WHERE context IS NOT NULL;
CREATE INDEX resource_by_end ON resource (state, ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE label (
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (key, value, id)
) WITHOUT ROWID;
CREATE INDEX label_by_id ON label (id);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_COLUMNS = "resource.descriptor, resource.state, resource.ended_at"
_Row = tuple[str, int, float | None]


def _entry(row: _Row) -> CatalogEntry:
    text, state, ended_at = row
    return CatalogEntry(descriptor_from_json(text), _STATES[state], ended_at)


def insert(connection: sqlite3.Connection, entry: CatalogEntry, text: str) -> str | None:
    """Add an entry; return the id that holds its idempotency key, if another one does."""
    descriptor = entry.descriptor
    if descriptor.idempotency_key is not None:
        holder: tuple[str] | None = connection.execute(
            "SELECT id FROM resource WHERE principal = ? AND key = ?",
            (descriptor.principal, descriptor.idempotency_key),
        ).fetchone()
        if holder is not None:
            return None if holder[0] == descriptor.id else holder[0]
    added = connection.execute(
        "INSERT INTO resource (id, state, ended_at, created_at, context, hidden, principal, key, descriptor)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (
            descriptor.id,
            _NUMBERS[entry.state],
            entry.ended_at,
            descriptor.created_at,
            descriptor.metadata.context,
            descriptor.visibility is Visibility.ATOMIC,
            descriptor.principal,
            descriptor.idempotency_key,
            text,
        ),
    )
    if added.rowcount:
        connection.executemany(
            "INSERT INTO label (key, value, id) VALUES (?, ?, ?)",
            [(key, value, descriptor.id) for key, value in descriptor.metadata.labels.items()],
        )
    return None


def set_state(connection: sqlite3.Connection, id: str, state: ResourceState, ended_at: float | None) -> None:
    """Record a state unless a terminal one is recorded."""
    connection.execute(
        "UPDATE resource SET state = ?, ended_at = ? WHERE id = ? AND state < ?",
        (_NUMBERS[state], ended_at, id, _COMPLETED),
    )


def delete(connection: sqlite3.Connection, id: str) -> None:
    """Remove an entry."""
    connection.execute("DELETE FROM label WHERE id = ?", (id,))
    connection.execute("DELETE FROM resource WHERE id = ?", (id,))


def get(connection: sqlite3.Connection, id: str) -> CatalogEntry | None:
    """Return an entry."""
    row: _Row | None = connection.execute(f"SELECT {_COLUMNS} FROM resource WHERE id = ?", (id,)).fetchone()
    return None if row is None else _entry(row)


def find_key(connection: sqlite3.Connection, principal: str, key: str) -> CatalogEntry | None:
    """Return the entry that was created under an idempotency key."""
    row: _Row | None = connection.execute(
        f"SELECT {_COLUMNS} FROM resource WHERE principal = ? AND key = ?", (principal, key)
    ).fetchone()
    return None if row is None else _entry(row)


def page(connection: sqlite3.Connection, filter: ListFilter, after: str | None, limit: int) -> tuple[CatalogEntry, ...]:
    """Return a page of a listing."""
    query, values = page_query(filter, after, limit)
    return tuple(_entry(row) for row in connection.execute(query, values))


def page_query(filter: ListFilter, after: str | None, limit: int) -> tuple[str, list[str | int | float]]:
    """Return the statement for a page of a listing, and its values.

    Walks one index from where the last page ended: that of a label, of the context, of the state, or of all ids. CROSS
    JOIN makes SQLite read its left side first.
    """
    values: list[str | int | float] = []
    conditions: list[str] = []
    labels = sorted(filter.labels.items())
    if labels:
        source = "label CROSS JOIN resource ON resource.id = label.id"
        order = "label.id"
        conditions.append("label.key = ? AND label.value = ?")
        values += labels[0]
        for key, value in labels[1:]:
            conditions.append(
                "EXISTS (SELECT 1 FROM label AS l WHERE l.key = ? AND l.value = ? AND l.id = resource.id)"
            )
            values += (key, value)
    else:
        order = "resource.id"
        if filter.context is not None:
            source = "resource INDEXED BY resource_by_context"
        elif filter.state is not None:
            source = "resource INDEXED BY resource_by_state"
        else:
            source = "resource"
    if after is not None:
        conditions.append(f"{order} > ?")
        values.append(after)
    for condition, selected in (
        ("resource.context = ?", filter.context),
        ("resource.state = ?", None if filter.state is None else _NUMBERS[filter.state]),
        ("resource.created_at >= ?", filter.created_from),
        ("resource.created_at < ?", filter.created_before),
    ):
        if selected is not None:
            conditions.append(condition)
            values.append(selected)
    conditions.append(f"(NOT resource.hidden OR resource.state = {_COMPLETED})")
    values.append(limit)
    return f"SELECT {_COLUMNS} FROM {source} WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ?", values


def unfinished(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Return the ids of all entries without a terminal state."""
    rows = connection.execute("SELECT id FROM resource WHERE state < ?", (_COMPLETED,))
    return tuple(row[0] for row in rows)


def ended_before(connection: sqlite3.Connection, state: ResourceState, before: float, limit: int) -> tuple[str, ...]:
    """Return ids of entries that ended in ``state`` before a time, oldest first."""
    rows = connection.execute(
        "SELECT id FROM resource INDEXED BY resource_by_end"
        " WHERE state = ? AND ended_at < ? AND ended_at IS NOT NULL ORDER BY ended_at LIMIT ?",
        (_NUMBERS[state], before, limit),
    )
    return tuple(row[0] for row in rows)


def known(connection: sqlite3.Connection) -> frozenset[str]:
    """Return all ids."""
    return frozenset(row[0] for row in connection.execute("SELECT id FROM resource"))
