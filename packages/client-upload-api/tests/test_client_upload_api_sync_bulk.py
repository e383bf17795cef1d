"""Bulks for blocking code say and do what the asynchronous ones do."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tailrace_client_upload_api import BulkClient, BulkUpload, RecordContent, sync
from tailrace_common_api import (
    BulkRefused,
    BulkResult,
    InvalidArgument,
    QuotaExceeded,
    Record,
    RecordLimits,
    Reporting,
    UploadAborted,
    refused_records,
)

LIMITS = RecordLimits(record_bytes=300_000, bulk_records=100_000, bulk_bytes=10**9, bulk_idle=60.0, window=10**6)


class MemoryBulk(BulkUpload):
    """A bulk into memory; ``hold`` stops it, ``error`` ends it."""

    def __init__(self, collection: str, arguments: dict[str, object]) -> None:
        self.collection = collection
        self.arguments = arguments
        self.records: list[Record] = []
        self.crossings: list[int] = []
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.held = threading.Event()
        self.threads: set[int] = set()
        self.cancelled = False
        self.outcome: BulkResult | None = None
        self._task: object = None

    id = "1"
    limits = LIMITS

    @property
    def count(self) -> int:
        return len(self.records)

    @property
    def result(self) -> BulkResult | None:
        return self.outcome

    async def open(self) -> None:
        self.threads.add(threading.get_ident())

    async def send(self, record: RecordContent, *, key: str | None = None) -> None:
        self.threads.add(threading.get_ident())
        if asyncio.current_task() is not self._task:
            self._task = asyncio.current_task()
            self.crossings.append(0)
        self.crossings[-1] += 1
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        assert type(record) is bytes
        self.records.append(Record(record, key))

    async def commit(self) -> BulkResult:
        if self.error is not None:
            raise self.error
        self.outcome = BulkResult(
            id="1", collection=self.collection, records=self.count, size=0, digest=bytes(16), committed_at=0.0
        )
        return self.outcome

    async def cancel(self) -> None:
        self.cancelled = self.outcome is None


class MemoryClient(BulkClient):
    def __init__(self) -> None:
        self.bulks: list[MemoryBulk] = []

    def bulk(
        self,
        collection: str,
        *,
        idempotency_key: str | None = None,
        content_type: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> MemoryBulk:
        arguments: dict[str, object] = {
            "key": idempotency_key,
            "type": content_type,
            "reporting": reporting,
            "priority": priority,
        }
        self.bulks.append(MemoryBulk(collection, arguments))
        return self.bulks[-1]


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def behind() -> MemoryClient:
    return MemoryClient()


@pytest.fixture
def client(portal: BlockingPortal, behind: MemoryClient) -> sync.BulkClient:
    return sync.BulkClient(portal, behind)


def names(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize("asynchronous", [BulkClient, BulkUpload])
def test_names_and_arguments_are_those_of_the_asynchronous_interface(asynchronous: type) -> None:
    blocking = getattr(sync, asynchronous.__name__)
    assert names(asynchronous) == names(blocking)
    for method in names(asynchronous):
        if inspect.isfunction(getattr(asynchronous, method)):
            expected = inspect.signature(getattr(asynchronous, method)).parameters
            actual = inspect.signature(getattr(blocking, method)).parameters
            assert [(p.name, p.kind, p.default) for p in actual.values()] == [
                (p.name, p.kind, p.default) for p in expected.values()
            ]


def test_leaving_the_block_commits(client: sync.BulkClient, behind: MemoryClient) -> None:
    changing = bytearray(b"3")
    with client.bulk("things", idempotency_key="k", content_type="t", reporting=Reporting.ALL, priority=2) as bulk:
        bulk.send(b"1")
        bulk.send({"n": 2})
        bulk.send(changing)
        changing[:] = b"x"
        bulk.send("4", key="four")
        assert bulk.send_all([Record(b"5", "five"), b"6"]) == 2
        assert (bulk.count, bulk.id, bulk.limits) == (6, "1", LIMITS)
    (memory,) = behind.bulks
    assert memory.arguments == {"key": "k", "type": "t", "reporting": Reporting.ALL, "priority": 2}
    assert memory.records == [
        Record(b"1"),
        Record(b'{"n":2}'),
        Record(b"3"),
        Record(b"4", "four"),
        Record(b"5", "five"),
        Record(b"6"),
    ]
    assert bulk.result is not None
    assert bulk.result.records == 6
    assert not memory.cancelled
    assert memory.threads.isdisjoint({threading.get_ident()})


def test_many_records_cross_at_once(client: sync.BulkClient, behind: MemoryClient) -> None:
    with client.bulk("things") as bulk:
        bulk.send_all(b"x" * 92 for _ in range(50_000))
    (memory,) = behind.bulks
    assert memory.count == 50_000
    # Some for the time that they may wait, besides those for their size.
    assert len(memory.crossings) < 500


def test_a_record_behind_a_pause_crosses_at_once(client: sync.BulkClient, behind: MemoryClient) -> None:
    with client.bulk("things") as bulk:
        bulk.send(b"1")
        assert behind.bulks[0].count == 1
        bulk._handed_over_at -= 1.0
        bulk.send(b"2")
        assert behind.bulks[0].count == 2


def test_leaving_with_an_exception_cancels(client: sync.BulkClient, behind: MemoryClient) -> None:
    def use() -> None:
        with client.bulk("things") as bulk:
            bulk.send(b"1")
            bulk.send(b"2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert behind.bulks[0].cancelled
    assert behind.bulks[0].outcome is None


@pytest.mark.parametrize(
    ("record", "key"), [(5, None), ({"a": object()}, None), (b"x" * 300_001, None), (b"x", ""), (b"x", "k" * 256)]
)
def test_what_cannot_be_a_record_is_refused_at_once(
    client: sync.BulkClient, behind: MemoryClient, record: Any, key: str | None
) -> None:
    with client.bulk("things") as bulk:
        bulk.send(b"before")
        with pytest.raises(InvalidArgument):
            bulk.send(record, key=key)
        bulk.send(b"after")
    assert [record.data for record in behind.bulks[0].records] == [b"before", b"after"]


def test_limits_are_told_at_once(client: sync.BulkClient, behind: MemoryClient) -> None:
    with client.bulk("things") as bulk:
        bulk.send_all(b"" for _ in range(LIMITS.bulk_records))
        with pytest.raises(QuotaExceeded):
            bulk.send(b"")
    assert behind.bulks[0].count == LIMITS.bulk_records


def test_an_error_of_the_server_ends_the_bulk(client: sync.BulkClient, behind: MemoryClient) -> None:
    bulk = client.bulk("things")
    bulk.open()
    bulk.send(b"1")
    behind.bulks[0].error = refused_records([], 5)
    bulk.send(b"2")
    with pytest.raises(BulkRefused):
        bulk.commit()
    with pytest.raises(BulkRefused):
        bulk.send(b"3")
    bulk.cancel()
    assert behind.bulks[0].cancelled


def test_what_was_interrupted_is_not_committed_without_the_rest(
    client: sync.BulkClient, behind: MemoryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk = client.bulk("things")
    bulk.open()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # As when Ctrl-C is pressed while the records cross.
        patch.setattr("tailrace_client_upload_api._blocking_bulk.call", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bulk.send(b"1")
    with pytest.raises(UploadAborted):
        bulk.send(b"2")
    with pytest.raises(UploadAborted):
        bulk.commit()
    bulk.cancel()
    assert behind.bulks[0].outcome is None


def test_a_bulk_that_is_not_open_takes_nothing(client: sync.BulkClient) -> None:
    bulk = client.bulk("things")
    with pytest.raises(RuntimeError):
        bulk.send(b"x")
    with pytest.raises(RuntimeError):
        bulk.commit()
    bulk.cancel()
