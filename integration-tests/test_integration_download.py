"""Reading: statuses, ranges, verification, concurrency, slow readers, files, and plain HTTP."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from blocking import BlockingClient, running_server
from cells import LASTING_CELLS, WEBSOCKET_CELLS, Cell, Crossing
from conversations import Conversation, eventually
from manifest import proves
from server_process import DEADLINE
from servers import LocalServer, NewServer
from wiretap import Wiretap

from tailrace_client_download_api import RemoteResource
from tailrace_common_api import (
    Checkpoint,
    FromOffset,
    IntegrityError,
    InvalidArgument,
    LastBytes,
    NotFound,
    RangeNotSatisfiable,
    ResourceState,
    Status,
    TailraceError,
)
from tailrace_impl_common import ConnectedClient, chunk_hash, head_of
from tailrace_impl_common.messages import Chunk, End, Follow, Read, ServerMessage, Started, Watch, Watched, Window

DATA = bytes(range(256)) * 1200
"""Two full blocks and a part of the third."""


async def uploaded(client: ConnectedClient, data: bytes = DATA, *, lines: bool = False) -> RemoteResource:
    """Return a complete resource."""
    async with client.upload("data", lines=lines) as upload:
        await upload.write(data)
    return client.open(upload.id)


# Statuses


@proves("DWN-1", "RES-3")
async def test_the_latest_status_comes_first_and_the_terminal_one_always_and_last(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    upload = uploader.upload("a")
    await upload.open()

    async def watch() -> list[Status]:
        async with aclosing(reader.open(upload.id).statuses()) as statuses:
            return [status async for status in statuses]

    watching = []
    for number in range(40):
        # Somebody registers at every moment of a change.
        watching.append(asyncio.create_task(watch()))
        await upload.write(b"x")
        if number % 4 == 0:
            await upload.flush()
        else:
            await asyncio.sleep(0)
    final = await upload.finish()
    watching.append(asyncio.create_task(watch()))
    for seen in await asyncio.gather(*watching):
        versions = [status.version for status in seen]
        assert versions == sorted(set(versions))
        assert [status.state.terminal for status in seen] == [False] * (len(seen) - 1) + [True]
        assert (seen[-1].version, seen[-1].size, seen[-1].head) == (final.version, 40, final.head)
    assert len(await watching[-1]) == 1


@proves("DWN-1")
async def test_a_slow_watcher_skips_but_never_goes_back(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    async with aclosing(client.open(upload.id).statuses()) as statuses:
        first = await anext(statuses)
        for _ in range(200):
            await upload.write(b"x")
            await upload.flush()
        final = await upload.finish()
        rest = [status async for status in statuses]
    assert first.version < rest[0].version
    assert [status.version for status in rest] == sorted({status.version for status in rest})
    assert rest[-1].version == final.version


@proves("DWN-1")
async def test_a_watcher_of_a_failed_resource_sees_the_failure(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    conversation = await Conversation.begin(client.connection, Watch(id=upload.id))
    assert (await conversation.receive(Status)).state is ResourceState.INITIATED
    await upload.abort("because")
    last = await conversation.receive(Status)
    assert (last.state, last.reason) == (ResourceState.FAILED, "because")
    assert [type(message) for message in await conversation.rest()] == [Watched]
    await conversation.close()


# Ranges


@proves("DWN-2", "RES-5")
async def test_any_range_can_be_read_in_any_state(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    async def check(resource: RemoteResource, data: bytes, state: ResourceState) -> None:
        size = len(data)
        assert (await resource.status()).state is state
        edges = sorted({0, min(1, size), size // 3, min(131_072, size), min(131_073, size), max(0, size - 1), size})
        for start in edges:
            for end in edges:
                if start <= end:
                    assert await resource.read(start, end) == data[start:end]
            assert await resource.read(start) == data[start:]
        bad: list[tuple[int, int | None]] = [(0, size + 1), (size + 1, size + 1), (size, size + 5)]
        for first, last in (*bad, (-1, 1), (2, 1), (size + 1, None)):
            with pytest.raises(RangeNotSatisfiable) as caught:
                await resource.read(first, last)
            assert (caught.value.start, caught.value.end, caught.value.size) == (first, last, size)

    for ending in ("complete", "fail"):
        upload = uploader.upload(ending)
        await upload.open()
        resource = reader.open(upload.id)
        await check(resource, b"", ResourceState.INITIATED)
        await upload.write(DATA)
        await upload.flush()
        await check(resource, DATA, ResourceState.IN_PROGRESS)
        if ending == "complete":
            await upload.finish()
            await check(resource, DATA, ResourceState.COMPLETED)
        else:
            await upload.abort("wanted")
            await check(resource, DATA, ResourceState.FAILED)


@proves("DWN-3")
async def test_suffix_and_open_ranges(client: ConnectedClient) -> None:
    resource = await uploaded(client)
    size = len(DATA)
    assert await resource.read_last(10) == DATA[-10:]
    assert await resource.read_last(0) == b""
    assert await resource.read_last(size) == await resource.read_last(size * 2) == DATA
    assert await resource.read(size - 7) == DATA[-7:]
    assert await resource.read(size) == b""
    with pytest.raises(InvalidArgument):
        await resource.read_last(-1)
    conversation = await Conversation.begin(client.connection, Read(id=resource.id, suffix=-1))
    assert isinstance(await conversation.error(), InvalidArgument)
    await conversation.close()
    live = client.upload("live")
    await live.open()
    growing = client.open(live.id)
    assert await growing.read_last(5) == b""
    await live.write(b"0123456789")
    await live.flush()
    assert await growing.read_last(5) == b"56789"
    assert await growing.read(8) == b"89"
    await live.finish()


# Verification


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


class Tampering:
    """Changes the chunks of one download."""

    def __init__(self, how: str, place: int) -> None:
        self.how = how
        self.place = place
        self.seen = 0
        self.last: Chunk | None = None

    def __call__(self, message: ServerMessage) -> tuple[ServerMessage, ...]:
        if not isinstance(message, Chunk):
            return (message,)
        number = self.seen
        self.seen += 1
        before, self.last = self.last, message
        if number != self.place:
            if self.how == "exchanged" and number == self.place + 1:
                assert before is not None
                return (message, before)
            return (message,)
        data = bytes(message.data)
        match self.how:
            case "corrupted":
                return (message._replace(data=_flip(data)),)
            case "forged":
                # With a hash that fits: only the chain, or the head, can tell.
                return (message._replace(data=_flip(data), hash=chunk_hash(_flip(data))),)
            case "lost" | "exchanged":
                return ()
            case "repeated":
                return (message, message)
            case "shortened":
                return (message._replace(data=data[:-1], hash=chunk_hash(data[:-1]), checkpoint=None),)
        raise AssertionError(self.how)


@proves("DWN-6", "INT-2", "INT-1")
@pytest.mark.parametrize("how", ["corrupted", "forged", "lost", "exchanged", "repeated", "shortened"])
@pytest.mark.parametrize("place", [0, 2, 4], ids=["first", "middle", "last"])
async def test_no_bad_chunk_reaches_the_caller(new_server: NewServer, cell: Cell, how: str, place: int) -> None:
    if how == "exchanged":
        # With the one behind it, which the last one does not have.
        place = min(place, 3)
    server = await new_server(chunk_size=4096)
    client = server.connect(cell.transport)
    data = os.urandom(5 * 4096)
    resource = await uploaded(client, data)
    tap = Wiretap(client.connection)
    tap.inbound = Tampering(how, place)
    received = bytearray()

    async def read() -> None:
        async with aclosing(tap.client().open(resource.id).chunks()) as chunks:
            async for chunk in chunks:
                received.extend(chunk.data)

    with pytest.raises(IntegrityError) as caught:
        await read()
    assert caught.value.offset <= len(received)
    if how != "forged":
        # A chunk whose hash was made to fit is no accident; the chain, or the head, tells that it was there.
        assert received == data[: len(received)]
        assert how == "repeated" or len(received) < len(data)
    # The next reader of the same connection gets it right.
    assert await resource.read() == data


@proves("DWN-6", "INT-2")
async def test_a_stream_that_is_cut_off_is_an_error(client: ConnectedClient) -> None:
    resource = await uploaded(client)
    tap = Wiretap(client.connection)

    def cut(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, End):
            return ()
        return (message,)

    tap.inbound = cut
    with pytest.raises(TailraceError):
        await tap.client().open(resource.id).read()

    def earlier(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, End):
            return (End(offset=message.offset - 1, previous=message.previous, status=message.status),)
        return (message,)

    tap.inbound = earlier
    with pytest.raises(IntegrityError):
        await tap.client().open(resource.id).read()

    def other(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, End):
            return (End(offset=message.offset, previous=bytes(8), status=message.status),)
        return (message,)

    tap.inbound = other
    with pytest.raises(IntegrityError):
        await tap.client().open(resource.id).read()


@proves("DWN-6", "INT-3")
async def test_chunks_that_a_reader_keeps_stay_what_they_are(client: ConnectedClient) -> None:
    data = b"".join(bytes([number]) * (1 << 20) for number in range(8))
    resource = await uploaded(client, data)
    async with aclosing(resource.chunks()) as chunks:
        kept = [chunk.data async for chunk in chunks]
    assert len(kept) > 1
    assert b"".join(kept) == data


@proves("DWN-6", "CHK-1")
async def test_data_streams_carry_checkpoints_in_band(client: ConnectedClient) -> None:
    upload = client.upload("a", lines=True)
    await upload.open()
    sent = b""
    seen: list[Checkpoint] = []
    async with aclosing(client.open(upload.id).follow_chunks()) as chunks:
        for number in range(10):
            piece = b"line %d\n" % number
            await upload.write(piece)
            await upload.flush()
            sent += piece
            while not seen or seen[-1].size < len(sent):
                chunk = await anext(chunks)
                assert chunk.checkpoint is not None
                assert chunk.checkpoint.size == chunk.offset + len(chunk.data)
                seen.append(chunk.checkpoint)
        await upload.finish()
        assert [chunk async for chunk in chunks] == []
    for checkpoint in seen:
        assert checkpoint.head == head_of(sent[: checkpoint.size])
        assert checkpoint.newlines == sent[: checkpoint.size].count(b"\n")


@proves("DWN-6")
async def test_a_wrong_checkpoint_is_noticed(client: ConnectedClient) -> None:
    resource = await uploaded(client)
    tap = Wiretap(client.connection)
    wrong = head_of(b"something else")

    def lie(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, Chunk) and message.checkpoint is not None:
            return (message._replace(checkpoint=Checkpoint(message.checkpoint.size, 0, wrong)),)
        return (message,)

    tap.inbound = lie
    with pytest.raises(IntegrityError):
        await tap.client().open(resource.id).read()

    def lie_at_the_end(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, Chunk):
            return (message._replace(checkpoint=None),)
        if isinstance(message, End):
            status = Status(**{**{name: getattr(message.status, name) for name in Status.__slots__}, "head": wrong})
            return (End(offset=message.offset, previous=message.previous, status=status),)
        return (message,)

    tap.inbound = lie_at_the_end
    with pytest.raises(IntegrityError):
        await tap.client().open(resource.id).read()


# Concurrency


@proves("DWN-7")
async def test_requests_on_one_connection_are_concurrent(client: ConnectedClient) -> None:
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    resource = await uploaded(client, text, lines=True)
    live = client.upload("live", lines=True)
    await live.open()
    followed = bytearray()

    async def follow() -> None:
        async for piece in client.open(live.id).follow():
            followed.extend(piece)

    following = asyncio.create_task(follow())
    ranges = [resource.read(start, start + 50_000) for start in range(0, 150_000, 10_000)]
    lines = [resource.read_lines(first, 100) for first in range(0, 20_000, 2_000)]
    async with asyncio.TaskGroup() as group:
        results = [group.create_task(_first(reading)) for reading in (*ranges, *lines)]
        for number in range(50):
            await live.write(b"live %d\n" % number)
            await live.flush()
    assert [result.result() for result in results[:15]] == [
        text[start : start + 50_000] for start in range(0, 150_000, 10_000)
    ]
    for number, result in enumerate(results[15:]):
        assert result.result() == [b"line %d\n" % line for line in range(number * 2_000, number * 2_000 + 100)]
    await live.finish()
    await following
    assert followed == b"".join(b"live %d\n" % number for number in range(50))


async def _first(reading: object) -> object:
    return await reading  # type: ignore[misc]  # any coroutine


@proves("DWN-7", "CON-2")
async def test_each_request_can_be_cancelled_alone(server: LocalServer, client: ConnectedClient) -> None:
    live = client.upload("live")
    await live.open()
    await live.write(b"first")
    await live.flush()
    resource = client.open(live.id)
    kept, dropped, watched = resource.follow(), resource.follow(), resource.statuses()
    assert await anext(kept) == await anext(dropped) == b"first"
    await anext(watched)
    cancelled = asyncio.ensure_future(anext(dropped))
    waiting = asyncio.ensure_future(anext(kept))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await dropped.aclose()
    await watched.aclose()
    await live.write(b"second")
    assert await waiting == b"second"
    assert await resource.read() == b"firstsecond"
    await live.finish()
    assert [piece async for piece in kept] == []
    # The server has let go of all of them: nobody reads any more.
    await eventually(lambda: not _readers(server))


def _readers(server: LocalServer) -> int:
    registry = server.manager._registry  # type: ignore[attr-defined]  # there is no public count
    return sum(live.pieces.readers for live in registry)


# Slow readers


@proves("DWN-8", "RES-5")
async def test_a_reader_that_stops_holds_up_nobody_and_catches_up(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(
        chunk_size=16 * 1024, upload_window=64 * 1024, tail_bytes=64 * 1024, tails_total=128 * 1024
    )
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    upload = other.upload("a")
    await upload.open()
    window = 32 * 1024
    stopped = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=window))
    await stopped.receive(Started)
    data = os.urandom(1024) * 1500
    followed = bytearray()

    async def follow() -> None:
        async for piece in other.open(upload.id).follow():
            followed.extend(piece)

    following = asyncio.create_task(follow())
    for start in range(0, len(data), 10_000):
        await upload.write(data[start : start + 10_000])
    await upload.finish()
    await following
    assert followed == data
    # The stopped reader was sent what it had granted, and one chunk at most beyond that.
    received = bytearray()
    while len(received) < window:
        chunk = await stopped.receive(Chunk)
        assert chunk.offset == len(received)
        received.extend(chunk.data)
    assert len(received) < window + 16 * 1024
    # On the same connection others read undisturbed, and the server holds no more than it was told to.
    assert await client.open(upload.id).read(1000, 2000) == data[1000:2000]
    assert server.manager._registry.tails.used <= 128 * 1024  # type: ignore[attr-defined]  # there is no public figure
    pending = asyncio.ensure_future(stopped.receive(Chunk))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not pending.done()
    await stopped.send(Window(len(data)))
    received.extend((await pending).data)
    for message in await stopped.rest():
        if isinstance(message, Chunk):
            received.extend(message.data)
    assert received == data
    await stopped.close()


@proves("DWN-2", "DWN-4", "LIM-2")
async def test_a_window_above_the_servers_largest_is_left_to_the_transport(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(max_download_window=64 * 1024)
    client = server.connect(cell.transport, download_window=64 * 1024 + 1)
    data = bytes(range(256)) * 2000
    resource = await uploaded(client, data)
    assert await resource.read() == data
    assert await resource.read(100, 400_000) == data[100:400_000]
    assert b"".join([piece async for piece in resource.follow()]) == data
    async with server.connect(cell.transport, download_window=64 * 1024 + 1).open(resource.id) as another:
        assert b"".join([piece async for piece in another.follow()]) == data


@pytest.mark.parametrize(
    ("wanted", "sent"), [(2_000, 2_000), (1, 1024), (1023, 1024), (200_000, 200_000), (3_000_000, 256 * 1024)]
)
@proves("DWN-2", "DWN-4", "LIM-2")
async def test_chunks_have_the_size_that_suits_the_reader_within_the_servers_limit(
    new_server: NewServer, cell: Cell, wanted: int, sent: int
) -> None:
    server = await new_server(chunk_size=256 * 1024)
    data = bytes(range(256)) * 4_000
    resource = await uploaded(server.connect(cell.transport), data)
    reader = server.connect(cell.transport, chunk_size=wanted).open(resource.id)
    count = min(5 * sent, len(data))
    for chunks, expected in (
        (reader.chunks(0, count), data[:count]),
        (reader.last_chunks(count), data[-count:]),
        (reader.follow_chunks(LastBytes(count)), data[-count:]),
    ):
        pieces = [bytes(chunk.data) async for chunk in chunks]
        assert b"".join(pieces) == expected
        assert max(map(len, pieces)) == sent


@pytest.mark.cells(LASTING_CELLS)
@proves("DWN-8", "INT-3")
async def test_memory_does_not_depend_on_the_size_of_a_resource(new_server: NewServer, cell: Cell) -> None:
    settings = {
        "chunk_size": 64 * 1024,
        "upload_window": 256 * 1024,
        "tail_bytes": 128 * 1024,
        "tails_total": 1024 * 1024,
    }
    server = await new_server(**settings)
    client = server.connect(cell.transport, download_window=256 * 1024, chunk_size=64 * 1024)
    piece = os.urandom(64 * 1024)
    pieces = 400
    upload = client.upload("large")
    await upload.open()
    stopped = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=64 * 1024))
    await stopped.receive(Started)
    read = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(pieces):
            await upload.write(piece)
        await upload.finish()
        async with aclosing(client.open(upload.id).chunks()) as chunks:
            async for chunk in chunks:
                read += len(chunk.data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await stopped.close()
    assert read == upload.status.size == pieces * len(piece)
    # 25 MiB went up and down; windows, tails and buffers of both sides together are a small part of that.
    assert peak - before < 8 * 1024 * 1024


@pytest.mark.cells(LASTING_CELLS)
@proves("DWN-8", "RES-8")
async def test_files_are_closed_when_nobody_uses_them(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(tail_bytes=0)
    client = server.connect(cell.transport)
    resources = [await uploaded(client, b"%d" % number * 1000) for number in range(12)]
    for resource in resources:
        assert len(await resource.read()) >= 1000
        follower = resource.follow()
        await anext(follower)
        await follower.aclose()
        with pytest.raises(RangeNotSatisfiable):
            await resource.read(0, 10_000)
    for resource in resources:
        await resource.delete()
    assert server.data is not None
    await eventually(lambda: not _open_files(server.data))


def _open_files(folder: Path | None) -> list[str]:
    """Return the files of deleted resources that this process still holds open."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith(f"{folder}/") and "(deleted)" in target:
            found.append(target)
    return found


