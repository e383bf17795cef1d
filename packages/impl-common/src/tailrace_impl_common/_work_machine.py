"""What a consumer of a queue holds, owes and may get, as plain bookkeeping: no clock, no task, no connection.

The credit that the user grants is spread over sessions. A session is one conversation with a server; when its
connection is lost, what was delivered in it stays with the consumer, and the server of the next one does not count it::

    credit said to the server = credit of the user - what is held from earlier sessions

which rises as these are answered. What is delivered within the session is counted by the server itself. It does not
see what is held besides, and gives a consumer that it takes for idle one record of any size; so while something is held
from earlier sessions, nothing is asked for unless any record fits.

An answer goes through three places: *waiting*, *sent* (in one ``Settle`` with others; ``Settled`` comes in the same
order), and gone. When a session is lost, what was sent waits again: to answer twice is harmless.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from tailrace_common_api import (
    MAX_RECORD_SIZE,
    RECORD_OVERHEAD,
    LeaseLost,
    ProtocolError,
    QueuedRecord,
    Settlement,
    StorageFailure,
    TailraceError,
    Verdict,
)
from tailrace_impl_common.messages import ClientMessage, ServerMessage
from tailrace_impl_common.record_messages import (
    Credit,
    CreditSet,
    Deliveries,
    Leave,
    Left,
    Settle,
    Settled,
    Work,
    WorkOpened,
)

SETTLE_RECORDS = 1024
"""Most answers in one message."""
SETTLE_REASONS = 100_000
"""Most characters of their reasons, each of which may take six bytes on the wire; one answer always goes."""
SETTLES_UNANSWERED = 2
"""Most messages with answers that are on their way: the next one gathers while the previous is being taken."""

_LARGEST = MAX_RECORD_SIZE + RECORD_OVERHEAD
"""What the largest record counts for in a credit, in bytes."""

Place = tuple[int, int]
"""A delivery: the number of the record in its queue, and the attempt."""


@dataclass(slots=True, eq=False)
class Answer:
    """An answer to a delivery, and who wants to know what became of it."""

    settlement: Settlement
    done: Callable[[TailraceError | None], None]
    """Called once: with ``None`` when the answer counts, else with what is to be raised."""
    awaited: Callable[[], bool] = lambda: True
    """Whether somebody waits for that."""

    @property
    def place(self) -> Place:
        """Which delivery it answers."""
        return self.settlement.id, self.settlement.attempt

    @property
    def final(self) -> bool:
        """Whether the delivery is off the consumer's hands with it."""
        return self.settlement.verdict is not Verdict.EXTEND


