"""Resources: ids, metadata, status, references, deletion, listing."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from dataclasses import replace

import pytest
from cells import LASTING_CELLS, Cell, Crossing, Transport
from conversations import Conversation, HandUpload, eventually, is_gone
from manifest import proves
from servers import LocalServer, NewServer

from tailrace_common_api import (
    Deleted,
    FromOffset,
    InvalidArgument,
    InvalidReference,
    ListFilter,
    Metadata,
    NotFound,
    Reference,
    ResourceState,
    Status,
    TailraceError,
)
from tailrace_impl_common import EMPTY_HEAD, ConnectedClient, InProcessConnection, head_of
from tailrace_impl_common.messages import (
    Chunk,
    Delete,
    Follow,
    GetHeads,
    GetStatus,
    Locate,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    Watch,
)

MISSING = "0" * 32


@proves("RES-1")
async def test_ids_are_made_by_the_server_and_sort_by_creation_time(client: ConnectedClient) -> None:
    ids = []
    for _ in range(20):
        async with client.upload("same name") as upload:
            ids.append(upload.id)
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"[0-9a-v]{32}", each) for each in ids)
    # Of each id, 21 characters are random: none repeats at any place in all of them.
    tails = [each[12:] for each in ids]
    assert len(set(tails)) == 20
    assert all(len({tail[place] for tail in tails}) > 1 for place in range(20))


@proves("RES-1", "RES-4")
async def test_what_is_appended_stays_and_is_never_rewritten(client: ConnectedClient) -> None:
    async with client.upload("a") as upload, client.open(upload.reference) as resource:
        assert await resource.read() == b""
        seen = b""
        for piece in (b"one", b"two" * 1000, b"\x00\xff"):
            await upload.write(piece)
            await upload.flush()
            now = await resource.read()
            assert now == seen + piece
            seen = now
    assert await client.open(upload.id).read() == seen


@proves("RES-2")
async def test_metadata_arrives_as_it_was_given(client: ConnectedClient) -> None:
    metadata = Metadata(
        name='pässwörd "quoted" ../../etc/passwd \\ 文件.log',
        content_type='text/plain; charset=utf-8; note="a; b"',
        lines=True,
        labels={"run": "42", "ключ": "значение", "empty": ""},
    )
    async with client.upload(
        metadata.name, content_type=metadata.content_type, lines=True, labels=metadata.labels
    ) as upload:
        assert upload.status.metadata == metadata
    assert (await client.status(upload.id)).metadata == metadata


BAD_METADATA: list[tuple[str, object]] = [
    ("name", ""),
    ("name", "a\nb"),
    ("name", "a\x00b"),
    ("name", "a\u2028b"),
    ("name", "x" * 1025),
    ("content_type", "text"),
    ("content_type", "text/plain\r\nX-Header: 1"),
    ("content_type", "text/plain; broken"),
    ("labels", {"": "value"}),
    ("labels", {"key": "a\x1bb"}),
    ("labels", {str(number): "x" for number in range(65)}),
]


@pytest.mark.parametrize(("field", "value"), BAD_METADATA, ids=[f"{i}-{f}" for i, (f, _) in enumerate(BAD_METADATA)])
@proves("RES-2")
async def test_bad_metadata_is_refused_where_it_is_built_and_by_the_server(
    cell: Cell, server: LocalServer, client: ConnectedClient, field: str, value: object
) -> None:
    with pytest.raises(InvalidArgument) as built:
        Metadata(**{"name": "a", field: value})  # type: ignore[arg-type]  # that is what is tested
    assert built.value.field == field
    if not cell.wired:
        # Without a wire there is no message that was not built here.
        return
    forged = Metadata(name="a")
    object.__setattr__(forged, field, value)
    stream = await client.connection.open(OpenUpload(metadata=forged))
    error = await Conversation(stream).error()
    await stream.close()
    assert isinstance(error, InvalidArgument)
    assert error.field == field
    assert (await client.list_page()).statuses == ()
    async with client.upload("good"):
        pass


@proves("RES-3", "RES-4", "UPL-1")
async def test_a_resource_goes_from_initiated_through_in_progress_to_completed(client: ConnectedClient) -> None:
    upload = client.upload("a", lines=True)
    await upload.open()
    resource = client.open(upload.reference)
    async with aclosing(resource.statuses()) as statuses:
        first = await anext(statuses)
        assert (first.state, first.size, first.lines, first.head) == (ResourceState.INITIATED, 0, 0, EMPTY_HEAD)
        await upload.write(b"one\ntwo")
        await upload.flush()
        second = await anext(statuses)
        assert (second.state, second.size, second.lines) == (ResourceState.IN_PROGRESS, 7, 1)
        assert second.head == head_of(b"one\ntwo")
        assert second.reason is None
        final = await upload.finish()
        last = await anext(statuses)
        assert last == replace(final, reference=last.reference)
        assert (last.state, last.size, last.lines, last.head) == (ResourceState.COMPLETED, 7, 2, second.head)
        assert first.version < second.version < last.version
        with pytest.raises(StopAsyncIteration):
            await anext(statuses)


@proves("RES-3")
async def test_an_initiated_resource_may_end_at_once(client: ConnectedClient) -> None:
    async with client.upload("empty") as upload:
        pass
    assert upload.status.state is ResourceState.COMPLETED
    assert upload.status.lines is None
    failing = client.upload("failing")
    await failing.open()
    failed = await failing.abort("no input")
    assert failed is not None
    assert (failed.state, failed.reason, failed.size) == (ResourceState.FAILED, "no input", 0)


@proves("RES-3")
async def test_a_terminal_state_outlives_whatever_happens_to_the_connection(
    server: LocalServer, client: ConnectedClient, cell: Cell
) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"all of it")
    await upload.finish()
    # The session is cut in the moment in which the end is acknowledged.
    async with aclosing(server.manager.statuses(upload.id)) as statuses:
        async for status in statuses:
            final = status
    assert final.state is ResourceState.COMPLETED
    await upload.close()
    await client.close()
    later = server.connect(cell.transport)
    assert (await later.status(upload.id)).version == final.version
    reopened = await HandUpload.reopen(later.connection, upload.id, upload.token)
    assert reopened.opened.status.state is ResourceState.COMPLETED
    await reopened.close()
    with pytest.raises(TailraceError):
        await server.manager.reopen(upload.id, "another token")
    after = await later.status(upload.id)
    assert (after.state, after.version) == (ResourceState.COMPLETED, final.version)


@pytest.mark.cells(LASTING_CELLS)
@proves("RES-3", "RES-5")
async def test_versions_and_sizes_go_on_rising_over_a_restart(
    server: LocalServer, client: ConnectedClient, cell: Cell
) -> None:
    upload = await HandUpload.open(client.connection, lines=True)
    await upload.chunk(b"one\ntwo\nthr")
    await upload.announced(11)
    before = await client.status(upload.id)
    async with client.upload("complete") as other:
        await other.write(b"data")
    await server.restart()
    client = server.connect(cell.transport)
    after = await client.status(upload.id)
    assert after.version >= before.version
    assert (after.state, after.size, after.lines, after.head) == (
        before.state,
        before.size,
        before.lines,
        before.head,
    )
    again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"one\ntwo\nthr")
    assert again.opened.status.version > before.version
    await again.chunk(b"ee")
    finished = await again.finished()
    assert finished.status is not None
    assert finished.status.version > again.opened.status.version
    assert finished.status.lines == 3
    kept = await client.status(other.id)
    assert (kept.state, kept.version) == (ResourceState.COMPLETED, other.status.version)
    assert await client.open(other.id).read() == b"data"


@proves("RES-5", "DWN-2")
async def test_every_announced_size_is_readable_and_nothing_beyond_it(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    sent = bytearray()
    async with uploader.upload("growing", lines=True) as upload, reader.open(upload.id) as resource:

        async def watch() -> Status:
            size, lines = 0, 0
            async with aclosing(resource.statuses()) as statuses:
                async for status in statuses:
                    assert status.size >= size
                    assert status.lines is not None
                    assert status.lines >= lines
                    size, lines = status.size, status.lines
                    data = await resource.read(0, size)
                    assert len(data) == size
                    assert data == sent[:size]
                    assert head_of(data) == status.head
                    assert (await resource.heads([size]))[0] == status.head
            return status

        watching = asyncio.create_task(watch())
        for number in range(60):
            piece = b"line %d\n" % number * (number % 7 + 1)
            sent += piece
            await upload.write(piece)
            if number % 3 == 0:
                await upload.flush()
        await upload.finish()
        assert (await watching).size == len(sent)


@proves("RES-6")
async def test_a_reference_opens_through_any_transport(
    server: LocalServer, client: ConnectedClient, cell: Cell
) -> None:
    await server.listen(*Transport)
    async with client.upload("a") as upload:
        await upload.write(b"data")
    status = await client.status(upload.id)
    assert status.reference == upload.reference
    assert status.reference in status.alternatives
    assert {Reference.parse(reference).id for reference in status.alternatives} == {upload.id}
    bases = {server.url(Transport.GRPC), server.url(Transport.WEBSOCKET), "inprocess://local"}
    assert {str(Reference.parse(reference).base) for reference in status.alternatives} == bases
    for transport in Transport:
        other = server.connect(transport)
        for reference in (*status.alternatives, upload.id):
            async with other.open(reference) as resource:
                assert await resource.read() == b"data"
            assert (await other.status(reference)).alternatives == status.alternatives


@proves("RES-6")
async def test_the_public_base_is_configured_per_transport(new_server: NewServer, cell: Cell) -> None:
    if cell.transport is Transport.IN_PROCESS:
        server = await new_server()
        base = "inprocess://elsewhere/prefix"
        client = ConnectedClient(InProcessConnection(server.manager, base=base))
    else:
        path = "" if cell.transport is Transport.GRPC else "/some/prefix"
        scheme = "grpc" if cell.transport is Transport.GRPC else "wss"
        base = f"{scheme}://public.example:4711{path}"
        server = await new_server(transport_settings={"public_base": base})
        client = server.connect(cell.transport)
    async with client.upload("a") as upload:
        assert upload.reference == f"{base}/r/{upload.id}"
    assert (await client.status(upload.reference)).reference == upload.reference
    await client.close()


@proves("RES-7")
async def test_unknown_deleted_and_malformed_ids_are_answered_on_every_operation(client: ConnectedClient) -> None:
    async with client.upload("gone", lines=True) as upload:
        await upload.write(b"data")
    await client.delete(upload.id)
    for bad, expected in ((MISSING, NotFound), (upload.id, NotFound), ("../../etc/passwd", InvalidReference)):
        for request in (Read(id=bad), Follow(id=bad, start=FromOffset()), ReadLines(id=bad), Watch(id=bad)):
            conversation = await Conversation.begin(client.connection, request)
            assert isinstance(await conversation.error(), expected), request
            await conversation.close()
        conversation = await Conversation.begin(client.connection, ReopenUpload(id=bad, token="token"))
        assert isinstance(await conversation.error(), expected)
        await conversation.close()
        for unary in (GetStatus(id=bad), GetHeads(id=bad, sizes=(0,)), Locate(id=bad, line=0), Delete(id=bad)):
            with pytest.raises(expected):
                await client.connection.call(unary)
    for text in ("", "nonsense", "grpc://host", "grpc://host/r/short", f"ws://host/x/{MISSING}", f"{MISSING}\n"):
        with pytest.raises(InvalidReference):
            client.open(text)
        with pytest.raises(InvalidReference):
            await client.status(text)
    # The connection is as good as before.
    async with client.upload("next") as upload:
        await upload.write(b"x")
    assert upload.status.size == 1


@proves("RES-8", "UPL-16")
async def test_deleting_tells_the_uploader_and_every_reader_and_leaves_nothing(
    server: LocalServer, client: ConnectedClient, second_client: ConnectedClient
) -> None:
    upload = second_client.upload("victim", lines=True)
    await upload.open()
    await upload.write(b"first\n")
    await upload.flush()
    resource = client.open(upload.id)
    follower, watcher = resource.follow(), resource.statuses()
    assert await anext(follower) == b"first\n"
    assert (await anext(watcher)).size == 6
    waiting = [asyncio.ensure_future(anext(follower)), asyncio.ensure_future(anext(watcher))]
    announced = asyncio.create_task(_exhaust(upload.checkpoints()))
    await client.delete(upload.id)
    for task in waiting:
        with pytest.raises(Deleted):
            await task
    with pytest.raises(Deleted):
        await announced
    with pytest.raises(Deleted):
        await upload.write(b"more")
    await upload.abort()
    with pytest.raises(NotFound):
        await resource.status()
    assert (await client.list_page()).statuses == ()
    if server.data is not None:
        left = [path for path in server.data.rglob("*") if upload.id in str(path)]
        assert left == []
        assert not any(path.name in ("data", "journal", "resource.json") for path in server.data.rglob("*"))


@proves("RES-8", "DWN-8")
async def test_a_reader_that_grants_nothing_hears_of_the_deletion(
    client: ConnectedClient, second_client: ConnectedClient
) -> None:
    async with second_client.upload("victim") as upload:
        await upload.write(b"first")
        await upload.flush()
        stalled = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=1))
        # One chunk may go beyond the window; nothing may follow it.
        assert bytes((await stalled.receive(Chunk)).data) == b"first"
        await upload.write(b"second")
        await upload.flush()
    await client.delete(upload.id)
    assert isinstance(await stalled.error(), Deleted)


async def _exhaust(items: object) -> None:
    async for _ in items:  # type: ignore[attr-defined]  # any asynchronous generator
        pass


@proves("RES-8")
async def test_a_deleted_resource_is_gone_for_an_idempotent_request_too(client: ConnectedClient) -> None:
    async with client.upload("a", idempotency_key="key") as first:
        await first.write(b"x")
    await client.delete(first.id)
    async with client.upload("a", idempotency_key="key") as second:
        pass
    assert second.id != first.id


@proves("RES-9")
async def test_listing_selects_by_label_state_and_time_and_pages(client: ConnectedClient) -> None:
    statuses: list[Status] = []
    for number in range(7):
        async with client.upload(f"{number}", labels={"parity": str(number % 2), "all": "yes"}) as upload:
            pass
        statuses.append(upload.status)
    failing = client.upload("failing", labels={"all": "yes"})
    await failing.open()
    failed = await failing.abort("wanted")
    assert failed is not None
    ids = [status.id for status in statuses]

    async def listed(**fields: object) -> list[str]:
        chosen = ListFilter(**fields)  # type: ignore[arg-type]  # as the test gives them
        async with aclosing(client.list(chosen)) as found:
            return [status.id async for status in found]

    assert await listed() == [*ids, failed.id]
    assert await listed(labels={"parity": "1"}) == ids[1::2]
    assert await listed(labels={"parity": "1", "all": "no"}) == []
    assert await listed(state=ResourceState.FAILED) == [failed.id]
    assert await listed(state=ResourceState.COMPLETED, labels={"all": "yes"}) == ids
    assert await listed(created_from=statuses[2].created_at, created_before=statuses[5].created_at) == ids[2:5]
    page = await client.list_page(limit=3)
    pages = [[status.id for status in page.statuses]]
    while page.next_token is not None:
        page = await client.list_page(limit=3, page_token=page.next_token)
        pages.append([status.id for status in page.statuses])
    assert pages == [ids[:3], ids[3:6], [ids[6], failed.id]]
    with pytest.raises(InvalidArgument):
        await client.list_page(limit=0)
    with pytest.raises(InvalidArgument):
        await client.list_page(page_token="not one of this server")


@proves("RES-9")
async def test_a_page_costs_the_same_wherever_it_is(
    server: LocalServer, client: ConnectedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        async with client.upload(f"{number}", labels={"some": "label"}):
            pass
    looked_at: list[str] = []
    storage = server.manager._storage  # type: ignore[attr-defined]  # what a page reads is nowhere public
    load = storage.load

    async def recording(resource_id: str) -> object:
        looked_at.append(resource_id)
        return await load(resource_id)

    monkeypatch.setattr(storage, "load", recording)
    page = await client.list_page(ListFilter(labels={"some": "label"}), limit=5)
    pages = 1
    while page.next_token is not None:
        looked_at.clear()
        page = await client.list_page(ListFilter(labels={"some": "label"}), limit=5, page_token=page.next_token)
        assert len(looked_at) <= 5
        pages += 1
    assert pages == 6


@proves("RES-9")
async def test_retention_sweeps_by_age_and_state(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(retention_completed=0.0, sweep_interval=0.02)
    client = server.connect(cell.transport)
    failing = client.upload("kept")
    await failing.open()
    await failing.abort("kept")
    live = client.upload("live")
    await live.open()
    async with client.upload("swept") as upload:
        await upload.write(b"x")

    await eventually(lambda: is_gone(client, upload.id))
    assert {status.id for status in (await client.list_page()).statuses} == {failing.id, live.id}
    await live.finish()
    if server.data is not None:
        data = server.data
        await eventually(lambda: not [path for path in data.rglob("*") if upload.id in path.name])
