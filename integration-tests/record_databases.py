"""Databases of records, and the ends that servers of the suite have on them.

The tables are a user's own: made before any server runs, with rules of their own, and looked into behind its back.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

_TABLES = (
    "CREATE TABLE cities (id INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    """CREATE TABLE contacts (
        name TEXT NOT NULL,
        email TEXT NOT NULL UNIQUE,
        city INTEGER REFERENCES cities (id)
    )""",
    "INSERT INTO cities VALUES (1, 'Ghent'), (2, 'Turin')",
)
CONTACT_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "email": {"type": "string"},
        "city": {"type": ["integer", "null"]},
    },
    "required": ["name", "email"],
    "additionalProperties": False,
}


def contact(number: int, **more: object) -> dict[str, object]:
    """Return a contact that may be in the table beside those of other numbers."""
    return {"name": f"Name {number}", "email": f"{number}@example.org", "city": 1 + number % 2, **more}


def _toml(value: Any) -> str:
    """Return a value of a settings file, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # Texts, numbers and truth values are written as in JSON.
    return json.dumps(value)


async def eventually(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Wait until a count in a database is what is wanted."""
    async with asyncio.timeout(60):
        # There is nothing else to wait for: what is counted is not this process's.
        while await count() != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class RecordDatabase(ABC):
    """A database with the tables of the suite."""

    def __init__(self, folder: Path) -> None:
        self._schema = folder / "contact.schema.json"
        self._schema.write_text(json.dumps(CONTACT_SCHEMA))

    @property
    @abstractmethod
    def url(self) -> str:
        """URL, as in settings."""

    @property
    @abstractmethod
    def numbers(self) -> str:
        """Statement that gives the whole numbers from 1 to ``:count``, each as ``n``."""

    @abstractmethod
    async def rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """Return what a statement gives, read over a connection of its own."""

    @abstractmethod
    async def staged(self) -> int:
        """Count the records that are staged anywhere."""

    def tables(self, more: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the tables of settings that declare the ends of the suite, and ``more``."""
        database = {"database": "shop"}
        declared: dict[str, dict[str, Any]] = {
            "databases": {"shop": {"url": self.url}},
            "collections": {
                "contacts": {
                    **database,
                    "table": "contacts",
                    "columns": ["name", "email", "city"],
                    "schema": str(self._schema),
                },
                "notes": database,
            },
            "sources": {
                "numbers": {
                    **database,
                    "sql": self.numbers,
                    "parameters": {"count": "integer = 10"},
                },
                "contacts": {**database, "sql": "SELECT name, email, city FROM contacts ORDER BY email"},
                "ticks": {"function": "record_sources:ticks"},
                "burst": {"function": "record_sources:burst"},
                "failing": {"function": "record_sources:failing"},
            },
            "queues": {
                "tasks": database,
                "quick": {**database, "lease": 0.5},
                "few": {**database, "max_attempts": 2},
            },
        }
        for table, ends in more.items():
            declared[table] = {**declared[table], **{name: {**database, **end} for name, end in ends.items()}}
        return declared

    def settings(self, folder: Path) -> Path:
        """Write the tables into a settings file in ``folder`` and return it; without functions of the suite."""
        lines = []
        for table, ends in self.tables({}).items():
            for name, values in ends.items():
                # A server in a process of its own does not have the modules of the suite.
                if "function" not in values:
                    lines += [f"[{table}.{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
        path = folder / "tailrace.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    async def contacts(self) -> int:
        """Count the contacts that everyone sees."""
        return int((await self.rows("SELECT count(*) FROM contacts"))[0][0])


class SqliteDatabase(RecordDatabase):
    """A file of SQLite."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._path = path
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for statement in _TABLES:
                connection.execute(statement)

    @contextmanager
    def _connection(self, path: Path | None = None) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(path or self._path, timeout=30, isolation_level=None)) as connection:
            yield connection

    @property
    def url(self) -> str:
        return f"sqlite:{self._path}"

    @property
    def numbers(self) -> str:
        return (
            "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto WHERE n < :count) "
            "SELECT n FROM upto WHERE :count > 0"
        )

    async def rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        # In a thread: tests may look from within a call of the code that must not block its loop.
        return await asyncio.to_thread(self._rows, statement)

    def _rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(statement).fetchall()

    async def staged(self) -> int:
        return await asyncio.to_thread(self._staged)

    def _staged(self) -> int:
        total = 0
        for path in self._path.parent.rglob("*.staging.sqlite"):
            with self._connection(path) as connection:
                named = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%staged_at%'"
                for (table,) in connection.execute(named).fetchall():
                    total += connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
        return total


class PostgresDatabase(RecordDatabase):
    """A database of a PostgreSQL server."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(folder)
        self._url = url

    async def make_tables(self) -> None:
        """Make the tables; called once, before anything else."""
        for statement in _TABLES:
            await self.rows(statement)

    @property
    def url(self) -> str:
        return self._url

    @property
    def numbers(self) -> str:
        return "SELECT n FROM generate_series(1, :count) AS n"

    async def rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        connection = await asyncpg.connect(self._url)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    async def staged(self) -> int:
        named = await self.rows(
            "SELECT DISTINCT table_schema, table_name FROM information_schema.columns WHERE column_name = 'staged_at'"
        )
        counts = [await self.rows(f'SELECT count(*) FROM "{schema}"."{table}"') for schema, table in named]
        return sum(int(rows[0][0]) for rows in counts)
