import asyncio
from dataclasses import replace

import pytest
from impl_server_manager_bench import (
    LINES,
    Bench,
    Uploader,
    ended,
    follow,
    last_status,
    read_all,
    reading,
    refusal,
    turned,
    upload,
)

from tailrace_common_api import (
    Deleted,
    Fenced,
    GoingAway,
    IdempotencyConflict,
    InvalidReference,
    Metadata,
    NotFound,
    ResourceState,
    StorageFailure,
    TokenRejected,
    Visibility,
)
from tailrace_impl_common import chunk_hash
from tailrace_impl_server import LocalEventBus, Manager
from tailrace_impl_server._journal import SLOT_SIZE, slot_offset
from tailrace_impl_server._tokens import hash_token


async def test_a_newer_session_fences_the_older_one(bench: Bench) -> None:
    manager = await bench.start()
    old = Uploader(await manager.create(LINES))
    epoch = old.ingest.snapshot.epoch
    await old.send(b"from the old one\n")
    waiting = asyncio.create_task(refusal(old.ingest))
    new = await manager.reopen(old.id, old.ingest.token)
    assert new.snapshot.epoch > epoch
    assert isinstance(await waiting, Fenced)
    with pytest.raises(Fenced) as raised:
        old.ingest.submit(b"late\n", hash=chunk_hash(b"late\n"))
    assert raised.value.epoch == epoch
    with pytest.raises(Fenced):
        await old.finish()
    with pytest.raises(Fenced):
        await old.ingest.abort("late")
    await old.ingest.release()
    # What the old session had sent was announced before the new one began.
    continued = Uploader(new, sent=b"from the old one\n")
    await continued.send(b"from the new one\n")
    await continued.finish()
    assert await read_all(manager, new.id) == b"from the old one\nfrom the new one\n"


async def test_an_old_session_waiting_for_the_disk_ends_before_the_new_one_starts(bench: Bench) -> None:
    manager = await bench.start()
    old = Uploader(await manager.create(LINES))
    bench.gates.shut("checkpoint")
    await old.send(b"in flight\n")
    await bench.gates.arrival("checkpoint")
    reopening = asyncio.create_task(manager.reopen(old.id, old.ingest.token))
    # The older session learns of it at once, although the disk keeps everyone waiting.
    with pytest.raises(Fenced):
        await old.ingest.changed(old.ingest.progress)
    assert not reopening.done()
    bench.gates.open("checkpoint")
    new = await reopening
    assert new.snapshot.size == len(b"in flight\n")
    await new.release()


async def test_reopening_needs_the_token(bench: Bench) -> None:
    manager = await bench.start()
    live = await manager.create(LINES)
    atomic = await manager.create(LINES, visibility=Visibility.ATOMIC)
    for token in ("", "wrong", live.token + "x", "\udcff"):
        with pytest.raises(TokenRejected):
            await manager.reopen(live.id, token)
        with pytest.raises(NotFound):
            await manager.reopen(atomic.id, token)
    with pytest.raises(NotFound):
        await manager.reopen("0" * 32, live.token)
    with pytest.raises(InvalidReference):
        await manager.reopen("../../etc/passwd", live.token)
    # Nobody was fenced by all that.
    live.submit(b"x", hash=chunk_hash(b"x"))
    await live.release()
    await atomic.release()


async def test_only_the_hash_of_a_token_is_stored(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    ingest = await manager.create(LINES, idempotency_key="key")
    assert disk_bench.path is not None
    for path in disk_bench.path.rglob("*"):
        assert not path.is_file() or ingest.token.encode() not in path.read_bytes()
    assert (await disk_bench.storage.describe(ingest.id)).token_hash == hash_token(ingest.token)
    await ingest.release()


async def test_a_retried_creation_is_the_next_session_with_a_new_token(bench: Bench) -> None:
    manager = await bench.start()
    first = Uploader(await manager.create(LINES, idempotency_key="job 7", principal="ann"))
    epoch = first.ingest.snapshot.epoch
    await first.send(b"sent\n")
    second = await manager.create(LINES, idempotency_key="job 7", principal="ann")
    assert second.id == first.id
    assert second.snapshot.epoch > epoch
    assert second.snapshot.size == 5
    assert second.token != first.ingest.token
    with pytest.raises(Fenced):
        await first.finish()
    with pytest.raises(TokenRejected):
        await manager.reopen(second.id, first.ingest.token)
    third = Uploader(await manager.reopen(second.id, second.token), sent=b"sent\n")
    await third.ingest.release()
    # The same once nobody holds the resource in memory: the storage has the new token.
    assert len(manager._registry) == 0
    with pytest.raises(TokenRejected):
        await manager.reopen(second.id, first.ingest.token)
    fourth = Uploader(await manager.reopen(second.id, second.token), sent=b"sent\n")
    await fourth.finish()


async def test_a_retried_creation_of_an_ended_upload_gives_its_status(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES, idempotency_key="key"))
    await uploader.send(b"all\n")
    status = await uploader.finish()
    again = await manager.create(LINES, idempotency_key="key")
    assert again.snapshot.state is ResourceState.COMPLETED
    assert again.status() == status
    assert again.token == ""
    await again.release()


