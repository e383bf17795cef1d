"""A queue of records in memory, on a clock that a test sets; it pauses and fails where a test wants it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tailrace_common_api import QueuedRecord, Settlement, StorageFailure, Verdict
from tailrace_impl_server._concurrent_queue import ConcurrentQueue
from tailrace_server_api import Claim, Depth, RecordQueue, RecordSink


@dataclass(slots=True)
class Entry:
    """One record that is not done."""

    id: int
    data: bytes
    priority: int
    attempt: int = 0
    leased_until: float | None = None
    """``None``: nobody has it."""
    ready_at: float = -math.inf


class Gate:
    """A place at which calls wait while it is shut."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._open.wait()


class MemoryQueue(RecordQueue):
    """Keeps to what the interface says, and remembers what was asked of it."""

    def __init__(self, lease: float = 30.0) -> None:
        self.now = 0.0
        self.entries: dict[int, Entry] = {}
        self.acknowledged: list[int] = []
        self.dead: list[int] = []
        self.claims: list[Sequence[Claim]] = []
        self.settled: list[Sequence[Settlement]] = []
        self.released: list[tuple[int, int]] = []
        self.depths = 0
        self.failures: list[Exception] = []
        """Raised by the next claims, one each."""
        self.settle_failures: list[Exception] = []
        self.steps = 0, 0
        """How often other tasks have their turn before a claim, and before answers."""
        self.poison: int | None = None
        """Answers to this record break every call that has one."""
        self.before_claim, self.after_claim, self.before_settle, self.before_release = Gate(), Gate(), Gate(), Gate()
        self._lease = lease
        self._answers: dict[tuple[int, int], Verdict] = {}
        self._wakes: list[Callable[[], None]] = []
        self._next = 1

    def put(self, count: int = 1, *, priority: int = 0, size: int = 10, silent: bool = False) -> list[int]:
        """Put records into the queue and return their numbers; ``silent``: the hint is lost."""
        ids = []
        for _ in range(count):
            self.entries[self._next] = Entry(self._next, b"x" * size, priority)
            ids.append(self._next)
            self._next += 1
        if not silent:
            self.wake()
        return ids

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wake()

    def wake(self) -> None:
        for wake in self._wakes:
            wake()

    @property
    def sink(self) -> RecordSink:
        raise AssertionError("nobody feeds this queue by bulks")

    @property
    def lease(self) -> float:
        return self._lease

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def _ready(self) -> list[Entry]:
        for entry in self.entries.values():
            if entry.leased_until is not None and entry.leased_until <= self.now:
                entry.leased_until = None
        ready = [e for e in self.entries.values() if e.leased_until is None and e.ready_at <= self.now]
        return sorted(ready, key=lambda entry: (-entry.priority, entry.id))

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Sequence[QueuedRecord]]:
        self.claims.append(tuple(claims))
        await self.before_claim.pass_through()
        for _ in range(self.steps[0]):
            await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        given: list[list[QueuedRecord]] = [[] for _ in claims]
        left = [claim.bytes for claim in claims]
        blocked = [False] * len(claims)
        turn = 0
        for entry in self._ready():
            for step in range(len(claims)):
                index = (turn + step) % len(claims)
                claim, found = claims[index], given[index]
                record = QueuedRecord(entry.id, entry.attempt + 1, entry.priority, entry.data)
                if blocked[index] or len(found) >= claim.records:
                    continue
                if record.size > left[index] and not (claim.idle and not found):
                    blocked[index] = True
                    continue
                found.append(record)
                left[index] -= record.size
                entry.attempt += 1
                entry.leased_until = self.now + self._lease
                turn = index + 1
                break
            else:
                break
        await self.after_claim.pass_through()
        return given

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        self.settled.append(tuple(settlements))
        await self.before_settle.pass_through()
        for _ in range(self.steps[1]):
            await asyncio.sleep(0)
        if self.settle_failures:
            raise self.settle_failures.pop(0)
        if any(settlement.id == self.poison for settlement in settlements):
            raise ValueError("poison")
        return [self._settle(settlement) for settlement in settlements]

    def _settle(self, settlement: Settlement) -> bool:
        place = settlement.id, settlement.attempt
        if place in self._answers:
            return self._answers[place] is settlement.verdict
        entry = self.entries.get(settlement.id)
        if entry is None or entry.attempt != settlement.attempt:
            return False
        if settlement.verdict is Verdict.EXTEND:
            entry.leased_until = self.now + (settlement.seconds or self._lease)
            return True
        self._answers[place] = settlement.verdict
        if settlement.verdict is Verdict.REQUEUE:
            entry.leased_until = None
            entry.ready_at = self.now + settlement.seconds
            self.wake()
        else:
            del self.entries[settlement.id]
            (self.acknowledged if settlement.verdict is Verdict.ACKNOWLEDGE else self.dead).append(settlement.id)
        return True

    async def release(self, deliveries: Sequence[tuple[int, int]]) -> None:
        await self.before_release.pass_through()
        self.released.extend(deliveries)
        for number, attempt in deliveries:
            entry = self.entries.get(number)
            if entry is not None and entry.attempt == attempt and (number, attempt) not in self._answers:
                entry.leased_until = None
        self.wake()

    async def next_due(self) -> float | None:
        times = [e.leased_until for e in self.entries.values() if e.leased_until is not None]
        times += [e.ready_at for e in self.entries.values() if e.leased_until is None and e.ready_at > self.now]
        return max(0.0, min(times) - self.now) if times else None

    async def depth(self) -> Depth:
        self.depths += 1
        ready = len(self._ready())
        leased = sum(entry.leased_until is not None for entry in self.entries.values())
        return Depth(ready, len(self.entries) - ready - leased, leased, len(self.dead))


class ConcurrentMemoryQueue(MemoryQueue, ConcurrentQueue):
    """Claims while it takes answers."""


def storage_failure() -> StorageFailure:
    """Return what a database that does not work says."""
    return StorageFailure("the database is away")
