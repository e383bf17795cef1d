"""What sinks on SQLite do with the rules of tables, with other processes, and when their own is killed."""

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from impl_server_sink_places import SqlitePlace

from tailrace_common_api import (
    BulkConflict,
    BulkRefused,
    ConfigurationError,
    Fenced,
    ProblemKind,
    RecordBatch,
    StorageFailure,
    StorageFull,
    record_problems,
)
from tailrace_impl_server._record_validation import JsonObjectValidator
from tailrace_impl_server._sql_tables import RecordTable
from tailrace_impl_server._sqlite_sink import SqliteSink
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import BulkOrigin, Durability, RecordSink, StagedBatch
from tailrace_server_api.contracts.sink import begin, commit, contact, deliver, refused, row, stage, staged_batch

INVALID, DUPLICATE, REFERENCE, CONSTRAINT = (
    ProblemKind.INVALID,
    ProblemKind.DUPLICATE,
    ProblemKind.REFERENCE,
    ProblemKind.CONSTRAINT,
)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[SqlitePlace, None]:
    # Paths are paths, whatever a URI would make of them.
    folder = tmp_path / "odd %41 ?mode=ro #'"
    folder.mkdir()
    async with SqlitePlace(folder, Durability.OS) as place:
        yield place


@asynccontextmanager
async def sink_into(place: SqlitePlace, *statements: str, **other: Any) -> AsyncGenerator[RecordSink, None]:
    """Make the table ``things`` and yield a started sink into it."""
    await place.run(place.path, *statements)
    sink = place.new_sink(**{"name": "things", "table": "things", "columns": None, **other})
    await sink.start()
    yield sink
    await sink.close()


async def told(sink: RecordSink, *rows: Any) -> list[tuple[int, ProblemKind, str | None]]:
    return await refused(sink, rows)


async def _staging_refuses(sink: RecordSink, *rows: Any) -> list[tuple[int, ProblemKind, str | None]]:
    await begin(sink, "unfit")
    with pytest.raises(BulkRefused) as raised:
        await sink.stage("unfit", StagedBatch(0, RecordBatch([b"{}"] * len(rows)), rows))
    await sink.rollback("unfit")
    return [(problem.index, problem.kind, problem.field) for problem in record_problems(raised.value)]


async def test_values_of_json_become_those_of_columns(place: SqlitePlace) -> None:
    table = "CREATE TABLE things (whole INTEGER, real REAL, words VARCHAR(10), bytes BLOB, any, made NUMERIC)"
    async with sink_into(place, table) as sink:
        first = {"whole": True, "real": 3, "words": ["a", "é"], "bytes": "aGVsbG8=", "any": {"a": None}, "made": "x"}
        await deliver(sink, "bulk", [first, {"whole": -(1 << 63), "words": "é\0", "any": 1.5, "made": 5}])
        assert await place.run(place.path, "SELECT * FROM things") == [
            (1, 3.0, '["a","é"]', b"hello", '{"a":null}', "x"),
            (-(1 << 63), None, "é\0", None, 1.5, 5),
        ]
        for bad, field in [
            ({"whole": 1 << 63}, "whole"),
            ({"real": "1"}, "real"),
            ({"words": 1}, "words"),
            ({"words": "\ud800"}, "words"),
            ({"bytes": "?"}, "bytes"),
            ({"any": 1 << 64}, "any"),
            ({"any": float("nan")}, "any"),
            ({"any": object()}, "any"),
        ]:
            assert await _staging_refuses(sink, {}, bad) == [(1, INVALID, field)], bad


async def test_strict_tables_are_strict_from_the_beginning(place: SqlitePlace) -> None:
    async with sink_into(place, "CREATE TABLE things (number INT, words TEXT, anything ANY) STRICT") as sink:
        await deliver(sink, "bulk", [{"number": 1, "words": "a", "anything": 5}, {"anything": "x"}])
        assert await _staging_refuses(sink, {}, {"number": "1"}) == [(1, INVALID, "number")]
        assert len(await place.run(place.path, "SELECT * FROM things")) == 2


async def test_names_with_quotes_are_names(place: SqlitePlace) -> None:
    name = 'odd "name"; --'
    table = 'CREATE TABLE "my ""things""" ("odd ""name""; --" TEXT UNIQUE, place INTEGER)'
    async with sink_into(place, table, table='my "things"', columns={name: name, "b": "place"}) as sink:
        await deliver(sink, "bulk", [{name: "x", "b": 7}])
        assert await told(sink, {name: "y"}, {name: "x"}) == [(1, DUPLICATE, name)]


