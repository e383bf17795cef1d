"""Damaged bytes are never served: every read of the filesystem storage checks the blocks that it touches."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from impl_server_disk import ID, writer_of

from tailrace_common_api import DamagedBlock
from tailrace_impl_common import chunk_hash
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._journal import RECORD_SIZE, record_offset
from tailrace_server_api import BLOCK_SIZE, Durability
from tailrace_server_api.contracts._storage_hooks import text

SIZE = 3 * BLOCK_SIZE + 1000
DATA = text(SIZE)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncGenerator[FilesystemStorage, None]:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    await storage.start()
    yield storage
    await storage.close()


def flip(storage: FilesystemStorage, name: str, offset: int) -> None:
    """Change one bit of a stored file."""
    fd = os.open(storage._layout.folder(ID) / name, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ 1]), offset)
    finally:
        os.close(fd)


async def damaged(storage: FilesystemStorage, start: int, end: int) -> int:
    """Return the block that a read names; both ways of reading must refuse it."""
    with pytest.raises(DamagedBlock) as raised:
        await storage.read(ID, start, end)
    try:
        cached = storage.read_cached(ID, start, end)
    except DamagedBlock:
        cached = None
    # What comes without waiting may be a part, but only of what is good.
    assert cached is None or cached.data == DATA[start : start + len(cached.data)]
    return raised.value.offset


@pytest.mark.parametrize("ended", [None, "close", "complete"])
@pytest.mark.parametrize("offset", [0, BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 5, 3 * BLOCK_SIZE, SIZE - 1])
async def test_a_damaged_byte_is_not_served_and_the_other_blocks_are(
    storage: FilesystemStorage, offset: int, ended: str | None
) -> None:
    writer = await writer_of(storage)
    writer.append(DATA)
    await writer.checkpoint()
    if ended == "complete":
        await writer.complete()
    if ended:
        await writer.close()
    flip(storage, "data", offset)
    bad = offset - offset % BLOCK_SIZE
    if ended == "close" and bad == 3 * BLOCK_SIZE:
        # What remains is proven by the state before; the announced one is not.
        assert await damaged(storage, bad, SIZE) == 0
        return
    assert await damaged(storage, 0, SIZE) == bad
    # Whatever part of the block is asked for.
    for start in {bad, offset, min(bad + BLOCK_SIZE, SIZE) - 1}:
        assert await damaged(storage, start, start + 1) == bad
    for block in range(0, SIZE, BLOCK_SIZE):
        if block != bad:
            end = min(block + BLOCK_SIZE, SIZE)
            assert (await storage.read(ID, block + 1, end)).data == DATA[block + 1 : end]
            cached = storage.read_cached(ID, block, end)
            assert cached is None or cached.data == DATA[block:end]


@pytest.mark.parametrize("block", range(3))
async def test_bytes_whose_record_is_damaged_are_not_served(storage: FilesystemStorage, block: int) -> None:
    writer = await writer_of(storage)
    writer.append(DATA)
    await writer.complete()
    flip(storage, "journal", record_offset(block) + RECORD_SIZE // 3)
    assert await damaged(storage, 0, SIZE) == block * BLOCK_SIZE
    for other in {0, 1, 2} - {block}:
        start = other * BLOCK_SIZE
        assert (await storage.read(ID, start, start + BLOCK_SIZE)).data == DATA[start : start + BLOCK_SIZE]


async def test_bytes_that_are_written_behind_what_is_announced_do_not_disturb_readers(
    storage: FilesystemStorage,
) -> None:
    writer = await writer_of(storage)
    data = b""
    for size in (10, BLOCK_SIZE - 10, 1, BLOCK_SIZE, 5000):
        writer.append(text(size, size))
        data += text(size, size)
        await writer.checkpoint()
        writer.append(b"more" * 1000)
        data += b"more" * 1000
        await writer.flush()
        announced = writer.snapshot.size
        assert (await storage.read(ID, 0, announced)).data == data[:announced]
        assert (await storage.read(ID, announced - 1, announced)).data == data[announced - 1 : announced]


@pytest.mark.parametrize("start", [0, 1, 1000, BLOCK_SIZE + 7])
@pytest.mark.parametrize("length", [1000, 65536, BLOCK_SIZE, 200_000])
async def test_pieces_of_any_size_from_anywhere_make_up_the_whole(
    storage: FilesystemStorage, start: int, length: int
) -> None:
    writer = await writer_of(storage)
    writer.append(DATA)
    await writer.complete()
    await writer.close()
    found = b""
    while start + len(found) < SIZE:
        position = start + len(found)
        end = min(position + length, SIZE)
        piece = storage.read_cached(ID, position, end)
        if piece is None:
            piece = await storage.read(ID, position, end)
            assert len(piece.data) == end - position
        assert 0 < len(piece.data) <= length
        assert piece.hash == chunk_hash(piece.data)
        found += bytes(piece.data)
    assert found == DATA[start:]


@pytest.mark.parametrize("read", [1, BLOCK_SIZE, BLOCK_SIZE + 1], ids=["a byte", "all of the block", "a byte behind"])
async def test_blocks_are_read_once_by_who_reads_on(storage: FilesystemStorage, read: int) -> None:
    writer = await writer_of(storage)
    writer.append(DATA)
    await writer.complete()
    await storage.read(ID, 0, read)
    block = read - 1 - (read - 1) % BLOCK_SIZE
    flip(storage, "data", block + 5)
    # The block in which it ended was checked a moment ago: it is in memory, as it was.
    cached = storage.read_cached(ID, block + 1, block + 1000)
    if storage._residency_known:
        assert cached is not None
        assert cached.data == DATA[block + 1 : block + 1000]
    other = 0 if block else BLOCK_SIZE
    await storage.read(ID, other, other + 1)
    assert await damaged(storage, block + 1, block + 1000) == block
