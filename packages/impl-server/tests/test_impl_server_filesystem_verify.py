"""What verifying finds in the files of a resource, and what a repair makes good."""

import os
from pathlib import Path

import pytest
from impl_server_disk import ID, committed, descriptor

from tailrace_common_api import AlreadyTerminal, ConfigurationError, DamagedBlock, ResourceState, StorageFailure
from tailrace_impl_server import create_manager
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._journal import record_offset
from tailrace_server_api import BLOCK_SIZE, Damage, Durability, Snapshot
from tailrace_server_api.contracts._storage_hooks import text

SIZE = 5 * BLOCK_SIZE + 1000
DATA = text(SIZE)


async def started(root: Path) -> FilesystemStorage:
    storage = FilesystemStorage(root, durability=Durability.OS)
    await storage.start()
    return storage


async def stored(root: Path, *, complete: bool = True) -> Snapshot:
    storage = await started(root)
    await storage.create(descriptor())
    writer = await storage.open(ID)
    writer.append(DATA)
    snapshot = committed(await (writer.complete() if complete else writer.checkpoint()))
    await storage.close()
    return snapshot


def overwrite(root: Path, name: str, offset: int, data: bytes = b"\xffdamage") -> None:
    fd = os.open(root / "resources" / ID / name, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


async def verified(root: Path, *, repair: bool = False) -> list[Damage]:
    storage = await started(root)
    try:
        return [damage async for damage in storage.verify(ID, repair=repair)]
    finally:
        await storage.close()


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("blocks", [(0,), (4,), (1, 2), (0, 2, 4), (0, 1, 2, 3, 4)])
async def test_records_are_written_anew_from_bytes_that_are_proven(
    tmp_path: Path, blocks: tuple[int, ...], complete: bool
) -> None:
    before = await stored(tmp_path, complete=complete)
    journal = tmp_path / "resources" / ID / "journal"
    whole = journal.read_bytes()
    for block in blocks:
        overwrite(tmp_path, "journal", record_offset(block))
    for repair in (False, True):
        found = await verified(tmp_path, repair=repair)
        assert [damage.offset for damage in found] == [block * BLOCK_SIZE for block in blocks]
        assert all(damage.repaired is repair for damage in found)
    assert journal.read_bytes() == whole
    assert await verified(tmp_path) == []
    storage = await started(tmp_path)
    assert await storage.load(ID) == before
    assert (await storage.read(ID, 0, SIZE)).data == DATA
    await storage.close()


async def test_bytes_without_a_record_that_nothing_proves_are_not_made_good(tmp_path: Path) -> None:
    await stored(tmp_path)
    overwrite(tmp_path, "journal", record_offset(1))
    overwrite(tmp_path, "data", BLOCK_SIZE + 1)
    for repair in (False, True, False):
        found = await verified(tmp_path, repair=repair)
        assert [(damage.offset, damage.repaired) for damage in found] == [(BLOCK_SIZE, False)]
    storage = await started(tmp_path)
    with pytest.raises(DamagedBlock):
        await storage.read(ID, BLOCK_SIZE, BLOCK_SIZE + 1)
    assert (await storage.read(ID, 2 * BLOCK_SIZE, SIZE)).data == DATA[2 * BLOCK_SIZE :]
    await storage.close()


@pytest.mark.parametrize("offset", [0, 4096, 8192])
async def test_header_and_states_are_made_good(tmp_path: Path, offset: int) -> None:
    before = await stored(tmp_path)
    journal = tmp_path / "resources" / ID / "journal"
    whole = journal.read_bytes()
    overwrite(tmp_path, "journal", offset)
    assert [damage.offset for damage in await verified(tmp_path)] == [None]
    assert [damage.repaired for damage in await verified(tmp_path, repair=True)] == [True]
    assert journal.read_bytes() == whole
    storage = await started(tmp_path)
    assert await storage.load(ID) == before
    await storage.close()


async def test_what_cannot_be_proven_at_all_is_told(tmp_path: Path) -> None:
    await stored(tmp_path)
    folder = tmp_path / "resources" / ID
    for offset in (4096, 8192):
        overwrite(tmp_path, "journal", offset)
    assert [str(damage.problem) for damage in await verified(tmp_path, repair=True)] == [
        "both states in the journal are damaged"
    ]
    (folder / "journal").unlink()
    assert [damage.problem for damage in await verified(tmp_path)] == ["journal is missing"]
    (folder / "resource.json").write_text("{")
    assert "description" in (await verified(tmp_path))[0].problem
    (folder / "resource.json").unlink()
    assert [damage.problem for damage in await verified(tmp_path)] == ["resource.json is missing"]


async def test_lost_and_surplus_bytes_are_told(tmp_path: Path) -> None:
    await stored(tmp_path)
    data = tmp_path / "resources" / ID / "data"
    with data.open("ab") as file:
        file.write(b"surplus")
    assert [(damage.offset, damage.repaired) for damage in await verified(tmp_path, repair=True)] == [(SIZE, True)]
    assert data.read_bytes() == DATA
    os.truncate(data, 4 * BLOCK_SIZE + 1)
    assert [damage.offset for damage in await verified(tmp_path)] == [4 * BLOCK_SIZE, 5 * BLOCK_SIZE]


async def test_a_resource_that_is_written_is_not_verified(tmp_path: Path) -> None:
    storage = await started(tmp_path)
    await storage.create(descriptor())
    await storage.open(ID)
    with pytest.raises(StorageFailure, match="being written"):
        await anext(storage.verify(ID))
    await storage.close()


async def test_a_server_verifies_what_it_stores_and_its_catalog_follows(tmp_path: Path) -> None:
    await stored(tmp_path, complete=False)
    overwrite(tmp_path, "data", 5)
    found = [item async for item in create_manager(tmp_path, {}).verify(repair=True)]
    assert [(resource, damage and damage.offset) for resource, damage in found] == [(ID, 0), (ID, None), (ID, None)]
    assert found[-1] == (ID, None)
    storage = await started(tmp_path)
    assert (await storage.load(ID)).state is ResourceState.FAILED
    with pytest.raises(AlreadyTerminal):
        await storage.open(ID)
    with pytest.raises(ConfigurationError, match="in use"):
        await anext(create_manager(tmp_path, {}).verify())
    await storage.close()
    async with create_manager(tmp_path, {}) as server:
        reader = await server.manager.open_reader(ID)
        status = reader.status()
        reader.close()
        assert (status.state, status.reason) == (ResourceState.FAILED, "data damaged")
