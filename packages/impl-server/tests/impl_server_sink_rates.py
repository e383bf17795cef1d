"""Measures how many records a second the sinks take, beside what the databases take without them.

Run it: ``python packages/impl-server/tests/impl_server_sink_rates.py [RECORDS]``. Records are of about 100 bytes as
JSON, parsed before the clock starts, and come in groups of 1,000. Each line is one run over an empty table.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[3] / "integration-tests"))

from postgres_server import PostgresServer

from tailrace_common_api import RecordBatch
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_sink import PostgresSink
from tailrace_impl_server._sqlite_sink import SqliteSink
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import BulkOrigin, Durability, RecordSink, StagedBatch

GROUP = 1000
COLUMNS = ("name", "email", "city", "note")
PLAIN = "CREATE TABLE {} (name TEXT NOT NULL, email TEXT NOT NULL, city INTEGER, note TEXT)"
RULES = (
    "CREATE TABLE {} (name TEXT NOT NULL, email TEXT NOT NULL UNIQUE, city INTEGER REFERENCES cities (id), note TEXT)"
)
CITIES = ("CREATE TABLE cities (id INTEGER PRIMARY KEY)", "INSERT INTO cities VALUES (1), (2)")
TABLES = {"plain table": PLAIN, "table with a unique index and a reference": RULES}


def batches(records: int) -> list[StagedBatch]:
    """Return all records, in groups."""
    rows = [
        {"name": f"Name {number}", "email": f"{number}@example.org", "city": 1 + number % 2, "note": "x" * 30}
        for number in range(records)
    ]
    return [
        StagedBatch(first, RecordBatch([json.dumps(row).encode() for row in group]), group)
        for first in range(0, records, GROUP)
        if (group := rows[first : first + GROUP])
    ]


async def timed(label: str, records: int, work: Callable[[], Awaitable[None]]) -> None:
    began = time.perf_counter()
    await work()
    print(f"{label:75} {records / (time.perf_counter() - began):12,.0f} records/s", flush=True)


async def bulk(sink: RecordSink, groups: Sequence[StagedBatch], records: int, label: str) -> None:
    """Measure a bulk and its two parts."""
    await sink.start()
    await sink.begin(BulkOrigin(id=label, principal="", key=label, priority=0))

    async def stage() -> None:
        for group in groups:
            await sink.stage(label, group)

    async def commit() -> None:
        await sink.commit(label, records=records, size=100 * records, digest=bytes(16))

    async def both() -> None:
        await timed(f"  {label}: staging", records, stage)
        await timed(f"  {label}: commit", records, commit)

    await timed(f"{label}: all", records, both)
    await sink.close()


async def on_postgres(url: str, groups: Sequence[StagedBatch], records: int) -> None:
    raw = await asyncpg.connect(url)
    for statement in CITIES:
        await raw.execute(statement)
    for kind, table in TABLES.items():
        await raw.execute(table.format("direct"))
        tuples = [[tuple(row[column] for column in COLUMNS) for row in _rows(group)] for group in groups]

        async def copy_all(tuples: list[list[tuple[Any, ...]]] = tuples) -> None:
            async with raw.transaction():
                for rows in tuples:
                    await raw.copy_records_to_table("direct", records=rows, columns=COLUMNS)

        await timed(f"PostgreSQL, {kind}: COPY by groups, one transaction", records, copy_all)
        await raw.execute("DROP TABLE direct")
        await raw.execute(table.format("target"))
        sink = PostgresSink("target", PostgresDatabase("bench", url), table="target", columns=COLUMNS)
        await bulk(sink, groups, records, f"PostgreSQL, {kind}")
        assert await raw.fetchval("SELECT count(*) FROM target") == records
        await raw.execute("DROP TABLE target")
    await raw.close()


async def on_sqlite(folder: Path, groups: Sequence[StagedBatch], records: int) -> None:
    for number, (kind, table) in enumerate(TABLES.items()):
        path = folder / f"{number}.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("PRAGMA journal_mode = WAL")
            raw.execute("PRAGMA foreign_keys = ON")
            for statement in (*CITIES, table.format("direct"), table.format("target")):
                raw.execute(statement)
            tuples = [tuple(row[column] for column in COLUMNS) for group in groups for row in _rows(group)]

            async def insert(raw: sqlite3.Connection = raw, tuples: list[tuple[Any, ...]] = tuples) -> None:
                raw.execute("BEGIN")
                raw.executemany("INSERT INTO direct VALUES (?, ?, ?, ?)", tuples)
                raw.execute("COMMIT")

            await timed(f"SQLite, {kind}: executemany, one transaction", records, insert)
            raw.execute("DROP TABLE direct")
        file = SqliteThread(path, durability=Durability.FSYNC)
        staging = SqliteThread(folder / f"{number}.staging.sqlite", durability=Durability.OS)
        sink = SqliteSink("target", file, staging, table="target", columns=COLUMNS)
        await bulk(sink, groups, records, f"SQLite, {kind}")


def _rows(group: StagedBatch) -> Sequence[Any]:
    return group.values


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    groups = batches(records)
    with PostgresServer() as server:
        asyncio.run(on_postgres(server.url(), groups, records))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(on_sqlite(Path(folder), groups, records))


if __name__ == "__main__":
    main()
