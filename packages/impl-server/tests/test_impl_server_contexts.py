"""Contexts: created, looked at, watched and closed."""

import asyncio
from dataclasses import replace

import pytest
from impl_server_manager_bench import LINES, Bench, Uploader, last_status, refusal, turned, upload

from tailrace_common_api import (
    ContextClosed,
    ContextEvent,
    ContextEventKind,
    ContextNotFound,
    ContextState,
    GoingAway,
    InvalidArgument,
    InvalidReference,
    ListFilter,
    Metadata,
    NotFound,
    QuotaExceeded,
    ResourceState,
    StorageFailure,
    TailraceError,
    Visibility,
)
from tailrace_impl_server import Manager
from tailrace_impl_server._context_events import ContextEvents

CREATED, CHANGED = ContextEventKind.CREATED, ContextEventKind.STATUS_CHANGED
REFUSED, DELETED, CLOSED = ContextEventKind.REFUSED, ContextEventKind.DELETED, ContextEventKind.CLOSED


def named(context: str) -> Metadata:
    return Metadata(name="x", context=context)


async def events_of(manager: Manager, context: str, *, after: int = 0) -> list[ContextEvent]:
    """Return all events of a closed context."""
    return [event async for event in manager.context_events(context, after=after)]


async def test_a_context_is_what_was_said_of_it(bench: Bench) -> None:
    manager = await bench.start()
    created = await manager.create_context({"branch": "main", "run": ""})
    assert created.attributes == {"branch": "main", "run": ""}
    assert (created.state, created.closed_at, created.resources, created.bytes) == (ContextState.OPEN, None, 0, 0)
    assert await manager.get_context(created.id) == created
    with pytest.raises(InvalidArgument, match="attributes"):
        await manager.create_context({"": "x"})


async def test_a_context_counts_what_it_has(bench: Bench) -> None:
    manager = await bench.start()
    context = (await manager.create_context({})).id
    done = await upload(manager, b"abc", named(context))
    await upload(manager, b"elsewhere")
    running = Uploader(await manager.create(named(context)))
    await running.send(b"defg")
    await running.announced()
    found = await manager.get_context(context)
    assert (found.resources, found.bytes) == (2, 7)
    page = await manager.list(ListFilter(context=context), limit=10)
    assert [status.id for status in page.statuses] == [done.id, running.id]
    await manager.delete(done.id)
    found = await manager.get_context(context)
    assert (found.resources, found.bytes) == (1, 4)


async def test_unknown_and_closed_contexts_take_no_uploads(bench: Bench) -> None:
    manager = await bench.start()
    with pytest.raises(ContextNotFound, match="no context 'nothing'"):
        await manager.create(named("nothing"))
    context = (await manager.create_context({})).id
    await manager.close_context(context)
    with pytest.raises(ContextClosed):
        await manager.create(named(context))
    assert await bench.catalog.known() == frozenset()
    for unknown, error in (("0" * 32, ContextNotFound), ("nothing", InvalidReference)):
        with pytest.raises(error):
            await manager.get_context(unknown)
        with pytest.raises(error):
            await manager.close_context(unknown)
        with pytest.raises(error):
            await events_of(manager, unknown)
    with pytest.raises(InvalidArgument, match="after"):
        await events_of(manager, context, after=-1)


async def test_a_server_may_require_a_context(bench: Bench) -> None:
    manager = await bench.start(context_required=True)
    with pytest.raises(InvalidArgument, match="context"):
        await manager.create(LINES)
    context = (await manager.create_context({})).id
    assert (await upload(manager, b"x", named(context))).state is ResourceState.COMPLETED


