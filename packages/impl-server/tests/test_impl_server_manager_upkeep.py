import asyncio
import errno
import logging
import time
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from impl_server_gated_storage import GatedWriter
from impl_server_manager_bench import LINES, Bench, Uploader, last_status, read_all, reading, turned, upload

from tailrace_common_api import (
    SERVERS,
    ConfigurationError,
    InvalidArgument,
    ListFilter,
    NotFound,
    Overloaded,
    ResourceState,
    StorageFailure,
    StorageFull,
    Visibility,
)
from tailrace_impl_server import ManagedServer, ServerSettings, create_manager
from tailrace_impl_server._admission import DescriptorBudget
from tailrace_impl_server._memory_catalog import MemoryCatalog
from tailrace_impl_server._retention import Sweeper
from tailrace_server_api import ContextEntry, Durability, Outcome


async def test_a_lost_uploader_fails_the_resource_when_the_grace_is_over(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.01)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"announced\n")
    await uploader.ingest.release()
    status = await last_status(manager, uploader.id)
    assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "uploader lost", 10)
    entry = await bench.catalog.get(uploader.id)
    assert entry is not None
    assert entry.state is ResourceState.FAILED
    assert (await manager.reopen(uploader.id, uploader.ingest.token)).snapshot.state is ResourceState.FAILED


async def test_the_end_of_a_lost_upload_is_in_the_catalog_before_anybody_sees_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await bench.start(upload_grace=0.01, poll_interval=0.001)
    uploader = Uploader(await manager.create(LINES))
    recording, recorded = asyncio.Event(), asyncio.Event()
    record = bench.catalog.set_state

    async def late(*args: Any, **kwargs: Any) -> Any:
        recording.set()
        await recorded.wait()
        return await record(*args, **kwargs)

    monkeypatch.setattr(bench.catalog, "set_state", late)
    watching = asyncio.ensure_future(last_status(manager, uploader.id))
    await uploader.ingest.release()
    await recording.wait()
    # The storage has the end already, and watched resources are looked at again all the time.
    for _ in range(20):
        await asyncio.sleep(0.001)
    live = manager._registry.peek(uploader.id)
    assert live is not None
    assert not live.snapshot.state.terminal
    recorded.set()
    assert (await watching).state is ResourceState.FAILED


async def test_a_lost_uploader_of_an_atomic_resource_leaves_nothing(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.01)
    uploader = Uploader(await manager.create(LINES, visibility=Visibility.ATOMIC))
    await uploader.send(b"secret\n")
    await uploader.ingest.release()
    with pytest.raises(NotFound):
        await last_status(manager, uploader.id, uploader.ingest.token)
    await turned(lambda: len(manager._registry) == 0)
    assert await bench.catalog.known() == frozenset()
    assert [stored async for stored in bench.storage.ids()] == []


async def test_a_session_that_breaks_leaves_the_grace_running_without_a_release(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.01)
    ingest = await manager.create(LINES)
    ingest.submit(b"bad", hash=bytes(8))
    assert (await last_status(manager, ingest.id)).reason == "uploader lost"


async def test_coming_back_in_time_ends_the_grace(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.ingest.release()
    assert manager._parts.sweeper.graces == 1
    again = await manager.reopen(uploader.id, uploader.ingest.token)
    assert manager._parts.sweeper.graces == 0
    # An expiry that was under way already does no harm either.
    await manager.expire(uploader.id, None)
    assert (await Uploader(again).finish()).state is ResourceState.COMPLETED
    assert manager._parts.sweeper.graces == 0


async def test_an_upload_that_another_server_took_over_is_left_alone(bench: Bench) -> None:
    manager = await bench.start()
    ingest = await manager.create(LINES)
    epoch = ingest.snapshot.epoch
    await ingest.release()
    writer = await bench.storage.inner.open(ingest.id)
    await manager.expire(ingest.id, epoch)
    writer.append(b"still here\n")
    await writer.checkpoint()
    await writer.close()
    assert (await bench.storage.load(ingest.id)).state is ResourceState.IN_PROGRESS


async def test_an_expiry_that_fails_is_tried_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    manager = await bench.start(upload_grace=0.01)
    ingest = await manager.create(LINES)
    bench.gates.failures["load"] = StorageFailure("not now")
    with caplog.at_level(logging.ERROR):
        await ingest.release()
        await turned(lambda: bool(caplog.records))
    assert caplog.records[0].resource == ingest.id  # type: ignore[attr-defined] # Every record bears it.
    bench.gates.failures.clear()
    assert (await last_status(manager, ingest.id)).reason == "uploader lost"


@pytest.mark.parametrize("damaged", ["unfinished", "ended"])
async def test_a_damaged_resource_harms_no_other(disk_bench: Bench, damaged: str) -> None:
    manager = await disk_bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"announced\n")
    await uploader.announced()
    whole = await upload(manager, b"whole\n")
    if damaged == "ended":
        await uploader.finish()
    await disk_bench.close()
    assert disk_bench.path is not None
    (disk_bench.path / "resources" / uploader.id / "journal").write_bytes(b"")
    manager = await disk_bench.start()
    page = await manager.list(ListFilter(), limit=10)
    assert [status.id for status in page.statuses] == [whole.id]
    with pytest.raises(StorageFailure):
        await manager.open_reader(uploader.id)
    assert await read_all(manager, whole.id) == b"whole\n"
    await upload(manager, b"another\n")


