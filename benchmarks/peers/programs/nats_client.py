"""nats-py: its object store for whole objects, a stream of JetStream for what somebody follows."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.js import api

from peers.programs.contents import DATA, LINE, MEBIBYTE, Content, expect, pieces

BUCKET = "benchmark"


class Source(io.RawIOBase):
    """A file that consists of pieces of 1 MiB."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._position = 0

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, of which the lengths of pieces are multiples."""
        if self._position == self._size:
            return 0
        begin = self._position % MEBIBYTE
        buffer[:] = memoryview(DATA)[begin : begin + len(buffer)]
        self._position += len(buffer)
        return len(buffer)


class Sink(io.RawIOBase):
    """A file that counts what is written to it, or compares it."""

    def __init__(self, content: Content | None = None) -> None:
        super().__init__()
        self._content = content
        self.received = 0

    def write(self, data: Any) -> int:
        """Take a piece."""
        if self._content is not None:
            self._content.feed(data)
        self.received += len(data)
        return len(data)


class Client:
    """Writes over one connection and reads over another."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._url = f"nats://127.0.0.1:{settings['port']}"
        self._bulk_in_flight: int = settings["in_flight"]
        self._chunk: int = settings["chunk"]
        self._connected = False

    async def _connect(self) -> None:
        if self._connected:
            return
        self._connected = True
        # What may wait to be sent; beyond that, a publisher waits.
        self._writer = await nats.connect(self._url, pending_size=16 * MEBIBYTE)
        self._reader = await nats.connect(self._url)
        self._store = await self._writer.jetstream().create_object_store(BUCKET)
        self._read_store = await self._reader.jetstream().object_store(BUCKET)

    async def upload(self, size: int) -> tuple[float, str]:
        """Put an object."""
        await self._connect()
        name = uuid.uuid4().hex
        meta = api.ObjectMeta(name=name, options=api.ObjectMetaOptions(max_chunk_size=self._chunk))
        begin = time.perf_counter()
        info = await self._store.put(name, Source(size), meta=meta)
        seconds = time.perf_counter() - begin
        expect(info.size, size)
        return seconds, name

    async def download(self, handle: str, size: int, verify: bool) -> float:
        """Get an object, whose hash the client always compares."""
        sink = Sink()
        begin = time.perf_counter()
        await self._read_store.get(handle, writeinto=sink)
        seconds = time.perf_counter() - begin
        expect(sink.received, size)
        return seconds

    async def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        content = Content()
        await self._read_store.get(handle, writeinto=Sink(content))
        content.end(size)

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[str]:
        """Have a stream in files, whose name is also its subject."""
        await self._connect()
        name = uuid.uuid4().hex
        manager = self._writer.jetstream()
        await manager.add_stream(name=name, subjects=[name], storage=api.StorageType.FILE)
        try:
            yield name
        finally:
            await manager.delete_stream(name)

    async def _publish(self, subject: str, parts: Iterable[bytes], in_flight: int) -> None:
        """Publish everything, and wait until it is acknowledged."""
        stream = self._writer.jetstream(publish_async_max_pending=in_flight)
        acknowledgements = [await stream.publish_async(subject, part) for part in parts]
        for acknowledgement in acknowledgements:
            await acknowledgement

    async def _subscribe(self, subject: str) -> Any:
        """Let the server push; nothing is acknowledged, and flow control, which costs nats-py dearly, is left out."""
        unacknowledged = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
        return await self._reader.jetstream().subscribe(
            subject, config=unacknowledged, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def _follow(self, subject: str, size: int) -> None:
        subscription = await self._subscribe(subject)
        received = 0
        async for message in subscription.messages:
            received += len(message.data)
            if received >= size:
                break
        await subscription.unsubscribe()
        expect(received, size)

    async def _compare(self, subject: str, unit: bytes, count: int) -> None:
        """Compare what a stream holds, asking for a few messages at a time."""
        unacknowledged = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
        subscription = await self._reader.jetstream().pull_subscribe(subject, "verify", config=unacknowledged)
        content = Content(unit)
        size = count * len(unit)
        while count:
            # It waits for as many as it is asked for.
            batch = await subscription.fetch(min(count, 1000, 8 * MEBIBYTE // len(unit)))
            count -= len(batch)
            for message in batch:
                content.feed(message.data)
        await subscription.unsubscribe()
        content.end(size)

    async def follow(self, size: int) -> float:
        """Publish messages of 1 MiB while they are pushed to another connection."""
        async with self._stream() as subject:
            begin = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(subject, size))
                tasks.create_task(self._publish(subject, pieces(size), self._bulk_in_flight))
            seconds = time.perf_counter() - begin
            await self._compare(subject, DATA, size // MEBIBYTE)
        return seconds

    async def lines(self, count: int) -> float:
        """Publish each line as a message."""
        async with self._stream() as subject:
            begin = time.perf_counter()
            await self._publish(subject, (LINE for _ in range(count)), 4000)
            seconds = time.perf_counter() - begin
            await self._compare(subject, LINE, count)
        return seconds

    async def latencies(self, count: int, pause: float) -> list[float]:
        """Publish one line after the other while they are pushed to another connection."""
        latencies = []
        async with self._stream() as subject:
            subscription = await self._subscribe(subject)
            stream = self._writer.jetstream()
            for _ in range(count):
                await asyncio.sleep(pause)
                begin = time.perf_counter()
                publishing = asyncio.create_task(stream.publish(subject, LINE))
                message = await subscription.next_msg()
                latencies.append(time.perf_counter() - begin)
                if message.data != LINE:
                    raise AssertionError("the reader got something else than the line that was written")
                await publishing
            await subscription.unsubscribe()
        return latencies

    async def delete(self, handle: str) -> None:
        """Delete the object."""
        await self._store.delete(handle)
