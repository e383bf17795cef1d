"""What the filesystem storage trusts after a loss of power, a failed sync, and a disk that does not answer."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from impl_server_disk import ID, committed, descriptor, watch_disk

from tailrace_common_api import DamagedBlock, NotFound, ResourceState, StorageFailure
from tailrace_impl_common import head_of
from tailrace_impl_server import _filesystem_storage
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._journal import record_offset
from tailrace_server_api import BLOCK_SIZE, Durability, FencedOff
from tailrace_server_api.contracts._storage_hooks import text

SIZE = 3 * BLOCK_SIZE + 1000
DATA = text(SIZE)


@asynccontextmanager
async def started(
    root: Path, durability: Durability = Durability.OS, *, close_timeout: float = 30.0
) -> AsyncGenerator[FilesystemStorage, None]:
    storage = FilesystemStorage(root, durability=durability, close_timeout=close_timeout)
    await storage.start()
    yield storage
    await storage.close()


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list whose item is the boot that the system claims to be."""
    current = [b"a" * 16]
    monkeypatch.setattr(_filesystem_storage, "_read_boot_id", lambda: current[0])
    return current


async def interrupted(root: Path, durability: Durability, *sizes: int) -> None:
    """Leave an upload that was announced at each of ``sizes``."""
    async with started(root, durability) as storage:
        await storage.create(descriptor())
        writer = await storage.open(ID)
        for size in sizes:
            writer.append(DATA[writer.snapshot.size : size])
            await writer.checkpoint()


def overwrite(root: Path, name: str, offset: int, data: bytes) -> None:
    fd = os.open(root / "resources" / ID / name, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "offset", "left"),
    [
        ("data", 5, 0),
        ("data", BLOCK_SIZE, BLOCK_SIZE),
        ("data", 3 * BLOCK_SIZE - 1, BLOCK_SIZE * 2 + 7),
        ("data", 3 * BLOCK_SIZE, 3 * BLOCK_SIZE),
        ("journal", record_offset(1), BLOCK_SIZE),
    ],
)
async def test_the_longest_proven_prefix_is_left_after_a_power_loss(
    tmp_path: Path, boot: list[bytes], caplog: pytest.LogCaptureFixture, name: str, offset: int, left: int
) -> None:
    await interrupted(tmp_path, Durability.OS, 2 * BLOCK_SIZE + 7, SIZE)
    overwrite(tmp_path, name, offset, bytes(8))
    boot[0] = b"b" * 16
    with caplog.at_level(logging.ERROR):
        async with started(tmp_path) as storage:
            snapshot = await storage.load(ID)
            assert snapshot == await storage.load(ID)
            assert (snapshot.size, snapshot.head) == (left, head_of(DATA[:left]))
            assert snapshot.newlines == DATA[:left].count(b"\n")
            assert snapshot.epoch == 1
            # The next loss of power finds the same.
            boot[0] = b"c" * 16
    assert f"lost its last {SIZE - left} announced bytes" in caplog.text
    async with started(tmp_path) as storage:
        assert (await storage.load(ID)).size == left
        writer = await storage.open(ID)
        assert writer.epoch == 2
        assert writer.snapshot.version > snapshot.version
        writer.append(DATA[left:])
        assert committed(await writer.complete()).head == head_of(DATA)
        assert (await storage.read(ID, 0, SIZE)).data == DATA


async def test_nothing_is_cut_when_the_power_loss_has_lost_nothing(tmp_path: Path, boot: list[bytes]) -> None:
    await interrupted(tmp_path, Durability.OS, 100, SIZE)
    boot[0] = b"b" * 16
    async with started(tmp_path) as storage:
        writer = await storage.open(ID)
        assert writer.snapshot.head == head_of(DATA)