@pytest.mark.parametrize("failure", [StorageFailure, StorageFull])
async def test_an_expiry_that_fails_behind_its_opening_is_tried_again(
    bench: Bench,
    failure: type[StorageFailure] | type[StorageFull],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = GatedWriter.fail
    manager = await bench.start(upload_grace=0.01)
    ingest = await manager.create(LINES)

    async def fail(writer: GatedWriter, reason: str) -> Outcome:
        raise failure("not now")

    monkeypatch.setattr(GatedWriter, "fail", fail)
    with caplog.at_level(logging.ERROR):
        await ingest.release()
        await turned(lambda: bool(caplog.records))
    assert caplog.records[0].resource == ingest.id  # type: ignore[attr-defined] # Every record bears it.
    monkeypatch.setattr(GatedWriter, "fail", failing)
    assert (await last_status(manager, ingest.id)).reason == "uploader lost"


async def test_the_grace_begins_again_when_the_server_starts(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"announced\n")
    await uploader.announced()
    manager = await disk_bench.restart()
    assert manager._parts.sweeper.graces == 1
    async with reading(manager, uploader.id) as reader:
        assert reader.snapshot.state is ResourceState.IN_PROGRESS
    manager = await disk_bench.restart(upload_grace=0.01)
    assert (await last_status(manager, uploader.id)).reason == "uploader lost"


class _Expired:
    """Takes note of what the sweeper asks for."""

    def __init__(self) -> None:
        self.expired: list[str] = []

    async def expire(self, id: str, epoch: int | None) -> None:
        self.expired.append(id)

    async def remove(self, id: str) -> None:
        raise AssertionError("nothing is to be removed")


async def _no_tick() -> None:
    return


async def test_one_task_and_one_bounded_heap_see_to_all_graces() -> None:
    manager = _Expired()
    sweeper = Sweeper(manager, MemoryCatalog(), ServerSettings(upload_grace=0.0), _no_tick)
    for number in range(10_000):
        sweeper.begin_grace(f"lost {number % 10}", None)
        sweeper.cancel_grace(f"lost {number % 10}")
    assert len(sweeper._heap) < 200
    for number in range(100):
        sweeper.begin_grace(f"lost {number}", None)
    before = len(asyncio.all_tasks())
    sweeper.start()
    assert len(asyncio.all_tasks()) == before + 1
    await turned(lambda: len(manager.expired) == 100)
    assert sorted(manager.expired) == sorted(f"lost {number}" for number in range(100))
    await sweeper.close()


async def test_retention_deletes_by_state_and_age(bench: Bench) -> None:
    manager = await bench.start(retention_completed=100, retention_failed=1000, sweep_interval=3600)
    await upload(manager, b"x")
    failing = await manager.create(LINES)
    failed = await failing.abort("no")
    assert failed is not None
    running = await manager.create(LINES)
    now = time.time()
    await manager._parts.sweeper.sweep(now + 50)
    assert len(await bench.catalog.known()) == 3
    await manager._parts.sweeper.sweep(now + 200)
    assert await bench.catalog.known() == {failed.id, running.id}
    await manager._parts.sweeper.sweep(now + 10_000)
    assert await bench.catalog.known() == {running.id}
    assert {stored async for stored in bench.storage.ids()} == {running.id}
    await running.release()


async def test_retention_goes_on_when_one_resource_cannot_be_deleted(bench: Bench) -> None:
    manager = await bench.start(retention_completed=0, sweep_interval=3600)
    statuses = [await upload(manager, b"x") for _ in range(3)]
    bench.gates.failures["delete"] = StorageFailure("busy")
    await manager._parts.sweeper.sweep(time.time() + 10)
    assert await bench.catalog.known() == {status.id for status in statuses}
    bench.gates.failures.clear()
    await manager._parts.sweeper.sweep(time.time() + 10)
    assert await bench.catalog.known() == frozenset()


async def test_a_lost_catalog_is_rebuilt(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    completed = await upload(manager, b"x\n")
    running = await manager.create(LINES, idempotency_key="key")
    await disk_bench.close()
    assert disk_bench.path is not None
    for path in disk_bench.path.glob("catalog.sqlite*"):
        path.unlink()
    manager = await disk_bench.start()
    page = await manager.list(ListFilter(), limit=10)
    assert [status.id for status in page.statuses] == [completed.id, running.id]
    assert manager._parts.sweeper.graces == 1
    again = await manager.create(LINES, idempotency_key="key")
    assert again.id == running.id
    await again.release()


async def test_entries_without_a_resource_are_removed(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    ended = await upload(manager, b"x")
    running = await manager.create(LINES)
    await running.release()
    await disk_bench.storage.inner.delete(ended.id)
    await disk_bench.storage.inner.delete(running.id)
    manager = await disk_bench.restart()
    assert (await manager.list(ListFilter(), limit=10)).statuses == ()
    assert await disk_bench.catalog.known() == frozenset()
    assert manager._parts.sweeper.graces == 0


async def test_an_ended_resource_that_the_catalog_thinks_unfinished_is_corrected(
    disk_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await disk_bench.start()

    async def set_state(id: str, state: ResourceState, ended_at: float | None, *, size: int = 0) -> None:
        raise StorageFailure("the catalog is gone")

    monkeypatch.setattr(disk_bench.catalog, "set_state", set_state)
    # The storage decides: the upload completes all the same.
    status = await upload(manager, b"x")
    assert status.state is ResourceState.COMPLETED
    manager = await disk_bench.restart()
    entry = await disk_bench.catalog.get(status.id)
    assert entry is not None
    assert entry.state is ResourceState.COMPLETED
    assert manager._parts.sweeper.graces == 0


async def test_of_two_resources_under_one_key_the_unused_one_goes(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    used = await manager.create(LINES, idempotency_key="key")
    described = await disk_bench.storage.describe(used.id)
    unused_id, created_at = manager._parts.ids.next()
    # What a server leaves that is killed between creating a resource and finding that the key is taken.
    await disk_bench.storage.create(replace(described, id=unused_id, created_at=created_at))
    await disk_bench.close()
    assert disk_bench.path is not None
    for path in disk_bench.path.glob("catalog.sqlite*"):
        path.unlink()
    await disk_bench.start()
    assert await disk_bench.catalog.known() == {used.id}
    assert {stored async for stored in disk_bench.storage.ids()} == {used.id}


async def test_a_resource_that_cannot_be_read_does_not_keep_the_server_from_starting(
    disk_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await disk_bench.start()
    broken = await manager.create(LINES)
    status = await upload(manager, b"fine")
    await disk_bench.close()
    assert disk_bench.path is not None
    (journal,) = [path for path in disk_bench.path.rglob("journal") if broken.id in str(path)]
    journal.write_bytes(b"")
    manager = await disk_bench.start()
    assert await read_all(manager, status.id) == b"fine"
    assert [record for record in caplog.records if getattr(record, "resource", None) == broken.id]


async def test_pages_give_everything_once_in_order_of_creation(bench: Bench) -> None:
    manager = await bench.start(max_page_size=3)
    ids = []
    for number in range(8):
        metadata = replace(LINES, labels={"parity": str(number % 2)})
        ids.append((await upload(manager, b"x", metadata)).id)
    assert ids == sorted(ids)
    for limit in (1, 2, 3, 100):
        seen: list[str] = []
        token = None
        while True:
            page = await manager.list(ListFilter(), limit=limit, page_token=token)
            assert 0 < len(page.statuses) <= min(limit, 3)
            seen += [status.id for status in page.statuses]
            token = page.next_token
            if token is None:
                break
        assert seen == ids
    odd = await manager.list(ListFilter(labels={"parity": "1"}), limit=3)
    assert [status.id for status in odd.statuses] == ids[1:6:2]


async def test_listing_shows_the_state_as_it_is_and_hides_unfinished_atomic_ones(bench: Bench) -> None:
    manager = await bench.start()
    live = Uploader(await manager.create(LINES))
    atomic = Uploader(await manager.create(LINES, visibility=Visibility.ATOMIC))
    await live.send(b"x\n")
    await live.announced()
    await atomic.send(b"y\n")
    await atomic.announced()
    (status,) = (await manager.list(ListFilter(), limit=10)).statuses
    assert (status.id, status.state, status.size) == (live.id, ResourceState.IN_PROGRESS, 2)
    for uploader in (live, atomic):
        await uploader.finish()
    completed = await manager.list(ListFilter(state=ResourceState.COMPLETED), limit=10)
    assert [status.id for status in completed.statuses] == [live.id, atomic.id]
    assert (await manager.list(ListFilter(state=ResourceState.IN_PROGRESS), limit=10)).statuses == ()


async def test_bad_listings_are_refused(memory_bench: Bench) -> None:
    manager = await memory_bench.start()
    for limit in (0, -1):
        with pytest.raises(InvalidArgument):
            await manager.list(ListFilter(), limit=limit)
    for token in ("", "x", "é", "AAAA", "' OR 1=1"):
        with pytest.raises(InvalidArgument):
            await manager.list(ListFilter(), limit=1, page_token=token)


async def test_work_is_refused_while_descriptors_are_scarce() -> None:
    used = 10
    budget = DescriptorBudget(count=lambda: used, limit=lambda: 1000)
    budget.admit()
    used = 950
    await budget.sample()
    with pytest.raises(Overloaded) as raised:
        budget.admit()
    assert raised.value.retry_after > 0
    # A refusal makes it look again.
    used = 10
    await budget.close()
    budget.admit()
    await budget.close()


async def test_descriptors_are_counted_before_the_reserve_can_be_used_up() -> None:
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    budget = DescriptorBudget(count=count, limit=lambda: 1000)
    for _ in range(1000):
        budget.admit()
        await budget.close()
    assert 1000 // 100 <= counted <= 1000 // 20


async def test_a_burst_does_not_use_up_the_reserve_before_it_is_counted() -> None:
    budget = DescriptorBudget(count=lambda: 850, limit=lambda: 1000)
    await budget.sample()
    for _ in range(50):
        budget.admit()
    with pytest.raises(Overloaded):
        budget.admit()
    await budget.close()
    budget.admit()
    await budget.close()


async def test_where_not_even_counting_is_possible_nobody_is_admitted() -> None:
    def count() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    budget = DescriptorBudget(count=count, limit=lambda: 1000)
    await budget.sample()
    with pytest.raises(Overloaded):
        budget.admit()
    await budget.close()


async def test_the_manager_admits(memory_bench: Bench) -> None:
    manager = await memory_bench.start()
    manager.admit()
    await manager._descriptors.sample()
    assert manager._descriptors._used > 0


def test_settings_are_read_from_values_and_text() -> None:
    options = {
        "durability": "fsync",
        "upload_window": "65536",
        "checkpoint_interval": "0.5",
        "retention_failed": "none",
    }
    settings = ServerSettings.from_options({**options, "retention_completed": 60})
    assert settings.durability is Durability.FSYNC
    assert settings.upload_window == 65536
    assert settings.checkpoint_interval == 0.5
    assert settings.retention_failed is None
    assert settings.retention_completed == 60
    assert settings.tail_limit == 2 * 65536
    limits = ServerSettings(upload_grace=7.0).limits
    assert (limits.upload_window, limits.upload_grace) == (4 * 1024 * 1024, 7.0)


@pytest.mark.parametrize(
    "options",
    [
        {"unknown": 1},
        {"durability": "paper"},
        {"durability": 3},
        {"upload_window": "many"},
        {"upload_window": 0},
        {"upload_window": 1.5},
        {"upload_window": True},
        {"chunk_size": 4 * 1024 * 1024},
        {"checkpoint_interval": -1},
        {"checkpoint_interval": "nan"},
        {"upload_grace": None},
        {"retention_failed": "soon"},
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ServerSettings.from_options(options)
    assert raised.value.field in options
    with pytest.raises(ConfigurationError):
        create_manager(None, options)


@pytest.mark.parametrize("kind", ["memory", "filesystem"])
async def test_a_server_is_made_by_its_entry_point(kind: str, tmp_path: Path) -> None:
    (found,) = entry_points(group=SERVERS, name="default")
    create = found.load()
    assert create is create_manager
    server: ManagedServer = create(None if kind == "memory" else tmp_path / "data", {"durability": "fsync"})
    async with server:
        status = await upload(server.manager, b"x\n")  # type: ignore[arg-type] # What it makes is a Manager.
        assert status.state is ResourceState.COMPLETED
        assert [kept.id for kept in (await server.manager.list(ListFilter(), limit=1)).statuses] == [status.id]
    await server.close()


async def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with create_manager(tmp_path, {}):
        second = create_manager(tmp_path, {})
        with pytest.raises(ConfigurationError):
            await second.start()
    async with create_manager(tmp_path, {}) as third:
        assert (await third.manager.list(ListFilter(), limit=1)).statuses == ()


async def test_nothing_runs_on_when_a_server_is_closed(bench: Bench) -> None:
    before = asyncio.all_tasks()
    manager = await bench.start()
    await manager.create(LINES)
    await manager.open_reader((await manager.create(LINES, sha256=bytes(32))).id)
    await bench.close()
    await manager.close()
    assert asyncio.all_tasks() == before


async def test_a_creation_that_fails_behind_its_storing_leaves_nothing_for_ever(
    memory_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await memory_bench.start(upload_grace=0.01)
    context = await manager.create_context({})
    get_context = memory_bench.catalog.get_context
    asked = 0

    async def fail_later(id: str) -> ContextEntry | None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise StorageFailure("not now")
        return await get_context(id)

    monkeypatch.setattr(memory_bench.catalog, "get_context", fail_later)
    with pytest.raises(StorageFailure):
        await manager.create(replace(LINES, context=context.id))
    (left,) = await memory_bench.catalog.known()
    assert (await last_status(manager, left)).reason == "uploader lost"
    assert manager._parts.quotas.uploads == 0


async def test_a_defect_of_the_storage_does_not_end_the_looking_at_watched_resources(
    memory_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await memory_bench.start(poll_interval=0.01)
    uploader = Uploader(await manager.create(LINES))
    await uploader.ingest.release()
    statuses = manager.statuses(uploader.id)
    assert (await anext(statuses)).size == 0
    waiting = asyncio.ensure_future(anext(statuses))
    memory_bench.gates.failures["load"] = RuntimeError("a defect")  # type: ignore[assignment]  # what must not be
    with caplog.at_level(logging.ERROR):
        await turned(lambda: bool(caplog.records))
    writer = await memory_bench.storage.inner.open(uploader.id)
    writer.append(b"from elsewhere\n")
    await writer.checkpoint()
    await writer.close()
    memory_bench.gates.failures.clear()
    assert (await waiting).size == 15
    await statuses.aclose()


async def test_a_retention_that_fails_does_not_keep_the_rest_from_being_done() -> None:
    class BrokenCatalog(MemoryCatalog):
        async def ended_before(self, state: ResourceState, time: float, *, limit: int) -> tuple[str, ...]:
            raise StorageFailure("not now")

    class Nobody:
        async def expire(self, id: str, epoch: int | None) -> None:
            raise AssertionError("nothing is lost")

        async def remove(self, id: str) -> None:
            raise AssertionError("nothing is outlived")

    ticked = asyncio.Event()

    async def tick() -> None:
        ticked.set()

    settings = ServerSettings.from_options({"retention_failed": 1.0, "sweep_interval": 0.01})
    sweeper = Sweeper(Nobody(), BrokenCatalog(), settings, tick)
    sweeper.start()
    try:
        await ticked.wait()
    finally:
        await sweeper.close()
