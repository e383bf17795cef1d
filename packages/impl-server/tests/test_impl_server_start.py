"""What the start of a server looks at: it must not grow with what is stored."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from impl_server_manager_bench import LINES, Bench, Uploader, upload

from tailrace_common_api import ResourceState
from tailrace_impl_server import SqliteCatalog
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._filesystem_layout import Layout


class Looks:
    """Counts openings of resources, readings of descriptions, and statements to the catalog."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.described: list[str] = []
        self.statements: list[str] = []
        open_files, describe, connect = ResourceFiles.__init__, Layout.describe, SqliteCatalog._connect

        def counted_open(files: ResourceFiles, folder: Path, *, writable: bool) -> None:
            self.opened.append(folder.name)
            open_files(files, folder, writable=writable)

        def counted_describe(layout: Layout, id: str) -> object:
            self.described.append(id)
            return describe(layout, id)

        def traced(catalog: SqliteCatalog) -> sqlite3.Connection:
            connection = connect(catalog)
            connection.set_trace_callback(self.statements.append)
            return connection

        monkeypatch.setattr(ResourceFiles, "__init__", counted_open)
        monkeypatch.setattr(Layout, "describe", counted_describe)
        monkeypatch.setattr(SqliteCatalog, "_connect", traced)

    def clear(self) -> None:
        """Count from here on."""
        for found in (self.opened, self.described, self.statements):
            found.clear()


async def test_a_start_looks_at_no_resource_that_has_ended(disk_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await disk_bench.start()
    unfinished = Uploader(await manager.create(LINES))
    await unfinished.send(b"a line\n")
    await unfinished.announced()
    looks = Looks(monkeypatch)
    statements = []
    for stored in (3, 30):
        for _ in range(stored):
            await upload(disk_bench.manager, b"a line\n")
        await disk_bench.close()
        looks.clear()
        await disk_bench.start()
        assert looks.opened == [unfinished.id]
        assert looks.described == []
        statements.append(len(looks.statements))
    assert statements[0] == statements[1]


async def test_many_interrupted_uploads_all_get_their_grace(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    uploaders = [Uploader(await manager.create(LINES)) for _ in range(70)]
    for uploader in uploaders:
        await uploader.send(b"a line\n")
    for uploader in uploaders:
        await uploader.announced()
    manager = await disk_bench.restart(upload_grace=0.0)
    for uploader in uploaders:
        states = [status.state async for status in manager.statuses(uploader.id)]
        assert states[-1] is ResourceState.FAILED
