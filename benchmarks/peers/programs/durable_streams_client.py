"""durable-streams, the Python client of Durable Streams, in its asynchronous form."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from durable_streams import AsyncDurableStream, astream
from xxhash import xxh3_128

from peers.programs.contents import DATA, LINE, Content, expect, hash_of, pieces


class Client:
    """Appends with several calls in flight, which the client gathers into requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._base = f"http://127.0.0.1:{settings['port']}/benchmark"
        self._in_flight: int = settings["in_flight"]
        self._lines_in_flight: int = settings["lines_in_flight"]

    async def _create(self, content_type: str = "application/octet-stream") -> AsyncDurableStream:
        return await AsyncDurableStream.create(f"{self._base}/{uuid.uuid4().hex}", content_type=content_type)

    @staticmethod
    async def _write(handle: AsyncDurableStream, parts: Iterable[bytes], in_flight: int) -> None:
        """Append everything in order, and wait until it is acknowledged."""
        free = asyncio.Semaphore(in_flight)

        async def append(part: bytes) -> None:
            try:
                await handle.append(part)
            finally:
                free.release()

        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                await free.acquire()
                tasks.create_task(append(part))

    async def upload(self, size: int) -> tuple[float, str]:
        """Append pieces of 1 MiB."""
        begin = time.perf_counter()
        handle = await self._create()
        await self._write(handle, pieces(size), self._in_flight)
        seconds = time.perf_counter() - begin
        await handle.aclose()
        return seconds, handle.url

    @staticmethod
    async def _pieces(url: str, live: Any) -> AsyncGenerator[bytes, None]:
        # The server wants an offset with a long poll; without one, this client sends none.
        async with astream(url, offset="-1", live=live) as response:
            async for piece in response:
                yield piece

    async def download(self, handle: str, size: int, verify: bool) -> float:
        """Read until the tail."""
        received = 0
        expected, hasher = hash_of(size), xxh3_128()
        begin = time.perf_counter()
        async with aclosing(self._pieces(handle, False)) as arriving:
            async for piece in arriving:
                received += len(piece)
                if verify:
                    hasher.update(piece)
        if verify and hasher.digest() != expected:
            raise AssertionError("other bytes than those sent arrived")
        seconds = time.perf_counter() - begin
        expect(received, size)
        return seconds

    async def compare(self, handle: str, size: int, unit: bytes = DATA) -> None:
        """Compare every byte."""
        content = Content(unit)
        async with aclosing(self._pieces(handle, False)) as arriving:
            async for piece in arriving:
                content.feed(piece)
        content.end(size)

    async def follow(self, size: int) -> float:
        """Append while another connection reads by long polls."""
        handle = await self._create()

        async def read() -> None:
            received = 0
            async with aclosing(self._pieces(handle.url, "long-poll")) as arriving:
                async for piece in arriving:
                    received += len(piece)
                    if received >= size:
                        break
            expect(received, size)

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            tasks.create_task(self._write(handle, pieces(size), self._in_flight))
        seconds = time.perf_counter() - begin
        await self.compare(handle.url, size)
        await self._remove(handle)
        return seconds

    async def lines(self, count: int) -> float:
        """Append each line by a call of its own."""
        begin = time.perf_counter()
        handle = await self._create("text/plain")
        await self._write(handle, (LINE for _ in range(count)), self._lines_in_flight)
        seconds = time.perf_counter() - begin
        await self.compare(handle.url, count * len(LINE), LINE)
        await self._remove(handle)
        return seconds

    async def latencies(self, count: int, pause: float) -> list[float]:
        """Append one line after the other while another connection reads by long polls."""
        handle = await self._create("text/plain")
        latencies = []
        async with aclosing(self._pieces(handle.url, "long-poll")) as arriving:
            for _ in range(count):
                content = Content(LINE)
                reading = asyncio.create_task(self._next(arriving))
                await asyncio.sleep(pause)
                begin = time.perf_counter()
                appending = asyncio.create_task(handle.append(LINE))
                content.feed(await reading)
                latencies.append(time.perf_counter() - begin)
                await appending
                content.end(len(LINE))
        await self._remove(handle)
        return latencies

    @staticmethod
    async def _next(arriving: AsyncGenerator[bytes, None]) -> bytes:
        async for piece in arriving:
            if piece:
                return piece
        raise AssertionError("the stream ended")

    @staticmethod
    async def _remove(handle: AsyncDurableStream) -> None:
        await handle.delete()
        await handle.aclose()

    async def delete(self, handle: str) -> None:
        """Delete the stream."""
        await AsyncDurableStream.delete_static(handle)