class WorkerMachine:
    """The bookkeeping of one consumer over all of its sessions."""

    def __init__(self, queue: str, records: int, size: int) -> None:
        """Grant ``records`` records of ``size`` bytes in all, from ``queue``."""
        self._queue = queue
        self._records = records
        self._size = size
        self.version = 0
        """Number of the last credit that the user granted."""
        self.version_in_force = -1
        """Number of the last one that the server keeps to."""
        self._kept = (records, size)
        """That one."""
        self._granted = {0: (records, size)}
        """Each of the credits that are not in force, by number."""
        self.opened: WorkOpened | None = None
        """How the last session was opened; ``None`` before the first."""
        self.stalled = False
        """Whether there is work that only the lack of credit keeps away."""
        self.left = False
        """Whether the server has taken everything back."""
        self.held: dict[Place, int] = {}
        """Size of each delivery that is not answered."""
        self._earlier: dict[Place, int] = {}
        """Of these, the ones of earlier sessions."""
        self._earlier_size = 0
        self._with_us = 0
        """Deliveries of this session that the server must still count, and below their size."""
        self._with_us_size = 0
        self._answered: dict[Place, int] = {}
        """How many final answers to each delivery are on their way: the server may have taken them already."""
        self._waiting: deque[Answer] = deque()
        self._sent: deque[list[Answer]] = deque()
        self._open = False
        self._leaving = False
        self._leave_sent = False
        self._sequence = 0
        self._said = (0, 0)
        self._versions: dict[int, int] = {}
        """Number of the user's credit by that of the change that says it, as far as it is not in force."""
        self._allowed: dict[int, tuple[int, int]] = {}
        """Records and bytes that were granted with each of these changes."""
        self._returned = False
        """Whether what is held from earlier sessions was given back."""

    def anew(self) -> WorkerMachine:
        """Return the bookkeeping of the same consumer before its first session."""
        machine = WorkerMachine(self._queue, self._records, self._size)
        machine.version = self.version
        machine._granted = {self.version: (self._records, self._size)}
        return machine

    # What the user does.

    def grant(self, records: int, size: int) -> int:
        """Change the credit; return its number."""
        self._records, self._size = records, size
        self.version += 1
        self._granted[self.version] = (records, size)
        return self.version

    def revert(self) -> bool:
        """Go back to the credit that the server keeps to; return whether it was another one that it was last told."""
        if self.version_in_force in (-1, self.version):
            return False
        self.grant(*self._kept)
        return True

    def answer(self, answer: Answer) -> None:
        """Say what becomes of a delivery."""
        self._waiting.append(answer)

    def leave(self) -> None:
        """Leave as soon as all answers have been taken, and what is held from earlier sessions was given back.

        The server gives back by itself what it has delivered in the session that is left.
        """
        self._leaving = True

    def forget(self, place: Place) -> None:
        """Take a delivery off the consumer's hands."""
        if place not in self._answered:
            self._count(place, -1)
        self.held.pop(place, None)
        self._earlier_size -= self._earlier.pop(place, 0)

    def _count(self, place: Place, sign: int) -> None:
        if place in self.held and place not in self._earlier:
            self._with_us += sign
            self._with_us_size += sign * self.held[place]

    # Sessions.

    def begin(self) -> Work:
        """Return the request of the next session; everything of the last one that is undone is to be done in it."""
        while self._sent:
            self._waiting.extendleft(reversed(self._sent.pop()))
        self._earlier = dict(self.held)
        self._earlier_size = sum(self._earlier.values())
        self._with_us = self._with_us_size = 0
        self._answered.clear()
        self._open = self._leave_sent = self._returned = self.stalled = False
        self._sequence = 0
        self._said = self._allowance()
        self._versions = {0: self.version}
        self._allowed = {0: self._said}
        return Work(queue=self._queue, records=self._said[0], bytes=self._said[1])

    def _allowance(self) -> tuple[int, int]:
        """Return the credit that is to be said to the server."""
        if self._leaving:
            return 0, 0
        size = self._size - self._earlier_size
        if self._earlier and size < _LARGEST:
            return 0, 0
        return max(0, self._records - len(self._earlier)), max(0, size)

    def outgoing(self) -> ClientMessage | None:
        """Return what is to be sent next; ``None`` for nothing."""
        if not self._open:
            return None
        allowance = self._allowance()
        if allowance != self._said or self._versions.get(self._sequence, self.version) != self.version:
            self._sequence += 1
            self._said = allowance
            self._versions[self._sequence] = self.version
            self._allowed[self._sequence] = allowance
            return Credit(sequence=self._sequence, records=allowance[0], bytes=allowance[1])
        if self._leaving and not self._returned:
            self._returned = True
            self._give_back()
        if self._waiting and len(self._sent) < SETTLES_UNANSWERED and not self._leave_sent:
            together = self._next_answers()
            self._sent.append(together)
            for place in [answer.place for answer in together if answer.final]:
                self._answered[place] = self._answered.get(place, 0) + 1
                if self._answered[place] == 1:
                    self._count(place, -1)
            return Settle(tuple(answer.settlement for answer in together))
        if self._leaving and not (self._waiting or self._sent or self._leave_sent):
            self._leave_sent = True
            return Leave()
        return None

    def _give_back(self) -> None:
        for place in self.unanswered:
            if place in self._earlier:
                self._waiting.append(Answer(Settlement(*place, Verdict.REQUEUE), lambda _: None))

    def _next_answers(self) -> list[Answer]:
        """Take as many of the answers that wait as fit into one message."""
        together = [self._waiting.popleft()]
        room = SETTLE_REASONS - len(together[0].settlement.reason)
        while self._waiting and len(together) < SETTLE_RECORDS:
            room -= len(self._waiting[0].settlement.reason)
            if room < 0:
                break
            together.append(self._waiting.popleft())
        return together

    def receive(self, message: ServerMessage) -> tuple[QueuedRecord, ...]:
        """Take a message; return the records that were delivered with it.

        Raises:
            ProtocolError: It does not belong here.
        """
        match message:
            case WorkOpened() if not self._open and 0 < message.lease < float("inf"):
                self.opened = message
                self._open = True
                self._in_force(0)
            case Deliveries(records) if self._open and not self.left:
                return self._deliver(records)
            case Settled() if self._open and self._sent:
                self._settled(message)
            case CreditSet() if self._open and message.sequence <= self._sequence:
                self.stalled = message.stalled
                self._in_force(message.sequence)
            case Left() if self._leave_sent:
                self.left = True
                self.stalled = False
            case _:
                raise ProtocolError(f"{type(message).__name__} received out of place")
        return ()

    def _in_force(self, sequence: int) -> None:
        for known in [known for known in self._versions if known <= sequence]:
            self.version_in_force = max(self.version_in_force, self._versions[known])
            if known < sequence:
                # The last one is kept: it tells which credit of the user's has been said.
                del self._versions[known], self._allowed[known]
        for version in [version for version in self._granted if version <= self.version_in_force]:
            self._kept = self._granted.pop(version)

    def _deliver(self, records: tuple[QueuedRecord, ...]) -> tuple[QueuedRecord, ...]:
        delivered = {(record.id, record.attempt): record.size for record in records}
        if len(delivered) < len(records) or not delivered.keys().isdisjoint(self.held):
            raise ProtocolError("a record was delivered twice in one attempt")
        count, size = self._with_us + len(delivered), self._with_us_size + sum(delivered.values())
        granted = max(allowed[0] for allowed in self._allowed.values())
        if count > granted:
            raise ProtocolError(f"{count} records are with this consumer, which granted {granted}")
        granted = max(allowed[1] for allowed in self._allowed.values())
        if count > 1 and size > granted:
            raise ProtocolError(f"{size} bytes are with this consumer, which granted {granted}")
        self._with_us, self._with_us_size = count, size
        self.held |= delivered
        return records

    def _settled(self, message: Settled) -> None:
        if not message.failed and len(message.counted) != len(self._sent[0]):
            raise ProtocolError(f"{len(message.counted)} outcomes for {len(self._sent[0])} answers")
        together = self._sent.popleft()
        final = [answer.place for answer in together if answer.final]
        for place in final:
            self._answered[place] -= 1
            if not self._answered[place]:
                del self._answered[place]
                self._count(place, 1)
        if message.failed:
            for answer in together:
                answer.done(StorageFailure(message.failed))
            return
        for place in final:
            self.forget(place)
        for answer, counted in zip(together, message.counted, strict=True):
            number, attempt = answer.place
            answer.done(None if counted else LeaseLost(id=number, attempt=attempt))

    def fail(self, error: Callable[[], TailraceError]) -> None:
        """Tell everyone who waits for an answer that none will come."""
        waiting = list(self._unsettled())
        self._sent.clear()
        self._waiting.clear()
        for answer in waiting:
            answer.done(error())

    @property
    def leave_said(self) -> bool:
        """Whether the session takes no more answers."""
        return self._leave_sent

    @property
    def unanswered(self) -> list[Place]:
        """Deliveries that are held, but for those of which has been said what becomes of them."""
        answered = {answer.place for answer in self._unsettled() if answer.final}
        return [place for place in self.held if place not in answered]

    @property
    def untouched(self) -> list[Place]:
        """Deliveries that are held and of which nothing is on its way to the server."""
        touched = {answer.place for answer in self._unsettled()}
        return [place for place in self.held if place not in touched]

    def is_answered(self, place: Place) -> bool:
        """Whether it was said what becomes of a delivery, and that may count."""
        return any(answer.final and answer.place == place for answer in self._unsettled())

    @property
    def answers(self) -> int:
        """Final answers of which somebody waits to know whether they count."""
        return sum(answer.final and answer.awaited() for answer in self._unsettled())

    def _unsettled(self) -> Iterator[Answer]:
        yield from chain(*self._sent, self._waiting)