async def test_what_is_not_there_gets_the_default_of_a_column_that_cannot_be_null(place: SqlitePlace) -> None:
    table = """CREATE TABLE things (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL DEFAULT 'nobody',
        other TEXT DEFAULT 'x',
        twice TEXT GENERATED ALWAYS AS (name || name)
    )"""
    async with sink_into(place, table, columns=["name", "other"]) as sink:
        await deliver(sink, "bulk", [{}, {"name": "a", "other": "b"}])
        assert await place.run(place.path, "SELECT id, name, other, twice FROM things ORDER BY id") == [
            (1, "nobody", None, "nobodynobody"),
            (2, "a", "b", "aa"),
        ]
    for column in ("twice", "nothing"):
        with pytest.raises(ConfigurationError, match=column):
            async with sink_into(place, columns=[column]):
                pass


async def test_unique_expressions_and_parts_are_looked_up(place: SqlitePlace) -> None:
    async with sink_into(
        place,
        "CREATE TABLE things (name TEXT, kind TEXT, active INTEGER DEFAULT 1, number INTEGER)",
        "CREATE UNIQUE INDEX by_name ON things (lower(name), kind)",
        "CREATE UNIQUE INDEX by_number ON things (number) WHERE active",
        columns=["name", "kind", "number"],
    ) as sink:
        rows = [
            {"name": "A", "kind": "k", "number": 1},
            {"name": "a", "kind": "other", "number": 2},
            {"name": "a", "kind": "k", "number": 3},
            {"name": "b", "kind": "k", "number": 2},
            {"name": None, "kind": "k"},
            {"name": None, "kind": "k"},
        ]
        assert await told(sink, *rows) == [(2, DUPLICATE, None), (3, DUPLICATE, "number")]


async def test_references_that_are_deferred_are_looked_up(place: SqlitePlace) -> None:
    table = "CREATE TABLE things (city INTEGER REFERENCES cities DEFERRABLE INITIALLY DEFERRED)"
    async with sink_into(place, table) as sink:
        assert await told(sink, {"city": 1}, {"city": 3}) == [(1, REFERENCE, "city")]
        await deliver(sink, "bulk", [{"city": 2}])


async def test_records_may_refer_to_others_of_their_bulk(place: SqlitePlace) -> None:
    table = "CREATE TABLE things (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES things (id))"
    async with sink_into(place, table) as sink:
        rows = [{"id": 2, "parent": 3}, {"id": 3, "parent": 3}, {"id": 4, "parent": 2}]
        await deliver(sink, "bulk", rows)
        assert await told(sink, {"id": 5, "parent": 6}, {"id": 6, "parent": 7}) == [(1, REFERENCE, "parent")]
        assert await told(sink, {"id": 5, "parent": 6}, {"id": 6}, {"id": 4}) == [(2, DUPLICATE, "id")]


async def test_references_of_several_columns_are_looked_up(place: SqlitePlace) -> None:
    async with sink_into(
        place,
        "CREATE TABLE others (a INTEGER, b TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID",
        "INSERT INTO others VALUES (1, 'x')",
        "CREATE TABLE things (b TEXT, a INTEGER, FOREIGN KEY (a, b) REFERENCES others)",
    ) as sink:
        assert await told(sink, {"a": 1, "b": "x"}, {"a": 1}, {"a": 1, "b": "y"}) == [(2, REFERENCE, "a, b")]


@pytest.mark.parametrize("first", [0, 1, 999, 1000, 2499])
async def test_rules_of_triggers_are_named(place: SqlitePlace, first: int) -> None:
    trigger = """
        CREATE TRIGGER judge BEFORE INSERT ON things WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ABORT, 'not bad'); END
    """
    async with sink_into(place, "CREATE TABLE things (name TEXT)", trigger) as sink:
        rows = [{"name": "bad" if number >= first else "good"} for number in range(2500)]
        with pytest.raises(BulkRefused) as raised:
            await deliver(sink, "bulk", rows)
        problems = record_problems(raised.value)
        assert raised.value.total == 2500 - first
        assert [problem.index for problem in problems] == list(range(first, min(2500, first + 100)))
        assert {(problem.kind, problem.problem) for problem in problems} == {(CONSTRAINT, "not bad")}
        assert await place.run(place.path, "SELECT * FROM things") == []


