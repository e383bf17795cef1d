"""One queue and its consumers: work is claimed for who has credit for it, and nothing waits in the server.

One task claims for all consumers together, whenever one of them may be given more and there may be something to give.
It knows of work by hints, by what is due, and by a slow look now and then. What it claims is with a consumer from the
moment of the claim on, so that between claim and delivery nothing is in nobody's hands.

Where the queue does both at once, a claim counts on the answers that are being taken: see :class:`DispatchedSession`.

Another task finds out which consumers are stalled. That is a question to the database, so it is asked seldom, and not
at all while everyone has credit; a claim that could have been given more answers it, too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Sequence
from itertools import islice

from tailrace_common_api import (
    MAX_RECORD_SIZE,
    MEBIBYTE,
    RECORD_OVERHEAD,
    GoingAway,
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
from tailrace_impl_server._work_session import DispatchedSession
from tailrace_impl_server._work_settlements import Delivered, JoinedSettlements
from tailrace_server_api import Claim, Queue, WorkSession

logger = logging.getLogger(__name__)

_MOST_CLAIMED = 2048
"""Most records of one claim, so that no transaction of it is long."""
_MOST_CLAIMANTS = 256
"""Most consumers of one claim."""
_CLAIMED_BYTES = 32 * MEBIBYTE
"""Bytes that one claim asks for, unless that is less than the largest record for each of its consumers."""
_EVERYONE = sys.maxsize
_LARGEST = MAX_RECORD_SIZE + RECORD_OVERHEAD
"""What the largest record counts for in a credit, in bytes."""
_RETRY_FIRST, _RETRY_LAST = 0.1, 5.0
"""Shortest and longest time after which a database that failed is asked again, in seconds."""
_LOOK_INTERVAL = 0.05
"""Least time between two questions to the database that hand nothing out, in seconds."""
_LOOK_SHARE = 20
"""A question for stalled consumers waits for so many times the time that the last one took."""
_LOOK_PER_CONSUMER = 2e-5
"""Time that it waits for each consumer, who may have to be told, in seconds."""


class WorkDispatcher:
    """Hands out the work of one queue. Belongs to one event loop."""

    def __init__(self, name: str, queue: Queue, settings: ServerSettings) -> None:
        """Serve ``queue``, which is started before this object and closed behind it."""
        self.name = name
        self._queue = queue
        self._settings = settings
        self._settlements = JoinedSettlements(name, queue.queue)
        self._sessions: dict[str, DispatchedSession] = {}
        self._willing: dict[str, DispatchedSession] = {}
        """Consumers that can be given something; who was looked at last comes last."""
        self._woken = Signal()
        self._due = False
        """Whether there may be something to claim that has not been looked for."""
        self._look = Signal()
        self._look_due = False
        """Whether consumers may have become stalled."""
        self._drained = 0
        """How often a claim has shown that nothing is ready."""
        self._nothing_left = False
        """Whether the last claim has shown that, and there was no reason to think otherwise since."""
        self._any_stalled = False
        self._claiming: frozenset[str] = frozenset()
        """Consumers of the claim that runs."""
        self._claimed_all: asyncio.Future[None] | None = None
        """Done when that claim has ended."""
        self._leaving: set[asyncio.Future[None]] = set()
        """What consumers have left, and waits for a claim to end."""
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def start(self) -> None:
        """Begin; called once."""
        self._queue.queue.subscribe(self.wake)
        self._settlements.start()
        self._tasks = [
            asyncio.create_task(self._hand_out(), name=f"tailrace-work-{self.name}"),
            asyncio.create_task(self._watch_stalls(), name=f"tailrace-stalls-{self.name}"),
        ]

    def go_away(self) -> None:
        """Tell every consumer ``GoingAway``, and take no new one."""
        self._closed = True
        for session in self._sessions.values():
            session.notify()

    async def close(self) -> None:
        """Stop handing out, and take the answers that are there; idempotent."""
        self.go_away()
        await cancel_and_wait(*self._tasks)
        await asyncio.gather(*self._leaving)
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
        self._due = self._look_due = True
        self._nothing_left = False
        self._woken.notify()
        self._look.notify()

    def consider(self, session: DispatchedSession, *, changed: bool = True) -> None:
        """Look whether a consumer can be given something; ``changed``: more than before."""
        if session.claim(1, 1) is None:
            self._willing.pop(session.consumer, None)
        else:
            if not self._willing:
                # Time is of no matter while nobody can be given anything; from here on it is.
                self._woken.notify()
            self._willing.setdefault(session.consumer, session)
            if changed or not self._nothing_left:
                self.wake()
        if session.exhausted:
            self._look_due = True
            self._look.notify()

    def claims_for(self, consumer: str) -> bool:
        """Whether a claim for the consumer runs, which may bring records for the credit that it began with."""
        return consumer in self._claiming

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Take answers; those of all consumers go together."""
        counted = await self._settlements.settle(settlements)
        if any(settlement.verdict is Verdict.REQUEUE for settlement in settlements):
            # The time of the next look may be an earlier one.
            self.wake()
        return counted

    def give_back(self, records: Sequence[QueuedRecord]) -> None:
        """Give back what was claimed and finds no consumer; others can have it, and its attempt does not count."""
        self._settlements.give_back([(record.id, record.attempt) for record in records]).add_done_callback(
            lambda _: self.wake()
        )

    def remove(self, session: DispatchedSession, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        """Take a consumer out, and give back what it leaves."""
        self._sessions.pop(session.consumer, None)
        self._willing.pop(session.consumer, None)
        if deliveries and self._claimed_all is not None and self.claims_for(session.consumer):
            # Else the claim could bring it back to who has left it.
            given: asyncio.Future[None] = asyncio.ensure_future(self._give_back_behind(self._claimed_all, deliveries))
            self._leaving.add(given)
            given.add_done_callback(self._leaving.discard)
        else:
            given = self._settlements.give_back(deliveries)
        given.add_done_callback(lambda _: self.wake())
        return given

    async def _give_back_behind(self, claimed: asyncio.Future[None], deliveries: Sequence[Delivered]) -> None:
        await asyncio.wait((claimed,))
        await self._settlements.give_back(deliveries)

    # Handing out.

    async def _hand_out(self) -> None:
        pause = _RETRY_FIRST
        while True:
            try:
                self._due = False
                untried = len(self._willing)
                while untried > 0:
                    untried -= await self._claim()
                    # Others have their turn, and what they ask for goes into the next claim.
                    await asyncio.sleep(0)
                await self._wait_for_work()
                pause = _RETRY_FIRST
            except TailraceError as error:
                logger.warning("queue %s does not hand out work: %s", self.name, error)
            except Exception:
                logger.exception("queue %s does not hand out work", self.name)
            else:
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_LAST)

    async def _wait_for_work(self) -> None:
        """Wait until there may be something to claim, or it is time to look for it without a hint."""
        while not (self._due or self._willing):
            await self._woken.wait()
        await self._wait(_LOOK_INTERVAL)
        if self._due:
            return
        due = await self._queue.queue.next_due()
        # A moment later: what is due is then surely so for the database's clock, too.
        await self._wait(min(self._settings.poll_interval, float("inf") if due is None else due + 0.005))

    async def _wait(self, seconds: float) -> None:
        if not self._due:
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _claim(self) -> int:
        """Claim what there is for those who were looked at longest ago.

        Returns how many consumers have been looked at: as many as there can be when nothing is left.
        """
        willing = list(islice(self._willing.values(), _MOST_CLAIMANTS))
        share = max(_LARGEST, _CLAIMED_BYTES // max(1, len(willing)))
        claims: list[Claim] = []
        left, looked = _MOST_CLAIMED, 0
        for session in willing:
            del self._willing[session.consumer]
            looked += 1
            claim = session.begin_claim(left, share)
            if claim is not None:
                claims.append(claim)
                left -= claim.records
                if left < 1:
                    break
        if not claims:
            return looked or _EVERYONE
        drained = False
        for claim, records in zip(claims, await self._claimed(claims), strict=True):
            consumer = self._sessions.get(claim.consumer)
            if consumer is None:
                self.give_back(records)
                continue
            if records:
                consumer.hand(records)
            self._keep_willing(consumer)
            room = claim.bytes - sum(record.size for record in records)
            if len(records) < claim.records and (room >= _LARGEST or (claim.idle and not records)):
                # Whatever there was would have fitted.
                drained = True
        self._look_due = True
        self._look.notify()
        if not drained:
            return looked
        self._drained += 1
        self._nothing_left = not self._due
        if self._any_stalled:
            self._any_stalled = False
            for session in self._sessions.values():
                session.set_stalled(False)
        return _EVERYONE

    def _keep_willing(self, session: DispatchedSession) -> None:
        """Keep a consumer that can be given still more, behind all others, until there may be something for it."""
        if session.claim(1, 1) is not None:
            self._willing[session.consumer] = session

    async def _claimed(self, claims: Sequence[Claim]) -> Sequence[Sequence[QueuedRecord]]:
        self._claiming = frozenset(claim.consumer for claim in claims)
        ended = self._claimed_all = asyncio.get_running_loop().create_future()
        claiming = asyncio.ensure_future(self._queue.queue.claim(claims))
        try:
            # What is claimed has to find its consumer, or its way back.
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await asyncio.wait((claiming,))
            if claiming.exception() is None:
                self.give_back([record for records in claiming.result() for record in records])
            raise
        except BaseException:
            for claim in claims:
                if (session := self._sessions.get(claim.consumer)) is not None:
                    self._keep_willing(session)
            raise
        finally:
            self._claiming = frozenset()
            self._claimed_all = None
            ended.set_result(None)
            for claim in claims:
                if (session := self._sessions.get(claim.consumer)) is not None:
                    # Credit that was changed meanwhile is in force from here on.
                    session.notify()

    # Who is stalled.

    async def _watch_stalls(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._look_due:
                try:
                    async with asyncio.timeout(self._settings.poll_interval):
                        await self._look.wait()
                except TimeoutError:
                    pass
            self._look_due = False
            began = loop.time()
            try:
                await self._look_for_stalls()
            except TailraceError as error:
                logger.warning("queue %s does not say whether there is work: %s", self.name, error)
                await asyncio.sleep(_RETRY_LAST)
            except Exception:
                logger.exception("queue %s does not say whether there is work", self.name)
                await asyncio.sleep(_RETRY_LAST)
            took = loop.time() - began
            await asyncio.sleep(max(_LOOK_INTERVAL, _LOOK_SHARE * took, _LOOK_PER_CONSUMER * len(self._sessions)))

    async def _look_for_stalls(self) -> None:
        """Tell consumers that can be given nothing whether there is something that they do not get for it."""
        if not any(session.exhausted for session in self._sessions.values()):
            return
        drained = self._drained
        ready = (await self._queue.queue.depth()).ready > 0
        if drained != self._drained:
            # A claim has told meanwhile that nothing was left, and that may be newer.
            self._look_due = True
            return
        self._any_stalled = ready
        for session in self._sessions.values():
            session.set_stalled(ready and session.exhausted)