async def test_concurrent_creations_under_one_key_give_one_resource(bench: Bench) -> None:
    manager = await bench.start()
    ingests = await asyncio.gather(*(manager.create(LINES, idempotency_key="key") for _ in range(20)))
    assert len({ingest.id for ingest in ingests}) == 1
    assert len(await bench.catalog.known()) == 1
    assert bench.gates.calls["create"] == 1
    epochs = [ingest._writer.epoch for ingest in ingests]  # type: ignore[attr-defined] # Of the one kind made here.
    last = ingests[epochs.index(max(epochs))]
    assert sorted(set(epochs)) == sorted(epochs)
    finished = Uploader(last)
    assert (await finished.finish()).state is ResourceState.COMPLETED
    for ingest in ingests:
        await ingest.release()
    assert len(manager._uploads._keys) == 0


async def test_two_servers_that_create_under_one_key_give_one_resource(bench: Bench) -> None:
    manager = await bench.start()
    # A second server on the same storage and catalog; it needs no start of its own for this.
    other = Manager(bench.storage, bench.catalog, LocalEventBus(), manager.settings)
    bench.gates.shut("create")
    creating = [asyncio.create_task(at.create(LINES, idempotency_key="key")) for at in (manager, other)]
    await turned(lambda: bench.gates.calls["create"] == 2)
    bench.gates.open("create")
    one, two = await asyncio.gather(*creating)
    assert one.id == two.id
    assert await bench.catalog.known() == {one.id}
    assert [stored async for stored in bench.storage.ids()] == [one.id]
    await asyncio.gather(one.release(), two.release())


@pytest.mark.parametrize(
    "other",
    [
        {"metadata": Metadata(name="other.log", content_type="text/plain", lines=True)},
        {"metadata": replace(LINES, labels={"a": "b"})},
        {"visibility": Visibility.ATOMIC},
        {"length": 7},
        {"sha256": bytes(32)},
    ],
)
async def test_a_key_stands_for_one_content(bench: Bench, other: dict[str, object]) -> None:
    manager = await bench.start()
    ingest = await manager.create(LINES, idempotency_key="key")
    wanted = {"metadata": LINES, "idempotency_key": "key", **other}
    with pytest.raises(IdempotencyConflict) as raised:
        await manager.create(**wanted)  # type: ignore[arg-type] # Any of several arguments.
    assert raised.value.id == ingest.id
    # The session was not disturbed.
    assert (await Uploader(ingest).finish()).state is ResourceState.COMPLETED


async def test_keys_are_each_principals_own(bench: Bench) -> None:
    manager = await bench.start()
    ann = await manager.create(LINES, idempotency_key="key", principal="ann")
    bob = await manager.create(LINES, idempotency_key="key", principal="bob")
    assert ann.id != bob.id
    await ann.release()
    await bob.release()


