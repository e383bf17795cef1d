"""Queries, queues and their client in memory, to be called from blocking code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from tailrace_client_download_api import Delivery, RecordClient, RecordConsumer, RecordStream
from tailrace_common_api import Argument, InvalidArgument, LeaseLost, QueueFigures, Record

BATCH = [Record(b"%d" % number) for number in range(100)]


class MemoryStream(RecordStream):
    """Batches from memory; as many as are wanted, then an error or the end."""

    def __init__(self, arguments: dict[str, Argument]) -> None:
        self.arguments = arguments
        self.count = 5
        self.error: Exception | None = None
        self.produced = 0
        self.closed = threading.Event()
        self.ended = threading.Event()
        self.threads: set[int] = set()

    content_type = "application/json"

    async def open(self) -> None:
        self.threads.add(threading.get_ident())

    async def batches(self) -> AsyncGenerator[Sequence[Record], None]:
        try:
            while self.produced < self.count:
                self.threads.add(threading.get_ident())
                self.produced += 1
                yield BATCH
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.ended.set()

    async def close(self) -> None:
        self.closed.set()


class MemoryDelivery(Delivery):
    id, attempt, priority = 7, 2, 5
    record = Record(b'{"n": 1}', "key")
    settled = False

    def __init__(self) -> None:
        self.answers: list[tuple[object, ...]] = []

    async def ack(self) -> None:
        if self.answers:
            raise LeaseLost(id=self.id, attempt=self.attempt)
        self.answers.append(("ack", threading.get_ident()))

    async def reject(self, reason: str = "", *, delay: float = 0.0, dead_letter: bool = False) -> None:
        self.answers.append(("reject", reason, delay, dead_letter))

    async def extend(self, seconds: float | None = None) -> None:
        self.answers.append(("extend", seconds))


class MemoryConsumer(RecordConsumer):
    """Deliveries from a list, then an error, or waiting until it is closed."""

    lease, stalled, outstanding = 30.0, True, 4

    def __init__(self, count: int) -> None:
        self.waiting = [MemoryDelivery() for _ in range(count)]
        self.given: list[MemoryDelivery] = []
        self.credits: list[tuple[int, int]] = []
        self.opened = 0
        self.error: Exception | None = None
        self.closed = asyncio.Event()

    async def open(self) -> None:
        self.opened += 1

    async def set_credit(self, records: int, bytes: int = 1) -> None:
        self.credits.append((records, bytes))

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        if self.waiting:
            self.given.append(self.waiting.pop(0))
            return self.given[-1]
        if self.error is not None:
            raise self.error
        await self.closed.wait()
        raise StopAsyncIteration

    async def close(self) -> None:
        self.closed.set()


class MemoryRecordClient(RecordClient):
    """Hands out streams and a consumer, and records what was asked."""

    def __init__(self) -> None:
        self.streams: list[MemoryStream] = []
        self.next = MemoryStream({})
        self.asked: list[tuple[str, int, int, bool]] = []
        self.consumer = MemoryConsumer(3)

    def query(self, source: str, /, **arguments: Argument) -> MemoryStream:
        stream, self.next = self.next, MemoryStream({})
        stream.arguments = {"": source, **arguments}
        self.streams.append(stream)
        return stream

    def work(self, queue: str, *, credit: int, credit_bytes: int = 0, extend: bool = False) -> MemoryConsumer:
        if credit < 0:
            raise InvalidArgument(field="credit", problem="negative")
        self.asked.append((queue, credit, credit_bytes, extend))
        return self.consumer

    async def queue_figures(self, queue: str) -> QueueFigures:
        return QueueFigures(queue=queue, ready=1, delayed=2, in_flight=3, dead=4, consumers=5, stalled=6)
