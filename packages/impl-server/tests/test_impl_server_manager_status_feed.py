import asyncio
import random
from dataclasses import replace

import pytest
from impl_server_manager_bench import LINES, Bench, Uploader, reading, upload

from tailrace_common_api import (
    Deleted,
    GoingAway,
    InvalidReference,
    NotFound,
    ResourceState,
    Status,
    Visibility,
    make_reference,
)
from tailrace_impl_common import EMPTY_HEAD
from tailrace_impl_server._live_resource import Bases, LiveResource
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_impl_server._pieces import PieceCache, PieceSource
from tailrace_impl_server._shared_tail import SharedTail, TailBudget
from tailrace_server_api import Descriptor, Snapshot

ID = "0" * 32
FIRST = Snapshot(1, 0, ResourceState.INITIATED, None, 0, 0, EMPTY_HEAD, False)


def grown(version: int, state: ResourceState = ResourceState.IN_PROGRESS) -> Snapshot:
    return replace(FIRST, version=version, state=state, size=version)


class Nobody:
    """Observes nothing."""

    def loaded(self, live: LiveResource) -> None:
        pass

    def published(self, live: LiveResource, before: Snapshot) -> None:
        pass


@pytest.fixture
def live() -> LiveResource:
    descriptor = Descriptor(
        id=ID, metadata=LINES, visibility=Visibility.LIVE, created_at=0.0, token_hash=b"", principal=""
    )
    pieces = PieceSource(ID, MemoryStorage(), SharedTail(0, TailBudget(0)), PieceCache(0))
    return LiveResource(descriptor, FIRST, pieces, Bases(), Nobody())


async def watch(live: LiveResource) -> list[int]:
    versions = [live.snapshot.version]
    while not live.snapshot.state.terminal:
        versions.append((await live.changed(versions[-1])).version)
    return versions


async def test_watchers_see_rising_versions_and_the_last_one(live: LiveResource) -> None:
    watchers = [asyncio.create_task(watch(live)) for _ in range(500)]
    chance = random.Random(1)
    for version in range(2, 60):
        live.publish(grown(version))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
    live.publish(grown(60, ResourceState.COMPLETED))
    for versions in await asyncio.gather(*watchers):
        assert versions == sorted(set(versions))
        assert versions[-1] == 60


async def test_an_older_state_never_replaces_a_newer_one(live: LiveResource) -> None:
    live.publish(grown(5))
    live.publish(grown(4))
    assert live.snapshot.version == 5
    live.publish(grown(6, ResourceState.FAILED))
    live.publish(grown(7))
    assert live.snapshot == grown(6, ResourceState.FAILED)


async def test_who_looks_and_then_waits_misses_nothing(live: LiveResource) -> None:
    seen = live.snapshot.version
    live.publish(grown(2))
    # The change came before the wait began; it must not wait for another.
    assert (await live.changed(seen)).version == 2


async def test_who_registers_while_others_are_woken_is_woken_by_the_next_change(live: LiveResource) -> None:
    early = [asyncio.create_task(live.changed(1)) for _ in range(250)]
    await asyncio.sleep(0)
    live.publish(grown(2))
    late = asyncio.create_task(live.changed(2))
    await asyncio.sleep(0)
    live.publish(grown(3))
    assert (await late).version == 3
    assert {snapshot.version for snapshot in await asyncio.gather(*early)} <= {2, 3}


async def test_a_thousand_waiters_do_not_keep_the_loop_from_everything_else(live: LiveResource) -> None:
    woken = 0

    async def wait() -> None:
        nonlocal woken
        await live.changed(1)
        woken += 1

    waiters = [asyncio.create_task(wait()) for _ in range(1000)]
    await asyncio.sleep(0)
    live.publish(grown(2))
    turns = []
    while woken < 1000:
        before = woken
        await asyncio.sleep(0)
        turns.append(woken - before)
    assert max(turns) <= 100
    await asyncio.gather(*waiters)


async def test_a_cancelled_waiter_leaves_nothing(live: LiveResource) -> None:
    waiter = asyncio.create_task(live.changed(1))
    await asyncio.sleep(0)
    assert live.watched
    waiter.cancel()
    await asyncio.wait((waiter,))
    assert not live.watched


async def test_a_waiter_cancelled_between_the_change_and_its_turn_harms_nobody(live: LiveResource) -> None:
    waiters = [asyncio.create_task(live.changed(1)) for _ in range(300)]
    await asyncio.sleep(0)
    live.publish(grown(2))
    for waiter in waiters[100:200]:
        waiter.cancel()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert sum(isinstance(result, Snapshot) for result in results) == 200


async def test_deletion_and_shutdown_reach_who_waits_and_who_comes_later(live: LiveResource) -> None:
    waiting = asyncio.create_task(live.changed(1))
    await asyncio.sleep(0)
    live.go_away()
    with pytest.raises(GoingAway):
        await waiting
    with pytest.raises(GoingAway):
        await live.changed(1)
    live.mark_deleted()
    with pytest.raises(Deleted):
        await live.changed(1)


async def test_statuses_rise_and_end_with_the_terminal_one(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))

    async def collect() -> list[Status]:
        return [status async for status in manager.statuses(uploader.id)]

    watching = asyncio.create_task(collect())
    await asyncio.sleep(0)
    for number in range(20):
        await uploader.send(b"%d\n" % number)
        await uploader.announced()
    final = await uploader.finish()
    statuses = await watching
    assert statuses[0].state is ResourceState.INITIATED
    assert [status.version for status in statuses] == sorted({status.version for status in statuses})
    assert [status.size for status in statuses] == sorted(status.size for status in statuses)
    assert statuses[-1] == final
    assert not [status for status in statuses[:-1] if status.state.terminal]


