"""Which thread of the filesystem storage writes, and when."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from impl_server_disk import ID, Disk, committed, watch_disk, writer_of

from tailrace_common_api import (
    ResourceState,
    StorageFailure,
)
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._filesystem_writer import FilesystemWriter
from tailrace_server_api import Durability, FencedOff

_readlink = os.readlink  # As it is before blocking calls are watched: syncs are noted on the event loop, too.

BIG = b"x" * (1088 * 1024 + 1)
"""More than the event loop writes itself."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return watch_disk(monkeypatch)


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


@pytest.fixture
async def os_storage(tmp_path: Path) -> AsyncGenerator[FilesystemStorage, None]:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.OS, writer_threads=1)
    await storage.start()
    yield storage
    await storage.close()


async def test_small_appends_are_written_by_the_loop_in_os_mode(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    writer._clock = lambda: 0.0
    disk.writes.clear()
    for _ in range(10):
        writer.append(b"a line\n")
        await writer.checkpoint()
        writer.append(b"a line\n")
        await writer.flush()
    assert {thread for _, _, thread in disk.writes} == {threading.get_ident()}
    assert disk.synced_by == []


async def test_appends_that_are_not_small_are_written_by_the_loop_at_once(
    os_storage: FilesystemStorage, disk: Disk
) -> None:
    writer = await writer_of(os_storage)
    writer._clock = lambda: 0.0
    disk.writes.clear()
    for number in range(1, 11):
        writer.append(b"x" * 65_537)
        assert writer.stored == number * 65_537
    assert {thread for _, _, thread in disk.writes} == {threading.get_ident()}
    assert committed(await writer.checkpoint()).head == head_of(b"x" * 655_370)


async def test_big_appends_never_are(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    writer._clock = lambda: 0.0
    disk.writes.clear()
    for _ in range(10):
        writer.append(BIG)
        await writer.checkpoint()
    assert len(disk.writes) >= 20
    assert threading.get_ident() not in {thread for _, _, thread in disk.writes}


async def test_nothing_is_written_or_synced_by_the_loop_in_fsync_mode(tmp_path: Path, disk: Disk) -> None:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.FSYNC)
    await storage.start()
    writer = await writer_of(storage)
    for _ in range(10):
        writer.append(b"a line\n")
        await writer.checkpoint()
        await writer.flush()
    await writer.complete()
    await storage.close()
    assert len(disk.synced_by) >= 20
    assert threading.get_ident() not in {thread for _, _, thread in disk.writes}
    assert threading.get_ident() not in disk.synced_by


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_ending_is_synced_and_off_the_loop_in_every_mode(
    storage: FilesystemStorage, disk: Disk, end: str
) -> None:
    writer = await writer_of(storage)
    writer.append(b"x")
    await writer.checkpoint()
    disk.writes.clear()
    disk.synced_by.clear()
    await (writer.complete() if end == "complete" else writer.fail("why"))
    assert len(disk.synced_by) >= 3
    assert threading.get_ident() not in disk.synced_by
    assert threading.get_ident() not in {thread for _, _, thread in disk.writes}


async def test_what_has_ended_is_found_after_a_power_loss(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = await writer_of(storage)
    synced: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.append(_readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    await writer.complete()
    resources = tmp_path / "storage/resources"
    assert synced == [str(resources / ID), str(resources)]
    synced.clear()
    await storage.delete(ID)
    assert str(resources) in synced


async def test_a_slow_disk_sends_small_appends_to_a_thread_for_a_while(
    os_storage: FilesystemStorage, disk: Disk
) -> None:
    writer = await writer_of(os_storage)
    time = 0.0
    step = 0.002

    def clock() -> float:
        nonlocal time
        time += step
        return time

    writer._clock = clock
    disk.writes.clear()

    async def written_by() -> set[int]:
        disk.writes.clear()
        writer.append(b"a line\n")
        await writer.checkpoint()
        # The result comes a moment before the thread lets go of the writer, and until then the loop may not write.
        await asyncio.to_thread(writer._strand._busy.acquire)
        writer._strand.release()
        return {thread for _, _, thread in disk.writes}

    loop_thread = {threading.get_ident()}
    assert await written_by() == loop_thread
    for _ in range(10):
        assert await written_by() != loop_thread
    step = 0.0
    threads = [await written_by() for _ in range(200)]
    first = threads.index(loop_thread)
    assert first > 0
    assert all(each == loop_thread for each in threads[first:])


class Clock:
    """Time that goes on between two looks at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


async def append_large(writer: FilesystemWriter, disk: Disk, clock: Clock, seconds: float) -> bool:
    """Append a chunk of the largest usual size, which takes so long, and return whether the loop wrote it."""
    disk.writes.clear()
    clock.step = seconds
    writer.append(b"x" * (1024 * 1024))
    clock.step = 0.0
    await writer.checkpoint()
    # As above: the thread lets go of the writer a moment later.
    await asyncio.to_thread(writer._strand._busy.acquire)
    writer._strand.release()
    return threading.get_ident() in {thread for name, _, thread in disk.writes if name == "data"}


async def test_a_large_append_that_was_held_up_once_sends_none_to_a_thread(
    os_storage: FilesystemStorage, disk: Disk
) -> None:
    writer = await writer_of(os_storage)
    writer._clock = clock = Clock()
    for number in range(40):
        assert await append_large(writer, disk, clock, 0.0039 if number % 20 == 10 else 0.0003)


async def test_large_appends_that_take_long_each_go_to_a_thread(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    writer._clock = clock = Clock()
    by_loop = [await append_large(writer, disk, clock, 0.0015) for _ in range(30)]
    assert by_loop[0]
    assert not any(by_loop[by_loop.index(False) :])
    by_loop = [await append_large(writer, disk, clock, 0.0003) for _ in range(80)]
    assert all(by_loop[by_loop.index(True) :])


async def test_a_large_append_that_takes_very_long_sends_the_next_to_a_thread(
    os_storage: FilesystemStorage, disk: Disk
) -> None:
    writer = await writer_of(os_storage)
    writer._clock = clock = Clock()
    assert await append_large(writer, disk, clock, 0.0041)
    assert not await append_large(writer, disk, clock, 0.0003)


async def test_a_disk_that_stalls_sends_appends_to_a_thread_for_longer_each_time(
    os_storage: FilesystemStorage, disk: Disk
) -> None:
    writer = await writer_of(os_storage)
    time = 0.0

    def clock() -> float:
        nonlocal time
        time += 0.05
        return time

    writer._clock = clock
    loop_thread = {threading.get_ident()}

    async def calls_until_the_loop_writes() -> int:
        calls = 0
        while True:
            calls += 1
            disk.writes.clear()
            writer.append(b"a line\n")
            await writer.checkpoint()
            # As above: the thread lets go of the writer a moment later.
            await asyncio.to_thread(writer._strand._busy.acquire)
            writer._strand.release()
            if {thread for _, _, thread in disk.writes} == loop_thread:
                return calls

    assert await calls_until_the_loop_writes() == 1
    pauses = [await calls_until_the_loop_writes() for _ in range(2)]
    assert pauses == [4 * 64 + 1, 16 * 64 + 1]


async def test_one_writer_that_is_held_by_the_disk_speaks_for_all(
    os_storage: FilesystemStorage, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_thread = threading.get_ident()
    write = os.pwritev
    now = 1.0

    def held(fd: int, buffers: list[bytes], offset: int) -> int:
        nonlocal now
        if threading.get_ident() == loop_thread:
            now += 0.05
        return write(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", held)
    names = iter(range(100))

    async def new_writer_is_held() -> bool:
        writer = await writer_of(os_storage, f"{next(names):032}")
        writer._clock = lambda: now
        disk.writes.clear()
        writer.append(b"a line\n")
        await writer.checkpoint()
        return loop_thread in {thread for _, _, thread in disk.writes}

    assert await new_writer_is_held()
    for _ in range(5):
        assert not await new_writer_is_held()
    now += 60.0
    assert await new_writer_is_held()


async def test_the_loop_does_not_overtake_what_is_pending(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    disk.gate = threading.Event()
    big = os.urandom(len(BIG))
    writer.append(big)
    writer.append(b"small")
    checkpoint = asyncio.ensure_future(writer.checkpoint())
    await asyncio.sleep(0)
    assert not checkpoint.done()
    disk.gate.set()
    assert committed(await checkpoint).head == head_of(big + b"small")


async def test_small_appends_are_gathered_into_one_write(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    disk.writes.clear()
    for _ in range(300):
        writer.append(b"a line\n", hash=chunk_hash(b"a line\n"))
    await writer.checkpoint()
    assert [(name, size) for name, size, _ in disk.writes] == [("data", 2100), ("journal", 512)]


async def test_one_slow_writer_does_not_keep_the_loop_waiting(os_storage: FilesystemStorage, disk: Disk) -> None:
    slow = await writer_of(os_storage)
    disk.gate = threading.Event()
    slow.append(BIG)
    waiting = asyncio.ensure_future(slow.checkpoint())
    # The only thread of the pool stands still, and yet reading, describing and small appends go on.
    quick = await writer_of(os_storage, "1" * 32)
    quick._clock = lambda: 0.0
    quick.append(b"a line\n")
    assert committed(await quick.checkpoint()).size == 7
    assert bytes((await os_storage.read("1" * 32, 0, 7)).data) == b"a line\n"
    assert (await os_storage.load(ID)).size == 0
    assert not waiting.done()
    disk.gate.set()
    assert committed(await waiting).size == len(BIG)


async def test_a_fenced_writer_drops_what_is_queued(os_storage: FilesystemStorage, disk: Disk, tmp_path: Path) -> None:
    older = await writer_of(os_storage)
    disk.gate = threading.Event()
    for _ in range(20):
        older.append(BIG)
    waiting = asyncio.ensure_future(older.checkpoint())
    await asyncio.sleep(0)
    opening = asyncio.ensure_future(os_storage.open(ID))
    while not older._dropping:  # noqa: ASYNC110 - nothing tells when the fence holds.
        await asyncio.sleep(0)
    disk.gate.set()
    newer = await opening
    assert await waiting == FencedOff(newer.epoch)
    # At most what one write gathers was stored before the fence held.
    assert sum(size for name, size, _ in disk.writes if name == "data") <= 2_000_000
    assert (tmp_path / "storage/resources" / ID / "data").read_bytes() == b""


async def test_closing_while_the_end_is_being_written_never_completes_less(
    os_storage: FilesystemStorage, disk: Disk
) -> None:
    writer = await writer_of(os_storage)
    disk.gate = threading.Event()
    for _ in range(5):
        writer.append(BIG)
    completing = asyncio.ensure_future(writer.complete())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(writer.close())
    await asyncio.sleep(0)
    disk.gate.set()
    with pytest.raises(StorageFailure):
        await completing
    await closing
    assert (await os_storage.load(ID)).state is ResourceState.INITIATED
