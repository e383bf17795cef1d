"""Work for blocking code says and does what the asynchronous one does."""

import inspect
import threading

import pytest
from client_download_api_memory_records import MemoryRecordClient

from tailrace_client_download_api import Delivery, RecordClient, RecordConsumer, sync
from tailrace_common_api import ConnectionLost, InvalidArgument, LeaseLost, Record


def names(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("asynchronous", "blocking"),
    [(Delivery, sync.Delivery), (RecordConsumer, sync.RecordConsumer), (RecordClient, sync.RecordClient)],
)
def test_names_and_arguments_are_those_of_the_asynchronous_interface(asynchronous: type, blocking: type) -> None:
    assert names(asynchronous) == names(blocking)
    for method in names(asynchronous):
        if inspect.isfunction(getattr(asynchronous, method)):
            expected = inspect.signature(getattr(asynchronous, method)).parameters
            actual = inspect.signature(getattr(blocking, method)).parameters
            assert [(name, item.default, item.kind) for name, item in actual.items()] == [
                (name, item.default, item.kind) for name, item in expected.items()
            ]


def test_deliveries_are_answered(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    with client.work("tasks", credit=4, credit_bytes=100, extend=True) as consumer:
        assert behind.consumer.opened == 1
        assert (consumer.lease, consumer.stalled, consumer.outstanding) == (30.0, True, 4)
        deliveries = iter(consumer)
        first, second = next(deliveries), next(deliveries)
        assert (first.id, first.attempt, first.priority, first.settled) == (7, 2, 5, False)
        assert (first.record, first.json()) == (Record(b'{"n": 1}', "key"), {"n": 1})
        first.ack()
        with pytest.raises(LeaseLost):
            first.ack()
        second.extend()
        second.extend(2.5)
        second.reject("why", delay=1.5)
        second.reject(dead_letter=True)
        consumer.set_credit(2, 50)
    assert behind.asked == [("tasks", 4, 100, True)]
    assert behind.consumer.given[0].answers[0][1] != threading.get_ident()
    assert behind.consumer.given[1].answers == [
        ("extend", None),
        ("extend", 2.5),
        ("reject", "why", 1.5, False),
        ("reject", "", 0.0, True),
    ]
    assert behind.consumer.credits == [(2, 50)]
    assert behind.consumer.closed.is_set()
    with pytest.raises(InvalidArgument):
        client.work("tasks", credit=-1)


def test_a_loop_takes_up_where_the_last_one_was_left(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    expected = list(behind.consumer.waiting)
    consumer = client.work("tasks", credit=4)
    seen = 0
    for _ in range(3):
        for _ in consumer:
            seen += 1
            break
    assert (seen, behind.consumer.given) == (3, expected)
    consumer.close()


def test_no_more_is_fetched_than_is_asked_for(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    consumer = client.work("tasks", credit=4)
    next(iter(consumer))
    assert len(behind.consumer.given) == 1
    consumer.close()


def test_closing_from_another_thread_ends_the_loop(client: sync.RecordClient) -> None:
    consumer = client.work("tasks", credit=4)
    seen: list[sync.Delivery] = []
    third = threading.Event()

    def work() -> None:
        for delivery in consumer:
            seen.append(delivery)
            if len(seen) == 3:
                third.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert third.wait(10)
    consumer.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(seen) == 3


def test_each_loop_is_told_of_an_error(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    behind.consumer.error = ConnectionLost("gone")
    consumer = client.work("tasks", credit=4)
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            for _ in consumer:
                pass
    assert len(behind.consumer.given) == 3
