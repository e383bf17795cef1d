"""What happens when time has passed: lost uploaders, outlived resources, idle memory."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from tailrace_common_api import NotFound, ResourceState, TailraceError
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import Catalog

logger = logging.getLogger(__name__)

_BATCH = 100
_AT_ONCE = 8


class SweptManager(Protocol):
    """What the sweeper asks of the manager."""

    async def expire(self, id: str, epoch: int | None) -> None:
        """End an upload whose uploader did not come back; ``epoch``: only if nobody has reopened it since."""

    async def remove(self, id: str) -> None:
        """Delete a resource; ``NotFound`` if it is gone."""


class Sweeper:
    """One task and one heap for all resources: no upload has a timer of its own. Belongs to one event loop."""

    def __init__(
        self, manager: SweptManager, catalog: Catalog, settings: ServerSettings, tick: Callable[[], Awaitable[None]]
    ) -> None:
        """Call ``tick`` as often as retention is swept."""
        self._manager = manager
        self._catalog = catalog
        self._settings = settings
        self._tick = tick
        self._numbers = itertools.count()
        # Entries that are not in ``_graces`` any more are skipped when their time comes.
        self._heap: list[tuple[float, int, str, int | None]] = []
        self._graces: dict[str, int] = {}
        self._earlier = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="tailrace-sweeper")

    async def close(self) -> None:
        """Stop; grace periods that run are forgotten. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    def begin_grace(self, id: str, epoch: int | None) -> None:
        """Expire the upload when its grace period is over, unless that is cancelled or begun again."""
        number = next(self._numbers)
        self._graces[id] = number
        deadline = asyncio.get_running_loop().time() + self._settings.upload_grace
        heapq.heappush(self._heap, (deadline, number, id, epoch))
        if self._heap[0][1] == number:
            self._earlier.set()

    def cancel_grace(self, id: str) -> None:
        """Let the upload live on."""
        if self._graces.pop(id, None) is not None and len(self._heap) > 2 * len(self._graces) + 64:
            self._heap = [entry for entry in self._heap if self._graces.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    @property
    def graces(self) -> int:
        """Uploads whose grace period runs."""
        return len(self._graces)

    async def sweep(self, now: float) -> None:
        """Delete what has outlived its retention at ``now``, seconds since the Unix epoch."""
        retentions = (
            (ResourceState.COMPLETED, self._settings.retention_completed),
            (ResourceState.FAILED, self._settings.retention_failed),
        )
        for state, retention in retentions:
            if retention is None:
                continue
            while ids := await self._catalog.ended_before(state, now - retention, limit=_BATCH):
                removed = 0
                for outlived in ids:
                    removed += await self._remove(outlived)
                if removed < len(ids):
                    # What could not be removed would come again at once.
                    break

    async def _sweep(self) -> None:
        await self.sweep(time.time())

    async def _remove(self, id: str) -> bool:
        try:
            await self._manager.remove(id)
        except NotFound:
            # Nothing but the entry is left.
            await self._catalog.delete(id)
        except TailraceError:
            logger.warning("a resource could not be deleted", exc_info=True, extra={"resource": id})
            return False
        return True

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_sweep = loop.time()
        while True:
            await self._expire_due(loop.time())
            if loop.time() >= next_sweep:
                next_sweep = loop.time() + self._settings.sweep_interval
                # Each by itself: what the one meets must not keep the other from being done for ever.
                for work in (self._sweep, self._tick):
                    try:
                        await work()
                    except Exception:
                        logger.exception("sweeping failed; it is tried again")
            self._earlier.clear()
            wake_at = min(next_sweep, self._heap[0][0]) if self._heap else next_sweep
            try:
                async with asyncio.timeout_at(wake_at):
                    await self._earlier.wait()
            except TimeoutError:
                continue

    async def _expire_due(self, now: float) -> None:
        due: list[tuple[str, int | None]] = []
        while self._heap and self._heap[0][0] <= now:
            _, number, lost, epoch = heapq.heappop(self._heap)
            if self._graces.get(lost) == number:
                del self._graces[lost]
                due.append((lost, epoch))
        for start in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*(self._expire(*entry) for entry in due[start : start + _AT_ONCE]))

    async def _expire(self, id: str, epoch: int | None) -> None:
        try:
            await self._manager.expire(id, epoch)
        except NotFound:
            return
        except Exception:
            logger.exception("a lost upload could not be ended; it is tried again", extra={"resource": id})
            self.begin_grace(id, epoch)
