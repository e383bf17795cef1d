"""Queries for blocking code say and do what the asynchronous ones do."""

import gc
import inspect
import threading

import pytest
from client_download_api_memory_records import BATCH, MemoryRecordClient

from tailrace_client_download_api import RecordStream, sync
from tailrace_common_api import ConnectionLost, QueryFailed, Record
from tailrace_common_api.blocking import BlockingIterator


def names(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_names_and_arguments_are_those_of_the_asynchronous_interface() -> None:
    assert names(RecordStream) == names(sync.RecordStream)
    for method in names(RecordStream):
        if inspect.isfunction(getattr(RecordStream, method)):
            expected = inspect.signature(getattr(RecordStream, method)).parameters
            actual = inspect.signature(getattr(sync.RecordStream, method)).parameters
            assert list(actual) == list(expected)


def test_records_come_one_by_one_and_cross_in_batches(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    with client.query("source", portal=1, func="x", source=None) as stream:
        assert stream.content_type == "application/json"
        assert list(stream) == BATCH * 5
    (memory,) = behind.streams
    assert memory.arguments == {"": "source", "portal": 1, "func": "x", "source": None}
    assert memory.closed.is_set()
    assert memory.threads.isdisjoint({threading.get_ident()})


def test_batches_come_as_they_arrive(client: sync.RecordClient) -> None:
    assert [len(batch) for batch in client.query("source").batches()] == [100] * 5


def test_what_came_before_an_error_is_given(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    behind.next.error = QueryFailed("broken")
    seen: list[Record] = []
    with pytest.raises(QueryFailed):
        seen.extend(client.query("source"))
    records = iter(client.query("source"))
    assert next(records) == BATCH[0]
    assert len(list(records)) == 499


def test_leaving_the_loop_ends_the_query(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    behind.next.count = 10**9
    for _ in client.query("source"):
        break
    gc.collect()
    assert behind.streams[0].ended.wait(10)


def test_closing_the_iterator_ends_the_query(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    behind.next.count = 10**9
    with iter(client.query("source")) as records:
        assert next(records) == BATCH[0]
    assert behind.streams[0].ended.is_set()
    assert list(records) == []


def test_a_slow_reader_slows_the_query(client: sync.RecordClient, behind: MemoryRecordClient) -> None:
    behind.next.count = 10**9
    records = iter(client.query("source"))
    for turn in range(1, 20):
        for _ in range(100):
            next(records)
        # The batch in hand, two ahead, and one that was being made.
        assert behind.streams[0].produced <= turn + 3
    del records


def test_an_interruption_loses_nothing(client: sync.RecordClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> object:
        raise KeyboardInterrupt

    records = iter(client.query("source"))
    assert next(records) == BATCH[0]
    for _ in range(99):
        next(records)

    with monkeypatch.context() as patch:
        # As when Ctrl-C is pressed while the next records are awaited.
        patch.setattr(BlockingIterator, "__next__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(records)
    assert len(list(records)) == 400


def test_the_figures_of_a_queue(client: sync.RecordClient) -> None:
    assert client.queue_figures("queue").dead == 4


def test_errors_of_the_opening_are_raised(
    client: sync.RecordClient, behind: MemoryRecordClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise ConnectionLost("no way")

    monkeypatch.setattr(behind.next, "open", refuse)
    with pytest.raises(ConnectionLost), client.query("source"):
        pass