# What the client offers


@proves("DWN-9", "DWN-6")
async def test_saving_continues_a_partial_file_that_is_proven(client: ConnectedClient, tmp_path: Path) -> None:
    resource = await uploaded(client)
    path = tmp_path / "saved"
    progress: list[int] = []
    status = await resource.save(path, progress=progress.append)
    assert path.read_bytes() == DATA
    assert (status.size, status.head) == (len(DATA), head_of(DATA))
    assert progress[-1] == len(DATA)
    with open(path, "r+b") as file:
        file.truncate(200_001)
    progress.clear()
    await resource.save(path, progress=progress.append)
    assert path.read_bytes() == DATA
    assert progress[0] == 200_001
    await resource.save(path)
    assert path.read_bytes() == DATA
    for other in (b"x" + DATA[1:1000], DATA + b"more"):
        path.write_bytes(other)
        with pytest.raises(IntegrityError):
            await resource.save(path)
        assert path.read_bytes() == other
    with pytest.raises(NotFound):
        await client.open("0" * 32).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@proves("DWN-9")
async def test_async_iteration_gives_bytes_chunks_and_lines(client: ConnectedClient) -> None:
    resource = await uploaded(client, b"one\r\ntwo\nthree", lines=True)
    async with aclosing(resource.chunks(4, 9)) as chunks:
        assert b"".join([bytes(chunk.data) async for chunk in chunks]) == b"\ntwo\n"
    async with aclosing(resource.lines()) as lines:
        assert [line async for line in lines] == [b"one\r\n", b"two\n", b"three"]
    async with aclosing(resource.follow(10)) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"hree"


