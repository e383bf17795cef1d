"""Defects around checkpoints and what a restarted server makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sabotage import executed, saboteur


@saboteur("CHK-1", trap="trailing-edge")
def interval_has_no_trailing_edge() -> None:
    from tailrace_impl_server._ingest import UploadSession

    real: Callable[..., Any] = UploadSession._wait_for_work

    async def wait_for_work(self: Any, timeout: float | None) -> None:
        if timeout is not None:
            executed()
        await real(self, None)

    UploadSession._wait_for_work = wait_for_work  # type: ignore[method-assign]  # the defect


@saboteur("CHK-1")
def the_end_of_a_burst_is_not_noticed() -> None:
    from tailrace_impl_server import _ingest

    real: Callable[..., float] = _ingest.UploadSession._announcement_due
    _ingest._LULL = 3600.0

    def announcement_due(self: Any, pending: int) -> float:
        if pending >= _ingest._MANY:
            executed()
        return real(self, pending)

    _ingest.UploadSession._announcement_due = announcement_due  # type: ignore[method-assign]  # the defect


@saboteur("CHK-1", "UPL-7")
def window_takes_no_heed_of_announcements() -> None:
    from tailrace_impl_server._ingest import UploadSession

    real: Callable[..., bool] = UploadSession._grant

    def grant(self: Any, announced: int, step: int) -> bool:
        executed()
        return real(self, 2**52, step)

    UploadSession._grant = grant  # type: ignore[method-assign]  # the defect


@saboteur("CHK-2", cell="in-process-filesystem")
def durability_is_not_kept() -> None:
    from tailrace_impl_server._filesystem_writer import FilesystemWriter

    real: Callable[..., None] = FilesystemWriter.__init__

    def init(self: Any, **arguments: Any) -> None:
        real(self, **arguments)
        if self._sync:
            executed()
        self._sync = False

    FilesystemWriter.__init__ = init  # type: ignore[method-assign]  # the defect


@saboteur("CHK-3", cell="grpc-filesystem")
def torn_tails_are_not_cut() -> None:
    from tailrace_impl_server import _filesystem_storage

    def cut_to(*_: object, **__: object) -> None:
        executed()

    vars(_filesystem_storage)["cut_to"] = cut_to


@saboteur("CHK-3", "RES-5", cell="websocket-filesystem")
def recovery_goes_back_to_the_older_slot() -> None:
    from tailrace_impl_server import _filesystem_recovery

    real: Callable[..., Any] = _filesystem_recovery._proven

    def proven(files: Any, slot: Any, other: Any, line_access: bool) -> Any:
        if other is not None:
            executed()
            return None
        return real(files, slot, other, line_access)

    _filesystem_recovery._proven = proven


@saboteur("CHK-3", "UPL-9", cell="grpc-filesystem")
def grace_does_not_begin_again() -> None:
    from tailrace_impl_server._retention import Sweeper

    real: Callable[..., None] = Sweeper.begin_grace

    def begin_grace(self: Any, id: str, epoch: int | None) -> None:
        if self._task is None:
            executed()
            return
        real(self, id, epoch)

    Sweeper.begin_grace = begin_grace  # type: ignore[method-assign]  # the defect