async def test_a_table_that_takes_less_than_it_is_given_commits_nothing(place: SqlitePlace) -> None:
    trigger = "CREATE TRIGGER skip BEFORE INSERT ON things WHEN NEW.name = 'x' BEGIN SELECT RAISE(IGNORE); END"
    async with sink_into(place, "CREATE TABLE things (name TEXT)", trigger) as sink:
        with pytest.raises(StorageFailure, match="1 of 2"):
            await deliver(sink, "bulk", [{"name": "x"}, {"name": "y"}])
        assert await place.run(place.path, "SELECT * FROM things") == []


async def test_a_view_is_an_error_of_the_settings(place: SqlitePlace) -> None:
    with pytest.raises(ConfigurationError, match="no table"):
        async with sink_into(place, "CREATE VIEW things AS SELECT 1 AS name"):
            pass


async def test_whole_records_go_into_a_table_of_somebody_else(place: SqlitePlace) -> None:
    committed: list[int] = []
    into = RecordTable(
        name="work",
        columns={"queue": "'q'", "priority": "bulk.priority", "record": "staged.record", "key": "staged.key"},
        then="INSERT INTO counts VALUES (?)",
    )
    async with sink_into(
        place,
        "CREATE TABLE work (id INTEGER PRIMARY KEY, queue TEXT, priority INTEGER, record BLOB, key TEXT)",
        "CREATE TABLE counts (records INTEGER)",
        table=None,
        into=into,
        committed=lambda: committed.append(1),
    ) as sink:
        await sink.begin(BulkOrigin(id="bulk", principal="", key=None, priority=7))
        await sink.stage("bulk", staged_batch(0, [{"n": 1}, {"n": 2}], ["a", None]))
        assert committed == []
        await commit(sink, "bulk", 2)
        assert committed == [1]
    assert await place.run(place.path, "SELECT * FROM work ORDER BY id") == [
        (1, "q", 7, b'{"n": 1}', "a"),
        (2, "q", 7, b'{"n": 2}', None),
    ]
    assert await place.run(place.path, "SELECT * FROM counts") == [(2,)]


# Several ends on one file


async def test_sinks_share_the_threads_of_a_file(place: SqlitePlace) -> None:
    file, staging = (
        SqliteThread(place.path, durability=Durability.OS),
        SqliteThread(place.staging_path, durability=Durability.OS),
    )
    contacts = SqliteSink("contacts", file, staging, table="contacts")
    notes = SqliteSink("notes", file, staging)
    for sink in (contacts, notes):
        await sink.start()
    await asyncio.gather(
        deliver(contacts, "first", [contact(number) for number in range(500)], key="once"),
        deliver(notes, "second", [{"n": number} for number in range(500)]),
    )
    with pytest.raises(BulkConflict):
        await begin(notes, "third", key="once")
    with pytest.raises(BulkConflict):
        await contacts.begin(BulkOrigin(id="fourth", principal="someone", key="once", priority=1))
    await contacts.close()
    await deliver(notes, "fifth", [{"n": 1}])
    assert len(await place.records("notes")) == 501
    await notes.close()


async def test_of_two_servers_with_staging_of_their_own_one_commits_a_key(place: SqlitePlace, tmp_path: Path) -> None:
    sinks = [
        SqliteSink(
            "contacts",
            SqliteThread(place.path, durability=Durability.OS),
            SqliteThread(tmp_path / f"{number}.staging.sqlite", durability=Durability.OS),
            table="contacts",
        )
        for number in range(2)
    ]
    for number, sink in enumerate(sinks):
        await sink.start()
        assert await begin(sink, f"bulk-{number}", key="once") is None
        await stage(sink, f"bulk-{number}", [contact(number)])
    await commit(sinks[0], "bulk-0", 1)
    with pytest.raises(Fenced):
        await commit(sinks[1], "bulk-1", 1)
    for sink in sinks:
        await sink.close()
    assert await place.rows() == [row(contact(0))]