@pytest.fixture
def blocking_client(cell: Cell, tmp_path: Path) -> Iterator[BlockingClient]:
    """A client for blocking code; its server runs in another thread."""
    with running_server(cell, tmp_path, {}) as server:
        client = server.connect()
        yield client
        client.close()


@proves("DWN-9", "USE-4")
def test_a_resource_is_a_seekable_file(blocking_client: BlockingClient, tmp_path: Path) -> None:
    text = "".join(f"Zeile {number} – grün\n" for number in range(20_000))
    data = text.encode()
    with blocking_client.upload("text.txt", lines=True) as upload:
        for start in range(0, len(data), 50_000):
            upload.write(data[start : start + 50_000])
    with blocking_client.open(upload.reference) as resource:
        with resource.file() as file, open(tmp_path / "copy", "wb") as copy:
            shutil.copyfileobj(file, copy)
        assert (tmp_path / "copy").read_bytes() == data
        with io.TextIOWrapper(resource.file(), encoding="utf-8", newline="") as lines:
            assert "".join(lines) == text
        with resource.file() as file:
            assert file.seekable()
            assert not file.writable()
            assert file.seek(-20, os.SEEK_END) == len(data) - 20
            assert file.read() == data[-20:]
            assert file.read(1) == b""
            file.seek(300_000)
            assert file.read(10) == data[300_000:300_010]
            assert file.tell() == 300_010
            file.seek(5, os.SEEK_CUR)
            assert file.readline() == data[300_015 : data.index(b"\n", 300_015) + 1]
        assert b"".join(resource.follow(last_bytes=100)) == data[-100:]
        resource.save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == data


