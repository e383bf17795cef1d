"""Schema and statements of the SQLite catalog. All of it blocks and raises ``sqlite3.Error``."""

from __future__ import annotations

import json
import sqlite3

from tailrace_common_api import ResourceState, Visibility
from tailrace_impl_server._descriptor import descriptor_from_json
from tailrace_server_api import CatalogEntry, ContextEntry, Usage

SCHEMA_VERSION = 2

# States are numbers so that an index can hold them shortly; 0 and 1 are those of an upload that goes on.
_STATES = (ResourceState.INITIATED, ResourceState.IN_PROGRESS, ResourceState.COMPLETED, ResourceState.FAILED)
NUMBERS = {state: number for number, state in enumerate(_STATES)}
"""Numbers of states."""
COMPLETED = NUMBERS[ResourceState.COMPLETED]

# Each way of listing has an index that ends with the id, so that a page starts where the one before ended and nothing
# is ever sorted. `hidden` marks atomic resources, which are listed only when they are COMPLETED.
_RESOURCES = """
CREATE TABLE resource (
    id TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    ended_at REAL,
    created_at REAL NOT NULL,
    context TEXT,
    hidden INTEGER NOT NULL,
    principal TEXT NOT NULL,
    key TEXT,
    descriptor TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0
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
"""
# What quotas count is summed up from an index alone, however long the descriptors are.
_CONTEXTS = f"""
CREATE INDEX resource_by_usage ON resource (context, size);
CREATE INDEX resource_unfinished ON resource (context, id) WHERE state < {COMPLETED};
CREATE TABLE context (
    id TEXT PRIMARY KEY,
    attributes TEXT NOT NULL,
    created_at REAL NOT NULL,
    closed_at REAL
) WITHOUT ROWID;
CREATE INDEX context_open ON context (id) WHERE closed_at IS NULL;
CREATE INDEX context_closed ON context (closed_at) WHERE closed_at IS NOT NULL;
"""
SCHEMA = f"""
BEGIN IMMEDIATE;
{_RESOURCES}
{_CONTEXTS}
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
# Version 1 knew neither sizes nor contexts. Every resource that has ended counts as unfinished until recovery, which
# looks at those, has recorded its size; when it ended is kept meanwhile. What was any text becomes a closed context.
UPGRADES = {
    1: f"""
BEGIN IMMEDIATE;
ALTER TABLE resource ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
{_CONTEXTS}
INSERT INTO context (id, attributes, created_at, closed_at)
    SELECT context, '{{}}', min(created_at), max(coalesce(ended_at, created_at)) FROM resource
    WHERE context IS NOT NULL GROUP BY context;
UPDATE resource SET state = 1 WHERE state >= {COMPLETED};
PRAGMA user_version = 2;
COMMIT;
"""
}
"""Scripts that make a file of one version one of the next."""

COLUMNS = "resource.descriptor, resource.state, resource.ended_at, resource.size"
"""What :func:`entry_of` takes."""
_Row = tuple[str, int, float | None, int]


def entry_of(row: _Row) -> CatalogEntry:
    """Return the entry in a row of :data:`COLUMNS`."""
    text, state, ended_at, size = row
    return CatalogEntry(descriptor_from_json(text), _STATES[state], ended_at, size)


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
        "INSERT INTO resource (id, state, ended_at, created_at, context, hidden, principal, key, descriptor, size)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (
            descriptor.id,
            NUMBERS[entry.state],
            entry.ended_at,
            descriptor.created_at,
            descriptor.metadata.context,
            descriptor.visibility is Visibility.ATOMIC,
            descriptor.principal,
            descriptor.idempotency_key,
            text,
            entry.size,
        ),
    )
    if added.rowcount:
        connection.executemany(
            "INSERT INTO label (key, value, id) VALUES (?, ?, ?)",
            [(key, value, descriptor.id) for key, value in descriptor.metadata.labels.items()],
        )
    return None


def set_state(connection: sqlite3.Connection, id: str, state: ResourceState, ended_at: float | None, size: int) -> None:
    """Record a state unless a terminal one is recorded; a time of ending that is known from before stays."""
    connection.execute(
        "UPDATE resource SET state = ?, ended_at = coalesce(ended_at, ?), size = ? WHERE id = ? AND state < ?",
        (NUMBERS[state], ended_at, size, id, COMPLETED),
    )


def delete(connection: sqlite3.Connection, id: str) -> None:
    """Remove an entry."""
    connection.execute("DELETE FROM label WHERE id = ?", (id,))
    connection.execute("DELETE FROM resource WHERE id = ?", (id,))


def get(connection: sqlite3.Connection, id: str) -> CatalogEntry | None:
    """Return an entry."""
    row: _Row | None = connection.execute(f"SELECT {COLUMNS} FROM resource WHERE id = ?", (id,)).fetchone()
    return None if row is None else entry_of(row)


def find_key(connection: sqlite3.Connection, principal: str, key: str) -> CatalogEntry | None:
    """Return the entry that was created under an idempotency key."""
    row: _Row | None = connection.execute(
        f"SELECT {COLUMNS} FROM resource WHERE principal = ? AND key = ?", (principal, key)
    ).fetchone()
    return None if row is None else entry_of(row)


def unfinished(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Return the ids of all entries without a terminal state."""
    rows = connection.execute("SELECT id FROM resource WHERE state < ?", (COMPLETED,))
    return tuple(row[0] for row in rows)


