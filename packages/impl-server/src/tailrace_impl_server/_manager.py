"""The resources of one server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from tailrace_common_api import (
    AlreadyTerminal,
    Context,
    ContextEvent,
    GoingAway,
    IdempotencyConflict,
    InvalidArgument,
    InvalidReference,
    Limits,
    ListFilter,
    Metadata,
    NotFound,
    Overloaded,
    Page,
    QuotaExceeded,
    ResourceState,
    Status,
    StorageFailure,
    StorageFull,
    TailraceError,
    TokenRejected,
    Visibility,
    check_id,
)
from tailrace_impl_common import IdGenerator
from tailrace_impl_server._admission import DescriptorBudget
from tailrace_impl_server._ingest import EndedIngest, UploadSession
from tailrace_impl_server._keyed_locks import KeyedLocks
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY, Bases, LiveResource, make_status
from tailrace_impl_server._prometheus import Figures, PrometheusTelemetry
from tailrace_impl_server._reader import LiveReader
from tailrace_impl_server._recovery import recover
from tailrace_impl_server._registry import Registry
from tailrace_impl_server._retention import Sweeper
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._storage_health import StorageHealth
from tailrace_impl_server._tokens import hash_token, new_token, token_matches
from tailrace_server_api import (
    Catalog,
    CatalogEntry,
    Committed,
    Credentials,
    Descriptor,
    Ended,
    EventBus,
    ResourceManager,
    ResourceReader,
    ResourceService,
    Storage,
    Telemetry,
    UploadIngest,
)

logger = logging.getLogger(__name__)

_LONGEST_KEY = 255
_LEAST_WINDOW = 64 * 1024
_MOST_PAGE_BYTES = 512 * 1024
"""Most bytes of a page of a listing, but for its first entry: a control message holds 1 MiB."""
_LISTED_OVERHEAD = 2048
"""Bytes of a listed resource beside its metadata, at the most."""
UPLOADER_LOST = "uploader lost"
"""Reason of resources whose uploader did not come back."""


class Manager(ResourceManager):
    """The resources of one server, over a storage, a catalog and an event bus.

    Starts and closes all three. Used as ``await manager.start()`` … ``await manager.close()``.
    """

    def __init__(self, storage: Storage, catalog: Catalog, events: EventBus, settings: ServerSettings) -> None:
        self.settings = settings
        """Settings in force."""
        self._storage = storage
        self._catalog = catalog
        self._events = events
        self._limits = settings.limits
        self._bases = Bases()
        self._descriptors = DescriptorBudget()
        self._ids = IdGenerator()
        self._registry = Registry(storage, events, self._bases, settings)
        self._sweeper = Sweeper(self, catalog, settings, self._tick)
        self._keys = KeyedLocks()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sessions: set[UploadSession] = set()
        self._session_count = 0
        self._telemetry = PrometheusTelemetry(self._figures)
        self._storage_health = StorageHealth()
        self._started = False
        self._draining = False
        self._closing = False
        self._closed = False

    async def start(self) -> None:
        """Open storage and catalog, recover what was interrupted, and begin to serve; called once.

        Raises:
            ConfigurationError: The storage is in use by another server, or of a format that is not understood.
            StorageFailure: Storage or catalog cannot be read.
        """
        try:
            await self._storage.start()
            await self._catalog.start()
            await self._events.start()
            await recover(self._storage, self._catalog, self._sweeper.begin_grace)
        except BaseException:
            await self._close_parts()
            raise
        self._registry.start()
        self._sweeper.start()
        self._telemetry.start()
        self._started = True

    def drain(self) -> None:
        """Take no new work from here on; what runs goes on. The first step of a shutdown."""
        self._draining = True

    async def close(self) -> None:
        """Tell everyone ``GoingAway``, announce what is stored, and close storage and catalog. Idempotent.

        Uploads stay resumable.
        """
        if self._closed:
            return
        self._closing = True
        for session in list(self._sessions):
            session.end(GoingAway(retry_after=GOING_AWAY_RETRY))
        for live in self._registry:
            live.go_away()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._closed = True
        await self._close_parts()

    async def _close_parts(self) -> None:
        self._telemetry.close()
        await self._sweeper.close()
        await self._registry.close()
        await self._descriptors.close()
        for part in (self._events, self._catalog, self._storage):
            try:
                await part.close()
            except TailraceError:
                logger.exception("closing failed")

    @property
    def limits(self) -> Limits:
        return self._limits

    def add_base(self, base: str) -> None:
        self._bases.add(base)

    def admit(self) -> None:
        if self._draining:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
        self._refuse_when_closing()
        self._descriptors.admit()

    async def authenticate(self, credentials: Credentials) -> ResourceService:
        self._refuse_when_closing()
        return self

    async def authorize_metrics(self, credentials: Credentials) -> None:
        return

    @property
    def anonymous(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        return self.unready_reason is None

    @property
    def unready_reason(self) -> str | None:
        if not self._started:
            return "starting"
        if self._draining or self._closing:
            return "shutting down"
        return "the storage failed" if self._storage_health.failed else None

    @property
    def telemetry(self) -> Telemetry:
        return self._telemetry

    async def create_context(self, attributes: Mapping[str, str]) -> Context:
        raise NotImplementedError

    async def get_context(self, id: str) -> Context:
        raise NotImplementedError

    async def close_context(self, id: str) -> Context:
        raise NotImplementedError

    def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        raise NotImplementedError

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
        self.admit()
        self._check_declarations(length, sha256, idempotency_key)
        new_id, created_at = self._ids.next()
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
        return await self._open_session(self._create(wanted))

    async def reopen(self, id: str, token: str) -> UploadIngest:
        self._refuse_when_closing()
        check_id(id)
        return await self._open_session(self._reopen(id, token))

    async def _open_session(self, opening: Coroutine[Any, Any, UploadIngest]) -> UploadIngest:
        """Open a session to the end, and release it if the caller has been cancelled meanwhile."""
        task = self._keep(asyncio.create_task(opening))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.spawn(_abandon(task), "tailrace-abandon")
            raise

    async def _create(self, wanted: Descriptor) -> UploadIngest:
        if wanted.idempotency_key is None:
            created = await self._create_new(wanted)
            assert created is not None
            return created
        async with self._keys.hold((wanted.principal, wanted.idempotency_key)):
            while True:
                entry = await self._catalog.find_key(wanted.principal, wanted.idempotency_key)
                if entry is None:
                    session = await self._create_new(wanted)
                else:
                    session = await self._continue(entry.descriptor.id, wanted)
                if session is not None:
                    return session

    async def _create_new(self, wanted: Descriptor) -> UploadIngest | None:
        """Create a resource; ``None`` when another server created one under the same key in this moment."""
        token = new_token()
        descriptor = replace(wanted, token_hash=hash_token(token))
        async with self._registry.locked(descriptor.id):
            with self._storage_health.watched():
                snapshot = await self._storage.create(descriptor)
            try:
                with self._storage_health.watched():
                    holder = await self._catalog.insert(CatalogEntry(descriptor, snapshot.state))
            except TailraceError:
                await self._storage.delete(descriptor.id)
                raise
            if holder is not None:
                await self._storage.delete(descriptor.id)
                return None
            live = self._registry.adopt(descriptor, snapshot)
            self._telemetry.created()
            try:
                return await self._next_session(live, token)
            finally:
                self._registry.release(live)

    async def _continue(self, id: str, wanted: Descriptor) -> UploadIngest | None:
        """Open the next session of the upload under an idempotency key; ``None`` when it is gone."""
        async with self._registry.locked(id):
            try:
                live = await self._registry.acquire_locked(id)
            except NotFound:
                await self._catalog.delete(id)
                return None
            try:
                known = live.descriptor
                if replace(wanted, id=id, created_at=known.created_at, token_hash=known.token_hash) != known:
                    raise IdempotencyConflict(id=id)
                token = new_token()
                try:
                    return await self._next_session(live, token, replace_token=True)
                except NotFound:
                    # An abort deleted it while this waited; the key is free.
                    return None
            finally:
                self._registry.release(live)

    async def _reopen(self, id: str, token: str) -> UploadIngest:
        async with self._registry.locked(id):
            live = await self._registry.acquire_locked(id)
            try:
                if not token_matches(token, live.descriptor.token_hash):
                    if live.hidden:
                        raise NotFound(id=id)
                    raise TokenRejected(id=id)
                return await self._next_session(live, token)
            finally:
                self._registry.release(live)

    async def _next_session(self, live: LiveResource, token: str, *, replace_token: bool = False) -> UploadIngest:
        """Open the next session; the caller holds the lock. The one before it, if any, does nothing more then."""
        if live.session is not None:
            live.session.fence()
            await live.session.ended()
        live.check()
        if live.snapshot.state.terminal:
            return EndedIngest(live)
        self._refuse_when_closing()
        try:
            if replace_token:
                token_hash = hash_token(token)
                await self._storage.replace_token(live.id, token_hash)
                live.descriptor = replace(live.descriptor, token_hash=token_hash)
            writer = await self._storage.open(live.id)
        except AlreadyTerminal:
            live.publish(await self._storage.load(live.id))
            return EndedIngest(live)
        except TailraceError:
            self._sweeper.begin_grace(live.id, None)
            raise
        self._sweeper.cancel_grace(live.id)
        live.publish(writer.snapshot)
        self._session_count += 1
        session = UploadSession(self._registry.retain(live), writer, token, self)
        live.session = session
        self._sessions.add(session)
        if self._closing:
            session.end(GoingAway(retry_after=GOING_AWAY_RETRY))
        return session

    def _check_declarations(self, length: int | None, sha256: bytes | None, key: str | None) -> None:
        if length is not None:
            if length < 0:
                raise InvalidArgument(field="length", problem=f"{length} bytes; a length is not negative")
            if length > self.settings.max_resource_size:
                raise QuotaExceeded(limit="bytes per resource", maximum=self.settings.max_resource_size, actual=length)
        if sha256 is not None and len(sha256) != 32:
            raise InvalidArgument(field="sha256", problem=f"{len(sha256)} bytes; a SHA-256 has 32")
        if key is not None and not (1 <= len(key) <= _LONGEST_KEY and key.isprintable()):
            problem = f"not 1 to {_LONGEST_KEY} printable characters"
            raise InvalidArgument(field="idempotency_key", problem=problem)

    # Reading.

    async def open_reader(self, id: str, *, token: str | None = None) -> ResourceReader:
        check_id(id)
        live = await self._acquire_visible(id, token)
        return LiveReader(live, self._storage, lambda: self._registry.release(live))

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
        self._refuse_when_closing()
        live = await self._registry.acquire(id)
        if live.hidden and not token_matches(token, live.descriptor.token_hash):
            self._registry.release(live)
            raise NotFound(id=id)
        return live

    # Listing.

    async def list(self, filter: ListFilter, *, limit: int, page_token: str | None = None) -> Page:
        if limit < 1:
            raise InvalidArgument(field="limit", problem=f"{limit} entries; at least 1 is needed")
        limit = min(limit, self.settings.max_page_size)
        after = None if page_token is None else _parse_page_token(page_token)
        entries = await self._catalog.list(filter, after=after, limit=limit + 1)
        statuses = []
        taken = size = 0
        for entry in entries[:limit]:
            size += _listed_size(entry.descriptor.metadata)
            if taken and size > _MOST_PAGE_BYTES:
                break
            taken += 1
            status = await self._listed_status(entry, filter)
            if status is not None:
                statuses.append(status)
        next_token = _make_page_token(entries[taken - 1].descriptor.id) if len(entries) > taken else None
        return Page(tuple(statuses), next_token)

    async def _listed_status(self, entry: CatalogEntry, filter: ListFilter) -> Status | None:
        """Return the status of an entry; ``None`` when it does not belong into the listing after all."""
        descriptor = entry.descriptor
        live = self._registry.peek(descriptor.id)
        try:
            snapshot = live.snapshot if live is not None else await self._storage.load(descriptor.id)
        except NotFound:
            return None
        except StorageFailure:
            # One damaged resource must not hide the others; asking for it tells what is wrong with it.
            logger.warning("a resource cannot be listed", exc_info=True, extra={"resource": descriptor.id})
            return None
        if filter.state is not None and snapshot.state is not filter.state:
            return None
        if descriptor.visibility is Visibility.ATOMIC and snapshot.state is not ResourceState.COMPLETED:
            return None
        return live.status() if live is not None else make_status(descriptor, snapshot, self._bases.urls)

    # Deleting.

    async def delete(self, id: str, *, token: str | None = None) -> None:
        self._refuse_when_closing()
        check_id(id)
        await asyncio.shield(self._keep(asyncio.create_task(self._delete(id, token, authorised=False))))

    async def remove(self, id: str) -> None:
        """Delete a resource whoever may see it."""
        await self._delete(id, None, authorised=True)

    async def _delete(self, id: str, token: str | None, *, authorised: bool) -> None:
        async with self._registry.locked(id):
            live = await self._registry.acquire_locked(id)
            try:
                if not authorised and live.hidden and not token_matches(token, live.descriptor.token_hash):
                    raise NotFound(id=id)
                session = live.session
                live.mark_deleted()
                if session is not None:
                    await session.ended()
                await self._erase(live)
            finally:
                self._registry.release(live)

    async def discard(self, live: LiveResource) -> None:
        """Delete what an atomic upload leaves that does not complete; its session, if any, knows."""
        session, live.session = live.session, None
        try:
            live.mark_deleted()
            await self._erase(live)
        finally:
            live.session = session

    async def _erase(self, live: LiveResource) -> None:
        """Remove a resource; until that is done it stays in use, marked as deleted, so that nobody loads it again."""
        self._registry.retain(live)
        try:
            self._sweeper.cancel_grace(live.id)
            with suppress(NotFound):
                await self._storage.delete(live.id)
            await self._catalog.delete(live.id)
            self._events.publish((live.id,))
            self._telemetry.deleted()
            logger.info("deleted", extra={"resource": live.id})
        finally:
            self._registry.release(live)

    # What sessions and the sweeper need.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that :meth:`close` waits for."""
        return self._keep(asyncio.create_task(work, name=name))

    def window(self) -> int:
        """Return the window that each upload gets at the moment, in bytes."""
        share = self.settings.upload_windows_total // max(1, self._session_count)
        return min(self.settings.upload_window, max(_LEAST_WINDOW, share))

    @contextmanager
    def checkpoint(self) -> Generator[None, None, None]:
        """Count a checkpoint, and see whether the storage takes it."""
        with self._telemetry.checkpoint(), self._storage_health.watched():
            yield

    def announced(self, id: str) -> None:
        """Tell other processes that a resource has changed."""
        self._events.publish((id,))

    async def record_state(self, live: LiveResource, state: ResourceState) -> None:
        """Let the catalog follow; a failure is logged, and made good at the next start."""
        if state.terminal:
            self._telemetry.ended(state)
        try:
            await self._catalog.set_state(live.id, state, time.time() if state.terminal else None)
        except TailraceError:
            logger.exception("the catalog did not take a state", extra={"resource": live.id})

    def session_ended(self, session: UploadSession) -> None:
        """Begin the grace period, unless the upload has ended."""
        self._sessions.discard(session)
        self._session_count -= 1
        live = session.live
        if live.session is session:
            live.session = None
        live.pieces.tail.cut(live.snapshot.size)
        if not (live.snapshot.state.terminal or live.deleted or self._closing):
            self._sweeper.begin_grace(live.id, session.epoch)
        self._registry.release(live)

    async def expire(self, id: str, epoch: int | None) -> None:
        """End an upload whose uploader did not come back: FAILED, or deleted if it is atomic."""
        async with self._registry.locked(id):
            live = await self._registry.acquire_locked(id)
            try:
                if live.session is not None or live.snapshot.state.terminal:
                    return
                live.publish(await self._storage.load(id))
                if epoch is not None and live.snapshot.epoch > epoch:
                    # Another server has it, and will see to its grace.
                    return
                if live.descriptor.visibility is Visibility.ATOMIC:
                    await self.discard(live)
                else:
                    await self._fail_lost(live)
            finally:
                self._registry.release(live)

    async def _fail_lost(self, live: LiveResource) -> None:
        try:
            writer = await self._storage.open(live.id)
            try:
                outcome = await writer.fail(UPLOADER_LOST)
            finally:
                await writer.close()
        except AlreadyTerminal:
            live.publish(await self._storage.load(live.id))
            return
        except (StorageFailure, StorageFull, Overloaded):
            logger.exception("a lost upload could not be ended; it is tried again", extra={"resource": live.id})
            # This attempt may have taken the next epoch: that is nobody who has come back.
            self._sweeper.begin_grace(live.id, live.snapshot.epoch + 1)
            return
        if isinstance(outcome, Committed | Ended):
            await self.record_state(live, outcome.snapshot.state)
            live.publish(outcome.snapshot)
            self.announced(live.id)
            logger.info("uploader lost", extra={"resource": live.id})

    async def _tick(self) -> None:
        self._registry.tails.clear_idle(asyncio.get_running_loop().time() - self.settings.tail_idle)
        await self._descriptors.sample()

    def _figures(self) -> Figures:
        """Return what the server holds at the moment; called in any thread."""
        return Figures(
            ready=self.ready,
            uploads_open=self._session_count,
            uploads_waiting=self._sweeper.graces,
            resources_used=len(self._registry),
            storage_bytes=None,
        )

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)

    def _keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _abandon(opening: asyncio.Task[UploadIngest]) -> None:
    """Release the session that nobody waits for any more."""
    await asyncio.wait((opening,))
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().release()


def _listed_size(metadata: Metadata) -> int:
    """Return about how many bytes a resource takes in a page, at the most: a character may be escaped to six."""
    texts = [metadata.name, metadata.content_type, metadata.context or "", *metadata.labels, *metadata.labels.values()]
    return _LISTED_OVERHEAD + 6 * sum(map(len, texts))


def _make_page_token(id: str) -> str:
    return base64.urlsafe_b64encode(id.encode("ascii")).decode("ascii").rstrip("=")


def _parse_page_token(token: str) -> str:
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        return check_id(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
    except (UnicodeError, binascii.Error, InvalidReference):
        raise InvalidArgument(field="page_token", problem="not one of this server") from None
