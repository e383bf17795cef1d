"""Defects of what producers do while the server is away, and of uploads that outlive their process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("UPL-19", cell="grpc-memory")
def spool_forgets_what_is_on_disk() -> None:
    from tailrace_impl_common import Spool

    def spill(self: Any) -> None:
        executed()
        self._recent.clear()
        self._recent_size = 0

    put(Spool, "_spill", spill)


@saboteur("UPL-19", cell="websocket-memory")
def lines_are_dropped_and_nobody_is_told() -> None:
    from tailrace_impl_common import DropOldestBytes

    real: Callable[..., int] = DropOldestBytes._lose

    def lose(self: Any, size: int) -> int:
        executed()
        lost = real(self, size)
        self._lost = self._lost_lines = 0
        return lost

    put(DropOldestBytes, "_lose", lose)


@saboteur("UPL-19", cell="grpc-filesystem")
def log_is_cut_short_by_the_exit() -> None:
    from tailrace._log_handler import ResourceHandler

    def close(self: Any) -> None:
        executed()
        self._shipper = None

    put(ResourceHandler, "close", close)


@saboteur("UPL-19", cell="websocket-filesystem")
def log_takes_what_its_own_transport_says() -> None:
    from tailrace import _log_handler

    def is_own(record: Any) -> bool:
        executed()
        return False

    put(_log_handler, "_is_own", is_own)


@saboteur("UPL-18", cell="grpc-filesystem")
def spool_of_a_state_begins_at_its_end() -> None:
    from tailrace_impl_common._segment_spool import SegmentSpool

    real: Callable[..., None] = SegmentSpool.seek

    def seek(self: Any, offset: int) -> None:
        real(self, offset)
        if self.end > offset:
            executed()
            self._position = self.end

    put(SegmentSpool, "seek", seek)


@saboteur("UPL-18", cell="websocket-filesystem")
def state_is_written_without_the_token() -> None:
    from tailrace_impl_common import UploadStateFile

    real: Callable[..., None] = UploadStateFile.save

    def save(self: Any, saved: Any) -> None:
        executed()
        real(self, replace(saved, id=None, token=None, key="k" + saved.key[1:-1]))

    put(UploadStateFile, "save", save)


@saboteur("UPL-18")
def second_process_is_let_in() -> None:
    from tailrace_impl_common import UploadStateFile

    def acquire(self: Any) -> None:
        executed()

    put(UploadStateFile, "acquire", acquire)


@saboteur("USE-6", cell="grpc-filesystem")
def interruption_is_not_told() -> None:
    from tailrace import _uploading

    async def tell(self: Any) -> None:
        executed()

    put(_uploading._Upload, "_tell_of_interruptions", tell)