@proves("DWN-9")
def test_a_compressed_resource_is_read_through_gzip(blocking_client: BlockingClient) -> None:
    content = os.urandom(1000) * 500
    with blocking_client.upload("data.gz") as upload, gzip.open(_Writer(upload.write), "wb") as packed:
        packed.write(content)
    with blocking_client.open(upload.id) as resource, gzip.open(resource.file()) as unpacked:
        assert unpacked.read(100) == content[:100]
        assert unpacked.read() == content[100:]


class _Writer(io.RawIOBase):
    """A file object to write to, as gzip needs one."""

    def __init__(self, write: object) -> None:
        super().__init__()
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]  # a buffer
        self._write(piece)  # type: ignore[operator]  # the upload's method
        return len(piece)


# Plain HTTP


@pytest.mark.cells(WEBSOCKET_CELLS)
@proves("DWN-10")
async def test_http_reads_all_ranges_and_lines(server: LocalServer, client: ConnectedClient, cell: Cell) -> None:
    text = b"".join(b"line %d\n" % number for number in range(3000))
    async with client.upload("log.txt", content_type="text/plain; charset=utf-8", lines=True) as upload:
        await upload.write(text)
    size = len(text)
    async with httpx.AsyncClient(base_url=server.url(cell.transport, "http"), timeout=DEADLINE) as http:
        path = f"/r/{upload.id}"
        whole = await http.get(path)
        assert (whole.status_code, whole.content) == (200, text)
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert whole.headers["accept-ranges"] == "bytes"
        tag = whole.headers["etag"]
        assert tag == f'"{head_of(text).hex()}"'
        assert (await http.get(path, headers={"if-none-match": tag})).status_code == 304
        head = await http.head(path)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
        for header, start, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=10-19", 10, 20),
            ("bytes=10-", 10, size),
            (f"bytes={size - 1}-{size + 100}", size - 1, size),
            ("bytes=-5", size - 5, size),
            (f"bytes=-{size * 2}", 0, size),
        ):
            part = await http.get(path, headers={"range": header})
            assert (part.status_code, part.content) == (206, text[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        for header in (f"bytes={size}-", "bytes=-0"):
            refused = await http.get(path, headers={"range": header})
            assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
            assert refused.json()["code"] == "range_not_satisfiable"
        for header in ("bytes=5-2", "lines=1-2", "nonsense"):
            assert (await http.get(path, headers={"range": header})).status_code == 200
        for query, expected in (
            ("0:1", text[:7]),
            ("2998:", b"line 2998\nline 2999\n"),
            (":2", b"line 0\nline 1\n"),
            ("5:5", b""),
            ("2999:9999", b"line 2999\n"),
        ):
            answer = await http.get(path, params={"lines": query})
            assert (answer.status_code, answer.content) == (200, expected)
        assert (await http.get(path, params={"lines": "3001:"})).status_code == 416
        assert (await http.get(path, params={"lines": "x"})).status_code == 400
        assert (await http.get("/r/" + "0" * 32)).status_code == 404
        assert (await http.get("/r/nonsense")).status_code == 404
        assert (await http.post(path)).status_code == 405
        await client.delete(upload.id)
        assert (await http.get(path)).status_code in (404, 410)


@pytest.mark.cells(WEBSOCKET_CELLS)
@proves("DWN-10")
async def test_http_follows_a_growing_resource(server: LocalServer, client: ConnectedClient, cell: Cell) -> None:
    upload = client.upload("growing", lines=True)
    await upload.open()
    await upload.write(b"history;")
    await upload.flush()
    async with httpx.AsyncClient(base_url=server.url(cell.transport, "http"), timeout=DEADLINE) as http:
        path = f"/r/{upload.id}"
        growing = await http.get(path)
        assert growing.content == b"history;"
        assert "etag" not in growing.headers
        async with http.stream("GET", f"{path}?follow") as response:
            assert response.status_code == 200
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"history;"
            await upload.write(b"live;")
            assert await anext(pieces) == b"live;"
            await upload.finish()
            assert [piece async for piece in pieces] == []
        assert (await http.get(f"{path}?follow&from=8")).content == b"live;"
        failing = client.upload("failing")
        await failing.open()
        await failing.write(b"x")
        await failing.flush()
        async with http.stream("GET", f"/r/{failing.id}?follow") as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"x"
            await failing.abort("cut off")
            # A response that cannot be completed ends as an error, not as an end.
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)
