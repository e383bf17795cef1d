import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import InvalidArgument
from tailrace_impl_common._sources import Source, iter_source, read_pieces

DATA = bytes(range(256)) * 40


async def collect(source: Source, chunk_size: int = 1000) -> bytes:
    pieces = [bytes(piece) async for piece in iter_source(source, chunk_size=chunk_size)]
    assert all(0 < len(piece) <= chunk_size for piece in pieces)
    return b"".join(pieces)


async def trickle(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        await asyncio.sleep(0)
        yield item


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda path: DATA,
    "bytearray": lambda path: bytearray(DATA),
    "memoryview of wide items": lambda path: memoryview(DATA).cast("I"),
    "raw file": lambda path: open(path, "rb", buffering=0),  # noqa: SIM115 - the test closes it
    "buffered file": lambda path: open(path, "rb"),  # noqa: SIM115 - the test closes it
    "object with read only": lambda path: OnlyRead(DATA),
    "list": lambda path: [DATA[:5000], b"", DATA[5000:]],
    "generator": lambda path: (DATA[start : start + 7] for start in range(0, len(DATA), 7)),
    "iterator of other buffers": lambda path: iter([bytearray(DATA[:3]), memoryview(DATA)[3:]]),
    "async generator": lambda path: trickle(DATA[:3000], b"", DATA[3000:]),
}


@pytest.mark.parametrize("name", SOURCES)
async def test_every_source_gives_its_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    source = SOURCES[name](path)
    assert await collect(source) == DATA
    if isinstance(source, io.IOBase):
        assert not source.closed, "the caller's file was closed"
        source.close()


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("async")])
def test_blocking_sources_give_their_bytes_without_a_loop(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    source = SOURCES[name](path)
    pieces = list(read_pieces(source, chunk_size=999))
    assert all(0 < len(piece) <= 999 for piece in pieces)
    assert b"".join(pieces) == DATA
    if isinstance(source, io.IOBase):
        source.close()


@given(items=st.lists(st.binary(max_size=30), max_size=6), chunk_size=st.integers(1, 12))
def test_cutting_loses_nothing(items: list[bytes], chunk_size: int) -> None:
    pieces = list(read_pieces(items, chunk_size=chunk_size))
    assert b"".join(pieces) == b"".join(items)
    assert all(0 < len(piece) <= chunk_size for piece in pieces)


@pytest.mark.parametrize("source", [b"", [], [b""], io.BytesIO(b"")])
async def test_an_empty_source_gives_nothing(source: Source) -> None:
    assert await collect(source) == b""


@pytest.mark.parametrize("source", ["text", ["text"], io.StringIO("text"), 7, None, Path("file"), [7]])
async def test_what_gives_no_bytes_is_refused(source: Any) -> None:
    with pytest.raises(InvalidArgument):
        await collect(source)
    with pytest.raises(InvalidArgument):
        list(read_pieces(source))


async def test_a_non_blocking_file_is_refused() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with (
        open(reading, "rb", buffering=0) as file,
        open(writing, "wb", buffering=0),
        pytest.raises(InvalidArgument, match="non-blocking"),
    ):
        await collect(file)


@pytest.mark.parametrize("buffering", [0, -1])
async def test_a_slow_pipe_is_passed_on_at_once(buffering: int) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=buffering) as source, open(writing, "wb", buffering=0) as sink:
        async with aclosing(iter_source(source, chunk_size=1000)) as pieces:
            for part in (b"a", b"line\n", b"x" * 900):
                sink.write(part)
                assert await anext(pieces) == part
            sink.close()
            with pytest.raises(StopAsyncIteration):
                await anext(pieces)


async def test_what_a_source_raises_comes_after_its_bytes() -> None:
    def failing() -> Iterator[bytes]:
        yield b"good"
        raise OSError(5, "the disk is gone")

    pieces = iter_source(failing())
    assert await anext(pieces) == b"good"
    with pytest.raises(OSError, match="the disk is gone"):
        await anext(pieces)


async def test_reading_ahead_is_bounded_and_ends_with_the_reader() -> None:
    given_out = 0
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        nonlocal given_out
        try:
            while True:
                given_out += 1
                yield b"x"
        finally:
            closed.set()

    pieces = iter_source(endless())
    for taken in range(1, 50):
        await anext(pieces)
        assert given_out <= taken + 2
    await pieces.aclose()
    assert await asyncio.to_thread(closed.wait, 10)
    assert given_out <= 52


async def test_a_buffer_that_is_filled_again_is_not_mixed_up() -> None:
    def refilling() -> Iterator[bytearray]:
        buffer = bytearray(1)
        for value in range(100):
            buffer[0] = value
            yield buffer

    assert await collect(refilling()) == bytes(range(100))


async def test_cancelling_does_not_wait_for_a_read_that_blocks() -> None:
    reading, writing = os.pipe()
    started = threading.Event()

    class Watched(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            started.set()
            return super().read(size) or b""

    with open(writing, "wb", buffering=0) as sink:
        source: BinaryIO = Watched(reading, "rb")
        task = asyncio.create_task(collect(source))
        assert await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        threads = [thread for thread in threading.enumerate() if thread.name == "tailrace-source"]
        assert all(thread.daemon for thread in threads)
        sink.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
        source.close()


async def test_an_async_generator_is_closed_with_the_reader() -> None:
    closed = False

    async def endless() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            while True:
                yield b"x"
        finally:
            closed = True

    pieces = iter_source(endless())
    await anext(pieces)
    await pieces.aclose()
    assert closed
