"""Uploads whose session is lost: reopening, fencing, grace, idempotent creation, and atomic visibility."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import httpx
import pytest
from cells import WIRED_CELLS, Cell, Transport
from conversations import Conversation, HandUpload, eventually, is_gone
from manifest import proves
from server_process import DEADLINE
from servers import LocalServer, NewServer
from tcp_proxy import TcpProxy

from tailrace_client_upload_api import Buffer, ReopenRequest
from tailrace_common_api import (
    ConnectionLost,
    Fenced,
    FromOffset,
    IdempotencyConflict,
    InvalidArgument,
    Metadata,
    NotFound,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    TailraceError,
    TokenRejected,
    Visibility,
)
from tailrace_impl_common import ConnectedClient, head_of
from tailrace_impl_common.messages import (
    Delete,
    Follow,
    GetHeads,
    GetStatus,
    Locate,
    Opened,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    Watch,
)
from tailrace_impl_server import TokenFile
from tailrace_server_api import Operation


@proves("UPL-9", "UPL-10", "RES-5")
async def test_a_lost_upload_continues_at_the_announced_size_where_both_heads_agree(
    client: ConnectedClient, second_client: ConnectedClient
) -> None:
    first = await HandUpload.open(client.connection, lines=True)
    await first.chunk(b"one\ntwo\n")
    await first.announced(8)
    follower = second_client.open(first.id).follow()
    assert await anext(follower) == b"one\ntwo\n"
    await first.close()
    # Within the grace period nothing has changed for anyone.
    assert (await second_client.status(first.id)).state is ResourceState.IN_PROGRESS
    second = await HandUpload.reopen(second_client.connection, first.id, first.token, b"one\ntwo\n")
    opened = second.opened
    assert opened.epoch > first.opened.epoch
    assert (opened.offset, opened.newlines, opened.head) == (8, 2, head_of(b"one\ntwo\n"))
    assert opened.until > opened.offset
    await second.chunk(b"three\n")
    assert await anext(follower) == b"three\n"
    finished = await second.finished()
    assert finished.status is not None
    assert (finished.status.state, finished.status.lines) == (ResourceState.COMPLETED, 3)
    assert [piece async for piece in follower] == []
    assert await second_client.open(first.id).read() == b"one\ntwo\nthree\n"


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-9", "RES-3")
async def test_a_cut_connection_raises_and_leaves_the_upload_open(server: LocalServer, cell: Cell) -> None:
    async with TcpProxy(server.url(cell.transport)) as proxy:
        client = server.connect(cell.transport, url=proxy.url, reconnect_timeout=0.0)
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"kept")
        await upload.flush()
        proxy.cut()
        with pytest.raises(ConnectionLost):
            await upload.finish()
        await upload.abort()
        # The same client connects again, once it has noticed.
        await eventually(lambda: _is_in_progress(client, upload.id))
        again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"kept")
        assert again.opened.offset == 4
        finished = await again.finished()
        assert finished.status is not None
        assert finished.status.head == head_of(b"kept")


@proves("UPL-9")
async def test_an_upload_can_be_continued_on_another_transport(
    server: LocalServer, client: ConnectedClient, cell: Cell
) -> None:
    await server.listen(*Transport)
    upload = await HandUpload.open(client.connection)
    sent = b"part 0;"
    await upload.chunk(sent)
    await upload.announced(len(sent))
    await upload.close()
    for number, transport in enumerate((each for each in Transport if each is not cell.transport), 1):
        other = server.connect(transport)
        again = await HandUpload.reopen(other.connection, upload.id, upload.token, sent)
        assert (again.opened.offset, again.opened.head) == (len(sent), head_of(sent))
        await again.chunk(b"part %d;" % number)
        sent += b"part %d;" % number
        await again.announced(len(sent))
        await again.close()
    last = await HandUpload.reopen(client.connection, upload.id, upload.token, sent)
    finished = await last.finished()
    assert finished.status is not None
    assert finished.status.head == head_of(sent) == head_of(b"part 0;part 1;part 2;")


async def _is_in_progress(client: ConnectedClient, id: str) -> bool:
    try:
        return (await client.status(id)).state is ResourceState.IN_PROGRESS
    except ConnectionLost:
        return False


async def _prefix(data: bytes) -> AsyncIterator[Buffer]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


@proves("UPL-9")
async def test_a_source_that_differs_is_refused_with_the_last_common_offset(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(chunk_size=4096)
    client = server.connect(cell.transport, chunk_size=4096)
    data = bytes(range(256)) * 400
    upload = client.upload("a")
    await upload.open()
    await upload.write(data[:60_000])
    await upload.detach()
    changed = data[:30_000] + b"?" + data[30_001:]
    resumed = client.resume_upload(
        ReopenRequest(id=upload.id, token=upload.token, prefix=lambda size: _prefix(changed[:size]))
    )
    with pytest.raises(SourceChanged) as caught:
        await resumed.open()
    assert 30_000 - 2 * 4096 <= caught.value.offset <= 30_000
    assert (await client.status(upload.id)).state is ResourceState.IN_PROGRESS
    resumed = client.resume_upload(
        ReopenRequest(id=upload.id, token=upload.token, prefix=lambda size: _prefix(data[:size]))
    )
    async with resumed:
        assert resumed.offset == 60_000
        await resumed.write(data[60_000:])
    assert resumed.status.head == head_of(data)
    without = client.upload("b")
    await without.open()
    await without.write(b"x")
    await without.detach()
    with pytest.raises(InvalidArgument):
        await client.resume_upload(ReopenRequest(id=without.id, token=without.token)).open()


@proves("UPL-10")
async def test_an_older_session_is_fenced_and_changes_nothing(
    client: ConnectedClient, second_client: ConnectedClient
) -> None:
    old = await HandUpload.open(client.connection)
    await old.chunk(b"common;")
    await old.announced(7)
    new = await HandUpload.reopen(second_client.connection, old.id, old.token, b"common;")
    assert new.opened.epoch > old.opened.epoch
    error = await _error_after(old, b"of the old session;")
    assert isinstance(error, Fenced)
    assert error.epoch == old.opened.epoch
    await old.close()
    await new.chunk(b"of the new session")
    finished = await new.finished()
    assert finished.status is not None
    assert (await second_client.open(old.id).read()) == b"common;of the new session"
    # The old session's connection serves other requests as before.
    assert (await client.status(old.id)).version == finished.status.version


async def _error_after(upload: HandUpload, data: bytes) -> TailraceError:
    # It may have heard of it already; the reason is to be received.
    with suppress(TailraceError):
        await upload.chunk(data)
    return await upload.error()


@proves("UPL-9", "UPL-13", "DWN-4")
async def test_after_the_grace_period_the_uploader_is_lost(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(upload_grace=0.05)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    assert upload.opened.limits.upload_grace == 0.05
    await upload.chunk(b"kept")
    await upload.announced(4)
    resource = client.open(upload.id)
    follower = resource.follow()
    assert await anext(follower) == b"kept"
    await upload.close()
    status = await resource.wait()
    assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "uploader lost", 4)
    with pytest.raises(ResourceFailed, match="uploader lost"):
        await anext(follower)
    again = await HandUpload.reopen(client.connection, upload.id, upload.token)
    assert again.opened.status.state is ResourceState.FAILED
    assert again.opened.token == ""
    assert await again.rest() == []
    await again.close()
    hidden = await HandUpload.open(client.connection, visibility=Visibility.ATOMIC)
    await hidden.chunk(b"gone")
    await hidden.announced(4)
    await hidden.close()
    await eventually(lambda: _token_rejected(client, hidden.id, hidden.token))


async def _token_rejected(client: ConnectedClient, id: str, token: str) -> bool:
    try:
        await client.status(id, token=token)
    except NotFound:
        return True
    return False


@proves("UPL-10", "UPL-11")
async def test_a_wrong_token_opens_nothing(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    for token in ("", "wrong", upload.token[:-1], upload.token + "x"):
        conversation = await Conversation.begin(client.connection, ReopenUpload(id=upload.id, token=token))
        assert isinstance(await conversation.error(), TokenRejected)
        await conversation.close()
    await upload.chunk(b"undisturbed")
    assert (await upload.finished()).status is not None


# Idempotent creation


@proves("UPL-11")
async def test_a_retried_request_continues_the_same_upload(
    client: ConnectedClient, second_client: ConnectedClient
) -> None:
    first = await HandUpload.open(client.connection, "a", idempotency_key="key 1")
    await first.chunk(b"data")
    await first.announced(4)
    second = await HandUpload.open(second_client.connection, "a", idempotency_key="key 1")
    assert second.id == first.id
    assert second.opened.status.reference == first.opened.status.reference
    assert second.opened.epoch > first.opened.epoch
    assert second.token != first.token
    assert second.opened.offset == 4
    conversation = await Conversation.begin(client.connection, ReopenUpload(id=first.id, token=first.token))
    assert isinstance(await conversation.error(), TokenRejected)
    await conversation.close()
    assert isinstance(await first.error(), Fenced)
    await first.close()
    second._hasher.update(b"data")
    finished = await second.finished()
    third = await HandUpload.open(client.connection, "a", idempotency_key="key 1")
    assert third.opened.status == finished.status
    assert third.opened.token == ""
    assert await third.rest() == []
    await third.close()
    retried = client.upload("a", idempotency_key="key 1")
    async with retried:
        assert retried.status.state is ResourceState.COMPLETED
    assert retried.id == first.id
    other = await HandUpload.open(client.connection, "a", idempotency_key="key 2")
    assert other.id != first.id
    await other.close()


@proves("UPL-11")
async def test_differing_metadata_under_a_key_is_an_error(client: ConnectedClient) -> None:
    async with client.upload("a", labels={"k": "v"}, idempotency_key="key") as upload:
        await upload.write(b"x")
    for fields in (
        {"name": "b", "labels": {"k": "v"}},
        {"name": "a", "labels": {"k": "w"}},
        {"name": "a", "labels": {"k": "v"}, "lines": True},
        {"name": "a", "labels": {"k": "v"}, "length": 1},
        {"name": "a", "labels": {"k": "v"}, "visibility": Visibility.ATOMIC},
    ):
        with pytest.raises(IdempotencyConflict) as caught:
            await client.upload(**fields, idempotency_key="key").open()
        assert caught.value.id == upload.id
    for key in ("", "x" * 256):
        with pytest.raises(InvalidArgument):
            await client.upload("a", idempotency_key=key).open()


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


@pytest.fixture
def secrets(tokens: TokenFile) -> list[str]:
    """The tokens of two uploaders."""
    return [tokens.add(name, [Operation.UPLOAD]) for name in ("me", "them")]


@proves("UPL-11")
async def test_keys_belong_to_principals(
    new_server: NewServer, cell: Cell, tokens: TokenFile, secrets: list[str]
) -> None:
    server = await new_server(tokens=str(tokens.path))
    mine, theirs = (server.connect(cell.transport, token=secret) for secret in secrets)
    first = await HandUpload.open(mine.connection, "a", idempotency_key="key")
    other = await HandUpload.open(theirs.connection, "a", idempotency_key="key")
    again = await HandUpload.open(mine.connection, "a", idempotency_key="key")
    assert first.id == again.id != other.id
    for upload in (first, other, again):
        await upload.close()


@proves("UPL-11")
async def test_a_key_survives_a_race(client: ConnectedClient) -> None:
    async def create() -> str:
        upload = await HandUpload.open(client.connection, "raced", idempotency_key="raced")
        await upload.close()
        return upload.id

    assert len(set(await asyncio.gather(*(create() for _ in range(8))))) == 1


# Atomic visibility


@proves("UPL-13")
async def test_an_atomic_upload_does_not_exist_for_others_before_it_is_complete(
    server: LocalServer, client: ConnectedClient, second_client: ConnectedClient, cell: Cell
) -> None:
    upload = await HandUpload.open(client.connection, "a", lines=True, visibility=Visibility.ATOMIC, labels={"k": "v"})
    await upload.chunk(b"one\ntwo")
    await upload.announced(7)
    for token in (None, "wrong", ""):
        for request in (
            Read(id=upload.id, token=token),
            Follow(id=upload.id, token=token, start=FromOffset()),
            ReadLines(id=upload.id, token=token),
            Watch(id=upload.id, token=token),
        ):
            conversation = await Conversation.begin(second_client.connection, request)
            assert isinstance(await conversation.error(), NotFound)
            await conversation.close()
        for call in (
            GetStatus(id=upload.id, token=token),
            GetHeads(id=upload.id, token=token, sizes=(0,)),
            Locate(id=upload.id, token=token, line=0),
            Delete(id=upload.id, token=token),
        ):
            with pytest.raises(NotFound):
                await second_client.connection.call(call)
    conversation = await Conversation.begin(second_client.connection, ReopenUpload(id=upload.id, token="wrong"))
    assert isinstance(await conversation.error(), NotFound)
    await conversation.close()
    assert (await second_client.list_page()).statuses == ()
    if cell.transport is Transport.WEBSOCKET:
        async with httpx.AsyncClient(timeout=DEADLINE) as http:
            response = await http.get(f"{server.url(cell.transport, 'http')}/r/{upload.id}")
        assert response.status_code == 404
    async with second_client.open(upload.id, token=upload.token) as resource:
        assert await resource.read() == b"one\ntwo"
        assert (await resource.status()).visibility is Visibility.ATOMIC
        assert await resource.read_lines(0, 1) == [b"one\n"]
    finished = await upload.finished()
    assert finished.status is not None
    # The reference was handed out at once, and works from here on.
    reference = upload.opened.status.reference
    assert finished.status.reference == reference
    assert await second_client.open(reference).read() == b"one\ntwo"
    assert [status.id for status in (await second_client.list_page()).statuses] == [upload.id]


@proves("UPL-13", "RES-8")
async def test_an_aborted_atomic_upload_leaves_nothing(server: LocalServer, client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection, visibility=Visibility.ATOMIC, idempotency_key="key")
    await upload.chunk(b"x" * 1000)
    await upload.announced(1000)
    assert (await upload.abort("given up")).status is None
    assert await is_gone(client, upload.id)
    with pytest.raises(NotFound):
        await client.status(upload.id, token=upload.token)
    if server.data is not None:
        assert not any(upload.id in path.name for path in server.data.rglob("*"))
    again = await HandUpload.open(client.connection, visibility=Visibility.ATOMIC, idempotency_key="key")
    assert again.id != upload.id
    assert again.opened.offset == 0
    await again.close()


@proves("UPL-13", "UPL-9")
async def test_a_lost_atomic_upload_has_the_same_grace(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection, visibility=Visibility.ATOMIC)
    await upload.chunk(b"kept")
    await upload.announced(4)
    await upload.close()
    again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"kept")
    assert again.opened.offset == 4
    assert (await again.finished()).status is not None
    assert await client.open(upload.id).read() == b"kept"


@proves("RES-3", "UPL-3")
async def test_no_session_changes_what_has_ended(client: ConnectedClient, second_client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"data")
    await upload.announced(4)
    failed = (await upload.abort("first reason")).status
    assert failed is not None
    again = await Conversation.begin(second_client.connection, ReopenUpload(id=upload.id, token=upload.token))
    opened = await again.receive(Opened)
    assert opened.status.state is ResourceState.FAILED
    # It has ended, so nothing that is still said is taken.
    with suppress(TailraceError):
        await again.send(upload.make(b"more"))
        await again.rest()
    await again.close()
    after = await client.status(upload.id)
    assert (after.version, after.size, after.reason) == (failed.version, 4, "first reason")


@proves("UPL-9")
async def test_what_was_sent_and_not_announced_is_announced_before_the_reopening_is_answered(
    new_server: NewServer, cell: Cell
) -> None:
    server = await new_server(checkpoint_interval=3600.0)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"first;")
    await upload.announced(6)
    await upload.chunk(b"within the interval")
    # What a client says behind its chunks shows that they have arrived.
    second = await Conversation.begin(
        client.connection, OpenUpload(metadata=Metadata(name="other"), idempotency_key="other")
    )
    await second.receive(Opened)
    await second.close()
    await upload.close()
    again = await HandUpload.reopen(client.connection, upload.id, upload.token)
    size = again.opened.offset
    data = b"first;within the interval"[:size]
    assert size in (6, 25)
    assert again.opened.head == head_of(data)
    assert (await client.status(upload.id)).size == size
    again._hasher.update(data)
    finished = await again.finished()
    assert finished.status is not None
    async with aclosing(client.open(upload.id).follow()) as pieces:
        assert b"".join([piece async for piece in pieces]) == data
