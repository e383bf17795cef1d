"""The resources that somebody uses at the moment, and how they learn of changes made elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager

from tailrace_common_api import NotFound, TailraceError
from tailrace_impl_server._keyed_locks import KeyedLocks
from tailrace_impl_server._live_resource import Bases, LiveResource, Observer
from tailrace_impl_server._pieces import PieceCache, PieceSource
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._shared_tail import SharedTail, TailBudget
from tailrace_server_api import Descriptor, EventBus, Snapshot, Storage

logger = logging.getLogger(__name__)


class Registry:
    """Holds a :class:`LiveResource` for each resource in use, and none for any other. Belongs to one event loop.

    Who acquires one releases it. Resources that no session of this process writes are looked at again when the event
    bus hints at them, and on a slow timer, one for all.
    """

    def __init__(
        self, storage: Storage, events: EventBus, bases: Bases, settings: ServerSettings, observer: Observer
    ) -> None:
        self._storage = storage
        self._events = events
        self._bases = bases
        self._settings = settings
        self._observer = observer
        self._live: dict[str, LiveResource] = {}
        self._locks = KeyedLocks()
        self._cache = PieceCache(settings.tails_total)
        self._stale: set[str] = set()
        self._hinted = asyncio.Event()
        self._unsubscribe: Callable[[], None] = lambda: None
        self._refreshing: asyncio.Task[None] | None = None
        self.tails = TailBudget(settings.tails_total)
        """Memory of all shared tails."""

    def start(self) -> None:
        """Begin to look at watched resources."""
        self._unsubscribe = self._events.subscribe(self._hint)
        self._refreshing = asyncio.create_task(self._refresh_watched(), name="tailrace-refresh")

    async def close(self) -> None:
        """Stop looking at watched resources; what is still in use stays usable."""
        if self._refreshing is not None:
            self._unsubscribe()
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
            self._refreshing = None

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveResource]:
        return iter(list(self._live.values()))

    def peek(self, id: str) -> LiveResource | None:
        """Return a resource that is in use and not deleted, without acquiring it."""
        live = self._live.get(id)
        return None if live is None or live.deleted else live

    def locked(self, id: str) -> AbstractAsyncContextManager[None]:
        """Keep others from opening, ending or deleting the resource within the block; not who only reads it."""
        return self._locks.hold(id)

    async def acquire(self, id: str) -> LiveResource:
        """Return a resource for use; the caller must not hold its lock.

        Raises:
            NotFound: There is none, or it is being deleted.
        """
        if id not in self._live:
            async with self._locks.hold(id):
                return await self.acquire_locked(id)
        return self._use(self._live[id])

    async def acquire_locked(self, id: str) -> LiveResource:
        """Return a resource for use; the caller holds its lock."""
        live = self._live.get(id)
        if live is None:
            # Under the lock nobody else loads it or deletes it.
            descriptor = await self._storage.describe(id)
            snapshot = await self._storage.load(id)
            live = self.adopt(descriptor, snapshot)
            live.users = 0
            self._observer.loaded(live)
        return self._use(live)

    def adopt(self, descriptor: Descriptor, snapshot: Snapshot) -> LiveResource:
        """Return a resource that was just created, for use."""
        tail = SharedTail(self._settings.tail_limit, self.tails)
        pieces = PieceSource(descriptor.id, self._storage, tail, self._cache)
        live = LiveResource(descriptor, snapshot, pieces, self._bases, self._observer)
        self._live[descriptor.id] = live
        live.users = 1
        return live

    def replace(self, live: LiveResource, snapshot: Snapshot) -> LiveResource:
        """Return a resource for use of which less is stored than was announced.

        Who uses ``live`` never sees its size go back: they are told to come back, and learn then what was lost.
        """
        self.forget(live)
        live.go_away()
        # Other bytes may be announced in the place of those that are lost.
        self._cache.clear()
        return self.adopt(live.descriptor, snapshot)

    def retain(self, live: LiveResource) -> LiveResource:
        """Use an acquired resource once more."""
        live.users += 1
        return live

    def release(self, live: LiveResource) -> None:
        """End one use."""
        live.users -= 1
        if live.users == 0:
            live.pieces.tail.clear()
            if self._live.get(live.id) is live:
                del self._live[live.id]

    def forget(self, live: LiveResource) -> None:
        """Let the next one who acquires the resource load it anew; who uses ``live`` keeps it."""
        if self._live.get(live.id) is live:
            del self._live[live.id]

    def _use(self, live: LiveResource) -> LiveResource:
        if live.deleted:
            raise NotFound(id=live.id)
        live.users += 1
        return live

    def _hint(self, ids: Collection[str] | None) -> None:
        if ids is None:
            self._stale.update(self._live)
        else:
            for changed in ids:
                live = self._live.get(changed)
                # What a session of this process writes, it publishes itself.
                if live is not None and live.session is None:
                    self._stale.add(changed)
        if self._stale:
            self._hinted.set()

    async def _refresh_watched(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_interval):
                    await self._hinted.wait()
            except TimeoutError:
                self._stale.update(live.id for live in self._live.values() if live.watched)
            self._hinted.clear()
            stale, self._stale = self._stale, set()
            for changed in stale:
                if self._locks.is_held(changed):
                    # Who opens or ends it publishes what comes of that, an end not before the catalog has it.
                    self._stale.add(changed)
                    continue
                async with self._locks.hold(changed):
                    live = self._live.get(changed)
                    if live is not None and live.session is None and not live.deleted:
                        await self._refresh(live)

    async def _refresh(self, live: LiveResource) -> None:
        try:
            live.publish(await self._storage.load(live.id))
        except NotFound:
            live.mark_deleted()
        except TailraceError:
            logger.warning("cannot look at a watched resource again", exc_info=True, extra={"resource": live.id})
        except Exception:
            # A defect that one resource meets must not end the looking at all others.
            logger.exception("looking at a watched resource again failed", extra={"resource": live.id})
