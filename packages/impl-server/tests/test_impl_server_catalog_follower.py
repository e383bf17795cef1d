"""A catalog that did not take a change at once is put right while the server runs."""

import asyncio

import pytest
from impl_server_manager_bench import LINES, Bench, Uploader, last_status, turned, upload

from tailrace_common_api import ListFilter, NotFound, ResourceState, StorageFailure, StorageFull
from tailrace_impl_server._catalog_follower import CatalogFollower
from tailrace_impl_server._memory_catalog import MemoryCatalog


class FullCatalog(MemoryCatalog):
    """Takes nothing while it is full."""

    full = True

    async def set_state(self, id: str, state: ResourceState, ended_at: float | None, *, size: int = 0) -> None:
        if self.full:
            raise StorageFull("no room")
        await super().set_state(id, state, ended_at, size=size)

    async def delete(self, id: str) -> None:
        if self.full:
            raise StorageFull("no room")
        await super().delete(id)


async def test_what_was_missed_is_tried_until_it_is_taken() -> None:
    catalog = FullCatalog()
    follower = CatalogFollower(catalog)
    calls: list[str] = []

    async def set_state(id: str, state: ResourceState, ended_at: float | None, *, size: int = 0) -> None:
        calls.append(id)
        await FullCatalog.set_state(catalog, id, state, ended_at, size=size)

    catalog.set_state = set_state  # type: ignore[method-assign]  # to count
    for name in ("a", "b"):
        await follower.record(name, ResourceState.COMPLETED, 3)
    assert follower.missed == 2
    await follower.catch_up()
    # The first that fails shows that the others would, too.
    assert calls == ["a", "b", "a"]
    catalog.full = False
    await follower.catch_up()
    assert follower.missed == 0


async def test_the_last_word_about_a_resource_counts() -> None:
    catalog = FullCatalog()
    follower = CatalogFollower(catalog)
    await follower.record("a", ResourceState.COMPLETED, 3)
    await follower.remove("a")
    assert follower.missed == 1
    catalog.full = False
    await follower.remove("a")
    assert follower.missed == 0


async def test_the_sweep_makes_good_what_a_full_catalog_missed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await bench.start(sweep_interval=0.01)
    deleted = await upload(manager, b"gone")
    with monkeypatch.context() as patched:

        async def full(*args: object, **kwargs: object) -> None:
            raise StorageFull("no room")

        patched.setattr(bench.catalog, "set_state", full)
        patched.setattr(bench.catalog, "delete", full)
        # The storage decides: neither an upload nor a deletion fails for the catalog.
        status = await upload(manager, b"abc")
        await manager.delete(deleted.id)
        entry = await bench.catalog.get(status.id)
        assert entry is not None
        assert not entry.state.terminal
    assert manager._parts.follower.missed == 2
    await turned(lambda: manager._parts.follower.missed == 0)
    page = await manager.list(ListFilter(state=ResourceState.COMPLETED), limit=10)
    assert [found.id for found in page.statuses] == [status.id]
    entry = await bench.catalog.get(status.id)
    assert entry is not None
    assert (entry.state, entry.size) == (ResourceState.COMPLETED, 3)
    assert await bench.catalog.get(deleted.id) is None


async def test_an_end_that_nobody_heard_of_is_noticed_when_the_resource_is_looked_at(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.01, max_uploads=1)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"abc")
    await uploader.announced()
    real = uploader.ingest._writer.complete  # type: ignore[attr-defined] # Of the one kind made here.

    async def complete() -> None:
        await real()
        raise StorageFailure("the answer is lost")

    uploader.ingest._writer.complete = complete  # type: ignore[attr-defined]  # the session of the manager has one
    with pytest.raises(StorageFailure, match="lost"):
        await uploader.finish()
    await uploader.ingest.release()
    # It has ended, and counts as such as soon as anybody looks.
    assert (await last_status(manager, uploader.id)).state is ResourceState.COMPLETED
    await turned(lambda: manager._parts.quotas.uploads == 0)
    await asyncio.gather(*manager._parts.tasks._tasks)
    entry = await bench.catalog.get(uploader.id)
    assert entry is not None
    assert (entry.state, entry.size) == (ResourceState.COMPLETED, 3)
    await manager.create(LINES)


async def test_storage_that_fails_is_logged_by_the_server(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    manager = await bench.start()
    bench.gates.failures["create"] = StorageFull("no room")
    with pytest.raises(StorageFull):
        await manager.create(LINES)
    assert "a resource could not be stored: no room" in caplog.text
    del bench.gates.failures["create"]
    uploader = Uploader(await manager.create(LINES))
    bench.gates.failures["checkpoint"] = StorageFull("no room")
    await uploader.send(b"abc")
    with pytest.raises(StorageFull):
        await uploader.announced()
    await uploader.ingest.release()
    assert "an upload cannot be stored: no room" in caplog.text
    with pytest.raises(NotFound):
        await manager.open_reader("0" * 32)
