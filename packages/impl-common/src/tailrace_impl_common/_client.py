"""A client over any transport."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Self

from tailrace_client_download_api import (
    DEFAULT_CREDIT_BYTES,
    EVERYTHING,
    NO_ATTRIBUTES,
    DownloadClient,
    RecordClient,
    ResourceClient,
)
from tailrace_client_upload_api import BulkClient, ReopenRequest, UploadClient, UploadRequest, UploadSession
from tailrace_common_api import (
    Argument,
    ClientSettings,
    ListFilter,
    Page,
    QueueFigures,
    Reference,
    Reporting,
    Status,
    check_attributes,
    check_end_name,
    check_id,
)
from tailrace_impl_common._buffered_upload import with_policy
from tailrace_impl_common._client_bulk import ConnectedBulk
from tailrace_impl_common._client_contexts import context_events
from tailrace_impl_common._client_download import ConnectedResource
from tailrace_impl_common._client_query import ConnectedQuery
from tailrace_impl_common._client_upload import ConnectedUpload
from tailrace_impl_common._client_work import ConnectedConsumer
from tailrace_impl_common._lasting_upload import SpooledUpload
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._segment_spool import SegmentSpool
from tailrace_impl_common._streams import Connection
from tailrace_impl_common.messages import (
    CloseContext,
    Context,
    ContextEvent,
    CreateContext,
    Delete,
    Done,
    GetContext,
    GetStatus,
    List,
    Listed,
    OpenUpload,
    ReopenUpload,
)
from tailrace_impl_common.record_messages import GetQueue, OpenBulk


class ConnectedClient(UploadClient, DownloadClient, ResourceClient, BulkClient, RecordClient):
    """All that a client can do, over one connection. Belongs to one event loop.

    Connects when it is first used. Leaving the context manager ends every conversation that still runs.
    """

    def __init__(self, connection: Connection, settings: ClientSettings | None = None) -> None:
        """Use ``connection``, which is closed with this client."""
        self._connection = connection
        self._link = ServerLink(connection, settings or ClientSettings())

    @property
    def connection(self) -> Connection:
        """The connection in use."""
        return self._connection

    def start_upload(self, request: UploadRequest) -> UploadSession:
        message = OpenUpload(
            metadata=request.metadata,
            visibility=request.visibility,
            length=request.length,
            sha256=request.sha256,
            idempotency_key=request.idempotency_key,
        )
        return with_policy(ConnectedUpload(self._link, message, request.prefix), request.while_away)

    def resume_upload(self, request: ReopenRequest) -> UploadSession:
        message = ReopenUpload(id=check_id(request.id), token=request.token)
        return with_policy(ConnectedUpload(self._link, message, request.prefix), request.while_away)

    def resume_spooled(self, id: str, token: str, spool: SegmentSpool) -> UploadSession:
        """Prepare the continuation of an upload whose last bytes are in a spool; see :class:`LastingUpload`."""
        upload = SpooledUpload(self._link, ReopenUpload(id=check_id(id), token=token))
        upload.spool = spool
        return upload

    def open(self, reference: str, *, token: str | None = None) -> ConnectedResource:
        return ConnectedResource(self._link, Reference.parse(reference).id, token)

    async def status(self, reference: str, *, token: str | None = None) -> Status:
        return await self._link.ask(GetStatus(id=Reference.parse(reference).id, token=token), Status)

    async def list_page(
        self, filter: ListFilter = EVERYTHING, *, limit: int = 100, page_token: str | None = None
    ) -> Page:
        return (await self._link.ask(List(filter=filter, limit=limit, page_token=page_token), Listed)).page

    async def delete(self, reference: str, *, token: str | None = None) -> None:
        await self._link.ask(Delete(id=Reference.parse(reference).id, token=token), Done)

    async def create_context(self, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> Context:
        check_attributes(attributes)
        return await self._link.ask(CreateContext(attributes=dict(attributes)), Context)

    async def get_context(self, id: str) -> Context:
        return await self._link.ask(GetContext(id=check_id(id)), Context)

    async def close_context(self, id: str) -> Context:
        return await self._link.ask(CloseContext(id=check_id(id)), Context)

    def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        return context_events(self._link, id, after)

    def bulk(
        self,
        collection: str,
        *,
        idempotency_key: str | None = None,
        content_type: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> ConnectedBulk:
        request = OpenBulk(
            collection=collection,
            content_type=content_type,
            idempotency_key=idempotency_key,
            reporting=reporting,
            priority=priority,
        )
        return ConnectedBulk(self._link, request)

    def query(self, source: str, /, **arguments: Argument) -> ConnectedQuery:
        return ConnectedQuery(self._link, source, arguments)

    def work(
        self, queue: str, *, credit: int, credit_bytes: int = DEFAULT_CREDIT_BYTES, extend: bool = False
    ) -> ConnectedConsumer:
        return ConnectedConsumer(self._link, queue, credit=credit, credit_bytes=credit_bytes, extend=extend)

    async def queue_figures(self, queue: str) -> QueueFigures:
        return await self._link.ask(GetQueue(queue=check_end_name(queue)), QueueFigures)

    async def close(self) -> None:
        """End every conversation and release the connection; idempotent."""
        self._link.close()
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
