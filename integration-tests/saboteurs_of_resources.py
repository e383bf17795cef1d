"""Defects around resources and their status."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("RES-3", "DWN-1", trap="status-order")
def older_status_overtakes_newer() -> None:
    from tailrace_impl_server import _manager

    async def statuses(self: Any, id: str, *, token: str | None = None) -> Any:
        live = await self._acquire_visible(id, token)
        older: list[Any] = []
        try:
            while True:
                live.check()
                status = live.status()
                yield status
                if older:
                    executed()
                    yield older.pop()
                else:
                    older.append(status)
                if status.state.terminal:
                    return
                await live.changed(status.version)
        finally:
            self._registry.release(live)

    put(_manager.Manager, "statuses", statuses)


@saboteur("DWN-1", "DWN-4", "RES-3", trap="overtaken-status")
def a_change_between_looking_and_waiting_is_missed() -> None:
    from tailrace_impl_server import _live_resource

    async def changed(self: Any, version: int, absorb: Any = None) -> Any:
        # Waits for the next change, whatever has happened since the caller looked.
        self.check()
        executed()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
        self.check()
        return self._snapshot

    put(_live_resource.LiveResource, "changed", changed)


@saboteur("RES-3", trap="completed-flips", cell="grpc-memory")
def a_lost_connection_fails_what_is_complete() -> None:
    from tailrace_common_api import ResourceState
    from tailrace_impl_server import _ingest

    real = _ingest.UploadSession.release

    async def release(self: Any) -> None:
        await real(self)
        live = self.live
        if live.snapshot.state is ResourceState.COMPLETED:
            executed()
            stored = self._writer._resource
            stored.snapshot = replace(
                stored.snapshot, state=ResourceState.FAILED, reason="uploader lost", version=stored.snapshot.version + 1
            )

    put(_ingest.UploadSession, "release", release)


@saboteur("RES-7", "DWN-2", trap="hanging-caller")
def unknown_ids_hang_the_caller() -> None:
    from tailrace_common_api import NotFound
    from tailrace_impl_server import _manager

    real = _manager.Manager.open_reader

    async def open_reader(self: Any, id: str, *, token: str | None = None) -> Any:
        try:
            return await real(self, id, token=token)
        except NotFound:
            executed()
            await asyncio.Event().wait()

    put(_manager.Manager, "open_reader", open_reader)


@saboteur("RES-5", "UPL-6", "CHK-2")
def a_size_is_announced_before_its_bytes_are_there() -> None:
    from tailrace_impl_server import _ingest

    real = _ingest.UploadSession._publish_growth

    def publish(self: Any, snapshot: Any) -> None:
        executed()
        real(self, replace(snapshot, size=snapshot.size + 1))

    put(_ingest.UploadSession, "_publish_growth", publish)


@saboteur("RES-8", cell="in-process-filesystem")
def deleting_leaves_the_files() -> None:
    from tailrace_impl_server import _filesystem_storage

    async def delete(self: Any, id: str) -> None:
        executed()

    put(_filesystem_storage.FilesystemStorage, "delete", delete)


@saboteur("RES-8", "UPL-16")
def deleting_tells_nobody() -> None:
    from tailrace_impl_server import _live_resource

    def mark_deleted(self: Any) -> None:
        executed()
        if self.session is not None:
            self.session._stopping = True
            self.session._wake()

    put(_live_resource.LiveResource, "mark_deleted", mark_deleted)


@saboteur("RES-9", cell="websocket-filesystem")
def a_listing_by_time_begins_behind_its_first() -> None:
    from tailrace_impl_server import _sqlite_catalog_pages

    real = _sqlite_catalog_pages.range_of

    def range_of(connection: Any, filter: Any) -> Any:
        found = real(connection, filter)
        if found is not None and found.first is not None:
            executed()
            return replace(found, first=found.first + "0")
        return found

    put(_sqlite_catalog_pages, "range_of", range_of)


@saboteur("RES-9")
def listing_ignores_labels() -> None:
    from tailrace_impl_server import _memory_catalog

    real = _memory_catalog.MemoryCatalog.list

    async def list_(self: Any, filter: Any, **arguments: Any) -> Any:
        if filter.labels:
            executed()
        return await real(self, replace(filter, labels={}), **arguments)

    put(_memory_catalog.MemoryCatalog, "list", list_)


@saboteur("RES-2", cell="websocket-memory")
def the_server_takes_any_metadata() -> None:
    from tailrace_common_api import _model

    def check(self: Any) -> None:
        executed()

    put(_model.Metadata, "__post_init__", check)


@saboteur("RES-6", cell="grpc-memory")
def references_ignore_the_public_base() -> None:
    from tailrace_impl_common import _serve, _serve_download, _serve_upload

    def status_under(status: Any, base: str) -> Any:
        executed()
        return replace(status, reference=status.id)

    for module in (_serve, _serve_download, _serve_upload):
        put(module, "status_under", status_under)
