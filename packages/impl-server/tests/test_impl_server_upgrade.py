"""A data folder of an earlier version opens, and nothing of it is lost."""

import pytest
from impl_server_first_catalog import write_first_catalog
from impl_server_manager_bench import LINES, Bench, Uploader, read_all, upload

from tailrace_common_api import ContextClosed, ContextState, ListFilter, Metadata, QuotaExceeded, ResourceState


async def test_a_folder_with_a_catalog_of_the_first_version_opens(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    context = (await manager.create_context({})).id
    named = Metadata(name="x", context=context, labels={"a": "b"})
    done = await upload(manager, b"abc", named)
    failed = await manager.create(LINES, idempotency_key="key")
    await failed.abort("enough")
    running = Uploader(await manager.create(LINES))
    await running.send(b"defgh")
    await running.announced()
    descriptors = {number: await disk_bench.storage.describe(number) for number in (done.id, failed.id, running.id)}
    await disk_bench.close()
    assert disk_bench.path is not None
    for file in disk_bench.path.glob("catalog.sqlite*"):
        file.unlink()
    states = {done.id: (2, 50.0), failed.id: (3, 60.0), running.id: (1, None)}
    rows = [(descriptors[number], *states[number]) for number in descriptors]
    write_first_catalog(disk_bench.path / "catalog.sqlite", rows)

    for attempt in range(2):
        manager = await disk_bench.start(max_storage_bytes=10)
        # Only the first time those that have ended are looked at, for their sizes.
        assert disk_bench.gates.calls["load"] == (3, 1)[attempt]
        assert manager._parts.quotas.storage_bytes == 8
        assert manager._parts.quotas.uploads == 1
        found = await manager.get_context(context)
        assert (found.state, found.closed_at, found.resources, found.bytes) == (ContextState.CLOSED, 50.0, 1, 3)
        entry = await disk_bench.catalog.get(done.id)
        assert entry is not None
        assert (entry.state, entry.ended_at, entry.size) == (ResourceState.COMPLETED, 50.0, 3)
        await disk_bench.close()

    manager = await disk_bench.start(max_storage_bytes=10)
    assert await read_all(manager, done.id) == b"abc"
    page = await manager.list(ListFilter(labels={"a": "b"}), limit=10)
    assert [status.id for status in page.statuses] == [done.id]
    again = await manager.create(LINES, idempotency_key="key")
    assert (again.id, again.snapshot.reason) == (failed.id, "enough")
    with pytest.raises(ContextClosed):
        await manager.create(named)
    with pytest.raises(QuotaExceeded):
        await manager.create(LINES, length=3)
    continued = Uploader(await manager.reopen(running.id, running.ingest.token), b"defgh")
    assert (await continued.finish()).size == 5
