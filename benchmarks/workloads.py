"""What is measured: each workload drives the public API against a real server, and proves what it moved."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing

import tailrace
from tailrace_common_api import ResourceState
from tailrace_impl_common import head_of

MESSAGE = 1024 * 1024
LINE = b"x" * 99 + b"\n"


def make_data() -> bytes:
    """Return 1 MiB that does not compress and is the same at every call of one process."""
    return _DATA


_DATA = os.urandom(MESSAGE)


async def upload(url: str, size: int, *, lines: bool = False) -> tuple[float, str]:
    """Upload ``size`` bytes; return the seconds until it was COMPLETED and synced, and the reference."""
    data = make_data()
    async with tailrace.connect(url) as client:
        begin = time.perf_counter()
        async with client.upload("benchmark", lines=lines) as session:
            for _ in range(size // MESSAGE):
                await session.write(data)
        seconds = time.perf_counter() - begin
        status = session.status
        if status.state is not ResourceState.COMPLETED or status.size != size:
            raise AssertionError(f"the upload ended {status.state.name} with {status.size} bytes")
        return seconds, status.reference


async def download(url: str, reference: str, size: int) -> tuple[float, str]:
    """Download a resource; every chunk and the final head are verified on the way."""
    async with tailrace.connect(url) as client, client.open(reference) as resource:
        begin = time.perf_counter()
        received = 0
        async with aclosing(resource.chunks()) as chunks:
            async for chunk in chunks:
                received += len(chunk.data)
        seconds = time.perf_counter() - begin
    if received != size:
        raise AssertionError(f"{received} bytes of {size} arrived")
    return seconds, reference


async def follow_latencies(url: str, count: int, pause: float) -> list[float]:
    """Return the seconds from each write of a 100-byte line to its arrival at a follower on another connection."""
    async with tailrace.connect(url) as writer, tailrace.connect(url) as reader:
        session = writer.upload("benchmark", lines=True)
        await session.open()
        latencies = []
        async with session, reader.open(session.reference) as resource, aclosing(resource.follow()) as pieces:
            for _ in range(count):
                await asyncio.sleep(pause)
                begin = time.perf_counter()
                await session.write(LINE)
                if await anext(pieces) != LINE:
                    raise AssertionError("the follower got something else than the line that was written")
                latencies.append(time.perf_counter() - begin)
    return latencies


async def follow_while_uploading(url: str, size: int) -> tuple[float, str]:
    """Upload while another connection follows; return the seconds until the follower has all, and the reference."""
    async with tailrace.connect(url) as writer, tailrace.connect(url) as reader:
        session = writer.upload("benchmark")
        await session.open()

        async def follow() -> int:
            received = 0
            async with reader.open(session.reference) as resource, aclosing(resource.follow_chunks()) as chunks:
                async for chunk in chunks:
                    received += len(chunk.data)
            return received

        data = make_data()
        begin = time.perf_counter()
        following = asyncio.create_task(follow())
        async with session:
            for _ in range(size // MESSAGE):
                await session.write(data)
        received = await following
        seconds = time.perf_counter() - begin
    if received != size:
        raise AssertionError(f"the follower got {received} bytes of {size}")
    return seconds, session.reference


async def write_lines(url: str, count: int) -> float:
    """Upload ``count`` lines of 100 bytes, one write each; return the seconds until it was COMPLETED."""
    async with tailrace.connect(url) as client:
        begin = time.perf_counter()
        async with client.upload("benchmark", lines=True) as session:
            for _ in range(count):
                await session.write(LINE)
        seconds = time.perf_counter() - begin
    if session.status.lines != count or session.status.head != head_of(LINE * count):
        raise AssertionError(f"{session.status.lines} lines of {count} are stored")
    return seconds


async def delete(url: str, references: list[str]) -> None:
    """Remove resources, so that a run needs no more disk than one round."""
    async with tailrace.connect(url) as client:
        for reference in references:
            await client.delete(reference)
