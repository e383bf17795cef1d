"""What clients do in the rows: the public API against a real server, with what proves that it was done.

The times are the caller's, who puts a meter around what it is to count. Chunk hashes and heads are checked by the
protocol on both sides within it; what is compared besides, byte by byte, is compared outside of it.
"""

from __future__ import annotations

import asyncio
import http.client
import random
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from functools import cache
from urllib.parse import urlsplit

from cases import Meter
from raw_socket import MESSAGE, random_message

import tailrace
from tailrace_common_api import ResourceState, Status
from tailrace_impl_common import ConnectedClient, HeadHasher, head_of

LINE = b"x" * 99 + b"\n"


TEXT = LINE * (MESSAGE // len(LINE)) + LINE[-(MESSAGE % len(LINE)) :]
"""A message of lines."""


@cache
def expected_head(size: int, message: bytes = random_message()) -> bytes:
    """Return the head of ``size`` bytes of a message over and over."""
    hasher = HeadHasher()
    for piece in pieces(size, message):
        hasher.update(piece)
    return hasher.head()


def pieces(size: int, message: bytes = random_message()) -> Iterator[memoryview]:
    """Yield ``size`` bytes in messages."""
    data = memoryview(message)
    for start in range(0, size, MESSAGE):
        yield data[: min(MESSAGE, size - start)]


def check_stored(status: Status, size: int, message: bytes = random_message()) -> None:
    """Prove by its head what is stored."""
    head = expected_head(size, message)
    if status.state is not ResourceState.COMPLETED or status.size != size or status.head != head:
        raise AssertionError(f"the upload ended {status.state.name} with {status.size} bytes of {size}, or others")


def expected_range(start: int, end: int) -> bytes:
    """Return the bytes that a range of a stored resource has."""
    data = random_message()
    whole = data * ((end - start) // MESSAGE + 2)
    return whole[start % MESSAGE : start % MESSAGE + end - start]


async def upload(
    client: ConnectedClient, size: int, message: bytes = random_message(), *, lines: bool = False
) -> Status:
    """Upload; return the status once it is COMPLETED and synced."""
    async with client.upload("benchmark", lines=lines) as session:
        for piece in pieces(size, message):
            await session.write(piece)
    return session.status


@asynccontextmanager
async def connected(url: str, *, verify: bool = True) -> AsyncGenerator[ConnectedClient, None]:
    """Connect, and make the connection: its handshake is not what the rows measure."""
    async with tailrace.connect(url, verify=verify) as client:
        await client.list_page(limit=1)
        yield client


async def store(url: str, size: int) -> str:
    """Upload without being timed; return the reference."""
    async with connected(url) as client:
        status = await upload(client, size)
    check_stored(status, size)
    return status.reference


async def timed_upload(
    url: str, size: int, meter: Meter, message: bytes = random_message(), *, lines: bool = False
) -> str:
    """Upload; return the reference."""
    async with connected(url) as client:
        with meter:
            status = await upload(client, size, message, lines=lines)
    check_stored(status, size, message)
    return status.reference


async def timed_uploads(url: str, size: int, number: int, meter: Meter) -> list[str]:
    """Upload at the same time, each over a connection of its own, ``size`` bytes in all; return the references."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url)) for _ in range(number)]
        with meter:
            statuses = await asyncio.gather(*(upload(client, size // number) for client in clients))
    for status in statuses:
        check_stored(status, size // number)
    return [status.reference for status in statuses]


async def timed_download(url: str, reference: str, size: int, meter: Meter, *, verify: bool = True) -> None:
    """Download; every chunk is verified on the way, unless that is switched off."""
    received = 0
    async with connected(url, verify=verify) as client, client.open(reference) as resource:
        with meter:
            async with aclosing(resource.chunks()) as chunks:
                async for chunk in chunks:
                    received += len(chunk.data)
    if received != size:
        raise AssertionError(f"{received} bytes of {size} arrived")


async def read_through(url: str, reference: str) -> None:
    """Download, so that the system holds what is stored."""
    async with connected(url) as client, client.open(reference) as resource, aclosing(resource.chunks()) as chunks:
        async for _ in chunks:
            pass


async def compare_download(url: str, reference: str, size: int) -> None:
    """Download, and compare each byte with what was uploaded."""
    data = memoryview(random_message() * 6)
    received = 0
    async with connected(url) as client, client.open(reference) as resource, aclosing(resource.chunks()) as chunks:
        async for chunk in chunks:
            begin = received % MESSAGE
            if chunk.offset != received or chunk.data != data[begin : begin + len(chunk.data)]:
                raise AssertionError(f"other bytes than those that were uploaded came from {received} on")
            received += len(chunk.data)
    if received != size:
        raise AssertionError(f"{received} bytes of {size} arrived")


async def timed_follow(url: str, size: int, meter: Meter) -> str:
    """Upload while another connection follows, until that has all; return the reference."""
    async with connected(url) as writer, connected(url) as reader:
        session = writer.upload("benchmark")
        await session.open()

        async def follow() -> int:
            received = 0
            async with reader.open(session.reference) as resource, aclosing(resource.follow_chunks()) as chunks:
                async for chunk in chunks:
                    received += len(chunk.data)
            return received

        with meter:
            following = asyncio.create_task(follow())
            async with session:
                for piece in pieces(size):
                    await session.write(piece)
            received = await following
    check_stored(session.status, size)
    if received != size:
        raise AssertionError(f"the follower got {received} bytes of {size}")
    return session.reference


async def timed_ranges(url: str, reference: str, size: int, length: int, count: int, meter: Meter) -> None:
    """Read ranges at random places, one after the other."""
    places = [random.randrange(size - length) for _ in range(count)]
    async with connected(url) as client, client.open(reference) as resource:
        with meter:
            read = [await resource.read(start, start + length) for start in places]
    for start, data in zip(places, read, strict=True):
        if data != expected_range(start, start + length):
            raise AssertionError(f"the range from {start} has other bytes")


async def timed_lines(url: str, count: int, meter: Meter, *, followed: bool = False) -> str:
    """Upload lines of 100 bytes, a write each, to the end of the upload, or to that of its follower."""
    received = HeadHasher()

    async def follow(reader: ConnectedClient, reference: str) -> None:
        async with reader.open(reference) as resource, aclosing(resource.follow_chunks()) as chunks:
            async for chunk in chunks:
                received.update(chunk.data)

    async with connected(url) as writer, connected(url) as reader:
        session = writer.upload("benchmark", lines=True)
        await session.open()
        with meter:
            following = asyncio.create_task(follow(reader, session.reference)) if followed else None
            async with session:
                for _ in range(count):
                    await session.write(LINE)
            if following is not None:
                await following
    head = head_of(LINE * count)
    if session.status.lines != count or session.status.head != head or (followed and received.head() != head):
        raise AssertionError(f"{session.status.lines} lines of {count} are stored, or the follower has others")
    return session.reference


async def follow_latencies(url: str, count: int, pause: float, meter: Meter) -> list[float]:
    """Return the seconds from each write of a 100-byte line to its arrival at a follower on another connection."""
    async with connected(url) as writer, connected(url) as reader:
        session = writer.upload("benchmark", lines=True)
        await session.open()
        latencies = []
        async with session, reader.open(session.reference) as resource, aclosing(resource.follow()) as arriving:
            # The first one waits for the follower to be there, and is not counted.
            await session.write(LINE)
            if await anext(arriving) != LINE:
                raise AssertionError("the follower got something else than the line that was written")
            with meter:
                for _ in range(count):
                    await asyncio.sleep(pause)
                    begin = time.perf_counter()
                    await session.write(LINE)
                    got = await anext(arriving)
                    latencies.append(time.perf_counter() - begin)
                    if got != LINE:
                        raise AssertionError("the follower got something else than the line that was written")
        await writer.delete(session.reference)
    return latencies


async def delete(url: str, references: list[str]) -> None:
    """Remove resources, so that a run needs no more disk than one round."""
    async with tailrace.connect(url) as client:
        for reference in references:
            await client.delete(reference)


def plain_get(url: str, meter: Meter) -> tuple[int, int]:
    """GET a resource by a blocking client of the standard library; return the status, and how many bytes came."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    with closing(connection):
        connection.connect()
        buffer = memoryview(bytearray(MESSAGE))
        received = 0
        with meter:
            connection.request("GET", parts.path)
            response = connection.getresponse()
            while length := response.readinto(buffer):
                received += length
        return response.status, received
