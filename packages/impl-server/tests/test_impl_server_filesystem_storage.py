"""What the filesystem storage does beside the contract: errors of the disk, threads, folders, locks."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tailrace_common_api import (
    ConfigurationError,
    DamagedBlock,
    Metadata,
    NotFound,
    ResourceState,
    StorageFailure,
    StorageFull,
    Visibility,
)
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_server import _filesystem_reader, _filesystem_storage, _positional_io
from tailrace_impl_server._filesystem_files import FileCache, ResourceFiles
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._filesystem_writer import FilesystemWriter
from tailrace_server_api import BLOCK_SIZE, Committed, Descriptor, Durability, FencedOff, Snapshot

ID = "0" * 32


def descriptor(id: str = ID, *, lines: bool = True) -> Descriptor:
    return Descriptor(
        id=id,
        metadata=Metadata(name="x", lines=lines),
        visibility=Visibility.LIVE,
        created_at=1.0,
        token_hash=bytes(32),
        principal="",
    )


def committed(outcome: object) -> Snapshot:
    assert isinstance(outcome, Committed)
    return outcome.snapshot


@dataclass
class Disk:
    """Notes who writes, and fails or falls short when told to."""

    writes: list[tuple[str, int, int]] = field(default_factory=list)
    """File, bytes and thread of each write."""
    synced_by: list[int] = field(default_factory=list)
    """Thread of each sync."""
    full: str | None = None
    """Name of the file that takes no more bytes."""
    error: int = errno.ENOSPC
    """What a write to the full file fails with."""
    most: int | None = None
    """Most bytes that one write takes."""
    sync_fails: bool = False
    gate: threading.Event | None = None
    """The writers' pool waits for it."""


_readlink = os.readlink  # As it is before blocking calls are watched: writes are noted on the event loop, too.


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def write(fd: int, data: bytes, offset: int) -> int:
        name = os.path.basename(_readlink(f"/proc/self/fd/{fd}"))
        if disk.gate is not None and threading.current_thread().name.startswith("tailrace-writer"):
            disk.gate.wait(30)
        if name == disk.full:
            raise OSError(disk.error, os.strerror(disk.error))
        count = pwrite(fd, data[: disk.most], offset)
        disk.writes.append((name, count, threading.get_ident()))
        return count

    def sync(fd: int) -> None:
        if disk.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fdatasync(fd)
        disk.synced_by.append(threading.get_ident())

    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: write(fd, b"".join(buffers), offset))
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    return disk


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


async def writer_of(storage: FilesystemStorage, id: str = ID, *, lines: bool = True) -> FilesystemWriter:
    await storage.create(descriptor(id, lines=lines))
    writer = await storage.open(id)
    assert isinstance(writer, FilesystemWriter)
    return writer


# What the disk refuses.


@pytest.mark.parametrize("size", [100, 300_000])
@pytest.mark.parametrize("file", ["data", "journal"])
async def test_a_full_disk_is_told_and_what_was_announced_is_kept(
    storage: FilesystemStorage, disk: Disk, size: int, file: str
) -> None:
    writer = await writer_of(storage)
    writer.append(b"first\n")
    announced = committed(await writer.checkpoint())
    disk.full = file
    writer.append(b"x" * size)
    with pytest.raises(StorageFull):
        await writer.checkpoint()
    with pytest.raises(StorageFull):
        await writer.complete()
    assert await storage.load(ID) == announced
    await writer.close()
    disk.full = None
    continued = await storage.open(ID)
    assert continued.snapshot.size == announced.size
    continued.append(b"more")
    assert committed(await continued.complete()).head == head_of(b"first\nmore")


