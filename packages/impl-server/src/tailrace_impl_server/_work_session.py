"""One consumer of a queue, as its dispatcher knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tailrace_common_api import GoingAway, InvalidArgument, QueuedRecord, Settlement, Verdict
from tailrace_impl_common import Signal
from tailrace_impl_server._concurrent_queue import ConcurrentQueue
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

    def give_back(self, records: Sequence[QueuedRecord]) -> None:
        """Give back what was claimed and is not handed over."""

    def remove(self, session: DispatchedSession, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        """Take the consumer out, and give back what it leaves."""


class DispatchedSession(WorkSession):
    """One consumer of a dispatcher.

    What was claimed for it is taken by :meth:`next` before anything more is claimed: of what waits for a consumer that
    does not read, the server holds one claim.

    Where the queue takes answers and claims at once, a claim counts on acknowledgements that are being taken. What it
    brings is handed over when these have been taken, so that credit is kept; if one is not, all of it is given back.
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
        self._ahead: list[QueuedRecord] = []
        """Claimed for credit that answers are to give back; outstanding, too, but not with the consumer."""
        self._ahead_since = 0.0
        self._claimed_for: tuple[int, int] | None = None
        """Records and bytes of the credit that the last claim was for; ``None`` if it has counted on no answers."""
        self._answering: dict[Delivered, int] = {}
        """Size of each delivery whose acknowledgement is being taken, and may be counted on."""
        self._answering_size = 0
        self._unclaimed = False
        """Whether there are some that no claim has counted on."""
        self._counts_on_answers = isinstance(queue.queue, ConcurrentQueue)
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
            in_force = not (self._ahead or self._dispatcher.claims_for(self._consumer))
            if (in_force and self._told_sequence != self._sequence) or self._told_stalled != self._stalled:
                self._told_stalled = self._stalled
                if in_force:
                    self._told_sequence = self._sequence
                outstanding = max(0, len(self._outstanding) - len(self._ahead))
                return CreditState(max(0, self._told_sequence), outstanding, self._stalled)
            await self._changed.wait()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        answering = self._count_on(settlements)
        try:
            counted = await self._dispatcher.settle(settlements)
        except BaseException:
            if answering:
                self._stop_counting_on(answering)
                self._dispatcher.consider(self, changed=False)
            raise
        for settlement in settlements:
            if settlement.verdict is not Verdict.EXTEND:
                self._size -= self._outstanding.pop((settlement.id, settlement.attempt), 0)
        self._stop_counting_on(answering)
        if self._unclaimed or not answering:
            self._dispatcher.consider(self)
        elif not self._dispatcher.claims_for(self._consumer):
            # All that these answers give back has been asked for.
            self._dispatcher.consider(self, changed=False)
        return counted

    def _count_on(self, settlements: Sequence[Settlement]) -> Sequence[Delivered]:
        """Have claims count on answers that are about to be taken, as far as that may be; return the deliveries.

        What is requeued may be next again: nothing is claimed before that is known.
        """
        if not self._counts_on_answers or any(item.verdict is not Verdict.ACKNOWLEDGE for item in settlements):
            return ()
        answering: list[Delivered] = []
        for settlement in settlements:
            delivery = settlement.id, settlement.attempt
            size = self._outstanding.get(delivery)
            if size is not None and delivery not in self._answering:
                self._answering[delivery] = size
                self._answering_size += size
                answering.append(delivery)
        if answering:
            self._unclaimed = True
            self._dispatcher.consider(self)
        return answering

    def _stop_counting_on(self, answering: Sequence[Delivered]) -> None:
        for delivery in answering:
            self._answering_size -= self._answering.pop(delivery)
        if self._ahead and self._claimed_for is not None:
            self._hand_over(*self._claimed_for)

    async def leave(self) -> None:
        await asyncio.shield(self._end(list(self._outstanding)))

    async def release(self) -> None:
        # What was never handed over has no consumer that could answer it.
        never = [(record.id, record.attempt) for record in (*self._handed, *self._ahead)]
        await asyncio.shield(self._end(never))

    def _end(self, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        self._ended = True
        self._stalled = False
        self._handed = []
        self._ahead = []
        self._outstanding.clear()
        return self._dispatcher.remove(self, deliveries)

    # For the dispatcher.

    def claim(self, records: int, bytes: int) -> Claim | None:
        """Return what it may be given, of so many records and bytes; ``None`` for nothing."""
        kept = len(self._outstanding) - len(self._answering)
        free = self._records - kept
        if self._ended or self._handed or self._ahead or free < 1:
            return None
        size = self._bytes - self._size + self._answering_size
        idle = not kept
        if size <= 0 and not idle:
            return None
        return Claim(self._consumer, min(free, records), min(size, bytes), idle)

    def begin_claim(self, records: int, bytes: int) -> Claim | None:
        """Return the same for a claim that is made."""
        claim = self.claim(records, bytes)
        if claim is not None:
            self._claimed_for = (self._records, self._bytes) if self._answering else None
            self._unclaimed = False
        return claim

    def hand(self, records: Sequence[QueuedRecord]) -> None:
        """Give it the records of a claim: at once, or when the answers that it counted on have been taken."""
        for record in records:
            size = record.size
            self._outstanding[record.id, record.attempt] = size
            self._size += size
        if self._claimed_for is None:
            self._handed += records
            self._changed.notify()
        else:
            self._ahead += records
            self._ahead_since = asyncio.get_running_loop().time()
            self._hand_over(*self._claimed_for)

    def _hand_over(self, most: int, most_bytes: int) -> None:
        """Hand over what was claimed ahead if there is credit for it; give it back if no answer is left to give any."""
        alone = len(self._outstanding) == len(self._ahead)
        covered = len(self._outstanding) <= most and (self._size <= most_bytes or alone)
        if not covered and self._answering:
            return
        ahead, self._ahead = self._ahead, []
        # Much of a lease must not be over when the consumer is given the record.
        if covered and asyncio.get_running_loop().time() - self._ahead_since <= self.lease / 2:
            self._handed += ahead
        else:
            for record in ahead:
                self._size -= self._outstanding.pop((record.id, record.attempt), 0)
            self._dispatcher.give_back(ahead)
        self._changed.notify()

    def set_stalled(self, stalled: bool) -> None:
        """Take note whether it lacks credit for what there is."""
        if stalled != self._stalled:
            self._stalled = stalled
            self._changed.notify()

    def notify(self) -> None:
        """Let it look again."""
        self._changed.notify()
