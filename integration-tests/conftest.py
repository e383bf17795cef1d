"""What every integration test has: its cell, a real server, clients of it, and a clean end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import saboteurs
from cells import (
    CROSSINGS,
    EVERY_CELL,
    RECORD_CELLS,
    Cell,
    Crossing,
    Database,
    RecordCell,
    StorageKind,
    Transport,
    ordered,
)
from clock import Clock
from faulty_server import FaultyServer
from free_ports import free_port
from manifest import EXPECTED_FAILURES
from postgres_server import PostgresServer
from record_databases import PostgresDatabase, RecordDatabase, SqliteDatabase
from server_process import ServerProcess
from servers import LocalServer, NewServer

from tailrace_impl_common import ConnectedClient

NewClient = Callable[..., ConnectedClient]

HERE = Path(__file__).parent
PATIENCE = 240
"""Longest time of a test that sets no other, in seconds: a loaded machine may take ten times as long as an idle one."""


# Citations, cells, and saboteurs


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("integration tests")
    group.addoption("--citations", metavar="FILE", help="write which test cites which requirement on which cell")
    group.addoption("--proving", metavar="IDS", help="only tests that cite one of these requirements")
    group.addoption("--cell", metavar="CELL", help="only this cell, such as in-process-memory")
    group.addoption("--saboteur", metavar="NAME", help="break the code like this")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(*ids): the requirements that a test proves")
    config.addinivalue_line("markers", "cells(cells): the cells on which a test runs; all when it is missing")
    config.addinivalue_line("markers", "record_cells(cells): the same for tests of record streams")
    name = config.getoption("--saboteur")
    if name:
        # Server processes find it in the environment.
        os.environ[saboteurs.NAME_VARIABLE] = name
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(HERE / "sabotaged"), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        saboteurs.apply(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "crossing" in metafunc.fixturenames:
        metafunc.parametrize("crossing", CROSSINGS, ids=str)
    elif "record_cell" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("record_cells")
        record_cells = RECORD_CELLS if marker is None else marker.args[0]
        metafunc.parametrize("record_cell", ordered(record_cells), ids=str)
    elif "cell" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("cells")
        cells = EVERY_CELL if marker is None else marker.args[0]
        metafunc.parametrize("cell", ordered(cells), ids=str)


def cited(item: pytest.Item) -> list[str]:
    """Return the requirements that a test cites."""
    return [cited_id for marker in item.iter_markers("proves") for cited_id in marker.args]


def _parameter(item: pytest.Item, name: str) -> Any:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(name)


def _cell_of(item: pytest.Item) -> Cell | RecordCell | None:
    found: Cell | RecordCell | None = _parameter(item, "cell") or _parameter(item, "record_cell")
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--proving")
    cell = config.getoption("--cell")
    if wanted or cell:
        ids = set((wanted or "").split(","))
        kept = [
            item
            for item in items
            if (not wanted or ids & set(cited(item)))
            and (not cell or (of := _cell_of(item)) is None or str(of) == cell)
            and (not cell or _parameter(item, "crossing") is None)
        ]
        dropped = [item for item in items if item not in kept]
        config.hook.pytest_deselected(items=dropped)
        # What needs processes and takes long comes last: most of what is looked for is noticed before.
        items[:] = sorted(kept, key=lambda item: item.path.name.startswith("test_faults_"))
    for item in items:
        # Not above what somebody wants who expects them to hang.
        if item.get_closest_marker("timeout") is None and config.getoption("timeout", None) is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))
        of = _cell_of(item)
        for expected in EXPECTED_FAILURES:
            if expected.id in cited(item) and of == Cell(expected.transport, expected.storage):
                item.add_marker(pytest.mark.xfail(reason=f"{expected.id}: {expected.reason}", strict=True))


def pytest_collection_finish(session: pytest.Session) -> None:
    path = session.config.getoption("--citations")
    if path:
        citations = [
            {
                "test": item.nodeid,
                "ids": cited(item),
                "cell": str(_cell_of(item) or ""),
                "crossing": str(_parameter(item, "crossing") or ""),
            }
            for item in session.items
        ]
        Path(path).write_text(json.dumps(citations))


# A clean end


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Defects in callbacks, in gRPC and in asyncio are reported nowhere but in the log."""
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    # grpc.aio ends its own tasks a few turns of the loop after the calls have ended.
    for _ in range(200):
        left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
        if not left:
            return
        await asyncio.wait(left, timeout=0.1)
    pytest.fail(f"tasks are left: {left}")


# Servers and clients in the loop of the test


def _storage_of(request: pytest.FixtureRequest) -> StorageKind:
    if "crossing" in request.fixturenames:
        crossing: Crossing = request.getfixturevalue("crossing")
        return crossing.storage
    cell: Cell = request.getfixturevalue("cell")
    return cell.storage


def _transports_of(request: pytest.FixtureRequest) -> tuple[Transport, ...]:
    if "crossing" in request.fixturenames:
        crossing: Crossing = request.getfixturevalue("crossing")
        return crossing.upload, crossing.download
    cell: Cell = request.getfixturevalue("cell")
    return (cell.transport,)


@pytest.fixture
async def new_server(request: pytest.FixtureRequest, tmp_path: Path, no_task_is_left: None) -> AsyncIterator[NewServer]:
    """Make servers of the cell's storage, listening on its transport; keyword arguments are settings of the manager.

    ``transport_settings`` holds those of the transports.
    """
    servers: list[LocalServer] = []
    storage, transports = _storage_of(request), _transports_of(request)

    async def new(*, transport_settings: dict[str, Any] | None = None, **options: object) -> LocalServer:
        folder = tmp_path / f"data-{len(servers)}" if storage is StorageKind.FILESYSTEM else None
        server = LocalServer(folder, options, transport_settings or {})
        servers.append(server)
        await server.start()
        await server.listen(*transports)
        return server

    yield new
    for server in servers:
        await server.close()


