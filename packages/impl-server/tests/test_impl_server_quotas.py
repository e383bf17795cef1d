"""Quotas: what is reserved, charged, refused and released, and that the account never drifts from the truth."""

import asyncio
from dataclasses import replace

import pytest
from impl_server_manager_bench import LINES, Bench, Uploader, last_status, refusal, upload

from tailrace_common_api import (
    Deleted,
    Metadata,
    QuotaExceeded,
    ResourceState,
    StorageFailure,
)
from tailrace_impl_server import Manager, ServerSettings
from tailrace_impl_server._quotas import Quotas
from tailrace_server_api import Usage

KIB = 1024


async def in_context(manager: Manager) -> Metadata:
    context = await manager.create_context({})
    return Metadata(name="x", context=context.id)


async def sent_until_refused(uploader: Uploader) -> QuotaExceeded:
    """Send single bytes in the granted window until the server refuses one."""
    while True:
        try:
            await uploader.send(b"x")
        except QuotaExceeded as error:
            return error


# The account by itself.


def quotas(**settings: int) -> Quotas:
    return Quotas(ServerSettings(**settings))  # type: ignore[arg-type]  # all of these are numbers


async def test_a_window_is_reserved_and_can_be_used_whatever_others_do() -> None:
    account = quotas(max_storage_bytes=1000)
    first, second = account.begin("a", None, None), account.begin("b", None, None)
    assert first.reserve(800) == 800
    assert second.reserve(800) == 200
    second.take(200)
    first.take(800)
    assert first.figures == (0, 800, 0)


async def test_who_finds_the_rest_reserved_waits_and_is_called_when_there_is_room() -> None:
    account = quotas(max_storage_bytes=1000)
    called: list[str] = []
    first, second = account.begin("a", None, None), account.begin("b", None, None)
    first.open(0, lambda: called.append("first"))
    second.open(0, lambda: called.append("second"))
    assert first.reserve(1000) == 1000
    assert second.reserve(1) == 0
    assert account.blocked == {second}
    first.take(300)
    first.settle(300)
    await asyncio.sleep(0)
    assert called == ["second"]
    assert second.reserve(1000) == 700


async def test_one_byte_more_is_granted_when_all_is_used_up() -> None:
    account = quotas(max_storage_bytes=1000)
    first, second = account.begin("a", None, None), account.begin("b", None, None)
    assert first.reserve(1000) == 1000
    first.take(1000)
    assert second.reserve(10) == 1
    with pytest.raises(QuotaExceeded) as raised:
        second.take(1)
    assert (raised.value.limit, raised.value.maximum, raised.value.actual) == ("bytes in storage", 1000, 1001)
    assert second.figures == (0, 0, 0)
    account.remove("a", None, 0)
    second.take(1)
    assert second.figures == (0, 1, 0)


async def test_using_up_the_last_byte_calls_who_waits() -> None:
    account = quotas(max_storage_bytes=10)
    called: list[str] = []
    first, second = account.begin("a", None, None), account.begin("b", None, None)
    second.open(0, lambda: called.append("second"))
    first.reserve(10)
    assert second.reserve(5) == 0
    first.take(10)
    await asyncio.sleep(0)
    assert called == ["second"]
    assert second.reserve(5) == 1


async def test_an_idle_window_is_taken_back_only_when_somebody_waits() -> None:
    account = quotas(max_storage_bytes=1000)
    idle, other = account.begin("a", None, None), account.begin("b", None, None)
    idle.open(0, lambda: None)
    assert idle.reserve(1000) == 1000
    for _ in range(3):
        account.lapse_idle()
    assert idle.figures == (0, 0, 1000)
    assert other.reserve(600) == 0
    # It may have come just before: only who sends nothing between two calls is idle.
    account.lapse_idle()
    assert idle.figures == (0, 0, 1000)
    account.lapse_idle()
    assert idle.figures == (0, 0, 0)
    assert other.reserve(600) == 600
    # What it was granted, it may still send, as far as there is room.
    idle.take(400)
    with pytest.raises(QuotaExceeded):
        idle.take(401)


async def test_a_window_that_is_used_is_not_taken_back() -> None:
    account = quotas(max_storage_bytes=1000)
    busy, other = account.begin("a", None, None), account.begin("b", None, None)
    busy.open(0, lambda: None)
    busy.reserve(1000)
    assert other.reserve(1) == 0
    for sent in (1, 2, 3):
        busy.take(sent)
        account.lapse_idle()
        assert busy.figures == (0, sent, 1000 - sent)


