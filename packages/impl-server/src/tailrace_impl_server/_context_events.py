"""What happens in contexts, for whoever watches."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator
from dataclasses import replace

from tailrace_common_api import ContextEvent, ContextEventKind, GoingAway, TailraceError
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY, LiveResource

_MOST_EVENTS = 65_536
"""Events of all contexts that are kept, unless one may have more: beyond them, contexts lose their oldest events where
nothing has happened for the longest time."""


class _Ring:
    """The last events of one context."""

    __slots__ = ("closed", "events", "last", "waiters", "watchers")

    def __init__(self) -> None:
        self.events: deque[ContextEvent] = deque()
        self.last = 0
        """Number of the last event."""
        self.closed = False
        self.watchers = 0
        self.waiters: set[asyncio.Future[None]] = set()

    def behind(self, sequence: int) -> ContextEvent | None:
        """Return the first event that is known behind number ``sequence``."""
        if not self.events or sequence >= self.last:
            return None
        return self.events[max(0, sequence + 1 - self.events[0].sequence)]

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


class ContextEvents:
    """Keeps the last events of each context in memory. Belongs to one event loop.

    Who watches holds the number of the last event that it got, and nothing else: a slow one costs no memory, and misses
    what has left the ring meanwhile.
    """

    def __init__(self, per_context: int) -> None:
        self._per_context = per_context
        self._most = max(_MOST_EVENTS, per_context)
        self._rings: dict[str, _Ring] = {}
        # Those with events; where something has happened last, comes last.
        self._filled: OrderedDict[str, _Ring] = OrderedDict()
        self._count = 0
        self._going_away = False

    def about(self, kind: ContextEventKind, live: LiveResource, *, error: TailraceError | None = None) -> None:
        """Add an event about a resource, if it belongs to a context."""
        context = live.descriptor.metadata.context
        if context is None:
            return
        snapshot = live.snapshot
        self._add(
            context,
            ContextEvent(
                sequence=0,
                at=time.time(),
                kind=kind,
                id=live.id,
                state=snapshot.state,
                size=snapshot.size,
                code=None if error is None else error.code,
                message=snapshot.reason if error is None else error.message,
            ),
        )

    def refused(self, context: str, error: TailraceError) -> None:
        """Add that a creation was refused."""
        self._add_bare(context, ContextEventKind.REFUSED, time.time(), error)

    def closed(self, context: str, at: float) -> None:
        """Add that the context was closed, unless that was added; nothing comes behind it."""
        self._add_bare(context, ContextEventKind.CLOSED, at)

    def _add_bare(self, context: str, kind: ContextEventKind, at: float, error: TailraceError | None = None) -> None:
        code, message = (None, None) if error is None else (error.code, error.message)
        event = ContextEvent(sequence=0, at=at, kind=kind, id=None, state=None, size=None, code=code, message=message)
        self._add(context, event)

    def last(self, context: str) -> int:
        """Return the number of the last event of a context; 0 when it had none since the start."""
        ring = self._rings.get(context)
        return 0 if ring is None else ring.last

    def forget(self, context: str) -> None:
        """Drop the events of a context that is gone."""
        ring = self._rings.pop(context, None)
        if ring is not None:
            self._count -= len(ring.events)
            self._filled.pop(context, None)
            ring.closed = True
            ring.wake()

    def go_away(self) -> None:
        """Tell everyone who waits that the server shuts down."""
        self._going_away = True
        for ring in self._rings.values():
            ring.wake()

    async def watch(self, context: str, after: int, closed_at: float | None) -> AsyncGenerator[ContextEvent, None]:
        """Yield what is known behind number ``after``, then what comes, up to CLOSED.

        A number that no event has had yet is one of before a restart: then all that is known comes.
        """
        if closed_at is not None:
            self.closed(context, closed_at)
        ring = self._rings.setdefault(context, _Ring())
        ring.watchers += 1
        try:
            position = after if after <= ring.last else 0
            while True:
                event = ring.behind(position)
                if event is not None:
                    position = event.sequence
                    yield event
                elif ring.closed:
                    return
                elif self._going_away:
                    raise GoingAway(retry_after=GOING_AWAY_RETRY)
                else:
                    await _woken(ring)
        finally:
            ring.watchers -= 1
            self._drop_if_unused(context, ring)

    def _add(self, context: str, event: ContextEvent) -> None:
        ring = self._rings.setdefault(context, _Ring())
        if ring.closed:
            return
        ring.last += 1
        ring.closed = event.kind is ContextEventKind.CLOSED
        ring.events.append(replace(event, sequence=ring.last))
        self._count += 1
        self._filled[context] = ring
        self._filled.move_to_end(context)
        if len(ring.events) > self._per_context:
            ring.events.popleft()
            self._count -= 1
        if self._count > self._most:
            self._drop_oldest()
        ring.wake()

    def _drop_oldest(self) -> None:
        context, ring = next(iter(self._filled.items()))
        ring.events.popleft()
        self._count -= 1
        if not ring.events:
            del self._filled[context]
            self._drop_if_unused(context, ring)

    def _drop_if_unused(self, context: str, ring: _Ring) -> None:
        # The numbers of an open context go on, so its ring stays even when it is empty, once it had an event.
        unused = not (ring.events or ring.watchers) and (ring.closed or not ring.last)
        if unused and self._rings.get(context) is ring:
            del self._rings[context]


async def _woken(ring: _Ring) -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ring.waiters.add(waiter)
    try:
        await waiter
    finally:
        ring.waiters.discard(waiter)