@pytest.mark.parametrize("durability", list(Durability))
async def test_only_what_may_be_lost_is_read_at_a_start(
    tmp_path: Path, boot: list[bytes], monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    await interrupted(tmp_path, durability, SIZE)
    read: list[int] = []
    pread = os.pread
    readlink = os.readlink

    def count(fd: int, length: int, offset: int) -> bytes:
        if readlink(f"/proc/self/fd/{fd}").endswith("/data"):
            read.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", count)
    for boot_id, expected in ((b"a", 1000), (b"b", SIZE if durability is Durability.OS else 1000), (b"b", 1000)):
        boot[0] = boot_id * 16
        read.clear()
        async with started(tmp_path, durability) as storage:
            assert (await storage.load(ID)).size == SIZE
        assert sum(read) == expected


async def test_what_was_not_synced_is_verified_by_a_server_that_syncs(tmp_path: Path, boot: list[bytes]) -> None:
    await interrupted(tmp_path, Durability.OS, SIZE)
    overwrite(tmp_path, "data", 5, bytes(8))
    boot[0] = b"b" * 16
    async with started(tmp_path, Durability.FSYNC) as storage:
        assert (await storage.load(ID)).size == 0


@pytest.mark.parametrize("failing", range(2))
async def test_what_a_failed_sync_was_to_bring_to_disk_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    # The first sync of a commit is that of the data, the second that of the journal.
    async with started(tmp_path, Durability.FSYNC) as storage:
        await storage.create(descriptor())
        writer = await storage.open(ID)
        writer.append(DATA[: 2 * BLOCK_SIZE + 7])
        announced = committed(await writer.checkpoint())
        syncs: list[int] = []
        fdatasync = os.fdatasync

        def fail_once(fd: int) -> None:
            syncs.append(fd)
            if len(syncs) == failing + 1:
                raise OSError(5, "failed")
            # What a system does that has forgotten the failure.
            fdatasync(fd)

        monkeypatch.setattr(os, "fdatasync", fail_once)
        writer.append(DATA[2 * BLOCK_SIZE + 7 :])
        with pytest.raises(StorageFailure):
            await writer.checkpoint()
        await writer.close()
        assert len(syncs) == failing + 1
        # Neither this process nor the next takes it for stored.
        assert await storage.load(ID) == announced
        journal = tmp_path / "resources" / ID / "journal"
        assert journal.stat().st_size == record_offset(2)
        assert (tmp_path / "resources" / ID / "data").stat().st_size == announced.size
        again = await storage.open(ID)
        assert again.snapshot.size == announced.size
        again.append(DATA[announced.size :])
        assert committed(await again.complete()).head == head_of(DATA)


async def test_after_a_failed_sync_unsynced_bytes_are_read_back_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path) as storage:
        await storage.create(descriptor())
        writer = await storage.open(ID)
        writer.append(DATA)
        await writer.checkpoint()
        disk = watch_disk(monkeypatch)
        disk.sync_fails = True
        with pytest.raises(StorageFailure):
            await writer.complete()
        await writer.close()
        disk.sync_fails = False
        forgotten: list[int] = []
        fadvise = os.posix_fadvise

        def note(fd: int, offset: int, length: int, advice: int) -> None:
            if advice == os.POSIX_FADV_DONTNEED:
                forgotten.append(fd)
                overwrite(tmp_path, "data", BLOCK_SIZE + 1, bytes(8))
            fadvise(fd, offset, length, advice)

        # What was dropped from memory comes back as the disk has it: without a block that did not reach it.
        monkeypatch.setattr(os, "posix_fadvise", note)
        with pytest.raises(DamagedBlock) as raised:
            await storage.open(ID)
        assert raised.value.offset == BLOCK_SIZE
        assert len(forgotten) == 2
        monkeypatch.undo()
        overwrite(tmp_path, "data", BLOCK_SIZE + 1, DATA[BLOCK_SIZE + 1 : BLOCK_SIZE + 9])
        again = await storage.open(ID)
        assert again.snapshot.size == SIZE


async def test_an_end_stands_in_both_places(tmp_path: Path) -> None:
    for offset in (4096, 8192):
        root = tmp_path / str(offset)
        await interrupted(root, Durability.OS, 10, 20)
        async with started(root) as storage:
            final = committed(await (await storage.open(ID)).complete())
        overwrite(root, "journal", offset, b"damaged!")
        async with started(root) as storage:
            assert await storage.load(ID) == final
            assert final.state is ResourceState.COMPLETED


async def test_what_a_crash_left_half_made_is_removed(tmp_path: Path) -> None:
    await interrupted(tmp_path, Durability.OS, 10)
    folder = tmp_path / "resources" / ID
    (folder / "resource.json.new").write_bytes(b"half")
    other = "1" * 32
    (tmp_path / "resources" / other).mkdir()
    (tmp_path / "resources" / other / "resource.json").write_bytes(b"{}")
    bytes_without_journal = "2" * 32
    (tmp_path / "resources" / bytes_without_journal).mkdir()
    (tmp_path / "resources" / bytes_without_journal / "data").write_bytes(b"x")
    async with started(tmp_path) as storage:
        assert (await storage.load(ID)).size == 10
        with pytest.raises(NotFound):
            await storage.load(other)
        with pytest.raises(StorageFailure, match="no journal"):
            await storage.load(bytes_without_journal)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "journal", "resource.json"]
    assert sorted(path.name for path in (tmp_path / "resources").iterdir()) == [ID, bytes_without_journal]


async def test_a_disk_that_does_not_answer_keeps_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FilesystemStorage(tmp_path, durability=Durability.FSYNC, close_timeout=0.05)
    await storage.start()
    await storage.create(descriptor())
    writer = await storage.open(ID)
    disk = watch_disk(monkeypatch)
    reached = threading.Event()

    class Gate(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            reached.set()
            return super().wait(timeout)

    disk.gate = Gate()
    writer.append(b"x")
    checkpoint = asyncio.ensure_future(writer.checkpoint())
    assert await asyncio.to_thread(reached.wait, 30)
    with pytest.raises(StorageFailure, match="does not answer"):
        await storage.open(ID)
    await storage.close()
    assert "does not answer" in caplog.text
    disk.gate.set()
    # What has begun still ends, and announces nothing.
    assert isinstance(await checkpoint, FencedOff)
    await writer.close()
    await asyncio.to_thread(storage._end)


async def test_what_arrives_during_a_sync_goes_into_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path, Durability.FSYNC) as storage:
        await storage.create(descriptor())
        writer = await storage.open(ID)
        reached, gate = threading.Event(), threading.Event()
        syncs: list[int] = []
        fdatasync = os.fdatasync

        def wait(fd: int) -> None:
            syncs.append(fd)
            reached.set()
            assert gate.wait(30)
            fdatasync(fd)

        monkeypatch.setattr(os, "fdatasync", wait)
        writer.append(b"first\n")
        first = asyncio.ensure_future(writer.checkpoint())
        assert await asyncio.to_thread(reached.wait, 30)
        for _ in range(100):
            writer.append(b"line\n")
        second = asyncio.ensure_future(writer.checkpoint())
        gate.set()
        assert committed(await first).size == 6
        assert committed(await second).size == 506
        # Data and journal, twice: not for each of the lines.
        assert len(syncs) == 4