async def test_only_so_many_contexts_are_open(bench: Bench) -> None:
    manager = await bench.start(max_contexts=2)
    results = await asyncio.gather(*(manager.create_context({}) for _ in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refused) == 3
    assert (refused[0].limit, refused[0].maximum, refused[0].actual) == ("open contexts", 2, 3)
    opened = next(result for result in results if not isinstance(result, BaseException))
    await manager.close_context(opened.id)
    await manager.create_context({})


async def test_closing_ends_what_is_unfinished_and_tells_its_uploaders(bench: Bench) -> None:
    manager = await bench.start()
    context = (await manager.create_context({})).id
    done = await upload(manager, b"abc", named(context))
    running = Uploader(await manager.create(named(context)))
    await running.send(b"defg")
    await running.announced()
    lost = await manager.create(named(context))
    await lost.release()
    hidden = await manager.create(named(context), visibility=Visibility.ATOMIC)
    elsewhere = Uploader(await manager.create(LINES))
    told = asyncio.ensure_future(refusal(running.ingest))
    closed = await manager.close_context(context)
    assert (closed.state, closed.resources, closed.bytes) == (ContextState.CLOSED, 3, 7)
    assert closed.closed_at is not None
    error = await told
    assert isinstance(error, ContextClosed)
    assert error.id == context
    for failed, size in ((running.id, 4), (lost.id, 0)):
        status = await last_status(manager, failed)
        assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "context closed", size)
    assert (await last_status(manager, done.id)).state is ResourceState.COMPLETED
    with pytest.raises(NotFound):
        await manager.reopen(hidden.id, hidden.token)
    with pytest.raises(TailraceError):
        await running.finish()
    # Whoever comes back gets the final status.
    assert (await manager.reopen(running.id, running.ingest.token)).status().reason == "context closed"
    assert (await elsewhere.finish()).state is ResourceState.COMPLETED
    assert manager._parts.sweeper.graces == 0