async def test_a_key_outlives_the_server_and_ends_with_the_resource(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    ingest = await manager.create(LINES, idempotency_key="key")
    manager = await disk_bench.restart()
    again = await manager.create(LINES, idempotency_key="key")
    assert again.id == ingest.id
    await manager.delete(ingest.id)
    new = await manager.create(LINES, idempotency_key="key")
    assert new.id != ingest.id
    await new.release()


async def test_an_aborted_atomic_upload_frees_its_key(bench: Bench) -> None:
    manager = await bench.start()
    first = await manager.create(LINES, visibility=Visibility.ATOMIC, idempotency_key="key")
    bench.gates.shut("delete")
    aborting = asyncio.create_task(first.abort("no"))
    await bench.gates.arrival("delete")
    creating = asyncio.create_task(manager.create(LINES, visibility=Visibility.ATOMIC, idempotency_key="key"))
    await asyncio.sleep(0)
    bench.gates.open("delete")
    assert await aborting is None
    second = await creating
    assert second.id != first.id
    await second.release()


async def test_a_reopen_that_fails_leaves_the_grace_running(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.0)
    ingest = await manager.create(LINES)
    bench.gates.failures["open"] = StorageFailure("no")
    with pytest.raises(StorageFailure):
        await manager.reopen(ingest.id, ingest.token)
    del bench.gates.failures["open"]
    assert (await last_status(manager, ingest.id)).reason == "uploader lost"


async def test_deleting_tells_everyone_at_once(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"gone\n")
    await uploader.announced()
    async with reading(manager, uploader.id) as reader:
        following = asyncio.create_task(follow(reader, until=ended))
        watching = asyncio.create_task(last_status(manager, uploader.id))
        uploading = asyncio.create_task(uploader.ingest.changed(uploader.ingest.progress))
        await asyncio.sleep(0)
        bench.gates.shut("delete")
        deleting = asyncio.create_task(manager.delete(uploader.id))
        # They are told before the storage has done its part.
        for task in (following, watching, uploading):
            with pytest.raises(Deleted):
                await task
        for operation in (manager.open_reader(uploader.id), manager.heads(uploader.id, [0])):
            with pytest.raises(NotFound):
                await operation
        bench.gates.open("delete")
        await deleting
        with pytest.raises(Deleted):
            uploader.ingest.submit(b"x", hash=chunk_hash(b"x"))
        with pytest.raises(Deleted):
            await uploader.finish()
        with pytest.raises(Deleted):
            reader.try_read(0, 1)
        with pytest.raises(Deleted):
            await reader.read(0, 1)
        with pytest.raises(Deleted):
            await reader.head(3)
        with pytest.raises(Deleted):
            await reader.line_offset(1, reader.snapshot)
    await uploader.ingest.release()
    for answer in (
        manager.open_reader(uploader.id),
        manager.delete(uploader.id),
        manager.reopen(uploader.id, uploader.ingest.token),
    ):
        with pytest.raises(NotFound):
            await answer
    assert [stored async for stored in bench.storage.ids()] == []
    assert len(manager._registry) == 0


async def test_deleting_goes_on_when_its_caller_is_cancelled(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, b"x")
    bench.gates.shut("delete")
    deleting = asyncio.create_task(manager.delete(status.id))
    await bench.gates.arrival("delete")
    deleting.cancel()
    bench.gates.open("delete")
    await asyncio.wait((deleting,))
    assert deleting.cancelled()
    await asyncio.gather(*manager._parts.tasks._tasks)
    assert await bench.catalog.known() == frozenset()
    assert [stored async for stored in bench.storage.ids()] == []


async def test_an_atomic_upload_exists_for_its_uploader_only(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES, visibility=Visibility.ATOMIC))
    await uploader.send(b"secret\n")
    await uploader.announced()
    for token in (None, "wrong"):
        with pytest.raises(NotFound):
            await manager.open_reader(uploader.id, token=token)
        with pytest.raises(NotFound):
            await manager.heads(uploader.id, [0], token=token)
        with pytest.raises(NotFound):
            await manager.delete(uploader.id, token=token)
        with pytest.raises(NotFound):
            await last_status(manager, uploader.id, token)
    async with reading(manager, uploader.id, uploader.ingest.token) as reader:
        assert (await reader.read(0, 7)).data == b"secret\n"
    await uploader.finish()
    assert await read_all(manager, uploader.id) == b"secret\n"


async def test_a_shutdown_announces_what_arrived_and_leaves_uploads_resumable(disk_bench: Bench) -> None:
    manager = await disk_bench.start(checkpoint_interval=3600.0)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"first\n")
    await uploader.announced()
    await uploader.send(b"second\n")
    watching = asyncio.create_task(uploader.ingest.changed(uploader.ingest.progress))
    async with reading(manager, uploader.id) as reader:
        following = asyncio.create_task(follow(reader, until=ended))
        await asyncio.sleep(0)
        await disk_bench.close()
        with pytest.raises(GoingAway) as raised:
            await watching
        assert raised.value.retry_after == 0.1
        with pytest.raises(GoingAway):
            await following
    with pytest.raises(GoingAway):
        await manager.create(LINES)
    with pytest.raises(GoingAway):
        manager.admit()
    await uploader.ingest.release()
    manager = await disk_bench.start()
    again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), sent=b"first\nsecond\n")
    assert (await again.finish()).state is ResourceState.COMPLETED