async def test_a_writer_that_failed_stores_nothing_more(storage: FilesystemStorage, disk: Disk, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    disk.full = "data"
    writer.append(b"lost")
    with pytest.raises(StorageFull):
        await writer.flush()
    disk.full = None
    writer.append(b"a hole before it")
    for _ in range(2):
        with pytest.raises(StorageFull):
            await writer.flush()
        with pytest.raises(StorageFull):
            await writer.checkpoint()
    assert (tmp_path / "storage/resources" / ID / "data").read_bytes() == b""


async def test_a_resource_can_fail_on_a_full_disk(storage: FilesystemStorage, disk: Disk, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    data = b"announced\n" * 30_000
    writer.append(data)
    await writer.checkpoint()
    writer.append(b"stored" * BLOCK_SIZE)
    await writer.flush()
    disk.full = "data"
    writer.append(b"refused")
    with pytest.raises(StorageFull):
        await writer.checkpoint()
    final = committed(await writer.fail("disk full"))
    assert (final.state, final.size, final.head, final.reason) == (
        ResourceState.FAILED,
        len(data),
        head_of(data),
        "disk full",
    )
    await writer.close()
    assert await storage.load(ID) == final
    assert (tmp_path / "storage/resources" / ID / "data").read_bytes() == data


async def test_other_errors_of_the_disk_are_a_failure(storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(storage)
    disk.full, disk.error = "data", errno.EIO
    writer.append(b"x")
    with pytest.raises(StorageFailure):
        await writer.flush()
    disk.error = errno.EDQUOT
    other = await writer_of(storage, "1" * 32)
    other.append(b"x")
    with pytest.raises(StorageFull):
        await other.flush()


async def test_nothing_is_announced_when_syncing_fails(tmp_path: Path, disk: Disk) -> None:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.FSYNC)
    await storage.start()
    writer = await writer_of(storage)
    disk.sync_fails = True
    writer.append(b"x")
    with pytest.raises(StorageFailure):
        await writer.checkpoint()
    assert writer.snapshot.size == 0
    with pytest.raises(StorageFailure):
        await writer.checkpoint()
    await storage.close()


async def test_short_writes_are_continued(storage: FilesystemStorage, disk: Disk, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    disk.most = 1000
    disk.writes.clear()
    data = os.urandom(300_000)
    for start in range(0, len(data), 7_000):
        writer.append(data[start : start + 7_000])
    assert committed(await writer.complete()).head == head_of(data)
    assert (tmp_path / "storage/resources" / ID / "data").read_bytes() == data
    assert max(size for _, size, _ in disk.writes) == 1000


async def test_a_full_disk_leaves_nothing_of_a_creation(storage: FilesystemStorage, disk: Disk, tmp_path: Path) -> None:
    disk.full = "journal"
    with pytest.raises(StorageFull):
        await storage.create(descriptor())
    assert list((tmp_path / "storage").rglob(f"*{ID}*")) == []
    disk.full = None
    await storage.create(descriptor())


async def test_a_full_disk_keeps_the_old_token(storage: FilesystemStorage, disk: Disk) -> None:
    await storage.create(descriptor())
    disk.full = "resource.json.new"
    with pytest.raises(StorageFull):
        await storage.replace_token(ID, b"n" * 32)
    assert await storage.describe(ID) == descriptor()
    disk.full = None
    await storage.replace_token(ID, b"n" * 32)
    assert (await storage.describe(ID)).token_hash == b"n" * 32


async def test_the_same_resource_is_not_created_twice(storage: FilesystemStorage, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    writer.append(b"x")
    announced = committed(await writer.checkpoint())
    with pytest.raises(StorageFailure):
        await storage.create(descriptor())
    assert await storage.load(ID) == announced
    assert os.listdir(tmp_path / "storage/creating") == []


# Who writes.


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


async def test_big_appends_never_are(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    writer._clock = lambda: 0.0
    disk.writes.clear()
    for _ in range(10):
        writer.append(b"x" * 65_537)
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
        return {thread for _, _, thread in disk.writes}

    loop_thread = {threading.get_ident()}
    assert await written_by() == loop_thread
    for _ in range(10):
        assert await written_by() != loop_thread
    step = 0.0
    threads = [await written_by() for _ in range(200)]
    assert threads[-1] == loop_thread


async def test_the_loop_does_not_overtake_what_is_pending(os_storage: FilesystemStorage, disk: Disk) -> None:
    writer = await writer_of(os_storage)
    disk.gate = threading.Event()
    big = os.urandom(100_000)
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
    slow.append(b"x" * 1_000_000)
    waiting = asyncio.ensure_future(slow.checkpoint())
    # The only thread of the pool stands still, and yet reading, describing and small appends go on.
    quick = await writer_of(os_storage, "1" * 32)
    quick._clock = lambda: 0.0
    quick.append(b"a line\n")
    assert committed(await quick.checkpoint()).size == 7
    assert bytes(await os_storage.read("1" * 32, 0, 7)) == b"a line\n"
    assert (await os_storage.load(ID)).size == 0
    assert not waiting.done()
    disk.gate.set()
    assert committed(await waiting).size == 1_000_000


async def test_a_fenced_writer_drops_what_is_queued(os_storage: FilesystemStorage, disk: Disk, tmp_path: Path) -> None:
    older = await writer_of(os_storage)
    disk.gate = threading.Event()
    for _ in range(20):
        older.append(b"o" * 1_000_000)
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
    data = b"x" * 5_000_000
    for start in range(0, len(data), 1_000_000):
        writer.append(data[start : start + 1_000_000])
    completing = asyncio.ensure_future(writer.complete())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(writer.close())
    await asyncio.sleep(0)
    disk.gate.set()
    with pytest.raises(StorageFailure):
        await completing
    await closing
    assert (await os_storage.load(ID)).state is ResourceState.INITIATED


# Files and folders.


async def test_a_resource_is_files_that_any_tool_reads(storage: FilesystemStorage, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    data = os.urandom(3 * BLOCK_SIZE + 5)
    writer.append(data)
    await writer.complete()
    folder = tmp_path / "storage/resources" / ID
    assert sorted(os.listdir(folder)) == ["data", "journal", "resource.json"]
    assert (folder / "data").read_bytes() == data
    assert (folder / "journal").stat().st_size == 12288 + 3 * 48


async def test_a_folder_in_use_is_refused(storage: FilesystemStorage, tmp_path: Path) -> None:
    second = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        await second.start()
    await storage.close()
    third = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    await third.start()
    await third.close()
    await second.close()


@pytest.mark.parametrize("content", ["tailrace filesystem storage 2\n", "", "something else"])
async def test_a_folder_of_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "format").write_text(content)
    storage = FilesystemStorage(tmp_path, durability=Durability.OS)
    with pytest.raises(ConfigurationError, match="format"):
        await storage.start()
    await storage.close()


async def test_resources_without_a_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "resources").mkdir()
    storage = FilesystemStorage(tmp_path, durability=Durability.OS)
    with pytest.raises(ConfigurationError, match="no format file"):
        await storage.start()
    await storage.close()


async def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = FilesystemStorage(tmp_path / "file", durability=Durability.OS)
    with pytest.raises(ConfigurationError):
        await storage.start()
    await storage.close()


async def test_starting_empties_the_trash_and_listing_removes_half_made_resources(tmp_path: Path) -> None:
    storage = FilesystemStorage(tmp_path, durability=Durability.OS)
    await storage.start()
    await storage.create(descriptor())
    await storage.close()
    (tmp_path / "trash" / ("1" * 32)).mkdir()
    (tmp_path / "trash" / ("1" * 32) / "data").write_bytes(b"x")
    (tmp_path / "creating" / ("2" * 32)).mkdir()
    (tmp_path / "creating" / ("2" * 32) / "data").write_bytes(b"")
    storage = FilesystemStorage(tmp_path, durability=Durability.OS)
    await storage.start()
    assert os.listdir(tmp_path / "trash") == []
    assert [listed async for listed in storage.ids()] == [ID]
    assert os.listdir(tmp_path / "creating") == []
    await storage.close()


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../../etc", "x" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n", "/etc/passwd"]
)
async def test_what_is_no_id_is_not_found(storage: FilesystemStorage, id: str) -> None:
    for call in (storage.load(id), storage.describe(id), storage.open(id), storage.delete(id), storage.read(id, 0, 1)):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await storage.create(descriptor(id))


@pytest.mark.parametrize("offset", [0, 30])
async def test_a_damaged_journal_is_told(storage: FilesystemStorage, tmp_path: Path, offset: int) -> None:
    writer = await writer_of(storage)
    await writer.close()
    with open(tmp_path / "storage/resources" / ID / "journal", "r+b") as file:
        file.seek(offset)
        file.write(bytes(9000) if offset else b"?")
    with pytest.raises(StorageFailure):
        await storage.load(ID)
    with pytest.raises(StorageFailure):
        await storage.open(ID)
    await storage.delete(ID)


async def test_a_damaged_record_is_told(storage: FilesystemStorage, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    writer.append(b"x\n" * (2 * BLOCK_SIZE))
    final = committed(await writer.complete())
    with open(tmp_path / "storage/resources" / ID / "journal", "r+b") as file:
        file.seek(12288 + 48 + 3)
        file.write(b"\xff\xfe")
    with pytest.raises(DamagedBlock) as raised:
        await storage.boundary(ID, 2 * BLOCK_SIZE)
    assert raised.value.offset == BLOCK_SIZE
    with pytest.raises(DamagedBlock):
        await storage.boundary_of_newline(ID, BLOCK_SIZE + 1, final.size)
    assert (await storage.boundary(ID, BLOCK_SIZE)).newlines == BLOCK_SIZE // 2


async def test_data_that_is_not_what_the_journal_says_is_told(storage: FilesystemStorage, tmp_path: Path) -> None:
    writer = await writer_of(storage)
    for _ in range(2):
        writer.append(b"some bytes")
        await writer.checkpoint()
    await writer.close()
    (tmp_path / "storage/resources" / ID / "data").write_bytes(b"SOME BYTES" * 2)
    with pytest.raises(StorageFailure):
        await storage.open(ID)


async def test_an_upload_goes_back_to_what_is_proven(
    storage: FilesystemStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = await writer_of(storage)
    for _ in range(2):
        writer.append(b"some bytes")
        await writer.checkpoint()
    await writer.close()
    (tmp_path / "storage/resources" / ID / "data").write_bytes(b"some bytesSOME BYTES")
    again = await storage.open(ID)
    assert again.snapshot.size == 10
    assert again.snapshot.head == head_of(b"some bytes")
    assert "is not proven" in caplog.text


# Reading.


async def test_recent_bytes_are_read_without_waiting(storage: FilesystemStorage) -> None:
    writer = await writer_of(storage)
    writer.append(b"recent")
    await writer.checkpoint()
    cached = storage.read_cached(ID, 0, 6)
    if not storage._residency_known:
        pytest.skip("this filesystem cannot say what is in memory")
    assert cached == b"recent"
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
    assert await storage.read(ID, 0, 6) == b"recent"


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
    assert await storage.read(ID, 0, 6) == b"recent"


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
            assert await storage.read(id, 0, 32) == id.encode()
            assert storage.read_cached(id, 0, 32) in (None, id.encode())
    assert len(open_below(tmp_path, ["data", "journal"])) == 8
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


async def test_bisection_reads_few_records(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = await writer_of(storage)
    blocks = 64
    writer.append(b"x\n" * (blocks * BLOCK_SIZE // 2))
    final = committed(await writer.complete())
    reads: list[int] = []
    read_up_to = _positional_io.read_up_to

    def counting(fd: int, length: int, offset: int) -> bytes:
        reads.append(length)
        return read_up_to(fd, length, offset)

    monkeypatch.setattr(_filesystem_reader, "read_up_to", counting)
    boundary = await storage.boundary_of_newline(ID, 37 * BLOCK_SIZE // 2 + 5, final.size)
    assert boundary.offset == 37 * BLOCK_SIZE
    assert len(reads) <= 7
    assert set(reads) == {48}


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
