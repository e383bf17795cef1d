"""Contexts: scopes that own resources."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Protocol

from tailrace_common_api import (
    Context,
    ContextClosed,
    ContextEvent,
    ContextNotFound,
    ContextState,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    TailraceError,
    check_attributes,
    check_id,
)
from tailrace_impl_common import IdGenerator
from tailrace_impl_server._context_events import ContextEvents
from tailrace_impl_server._keyed_locks import KeyedLocks
from tailrace_impl_server._quotas import CONTEXTS, Quotas
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import Catalog, ContextEntry

logger = logging.getLogger(__name__)

CONTEXT_CLOSED = "context closed"
"""Reason of resources whose context was closed before they were complete."""
_AT_ONCE = 8
_BATCH = 100


class EndsUploads(Protocol):
    """What contexts ask of the uploads."""

    async def end_unfinished(self, id: str, reason: str, error: TailraceError) -> None:
        """End an upload FAILED, if it has not ended, and tell its uploader ``error``; ``NotFound`` if it is gone."""


async def check_open(catalog: Catalog, context: str) -> None:
    """Return if a context takes uploads.

    Raises:
        ContextNotFound: There is none.
        ContextClosed: It does not any more.
    """
    entry = await catalog.get_context(context)
    if entry is None:
        raise ContextNotFound(id=context)
    if entry.closed_at is not None:
        raise ContextClosed(id=context)


async def is_closed(catalog: Catalog, context: str | None) -> bool:
    """Return whether a resource belongs to a context that was closed."""
    entry = None if context is None else await catalog.get_context(context)
    return entry is not None and entry.closed_at is not None


class Contexts:
    """The contexts of a server, as its catalog knows them. Belongs to one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        quotas: Quotas,
        events: ContextEvents,
        ids: IdGenerator,
        settings: ServerSettings,
        uploads: EndsUploads,
    ) -> None:
        self._catalog = catalog
        self._quotas = quotas
        self._events = events
        self._ids = ids
        self._settings = settings
        self._uploads = uploads
        self._counting = asyncio.Lock()
        self._closing = KeyedLocks()

    async def create(self, attributes: Mapping[str, str]) -> Context:
        """Create a context.

        Raises:
            InvalidArgument: The attributes break the rules of labels.
            QuotaExceeded: Too many contexts are open.
        """
        check_attributes(attributes)
        maximum = self._settings.max_contexts
        async with self._counting:
            known = await self._catalog.open_contexts()
            if known >= maximum:
                raise QuotaExceeded(limit=CONTEXTS, maximum=maximum, actual=known + 1)
            new_id, created_at = self._ids.next()
            entry = ContextEntry(id=new_id, attributes=dict(attributes), created_at=created_at)
            await self._catalog.insert_context(entry)
        logger.info("context created", extra={"context": new_id})
        return self._context(entry)

    async def get(self, id: str) -> Context:
        """Return a context.

        Raises:
            ContextNotFound: There is none.
        """
        return self._context(await self._entry(id))

    async def close(self, id: str) -> Context:
        """Close a context; when this returns, none of its uploads goes on.

        What is closed is recorded first, and whoever creates a resource looks again behind that: a resource is found
        here, or by its creator.

        Raises:
            ContextNotFound: There is none.
        """
        async with self._closing.hold(id):
            entry = await self._entry(id)
            if entry.closed_at is None:
                await self._catalog.close_context(id, time.time())
                logger.info("context closed", extra={"context": id})
            await self._end_uploads(id, await self._catalog.unfinished_in(id))
            entry = await self._entry(id)
            if entry.closed_at is not None:
                self._events.closed(id, entry.closed_at)
            return self._context(entry)

    async def events(self, id: str, after: int) -> AsyncGenerator[ContextEvent, None]:
        """Yield the events of a context.

        Raises:
            ContextNotFound: There is none.
            InvalidArgument: ``after`` is negative.
        """
        if after < 0:
            raise InvalidArgument(field="after", problem=f"{after}; events are numbered from 1 on")
        entry = await self._entry(id)
        watching = self._events.watch(id, after, entry.closed_at)
        try:
            async for event in watching:
                yield event
        finally:
            await watching.aclose()

    async def finish_closing(self, contexts: Iterable[str]) -> None:
        """End the uploads of those contexts that were closed and left uploads; whatever fails is tried again later."""
        for context in contexts:
            try:
                if await is_closed(self._catalog, context):
                    await self._end_uploads(context, await self._catalog.unfinished_in(context))
            except TailraceError:
                logger.exception("the uploads of a closed context go on for now", extra={"context": context})

    async def sweep(self, now: float) -> None:
        """Remove contexts without resources that were closed longer ago than any resource is retained."""
        retentions = [
            retention
            for retention in (self._settings.retention_completed, self._settings.retention_failed)
            if retention is not None
        ]
        if not retentions:
            return
        while True:
            removed = await self._catalog.delete_empty_contexts(now - max(retentions), limit=_BATCH)
            for context in removed:
                self._events.forget(context)
            if len(removed) < _BATCH:
                return

    async def _end_uploads(self, context: str, ids: tuple[str, ...]) -> None:
        for start in range(0, len(ids), _AT_ONCE):
            await asyncio.gather(*(self._end_upload(context, left) for left in ids[start : start + _AT_ONCE]))

    async def _end_upload(self, context: str, id: str) -> None:
        try:
            await self._uploads.end_unfinished(id, CONTEXT_CLOSED, ContextClosed(id=context))
        except NotFound:
            return
        except TailraceError:
            logger.exception("an upload of a closed context goes on for now", extra={"resource": id})

    async def _entry(self, id: str) -> ContextEntry:
        entry = await self._catalog.get_context(check_id(id))
        if entry is None:
            raise ContextNotFound(id=id)
        return entry

    def _context(self, entry: ContextEntry) -> Context:
        resources, size = self._quotas.in_context(entry.id)
        return Context(
            id=entry.id,
            attributes=entry.attributes,
            state=ContextState.OPEN if entry.closed_at is None else ContextState.CLOSED,
            created_at=entry.created_at,
            closed_at=entry.closed_at,
            resources=resources,
            bytes=size,
            last_event=self._events.last(entry.id),
        )
