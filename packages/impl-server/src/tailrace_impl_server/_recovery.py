"""Start of a server: catalog and storage agree again, and interrupted uploads get their grace period."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from tailrace_common_api import NotFound, TailraceError
from tailrace_server_api import Catalog, CatalogEntry, ContextEntry, Storage

logger = logging.getLogger(__name__)


_AT_ONCE = 32
"""Interrupted uploads that are looked at together."""

BeginGrace = Callable[[str, int | None], None]
Unfinished = tuple[str, str | None, int]
"""Id, context and size of a resource that has not ended."""


async def recover(storage: Storage, catalog: Catalog, begin_grace: BeginGrace) -> list[Unfinished]:
    """Make the catalog follow the storage, and begin the grace period of every resource that has not ended.

    A context that resources name and the catalog does not know, is there again, closed: nobody knows what was said of
    it, nor whether it was open.

    Reads the state only of resources that the catalog does not know, or not as ended. One that cannot be read is
    logged and left alone: it keeps nobody from the others.

    Returns:
        Id, context and size of every resource that has not ended; 0 bytes for one that cannot be read.

    Raises:
        StorageFailure: Storage or catalog cannot be listed.
    """
    known = await catalog.known()
    stored = {found async for found in storage.ids()}
    for gone in sorted(known - stored):
        logger.info("the catalog names a resource that is not stored; the entry is removed", extra={"resource": gone})
        await catalog.delete(gone)
    await _add_missing(stored - known, storage, catalog)
    unfinished = await catalog.unfinished()
    left: list[Unfinished] = []
    for first in range(0, len(unfinished), _AT_ONCE):
        batch = unfinished[first : first + _AT_ONCE]
        examined = await asyncio.gather(*(_examine(one, storage, catalog, begin_grace) for one in batch))
        left += [found for found in examined if found is not None]
    return left


async def _examine(id: str, storage: Storage, catalog: Catalog, begin_grace: BeginGrace) -> Unfinished | None:
    """Look at a resource that the catalog does not know as ended; return ``None`` if it has ended or is gone."""
    context = None
    try:
        entry = await catalog.get(id)
        context = None if entry is None else entry.descriptor.metadata.context
        snapshot = await storage.load(id)
    except NotFound:
        await catalog.delete(id)
        return None
    except TailraceError:
        logger.exception("an interrupted upload cannot be read", extra={"resource": id})
        # It may be readable later, and is then not to be counted a second time.
        return id, context, 0
    if snapshot.state.terminal:
        await catalog.set_state(id, snapshot.state, time.time(), size=snapshot.size)
        return None
    begin_grace(id, snapshot.epoch)
    return id, context, snapshot.size


async def _add_missing(ids: set[str], storage: Storage, catalog: Catalog) -> None:
    unused: list[CatalogEntry] = []
    for missing in sorted(ids):
        try:
            snapshot = await storage.load(missing)
            ended = snapshot.state.terminal
            entry = CatalogEntry(
                await storage.describe(missing),
                snapshot.state,
                time.time() if ended else None,
                snapshot.size if ended else 0,
            )
            if snapshot.epoch:
                await _add(entry, storage, catalog, used=True)
            else:
                unused.append(entry)
        except TailraceError:
            logger.exception("a stored resource cannot be read", extra={"resource": missing})
    # After all that have been written to: of two resources under one idempotency key, one never got a writer.
    for entry in unused:
        await _add(entry, storage, catalog, used=False)


async def _add(entry: CatalogEntry, storage: Storage, catalog: Catalog, *, used: bool) -> None:
    added = entry.descriptor.id
    context = entry.descriptor.metadata.context
    if context is not None:
        created_at = entry.descriptor.created_at
        await catalog.insert_context(
            ContextEntry(id=context, attributes={}, created_at=created_at, closed_at=time.time())
        )
    holder = await catalog.insert(entry)
    if holder is None:
        logger.info("a stored resource was missing in the catalog", extra={"resource": added})
    elif used:
        await catalog.insert(replace(entry, descriptor=replace(entry.descriptor, idempotency_key=None)))
    else:
        await storage.delete(added)
