"""What a consumer holds, owes and may get."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tailrace_common_api import (
    MAX_RECORD_SIZE,
    RECORD_OVERHEAD,
    ConnectionLost,
    LeaseLost,
    ProtocolError,
    QueuedRecord,
    Settlement,
    StorageFailure,
    TailraceError,
    Verdict,
)
from tailrace_impl_common._work_machine import (
    SETTLE_REASONS,
    SETTLE_RECORDS,
    SETTLES_UNANSWERED,
    Answer,
    Place,
    WorkerMachine,
)
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Window
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

OPENED = WorkOpened(consumer="c", content_type="application/json", lease=30.0)
LARGEST = MAX_RECORD_SIZE + RECORD_OVERHEAD
_CONTENT = memoryview(bytes(MAX_RECORD_SIZE))

Told = list[TailraceError | None]


def queued(id: int, attempt: int = 1, *, size: int = 100) -> QueuedRecord:
    """Return a record that counts for ``size``."""
    return QueuedRecord(id, attempt, 0, cast(bytes, _CONTENT[: size - RECORD_OVERHEAD]))


def opened(records: int = 3, size: int = 10 * LARGEST, *, delivered: Sequence[QueuedRecord] = ()) -> WorkerMachine:
    machine = WorkerMachine("tasks", records, size)
    machine.begin()
    machine.receive(OPENED)
    if delivered:
        assert machine.receive(Deliveries(tuple(delivered))) == tuple(delivered)
    return machine


def answer(machine: WorkerMachine, id: int, attempt: int = 1, verdict: Verdict = Verdict.ACKNOWLEDGE) -> Told:
    """Answer a delivery; return the list in which the outcome will be."""
    told: Told = []
    machine.answer(Answer(Settlement(id, attempt, verdict), told.append))
    return told


def said(machine: WorkerMachine) -> list[ClientMessage]:
    """Return everything that the machine has to say."""
    messages = []
    while (message := machine.outgoing()) is not None:
        messages.append(message)
    return messages


# Sessions


def test_a_session_begins_with_the_credit() -> None:
    machine = WorkerMachine("tasks", 3, 1000)
    assert machine.outgoing() is None
    assert machine.begin() == Work(queue="tasks", records=3, bytes=1000)
    assert machine.outgoing() is None
    assert machine.version_in_force < machine.version
    machine.receive(OPENED)
    assert machine.opened == OPENED
    assert machine.version_in_force == machine.version
    assert machine.outgoing() is None


@pytest.mark.parametrize(
    ("held", "size", "asked"),
    [
        (0, 10 * LARGEST, (4, 10 * LARGEST)),
        (1, 10 * LARGEST, (3, 10 * LARGEST - 100)),
        (4, 10 * LARGEST, (0, 10 * LARGEST - 400)),
        (2, LARGEST + 200, (2, LARGEST)),
        # It would be taken for idle, and be given a record that does not fit.
        (2, LARGEST + 199, (0, 0)),
        (1, 50, (0, 0)),
        (0, 50, (4, 50)),
    ],
)
def test_the_next_session_begins_with_what_is_left_of_the_credit(held: int, size: int, asked: tuple[int, int]) -> None:
    machine = WorkerMachine("tasks", 4, 10 * LARGEST)
    machine.begin()
    machine.receive(OPENED)
    if held:
        machine.receive(Deliveries(tuple(queued(number) for number in range(held))))
    machine.grant(4, size)
    work = machine.begin()
    assert (work.records, work.bytes) == asked


def test_credit_rises_as_what_is_held_from_before_is_answered() -> None:
    machine = opened(3, delivered=[queued(1), queued(2)])
    assert machine.begin().records == 1
    machine.receive(OPENED)
    answer(machine, 2)
    assert said(machine) == [Settle((Settlement(2, 1, Verdict.ACKNOWLEDGE),))]
    machine.receive(Settled((True,)))
    assert said(machine) == [Credit(sequence=1, records=2, bytes=10 * LARGEST - 100)]
    answer(machine, 1, verdict=Verdict.EXTEND)
    said(machine)
    machine.receive(Settled((True,)))
    assert said(machine) == []


def test_answers_of_a_lost_session_are_said_again_in_their_order() -> None:
    machine = opened(8, delivered=[queued(number) for number in range(4)])
    outcomes = []
    for number in range(2):
        outcomes.append(answer(machine, number))
        assert len(said(machine)) == 1
    outcomes += [answer(machine, 2), answer(machine, 3)]
    assert said(machine) == []
    machine.begin()
    assert said(machine) == []
    machine.receive(OPENED)
    (settle,) = said(machine)
    assert isinstance(settle, Settle)
    assert [settlement.id for settlement in settle.settlements] == [0, 1, 2, 3]
    machine.receive(Settled((True, True, False, True)))
    assert [type(told) for (told,) in outcomes] == [type(None), type(None), LeaseLost, type(None)]
    assert machine.held == {}


# Credit


def test_credit_is_in_force_when_the_server_says_so() -> None:
    machine = opened(3)
    first, second, third = machine.grant(5, 1000), machine.grant(0, 0), machine.grant(5, 1000)
    assert said(machine) == [Credit(sequence=1, records=5, bytes=1000)]
    fourth = machine.grant(5, 1000)
    # The same again is asked again: whoever set it waits for a word.
    assert said(machine) == [Credit(sequence=2, records=5, bytes=1000)]
    machine.receive(CreditSet(1, 0, stalled=True))
    assert first < second < third < fourth
    assert (machine.version_in_force, machine.stalled) == (third, True)
    machine.receive(CreditSet(2, 0, stalled=False))
    assert (machine.version_in_force, machine.stalled) == (fourth, False)
    assert said(machine) == []


def test_until_less_is_in_force_the_server_may_use_more() -> None:
    machine = opened(2)
    machine.grant(0, 0)
    said(machine)
    machine.receive(Deliveries((queued(1), queued(2))))
    machine.receive(CreditSet(1, 2, stalled=False))
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries((queued(3),)))


def test_credit_that_is_refused_is_taken_back() -> None:
    machine = opened(2)
    assert not machine.revert()
    machine.grant(10**9, 5)
    said(machine)
    assert machine.revert()
    assert machine.begin().records == 2
    machine.receive(OPENED)
    assert not machine.revert()
    assert not WorkerMachine("tasks", 10**9, 5).revert()


def test_a_machine_begins_anew_with_the_same_credit() -> None:
    machine = opened(2, delivered=[queued(1)])
    version = machine.grant(7, 8)
    machine.leave()
    fresh = machine.anew()
    assert fresh.begin() == Work(queue="tasks", records=7, bytes=8)
    fresh.receive(OPENED)
    assert fresh.version_in_force == version
    assert fresh.held == {}


# Deliveries


@pytest.mark.parametrize(
    ("held", "messages"),
    [
        ([], [[(1, 100), (2, 100), (3, 100), (4, 100)]]),
        ([(1, 100), (2, 100)], [[(3, 100)], [(4, 100)]]),
        ([(1, 300)], [[(2, 300)], [(3, 500)]]),
        ([], [[(1, 5000), (2, 10)]]),
        ([(1, 5000)], [[(2, 10)]]),
        ([(1, 100)], [[(1, 100)]]),
        ([], [[(1, 100), (1, 100)]]),
    ],
    ids=["many", "one by one", "bytes", "large and more", "behind a large one", "again", "twice"],
)
def test_a_server_that_gives_too_much_is_found_out(
    held: list[tuple[int, int]], messages: list[list[tuple[int, int]]]
) -> None:
    machine = opened(3, 1000, delivered=[queued(number, size=size) for number, size in held])
    for message in messages[:-1]:
        machine.receive(Deliveries(tuple(queued(number, size=size) for number, size in message)))
    before = dict(machine.held)
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries(tuple(queued(number, size=size) for number, size in messages[-1])))
    # What is refused is nobody's burden.
    assert machine.held == before


@pytest.mark.parametrize(
    "messages",
    [
        [[(1, 100), (2, 400), (3, 500)]],
        [[(1, 5000)]],
        [[(1, 500)], [(2, 500)]],
    ],
    ids=["full", "one that is larger", "to the last byte"],
)
def test_what_was_granted_may_come(messages: list[list[tuple[int, int]]]) -> None:
    machine = opened(3, 1000)
    for message in messages:
        machine.receive(Deliveries(tuple(queued(number, size=size) for number, size in message)))
    assert len(machine.held) == sum(map(len, messages))


def test_an_answer_makes_room_when_it_is_on_its_way() -> None:
    machine = opened(1, 1000, delivered=[queued(1, size=5000)])
    answer(machine, 1)
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries((queued(2),)))
    said(machine)
    machine.receive(Deliveries((queued(2),)))
    answer(machine, 2)
    answer(machine, 2)
    said(machine)
    machine.receive(Settled((True,)))
    # Two final answers make room for one record.
    machine.receive(Deliveries((queued(3),)))
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries((queued(4),)))
    machine.receive(Settled((True, True)))
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries((queued(4),)))


def test_an_answer_that_was_not_taken_makes_no_room() -> None:
    machine = opened(1, delivered=[queued(1)])
    told = answer(machine, 1)
    said(machine)
    machine.receive(Settled((), "disk"))
    assert isinstance(told[0], StorageFailure)
    assert len(told) == 1
    assert list(machine.held) == [(1, 1)]
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries((queued(2),)))
    assert answer(machine, 1) == []
    assert len(said(machine)) == 1


def test_a_lost_lease_makes_room_by_its_answer() -> None:
    machine = opened(1, delivered=[queued(1)])
    told = answer(machine, 1)
    said(machine)
    machine.receive(Settled((False,)))
    assert isinstance(told[0], LeaseLost)
    # The same record again, in another attempt.
    machine.receive(Deliveries((queued(1, 2),)))
    assert list(machine.held) == [(1, 2)]


# Answers


def test_few_messages_with_answers_are_on_their_way() -> None:
    machine = opened(10, delivered=[queued(number) for number in range(5)])
    sent = []
    for number in range(5):
        answer(machine, number)
        sent += said(machine)
    assert len(sent) == SETTLES_UNANSWERED
    machine.receive(Settled((True,)))
    (third,) = said(machine)
    assert isinstance(third, Settle)
    assert [settlement.id for settlement in third.settlements] == [2, 3, 4]


@pytest.mark.parametrize(
    ("count", "reason", "expected"),
    [
        (SETTLE_RECORDS + 1, 0, SETTLE_RECORDS),
        (200, 1024, SETTLE_REASONS // 1024),
        (2, SETTLE_REASONS + 1, 1),
    ],
)
def test_messages_with_answers_are_bounded(count: int, reason: int, expected: int) -> None:
    machine = opened(count)
    for number in range(count):
        machine.answer(Answer(Settlement(number, 1, Verdict.REQUEUE, 0.0, "x" * reason), lambda _: None))
    message = machine.outgoing()
    assert isinstance(message, Settle)
    assert len(message.settlements) == expected


def test_what_is_answered_is_known() -> None:
    machine = opened(5, delivered=[queued(1), queued(2), queued(3)])
    answer(machine, 1)
    answer(machine, 2, verdict=Verdict.EXTEND)
    for _ in range(2):
        assert machine.unanswered == [(2, 1), (3, 1)]
        assert machine.untouched == [(3, 1)]
        assert machine.is_answered((1, 1))
        assert not machine.is_answered((2, 1))
        assert machine.answers == 1
        said(machine)
    machine.receive(Settled((True, True)))
    assert machine.untouched == [(2, 1), (3, 1)]
    assert (machine.answers, machine.is_answered((1, 1))) == (0, False)


def test_who_waits_is_told_that_nothing_will_come() -> None:
    machine = opened(5, delivered=[queued(1), queued(2)])
    first = answer(machine, 1)
    said(machine)
    second = answer(machine, 2)
    machine.fail(lambda: ConnectionLost("gone"))
    machine.fail(lambda: ConnectionLost("gone"))
    assert [type(told) for told in (*first, *second)] == [ConnectionLost] * 2
    assert first[0] is not second[0]


# The end


def test_a_consumer_leaves_behind_its_answers() -> None:
    machine = opened(3, delivered=[queued(1), queued(2)])
    answer(machine, 1)
    machine.leave()
    assert said(machine) == [
        Credit(sequence=1, records=0, bytes=0),
        Settle((Settlement(1, 1, Verdict.ACKNOWLEDGE),)),
    ]
    machine.receive(CreditSet(1, 2, stalled=True))
    machine.receive(Settled((True,)))
    assert said(machine) == [Leave()]
    assert machine.leave_said
    # It is too late for this session.
    answer(machine, 2)
    assert said(machine) == []
    machine.receive(Left())
    assert (machine.left, machine.stalled) == (True, False)


def test_what_is_held_from_earlier_sessions_is_given_back_by_hand() -> None:
    machine = opened(5, delivered=[queued(1), queued(2), queued(3)])
    machine.begin()
    machine.receive(OPENED)
    machine.receive(Deliveries((queued(4),)))
    answer(machine, 2)
    machine.leave()
    credit, settle = said(machine)
    assert isinstance(credit, Credit)
    assert settle == Settle(
        (
            Settlement(2, 1, Verdict.ACKNOWLEDGE),
            Settlement(1, 1, Verdict.REQUEUE),
            Settlement(3, 1, Verdict.REQUEUE),
        )
    )
    # The server may fail in it: leaving does not.
    machine.receive(Settled((), "disk"))
    assert said(machine) == [Leave()]


def test_forgotten_deliveries_count_no_more() -> None:
    machine = opened(2, delivered=[queued(1)])
    machine.begin()
    machine.receive(OPENED)
    machine.receive(Deliveries((queued(2),)))
    for number in (1, 2, 2):
        machine.forget((number, 1))
    assert machine.held == {}
    assert said(machine) == [Credit(sequence=1, records=2, bytes=10 * LARGEST)]
    machine.receive(Deliveries((queued(3), queued(4))))


# What does not belong there


@pytest.mark.parametrize(
    "message",
    [OPENED, Settled((True,)), CreditSet(1, 0, stalled=False), Left(), Window(5), Work(queue="a", records=1, bytes=1)],
    ids=lambda message: type(message).__name__,
)
def test_messages_out_of_place_are_refused(message: ServerMessage) -> None:
    with pytest.raises(ProtocolError):
        opened().receive(message)


@pytest.mark.parametrize(
    "message",
    [Settled((True,)), CreditSet(0, 0, stalled=False), Deliveries((queued(1),)), Left()],
    ids=lambda message: type(message).__name__,
)
def test_nothing_comes_before_the_opening(message: ServerMessage) -> None:
    machine = WorkerMachine("tasks", 3, 1000)
    machine.begin()
    with pytest.raises(ProtocolError):
        machine.receive(message)


@pytest.mark.parametrize("lease", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_is_a_time(lease: float) -> None:
    machine = WorkerMachine("tasks", 3, 1000)
    machine.begin()
    with pytest.raises(ProtocolError):
        machine.receive(WorkOpened(consumer="c", content_type="", lease=lease))


def test_nothing_is_delivered_behind_the_end() -> None:
    machine = opened()
    machine.leave()
    said(machine)
    machine.receive(Deliveries((queued(1),)))
    machine.receive(Left())
    with pytest.raises(ProtocolError):
        machine.receive(Deliveries((queued(2),)))


@pytest.mark.parametrize("counted", [(), (True,), (True, True, True)])
def test_every_answer_has_an_outcome(counted: tuple[bool, ...]) -> None:
    machine = opened(3, delivered=[queued(1), queued(2)])
    outcomes = [answer(machine, 1), answer(machine, 2)]
    said(machine)
    with pytest.raises(ProtocolError):
        machine.receive(Settled(counted))
    assert outcomes == [[], []]
    # They are said again.
    machine.begin()
    machine.receive(OPENED)
    said(machine)
    machine.receive(Settled((True, True)))
    assert outcomes == [[None], [None]]


# Any order of things


@dataclass
class Server:
    """A server's side of one session: it keeps to the credit that is in force with it, and to nothing else."""

    records: int
    bytes: int
    unanswered: dict[Place, int] = field(default_factory=dict)
    """Size of each record that it has delivered in this session."""
    asked: Credit | None = None
    """The last change of credit that is not in force."""
    outcomes: deque[Settled] = field(default_factory=deque)
    """What it has not told of answers that it has taken."""
    leaving: bool = False

    def gives(self, size: int) -> bool:
        if len(self.unanswered) >= self.records or self.leaving:
            return False
        return not self.unanswered or sum(self.unanswered.values()) + size <= self.bytes


