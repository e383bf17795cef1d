"""How the filesystem storage reads and keeps files open."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path

import pytest
from impl_server_disk import ID, committed, descriptor, writer_of

from tailrace_common_api import (
    NotFound,
    StorageFailure,
)
from tailrace_impl_common import chunk_hash
from tailrace_impl_server import _filesystem_reader, _filesystem_storage, _positional_io
from tailrace_impl_server._filesystem_files import FileCache, ResourceFiles
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_server_api import BLOCK_SIZE, Durability


@pytest.fixture(params=list(Durability))
def durability(request: pytest.FixtureRequest) -> Durability:
    value = request.param
    assert isinstance(value, Durability)
    return value


@pytest.fixture
async def storage(tmp_path: Path, durability: Durability) -> AsyncGenerator[FilesystemStorage, None]:
    storage = FilesystemStorage(tmp_path / "storage", durability=durability, writer_threads=2)
    await storage.start()
    yield storage
    await storage.close()


async def test_recent_bytes_are_read_without_waiting(storage: FilesystemStorage) -> None:
    writer = await writer_of(storage)
    writer.append(b"recent")
    await writer.checkpoint()
    cached = storage.read_cached(ID, 0, 6)
    if not storage._residency_known:
        pytest.skip("this filesystem cannot say what is in memory")
    assert cached is not None
    assert cached.data == b"recent"
    assert storage.read_cached(ID, 6, 10) is None


async def test_where_residency_is_unknown_everything_is_read_in_threads(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await writer_of(storage)
    writer.append(b"recent")
    await writer.checkpoint()

    def refuse(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", refuse)
    assert storage.read_cached(ID, 0, 6) is None
    monkeypatch.undo()
    assert storage.read_cached(ID, 0, 6) is None
    assert (await storage.read(ID, 0, 6)).data == b"recent"


async def test_bytes_that_are_not_in_memory_are_not_waited_for(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await writer_of(storage)
    writer.append(b"recent")
    await writer.checkpoint()
    asked: list[int] = []

    def on_disk(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        asked.append(flags)
        raise BlockingIOError(errno.EAGAIN, "not in memory")

    monkeypatch.setattr(_filesystem_reader, "_NOWAIT", 8)
    monkeypatch.setattr(os, "preadv", on_disk)
    assert storage.read_cached(ID, 0, 6) is None
    assert storage.read_cached(ID, 0, 6) is None
    assert asked == [8, 8]
    assert (await storage.read(ID, 0, 6)).data == b"recent"


@pytest.mark.parametrize("resident", [1, 2, 5, 7, 8, 20])
@pytest.mark.parametrize("start", [0, 1, BLOCK_SIZE, 3 * BLOCK_SIZE - 1])
async def test_a_piece_keeps_little_more_than_its_size_in_memory(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, resident: int, start: int
) -> None:
    data = b"".join(bytes([number]) * BLOCK_SIZE for number in range(20))
    writer = await writer_of(storage)
    writer.append(data)
    await writer.complete()
    await writer.close()
    preadv = os.preadv

    def in_part(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        return preadv(fd, [memoryview(buffers[0])[: resident * BLOCK_SIZE + 5]], offset, flags)

    # So that the files are open.
    await storage.read(ID, len(data) - 1, len(data))
    if storage.read_cached(ID, 10 * BLOCK_SIZE, 11 * BLOCK_SIZE) is None:
        pytest.skip("this filesystem cannot say what is in memory")
    monkeypatch.setattr(os, "preadv", in_part)
    piece = storage.read_cached(ID, start, 16 * BLOCK_SIZE)
    monkeypatch.undo()
    assert piece is not None
    assert piece.data == data[start : start + len(piece.data)]
    assert piece.hash == chunk_hash(piece.data)
    held = memoryview(piece.data).obj if isinstance(piece.data, memoryview) else piece.data
    assert memoryview(held).nbytes <= 2 * max(len(piece.data), BLOCK_SIZE)


async def test_few_files_stay_open_however_many_are_read(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage._cache = FileCache(4)
    ids = [f"{number:032d}" for number in range(20)]
    for id in ids:  # noqa: A001 - what it is.
        writer = await writer_of(storage, id)
        writer.append(id.encode())
        await writer.complete()
        await writer.close()
    for _ in range(3):
        for id in ids:  # noqa: A001 - what it is.
            assert (await storage.read(id, 0, 32)).data == id.encode()
            cached = storage.read_cached(id, 0, 32)
            assert cached is None or cached.data == id.encode()
    # The thread that has read may let go of the last files a moment after it has answered.
    async with asyncio.timeout(20):
        while len(open_below(tmp_path, ["data", "journal"])) != 8:  # noqa: ASYNC110 - closing is no event.
            await asyncio.sleep(0.01)
    await storage.close()
    assert open_below(tmp_path, ["data", "journal", "lock"]) == []


def open_below(folder: Path, names: list[str]) -> list[str]:
    paths = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    return [path for path in paths if path.startswith(str(folder)) and os.path.basename(path) in names]


async def test_a_reader_keeps_its_files_open_until_it_is_done(storage: FilesystemStorage) -> None:
    writer = await writer_of(storage)
    writer.append(b"bytes")
    await writer.complete()
    await writer.close()
    entered, go_on = threading.Event(), threading.Event()

    def slow_read(files: ResourceFiles) -> bytes:
        entered.set()
        go_on.wait(30)
        return os.pread(files.data, 5, 0)

    reading = asyncio.ensure_future(storage._with_files(ID, slow_read))
    await asyncio.to_thread(entered.wait, 30)
    reading.cancel()
    await storage.delete(ID)
    await asyncio.gather(reading, return_exceptions=True)
    again = asyncio.ensure_future(storage.read(ID, 0, 5))
    go_on.set()
    with pytest.raises(NotFound):
        await again


async def test_a_newline_is_found_in_few_records_and_without_a_thread(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await writer_of(storage)
    blocks = 64
    writer.append(b"x\n" * (blocks * BLOCK_SIZE // 2))
    final = committed(await writer.complete())
    await writer.close()
    in_threads: list[int] = []
    in_memory: list[int] = []
    read_up_to, preadv = _positional_io.read_up_to, os.preadv

    def counting(fd: int, length: int, offset: int) -> bytes:
        in_threads.append(length)
        return read_up_to(fd, length, offset)

    def counting_resident(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        in_memory.append(len(buffers[0]))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(_filesystem_reader, "read_up_to", counting)
    monkeypatch.setattr(os, "preadv", counting_resident)
    wanted = 37 * BLOCK_SIZE // 2 + 5
    for _ in range(2):
        assert (await storage.boundary_of_newline(ID, wanted, final.size)).offset == 37 * BLOCK_SIZE
    # The first look opens the files; the second one finds them open, and what they hold in memory.
    assert len(in_threads) == 2
    if hasattr(os, "RWF_NOWAIT"):
        assert len(in_memory) == 2
    assert max(in_threads + in_memory) <= 85 * 48


async def test_a_newline_is_looked_for_in_a_thread_where_memory_does_not_have_it(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await writer_of(storage)
    writer.append(b"x\n" * BLOCK_SIZE)
    final = committed(await writer.complete())
    await writer.close()
    assert (await storage.boundary_of_newline(ID, 1, final.size)).offset == 0

    def not_there(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_there)
    assert (await storage.boundary_of_newline(ID, BLOCK_SIZE // 2 + 1, final.size)).offset == BLOCK_SIZE

    def not_supported(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", not_supported)
    assert (await storage.boundary_of_newline(ID, BLOCK_SIZE // 2 + 1, final.size)).offset == BLOCK_SIZE
    monkeypatch.setattr(os, "preadv", None)
    # Nobody asks again.
    assert (await storage.boundary_of_newline(ID, BLOCK_SIZE // 2 + 1, final.size)).offset == BLOCK_SIZE


async def test_changes_go_on_when_their_callers_are_gone(storage: FilesystemStorage) -> None:
    async def abandon(change: Coroutine[object, object, object]) -> list[str]:
        task = asyncio.ensure_future(change)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*storage._changes, return_exceptions=True)
        return [listed async for listed in storage.ids()]

    assert await abandon(storage.create(descriptor())) == [ID]
    assert await abandon(storage.delete(ID)) == []


async def test_a_closed_storage_refuses(tmp_path: Path) -> None:
    storage = FilesystemStorage(tmp_path, durability=Durability.OS)
    await storage.start()
    await storage.close()
    for call in (storage.load(ID), storage.create(descriptor()), storage.open(ID)):
        with pytest.raises(StorageFailure):
            await call


def test_the_reader_threads_are_bounded() -> None:
    assert _filesystem_storage._READER_THREADS <= 16
