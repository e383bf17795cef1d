"""Folders, locks and damage of the filesystem storage."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from impl_server_disk import ID, committed, descriptor, writer_of

from tailrace_common_api import (
    ConfigurationError,
    DamagedBlock,
    NotFound,
    StorageFailure,
)
from tailrace_impl_common import head_of
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
