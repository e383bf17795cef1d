"""The resources of one server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tailrace_common_api import (
    Context,
    ContextEvent,
    GoingAway,
    InvalidArgument,
    Limits,
    ListFilter,
    Metadata,
    NotFound,
    Page,
    QuotaExceeded,
    Status,
    TailraceError,
    Visibility,
    check_id,
)
from tailrace_impl_common import set_caller
from tailrace_impl_server._access import Guard, ScopeAuthorizer
from tailrace_impl_server._access_checks import authorize, identify
from tailrace_impl_server._admission import DescriptorBudget, RunningRequests
from tailrace_impl_server._bookkeeping import Bookkeeper
from tailrace_impl_server._catalog_follower import CatalogFollower
from tailrace_impl_server._context_events import ContextEvents
from tailrace_impl_server._contexts import Contexts
from tailrace_impl_server._listing import Listing
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY, Bases, LiveResource
from tailrace_impl_server._prometheus import Figures, PrometheusTelemetry
from tailrace_impl_server._quotas import RESOURCE_BYTES, Quotas
from tailrace_impl_server._reader import LiveReader
from tailrace_impl_server._record_streams import RecordStreams
from tailrace_impl_server._recovery import recover
from tailrace_impl_server._registry import Registry
from tailrace_impl_server._removal import Removal
from tailrace_impl_server._retention import Sweeper
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._server_parts import ServerParts
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._tokens import token_matches
from tailrace_impl_server._uploads import Uploads
from tailrace_server_api import (
    Authenticator,
    Authorizer,
    Catalog,
    Credentials,
    Descriptor,
    EventBus,
    Operation,
    Principal,
    RecordEnds,
    ResourceManager,
    ResourceReader,
    ResourceService,
    ServerHooks,
    Storage,
    Telemetry,
    UploadIngest,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_LONGEST_KEY = 255


class Manager(ResourceManager):
    """The resources of one server, over a storage, a catalog and an event bus.

    Starts and closes all three. Used as ``await manager.start()`` … ``await manager.close()``.
    """

    def __init__(
        self,
        storage: Storage,
        catalog: Catalog,
        events: EventBus,
        settings: ServerSettings,
        *,
        hooks: ServerHooks | None = None,
        authenticator: Authenticator | None = None,
        authorizer: Authorizer | None = None,
        records: RecordEnds | None = None,
    ) -> None:
        self.settings = settings
        """Settings in force."""
        self._storage = storage
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._limits = settings.limits
        self._bases = Bases()
        self._descriptors = DescriptorBudget()
        follower, quotas, tasks = CatalogFollower(catalog), Quotas(settings), RunningTasks()
        context_events = ContextEvents(settings.context_events)
        bookkeeper = Bookkeeper(quotas, context_events, follower, tasks)
        self._registry = Registry(storage, events, self._bases, settings, bookkeeper)
        telemetry = PrometheusTelemetry(self._figures)
        self._records = RecordStreams(records or RecordEnds(), settings, telemetry.records)
        self._parts = parts = ServerParts(
            settings=settings,
            storage=storage,
            catalog=catalog,
            follower=follower,
            bus=events,
            registry=self._registry,
            sweeper=Sweeper(self, catalog, settings, self._tick),
            quotas=quotas,
            context_events=context_events,
            telemetry=telemetry,
            tasks=tasks,
        )
        self._requests = RunningRequests(settings.max_running_requests, telemetry)
        self._removal = Removal(parts)
        self._uploads = Uploads(parts, self._removal, hooks)
        self._contexts = Contexts(catalog, parts.quotas, parts.context_events, parts.ids, settings, self._uploads)
        self._listing = Listing(catalog, storage, self._registry, self._bases, settings.max_page_size)
        self._started = False
        self._draining = False
        self._closed = False

    async def start(self) -> None:
        """Open storage and catalog, recover what was interrupted, and begin to serve; called once.

        Raises:
            ConfigurationError: The storage is in use by another server, or of a format that is not understood.
            StorageFailure: Storage or catalog cannot be read.
        """
        parts = self._parts
        try:
            if self._authenticator is not None:
                await self._authenticator.start()
            await parts.storage.start()
            await parts.catalog.start()
            await parts.bus.start()
            unfinished = await recover(parts.storage, parts.catalog, parts.sweeper.begin_grace)
            parts.quotas.load(await parts.catalog.usage(), unfinished)
            await self._records.start()
        except BaseException:
            await self._close_parts()
            raise
        self._registry.start()
        parts.sweeper.start()
        parts.telemetry.start()
        self._started = True
        contexts = {context for _, context, _ in unfinished if context is not None}
        parts.tasks.start(self._contexts.finish_closing(contexts), "tailrace-finish-closing")

    def drain(self) -> None:
        """Take no new work from here on; what runs goes on. The first step of a shutdown."""
        self._draining = True

    async def close(self) -> None:
        """Tell everyone ``GoingAway``, announce what is stored, and close storage and catalog. Idempotent.

        Uploads stay resumable. Hooks that run get the time that each may take.
        """
        if self._closed:
            return
        self._parts.closing = True
        self._uploads.go_away()
        self._records.go_away()
        self._parts.context_events.go_away()
        for live in self._registry:
            live.go_away()
        await self._parts.tasks.wait()
        self._closed = True
        await self._close_parts()

    async def _close_parts(self) -> None:
        parts = self._parts
        parts.telemetry.close()
        await parts.sweeper.close()
        await self._uploads.close()
        await self._records.close()
        await parts.tasks.wait()
        await self._registry.close()
        await self._descriptors.close()
        for part in (parts.bus, parts.catalog, parts.storage, self._authenticator):
            try:
                if part is not None:
                    await part.close()
            except TailraceError:
                logger.exception("closing failed")

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def records(self) -> RecordStreams:
        return self._records

    def add_base(self, base: str) -> None:
        self._bases.add(base)

    def admit(self) -> None:
        self._requests.admit()
        self._admit_work()

    def _admit_work(self) -> None:
        """Refuse what a request that runs already would begin."""
        if self._draining:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
        self._parts.refuse_when_closing()
        self._descriptors.admit()

    async def authenticate(self, credentials: Credentials) -> ResourceService:
        self._parts.refuse_when_closing()
        principal = await self._principal(credentials)
        set_caller(peer=credentials.peer, principal="" if principal is None else principal.name)
        if principal is None and self._authorizer is None:
            return self
        return Guard(self, self, principal or Principal(name=""), self._authorizer or ScopeAuthorizer())

    async def authorize_metrics(self, credentials: Credentials) -> None:
        principal = await self._principal(credentials)
        set_caller(peer=credentials.peer, principal="" if principal is None else principal.name)
        if principal is not None or self._authorizer is not None:
            authorizer = self._authorizer or ScopeAuthorizer()
            await authorize(authorizer, principal or Principal(name=""), Operation.METRICS, context=None)

    async def _principal(self, credentials: Credentials) -> Principal | None:
        """Return who shows ``credentials``; ``None`` for nobody in particular, where nobody needs to say."""
        if self._authenticator is not None:
            return await identify(self._authenticator, credentials)
        if credentials.certificate_names:
            # A certificate that the transport was told to ask for gives access by itself.
            return Principal(name=credentials.certificate_names[0])
        return None

    @property
    def anonymous(self) -> bool:
        return self._authenticator is None

    async def context_of(self, id: str) -> str | None:
        """Return the context of a resource, whoever may see it.

        Raises:
            InvalidReference: The id is malformed.
            NotFound: There is none of this id.
        """
        check_id(id)
        live = await self._registry.acquire(id)
        try:
            return live.descriptor.metadata.context
        finally:
            self._registry.release(live)

    async def listed_context_of(self, id: str) -> str | None:
        """Return the context of a resource as the catalog has it; see :meth:`context_of`."""
        entry = await self._parts.catalog.get(id)
        return None if entry is None else entry.descriptor.metadata.context

    @property
    def ready(self) -> bool:
        return self.unready_reason is None

    @property
    def unready_reason(self) -> str | None:
        if not self._started:
            return "starting"
        if self._draining or self._parts.closing:
            return "shutting down"
        return "the storage failed" if self._parts.storage_health.failed else None

    @property
    def telemetry(self) -> Telemetry:
        return self._requests

    # Contexts.

    async def create_context(self, attributes: Mapping[str, str]) -> Context:
        self._parts.refuse_when_closing()
        return await self._kept(self._contexts.create(attributes))

    async def get_context(self, id: str) -> Context:
        self._parts.refuse_when_closing()
        return await self._contexts.get(id)

    async def close_context(self, id: str) -> Context:
        self._parts.refuse_when_closing()
        return await self._kept(self._contexts.close(id))

    async def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        self._parts.refuse_when_closing()
        events = self._contexts.events(id, after)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    # Uploads.

    async def create(
        self,
        metadata: Metadata,
        *,
        visibility: Visibility = Visibility.LIVE,
        length: int | None = None,
        sha256: bytes | None = None,
        idempotency_key: str | None = None,
        principal: str = "",
    ) -> UploadIngest:
        self._admit_work()
        self._check_declarations(length, sha256, idempotency_key)
        if metadata.context is None and self.settings.context_required:
            raise InvalidArgument(field="context", problem="missing; this server requires one")
        new_id, created_at = self._parts.ids.next()
        # With the hash of no token: each session makes its own.
        wanted = Descriptor(
            id=new_id,
            metadata=metadata,
            visibility=visibility,
            created_at=created_at,
            token_hash=b"",
            principal=principal,
            idempotency_key=idempotency_key,
            length=length,
            sha256=sha256,
        )
        return await self._uploads.create(wanted)

    async def reopen(self, id: str, token: str) -> UploadIngest:
        self._parts.refuse_when_closing()
        check_id(id)
        return await self._uploads.reopen(id, token)

    def _check_declarations(self, length: int | None, sha256: bytes | None, key: str | None) -> None:
        if length is not None:
            if length < 0:
                raise InvalidArgument(field="length", problem=f"{length} bytes; a length is not negative")
            if length > self.settings.max_resource_size:
                raise QuotaExceeded(limit=RESOURCE_BYTES, maximum=self.settings.max_resource_size, actual=length)
        if sha256 is not None and len(sha256) != 32:
            raise InvalidArgument(field="sha256", problem=f"{len(sha256)} bytes; a SHA-256 has 32")
        if key is not None and not (1 <= len(key) <= _LONGEST_KEY and key.isprintable()):
            problem = f"not 1 to {_LONGEST_KEY} printable characters"
            raise InvalidArgument(field="idempotency_key", problem=problem)

    # Reading.

    async def open_reader(self, id: str, *, token: str | None = None) -> ResourceReader:
        check_id(id)
        live = await self._acquire_visible(id, token)
        return LiveReader(live, self._storage, self._registry.release)

    async def statuses(self, id: str, *, token: str | None = None) -> AsyncGenerator[Status, None]:
        check_id(id)
        live = await self._acquire_visible(id, token)
        try:
            while True:
                live.check()
                status = live.status()
                yield status
                if status.state.terminal:
                    return
                await live.changed(status.version)
        finally:
            self._registry.release(live)

    async def heads(self, id: str, sizes: Sequence[int], *, token: str | None = None) -> tuple[bytes, ...]:
        if len(sizes) > self.settings.max_heads:
            problem = f"{len(sizes)} sizes; at most {self.settings.max_heads} are allowed"
            raise InvalidArgument(field="sizes", problem=problem)
        reader = await self.open_reader(id, token=token)
        try:
            return tuple([await reader.head(size) for size in sizes])
        finally:
            reader.close()

    async def _acquire_visible(self, id: str, token: str | None) -> LiveResource:
        self._parts.refuse_when_closing()
        live = await self._registry.acquire(id)
        if live.hidden and not token_matches(token, live.descriptor.token_hash):
            self._registry.release(live)
            raise NotFound(id=id)
        return live

    # Finding and deleting.

    async def list(self, filter: ListFilter, *, limit: int, page_token: str | None = None) -> Page:
        return await self._listing.page(filter, limit, page_token)

    async def delete(self, id: str, *, token: str | None = None) -> None:
        self._parts.refuse_when_closing()
        check_id(id)
        await self._kept(self._removal.delete(id, token, authorised=False))

    # What the sweeper asks for.

    async def remove(self, id: str) -> None:
        """Delete a resource whoever may see it."""
        await self._removal.delete(id, None, authorised=True)

    async def expire(self, id: str, epoch: int | None) -> None:
        """End an upload whose uploader did not come back."""
        await self._uploads.expire(id, epoch)

    async def _tick(self) -> None:
        self._registry.tails.clear_idle(asyncio.get_running_loop().time() - self.settings.tail_idle)
        self._parts.quotas.lapse_idle()
        await self._descriptors.sample()
        await self._parts.follower.catch_up()
        await self._contexts.sweep(time.time())

    def _figures(self) -> Figures:
        """Return what the server holds at the moment; called in any thread."""
        return Figures(
            ready=self.ready,
            uploads_open=self._uploads.sessions,
            uploads_waiting=self._parts.sweeper.graces,
            resources_used=len(self._registry),
            storage_bytes=self._parts.quotas.storage_bytes,
        )

    async def _kept(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do something to its end, also when the caller is cancelled."""
        return await asyncio.shield(self._parts.tasks.start(work))
