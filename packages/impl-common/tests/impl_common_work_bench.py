"""A queue in memory behind the in-process transport, by the rules of its interface; whoever breaks them fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from impl_common_record_bench import FakeManager, FakeRecords, Gate, RecordBench

from tailrace_common_api import (
    JSON,
    ClientSettings,
    InvalidArgument,
    QueuedRecord,
    QueueFigures,
    RecordEndNotFound,
    Settlement,
    TailraceError,
    Verdict,
)
from tailrace_impl_common import Signal
from tailrace_server_api import CreditState, Handed, WorkSession

MOST_CREDIT = 1000


@dataclass(slots=True)
class Entry:
    """One record that is not done."""

    record: QueuedRecord
    leased: bool = False
    delayed: bool = False


class FakeSession(WorkSession):
    """One consumer."""

    def __init__(self, queue: FakeQueue) -> None:
        self._queue = queue
        self._sequence = self._told_sequence = -1
        self.records = 0
        self.bytes = 0
        self.with_consumer: dict[tuple[int, int], int] = {}
        self._handed: list[QueuedRecord] = []
        self._told_stalled = False
        self.ended = ""
        """How it was ended."""

    @property
    def consumer(self) -> str:
        return f"consumer-{self._queue.sessions.index(self)}"

    @property
    def content_type(self) -> str:
        return JSON

    @property
    def lease(self) -> float:
        return self._queue.lease

    @property
    def free(self) -> bool:
        """Whether it may be given anything."""
        if self.ended or self.records <= len(self.with_consumer):
            return False
        return not self.with_consumer or sum(self.with_consumer.values()) < self.bytes

    @property
    def stalled(self) -> bool:
        return not self.ended and not self.free and self._queue.ready > 0

    def set_credit(self, sequence: int, *, records: int, bytes: int) -> None:
        assert not self.ended
        if sequence <= self._sequence:
            raise InvalidArgument(field="sequence", problem="does not rise")
        if not 0 <= records <= MOST_CREDIT:
            raise InvalidArgument(field="credit", problem=f"{records} is too many")
        if not sequence:
            self._told_sequence = 0
        self._sequence, self.records, self.bytes = sequence, records, bytes
        self._queue.hand_out()

    def hand(self, record: QueuedRecord) -> None:
        self.with_consumer[record.id, record.attempt] = record.size
        self._handed.append(record)

    async def next(self) -> Handed | CreditState:
        assert not self.ended
        while True:
            if self._queue.failure is not None:
                raise self._queue.failure
            if self._handed:
                handed, self._handed = Handed(tuple(self._handed)), []
                return handed
            if (self._told_sequence, self._told_stalled) != (self._sequence, self.stalled):
                self._told_sequence, self._told_stalled = self._sequence, self.stalled
                return CreditState(self._sequence, len(self.with_consumer), self.stalled)
            await self._queue.changed.wait()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        assert not self.ended
        await self._queue.settle_gate.pass_through()
        if self._queue.settle_errors:
            raise self._queue.settle_errors.pop(0)
        counted = [self._queue.settle(settlement) for settlement in settlements]
        for settlement in settlements:
            if settlement.verdict is not Verdict.EXTEND:
                self.with_consumer.pop((settlement.id, settlement.attempt), None)
        self._queue.hand_out()
        return counted

    async def leave(self) -> None:
        self._end("left", list(self.with_consumer))
        await self._queue.leave_gate.pass_through()

    async def release(self) -> None:
        self._end("lost", [(record.id, record.attempt) for record in self._handed])

    def _end(self, how: str, given_back: list[tuple[int, int]]) -> None:
        assert not self.ended
        self.ended = how
        for place in given_back:
            self._queue.expire(*place)
        self._queue.hand_out()


class FakeQueue:
    """The queue: its records, and who consumes it."""

    def __init__(self, dead: FakeQueue | None = None) -> None:
        self.dead = dead
        self.lease = 30.0
        self.entries: dict[int, Entry] = {}
        self.sessions: list[FakeSession] = []
        self.settled: list[Settlement] = []
        """All answers that were taken."""
        self.acknowledged: list[int] = []
        self.changed = Signal()
        self.failure: TailraceError | None = None
        """What consumers are told instead of work."""
        self.settle_errors: list[TailraceError] = []
        self.settle_gate, self.leave_gate = Gate(), Gate()
        self._answered: dict[tuple[int, int], Verdict] = {}
        self._next_id = 1

    @property
    def ready(self) -> int:
        return sum(not (entry.leased or entry.delayed) for entry in self.entries.values())

    @property
    def consumers(self) -> list[FakeSession]:
        """Consumers that are there."""
        return [session for session in self.sessions if not session.ended]

    def put(self, data: Sequence[bytes], *, priority: int = 0) -> None:
        for content in data:
            self.entries[self._next_id] = Entry(QueuedRecord(self._next_id, 0, priority, content))
            self._next_id += 1
        self.hand_out()

    def expire(self, id: int, attempt: int) -> None:
        """End a lease."""
        entry = self.entries.get(id)
        if entry is not None and entry.record.attempt == attempt:
            entry.leased = False

    def fail(self, error: TailraceError | None) -> None:
        """Tell all consumers ``error``; ``None``: work again."""
        self.failure = error
        self.changed.notify()

    def hand_out(self) -> None:
        for session in self.sessions:
            while session.free:
                ready = [entry for entry in self.entries.values() if not (entry.leased or entry.delayed)]
                if not ready:
                    break
                entry = min(ready, key=lambda entry: (-entry.record.priority, entry.record.id))
                if session.with_consumer and entry.record.size > session.bytes - sum(session.with_consumer.values()):
                    break
                entry.record = entry.record._replace(attempt=entry.record.attempt + 1)
                entry.leased = True
                session.hand(entry.record)
        self.changed.notify()

    def settle(self, settlement: Settlement) -> bool:
        self.settled.append(settlement)
        place = settlement.id, settlement.attempt
        if place in self._answered:
            return self._answered[place] is settlement.verdict
        entry = self.entries.get(settlement.id)
        if entry is None or entry.record.attempt != settlement.attempt:
            return False
        if settlement.verdict is Verdict.EXTEND:
            return True
        self._answered[place] = settlement.verdict
        entry.leased, entry.delayed = False, settlement.seconds > 0
        if settlement.verdict is not Verdict.REQUEUE:
            del self.entries[settlement.id]
        if settlement.verdict is Verdict.ACKNOWLEDGE:
            self.acknowledged.append(settlement.id)
        if settlement.verdict is Verdict.DEAD_LETTER:
            assert self.dead is not None
            self.dead.put([entry.record.data])
        return True

    async def wait_for_consumers(self, count: int) -> None:
        """Wait until so many consumers are there."""
        while len(self.consumers) != count:
            await self.changed.wait()

    async def wait_for_answers(self, count: int) -> None:
        """Wait until so many answers were taken."""
        while len(self.settled) < count:
            await self.changed.wait()


class QueueRecords(FakeRecords):
    """Has the queue ``tasks``, too."""

    def __init__(self) -> None:
        super().__init__()
        dead = FakeQueue()
        self.queues = {"tasks": FakeQueue(dead), "tasks.dead": dead}

    async def work(self, queue: str) -> WorkSession:
        await self.begin_gate.pass_through()
        if self.begin_errors:
            raise self.begin_errors.pop(0)
        if queue not in self.queues:
            raise RecordEndNotFound(kind="queue", id=queue)
        found = self.queues[queue]
        session = FakeSession(found)
        found.sessions.append(session)
        return session

    async def queue_figures(self, queue: str) -> QueueFigures:
        if queue not in self.queues:
            return await super().queue_figures(queue)
        found = self.queues[queue]
        entries = found.entries.values()
        return QueueFigures(
            queue=queue,
            ready=found.ready,
            delayed=sum(entry.delayed for entry in entries),
            in_flight=sum(entry.leased for entry in entries),
            dead=len(found.dead.entries) if found.dead else 0,
            consumers=len(found.consumers),
            stalled=sum(session.stalled for session in found.consumers),
        )


class WorkBench(RecordBench):
    """A client of a queue in memory."""

    def __init__(self, settings: ClientSettings | None = None) -> None:
        super().__init__(settings)
        records = QueueRecords()
        self.records = records
        cast(FakeManager, self.connection.manager).records = records
        self.queue = records.queues["tasks"]

    async def lose_connection(self) -> None:
        """Cut every conversation, and wait until the server knows."""
        self.connection.cut()
        await self.queue.wait_for_consumers(0)


def parcels(count: int, first: int = 0) -> list[bytes]:
    """Return records that can be told apart."""
    return [b'{"n":%d}' % number for number in range(first, first + count)]


async def settle_down() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)