async def test_what_waits_for_its_commit_is_not_swept(place: SqlitePlace) -> None:
    file, staging = (
        SqliteThread(place.path, durability=Durability.OS),
        SqliteThread(place.staging_path, durability=Durability.OS),
    )
    sink = SqliteSink("contacts", file, staging, table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await begin(sink, "left alone")
    await stage(sink, "left alone", [contact(2), contact(3)])
    hold = threading.Event()
    held = asyncio.ensure_future(file.run(lambda connection: hold.wait()))
    committing = asyncio.create_task(commit(sink, "bulk", 1))
    await asyncio.sleep(0)
    assert await sink.sweep(0.0) == 2
    hold.set()
    await held
    assert (await committing).records == 1
    assert await place.rows() == [row(contact(1))]
    await sink.close()


async def test_a_bulk_is_told_who_has_ended_it(place: SqlitePlace) -> None:
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk", key="once")
    await begin(sink, "newer", key="once")
    with pytest.raises(Fenced, match="a newer one has the same idempotency key"):
        await stage(sink, "bulk", [contact(1)])
    await begin(sink, "swept")
    await sink.sweep(0.0)
    with pytest.raises(Fenced, match="it was swept") as raised:
        await stage(sink, "swept", [contact(1)])
    assert "key" not in str(raised.value)
    await sink.close()


async def test_digits_that_no_double_has_are_kept_or_refused(tmp_path: Path) -> None:
    """The parser of records makes doubles of long numbers: no column may take such a one for what was sent."""
    tables = ("CREATE TABLE things (whole INTEGER, text_ TEXT, other, exact DECIMAL(10, 5))",)
    long_whole = b"123456789012345678901234567890"

    def parsed(*records: bytes) -> StagedBatch:
        batch = RecordBatch(records)
        return StagedBatch(0, batch, JsonObjectValidator().parse(batch))

    async with SqlitePlace(tmp_path, Durability.OS, tables) as place:
        sink = place.new_sink(name="things", table="things", columns=None)
        await sink.start()
        await begin(sink, "bulk")
        await sink.stage("bulk", parsed(b'{"text_": [%s], "other": 0.12345678901234567890}' % long_whole))
        await commit(sink, "bulk", 1)
        rows = await place.run(place.path, "SELECT * FROM things")
        assert rows == [(None, f"[{long_whole.decode()}]", 0.12345678901234568, None)]
        for field in ("whole", "other", "exact"):
            await begin(sink, "unfit")
            with pytest.raises(BulkRefused, match=r"whole number of more than 64 bits|is not within") as raised:
                await sink.stage("unfit", parsed(b'{"%s": %s}' % (field.encode(), long_whole)))
            assert record_problems(raised.value)[0].field == field
            await sink.rollback("unfit")
        await sink.close()


@pytest.mark.parametrize("change", ["DROP TABLE contacts", "ALTER TABLE contacts RENAME COLUMN name TO other"])
async def test_a_table_that_is_changed_meanwhile_is_a_failure(place: SqlitePlace, change: str) -> None:
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await place.run(place.path, change)
    with pytest.raises(StorageFailure, match="contacts"):
        await commit(sink, "bulk", 1)
    await sink.rollback("bulk")
    assert await place.staged() == 0
    await sink.close()


@pytest.mark.parametrize("staging", [True, False])
async def test_a_full_disk_is_told_as_such(place: SqlitePlace, staging: bool) -> None:
    """A file that may have no more pages is to SQLite what one on a full disk is."""
    files = [SqliteThread(path, durability=Durability.OS) for path in (place.path, place.staging_path)]
    sink = SqliteSink("contacts", *files, table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    full = files[staging]
    pages = await full.run(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await full.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])
    many = staged_batch(1, [contact(number, name="x" * 500) for number in range(2, 1000)])
    if staging:
        with pytest.raises(StorageFull) as raised:
            await sink.stage("bulk", many)
        # Clients read that: nothing of where the file is.
        name = place.staging_path.name
        assert str(raised.value) == f"the server cannot change the database {name}: database or disk is full"
    else:
        await sink.stage("bulk", many)
        with pytest.raises(StorageFull):
            await commit(sink, "bulk", 999)
    await sink.rollback("bulk")
    assert await place.staged() == 0
    assert await place.rows() == []
    await full.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone()[0])
    assert (await deliver(sink, "again", [contact(1)])).records == 1
    await sink.close()


def _room(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.exists())


