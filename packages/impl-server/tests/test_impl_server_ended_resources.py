"""What the filesystem storage keeps of resources that have ended, and when it looks again."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from impl_server_disk import ID, committed, descriptor, writer_of

from tailrace_common_api import NotFound, ResourceState, StorageFailure
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._recently_read import RecentlyRead
from tailrace_server_api import Durability, Snapshot


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncGenerator[FilesystemStorage, None]:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    await storage.start()
    yield storage
    await storage.close()


async def completed(storage: FilesystemStorage) -> Snapshot:
    writer = await writer_of(storage)
    writer.append(b"bytes")
    final = committed(await writer.complete())
    await writer.close()
    return final


async def test_an_ended_resource_is_looked_up_once(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    final = await completed(storage)
    assert await storage.describe(ID) == descriptor()
    assert await storage.load(ID) == final
    looked: list[str] = []
    monkeypatch.setattr(storage._layout, "describe", looked.append)
    monkeypatch.setattr(storage, "_recovered_snapshot", looked.append)
    assert await storage.describe(ID) == descriptor()
    assert await storage.load(ID) == final
    assert looked == []


async def test_a_resource_that_may_go_on_is_looked_at_each_time(storage: FilesystemStorage) -> None:
    writer = await writer_of(storage)
    await writer.close()
    first = await storage.load(ID)
    taken_over = await storage.open(ID)
    taken_over.append(b"more")
    final = committed(await taken_over.complete())
    await taken_over.close()
    assert not first.state.terminal
    assert (await storage.load(ID)).state is ResourceState.COMPLETED
    assert await storage.load(ID) == final


async def test_a_new_token_is_seen_at_once(storage: FilesystemStorage) -> None:
    await completed(storage)
    assert (await storage.describe(ID)).token_hash == bytes(32)
    await storage.replace_token(ID, b"n" * 32)
    assert (await storage.describe(ID)).token_hash == b"n" * 32


async def test_what_was_deleted_is_known_no_more(storage: FilesystemStorage) -> None:
    await completed(storage)
    await storage.describe(ID)
    await storage.load(ID)
    await storage.delete(ID)
    for call in (storage.describe(ID), storage.load(ID)):
        with pytest.raises(NotFound):
            await call
    # Another one under the same id is not taken for it.
    writer = await writer_of(storage, lines=False)
    await writer.close()
    assert await storage.describe(ID) == descriptor(lines=False)
    assert not (await storage.load(ID)).state.terminal


async def test_a_look_that_a_deletion_overtakes_is_not_kept(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await completed(storage)
    read, go_on = threading.Event(), threading.Event()
    real: Callable[[str], object] = storage._layout.describe

    def slow(id: str) -> object:
        found = real(id)
        read.set()
        go_on.wait(30)
        return found

    monkeypatch.setattr(storage._layout, "describe", slow)
    looking = asyncio.ensure_future(storage.describe(ID))
    await asyncio.to_thread(read.wait, 30)
    monkeypatch.undo()
    await storage.delete(ID)
    go_on.set()
    # Who asked before the deletion may have the answer of before it; who asks behind it does not.
    assert await looking == descriptor()
    with pytest.raises(NotFound):
        await storage.describe(ID)


async def test_verifying_looks_at_the_disk_and_so_does_who_asks_afterwards(
    storage: FilesystemStorage, tmp_path: Path
) -> None:
    await completed(storage)
    await storage.describe(ID)
    await storage.load(ID)
    (tmp_path / "storage/resources" / ID / "resource.json").write_text("{")
    assert [damage.offset async for damage in storage.verify(ID)] == [None]
    with pytest.raises(StorageFailure):
        await storage.describe(ID)


async def test_a_closed_storage_knows_nothing(tmp_path: Path) -> None:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    await storage.start()
    await completed(storage)
    await storage.describe(ID)
    await storage.load(ID)
    await storage.close()
    for call in (storage.describe(ID), storage.load(ID)):
        with pytest.raises(StorageFailure, match="closed"):
            await call


def test_those_asked_for_last_are_kept() -> None:
    recent: RecentlyRead[int] = RecentlyRead(2)
    for number, id in enumerate("abc"):  # noqa: A001 - what it is.
        recent.keep(id, number, recent.forgotten)
        recent.get("a")
    assert [recent.get(id) for id in "abc"] == [0, None, 2]  # noqa: A001 - what it is.