@pytest.fixture
async def server(new_server: NewServer) -> LocalServer:
    """A server with the default settings."""
    return await new_server()


@pytest.fixture
def client(server: LocalServer, cell: Cell) -> ConnectedClient:
    """A client over the cell's transport."""
    return server.connect(cell.transport)


@pytest.fixture
def second_client(server: LocalServer, cell: Cell) -> ConnectedClient:
    """Another client over the cell's transport, on a connection of its own."""
    return server.connect(cell.transport)


@pytest.fixture
def uploader(server: LocalServer, crossing: Crossing) -> ConnectedClient:
    """A client over the transport that the crossing uploads with."""
    return server.connect(crossing.upload)


@pytest.fixture
def reader(server: LocalServer, crossing: Crossing) -> ConnectedClient:
    """A client over the transport that the crossing reads with."""
    return server.connect(crossing.download)


@pytest.fixture
async def clock() -> Clock:
    """The clock of the test's loop."""
    return Clock(asyncio.get_running_loop())


# Servers of record streams


@pytest.fixture
async def record_database(request: pytest.FixtureRequest, record_cell: RecordCell, tmp_path: Path) -> RecordDatabase:
    """The database of the cell, with the tables of the suite."""
    if record_cell.database is Database.SQLITE:
        return SqliteDatabase(tmp_path / "shop.sqlite")
    database = PostgresDatabase(request.getfixturevalue("postgres_url"), tmp_path)
    await database.make_tables()
    return database


@pytest.fixture
async def new_record_server(
    record_cell: RecordCell, record_database: RecordDatabase, tmp_path: Path, no_task_is_left: None
) -> AsyncIterator[NewServer]:
    """Make servers with the ends of the suite on the cell's database; keyword arguments are settings of the manager.

    ``ends`` are tables of more ends, ``transport_settings`` those of the transport.
    """
    servers: list[LocalServer] = []

    async def new(
        *,
        ends: dict[str, dict[str, Any]] | None = None,
        transport_settings: dict[str, Any] | None = None,
        **options: object,
    ) -> LocalServer:
        tables = record_database.tables(ends or {})
        server = LocalServer(tmp_path / f"data-{len(servers)}", options, transport_settings or {}, records=tables)
        servers.append(server)
        await server.start()
        await server.listen(record_cell.transport)
        return server

    yield new
    for server in servers:
        await server.close()


@pytest.fixture
async def record_server(new_record_server: NewServer) -> LocalServer:
    """A server with the ends of the suite and the default settings."""
    return await new_record_server()


@pytest.fixture
def record_client(record_server: LocalServer, record_cell: RecordCell) -> ConnectedClient:
    """A client over the cell's transport."""
    return record_server.connect(record_cell.transport)


# Servers in a process of their own


@pytest.fixture
def new_server_process(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Make servers by the real command; keyword arguments are settings of the storage."""
    processes: list[ServerProcess] = []

    def new(folder: Path | None = None, *, ports: tuple[int, int] = (0, 0), **options: object) -> ServerProcess:
        process = ServerProcess(folder or tmp_path / "data", tmp_path, options, ports=ports)
        processes.append(process)
        process.start()
        return process

    yield new
    for process in processes:
        process.dispose()


@pytest.fixture
def server_process(new_server_process: Callable[..., ServerProcess]) -> ServerProcess:
    """A server in a process of its own, which listens on both transports."""
    return new_server_process()


@pytest.fixture
def settled_server_process(new_server_process: Callable[..., ServerProcess]) -> ServerProcess:
    """The same on ports that nobody takes while it is down."""
    return new_server_process(ports=(free_port(), free_port()))


# Servers of record streams in a process of their own


_FAULTY_RECORD_OPTIONS = {"group_seconds": 0.01, "staging_retention": 4.0, "sweep_interval": 0.1}


@pytest.fixture
def faulty_record_server(record_database: RecordDatabase, tmp_path: Path) -> Iterator[FaultyServer]:
    """A server with the ends of the suite on the cell's database, which the test starts."""
    record_database.settings(tmp_path)
    server = FaultyServer(tmp_path / "data", tmp_path, _FAULTY_RECORD_OPTIONS)
    yield server
    server.dispose()


@pytest.fixture(scope="session")
def _syncing_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def mortal_postgres(_syncing_postgres: PostgresServer) -> PostgresServer:
    """A PostgreSQL server that syncs its commits, and that nobody else uses while this test does."""
    if not _syncing_postgres.running:
        _syncing_postgres.start()
    return _syncing_postgres


@pytest.fixture
async def on_mortal_postgres(
    mortal_postgres: PostgresServer, tmp_path: Path
) -> AsyncIterator[tuple[FaultyServer, PostgresDatabase]]:
    """A server that runs on it, and its database."""
    database = PostgresDatabase(await asyncio.to_thread(mortal_postgres.create_database), tmp_path)
    await database.make_tables()
    database.settings(tmp_path)
    # A crash may take longer than what is old is kept for otherwise.
    server = FaultyServer(tmp_path / "data", tmp_path, {**_FAULTY_RECORD_OPTIONS, "staging_retention": 60.0})
    await asyncio.to_thread(server.start)
    yield server, database
    server.dispose()