@pytest.mark.parametrize("moment", ["rollback", "commit", "next bulk", "sweep", "start", "others have it open"])
async def test_room_comes_back_where_deleting_needs_room_that_is_not_there(place: SqlitePlace, moment: str) -> None:
    """Rows that take room when they are deleted stand for a log that has to grow on a full disk."""
    staging = SqliteThread(place.staging_path, durability=Durability.OS)
    file = SqliteThread(place.path, durability=Durability.OS)
    sink = SqliteSink("contacts", file, staging, table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await sink.stage("bulk", staged_batch(0, [contact(number, name="x" * 500) for number in range(1000)]))
    if moment in ("next bulk", "sweep"):
        await begin(sink, "other")
        await stage(sink, "other", [contact(5000)])

    def fill(connection: sqlite3.Connection) -> None:
        if moment == "start":
            # No process has such a number.
            connection.execute("UPDATE tailrace_bulks SET owner = '999999999 other'")
        (table,) = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%contacts%'").fetchone()
        connection.execute("CREATE TABLE log (bytes)")
        connection.execute(
            f'CREATE TRIGGER full AFTER DELETE ON "{table}" BEGIN INSERT INTO log VALUES (zeroblob(100000)); END'
        )
        connection.execute(
            "CREATE TRIGGER fenced AFTER UPDATE OF fenced ON tailrace_bulks BEGIN "
            "INSERT INTO log VALUES (zeroblob(100000)); END"
        )

    await staging.run(fill)
    ((last,),) = await staging.run(
        lambda connection: connection.execute("SELECT max(number) FROM tailrace_bulks").fetchall()
    )
    pages = await staging.run(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await staging.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])
    assert _room(place.staging_path) > 500_000
    if moment == "rollback":
        await sink.rollback("bulk")
    elif moment == "commit":
        assert (await commit(sink, "bulk", 1000)).records == 1000
    elif moment == "start":
        await SqliteSink("contacts", file, staging, table="contacts").start()
    elif moment == "others have it open":
        with closing(sqlite3.connect(place.staging_path)) as other:
            other.execute("SELECT count(*) FROM tailrace_bulks").fetchone()
            with pytest.raises(StorageFull):
                await sink.rollback("bulk")
        assert await place.staged() == 1000
        await staging.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])
        await sink.sweep(3600)
    else:
        # What runs is spared, and commits.
        with pytest.raises(StorageFull):
            await sink.rollback("bulk")
        assert await place.staged() == 1001
        if moment == "sweep":
            with pytest.raises(StorageFull):
                await sink.sweep(3600)
        assert (await commit(sink, "other", 1)).records == 1
        if moment == "sweep":
            await sink.sweep(3600)
    assert await place.staged() == 0
    assert _room(place.staging_path) < 200_000
    # No number comes again, and everything works.
    await begin(sink, "again")
    ((number,),) = await staging.run(
        lambda connection: connection.execute("SELECT number FROM tailrace_bulks").fetchall()
    )
    assert number == last + 1
    await sink.rollback("again")
    assert (await deliver(sink, "last", [contact(9000)])).records == 1
    await sink.close()
    if moment == "start":
        await file.close()
        await staging.close()


async def test_others_read_and_write_the_file_now_and_then(place: SqlitePlace) -> None:
    sink = place.new_sink()
    await sink.start()

    async def write() -> None:
        for number in range(30):
            await place.insert(row(contact(100_000 + number)))

    async def read() -> set[int]:
        return {len(await place.run(place.path, "SELECT 1 FROM contacts WHERE number < 100000")) for _ in range(60)}

    reader = place.connect()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM contacts").fetchone()
    _, seen, _ = await asyncio.gather(
        write(), read(), deliver(sink, "bulk", [contact(number) for number in range(15_000)])
    )
    assert seen <= {0, 15_000}
    # Who began to read before the commit goes on reading what was there.
    assert reader.execute("SELECT count(*) FROM contacts").fetchone() == (0,)
    reader.close()
    assert len(await place.rows()) == 15_030
    await sink.close()


