"""Keeps the catalog as the storage is, also when it did not take a change at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from tailrace_common_api import ResourceState, TailraceError
from tailrace_server_api import Catalog

logger = logging.getLogger(__name__)

_Change = Callable[[], Awaitable[None]]


class CatalogFollower:
    """Tells the catalog of ended and deleted resources. Belongs to one event loop.

    The storage has the truth, so a catalog that fails stops nobody: what it did not take is logged, and tried again by
    :meth:`catch_up` until it does. The next start makes good what is still missing then.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._missed: dict[str, _Change] = {}

    async def record(self, id: str, state: ResourceState, size: int) -> None:
        """Record a state; never raises for a catalog that fails."""
        if not state.terminal:
            try:
                await self._catalog.set_state(id, state, None)
            except TailraceError:
                logger.exception("the catalog did not take a state", extra={"resource": id})
            return
        ended_at = time.time()
        await self._apply(id, lambda: self._catalog.set_state(id, state, ended_at, size=size))

    async def remove(self, id: str) -> None:
        """Remove an entry; never raises for a catalog that fails."""
        await self._apply(id, lambda: self._catalog.delete(id))

    async def catch_up(self) -> None:
        """Try again what the catalog did not take; stops at the first that fails again."""
        for missed, change in list(self._missed.items()):
            if self._missed.get(missed) is not change:
                continue
            try:
                await change()
            except TailraceError:
                logger.warning("the catalog still does not take changes", exc_info=True)
                return
            if self._missed.get(missed) is change:
                del self._missed[missed]
                logger.info("the catalog took what it had missed", extra={"resource": missed})

    @property
    def missed(self) -> int:
        """Resources of which the catalog does not know the newest."""
        return len(self._missed)

    async def _apply(self, id: str, change: _Change) -> None:
        try:
            await change()
        except TailraceError:
            logger.exception("the catalog did not take a change; it is tried again", extra={"resource": id})
            self._missed[id] = change
        else:
            self._missed.pop(id, None)
