"""One consumer of a queue, as its dispatcher knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tailrace_common_api import GoingAway, InvalidArgument, QueuedRecord, Settlement, Verdict
from tailrace_impl_common import Signal
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._work_settlements import Delivered
from tailrace_server_api import Claim, CreditState, Handed, Queue, WorkSession

_LARGEST_CREDIT_BYTES = 2**40


class Dispatching(Protocol):
    """What a session asks of its dispatcher."""

    @property
    def closed(self) -> bool:
        """Whether the server shuts down."""

    def claims_for(self, consumer: str) -> bool:
        """Whether a claim for the consumer runs, which may bring records for the credit that it began with."""

    def consider(self, session: DispatchedSession, *, changed: bool = True) -> None:
        """Look whether the consumer can be given something; ``changed``: more than before."""

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Take answers."""

    def remove(self, session: DispatchedSession, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        """Take the consumer out, and give back what it leaves."""


class DispatchedSession(WorkSession):
    """One consumer of a dispatcher.

    What was claimed for it is taken by :meth:`next` before anything more is claimed: of what waits for a consumer that
    does not read, the server holds one claim.
    """

    def __init__(self, consumer: str, dispatcher: Dispatching, queue: Queue, settings: ServerSettings) -> None:
        """Let ``consumer`` in, without any credit yet."""
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._queue = queue
        self._settings = settings
        self._records = 0
        self._bytes = 0
        self._sequence = -1
        self._told_sequence = -1
        self._outstanding: dict[Delivered, int] = {}
        """Size of each record that is with the consumer."""
        self._size = 0
        self._handed: list[QueuedRecord] = []
        """Of these, the ones that :meth:`next` has not returned."""
        self._stalled = False
        self._told_stalled = False
        self._changed = Signal()
        self._ended = False

    @property
    def consumer(self) -> str:
        return self._consumer

    @property
    def content_type(self) -> str:
        return self._queue.content_type

    @property
    def lease(self) -> float:
        return self._queue.queue.lease

    @property
    def stalled(self) -> bool:
        """Whether there is work that only its lack of credit keeps from it."""
        return self._stalled

    @property
    def exhausted(self) -> bool:
        """Whether it can be given nothing more, or no record of the largest size."""
        if self._ended or self._sequence < 0:
            return False
        if len(self._outstanding) >= self._records:
            return True
        return bool(self._outstanding) and self._size + self._settings.max_record_size > self._bytes

    def set_credit(self, sequence: int, *, records: int, bytes: int) -> None:
        if sequence <= self._sequence:
            raise InvalidArgument(field="sequence", problem=f"{sequence} does not rise above {self._sequence}")
        if not 0 <= records <= self._settings.max_credit:
            problem = f"{records} is not within 0 and {self._settings.max_credit} records"
            raise InvalidArgument(field="credit", problem=problem)
        if not 0 <= bytes <= _LARGEST_CREDIT_BYTES:
            raise InvalidArgument(field="credit_bytes", problem=f"{bytes} is not within 0 and {_LARGEST_CREDIT_BYTES}")
        if not sequence:
            # The one that the session begins with is nobody's question.
            self._told_sequence = 0
        self._sequence, self._records, self._bytes = sequence, records, bytes
        self._changed.notify()
        self._dispatcher.consider(self)

    async def next(self) -> Handed | CreditState:
        while True:
            if self._dispatcher.closed:
                raise GoingAway(retry_after=GOING_AWAY_RETRY)
            if self._handed:
                handed, self._handed = Handed(tuple(self._handed)), []
                self._dispatcher.consider(self, changed=False)
                return handed
            # A claim that began with an earlier credit may still bring records for it.
            in_force = not self._dispatcher.claims_for(self._consumer)
            if (in_force and self._told_sequence != self._sequence) or self._told_stalled != self._stalled:
                self._told_stalled = self._stalled
                if in_force:
                    self._told_sequence = self._sequence
                return CreditState(max(0, self._told_sequence), len(self._outstanding), self._stalled)
            await self._changed.wait()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        counted = await self._dispatcher.settle(settlements)
        for settlement in settlements:
            if settlement.verdict is not Verdict.EXTEND:
                self._size -= self._outstanding.pop((settlement.id, settlement.attempt), 0)
        self._dispatcher.consider(self)
        return counted

    async def leave(self) -> None:
        await asyncio.shield(self._end(list(self._outstanding)))

    async def release(self) -> None:
        # What was never handed over has no consumer that could answer it.
        await asyncio.shield(self._end([(record.id, record.attempt) for record in self._handed]))

    def _end(self, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        self._ended = True
        self._stalled = False
        self._handed = []
        self._outstanding.clear()
        return self._dispatcher.remove(self, deliveries)

    # For the dispatcher.

    def claim(self, records: int, bytes: int) -> Claim | None:
        """Return what it may be given, of so many records and bytes; ``None`` for nothing."""
        free = self._records - len(self._outstanding)
        if self._ended or self._handed or free < 1:
            return None
        size = self._bytes - self._size
        idle = not self._outstanding
        if size <= 0 and not idle:
            return None
        return Claim(self._consumer, min(free, records), min(size, bytes), idle)

    def hand(self, records: Sequence[QueuedRecord]) -> None:
        """Give it records."""
        for record in records:
            size = record.size
            self._outstanding[record.id, record.attempt] = size
            self._size += size
        self._handed.extend(records)
        self._changed.notify()

    def set_stalled(self, stalled: bool) -> None:
        """Take note whether it lacks credit for what there is."""
        if stalled != self._stalled:
            self._stalled = stalled
            self._changed.notify()

    def notify(self) -> None:
        """Let it look again."""
        self._changed.notify()
