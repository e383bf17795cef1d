"""What the SQLite catalog does beside the contract: damage, group commit, indexes, other connections."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from impl_server_first_catalog import FIRST_SCHEMA, write_first_catalog

from tailrace_common_api import (
    ConfigurationError,
    ListFilter,
    Metadata,
    ResourceState,
    StorageFailure,
    StorageFull,
    Visibility,
)
from tailrace_impl_common import IdGenerator
from tailrace_impl_server import _sqlite_catalog
from tailrace_impl_server import _sqlite_catalog_pages as pages
from tailrace_impl_server import _sqlite_catalog_statements as statements
from tailrace_impl_server._descriptor import descriptor_to_json
from tailrace_impl_server._sqlite_catalog import SqliteCatalog
from tailrace_server_api import CatalogEntry, ContextEntry, Descriptor, Durability, Usage


def entry(number: int) -> CatalogEntry:
    return CatalogEntry(
        Descriptor(
            id=f"{number:032d}",
            metadata=Metadata(name="x", labels={"parity": str(number % 2)}, context="c"),
            visibility=Visibility.LIVE,
            created_at=float(number),
            token_hash=bytes(32),
            principal="",
        ),
        ResourceState.INITIATED,
    )


async def started(path: Path, durability: Durability = Durability.OS) -> SqliteCatalog:
    catalog = SqliteCatalog(path, durability=durability)
    await catalog.start()
    return catalog


async def filled(path: Path, count: int = 500) -> None:
    catalog = await started(path)
    await asyncio.gather(*(catalog.insert(entry(number)) for number in range(count)))
    await catalog.close()


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "not a database":
        path.write_bytes(b"this is no database" * 1000)
    elif how == "cut":
        os.truncate(path, size // 2)
    else:
        with open(path, "r+b") as file:
            file.seek(size // 3)
            file.write(b"\xa5" * (size // 3))


@pytest.mark.parametrize("how", ["not a database", "cut", "overwritten"])
async def test_a_damaged_file_is_put_aside_and_made_anew(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "catalog.sqlite"
    for attempt in (1, 2):
        await filled(path)
        damage(path, how)
        catalog = await started(path)
        assert await catalog.known() == frozenset()
        assert await catalog.insert(entry(1)) is None
        assert await catalog.known() == {entry(1).descriptor.id}
        await catalog.close()
        assert (tmp_path / f"catalog.sqlite.damaged-{attempt}").exists()
        assert "is damaged" in caplog.text


def damage_descriptors(path: Path) -> None:
    """Damage pages that opening does not look at."""
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big")
    for start in range(len(content) - 20 * page, len(content), page):
        content[start : start + page // 2] = b"\xa5" * (page // 2)
    path.write_bytes(content)


async def test_a_large_file_is_checked_while_it_is_used_and_made_anew_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_sqlite_catalog, "_CHECKED_BYTES", 0)
    path = tmp_path / "catalog.sqlite"
    await filled(path)
    catalog = await started(path)
    assert catalog._check is not None
    await asyncio.to_thread(catalog._check.wait)
    await catalog.close()
    assert "damaged" not in caplog.text
    damage_descriptors(path)
    catalog = await started(path)
    assert catalog._check is not None
    await asyncio.to_thread(catalog._check.wait)
    await catalog.close()
    assert "the next start of the server makes it anew" in caplog.text
    catalog = await started(path)
    assert await catalog.known() == frozenset()
    await catalog.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["catalog.sqlite", "catalog.sqlite.damaged-1"]


async def test_damage_that_a_question_meets_is_noted_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_catalog, "_CHECKED_BYTES", 0)
    monkeypatch.setattr(_sqlite_catalog, "_check_whole", lambda connection: None)
    path = tmp_path / "catalog.sqlite"
    await filled(path)
    damage_descriptors(path)
    catalog = await started(path)

    async def use() -> None:
        for number in range(500):
            await catalog.get(entry(number).descriptor.id)
            await catalog.delete(entry(number).descriptor.id)

    with pytest.raises(StorageFailure):
        await use()
    await catalog.close()
    catalog = await started(path)
    assert await catalog.known() == frozenset()
    await catalog.close()


async def test_closing_ends_a_check_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite_catalog, "_CHECKED_BYTES", 0)

    def for_ever(connection: sqlite3.Connection) -> None:
        connection.execute("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n")

    monkeypatch.setattr(_sqlite_catalog, "_check_whole", for_ever)
    path = tmp_path / "catalog.sqlite"
    catalog = await started(path)
    await catalog.insert(entry(1))
    assert catalog._check is not None
    await catalog.close()
    assert not catalog._check._thread.is_alive()
    assert not (tmp_path / "catalog.sqlite.damaged").exists()


async def test_a_missing_file_is_made(tmp_path: Path) -> None:
    catalog = await started(tmp_path / "not" / "there" / "catalog.sqlite")
    assert await catalog.known() == frozenset()
    await catalog.close()


async def test_a_file_of_a_newer_version_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    await filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    catalog = SqliteCatalog(path, durability=Durability.OS)
    with pytest.raises(ConfigurationError, match="version 99"):
        await catalog.start()
    await catalog.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM resource").fetchone() == (500,)
    connection.close()


async def test_a_file_of_the_first_version_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    rows = [(entry(number).descriptor, number, 50.0 + number if number >= 2 else None) for number in range(4)]
    write_first_catalog(path, rows)
    catalog = await started(path)
    ids = [entry(number).descriptor.id for number in range(4)]
    # Nobody knows the sizes of those that have ended: until recovery has asked the storage, they count as unfinished.
    assert set(await catalog.unfinished()) == set(ids)
    for number, state in ((2, ResourceState.COMPLETED), (3, ResourceState.FAILED)):
        await catalog.set_state(ids[number], state, 99.0, size=10 * number)
        found = await catalog.get(ids[number])
        assert found == CatalogEntry(entry(number).descriptor, state, 50.0 + number, 10 * number)
    assert await catalog.usage() == (Usage("c", 4, 50),)
    assert await catalog.get_context("c") == ContextEntry(id="c", attributes={}, created_at=0.0, closed_at=53.0)
    page = await catalog.list(ListFilter(labels={"parity": "1"}), after=None, limit=10)
    assert [found.descriptor.id for found in page] == [ids[1], ids[3]]
    await catalog.close()
    again = await started(path)
    assert set(await again.unfinished()) == set(ids[:2])
    await again.close()


def test_an_upgraded_file_has_the_schema_of_a_new_one() -> None:
    schemas = []
    for scripts in ([statements.SCHEMA], [FIRST_SCHEMA, statements.UPGRADES[1]]):
        connection = sqlite3.connect(":memory:", isolation_level=None)
        for script in scripts:
            connection.executescript(script)
        columns = connection.execute("SELECT name, type FROM pragma_table_info('resource')").fetchall()
        others = connection.execute("SELECT name, sql FROM sqlite_schema WHERE name <> 'resource'").fetchall()
        version = connection.execute("PRAGMA user_version").fetchone()
        schemas.append((columns, sorted(others), version))
        connection.close()
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT context, count(*), sum(size) FROM resource INDEXED BY resource_by_usage GROUP BY context",
        "SELECT id FROM resource INDEXED BY resource_unfinished WHERE context = 'c' AND state < 2",
        "SELECT count(*) FROM context WHERE closed_at IS NULL",
    ],
)
def test_what_contexts_need_is_found_through_an_index(query: str) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(statements.SCHEMA)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert all("INDEX" in step and "TEMP B-TREE" not in step for step in plan)
    connection.close()


async def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    catalog = SqliteCatalog(tmp_path, durability=Durability.OS)
    with pytest.raises(ConfigurationError):
        await catalog.start()
    await catalog.close()


async def test_what_was_committed_is_there_after_a_kill(tmp_path: Path) -> None:
    catalog = await started(tmp_path / "catalog.sqlite")
    await asyncio.gather(*(catalog.insert(entry(number)) for number in range(50)))
    for name in ("catalog.sqlite", "catalog.sqlite-wal"):
        target = tmp_path / f"killed-{name}"
        target.write_bytes((tmp_path / name).read_bytes())
    await catalog.close()
    survivor = await started(tmp_path / "killed-catalog.sqlite")
    assert len(await survivor.known()) == 50
    await survivor.close()


async def test_changes_that_wait_together_are_committed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    commit = _sqlite_catalog._commit

    def counting(
        connection: sqlite3.Connection,
        batch: list[_sqlite_catalog._Change],
        note_damage: Callable[[sqlite3.Error], None],
    ) -> list[_sqlite_catalog._Outcome]:
        commits.append(len(batch))
        return commit(connection, batch, note_damage)

    monkeypatch.setattr(_sqlite_catalog, "_commit", counting)
    catalog = await started(tmp_path / "catalog.sqlite", Durability.FSYNC)
    # While another connection writes, changes gather.
    other = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    inserts = [asyncio.ensure_future(catalog.insert(entry(number))) for number in range(200)]
    await asyncio.sleep(0)
    other.execute("COMMIT")
    other.close()
    assert await asyncio.gather(*inserts) == [None] * 200
    assert sum(commits) == 200
    assert len(commits) <= 3
    await catalog.close()


async def test_a_change_that_fails_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = statements.insert
    bad = entry(3).descriptor.id

    def failing(connection: sqlite3.Connection, added: CatalogEntry, text: str) -> str | None:
        insert(connection, added, text)
        if added.descriptor.id == bad:
            raise sqlite3.OperationalError("disk I/O error")
        return None

    monkeypatch.setattr(statements, "insert", failing)
    catalog = await started(tmp_path / "catalog.sqlite")
    results = await asyncio.gather(*(catalog.insert(entry(number)) for number in range(10)), return_exceptions=True)
    assert [type(result) for result in results] == [
        StorageFailure if number == 3 else type(None) for number in range(10)
    ]
    assert await catalog.known() == {entry(number).descriptor.id for number in range(10) if number != 3}
    await catalog.close()


async def test_a_full_disk_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    insert = statements.insert

    def on_a_full_disk(connection: sqlite3.Connection, added: CatalogEntry, text: str) -> str | None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return insert(connection, added, text)

    monkeypatch.setattr(statements, "insert", on_a_full_disk)
    catalog = await started(tmp_path / "catalog.sqlite")
    results = await asyncio.gather(*(catalog.insert(entry(number)) for number in range(1000)), return_exceptions=True)
    assert isinstance(results[-1], StorageFull)
    assert {type(result) for result in results} <= {StorageFull, type(None)}
    # To clients, who have disks of their own; and to the log, where it is no defect.
    assert str(results[-1]) == "the server cannot change its catalog: database or disk is full"
    assert [(record.getMessage(), record.exc_info) for record in caplog.records[-1:]] == [
        ("a change of the catalog failed: database or disk is full", None)
    ]
    await catalog.close()


async def test_a_reader_elsewhere_does_not_stop_changes(tmp_path: Path) -> None:
    catalog = await started(tmp_path / "catalog.sqlite")
    await catalog.insert(entry(1))
    other = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM resource").fetchone() == (1,)
    await catalog.insert(entry(2))
    assert other.execute("SELECT count(*) FROM resource").fetchone() == (1,)
    other.close()
    await catalog.close()


@pytest.mark.parametrize(
    "filter",
    [
        ListFilter(),
        ListFilter(labels={"a": "b"}),
        ListFilter(labels={"a": "b", "c": "d"}, context="e", state=ResourceState.COMPLETED),
        ListFilter(context="e"),
        ListFilter(state=ResourceState.FAILED),
        ListFilter(context="e", state=ResourceState.FAILED, created_from=1.0, created_before=2.0),
    ],
)
def test_a_later_page_is_found_through_an_index_and_nothing_is_sorted(filter: ListFilter) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(statements.SCHEMA)
    for index in range(len(pages.indexes(filter))):
        query, values = pages.page_query(filter, "0" * 32, 100, index=index)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
        assert "id>?" in plan[0]
        assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step]
    connection.close()


class Steps:
    """Counts what SQLite does for statements, in steps of its machine: they depend on nothing but the data."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.count = 0

    def of(self, filter: ListFilter, after: str | None = None, *, limit: int = 10) -> int:
        """Return the steps of a page."""
        self.count = 0
        self._connection.set_progress_handler(self._step, 1)
        pages.page(self._connection, filter, after, limit)
        self._connection.set_progress_handler(None, 1)
        return self.count

    def _step(self) -> int:
        self.count += 1
        return 0


