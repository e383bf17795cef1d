"""The record streams of one server."""

from __future__ import annotations

from collections.abc import Mapping

from tailrace_common_api import Argument, QueueFigures, RecordEndNotFound, Reporting
from tailrace_server_api import BulkIngest, QueryResults, RecordEnds, RecordService, WorkSession


class RecordStreams(RecordService):
    """Record streams over the ends that a server has, for a caller without bounds."""

    def __init__(self, ends: RecordEnds) -> None:
        """Use ``ends``, which are started and closed with this object."""
        self._ends = ends

    async def start(self) -> None:
        """Start all ends; called once."""

    async def close(self) -> None:
        """End what runs and close all ends; idempotent."""

    async def begin_bulk(
        self,
        collection: str,
        *,
        content_type: str | None = None,
        key: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
        principal: str = "",
    ) -> BulkIngest:
        raise RecordEndNotFound(kind="collection or queue", id=collection)

    async def query(self, source: str, arguments: Mapping[str, Argument]) -> QueryResults:
        raise RecordEndNotFound(kind="source", id=source)

    async def work(self, queue: str) -> WorkSession:
        raise RecordEndNotFound(kind="queue", id=queue)

    async def queue_figures(self, queue: str) -> QueueFigures:
        raise RecordEndNotFound(kind="queue", id=queue)
