"""One queue and its consumers: work is claimed for who has credit for it, and nothing waits in the server.

One task claims for all consumers together, whenever one of them may be given more and there may be something to give.
It knows of work by hints, by what is due, and by a slow look now and then. What it claims is with a consumer from the
moment of the claim on, so that between claim and delivery nothing is in nobody's hands.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Sequence

from tailrace_common_api import (
    GoingAway,
    InvalidArgument,
    Overloaded,
    QueuedRecord,
    QueueFigures,
    Settlement,
    TailraceError,
    Verdict,
)
from tailrace_impl_common import Signal, cancel_and_wait
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._work_settlements import Delivered, JoinedSettlements
from tailrace_server_api import Claim, CreditState, Handed, Queue, WorkSession

logger = logging.getLogger(__name__)

_MOST_CLAIMED = 2048
"""Most records of one claim, so that no transaction of it is long."""
_RETRY_FIRST, _RETRY_LAST = 0.1, 5.0
"""Shortest and longest time after which a database that failed is asked again, in seconds."""
_LARGEST_CREDIT_BYTES = 2**40
_LOOK_INTERVAL = 0.05
"""Least time between two questions to the database that only serve to find out when to look again, in seconds."""


class WorkDispatcher:
    """Hands out the work of one queue. Belongs to one event loop."""

    def __init__(self, name: str, queue: Queue, settings: ServerSettings) -> None:
        """Serve ``queue``, which is started before this object and closed behind it."""
        self.name = name
        self._queue = queue
        self._settings = settings
        self._settlements = JoinedSettlements(name, queue.queue)
        self._sessions: dict[str, DispatchedSession] = {}
        self._woken = Signal()
        self._due = False
        """Whether there may be something to claim that has not been looked for."""
        self._claiming: frozenset[str] = frozenset()
        """Consumers of the claim that runs."""
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Begin; called once."""
        self._queue.queue.subscribe(self.wake)
        self._settlements.start()
        self._task = asyncio.create_task(self._run(), name=f"tailrace-work-{self.name}")

    def go_away(self) -> None:
        """Tell every consumer ``GoingAway``, and take no new one."""
        self._closed = True
        for session in self._sessions.values():
            session.notify()

    async def close(self) -> None:
        """Stop handing out, and take the answers that are there; idempotent."""
        self.go_away()
        if self._task is not None:
            await cancel_and_wait(self._task)
        await self._settlements.close()

    @property
    def closed(self) -> bool:
        """Whether the server shuts down."""
        return self._closed

    @property
    def consumers(self) -> int:
        """Consumers that are there."""
        return len(self._sessions)

    @property
    def stalled(self) -> int:
        """Consumers that have no credit left while there is work."""
        return sum(session.stalled for session in self._sessions.values())

    def open(self) -> WorkSession:
        """Let a consumer in, without any credit yet.

        Raises:
            Overloaded: There are too many.
            GoingAway: The server shuts down.
        """
        if self._closed:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
        if len(self._sessions) >= self._settings.max_consumers:
            raise Overloaded(what="consumers", retry_after=1.0)
        consumer = secrets.token_hex(8)
        session = DispatchedSession(consumer, self, self._queue, self._settings)
        self._sessions[consumer] = session
        return session

    async def figures(self) -> QueueFigures:
        """Return how much work there is.

        Raises:
            StorageFailure: The database does not say.
        """
        depth = await self._queue.queue.depth()
        return QueueFigures(
            queue=self.name,
            ready=depth.ready,
            delayed=depth.delayed,
            in_flight=depth.in_flight,
            dead=depth.dead,
            consumers=self.consumers,
            stalled=self.stalled,
        )

    # For the sessions.

    def wake(self) -> None:
        """Look for work as soon as may be: there is some, or somebody may be given more."""
        self._due = True
        self._woken.notify()

    def claims_for(self, consumer: str) -> bool:
        """Whether a claim for the consumer runs, which may bring records for the credit that it began with."""
        return consumer in self._claiming

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Take answers; those of all consumers go together."""
        counted = await self._settlements.settle(settlements)
        if any(settlement.verdict is Verdict.REQUEUE for settlement in settlements):
            self.wake()
        return counted

    def remove(self, session: DispatchedSession, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        """Take a consumer out, and give back what it leaves."""
        self._sessions.pop(session.consumer, None)
        given = self._settlements.give_back(deliveries)
        given.add_done_callback(lambda _: self.wake())
        return given

    # The task.

    async def _run(self) -> None:
        pause = _RETRY_FIRST
        while True:
            self._due = False
            try:
                more = await self._claim()
                wait = 0.0 if more else await self._next_look()
                pause = _RETRY_FIRST
            except TailraceError as error:
                logger.warning("queue %s does not hand out work: %s", self.name, error)
                wait, pause = pause, min(2 * pause, _RETRY_LAST)
                await asyncio.sleep(wait)
                continue
            except Exception:
                logger.exception("queue %s does not hand out work", self.name)
                wait, pause = pause, min(2 * pause, _RETRY_LAST)
                await asyncio.sleep(wait)
                continue
            # Others have their turn, and what they ask for goes into the same claim.
            await asyncio.sleep(0)
            if not more:
                await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        if not self._due:
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _next_look(self) -> float:
        """Return after how long to look for work without a hint, in seconds, once nobody has hinted for a moment."""
        interval = self._settings.poll_interval
        if not self._sessions:
            return interval
        await self._wait(_LOOK_INTERVAL)
        if self._due:
            return 0.0
        await self._look_for_stalls()
        due = await self._queue.queue.next_due()
        # A moment later: what is due is then surely so for the database's clock, too.
        return interval if due is None else min(interval, due + 0.005)

    async def _claim(self) -> bool:
        """Claim what there is for who may be given it; return whether there may be more to give at once."""
        claims: list[Claim] = []
        total = 0
        for session in list(self._sessions.values()):
            claim = session.claim(_MOST_CLAIMED - total)
            if claim is not None:
                claims.append(claim)
                total += claim.records
            if total >= _MOST_CLAIMED:
                break
        if not claims:
            return False
        self._claiming = frozenset(claim.consumer for claim in claims)
        claiming = asyncio.ensure_future(self._queue.queue.claim(claims))
        try:
            # What is claimed has to find its consumer, or its way back.
            found = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await asyncio.wait((claiming,))
            if claiming.exception() is None:
                self._give([records for part in claiming.result() for records in part])
            raise
        finally:
            self._claiming = frozenset()
        filled = False
        for claim, records in zip(claims, found, strict=True):
            consumer = self._sessions.pop(claim.consumer, None)
            if consumer is None:
                self._give(records)
                continue
            # Who was served stands behind the others the next time.
            self._sessions[claim.consumer] = consumer
            consumer.hand(records)
            filled = filled or len(records) == claim.records
        return filled and total >= _MOST_CLAIMED

    def _give(self, records: Sequence[QueuedRecord]) -> None:
        self._settlements.give_back([(record.id, record.attempt) for record in records])

    async def _look_for_stalls(self) -> None:
        """Tell consumers that can be given nothing whether there is something that they do not get for it."""
        if any(session.exhausted for session in self._sessions.values()):
            ready = (await self._queue.queue.depth()).ready > 0
            for session in self._sessions.values():
                session.set_stalled(ready and session.exhausted)


class DispatchedSession(WorkSession):
    """One consumer of a dispatcher."""

    def __init__(self, consumer: str, dispatcher: WorkDispatcher, queue: Queue, settings: ServerSettings) -> None:
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
        self._handed: deque[QueuedRecord] = deque()
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
        if self._ended or not self._outstanding:
            return False
        return len(self._outstanding) >= self._records or self._size + self._settings.max_record_size > self._bytes

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
        self._dispatcher.wake()

    async def next(self) -> Handed | CreditState:
        while True:
            if self._handed:
                records = tuple(self._handed)
                self._handed.clear()
                return Handed(records)
            if self._dispatcher.closed:
                raise GoingAway(retry_after=GOING_AWAY_RETRY)
            settled = not self._dispatcher.claims_for(self._consumer)
            if (self._told_sequence != self._sequence and settled) or self._told_stalled != self._stalled:
                self._told_stalled = self._stalled
                if settled:
                    self._told_sequence = self._sequence
                return CreditState(max(0, self._told_sequence), len(self._outstanding), self._stalled)
            await self._changed.wait()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        counted = await self._dispatcher.settle(settlements)
        freed = False
        for settlement in settlements:
            if settlement.verdict is not Verdict.EXTEND:
                size = self._outstanding.pop((settlement.id, settlement.attempt), None)
                if size is not None:
                    self._size -= size
                    freed = True
        if freed:
            if not self.exhausted:
                self.set_stalled(False)
            self._dispatcher.wake()
        return counted

    async def leave(self) -> None:
        await asyncio.shield(self._end(list(self._outstanding)))

    async def release(self) -> None:
        # What was never handed over has no consumer that could answer it.
        await asyncio.shield(self._end([(record.id, record.attempt) for record in self._handed]))

    def _end(self, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        self._ended = True
        self._stalled = False
        self._handed.clear()
        self._outstanding.clear()
        return self._dispatcher.remove(self, deliveries)

    # For the dispatcher.

    def claim(self, most: int) -> Claim | None:
        """Return what it may be given, of ``most`` records; ``None`` for nothing."""
        records = min(self._records - len(self._outstanding), most)
        if self._ended or records < 1:
            return None
        size = self._bytes - self._size
        idle = not self._outstanding
        if size <= 0 and not idle:
            return None
        return Claim(self._consumer, records, size, idle)

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
