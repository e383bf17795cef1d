"""Lines: counted, read by number, found by offset, also while the resource grows."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable
from contextlib import aclosing

import pytest
from cells import LASTING_CELLS, Cell, Crossing, StorageKind
from conversations import HandUpload
from manifest import proves
from servers import LocalServer, NewServer

from tailrace_client_download_api import RemoteResource
from tailrace_common_api import (
    InvalidArgument,
    LineAccessDisabled,
    LineRangeNotSatisfiable,
    Position,
    RangeNotSatisfiable,
    ResourceState,
    TailraceError,
)
from tailrace_impl_common import ConnectedClient
from tailrace_server_api import BLOCK_SIZE, Boundary, Buffer, Piece

BLOCKS = 24
"""Full blocks of a resource that is large enough to tell a search from a scan."""


async def uploaded(client: ConnectedClient, data: bytes, *, lines: bool = True) -> RemoteResource:
    """Return a complete resource."""
    async with client.upload("text", lines=lines) as upload:
        await upload.write(data)
    return client.open(upload.id)


def some_text(seed: int, size: int) -> bytes:
    r"""Return text with empty, short and long lines, with ``\r\n`` and ``\r`` among them, without a last ``\n``."""
    chance = random.Random(seed)
    pieces: list[bytes] = []
    total = 0
    while total < size:
        length = chance.choice((0, 0, 1, 7, 80, 300, 5000))
        ending = chance.choice((b"\n", b"\n", b"\r\n", b"\r\r\n", b"\x00\n"))
        pieces.append(b"%d:" % len(pieces) * (length > 2) + b"x" * length + ending)
        total += len(pieces[-1])
    return b"".join(pieces) + b"unterminated"


def split(data: bytes) -> list[bytes]:
    r"""Split at ``\n`` alone, keeping it."""
    parts = [part + b"\n" for part in data.split(b"\n")]
    parts[-1] = parts[-1][:-1]
    return parts if parts[-1] else parts[:-1]


# How many


COUNTS: list[tuple[bytes, int, int]] = [
    (b"", 0, 0),
    (b"\n", 1, 1),
    (b"a", 0, 1),
    (b"a\n", 1, 1),
    (b"a\nb", 1, 2),
    (b"a\r\nb\rc\r\n", 2, 2),
    (b"\n\n\n", 3, 3),
    (b"a\x00\x0b\x0c\x85\xe2\x80\xa8b\n\n", 2, 2),
]


@proves("LIN-1")
async def test_newlines_count_while_it_grows_and_an_unterminated_line_once_it_has_ended(
    client: ConnectedClient,
) -> None:
    for count in COUNTS:
        await check_count(client, *count)


async def check_count(client: ConnectedClient, data: bytes, growing: int, ended: int) -> None:
    completed, failed = client.upload("completed", lines=True), client.upload("failed", lines=True)
    for upload in (completed, failed):
        await upload.open()
        if data:
            await upload.write(data)
            await upload.flush()
        assert (await client.status(upload.id)).lines == growing
        assert (await client.open(upload.id).read_lines()) == split(data)[:growing]
    assert (await completed.finish()).lines == ended
    aborted = await failed.abort("no more")
    assert aborted is not None
    assert (aborted.state, aborted.lines) == (ResourceState.FAILED, ended)
    for upload in (completed, failed):
        assert (await client.status(upload.id)).lines == ended
        assert await client.open(upload.id).read_lines() == split(data)


@proves("LIN-1", "LIN-6")
async def test_without_line_access_there_are_no_lines(client: ConnectedClient) -> None:
    resource = await uploaded(client, b"a\nb\n", lines=False)
    assert (await resource.status()).lines is None
    with pytest.raises(LineAccessDisabled) as caught:
        await resource.read_lines()
    assert caught.value.id == resource.id
    with pytest.raises(LineAccessDisabled):
        await resource.read_lines(last=1)
    with pytest.raises(LineAccessDisabled):
        await resource.read_lines(last=0)
    with pytest.raises(LineAccessDisabled):
        await resource.locate_line(0)
    with pytest.raises(LineAccessDisabled):
        await resource.locate_offset(0)
    with pytest.raises(LineAccessDisabled):
        async with aclosing(resource.follow(last_lines=1)) as follower:
            await anext(follower)
    assert await resource.read() == b"a\nb\n"


# Which


@proves("LIN-2", "LIN-3")
async def test_any_range_of_lines_is_exactly_these_lines(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    data = some_text(1, 3 * BLOCK_SIZE)
    lines = split(data)
    async with uploader.upload("text", lines=True) as upload:
        await upload.write(data)
    assert upload.status.lines == len(lines)
    chance = random.Random(2)
    async with reader.open(upload.id) as resource:
        assert await resource.read_lines() == lines
        assert b"".join(await resource.read_lines()) == data
        for _ in range(25):
            first = chance.randint(0, len(lines))
            count = chance.choice((0, 1, 2, 100, len(lines)))
            assert await resource.read_lines(first, count) == lines[first : first + count]
            assert await resource.read_lines(last=count) == lines[len(lines) - count :]
            position = await resource.locate_line(first)
            assert position == Position(first, sum(map(len, lines[:first])))


@proves("LIN-2", "LIN-1", "RES-5")
async def test_lines_are_whole_at_any_moment_of_the_growth(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    data = some_text(3, 200_000)
    lines = split(data)
    chance = random.Random(4)
    async with uploader.upload("text", lines=True) as upload, reader.open(upload.id) as resource:

        async def read_what_is_new() -> list[bytes]:
            collected: list[bytes] = []
            async with aclosing(resource.statuses()) as statuses:
                async for status in statuses:
                    new = await resource.read_lines(len(collected))
                    if not status.state.terminal:
                        # It may have ended between the status and the request.
                        assert [line for line in new if not line.endswith(b"\n")] in ([], [b"unterminated"])
                    collected += new
                    assert collected == lines[: len(collected)]
            return collected

        async def read_last() -> None:
            while not (await resource.status()).state.terminal:
                last = await resource.read_lines(last=2)
                for line in last:
                    assert line in known
                await asyncio.sleep(0)

        known = set(lines)
        reading = asyncio.create_task(read_what_is_new())
        second = asyncio.create_task(read_last())
        position = 0
        while position < len(data):
            end = position + chance.choice((1, 2, 100, 5001, 30_000))
            await upload.write(data[position:end])
            position = end
            if chance.random() < 0.7:
                # Announcements fall into the middle of lines, between \r and \n too.
                await upload.flush()
        await upload.finish()
        assert await reading == lines
        await second


@proves("LIN-2", "LIN-1")
async def test_what_is_stored_beyond_the_announced_size_is_in_no_line(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(checkpoint_interval=3600.0, upload_window=2**20)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection, lines=True)
    await upload.chunk(b"one\ntwo\nthr")
    await upload.announced(11)
    # It completes the third line, and more than a block behind it is full: all of it is stored and not announced.
    granted = upload.until
    await upload.chunk(b"ee\n" + b"later\n" * 50_000)
    await upload.granted(granted + 1)
    async with client.open(upload.id) as resource:
        status = await resource.status()
        assert (status.size, status.lines) == (11, 2)
        assert await resource.read_lines() == [b"one\n", b"two\n"]
        assert await resource.read_lines(1, 10) == [b"two\n"]
        assert await resource.read_lines(last=1) == [b"two\n"]
        assert await resource.read_lines(2) == []
        assert await resource.locate_line(2) == Position(2, 8)
        assert await resource.locate_offset(10) == Position(2, 8)
        with pytest.raises(LineRangeNotSatisfiable) as caught:
            await resource.read_lines(3, 1)
        assert caught.value.lines == 2
        with pytest.raises(LineRangeNotSatisfiable):
            await resource.locate_line(3)
        async with aclosing(resource.follow(last_lines=1)) as follower:
            assert await anext(follower) == b"two\nthr"
        finished = await upload.finished()
        assert finished.status is not None
        assert finished.status.lines == 50_003
        assert await resource.read_lines(2, 2) == [b"three\n", b"later\n"]


@proves("LIN-3")
async def test_the_last_lines_are_found_in_one_request(client: ConnectedClient) -> None:
    upload = client.upload("text", lines=True)
    await upload.open()
    resource = client.open(upload.id)
    assert await resource.read_lines(last=5) == []
    await upload.write(b"one\ntwo\nthr")
    await upload.flush()
    assert await resource.read_lines(last=1) == [b"two\n"]
    assert await resource.read_lines(last=5) == [b"one\n", b"two\n"]
    assert await resource.read_lines(last=0) == []
    await upload.finish()
    assert await resource.read_lines(last=1) == [b"thr"]
    assert await resource.read_lines(last=2) == [b"two\n", b"thr"]
    assert await resource.read_lines(last=2**53 - 1) == [b"one\n", b"two\n", b"thr"]


@proves("LIN-3")
async def test_offsets_of_lines_and_lines_of_offsets(client: ConnectedClient) -> None:
    # Lines that end at a block boundary, in front of it and behind it, and one that spans several blocks.
    data = b"\n" + b"a" * (BLOCK_SIZE - 2) + b"\n" + b"b" * (BLOCK_SIZE - 1) + b"\n" + b"c" * (3 * BLOCK_SIZE) + b"\nd"
    resource = await uploaded(client, data)
    starts = [0, 1, BLOCK_SIZE, 2 * BLOCK_SIZE, 5 * BLOCK_SIZE + 1, len(data)]
    for line, start in enumerate(starts):
        assert await resource.locate_line(line) == Position(line, start)
    for line, (start, end) in enumerate(itertools.pairwise(starts)):
        for offset in {start, (start + end) // 2, end - 1}:
            assert await resource.locate_offset(offset) == Position(line, start)
    assert await resource.read_lines(1, 2) == [data[1:BLOCK_SIZE], data[BLOCK_SIZE : 2 * BLOCK_SIZE]]


# At what cost


class ReadingMeter:
    """Counts what a server reads of the stored bytes, and of the index."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tailrace_impl_server import _filesystem_reader
        from tailrace_impl_server._pieces import PieceSource

        self.bytes = self.lookups = self.furthest = 0
        try_read, read, search = (
            PieceSource.try_read,
            PieceSource._read_for_all,
            vars(_filesystem_reader)["search_newline"],
        )

        def count(start: int, piece: Piece | None) -> None:
            if piece is not None:
                self.bytes += len(piece.data)
                self.furthest = max(self.furthest, start + len(piece.data))

        def counted(source: PieceSource, start: int, end: int) -> Piece | None:
            piece = try_read(source, start, end)
            count(start, piece)
            return piece

        async def counted_wait(source: PieceSource, start: int, end: int) -> Piece:
            piece = await read(source, start, end)
            count(start, piece)
            return piece

        def counted_search(newlines: int, blocks: int, read_records: Callable[[int, int], Buffer]) -> Boundary:
            def counted_look(block: int, count: int) -> Buffer:
                self.lookups += 1
                return read_records(block, count)

            found: Boundary = search(newlines, blocks, counted_look)
            return found

        monkeypatch.setattr(PieceSource, "try_read", counted)
        monkeypatch.setattr(PieceSource, "_read_for_all", counted_wait)
        monkeypatch.setattr(_filesystem_reader, "search_newline", counted_search)