async def test_closing_is_idempotent_and_outlives_the_server(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    context = (await manager.create_context({"a": "b"})).id
    await upload(manager, b"abc", named(context))
    first = await manager.close_context(context)
    assert await manager.close_context(context) == first
    assert [event.kind for event in await events_of(manager, context)].count(CLOSED) == 1
    manager = await disk_bench.restart()
    # The events are gone, and CLOSED is the first of them again.
    assert await manager.get_context(context) == replace(first, last_event=0)
    assert await manager.close_context(context) == replace(first, last_event=1)
    with pytest.raises(ContextClosed):
        await manager.create(named(context))
    (event,) = await events_of(manager, context, after=500)
    assert (event.kind, event.at) == (CLOSED, first.closed_at)


async def test_a_completion_under_way_is_not_undone_by_closing(bench: Bench) -> None:
    manager = await bench.start()
    context = (await manager.create_context({})).id
    uploader = Uploader(await manager.create(named(context)))
    await uploader.send(b"abc")
    bench.gates.shut("complete")
    finishing = asyncio.ensure_future(uploader.finish())
    await bench.gates.arrival("complete")
    closing = asyncio.ensure_future(manager.close_context(context))
    await turned(lambda: uploader.ingest._error is not None)  # type: ignore[attr-defined] # Of the kind made here.
    bench.gates.open("complete")
    assert (await finishing).state is ResourceState.COMPLETED
    await closing
    assert (await last_status(manager, uploader.id)).state is ResourceState.COMPLETED


async def test_who_creates_while_the_context_is_closed_is_refused_or_ended(bench: Bench) -> None:
    manager = await bench.start()
    context = (await manager.create_context({})).id
    bench.gates.shut("create")
    creating = asyncio.ensure_future(manager.create(named(context)))
    await bench.gates.arrival("create")
    await manager.close_context(context)
    bench.gates.open("create")
    with pytest.raises(ContextClosed):
        await creating
    assert await bench.catalog.known() == frozenset()
    assert [found async for found in bench.storage.ids()] == []
    assert manager._parts.quotas.uploads == 0


async def test_uploads_of_a_closed_context_end_after_a_crash(disk_bench: Bench) -> None:
    manager = await disk_bench.start(upload_grace=3600)
    context = (await manager.create_context({})).id
    uploader = Uploader(await manager.create(named(context)))
    await uploader.send(b"abc")
    await uploader.announced()
    # The server dies after it has recorded that the context is closed.
    await disk_bench.catalog.close_context(context, 5.0)
    manager = await disk_bench.restart(upload_grace=3600)
    assert (await last_status(manager, uploader.id)).reason == "context closed"
    assert (await manager.get_context(context)).bytes == 3


async def test_an_upload_that_could_not_be_ended_ends_later_for_the_same_reason(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.01)
    context = (await manager.create_context({})).id
    uploader = Uploader(await manager.create(named(context)))
    bench.gates.failures["fail"] = StorageFailure("no")
    assert (await manager.close_context(context)).state is ContextState.CLOSED
    del bench.gates.failures["fail"]
    assert (await last_status(manager, uploader.id)).reason == "context closed"


async def test_contexts_are_there_again_closed_when_the_catalog_is_lost(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    empty, full = [(await manager.create_context({"a": "b"})).id for _ in range(2)]
    await upload(manager, b"abc", named(full))
    await disk_bench.close()
    assert disk_bench.path is not None
    for file in disk_bench.path.glob("catalog.sqlite*"):
        file.unlink()
    manager = await disk_bench.start()
    found = await manager.get_context(full)
    assert (found.attributes, found.state, found.resources, found.bytes) == ({}, ContextState.CLOSED, 1, 3)
    with pytest.raises(ContextNotFound):
        await manager.get_context(empty)


async def test_closed_and_empty_contexts_go_with_retention(bench: Bench) -> None:
    manager = await bench.start(retention_completed=0, retention_failed=0, sweep_interval=0.01)
    kept = (await manager.create_context({})).id
    gone = (await manager.create_context({})).id
    await upload(manager, b"abc", named(gone))
    await manager.close_context(gone)
    for _ in range(10_000):
        try:
            await manager.get_context(gone)
        except ContextNotFound:
            break
        await asyncio.sleep(0.001)
    with pytest.raises(ContextNotFound):
        await manager.get_context(gone)
    assert (await manager.get_context(kept)).state is ContextState.OPEN


# Events.


async def test_events_tell_what_happens_in_order(bench: Bench) -> None:
    manager = await bench.start(max_context_resources=3)
    context = (await manager.create_context({})).id
    other = (await manager.create_context({})).id
    await upload(manager, b"elsewhere", named(other))
    done = await upload(manager, b"abc", named(context))
    aborted = await manager.create(named(context))
    await aborted.abort("enough")
    running = await manager.create(named(context))
    with pytest.raises(QuotaExceeded):
        await manager.create(named(context))
    await manager.delete(done.id)
    await manager.close_context(context)
    events = await events_of(manager, context)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    completed, failed = ResourceState.COMPLETED, ResourceState.FAILED
    initiated, in_progress = ResourceState.INITIATED, ResourceState.IN_PROGRESS
    assert [(event.kind, event.id, event.state, event.size, event.message) for event in events] == [
        (CREATED, done.id, initiated, 0, None),
        (CHANGED, done.id, in_progress, 3, None),
        (CHANGED, done.id, completed, 3, None),
        (CREATED, aborted.id, initiated, 0, None),
        (CHANGED, aborted.id, failed, 0, "enough"),
        (CREATED, running.id, initiated, 0, None),
        (REFUSED, None, None, None, "resources per context is limited to 3; asked for 4"),
        (DELETED, done.id, completed, 3, None),
        (CHANGED, running.id, failed, 0, "context closed"),
        (CLOSED, None, None, None, None),
    ]
    assert events[6].code == "quota_exceeded"
    # Nothing comes behind the end, and who knows it waits for nothing.
    await manager.delete(running.id)
    assert await events_of(manager, context, after=9) == events[9:]
    assert await events_of(manager, context, after=10) == []


async def test_more_of_an_upload_that_is_refused_shows(bench: Bench) -> None:
    manager = await bench.start(max_context_bytes=3)
    context = (await manager.create_context({})).id
    uploader = Uploader(await manager.create(named(context)))
    await uploader.send(b"abc")
    await uploader.announced()
    with pytest.raises(QuotaExceeded):
        await uploader.send(b"d")
    await uploader.ingest.release()
    await manager.close_context(context)
    refused = [event for event in await events_of(manager, context) if event.kind is REFUSED]
    assert [(event.id, event.code, event.size) for event in refused] == [(uploader.id, "quota_exceeded", 3)]


async def test_an_atomic_resource_shows_when_it_is_complete(bench: Bench) -> None:
    manager = await bench.start()
    context = (await manager.create_context({})).id
    atomic = Visibility.ATOMIC
    dropped = await manager.create(named(context), visibility=atomic)
    await dropped.abort("enough")
    uploader = Uploader(await manager.create(named(context), visibility=atomic))
    await uploader.send(b"abc")
    await uploader.announced()
    await uploader.finish()
    await manager.close_context(context)
    events = await events_of(manager, context)
    completed = ResourceState.COMPLETED
    assert [(event.kind, event.id, event.state) for event in events] == [
        (CREATED, uploader.id, completed),
        (CHANGED, uploader.id, completed),
        (CLOSED, None, None),
    ]


async def test_watchers_get_what_comes_and_hold_no_queue(bench: Bench) -> None:
    manager = await bench.start(context_events=5)
    context = (await manager.create_context({})).id
    watchers = [manager.context_events(context) for _ in range(3)]
    first = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
    await asyncio.sleep(0)
    ids = [(await manager.create(named(context))).id]
    assert {event.id for event in await asyncio.gather(*first)} == set(ids)
    # A slow watcher misses the oldest; the gap shows it.
    ids += [(await manager.create(named(context))).id for _ in range(10)]
    (ring,) = manager._parts.context_events._rings.values()
    assert len(ring.events) == 5
    late = await anext(watchers[0])
    assert (late.sequence, late.id) == (7, ids[6])
    await manager.close_context(context)
    for watcher in watchers:
        rest = [event async for event in watcher]
        assert rest[-1].kind is CLOSED
        assert [event.sequence for event in rest] == sorted({event.sequence for event in rest})
    assert ring.watchers == 0


async def test_a_shutdown_reaches_who_watches(bench: Bench) -> None:
    manager = await bench.start()
    context = (await manager.create_context({})).id
    watching = asyncio.ensure_future(anext(manager.context_events(context)))
    await turned(lambda: bool(manager._parts.context_events._rings))
    await turned(lambda: all(ring.waiters for ring in manager._parts.context_events._rings.values()))
    await bench.close()
    with pytest.raises(GoingAway):
        await watching


async def watched(events: ContextEvents, context: str) -> list[int]:
    """Return the numbers of the events that are known."""
    return [event.sequence async for event in events.watch(context, 0, 1.0)]


async def test_events_of_quiet_contexts_go_first_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace_impl_server._context_events._MOST_EVENTS", 10)
    events = ContextEvents(4)
    error = QuotaExceeded(limit="x", maximum=1, actual=2)
    for number in range(20):
        for _ in range(3):
            events.refused(f"context-{number}", error)
    kept = sum(len(ring.events) for ring in events._rings.values())
    assert kept == events._count == 10
    assert await watched(events, "context-19") == [1, 2, 3, 4]
    # Numbers go on where they were, also when no event is left.
    assert await watched(events, "context-0") == [4]


async def test_rings_of_closed_contexts_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace_impl_server._context_events._MOST_EVENTS", 10)
    events = ContextEvents(4)
    for number in range(100):
        events.closed(f"context-{number}", 1.0)
    assert len(events._rings) == 10
    for number in range(100):
        events.forget(f"context-{number}")
    assert not events._rings
    assert not events._filled
    assert events._count == 0
