"""The client over the in-process transport keeps the contracts of bulks, queries and work."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

import pytest
from impl_common_record_bench import RecordBench
from impl_common_work_bench import WorkBench

from tailrace_client_download_api.contracts import QueryClientContract, WorkClientContract
from tailrace_client_upload_api.contracts import BulkClientContract
from tailrace_common_api import (
    Argument,
    InvalidArgument,
    ProblemKind,
    Record,
    RecordBatch,
    RecordProblem,
    refused_records,
)
from tailrace_impl_common import ConnectedClient, Signal


def objects_only(batch: RecordBatch) -> None:
    for index, data in enumerate(batch.data):
        if not data.startswith(b"{"):
            problem = RecordProblem(index=index, kind=ProblemKind.INVALID, field=None, problem="no object")
            raise refused_records([problem], 1)


class TestBulks(BulkClientContract):
    collection = "things"

    @pytest.fixture
    async def bulk_client(self) -> AsyncIterator[ConnectedClient]:
        async with RecordBench() as bench:
            self.bench = bench
            bench.records.checks.append(objects_only)
            yield bench.client

    async def visible_records(self) -> Sequence[Record]:
        return [Record(data, key) for data, key in self.bench.records.visible]


class Numbers:
    """A source that counts; knows how many of its queries run, and what they have yielded."""

    def __init__(self) -> None:
        self.running = 0
        self.yielded = 0
        self.changed = Signal()

    def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        known = {"count": 10, "max_results": 2**62, **arguments}
        count, most = known["count"], known["max_results"]
        if len(known) > 2 or not isinstance(count, int) or not isinstance(most, int):
            raise InvalidArgument(field="count", problem="no number, or not alone")
        return self._count(min(count, most))

    async def _count(self, count: int) -> AsyncGenerator[RecordBatch, None]:
        self.running += 1
        try:
            for number in range(count):
                self.yielded += 1
                yield RecordBatch([json.dumps({"n": number}).encode()])
                await asyncio.sleep(0)
        finally:
            self.running -= 1
            self.changed.notify()


class TestQueries(QueryClientContract):
    source = "source"

    @pytest.fixture
    async def query_client(self) -> AsyncIterator[ConnectedClient]:
        self.numbers = Numbers()
        async with RecordBench() as bench:
            bench.records.source = lambda: self.numbers.query(bench.records.queries[-1])
            yield bench.client

    async def source_has_ended(self) -> int:
        while self.numbers.running:
            await self.numbers.changed.wait()
        return self.numbers.yielded


class TestWork(WorkClientContract):
    @pytest.fixture
    async def work_client(self) -> AsyncIterator[ConnectedClient]:
        async with WorkBench() as bench:
            self.bench = bench
            yield bench.client

    async def put(self, records: Sequence[bytes], *, priority: int = 0) -> None:
        self.bench.queue.put(records, priority=priority)
