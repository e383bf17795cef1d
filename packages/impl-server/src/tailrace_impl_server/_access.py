"""What one caller may do with the resources of a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from tailrace_common_api import (
    Context,
    ContextEvent,
    ContextNotFound,
    Limits,
    ListFilter,
    Metadata,
    NotFound,
    Page,
    PermissionDenied,
    Status,
    StorageFailure,
    Visibility,
)
from tailrace_impl_server._access_checks import authorize
from tailrace_impl_server._guarded_records import GuardedRecords
from tailrace_impl_server._record_streams import RecordStreams
from tailrace_server_api import (
    Authorizer,
    Operation,
    Principal,
    RecordService,
    ResourceReader,
    ResourceService,
    UploadIngest,
)


class GuardedManager(Protocol):
    """What a guard asks of the manager behind it, beside what it passes on."""

    @property
    def records(self) -> RecordStreams: ...

    async def create(
        self,
        metadata: Metadata,
        *,
        visibility: Visibility = Visibility.LIVE,
        length: int | None = None,
        sha256: bytes | None = None,
        idempotency_key: str | None = None,
        principal: str = "",
    ) -> UploadIngest: ...

    async def context_of(self, id: str) -> str | None:
        """Return the context of a resource, visible or not; ``NotFound`` when there is none of this id."""

    async def listed_context_of(self, id: str) -> str | None:
        """Return the same from the catalog alone, for a resource whose own files cannot be read."""


class ScopeAuthorizer(Authorizer):
    """Lets principals do what their scopes say, within their context."""

    async def authorize(
        self, principal: Principal, operation: Operation, *, context: str | None, id: str | None
    ) -> None:
        if operation not in principal.operations:
            raise PermissionDenied(f"this needs the scope {operation.value!r}")
        if principal.context is None or context == principal.context:
            return
        if id is not None:
            raise NotFound(id=id)
        if context is not None:
            raise ContextNotFound(id=context)
        raise PermissionDenied(f"only within context {principal.context}")


class Guard(ResourceService):
    """The resources of a server as one principal may use them: every call is authorised before anything is done."""

    def __init__(
        self, service: ResourceService, manager: GuardedManager, principal: Principal, authorizer: Authorizer
    ) -> None:
        """Guard ``manager``.

        Args:
            service: What calls are passed on to.
            manager: The same, as far as a guard needs more of it.
            principal: Who calls.
            authorizer: Who decides.
        """
        self._service = service
        self._manager = manager
        self._principal = principal
        self._authorizer = authorizer

    @property
    def limits(self) -> Limits:
        return self._service.limits

    @property
    def records(self) -> RecordService:
        return GuardedRecords(self._manager.records, self._principal, self._authorizer)

    async def create(
        self,
        metadata: Metadata,
        *,
        visibility: Visibility = Visibility.LIVE,
        length: int | None = None,
        sha256: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> UploadIngest:
        await self._authorize(Operation.UPLOAD, context=metadata.context)
        return await self._manager.create(
            metadata,
            visibility=visibility,
            length=length,
            sha256=sha256,
            idempotency_key=idempotency_key,
            principal=self._principal.name,
        )

    async def reopen(self, id: str, token: str) -> UploadIngest:
        await self._authorize_resource(Operation.UPLOAD, id)
        return await self._service.reopen(id, token)

    async def open_reader(self, id: str, *, token: str | None = None) -> ResourceReader:
        await self._authorize_resource(Operation.READ, id)
        return await self._service.open_reader(id, token=token)

    async def statuses(self, id: str, *, token: str | None = None) -> AsyncGenerator[Status, None]:
        await self._authorize_resource(Operation.READ, id)
        async with aclosing(self._service.statuses(id, token=token)) as statuses:
            async for status in statuses:
                yield status

    async def heads(self, id: str, sizes: Sequence[int], *, token: str | None = None) -> tuple[bytes, ...]:
        await self._authorize_resource(Operation.READ, id)
        return await self._service.heads(id, sizes, token=token)

    async def list(self, filter: ListFilter, *, limit: int, page_token: str | None = None) -> Page:
        within = filter
        if filter.context is None and self._principal.context is not None:
            within = replace(filter, context=self._principal.context)
        try:
            await self._authorize(Operation.LIST, context=within.context)
        except NotFound:
            # As in any other context that does not exist, there is nothing.
            return Page((), None)
        return await self._service.list(within, limit=limit, page_token=page_token)

    async def delete(self, id: str, *, token: str | None = None) -> None:
        await self._authorize_resource(Operation.DELETE, id)
        await self._service.delete(id, token=token)

    async def create_context(self, attributes: Mapping[str, str]) -> Context:
        await self._authorize(Operation.CONTEXTS, context=None)
        return await self._service.create_context(attributes)

    async def get_context(self, id: str) -> Context:
        await self._authorize(Operation.CONTEXTS, context=id)
        return await self._service.get_context(id)

    async def close_context(self, id: str) -> Context:
        await self._authorize(Operation.CONTEXTS, context=id)
        return await self._service.close_context(id)

    async def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        await self._authorize(Operation.CONTEXTS, context=id)
        async with aclosing(self._service.context_events(id, after=after)) as events:
            async for event in events:
                yield event

    async def _authorize(self, operation: Operation, *, context: str | None) -> None:
        await authorize(self._authorizer, self._principal, operation, context=context)

    async def _authorize_resource(self, operation: Operation, id: str) -> None:
        try:
            context = await self._manager.context_of(id)
        except NotFound:
            # Who may not do this at all hears the same, whether or not there is such a resource.
            await authorize(self._authorizer, self._principal, operation, context=self._principal.context, id=id)
            raise
        except StorageFailure:
            # What it may not see is not there for it, damaged or not.
            context = await self._manager.listed_context_of(id)
            await authorize(self._authorizer, self._principal, operation, context=context, id=id)
            raise
        await authorize(self._authorizer, self._principal, operation, context=context, id=id)