def many(count: int) -> sqlite3.Connection:
    """Return a catalog of COMPLETED resources with a label that all have, one that few have, and one context of two."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(statements.SCHEMA)
    connection.execute("BEGIN")
    ids = IdGenerator(lambda: 1_700_000_000_000_000_000)
    for number in range(count):
        new, created_at = ids.next()
        labels = {"all": "yes", "few": "yes"} if number in (3, count - 3) else {"all": "yes"}
        metadata = Metadata(name="x", labels=labels, context=f"{number % 2:032d}")
        described = replace(entry(1).descriptor, id=new, created_at=created_at, metadata=metadata)
        made = CatalogEntry(described, ResourceState.COMPLETED, created_at, 0)
        statements.insert(connection, made, descriptor_to_json(described))
    connection.execute("COMMIT")
    return connection


def test_what_a_page_takes_does_not_depend_on_how_much_there_is() -> None:
    few, much = many(2_000), many(20_000)
    for selected in (
        ListFilter(),
        ListFilter(state=ResourceState.COMPLETED),
        ListFilter(labels={"all": "yes"}),
        ListFilter(labels={"all": "yes", "few": "yes"}),
        ListFilter(labels={"all": "yes", "none": "yes"}),
        ListFilter(labels={"all": "yes"}, state=ResourceState.FAILED),
        ListFilter(labels={"few": "yes"}, context="0" * 32),
        ListFilter(context="0" * 32),
        ListFilter(context="0" * 32, state=ResourceState.FAILED),
    ):
        assert Steps(much).of(selected) <= Steps(few).of(selected) * 1.2 + 50
        # A page in the middle is no dearer than the first.
        middle = much.execute("SELECT id FROM resource ORDER BY id LIMIT 1 OFFSET 10000").fetchone()[0]
        assert Steps(much).of(selected, middle) <= Steps(much).of(selected) * 1.2 + 50
    for connection in (few, much):
        connection.close()


def test_times_of_creation_are_found_without_looking_at_all_that_is_older() -> None:
    connection = many(20_000)
    rows = connection.execute("SELECT id, created_at FROM resource ORDER BY id").fetchall()
    everything = [row[0] for row in rows]
    for number in (0, 1, 7_000, 19_998, 19_999):
        moment = rows[number][1]
        late = pages.page(connection, ListFilter(created_from=moment), None, 3)
        assert [found.descriptor.id for found in late] == everything[number : number + 3]
        early = pages.page(connection, ListFilter(created_before=moment), everything[max(0, number - 4)], 100)
        assert [found.descriptor.id for found in early] == everything[max(0, number - 4) + 1 : number]
        assert Steps(connection).of(ListFilter(created_from=moment, labels={"all": "yes"})) < 10_000
        assert Steps(connection).of(ListFilter(created_before=moment), everything[number]) < 10_000
    assert pages.page(connection, ListFilter(created_from=rows[-1][1] + 1), None, 3) == ()
    assert pages.page(connection, ListFilter(created_before=rows[0][1]), None, 3) == ()
    connection.close()


async def test_a_closed_catalog_refuses(tmp_path: Path) -> None:
    catalog = await started(tmp_path / "catalog.sqlite")
    await catalog.close()
    with pytest.raises(StorageFailure):
        await catalog.insert(entry(1))
    with pytest.raises(StorageFailure):
        await catalog.known()


async def test_fsync_means_full_synchronisation(tmp_path: Path) -> None:
    for durability, expected in ((Durability.OS, 1), (Durability.FSYNC, 2)):
        catalog = SqliteCatalog(tmp_path / "catalog.sqlite", durability=durability)
        connection = await asyncio.to_thread(catalog._open)
        try:
            level, mode = await asyncio.to_thread(
                lambda opened: (
                    opened.execute("PRAGMA synchronous").fetchone()[0],
                    opened.execute("PRAGMA journal_mode").fetchone()[0],
                ),
                connection,
            )
        finally:
            connection.close()
        assert (level, mode) == (expected, "wal")
        await catalog.close()


async def test_a_defect_does_not_end_the_writing_of_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = await started(tmp_path / "catalog.sqlite")

    def fail(error: sqlite3.Error) -> None:
        raise PermissionError("the folder cannot be looked into")

    monkeypatch.setattr(catalog, "_note_damage", fail)
    with pytest.raises(StorageFailure, match="cannot be looked into"):
        await catalog._change(lambda connection: connection.execute("nonsense"))
    await catalog.insert(entry(1))
    assert await catalog.known() == {entry(1).descriptor.id}
    await catalog.close()