@proves("LIN-4")
@pytest.mark.parametrize("kind", ["short lines", "long lines"])
async def test_finding_a_line_scans_one_block_per_end(
    new_server: NewServer, cell: Cell, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # Without recent bytes in memory: they come from the storage.
    server = await new_server(tail_bytes=0, tails_total=0)
    client = server.connect(cell.transport)
    line = b"0123456\n" if kind == "short lines" else b"x" * (2 * BLOCK_SIZE) + b"\n"
    data = line * (BLOCKS * BLOCK_SIZE // len(line))
    resource = await uploaded(client, data)
    count = len(data) // len(line)
    meter = ReadingMeter(monkeypatch)
    for first in (0, count // 3, count - 2):
        meter.bytes = meter.lookups = 0
        assert await resource.read_lines(first, 2) == [line, line]
        assert meter.bytes <= 2 * BLOCK_SIZE + 2 * len(line)
        assert meter.lookups <= 2 * (math.ceil(math.log2(BLOCKS)) + 1)
        meter.bytes = meter.lookups = 0
        assert await resource.locate_line(first) == Position(first, first * len(line))
        assert (await resource.locate_offset(first * len(line) + 3)).line == first
        assert meter.bytes <= 4 * BLOCK_SIZE
        assert meter.lookups <= 3 * (math.ceil(math.log2(BLOCKS)) + 1)
    meter.bytes = 0
    assert await resource.read_lines(last=1) == [line]
    assert meter.bytes <= 2 * BLOCK_SIZE + len(line)
    if cell.storage is StorageKind.FILESYSTEM:
        assert meter.lookups > 0


@pytest.mark.cells(LASTING_CELLS)
@proves("LIN-4")
@pytest.mark.parametrize("arrival", ["at once", "line by line"])
async def test_the_index_stays_below_a_thousandth_whatever_the_arrival(
    server: LocalServer, client: ConnectedClient, arrival: str
) -> None:
    data = b"a line of forty bytes, newline and all.\n" * (4 * BLOCK_SIZE // 40)
    async with client.upload("text", lines=True) as upload:
        if arrival == "at once":
            await upload.write(data)
        else:
            for position in range(0, len(data), 40):
                await upload.write(data[position : position + 40])
                if position % 8000 == 0:
                    await upload.flush()
    assert server.data is not None
    (folder,) = [path for path in server.data.rglob(upload.id) if path.is_dir()]
    assert (folder / "data").stat().st_size == len(data)
    assert (folder / "journal").stat().st_size <= 12_288 + 0.001 * len(data)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= len(data) + 16_384 + 0.001 * len(data)


@proves("LIN-5", "INT-3")
@pytest.mark.parametrize("kind", ["one huge line", "very many lines"])
async def test_answers_are_streamed_within_the_window(
    new_server: NewServer, cell: Cell, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    window, chunk = 64 * 1024, 32 * 1024
    server = await new_server(chunk_size=chunk)
    client = server.connect(cell.transport, download_window=window)
    data = b"x" * 4_000_000 if kind == "one huge line" else b"\n" * 1_000_000
    resource = await uploaded(client, data + b"\nshort\n")
    first, count = (0, 1) if kind == "one huge line" else (0, 1_000_000)
    meter = ReadingMeter(monkeypatch)
    total = 0
    async with aclosing(resource.line_chunks(first, count)) as chunks:
        async for piece in chunks:
            assert len(piece.data) <= chunk
            assert bytes(piece.data) == data[total : total + len(piece.data)] + b"\n" * (
                total + len(piece.data) > len(data)
            )
            if total == 0:
                # The index was asked where the end is, which is a block in front of it.
                meter.furthest = 0
                for _ in range(5):
                    await client.status(resource.id)
                assert meter.furthest <= 2 * window + 2 * chunk
            total += len(piece.data)
    assert total == len(data) + (kind == "one huge line")
    assert await resource.read_lines(last=1) == [b"short\n"]


# What is refused


@proves("LIN-6")
async def test_requests_out_of_range_are_typed_errors(client: ConnectedClient) -> None:
    resource = await uploaded(client, b"a\nb\nc")
    assert await resource.read_lines(0, 0) == []
    assert await resource.read_lines(3, 0) == []
    assert await resource.read_lines(3) == []
    assert await resource.read_lines(1, 2**53 - 1) == [b"b\n", b"c"]
    for first, count in ((4, None), (4, 0), (2**53 - 1, 1), (-1, None), (0, -1), (3, -1)):
        with pytest.raises(TailraceError) as caught:
            await resource.read_lines(first, count)
        assert isinstance(caught.value, LineRangeNotSatisfiable), (first, count)
        assert (caught.value.first, caught.value.count, caught.value.lines) == (first, count, 3)
    with pytest.raises(InvalidArgument) as refused:
        await resource.read_lines(last=-1)
    assert refused.value.field == "last_lines"
    with pytest.raises(InvalidArgument):
        await resource.read_lines(0, last=1)
    for line in (4, -1):
        with pytest.raises(LineRangeNotSatisfiable):
            await resource.locate_line(line)
    for offset in (6, -1):
        with pytest.raises(RangeNotSatisfiable):
            await resource.locate_offset(offset)
    assert await resource.read_lines(last=1) == [b"c"]