async def test_what_was_there_counts() -> None:
    account = quotas(max_context_bytes=100, max_context_resources=3)
    account.load([Usage("c", 2, 40), Usage(None, 5, 1000)], [("a", "c", 30)])
    assert account.in_context("c") == (2, 70)
    assert account.storage_bytes == 1070
    assert account.uploads == 1
    account.begin("b", "c", 30)
    with pytest.raises(QuotaExceeded, match="resources per context is limited to 3; asked for 4"):
        account.begin("d", "c", None)
    account.remove("b", "c", 0)
    with pytest.raises(QuotaExceeded, match="bytes per context is limited to 100; asked for 101"):
        account.begin("d", "c", 31)


async def test_what_is_empty_is_forgotten() -> None:
    account = quotas(max_context_bytes=10)
    with pytest.raises(QuotaExceeded):
        account.begin("a", "c", 11)
    assert not account._contexts
    account.begin("a", "c", 10)
    account.end("a", 0)
    account.remove("a", "c", 0)
    assert not account._contexts


# Through the manager.


async def test_more_resources_than_a_context_may_have_are_refused(bench: Bench) -> None:
    manager = await bench.start(max_context_resources=2)
    metadata = await in_context(manager)
    await upload(manager, b"x", metadata)
    second = await manager.create(metadata)
    with pytest.raises(QuotaExceeded) as raised:
        await manager.create(metadata)
    assert (raised.value.limit, raised.value.maximum, raised.value.actual) == ("resources per context", 2, 3)
    assert len(await bench.catalog.known()) == 2
    await manager.delete(second.id)
    assert (await upload(manager, b"y", metadata)).state is ResourceState.COMPLETED


async def test_more_unfinished_uploads_than_allowed_are_refused(bench: Bench) -> None:
    manager = await bench.start(max_uploads=2)
    first = await manager.create(LINES)
    second = Uploader(await manager.create(LINES))
    with pytest.raises(QuotaExceeded, match="unfinished uploads is limited to 2; asked for 3"):
        await manager.create(LINES)
    await second.finish()
    third = await manager.create(LINES)
    # A lost uploader may come back: its upload still counts.
    await third.release()
    with pytest.raises(QuotaExceeded):
        await manager.create(LINES)
    await first.abort("enough")
    await manager.create(LINES)


async def test_a_declared_length_without_room_is_refused_before_anything_is_created(bench: Bench) -> None:
    manager = await bench.start(max_storage_bytes=1000)
    await upload(manager, bytes(400))
    with pytest.raises(QuotaExceeded) as raised:
        await manager.create(LINES, length=601)
    assert (raised.value.limit, raised.value.maximum, raised.value.actual) == ("bytes in storage", 1000, 1001)
    assert bench.gates.calls["create"] == 1
    await manager.create(LINES, length=600)


@pytest.mark.parametrize("limit", ["max_storage_bytes", "max_context_bytes"])
async def test_too_many_bytes_are_refused_at_once_and_what_was_announced_stays(bench: Bench, limit: str) -> None:
    options = {limit: 100 * KIB, "upload_window": 64 * KIB}
    manager = await bench.start(**options)
    metadata = await in_context(manager)
    uploader = Uploader(await manager.create(metadata))
    await uploader.send(bytes(100 * KIB), chunk_size=10 * KIB)
    error = await sent_until_refused(uploader)
    assert error.maximum == 100 * KIB
    assert error.actual == 100 * KIB + 1
    await uploader.ingest.release()
    # The upload can be continued when there is room again, and completed as it is.
    reopened = await manager.reopen(uploader.id, uploader.ingest.token)
    assert reopened.snapshot.size == 100 * KIB
    again = Uploader(reopened, bytes(100 * KIB))
    assert (await again.finish()).size == 100 * KIB


async def test_who_waits_for_room_goes_on_when_another_one_is_deleted(bench: Bench) -> None:
    manager = await bench.start(max_storage_bytes=100 * KIB, upload_window=100 * KIB)
    holder = Uploader(await manager.create(LINES))
    waiting = Uploader(await manager.create(LINES))
    assert waiting.ingest.progress.until == 0
    await holder.send(bytes(10 * KIB))
    sending = asyncio.ensure_future(waiting.send(bytes(50 * KIB)))
    await asyncio.sleep(0)
    assert not sending.done()
    await manager.delete(holder.id)
    await sending
    assert (await waiting.finish()).size == 50 * KIB