async def test_a_file_that_stays_locked_is_a_failure(place: SqlitePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace_impl_server._sqlite_thread._BUSY_SECONDS", 0.1)
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk", key="once")
    await stage(sink, "bulk", [contact(1)])
    async with place.held():
        with pytest.raises(StorageFailure, match="locked"):
            await commit(sink, "bulk", 1)
    await commit(sink, "bulk", 1)
    assert await place.rows() == [row(contact(1))]
    await sink.close()


async def test_nobody_waits_for_a_commit_who_does_not_write_that_file(place: SqlitePlace) -> None:
    sink = place.new_sink()
    await sink.start()
    for name in ("first", "second"):
        await begin(sink, name)
        await stage(sink, name, [contact(len(name))])
    async with place.held():
        committing = asyncio.create_task(commit(sink, "first", 1))
        await begin(sink, "third")
        await stage(sink, "third", [contact(3)])
        await sink.rollback("second")
        assert await place.staged() == 2
        assert await place.rows() == []
        assert not committing.done()
    await committing
    await sink.close()


# Processes that are killed

_PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from tailrace_impl_server._sqlite_sink import SqliteSink
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability
from tailrace_server_api.contracts.sink import begin, commit, contact, stage

async def main():
    file, staging = (SqliteThread(Path(path), durability=Durability.OS) for path in sys.argv[1:3])
    committed = die if sys.argv[3] == "committed" else None
    sink = SqliteSink("contacts", file, staging, table="contacts", committed=committed)
    await sink.start()
    await begin(sink, "bulk", key="once")
    await stage(sink, "bulk", [contact(number) for number in range(30000)])
    if sys.argv[3] == "staged":
        die()
    print("staged", flush=True)
    if sys.argv[3] == "waiting":
        await asyncio.to_thread(sys.stdin.readline)
        print("committing", flush=True)
    await commit(sink, "bulk", 30000)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def _run_and_die(place: SqlitePlace, where: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PROGRAM,
        str(place.path),
        str(place.staging_path),
        where,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("committed", [False, True])
async def test_a_killed_process_leaves_all_of_a_bulk_or_nothing(place: SqlitePlace, committed: bool) -> None:
    process = await _run_and_die(place, "committed" if committed else "staged")
    assert await process.wait() == -signal.SIGKILL
    assert await place.staged() == 30_000
    sink = place.new_sink()
    await sink.start()
    assert await place.staged() == 0
    assert len(await place.rows()) == (30_000 if committed else 0)
    found = await begin(sink, "again", key="once")
    assert (found is not None) == committed
    await sink.close()


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04])
async def test_a_process_that_is_killed_while_it_commits_leaves_all_or_nothing(
    place: SqlitePlace, delay: float
) -> None:
    process = await _run_and_die(place, "told")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"staged\n"
    # The moments differ, so that some are within the transaction, before it and behind it.
    await asyncio.sleep(delay)
    # It may have come to its end by then.
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    visible = len(await place.rows())
    assert visible in (0, 30_000)
    sink = place.new_sink()
    await sink.start()
    assert await place.staged() == 0
    found = await begin(sink, "again", key="once")
    assert (found is not None) == bool(visible)
    await sink.close()


async def test_a_process_that_is_killed_while_its_commit_waits_leaves_nothing(place: SqlitePlace) -> None:
    process = await _run_and_die(place, "waiting")
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"staged\n"
    async with place.held():
        process.stdin.write(b"go on\n")
        assert await process.stdout.readline() == b"committing\n"
        process.kill()
        await process.wait()
    sink = place.new_sink()
    await sink.start()
    assert await place.staged() == 0
    assert await place.rows() == []
    await sink.close()


async def test_the_bulks_of_a_process_that_is_alive_are_left_alone(place: SqlitePlace) -> None:
    async with place.held():
        pass
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    # Somebody else's, who is there.
    await place.run(place.staging_path, f"UPDATE tailrace_bulks SET owner = '{os.getppid()} x'")
    assert await sink.sweep(0) == 0
    # An earlier process of this number.
    await place.run(place.staging_path, f"UPDATE tailrace_bulks SET owner = '{os.getpid()} x'")
    assert await sink.sweep(3600) == 1
    await sink.close()


async def test_records_of_which_nothing_else_is_known_are_swept(place: SqlitePlace) -> None:
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(number) for number in range(10)])
    await place.run(place.staging_path, "DELETE FROM tailrace_bulks")
    assert await sink.sweep(3600) == 10
    assert await place.staged() == 0
    await sink.close()


async def test_a_damaged_place_for_staging_is_an_error_of_the_settings(place: SqlitePlace) -> None:
    with closing(sqlite3.connect(place.path)):
        place.staging_path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigurationError, match="staging"):
        await place.new_sink().start()