async def test_versions_rise_across_restarts(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"x\n")
    await uploader.announced()
    before = uploader.ingest.status()
    manager = await disk_bench.restart()
    async with reading(manager, uploader.id) as reader:
        assert reader.snapshot.version >= before.version
        assert reader.snapshot.size == 2
        again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), sent=b"x\n")
        await again.send(b"y\n")
        await again.announced()
        assert reader.snapshot.version > before.version
        await again.ingest.release()


async def test_the_status_names_the_resource_under_every_base(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, b"x")
    async with reading(manager, status.id) as reader:
        assert reader.status().reference == status.id
        assert reader.status().alternatives == ()
        manager.add_base("grpc://host:1")
        manager.add_base("ws://host:2/prefix")
        manager.add_base("grpc://host:1")
        named = reader.status()
        assert named.alternatives == (
            make_reference("grpc://host:1", status.id),
            make_reference("ws://host:2/prefix", status.id),
        )
        assert named.reference == named.alternatives[0]
        # One status serves all who ask.
        assert reader.status() is named


async def test_unknown_and_malformed_ids_answer_at_once(bench: Bench) -> None:
    manager = await bench.start()
    for resource_id, error in (("0" * 32, NotFound), ("../x", InvalidReference), ("", InvalidReference)):
        with pytest.raises(error):
            await manager.open_reader(resource_id)
        with pytest.raises(error):
            await anext(manager.statuses(resource_id))
        with pytest.raises(error):
            await manager.heads(resource_id, [0])
        with pytest.raises(error):
            await manager.delete(resource_id)
        with pytest.raises(error):
            await manager.reopen(resource_id, "token")


async def test_what_another_process_writes_shows_too(bench: Bench) -> None:
    manager = await bench.start()
    ingest = await manager.create(LINES)
    await ingest.release()
    async with reading(manager, ingest.id) as reader:
        # Written past this manager, as another server on the same storage does.
        writer = await bench.storage.inner.open(ingest.id)
        waiting = asyncio.create_task(reader.changed(reader.snapshot.version))
        writer.append(b"from elsewhere\n")
        await writer.checkpoint()
        manager._parts.bus.publish((ingest.id,))
        await waiting
        while reader.snapshot.size < 15:
            await reader.changed(reader.snapshot.version)
        # Without a hint the slow poll finds it.
        waiting = asyncio.create_task(reader.changed(reader.snapshot.version))
        await writer.complete()
        await writer.close()
        assert (await waiting).state is ResourceState.COMPLETED
    async with reading(manager, ingest.id) as reader:
        waiting = asyncio.create_task(reader.changed(reader.snapshot.version))
        await bench.storage.inner.delete(ingest.id)
        with pytest.raises(Deleted):
            await waiting


async def test_what_a_waiter_absorbs_does_not_wake_it(live: LiveResource) -> None:
    absorbed: list[int] = []

    def absorb(snapshot: Snapshot) -> bool:
        absorbed.append(snapshot.version)
        return snapshot.version < 4

    waiting = asyncio.create_task(live.changed(1, absorb))
    await asyncio.sleep(0)
    for version in (2, 3):
        live.publish(grown(version))
        assert absorbed[-1] == version
        await asyncio.sleep(0)
        assert live.watched
        assert not waiting.done()
    live.publish(grown(4))
    assert (await waiting).version == 4
    assert absorbed == [2, 3, 4]
    assert not live.watched
    live.publish(grown(5))
    assert absorbed == [2, 3, 4]


async def test_what_absorbing_raises_reaches_the_waiter_whose_it_is_and_nobody_else(live: LiveResource) -> None:
    def fail(_snapshot: Snapshot) -> bool:
        raise ArithmeticError

    before = asyncio.create_task(live.changed(1))
    failing = asyncio.create_task(live.changed(1, fail))
    behind = asyncio.create_task(live.changed(1))
    await asyncio.sleep(0)
    live.publish(grown(2))
    with pytest.raises(ArithmeticError):
        await failing
    assert [(await before).version, (await behind).version] == [2, 2]


async def test_deletion_and_shutdown_are_not_absorbed(live: LiveResource) -> None:
    absorbed: list[int] = []

    def absorb(snapshot: Snapshot) -> bool:
        absorbed.append(snapshot.version)
        return True

    leaving = asyncio.create_task(live.changed(1, absorb))
    await asyncio.sleep(0)
    live.go_away()
    with pytest.raises(GoingAway):
        await leaving
    live._going_away = False
    told = asyncio.create_task(live.changed(1, absorb))
    await asyncio.sleep(0)
    live.mark_deleted()
    with pytest.raises(Deleted):
        await told
    assert absorbed == []


async def test_those_who_absorb_do_not_keep_the_loop_and_get_only_the_newest(live: LiveResource) -> None:
    absorbed: list[list[int]] = [[] for _ in range(250)]

    def absorbing(number: int) -> asyncio.Task[Snapshot]:
        def absorb(snapshot: Snapshot) -> bool:
            absorbed[number].append(snapshot.version)
            return True

        return asyncio.create_task(live.changed(1, absorb))

    waiters = [absorbing(number) for number in range(250)]
    await asyncio.sleep(0)
    live.publish(grown(2))
    assert sum(map(len, absorbed)) == 100
    live.publish(grown(3))
    assert sum(map(len, absorbed)) == 100
    waiters[200].cancel()
    await asyncio.wait((waiters[200],))
    for _ in range(10):
        await asyncio.sleep(0)
    assert absorbed.pop(200) == []
    assert all(versions in ([2, 3], [3]) for versions in absorbed)
    assert sum(versions == [3] for versions in absorbed) == 149
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    assert not live.watched
