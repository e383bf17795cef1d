"""Contexts: scopes that own resources, tell what happens in them, and end their uploads when they are closed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from cells import LASTING_CELLS, WIRED_CELLS, Cell, Transport
from manifest import proves
from servers import LocalServer, NewServer
from tcp_proxy import TcpProxy

from tailrace_common_api import (
    ContextClosed,
    ContextEvent,
    ContextEventKind,
    ContextNotFound,
    ContextState,
    InvalidArgument,
    ListFilter,
    QuotaExceeded,
    ResourceFailed,
    ResourceState,
)
from tailrace_impl_common import ConnectedClient
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

UNKNOWN = "0" * 32
CREATED, CHANGED = ContextEventKind.CREATED, ContextEventKind.STATUS_CHANGED
REFUSED, DELETED, CLOSED = ContextEventKind.REFUSED, ContextEventKind.DELETED, ContextEventKind.CLOSED


async def collected(client: ConnectedClient, context: str, after: int = 0) -> list[ContextEvent]:
    """Return the events of a context that is closed, or will be."""
    return [event async for event in client.context_events(context, after=after)]


# Grouping


@proves("CTX-1", "RES-9")
async def test_resources_are_found_by_their_context(client: ConnectedClient, second_client: ConnectedClient) -> None:
    first = await client.create_context({"run": "1"})
    second = await second_client.create_context({"run": "2"})
    for context, names in ((first.id, ("a", "b")), (second.id, ("c",)), (None, ("d",))):
        for name in names:
            async with client.upload(name, context=context) as upload:
                await upload.write(name.encode() * 10)
    for chosen, expected in ((first.id, ["a", "b"]), (second.id, ["c"]), (None, ["a", "b", "c", "d"])):
        listed = [status async for status in second_client.list(ListFilter(context=chosen))]
        assert [status.metadata.name for status in listed] == expected
    for made, resources in ((first, 2), (second, 1)):
        known = await client.get_context(made.id)
        assert (known.attributes, known.resources, known.bytes) == (made.attributes, resources, 10 * resources)
    assert [status async for status in client.list(ListFilter(context=UNKNOWN))] == []


@proves("CTX-1")
async def test_an_unknown_context_takes_nothing(client: ConnectedClient) -> None:
    with pytest.raises(ContextNotFound):
        await client.upload("x", context=UNKNOWN).open()
    assert [status async for status in client.list()] == []


@proves("CTX-1")
async def test_a_server_may_require_a_context(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(context_required=True)
    client = server.connect(cell.transport)
    with pytest.raises(InvalidArgument) as refused:
        await client.upload("x").open()
    assert refused.value.field == "context"
    context = await client.create_context()
    async with client.upload("x", context=context.id) as upload:
        await upload.write(b"data")
    assert upload.status.state is ResourceState.COMPLETED


# Closing


@proves("CTX-1")
async def test_closing_a_context_ends_its_uploads_and_no_others(
    client: ConnectedClient, second_client: ConnectedClient
) -> None:
    context = await client.create_context()
    outside = client.upload("outside")
    await outside.open()
    done = client.upload("done", context=context.id)
    await done.open()
    await done.write(b"all of it")
    await done.finish()
    running = client.upload("running", context=context.id)
    await running.open()
    await running.write(b"some of it")
    await running.flush()
    async with second_client.open(running.id) as resource, aclosing(resource.follow()) as pieces:
        assert await anext(pieces) == b"some of it"
        closed = await second_client.close_context(context.id)
        assert closed.state is ContextState.CLOSED
        with pytest.raises(ResourceFailed):
            await anext(pieces)
        assert await resource.read() == b"some of it"
    with pytest.raises(ContextClosed):
        await running.finish()
    assert (await client.status(done.id)).state is ResourceState.COMPLETED
    with pytest.raises(ContextClosed):
        await client.upload("late", context=context.id).open()
    assert await client.close_context(context.id) == closed == await second_client.get_context(context.id)
    await outside.write(b"goes on")
    assert (await outside.finish()).state is ResourceState.COMPLETED


# Events


@proves("CTX-1")
async def test_everyone_who_watches_gets_all_that_happens(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(max_context_resources=2)
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    context = await client.create_context()
    async with aclosing(client.context_events(context.id)) as early:
        first = client.upload("first", context=context.id)
        await first.open()
        events = [await anext(early)]
        await first.write(b"some")
        await first.finish()
        second = client.upload("second", context=context.id)
        await second.open()
        with pytest.raises(QuotaExceeded):
            await client.upload("third", context=context.id).open()
        await client.delete(first.id)
        await second.abort("given up")
        closing = asyncio.create_task(collected(other, context.id))
        await client.close_context(context.id)
        events += [event async for event in early]
    assert await closing == events
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.at for event in events] == sorted(event.at for event in events)
    of_first = [event for event in events if event.id == first.id]
    assert [event.kind for event in of_first] == [CREATED, *[CHANGED] * (len(of_first) - 2), DELETED]
    assert [event.state for event in of_first[-2:]] == [ResourceState.COMPLETED] * 2
    assert {event.size for event in of_first[-2:]} == {4}
    of_second = [event for event in events if event.id == second.id]
    assert [event.kind for event in of_second] == [CREATED, *[CHANGED] * (len(of_second) - 1)]
    assert (of_second[-1].state, of_second[-1].message) == (ResourceState.FAILED, "given up")
    (refused,) = [event for event in events if event.kind is REFUSED]
    assert (refused.id, refused.state, refused.size, refused.code) == (None, None, None, "quota_exceeded")
    assert refused.message
    assert (events[-1].kind, events[-1].id, events[-1].code) == (CLOSED, None, None)
    for after in range(len(events) + 1):
        assert await collected(other, context.id, after) == events[after:]


@proves("CTX-1")
async def test_who_comes_late_misses_the_oldest_events_and_sees_it(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(context_events=5)
    client = server.connect(cell.transport)
    context = await client.create_context()
    for number in range(4):
        async with client.upload(str(number), context=context.id):
            pass
    last = (await client.get_context(context.id)).last_event
    await client.close_context(context.id)
    events = await collected(client, context.id)
    assert len(events) == 5
    assert [event.sequence for event in events] == list(range(last - 3, last + 2))
    assert events[-1].kind is CLOSED


@proves("CTX-1")
async def test_who_watches_an_unknown_context_is_told_at_once(client: ConnectedClient) -> None:
    async with aclosing(client.context_events(UNKNOWN)) as events:
        with pytest.raises(ContextNotFound):
            await anext(events)


@pytest.mark.cells(WIRED_CELLS)
@proves("CTX-1")
async def test_a_watcher_that_lost_its_connection_goes_on_behind_its_last_event(
    server: LocalServer, client: ConnectedClient, cell: Cell
) -> None:
    context = await client.create_context()
    async with TcpProxy(server.url(cell.transport)) as proxy:
        watcher = server.connect(cell.transport, url=proxy.url)
        seen: list[ContextEvent] = []
        async with aclosing(watcher.context_events(context.id)) as events:
            for number in range(3):
                async with client.upload(str(number), context=context.id):
                    pass
                while not (seen and seen[-1].state is ResourceState.COMPLETED and seen[-1].kind is CHANGED):
                    seen.append(await anext(events))
                proxy.cut()
                # This one happens while nobody is connected.
                async with client.upload("unseen", context=context.id):
                    pass
                seen.append(await anext(events))
            await client.close_context(context.id)
            seen += [event async for event in events]
        assert seen == await collected(client, context.id)
        await watcher.close()


@pytest.mark.cells(WIRED_CELLS & LASTING_CELLS)
@proves("CTX-1")
async def test_contexts_outlive_the_server_and_their_watchers_come_back(server: LocalServer, cell: Cell) -> None:
    client = server.connect(cell.transport)
    context = await client.create_context({"run": "7"})
    # More happens before the restart than behind it: the server takes a number that it has not reached for an old one.
    for _ in range(3):
        async with client.upload("before", context=context.id) as upload:
            await upload.write(b"before")
    async with TcpProxy(server.url(cell.transport)) as proxy:
        # Not one of the server's own clients, which it closes.
        connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
        watcher = connect(proxy.url)
        async with aclosing(watcher.context_events(context.id)) as events:
            before: list[ContextEvent] = []
            while [event.state for event in before].count(ResourceState.COMPLETED) < 3:
                before.append(await anext(events))
            await server.restart()
            proxy.aim(server.url(cell.transport))
            client = server.connect(cell.transport)
            known = await client.get_context(context.id)
            assert (known.attributes, known.resources, known.bytes) == ({"run": "7"}, 3, 18)
            assert known.last_event == 0
            async with client.upload("after", context=context.id):
                pass
            after = [await anext(events)]
            await client.close_context(context.id)
            after += [event async for event in events]
        await watcher.close()
    # A server that was restarted counts from 1 again.
    assert [event.sequence for event in after] == list(range(1, len(after) + 1))
    assert [event.kind for event in (after[0], after[-1])] == [CREATED, CLOSED]
    await server.restart()
    client = server.connect(cell.transport)
    (last,) = await collected(client, context.id, after=len(after))
    assert last.kind is CLOSED
    with pytest.raises(ContextClosed):
        await client.upload("late", context=context.id).open()
