"""Order of messages and window of a bulk, on both sides."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impl_common_record_bench import KIB, LIMITS

from tailrace_common_api import BulkConflict, BulkResult, MessageTooLarge, ProtocolError, RecordBatch
from tailrace_impl_common import RecordDigest
from tailrace_impl_common._bulk_machine import BulkReceiver, BulkSender, check_limits, largest_record
from tailrace_impl_common.messages import Window
from tailrace_impl_common.record_messages import MESSAGE_RECORDS, BulkCommitted, BulkOpened, CommitBulk, QueryEnd

OPENED = BulkOpened(id="1", content_type="application/json", limits=LIMITS, until=100)


def result_of(batch: RecordBatch) -> BulkResult:
    digest = RecordDigest()
    digest.update(batch)
    return BulkResult(
        id="1", collection="things", records=len(batch.data), size=1, digest=digest.digest(), committed_at=1.0
    )


def sender(until: int) -> BulkSender:
    machine = BulkSender()
    machine.receive(replace(OPENED, until=until))
    return machine


def add(machine: BulkSender, data: bytes, key: str | None = None) -> None:
    machine.add(data, key, len(data) + len((key or "").encode()) + 8)


# The client's side


@given(
    st.lists(st.tuples(st.binary(max_size=30), st.none() | st.text(min_size=1, max_size=4)), max_size=30),
    st.lists(st.integers(1, 60), min_size=1, max_size=50),
)
def test_what_is_gathered_leaves_in_order_and_within_the_window(
    records: list[tuple[bytes, str | None]], grants: list[int]
) -> None:
    machine, until = sender(0), 0
    sent: list[tuple[bytes, str | None]] = []
    counted = 0
    for data, key in records:
        add(machine, data, key)
    for grant in (*grants, 10_000):
        until += grant
        machine.receive(Window(until))
        while (batch := machine.next_message()) is not None:
            counted += batch.size
            assert counted == machine.sent <= until
            assert len(batch.keys) in (0, len(batch.data))
            sent.extend((record.data, record.key) for record in batch.records())
    assert sent == records
    assert machine.gathered == 0
    assert machine.commit().records == len(records)


def test_a_record_that_does_not_fit_waits_for_a_window_that_it_fits_into() -> None:
    machine = sender(20)
    add(machine, b"x" * 10)
    add(machine, b"y" * 10)
    assert machine.next_message() == RecordBatch([b"x" * 10], [])
    assert machine.next_message() is None
    machine.receive(Window(35))
    assert machine.next_message() is None
    machine.receive(Window(36))
    assert machine.next_message() == RecordBatch([b"y" * 10], [])


def test_an_older_window_changes_nothing() -> None:
    machine = sender(40)
    machine.receive(Window(18))
    add(machine, b"x" * 30)
    assert machine.next_message() is not None


def test_keys_stand_beside_their_records_wherever_the_first_one_comes() -> None:
    machine = sender(1000)
    for data, key in ((b"a", None), (b"b", "k"), (b"c", None)):
        add(machine, data, key)
    assert machine.next_message() == RecordBatch([b"a", b"b", b"c"], [None, "k", None])


def test_a_result_counts_when_it_is_of_what_was_sent() -> None:
    machine = sender(1000)
    add(machine, b"a")
    batch = machine.next_message()
    assert batch is not None
    good = result_of(batch)
    with pytest.raises(ProtocolError):
        machine.receive(BulkCommitted(good))
    assert machine.commit() == CommitBulk(1, good.digest)
    for bad in (replace(good, records=2), replace(good, digest=bytes(16))):
        with pytest.raises(ProtocolError):
            machine.receive(BulkCommitted(bad))
    assert machine.result is None
    machine.receive(BulkCommitted(good))
    assert machine.result == good


def test_a_bulk_that_has_committed_before_is_compared() -> None:
    good = result_of(RecordBatch([b"a", b"b"]))
    machine = BulkSender()
    machine.receive(replace(OPENED, result=good))
    add(machine, b"a")
    with pytest.raises(BulkConflict):
        machine.compare(good)
    add(machine, b"b")
    machine.compare(good)
    assert machine.next_message() is None
    add(machine, b"c")
    with pytest.raises(BulkConflict):
        machine.compare(good)


@pytest.mark.parametrize("message", [QueryEnd(0, bytes(16)), OPENED], ids=lambda message: type(message).__name__)
def test_what_does_not_belong_there_is_refused(message: QueryEnd | BulkOpened) -> None:
    machine = sender(1000)
    add(machine, b"a")
    assert machine.next_message() is not None
    with pytest.raises(ProtocolError):
        machine.receive(message)


def test_limits_under_which_nothing_fits_are_refused() -> None:
    assert largest_record(LIMITS) == LIMITS.record_bytes
    assert largest_record(replace(LIMITS, window=1000)) == 992
    check_limits(replace(LIMITS, window=9), 9)
    for window, until in ((8, 8), (100, 0)):
        with pytest.raises(MessageTooLarge):
            check_limits(replace(LIMITS, window=window), until)


# The server's side


def test_records_and_their_commit_are_taken() -> None:
    machine = BulkReceiver(LIMITS, 100)
    batch = RecordBatch([b"ab", b"c"], ["k", None])
    assert machine.receive(batch) is batch
    assert machine.received == 2 + 1 + 1 + 16
    assert machine.receive(CommitBulk(2, bytes(16))) == CommitBulk(2, bytes(16))


@pytest.mark.parametrize(
    "batch",
    [
        RecordBatch([]),
        RecordBatch([b"a"], ["k", "l"]),
        RecordBatch([b"a", b"b"], ["k"]),
        RecordBatch([b""] * (MESSAGE_RECORDS + 1)),
        RecordBatch([b"x" * 93]),
    ],
    ids=["nothing", "more keys", "fewer keys", "too many", "beyond the window"],
)
def test_messages_that_are_not_allowed_are_refused(batch: RecordBatch) -> None:
    machine = BulkReceiver(LIMITS, 100 if len(batch.data) < 10 else 10**6)
    with pytest.raises(ProtocolError):
        machine.receive(batch)


def test_another_message_is_refused() -> None:
    with pytest.raises(ProtocolError):
        BulkReceiver(LIMITS, 100).receive(Window(5))


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_client_with_nothing_on_its_way_has_room_for_the_largest_record(record: int, more: int) -> None:
    window = record + 8 + more
    limits = replace(LIMITS, record_bytes=record, window=window)
    machine, told = BulkReceiver(limits, window), window
    for consumed in range(1, 3 * window):
        grant = machine.grant(consumed + window)
        told = grant.until if grant is not None else told
        assert told - consumed >= record + 8
        assert told <= consumed + window


def test_few_windows_are_told() -> None:
    machine = BulkReceiver(LIMITS, LIMITS.window)
    told = [machine.grant(LIMITS.window + consumed) for consumed in range(0, LIMITS.window + 1, KIB)]
    assert len([window for window in told if window is not None]) == 4
