"""What the filesystem storage does when the disk refuses."""

import errno
import os
import resource
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest
from impl_server_disk import ID, Disk, committed, descriptor, watch_disk, writer_of

from tailrace_common_api import (
    IntegrityError,
    Overloaded,
    ResourceState,
    StorageFailure,
    StorageFull,
)
from tailrace_impl_common import HeadHasher, chunk_hash, head_of
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_server_api import BLOCK_SIZE, Durability


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
    with pytest.raises(StorageFull, match=r"^the server cannot "):
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


@pytest.mark.parametrize("sizes", [(5, 7, 9), (300_000, 1, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE, 3 * BLOCK_SIZE + 1)])
@pytest.mark.parametrize("wrong", [0, 1, 2])
async def test_what_is_behind_a_chunk_without_its_hash_is_not_stored(
    storage: FilesystemStorage, sizes: tuple[int, ...], wrong: int
) -> None:
    writer = await writer_of(storage)
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    for number, chunk in enumerate(chunks):
        writer.append(chunk, hash=chunk_hash(chunk + b"x") if number == wrong else chunk_hash(chunk))
    with pytest.raises(IntegrityError) as caught:
        await writer.flush()
    proven = b"".join(chunks[:wrong])
    assert caught.value.offset == len(proven)
    final = committed(await writer.fail("a chunk without its hash"))
    assert (final.size, final.head) == (len(proven), head_of(proven))
    await writer.close()
    assert [damage async for damage in storage.verify(ID)] == []


@pytest.mark.parametrize("size", [10, 3 * BLOCK_SIZE])
async def test_nothing_is_stored_behind_a_chunk_that_could_not_be_hashed(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    writer = await writer_of(storage)
    writer.append(b"announced")
    await writer.checkpoint()

    def no_memory(self: HeadHasher, data: bytes, hash: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(HeadHasher, "update_verified", no_memory)
        writer.append(b"x" * size, hash=chunk_hash(b"x" * size))
        with pytest.raises(StorageFailure):
            await writer.flush()
    writer.append(b"a hole before it")
    for _ in range(2):
        with pytest.raises(StorageFailure):
            await writer.checkpoint()
    assert (await storage.load(ID)).size == len(b"announced")


@pytest.mark.parametrize("refused", [b"refused", b"refused" * BLOCK_SIZE])
async def test_a_resource_can_fail_on_a_full_disk(
    storage: FilesystemStorage, disk: Disk, tmp_path: Path, refused: bytes
) -> None:
    writer = await writer_of(storage)
    data = b"announced\n" * 30_000
    writer.append(data)
    await writer.checkpoint()
    writer.append(b"stored" * BLOCK_SIZE)
    await writer.flush()
    disk.full = "data"
    writer.append(refused, hash=chunk_hash(refused))
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


@pytest.fixture
def descriptors() -> Generator[Callable[[int | None], None], None, None]:
    """Limits how many descriptors can be open; ``None``: as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(count: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft if count is None else count, hard))

    yield limit
    limit(None)


async def test_an_upload_is_completed_when_descriptors_are_back_soon(
    storage: FilesystemStorage, descriptors: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await writer_of(storage)
    writer.append(b"x")
    monkeypatch.setattr(time, "sleep", lambda seconds: descriptors(None))
    descriptors(0)
    assert committed(await writer.complete()).state is ResourceState.COMPLETED


async def test_a_want_of_descriptors_is_told_as_such(
    storage: FilesystemStorage, descriptors: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await writer_of(storage)
    writer.append(b"announced")
    await writer.checkpoint()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    descriptors(0)
    with pytest.raises(Overloaded):
        await writer.complete()
    with pytest.raises(Overloaded):
        await storage.create(descriptor("1" * 32))
    await writer.close()
    with pytest.raises(Overloaded):
        await storage.open(ID)
    descriptors(None)
    assert (await storage.load(ID)).state is ResourceState.IN_PROGRESS
    continued = await storage.open(ID)
    assert continued.snapshot.size == 9
    assert committed(await continued.complete()).state is ResourceState.COMPLETED


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
