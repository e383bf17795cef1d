"""Defects in what outlives a loss of power, and in what is served of damaged bytes."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("CHK-2", "RES-5", cell="in-process-filesystem")
def data_is_not_synced_before_the_journal() -> None:
    from tailrace_impl_server._filesystem_writer import FilesystemWriter

    def sync_file(self: Any, files: Any, fd: int, slot: Any) -> None:
        executed()

    put(FilesystemWriter, "_sync_file", sync_file)


@saboteur("CHK-3", cell="in-process-filesystem")
def lost_power_is_not_noticed() -> None:
    from tailrace_impl_server import _filesystem_recovery

    def lost_power(*_: object) -> bool:
        executed()
        return False

    put(_filesystem_recovery, "_lost_power", lost_power)


@saboteur("CHK-4", cell="grpc-filesystem")
def damaged_bytes_are_served() -> None:
    from tailrace_impl_server import _filesystem_reader

    def check(buffer: Any, *_: object) -> int:
        executed()
        return len(buffer)

    put(_filesystem_reader, "_check", check)
