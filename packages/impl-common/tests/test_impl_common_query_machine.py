"""Messages, window and digest of a query, on both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import IntegrityError, ProtocolError, RecordBatch
from tailrace_impl_common._query_machine import QueryReceiver, QuerySender, message_parts
from tailrace_impl_common.messages import ServerMessage, Window
from tailrace_impl_common.record_messages import (
    MESSAGE_BYTES,
    MESSAGE_RECORDS,
    CommitBulk,
    QueryEnd,
    QueryStarted,
)

STARTED = QueryStarted("application/json")


def received(*messages: ServerMessage, window: int = 1000, verify: bool = True) -> QueryReceiver:
    machine = QueryReceiver(window=window, verify=verify)
    for message in (STARTED, *messages):
        machine.receive(message)
    return machine


def end_of(*batches: RecordBatch) -> QueryEnd:
    machine = QuerySender(0)
    for batch in batches:
        machine.message(batch, batch.size)
    return machine.end()


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=40), st.booleans())
def test_a_batch_of_any_size_is_cut_into_messages(sizes: list[int], keyed: bool) -> None:
    batch = RecordBatch([b"x" * size for size in sizes], [f"é{n}" for n in range(len(sizes))] if keyed else ())
    parts = list(message_parts(batch))
    assert [record for part, _ in parts for record in part.records()] == batch.records()
    for part, size in parts:
        assert size == part.size
        assert size <= MESSAGE_BYTES or len(part.data) == 1


def test_many_small_records_are_cut_by_their_number() -> None:
    parts = list(message_parts(RecordBatch([b""] * (2 * MESSAGE_RECORDS + 1))))
    assert [len(part.data) for part, _ in parts] == [MESSAGE_RECORDS, MESSAGE_RECORDS, 1]


def test_a_batch_that_fits_is_not_touched() -> None:
    batch = RecordBatch([b"a", b"b"])
    ((part, size),) = message_parts(batch)
    assert part is batch
    assert size == 18
    assert list(message_parts(RecordBatch([]))) == []


def test_keys_that_do_not_fit_are_a_defect() -> None:
    with pytest.raises(ValueError, match="keys"):
        list(message_parts(RecordBatch([b"a", b"b"], ["k"])))


# The server's side


def test_the_window_is_overdrawn_by_one_message() -> None:
    machine = QuerySender(10)
    seen = [machine.may_send]
    for size in (9, 108):
        machine.message(RecordBatch([b"x" * (size - 8)]), size)
        seen.append(machine.may_send)
    for until, more in ((117, True), (118, True), (20, False)):
        assert machine.receive(Window(until)) == more
        seen.append(machine.may_send)
    assert seen == [True, True, False, False, True, True]


def test_without_a_window_nothing_holds_the_server() -> None:
    machine = QuerySender(0)
    machine.message(RecordBatch([b"x" * 10**6]), 10**6)
    assert machine.may_send
    with pytest.raises(ProtocolError):
        machine.receive(Window(5))


def test_a_reader_says_windows_only() -> None:
    with pytest.raises(ProtocolError):
        QuerySender(10).receive(CommitBulk(0, bytes(16)))


# The reader's side


def test_what_was_sent_has_arrived() -> None:
    batches = RecordBatch([b"a", b"b"]), RecordBatch([b"c"], ["k"])
    machine = received(*batches, end_of(*batches))
    assert machine.records == 3
    assert machine.end is not None
    with pytest.raises(ProtocolError):
        machine.receive(batches[0])


@pytest.mark.parametrize(
    "batches",
    [
        [RecordBatch([b"a"])],
        [RecordBatch([b"a", b"b", b"c"])],
        [RecordBatch([b"b", b"a"])],
        [RecordBatch([b"a", b"b"], ["k", None])],
        [RecordBatch([b"ab", b""])],
    ],
    ids=["lost", "added", "swapped", "key", "boundary"],
)
def test_other_records_are_noticed(batches: list[RecordBatch]) -> None:
    with pytest.raises(IntegrityError):
        received(*batches, end_of(RecordBatch([b"a", b"b"])))


def test_without_verification_records_are_only_counted() -> None:
    end = end_of(RecordBatch([b"a", b"b"]))
    assert received(RecordBatch([b"x", b"y"]), end, verify=False).end == end
    with pytest.raises(IntegrityError):
        received(RecordBatch([b"a"]), end, verify=False)


@pytest.mark.parametrize(
    "batch",
    [RecordBatch([]), RecordBatch([b"a"], ["k", "l"]), RecordBatch([b""] * (MESSAGE_RECORDS + 1))],
    ids=["nothing", "more keys", "too many"],
)
def test_messages_that_are_not_allowed_are_refused(batch: RecordBatch) -> None:
    with pytest.raises(ProtocolError):
        received(batch, window=10**6)


def test_what_does_not_belong_there_is_refused() -> None:
    with pytest.raises(ProtocolError):
        QueryReceiver(window=0, verify=True).receive(RecordBatch([b"a"]))
    with pytest.raises(ProtocolError):
        received(Window(5))
    with pytest.raises(ProtocolError):
        received(STARTED)


def test_a_server_overdraws_by_one_message_and_no_more() -> None:
    machine = received(RecordBatch([b"x" * 100]), window=10)
    with pytest.raises(ProtocolError):
        machine.receive(RecordBatch([b"x"]))


def test_windows_are_told_in_quarters() -> None:
    machine = received(window=400)
    told = []
    for _ in range(50):
        machine.receive(RecordBatch([b"x" * 12]))
        told.append(machine.consume())
    assert [window.until for window in told if window is not None] == list(range(500, 1500, 100))
    assert received(RecordBatch([b"x" * 1000]), window=0).consume() is None
