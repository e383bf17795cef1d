"""Catalogs as the first version wrote them."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from tailrace_common_api import Visibility
from tailrace_impl_server._descriptor import descriptor_to_json
from tailrace_server_api import Descriptor

FIRST_SCHEMA = """
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
PRAGMA user_version = 1;
"""


def write_first_catalog(path: Path, rows: Iterable[tuple[Descriptor, int, float | None]]) -> None:
    """Write a file with descriptors, their states as numbers, and when they ended."""
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_SCHEMA)
    for descriptor, state, ended_at in rows:
        values = (
            descriptor.id,
            state,
            ended_at,
            descriptor.created_at,
            descriptor.metadata.context,
            descriptor.visibility is Visibility.ATOMIC,
            descriptor.principal,
            descriptor.idempotency_key,
            descriptor_to_json(descriptor),
        )
        connection.execute("INSERT INTO resource VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        labels = [(key, value, descriptor.id) for key, value in descriptor.metadata.labels.items()]
        connection.executemany("INSERT INTO label VALUES (?, ?, ?)", labels)
    connection.commit()
    connection.close()