async def test_idle_windows_of_others_starve_nobody(bench: Bench) -> None:
    manager = await bench.start(max_storage_bytes=100 * KIB, upload_window=100 * KIB, sweep_interval=0.01)
    idle = Uploader(await manager.create(LINES))
    assert idle.ingest.progress.until == 100 * KIB
    waiting = Uploader(await manager.create(LINES))
    await waiting.send(bytes(60 * KIB))
    assert (await waiting.finish()).size == 60 * KIB
    # What it was granted, it may still send as far as there is room.
    await idle.send(bytes(40 * KIB))
    with pytest.raises(QuotaExceeded):
        await idle.send(b"x")


async def test_what_was_left_of_quotas_is_known_after_a_restart(disk_bench: Bench) -> None:
    bench = disk_bench
    manager = await bench.start(max_storage_bytes=100 * KIB, max_uploads=2)
    metadata = await in_context(manager)
    done = await upload(manager, bytes(30 * KIB), metadata)
    uploader = Uploader(await manager.create(metadata))
    await uploader.send(bytes(20 * KIB))
    await uploader.announced()
    assert metadata.context is not None
    known = await manager.get_context(metadata.context)
    assert (known.resources, known.bytes) == (2, 50 * KIB)
    reads = bench.gates.calls["read"]
    manager = await bench.restart(max_storage_bytes=100 * KIB, max_uploads=2)
    # Nothing of what has ended was looked at.
    assert bench.gates.calls["read"] == reads or bench.gates.calls["read"] == 0
    assert bench.gates.calls["load"] == 1
    assert await manager.get_context(metadata.context) == replace(known, last_event=0)
    with pytest.raises(QuotaExceeded):
        await manager.create(LINES, length=50 * KIB + 1)
    await manager.create(LINES, length=50 * KIB)
    with pytest.raises(QuotaExceeded):
        await manager.create(LINES)
    await manager.delete(done.id)
    assert (await manager.get_context(metadata.context)).bytes == 20 * KIB


async def test_a_creation_that_fails_counts_nothing(bench: Bench) -> None:
    manager = await bench.start(max_uploads=1)
    bench.gates.failures["create"] = StorageFailure("no")
    with pytest.raises(StorageFailure):
        await manager.create(LINES)
    del bench.gates.failures["create"]
    await manager.create(LINES)


async def test_a_deletion_that_fails_releases_nothing_and_can_be_tried_again(bench: Bench) -> None:
    manager = await bench.start(upload_grace=3600)
    done = await upload(manager, b"abc")
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"defg")
    await uploader.announced()
    bench.gates.failures["delete"] = StorageFailure("no")
    for one in (done.id, uploader.id):
        with pytest.raises(StorageFailure):
            await manager.delete(one)
    assert isinstance(await refusal(uploader.ingest), Deleted)
    del bench.gates.failures["delete"]
    # It is there as before, for everybody who comes now.
    assert (await last_status(manager, done.id)).size == 3
    assert (manager._parts.quotas.storage_bytes, manager._parts.quotas.uploads) == (7, 1)
    assert manager._parts.sweeper.graces == 1
    again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), b"defg")
    assert (await again.finish()).size == 4
    for one in (done.id, uploader.id):
        await manager.delete(one)
    assert manager._parts.quotas.storage_bytes == 0


async def test_an_upload_that_could_not_be_read_at_the_start_is_counted_once(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    context = await manager.create_context({})
    uploader = Uploader(await manager.create(replace(LINES, context=context.id)))
    await uploader.send(b"announced\n")
    await uploader.announced()
    await uploader.ingest.release()
    await disk_bench.close()
    assert disk_bench.path is not None
    journal = disk_bench.path / "resources" / uploader.id / "journal"
    unreadable = journal.read_bytes()
    journal.write_bytes(b"")
    manager = await disk_bench.start()
    assert (await manager.get_context(context.id)).resources == 1
    assert manager._parts.quotas.uploads == 1
    journal.write_bytes(unreadable)
    again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), b"announced\n")
    found = await manager.get_context(context.id)
    assert (found.resources, found.bytes) == (1, 10)
    await again.finish()
    await manager.delete(uploader.id)
    found = await manager.get_context(context.id)
    assert (found.resources, found.bytes) == (0, 0)
