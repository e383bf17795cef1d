from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from impl_grpc_ends import MemorySink, Produce, ends

from tailrace_client_download_api.contracts import QueryClientContract, WorkClientContract
from tailrace_client_upload_api.contracts import BulkClientContract
from tailrace_common_api import Argument, Record, RecordBatch
from tailrace_impl_common import ConnectedClient
from tailrace_impl_grpc import GrpcServer, connect
from tailrace_impl_server import create_manager
from tailrace_server_api import TransportServerSettings


@asynccontextmanager
async def connected(sink: MemorySink, produce: Produce | None = None) -> AsyncIterator[ConnectedClient]:
    async with create_manager(None, {}, records=ends(sink, produce)) as managed:
        server = GrpcServer()
        await server.start(managed.manager, TransportServerSettings())
        try:
            async with connect(server.urls["grpc"]) as client:
                yield client
        finally:
            await server.close(5.0)


class TestGrpcBulks(BulkClientContract):
    @pytest.fixture
    async def bulk_client(self, no_task_is_left: None) -> AsyncIterator[ConnectedClient]:
        self.sink = MemorySink(self.collection)
        async with connected(self.sink) as client:
            yield client

    async def visible_records(self) -> Sequence[Record]:
        return [Record(data, key) for data, key in self.sink.visible]


class TestGrpcQueries(QueryClientContract):
    @pytest.fixture
    async def query_client(self, no_task_is_left: None) -> AsyncIterator[ConnectedClient]:
        self.yielded = 0
        self.running = 0
        self.ended = asyncio.Condition()
        async with connected(MemorySink(), self.produce) as client:
            yield client

    async def produce(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        count = arguments["count"]
        assert isinstance(count, int)
        self.running += 1
        try:
            for number in range(count):
                self.yielded += 1
                yield RecordBatch([b'{"n":%d}' % number])
                if number % 100 == 0:
                    await asyncio.sleep(0)
        finally:
            self.running -= 1
            async with self.ended:
                self.ended.notify_all()

    async def source_has_ended(self) -> int:
        async with self.ended:
            await self.ended.wait_for(lambda: not self.running)
        return self.yielded


class TestGrpcWork(WorkClientContract):
    @pytest.fixture
    async def work_client(self, no_task_is_left: None, tmp_path: Path) -> AsyncIterator[ConnectedClient]:
        async with create_manager(tmp_path, {}, records={"queues": {self.queue: {}}}) as managed:
            server = GrpcServer()
            await server.start(managed.manager, TransportServerSettings())
            try:
                async with connect(server.urls["grpc"]) as client:
                    self.client = client
                    yield client
            finally:
                await server.close(5.0)

    async def put(self, records: Sequence[bytes], *, priority: int = 0) -> None:
        async with self.client.bulk(self.queue, priority=priority) as bulk:
            for record in records:
                await bulk.send(record)
