"""Writing in a thread keeps order, reports errors where they belong, and never holds up the loop."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace_impl_common import DescriptorWriter


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    descriptors = list(os.pipe())
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


async def test_buffers_are_written_in_order_and_seen_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen: list[bytes] = []
    writer = DescriptorWriter(os.open(path, os.O_WRONLY | os.O_CREAT), observe=lambda data: seen.append(bytes(data)))
    pieces: list[bytes | bytearray | memoryview] = [
        b"one",
        bytearray(b"two"),
        memoryview(b"three"),
        os.urandom(3_000_000),
    ]
    for piece in pieces:
        await writer.write(piece)
    await writer.flush()
    assert path.read_bytes() == b"".join(pieces)
    assert seen == [bytes(piece) for piece in pieces]
    await writer.close()


async def test_closing_comes_behind_what_was_handed_in(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = DescriptorWriter(descriptor)
    data = os.urandom(20_000_000)
    await writer.write(data)
    await writer.close()
    assert path.read_bytes() == data
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_the_loop_runs_while_nobody_reads(pipe: list[int]) -> None:
    writer = DescriptorWriter(pipe[1])
    data = os.urandom(1_000_000)
    await writer.write(data)
    flushing = asyncio.create_task(writer.flush())
    received = b""
    while len(received) < len(data):
        # Each turn shows that the loop is free although the writer waits.
        await asyncio.sleep(0)
        received += os.read(pipe[0], 65536)
    await flushing
    assert received == data
    writer.release()


async def test_a_full_pipe_in_non_blocking_mode_is_waited_for(pipe: list[int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = DescriptorWriter(pipe[1])
    data = os.urandom(500_000)
    await writer.write(data)
    received = await asyncio.to_thread(_read_exactly, pipe[0], len(data))
    await writer.flush()
    assert received == data
    writer.release()


def _read_exactly(descriptor: int, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += os.read(descriptor, 65536)
    return received


async def test_an_error_is_raised_by_the_next_call(pipe: list[int]) -> None:
    os.close(pipe[0])
    pipe[0] = os.open(os.devnull, os.O_RDONLY)
    writer = DescriptorWriter(pipe[1])
    await writer.write(b"nobody reads this")
    with pytest.raises(BrokenPipeError):
        await writer.write(b"nor this")
    writer.release()


async def test_an_error_that_nobody_asks_for_is_not_logged(pipe: list[int], caplog: pytest.LogCaptureFixture) -> None:
    os.close(pipe[0])
    pipe[0] = os.open(os.devnull, os.O_RDONLY)
    writer = DescriptorWriter(os.dup(pipe[1]))
    await writer.write(b"nobody reads this")
    await writer.close()
    del writer
    assert caplog.records == []


async def test_a_cancelled_flush_leaves_the_write_alone(pipe: list[int]) -> None:
    writer = DescriptorWriter(pipe[1])
    data = os.urandom(300_000)
    await writer.write(data)
    flushing = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    assert await asyncio.to_thread(_read_exactly, pipe[0], len(data)) == data
    await writer.flush()
    writer.release()
