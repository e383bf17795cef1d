"""Uploads: how they are created, continued, and ended when nobody else does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tailrace_common_api import (
    AlreadyTerminal,
    ContextClosed,
    ContextEventKind,
    GoingAway,
    IdempotencyConflict,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    StorageFailure,
    StorageFull,
    TailraceError,
    TokenRejected,
    Visibility,
)
from tailrace_impl_server._contexts import CONTEXT_CLOSED, check_open, is_closed
from tailrace_impl_server._ended_ingest import EndedIngest
from tailrace_impl_server._hooks import HookRunner
from tailrace_impl_server._ingest import UploadSession
from tailrace_impl_server._keyed_locks import KeyedLocks
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY, LiveResource
from tailrace_impl_server._removal import Removal
from tailrace_impl_server._server_parts import ServerParts
from tailrace_impl_server._session_host import HostedSession
from tailrace_impl_server._tokens import hash_token, new_token, token_matches
from tailrace_server_api import (
    CatalogEntry,
    Committed,
    Descriptor,
    Ended,
    ServerHooks,
    Snapshot,
    UploadIngest,
)

logger = logging.getLogger(__name__)

_LEAST_WINDOW = 64 * 1024
UPLOADER_LOST = "uploader lost"
"""Reason of resources whose uploader did not come back."""


class Uploads:
    """The uploads of a server, and their sessions. Belongs to one event loop."""

    def __init__(self, parts: ServerParts, removal: Removal, hooks: ServerHooks | None) -> None:
        self.settings = parts.settings
        """Settings in force."""
        self._parts = parts
        self._removal = removal
        self._hooks = HookRunner(hooks, parts.settings.hook_timeout, self._veto)
        self._keys = KeyedLocks()
        self._sessions: set[HostedSession] = set()
        self._session_count = 0
        self._count_session(0)

    @property
    def sessions(self) -> int:
        """Sessions that have not ended."""
        return self._session_count

    async def create(self, wanted: Descriptor) -> UploadIngest:
        """Create a resource, or continue the one under its idempotency key, and open a session; see the manager."""
        return await self._open_session(self._create(wanted))

    async def reopen(self, id: str, token: str) -> UploadIngest:
        """Open the next session of an upload; see the manager."""
        return await self._open_session(self._reopen(id, token))

    def go_away(self) -> None:
        """End all sessions, because the server shuts down."""
        for session in list(self._sessions):
            session.end(GoingAway(retry_after=GOING_AWAY_RETRY))
        self._hooks.go_away()

    async def close(self) -> None:
        """Let the hooks come to their end; no session is left by then."""
        await self._hooks.close()

    async def _open_session(self, opening: Coroutine[Any, Any, UploadIngest]) -> UploadIngest:
        """Open a session to the end, and release it if the caller has been cancelled meanwhile."""
        task = self._parts.tasks.start(opening)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.spawn(_abandon(task), "tailrace-abandon")
            raise

    # Creating.

    async def _create(self, wanted: Descriptor) -> UploadIngest:
        if wanted.idempotency_key is None:
            created = await self._create_new(wanted)
            assert created is not None
            return created
        async with self._keys.hold((wanted.principal, wanted.idempotency_key)):
            while True:
                entry = await self._parts.catalog.find_key(wanted.principal, wanted.idempotency_key)
                if entry is None:
                    session = await self._create_new(wanted)
                else:
                    session = await self._continue(entry.descriptor.id, wanted)
                if session is not None:
                    return session

    async def _create_new(self, wanted: Descriptor) -> UploadIngest | None:
        """Create a resource; ``None`` when another server created one under the same key in this moment."""
        context = wanted.metadata.context
        if context is not None:
            await check_open(self._parts.catalog, context)
        try:
            self._parts.quotas.begin(wanted.id, context, wanted.length)
            token = new_token()
            return await self._store_new(replace(wanted, token_hash=hash_token(token)), token)
        except GoingAway:
            raise
        except TailraceError as error:
            if context is not None:
                self._parts.context_events.refused(context, error)
            raise

    async def _store_new(self, descriptor: Descriptor, token: str) -> UploadIngest | None:
        parts = self._parts
        async with parts.registry.locked(descriptor.id):
            try:
                with parts.storage_health.watched():
                    snapshot = await parts.storage.create(descriptor)
            except BaseException as error:
                if isinstance(error, StorageFull | StorageFailure):
                    logger.warning("a resource could not be stored: %s", error)
                parts.quotas.remove(descriptor.id, descriptor.metadata.context, 0)
                raise
            try:
                with parts.storage_health.watched():
                    holder = await parts.catalog.insert(CatalogEntry(descriptor, snapshot.state))
                if holder is None and descriptor.metadata.context is not None:
                    # It may have been closed meanwhile; whoever closes it now finds this resource.
                    await check_open(parts.catalog, descriptor.metadata.context)
            except TailraceError:
                await self._undo(descriptor)
                raise
            if holder is not None:
                await self._undo(descriptor)
                return None
            live = parts.registry.adopt(descriptor, snapshot)
            parts.telemetry.created()
            try:
                await self._ask_hooks(live)
                if not live.hidden:
                    parts.context_events.about(ContextEventKind.CREATED, live)
                return await self._next_session(live, token)
            finally:
                parts.registry.release(live)

    async def _undo(self, descriptor: Descriptor) -> None:
        """Remove what has been stored of a resource that must not be."""
        parts = self._parts
        try:
            with suppress(NotFound):
                await parts.storage.delete(descriptor.id)
        except TailraceError:
            logger.exception("what is left of a refused resource ends later", extra={"resource": descriptor.id})
            parts.sweeper.begin_grace(descriptor.id, None)
            return
        await parts.follower.remove(descriptor.id)
        parts.quotas.remove(descriptor.id, descriptor.metadata.context, 0)

    async def _ask_hooks(self, live: LiveResource) -> None:
        try:
            await self._hooks.created(live)
        except PermissionDenied:
            if not live.deleted:
                await self._removal.discard(live, unheard_of=True)
            raise

    async def _continue(self, id: str, wanted: Descriptor) -> UploadIngest | None:
        """Open the next session of the upload under an idempotency key; ``None`` when it is gone."""
        registry = self._parts.registry
        async with registry.locked(id):
            try:
                live = await registry.acquire_locked(id)
            except NotFound:
                await self._parts.catalog.delete(id)
                return None
            try:
                known = live.descriptor
                if replace(wanted, id=id, created_at=known.created_at, token_hash=known.token_hash) != known:
                    raise IdempotencyConflict(id=id)
                if live.snapshot.epoch == 0 and not live.snapshot.state.terminal:
                    # Nobody has been answered yet: the server may have died before the hooks had their say.
                    await self._ask_hooks(live)
                token = new_token()
                try:
                    return await self._next_session(live, token, replace_token=True)
                except NotFound:
                    # An abort deleted it while this waited; the key is free.
                    return None
            finally:
                registry.release(live)

    # Continuing.

    async def _reopen(self, id: str, token: str) -> UploadIngest:
        registry = self._parts.registry
        async with registry.locked(id):
            live = await registry.acquire_locked(id)
            try:
                if not token_matches(token, live.descriptor.token_hash):
                    if live.hidden:
                        raise NotFound(id=id)
                    raise TokenRejected(id=id)
                return await self._next_session(live, token)
            finally:
                registry.release(live)

    async def _next_session(self, live: LiveResource, token: str, *, replace_token: bool = False) -> UploadIngest:
        """Open the next session; the caller holds the lock. The one before it, if any, does nothing more then."""
        parts = self._parts
        if live.session is not None:
            live.session.fence()
            await live.session.ended()
        live.check()
        if live.has_ended():
            return EndedIngest(live)
        parts.refuse_when_closing()
        context = live.descriptor.metadata.context
        try:
            closed = await is_closed(parts.catalog, context)
        except TailraceError:
            # A new resource has nobody else who would ever end it.
            parts.sweeper.begin_grace(live.id, None)
            raise
        if closed:
            await self._end(live, CONTEXT_CLOSED)
            live.check()
            if not live.has_ended():
                assert context is not None
                raise ContextClosed(id=context)
            return EndedIngest(live)
        try:
            if replace_token:
                token_hash = hash_token(token)
                await parts.storage.replace_token(live.id, token_hash)
                live.descriptor = replace(live.descriptor, token_hash=token_hash)
            writer = await parts.storage.open(live.id)
        except AlreadyTerminal:
            live.publish(await parts.storage.load(live.id))
            return EndedIngest(live)
        except TailraceError:
            parts.sweeper.begin_grace(live.id, None)
            raise
        parts.sweeper.cancel_grace(live.id)
        live = self._use_at(live, writer.snapshot)
        charge = parts.quotas.charge(live.id, context, writer.snapshot.size)
        self._count_session(1)
        session = UploadSession(live, writer, token, self, charge)
        live.session = session
        self._sessions.add(session)
        if parts.closing:
            session.end(GoingAway(retry_after=GOING_AWAY_RETRY))
        return session

    def _use_at(self, live: LiveResource, snapshot: Snapshot) -> LiveResource:
        """Return a resource for use, in the state from which a writer goes on."""
        registry = self._parts.registry
        if snapshot.size >= live.snapshot.size:
            live.publish(snapshot)
            return registry.retain(live)
        lost = live.snapshot.size - snapshot.size
        logger.error("the storage has lost %d announced bytes", lost, extra={"resource": live.id})
        return registry.replace(live, snapshot)

    def _count_session(self, change: int) -> None:
        self._session_count += change
        share = self.settings.upload_windows_total // max(1, self._session_count)
        self._window = min(self.settings.upload_window, max(_LEAST_WINDOW, share))

    # What sessions need.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that the server waits for when it closes."""
        return self._parts.tasks.start(work, name)

    def window(self) -> int:
        """Return the window that each upload gets at the moment, in bytes."""
        return self._window

    def checkpoint_made(self, seconds: float) -> None:
        """Count a checkpoint that took so long: the storage takes what it is given."""
        self._parts.telemetry.checkpoint_made(seconds)
        self._parts.storage_health.written()

    def checkpoint_failed(self, error: TailraceError) -> None:
        """Count a checkpoint that could not be made, and see whether that is the storage's fault."""
        self._parts.telemetry.checkpoint_failed(error)
        self._parts.storage_health.refused(error)

    def announced(self, id: str) -> None:
        """Tell other processes that a resource has changed."""
        self._parts.bus.publish((id,))

    def grown(self, live: LiveResource) -> None:
        """Tell the hooks that a resource has grown."""
        self._hooks.grown(live)

    def refused(self, live: LiveResource, error: QuotaExceeded | PermissionDenied) -> None:
        """Tell who watches the context that more of an upload was refused."""
        logger.info("refused: %s", error, extra={"resource": live.id})
        if live.hidden:
            if live.descriptor.metadata.context is not None:
                self._parts.context_events.refused(live.descriptor.metadata.context, error)
        else:
            self._parts.context_events.about(ContextEventKind.REFUSED, live, error=error)

    async def record_state(self, live: LiveResource, snapshot: Snapshot) -> None:
        """Let the catalog follow; never raises."""
        if snapshot.state.terminal:
            self._parts.telemetry.ended(snapshot.state)
        await self._parts.follower.record(live.id, snapshot.state, snapshot.size if snapshot.state.terminal else 0)

    def has_ended(self, live: LiveResource) -> None:
        """Tell the hooks that a resource has ended."""
        self._hooks.ended(live)

    async def discard(self, live: LiveResource) -> None:
        """Delete what an atomic upload leaves that does not complete; its session, if any, knows."""
        await self._removal.discard(live)

    def session_ended(self, session: HostedSession) -> None:
        """Begin the grace period, unless the upload has ended."""
        parts = self._parts
        self._sessions.discard(session)
        self._count_session(-1)
        live = session.live
        if live.session is session:
            live.session = None
        live.pieces.tail.cut(live.snapshot.size)
        if not (live.snapshot.state.terminal or live.deleted or parts.closing):
            parts.sweeper.begin_grace(live.id, session.epoch)
        parts.registry.release(live)

    # Ending what nobody else ends.

    async def expire(self, id: str, epoch: int | None) -> None:
        """End an upload whose uploader did not come back: FAILED, or deleted if it is atomic.

        Args:
            id: Resource id.
            epoch: Only if nobody has reopened it since; ``None``: in any case.
        """
        parts = self._parts
        async with parts.registry.locked(id):
            live = await parts.registry.acquire_locked(id)
            try:
                if live.session is not None or live.has_ended():
                    return
                live.publish(await parts.storage.load(id))
                if live.has_ended() or (epoch is not None and live.snapshot.epoch > epoch):
                    # Another server has it, and will see to its grace.
                    return
                closed = await is_closed(parts.catalog, live.descriptor.metadata.context)
                await self._end(live, CONTEXT_CLOSED if closed else UPLOADER_LOST)
            finally:
                parts.registry.release(live)

    async def end_unfinished(self, id: str, reason: str, error: TailraceError) -> None:
        """End an upload FAILED, or delete an atomic one, if it has not ended; its uploader gets ``error`` at once.

        Raises:
            NotFound: It is gone.
        """
        registry = self._parts.registry
        async with registry.locked(id):
            live = await registry.acquire_locked(id)
            try:
                if live.session is not None:
                    live.session.terminate(reason, error)
                    await live.session.ended()
                if not (live.has_ended() or live.deleted):
                    await self._end(live, reason)
            finally:
                registry.release(live)

    async def _veto(self, id: str, error: PermissionDenied) -> None:
        live = self._parts.registry.peek(id)
        if live is not None:
            self.refused(live, error)
        with suppress(NotFound):
            await self.end_unfinished(id, error.message, error)

    async def _end(self, live: LiveResource, reason: str) -> None:
        """End an upload that nobody writes; the caller holds the lock. What fails is tried again as a lost upload."""
        parts = self._parts
        if live.descriptor.visibility is Visibility.ATOMIC:
            await self._removal.discard(live)
            return
        try:
            writer = await parts.storage.open(live.id)
            begun = writer.snapshot
            try:
                outcome = await writer.fail(reason)
            finally:
                await writer.close()
        except AlreadyTerminal:
            live.publish(await parts.storage.load(live.id))
            return
        except (StorageFailure, StorageFull, Overloaded):
            logger.exception("an upload could not be ended; it is tried again", extra={"resource": live.id})
            # This attempt may have taken the next epoch: that is nobody who has come back.
            parts.sweeper.begin_grace(live.id, live.snapshot.epoch + 1)
            return
        if isinstance(outcome, Committed | Ended):
            parts.sweeper.cancel_grace(live.id)
            live = self._use_at(live, begun)
            try:
                await self.record_state(live, outcome.snapshot)
                live.publish(outcome.snapshot)
                self.announced(live.id)
                self.has_ended(live)
            finally:
                parts.registry.release(live)
            logger.info("ended: %s", reason, extra={"resource": live.id})


async def _abandon(opening: asyncio.Task[UploadIngest]) -> None:
    """Release the session that nobody waits for any more."""
    await asyncio.wait((opening,))
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().release()