def ended_before(connection: sqlite3.Connection, state: ResourceState, before: float, limit: int) -> tuple[str, ...]:
    """Return ids of entries that ended in ``state`` before a time, oldest first."""
    rows = connection.execute(
        "SELECT id FROM resource INDEXED BY resource_by_end"
        " WHERE state = ? AND ended_at < ? AND ended_at IS NOT NULL ORDER BY ended_at LIMIT ?",
        (NUMBERS[state], before, limit),
    )
    return tuple(row[0] for row in rows)


def known(connection: sqlite3.Connection) -> frozenset[str]:
    """Return all ids."""
    return frozenset(row[0] for row in connection.execute("SELECT id FROM resource"))


def usage(connection: sqlite3.Connection) -> tuple[Usage, ...]:
    """Return number and sizes of resources by context."""
    rows = connection.execute(
        "SELECT context, count(*), sum(size) FROM resource INDEXED BY resource_by_usage GROUP BY context"
    )
    return tuple(Usage(*row) for row in rows)


def unfinished_in(connection: sqlite3.Connection, context: str) -> tuple[str, ...]:
    """Return the ids of the entries of a context without a terminal state."""
    rows = connection.execute(
        f"SELECT id FROM resource INDEXED BY resource_unfinished WHERE context = ? AND state < {COMPLETED}",
        (context,),
    )
    return tuple(row[0] for row in rows)


def insert_context(connection: sqlite3.Connection, entry: ContextEntry) -> None:
    """Add a context unless it is there."""
    connection.execute(
        "INSERT INTO context (id, attributes, created_at, closed_at) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (entry.id, json.dumps(dict(entry.attributes), ensure_ascii=False), entry.created_at, entry.closed_at),
    )


def get_context(connection: sqlite3.Connection, id: str) -> ContextEntry | None:
    """Return a context."""
    row: tuple[str, float, float | None] | None = connection.execute(
        "SELECT attributes, created_at, closed_at FROM context WHERE id = ?", (id,)
    ).fetchone()
    if row is None:
        return None
    attributes, created_at, closed_at = row
    return ContextEntry(id=id, attributes=json.loads(attributes), created_at=created_at, closed_at=closed_at)


def close_context(connection: sqlite3.Connection, id: str, closed_at: float) -> None:
    """Record that a context was closed, unless it was."""
    connection.execute("UPDATE context SET closed_at = ? WHERE id = ? AND closed_at IS NULL", (closed_at, id))


def open_contexts(connection: sqlite3.Connection) -> int:
    """Return how many contexts are open."""
    count: int = connection.execute("SELECT count(*) FROM context WHERE closed_at IS NULL").fetchone()[0]
    return count


def delete_empty_contexts(connection: sqlite3.Connection, before: float, limit: int) -> tuple[str, ...]:
    """Remove contexts that were closed before a time and have no resources."""
    rows = connection.execute(
        "SELECT id FROM context INDEXED BY context_closed WHERE closed_at < ? AND closed_at IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM resource WHERE resource.context = context.id) ORDER BY closed_at LIMIT ?",
        (before, limit),
    ).fetchall()
    connection.executemany("DELETE FROM context WHERE id = ?", rows)
    return tuple(row[0] for row in rows)