async def test_a_finish_under_way_is_not_undone_by_a_shutdown(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"all\n")
    disk_bench.gates.shut("complete")
    finishing = asyncio.create_task(uploader.finish())
    await disk_bench.gates.arrival("complete")
    closing = asyncio.create_task(disk_bench.close())
    await asyncio.sleep(0)
    disk_bench.gates.open("complete")
    assert (await finishing).state is ResourceState.COMPLETED
    await closing
    manager = await disk_bench.start()
    assert (await last_status(manager, uploader.id)).state is ResourceState.COMPLETED


async def test_resources_are_in_memory_only_while_somebody_uses_them(bench: Bench) -> None:
    manager = await bench.start()
    stored = [(await upload(manager, b"x")).id for _ in range(20)]
    assert len(manager._registry) == 0
    readers = await asyncio.gather(*(manager.open_reader(stored[0]) for _ in range(50)))
    assert len(manager._registry) == 1
    assert bench.gates.calls["load"] == 1
    live = manager._registry.peek(stored[0])
    assert live is not None
    assert live.pieces.readers == 50
    for reader in readers[1:]:
        reader.close()
        reader.close()
    assert live.pieces.readers == 1
    readers[0].close()
    with pytest.raises(NotFound):
        await manager.open_reader("0" * 32)
    assert len(manager._registry) == 0
    assert len(manager._registry._locks) == 0


def lose_newest_state(bench: Bench, id: str, version: int) -> None:
    assert bench.path is not None
    with open(bench.path / "resources" / id / "journal", "r+b") as file:
        file.seek(slot_offset(version))
        file.write(bytes(SLOT_SIZE))


async def test_who_has_seen_what_the_disk_has_lost_does_not_see_the_size_go_back(disk_bench: Bench) -> None:
    manager = await disk_bench.start(poll_interval=60.0)
    uploader = Uploader(await manager.create(LINES))
    for line in (b"first\n", b"second\n"):
        await uploader.send(line)
        await uploader.announced()
    statuses = manager.statuses(uploader.id)
    seen = await anext(statuses)
    assert seen.size == 13
    async with reading(manager, uploader.id) as reader, reading(manager, uploader.id) as other:
        # Several readers, so that what they read is kept for others.
        assert bytes((await other.read(6, 13)).data) == b"second\n"
        await uploader.ingest.release()
        lose_newest_state(disk_bench, uploader.id, seen.version)
        again = await manager.reopen(uploader.id, uploader.ingest.token)
        assert (again.snapshot.size, again.progress.checkpoint.size) == (6, 6)
        # Who comes back is told what was lost.
        assert reader.snapshot.size == 13
        with pytest.raises(GoingAway):
            await reader.changed(reader.snapshot.version)
        with pytest.raises(GoingAway):
            await anext(statuses)
        rest = Uploader(again, b"first\n")
        await rest.send(b"another\n")
        await rest.announced()
        assert await read_all(manager, uploader.id, piece=7) == b"first\nanother\n"
        async with reading(manager, uploader.id) as new:
            assert bytes((await new.read(6, 13)).data) == b"another"
        assert (await rest.finish()).size == 14
    assert manager._parts.quotas.uploads == 0


async def test_the_end_of_a_lost_upload_does_not_let_its_size_go_back(disk_bench: Bench) -> None:
    manager = await disk_bench.start(poll_interval=60.0)
    uploader = Uploader(await manager.create(LINES))
    for line in (b"first\n", b"second\n"):
        await uploader.send(line)
        await uploader.announced()
    statuses = manager.statuses(uploader.id)
    seen = await anext(statuses)
    await uploader.ingest.release()
    lose_newest_state(disk_bench, uploader.id, seen.version)
    # A server that is asked to look sees no less than it has told.
    manager._registry._hint((uploader.id,))
    await manager.expire(uploader.id, None)
    with pytest.raises(GoingAway):
        await anext(statuses)
    last = await last_status(manager, uploader.id)
    assert (last.state, last.size) == (ResourceState.FAILED, 6)
    assert len(manager._registry) == 0
