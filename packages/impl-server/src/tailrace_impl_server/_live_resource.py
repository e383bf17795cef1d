"""A resource that somebody uses at the moment: its newest state and those who wait for the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tailrace_common_api import Deleted, GoingAway, ResourceState, Status, TailraceError, Visibility, make_reference
from tailrace_impl_server._pieces import PieceSource
from tailrace_server_api import Descriptor, Snapshot

_WAKE_AT_ONCE = 100
"""Waiters woken per iteration of the event loop, so that thousands of them do not keep it from everything else."""
GOING_AWAY_RETRY = 0.1
"""When clients are told to come back after a shutdown, in seconds."""

_Absorb = Callable[[Snapshot], bool] | None


class Bases:
    """Public base URLs of the server's transports."""

    def __init__(self) -> None:
        self.urls: tuple[str, ...] = ()
        """In the order in which they were added."""

    def add(self, base: str) -> None:
        """Add a base unless it is there."""
        if base not in self.urls:
            self.urls = (*self.urls, base)


def make_status(descriptor: Descriptor, snapshot: Snapshot, bases: tuple[str, ...]) -> Status:
    """Return the status that a snapshot means."""
    alternatives = tuple(make_reference(base, descriptor.id) for base in bases)
    return Status(
        reference=alternatives[0] if alternatives else descriptor.id,
        id=descriptor.id,
        version=snapshot.version,
        state=snapshot.state,
        size=snapshot.size,
        lines=snapshot.lines if descriptor.metadata.lines else None,
        head=snapshot.head,
        reason=snapshot.reason,
        alternatives=alternatives,
        metadata=descriptor.metadata,
        visibility=descriptor.visibility,
        created_at=descriptor.created_at,
    )


class Session(Protocol):
    """The session that writes a resource in this process, as others see it."""

    def end(self, error: TailraceError) -> None:
        """End the session; whoever waits for it gets ``error`` at once."""

    def fence(self) -> None:
        """End the session because a newer one takes over."""

    def terminate(self, reason: str, error: TailraceError) -> None:
        """End the upload as FAILED, unless it is being completed; whoever waits for the session gets ``error``."""

    async def ended(self) -> None:
        """Wait until the session does nothing any more."""


class Observer(Protocol):
    """Who keeps account of the resources in use."""

    def loaded(self, live: LiveResource) -> None:
        """Take note of a resource that was looked up in the storage."""

    def published(self, live: LiveResource, before: Snapshot) -> None:
        """Take note of a newer state, in the moment in which it becomes visible."""


class LiveResource:
    """The status feed of one resource: one slot with the newest snapshot, and waiters. Belongs to one event loop.

    Nobody holds a queue of snapshots, and nobody is called back: who waits compares versions before and after, so a
    change between looking and waiting is never missed, and an older state never overtakes a newer one.
    """

    def __init__(
        self, descriptor: Descriptor, snapshot: Snapshot, pieces: PieceSource, bases: Bases, observer: Observer
    ) -> None:
        self.id = descriptor.id
        """Resource id."""
        self.descriptor = descriptor
        """Replaced when the token is."""
        self.pieces = pieces
        """Announced bytes, and those of the running session that are not announced yet."""
        self.session: Session | None = None
        """The session that writes the resource in this process."""
        self.users = 0
        """How many hold this object; kept by the registry."""
        self._snapshot = snapshot
        self._bases = bases
        self._observer = observer
        self._status: tuple[Snapshot, tuple[str, ...], Status] | None = None
        self._waiters: dict[asyncio.Future[None], _Absorb] = {}
        self._due: deque[tuple[asyncio.Future[None], _Absorb]] = deque()
        self._deleted = False
        self._going_away = False

    @property
    def snapshot(self) -> Snapshot:
        """The newest announced state."""
        return self._snapshot

    def has_ended(self) -> bool:
        """Return whether the resource is in a terminal state at the moment of the call."""
        return self._snapshot.state.terminal

    @property
    def deleted(self) -> bool:
        """Whether the resource was deleted."""
        return self._deleted

    @property
    def watched(self) -> bool:
        """Whether somebody waits for the next change."""
        return bool(self._waiters or self._due)

    @property
    def hidden(self) -> bool:
        """Whether only the holder of the upload token may know of the resource."""
        return self.descriptor.visibility is Visibility.ATOMIC and self._snapshot.state is not ResourceState.COMPLETED

    def status(self) -> Status:
        """Return the current status; built once for all who ask."""
        known = self._status
        if known is None or known[0] is not self._snapshot or known[1] is not self._bases.urls:
            status = make_status(self.descriptor, self._snapshot, self._bases.urls)
            self._status = known = (self._snapshot, self._bases.urls, status)
        return known[2]

    def publish(self, snapshot: Snapshot) -> None:
        """Make a state the newest one, unless a newer one is known."""
        known = self._snapshot
        if snapshot.version < known.version or known.state.terminal:
            return
        self._snapshot = snapshot
        if snapshot.version > known.version:
            self._observer.published(self, known)
            self._wake_all()

    def mark_deleted(self) -> None:
        """Tell everyone that the resource is deleted: the session, and all who wait or will wait."""
        self._deleted = True
        if self.session is not None:
            self.session.end(Deleted(id=self.id))
        self._wake_all()

    def go_away(self) -> None:
        """Tell everyone who waits that the server shuts down."""
        self._going_away = True
        self._wake_all()

    def check(self) -> None:
        """Raise ``Deleted`` if the resource was deleted."""
        if self._deleted:
            raise Deleted(id=self.id)

    async def changed(self, version: int, absorb: _Absorb = None) -> Snapshot:
        """Wait for a version above ``version`` that ``absorb`` does not take, and return the newest state."""
        while True:
            self.check()
            if self._snapshot.version > version:
                return self._snapshot
            if self._going_away:
                raise GoingAway(retry_after=GOING_AWAY_RETRY)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = absorb
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)

    def _wake_all(self) -> None:
        if not self._waiters:
            return
        waiting = bool(self._due)
        self._due.extend(self._waiters.items())
        self._waiters.clear()
        if not waiting:
            self._wake_some()

    def _wake_some(self) -> None:
        due = self._due
        for _ in range(min(_WAKE_AT_ONCE, len(due))):
            waiter, absorb = due.popleft()
            if waiter.done():
                continue
            try:
                if absorb is not None and not (self._deleted or self._going_away) and absorb(self._snapshot):
                    self._waiters[waiter] = absorb
                    continue
            except Exception as error:  # noqa: BLE001  # it is that of the waiter, and nobody else's
                waiter.set_exception(error)
            else:
                waiter.set_result(None)
        if due:
            asyncio.get_running_loop().call_soon(self._wake_some)