sizes = st.sampled_from([RECORD_OVERHEAD, 100, 1_000_000, LARGEST])
sizes_together = [9 * LARGEST, 5 * LARGEST, 2 * LARGEST, 1_000_000, 0]
grants = st.tuples(st.sampled_from([2, 1, 4, 0]), st.sampled_from(sizes_together))


class AnyOrder(RuleBasedStateMachine):
    """A consumer, its server, and what is on its way between them, in any interleaving, over any number of sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.server: Server | None = None
        self.to_server: deque[ClientMessage] = deque()
        self.to_consumer: deque[ServerMessage] = deque()
        self.in_hand: dict[Place, int] = {}
        """Deliveries that no server has taken a final answer to, on their way included."""
        self.next_id = 0
        self.answered: set[Place] = set()
        self.outcomes: list[Told] = []
        self.left = False

    @initialize(credit=grants)
    def grant_at_first(self, credit: tuple[int, int]) -> None:
        self.machine = WorkerMachine("tasks", *credit)
        self.granted = {0: credit}

    # The user.

    @precondition(lambda self: self.machine.version - self.machine.version_in_force < 2)
    @rule(credit=grants)
    def grant(self, credit: tuple[int, int]) -> None:
        self.granted[self.machine.grant(*credit)] = credit

    @precondition(lambda self: self.machine.held)
    @rule(data=st.data(), verdict=st.sampled_from(Verdict))
    def answer(self, data: st.DataObject, verdict: Verdict) -> None:
        place = data.draw(st.sampled_from(sorted(self.machine.held)))
        told: Told = []
        self.outcomes.append(told)
        self.machine.answer(Answer(Settlement(*place, verdict), told.append))

    # The network.

    @precondition(lambda self: self.server is None)
    @rule()
    def connect(self) -> None:
        work = self.machine.begin()
        self.server = Server(work.records, work.bytes)
        self.to_consumer.append(OPENED)

    @precondition(lambda self: self.server is not None)
    @rule()
    def lose(self) -> None:
        self.server = None
        for message in self.to_consumer:
            if isinstance(message, Deliveries):
                # It never came here: the lease of it ends some day.
                for record in message.records:
                    self.in_hand.pop((record.id, record.attempt), None)
        self.to_server.clear()
        self.to_consumer.clear()

    @precondition(lambda self: self.server is not None)
    @rule()
    def send(self) -> None:
        message = self.machine.outgoing()
        if message is not None:
            self.to_server.append(message)

    @precondition(lambda self: self.to_consumer)
    @rule(most=st.sampled_from([9, 1, 2]))
    def receive(self, most: int) -> None:
        for message in [self.to_consumer.popleft() for _ in range(min(most, len(self.to_consumer)))]:
            delivered = self.machine.receive(message)
            assert delivered == (message.records if isinstance(message, Deliveries) else ())

    # The server.

    @precondition(lambda self: self.to_server)
    @rule(fails=st.booleans(), counted=st.booleans())
    def serve(self, fails: bool, counted: bool) -> None:
        assert self.server is not None
        message = self.to_server.popleft()
        assert not self.server.leaving
        if isinstance(message, Credit):
            assert message.sequence > (self.server.asked.sequence if self.server.asked else 0)
            self.server.asked = message
        elif isinstance(message, Settle):
            assert len(self.server.outcomes) < SETTLES_UNANSWERED
            if fails:
                self.server.outcomes.append(Settled((), "disk"))
                return
            for settlement in message.settlements:
                if settlement.verdict is not Verdict.EXTEND:
                    self.server.unanswered.pop(settlement[:2], None)
                    self.in_hand.pop(settlement[:2], None)
            self.server.outcomes.append(Settled((counted,) * len(message.settlements)))
        else:
            assert isinstance(message, Leave)
            self.server.leaving = True

    @precondition(lambda self: self.server is not None and self.server.outcomes)
    @rule()
    def tell_outcome(self) -> None:
        assert self.server is not None
        self.to_consumer.append(self.server.outcomes.popleft())

    @precondition(lambda self: self.server is not None and self.server.asked is not None)
    @rule(stalled=st.booleans())
    def put_in_force(self, stalled: bool) -> None:
        assert self.server is not None
        assert self.server.asked is not None
        credit, self.server.asked = self.server.asked, None
        self.server.records, self.server.bytes = credit.records, credit.bytes
        self.to_consumer.append(CreditSet(credit.sequence, len(self.server.unanswered), stalled))

    @precondition(lambda self: self.server is not None)
    @rule(wanted=st.lists(sizes, min_size=1, max_size=4))
    def deliver(self, wanted: list[int]) -> None:
        assert self.server is not None
        given: list[QueuedRecord] = []
        for size in wanted:
            if self.server.gives(size):
                given.append(queued(self.next_id, size=size))
                self.server.unanswered[self.next_id, 1] = self.in_hand[self.next_id, 1] = size
                self.next_id += 1
        if not given:
            return
        self.to_consumer.append(Deliveries(tuple(given)))
        in_force = [credit for version, credit in self.granted.items() if version >= self.machine.version_in_force]
        assert len(self.in_hand) <= max(records for records, _ in in_force)
        assert len(self.in_hand) == 1 or sum(self.in_hand.values()) <= max(size for _, size in in_force)

    # What always holds.

    @invariant()
    def nobody_is_told_twice(self) -> None:
        assert all(len(told) <= 1 for told in self.outcomes)

    def teardown(self) -> None:
        """Let everything come to its end, and leave."""
        if not hasattr(self, "machine"):
            return
        if self.server is None:
            self.connect()
        self._run_dry()
        assert all(len(told) == 1 for told in self.outcomes)
        # Nothing is left unsaid: what is granted is what the user grants, less what is held from before.
        assert self.machine.version_in_force == self.machine.version
        assert self.server is not None
        if set(self.machine.held) <= set(self.server.unanswered):
            assert (self.server.records, self.server.bytes) == self.granted[self.machine.version]
        # It may hold what a server has taken an answer to, when the outcome was lost and the repetition failed.
        assert set(self.machine.held) >= set(self.in_hand)
        self.machine.leave()
        self._run_dry()
        assert self.server.leaving
        assert set(self.in_hand) == set(self.server.unanswered)
        self.machine.receive(Left())
        assert self.machine.left

    def _run_dry(self) -> None:
        while True:
            before = len(self.to_server), len(self.to_consumer)
            self.send()
            while self.to_server:
                self.serve(fails=False, counted=True)
            while self.server is not None and self.server.outcomes:
                self.tell_outcome()
            if self.server is not None and self.server.asked is not None:
                self.put_in_force(stalled=False)
            progress = bool(self.to_consumer) or (len(self.to_server), len(self.to_consumer)) != before
            while self.to_consumer:
                self.receive(most=9)
            if not progress:
                return


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
