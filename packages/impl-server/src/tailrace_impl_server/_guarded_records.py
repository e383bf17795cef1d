"""What one caller may do with the record streams of a server."""

from __future__ import annotations

from collections.abc import Mapping

from tailrace_common_api import Argument, QueueFigures, Reporting
from tailrace_impl_server._access_checks import authorize
from tailrace_impl_server._record_streams import RecordStreams
from tailrace_server_api import (
    Authorizer,
    BulkIngest,
    Operation,
    Principal,
    QueryResults,
    RecordService,
    WorkSession,
)


class GuardedRecords(RecordService):
    """Record streams as one principal may use them: every call is authorised before anything is done.

    The authorizer is asked with the name of the collection, source or queue as the id.
    """

    def __init__(self, streams: RecordStreams, principal: Principal, authorizer: Authorizer) -> None:
        """Guard ``streams``."""
        self._streams = streams
        self._principal = principal
        self._authorizer = authorizer

    async def begin_bulk(
        self,
        collection: str,
        *,
        content_type: str | None = None,
        key: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> BulkIngest:
        await self._authorize(collection)
        return await self._streams.begin_bulk(
            collection,
            content_type=content_type,
            key=key,
            reporting=reporting,
            priority=priority,
            principal=self._principal.name,
        )

    async def query(self, source: str, arguments: Mapping[str, Argument]) -> QueryResults:
        await self._authorize(source)
        return await self._streams.query(source, arguments)

    async def work(self, queue: str) -> WorkSession:
        await self._authorize(queue)
        return await self._streams.work(queue)

    async def queue_figures(self, queue: str) -> QueueFigures:
        await self._authorize(queue)
        return await self._streams.queue_figures(queue)

    async def _authorize(self, name: str) -> None:
        await authorize(self._authorizer, self._principal, Operation.RECORDS, context=None, id=name)
