"""Defects that only a process that dies, a network that lies or a disk that fails brings to light."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("CHK-3", "RES-5", cell="websocket-filesystem")
def sizes_are_announced_before_the_slot_is_written() -> None:
    from tailrace_common_api import ResourceState
    from tailrace_impl_server._filesystem_writer import FilesystemWriter
    from tailrace_server_api import Committed

    real = FilesystemWriter._commit

    def commit(self: Any, slot: Any, *, cut: bool = False) -> Any:
        if slot.snapshot.state is ResourceState.IN_PROGRESS and slot.snapshot.version % 3:
            executed()
            self._committed = self._files.slot = slot
            return Committed(slot.snapshot)
        return real(self, slot, cut=cut)

    put(FilesystemWriter, "_commit", commit)


@saboteur("DWN-5", "UPL-9", cell="grpc-filesystem")
def a_transport_that_was_disturbed_is_a_defect_of_the_server() -> None:
    import grpc

    from tailrace_impl_grpc import _error_table

    for status in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        _error_table._CODE_OF_STATUS[status] = "internal"
    real = _error_table.error_from_status

    def error_from_status(status: Any, *arguments: Any, **named: Any) -> Any:
        if status in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
            executed()
        return real(status, *arguments, **named)

    from tailrace_impl_grpc import _client_streams

    put(_client_streams, "error_from_status", error_from_status)


@saboteur("UPL-16", "RES-5", cell="grpc-filesystem")
def a_full_disk_ends_the_upload() -> None:
    from tailrace_common_api import StorageFull
    from tailrace_impl_server import _ingest

    real = _ingest.UploadSession._announce

    async def announce(self: Any) -> None:
        try:
            await real(self)
        except StorageFull as error:
            executed()
            await self._fail_resource(error.message)
            raise

    put(_ingest.UploadSession, "_announce", announce)


@saboteur("UPL-10", "UPL-9", cell="websocket-filesystem")
def a_key_begins_a_second_upload() -> None:
    from tailrace_impl_server import _sqlite_catalog

    async def find_key(self: Any, principal: Any, key: Any) -> None:
        executed()

    # The catalog itself would not take the key twice.
    insert = _sqlite_catalog.SqliteCatalog.insert

    async def insert_without_key(self: Any, entry: Any) -> Any:
        return await insert(self, replace(entry, descriptor=replace(entry.descriptor, idempotency_key=None)))

    put(_sqlite_catalog.SqliteCatalog, "find_key", find_key)
    put(_sqlite_catalog.SqliteCatalog, "insert", insert_without_key)
