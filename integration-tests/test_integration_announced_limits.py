"""Every limit that a client can hit is announced in the handshake, and is the one that it hits."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import pytest
from cells import WIRED_CELLS, Cell, Transport
from conversations import Conversation, HandUpload
from manifest import proves
from servers import NewServer

from tailrace_common_api import (
    FromOffset,
    InvalidArgument,
    Limits,
    MessageTooLarge,
    Metadata,
    Overloaded,
    ProtocolError,
    QuotaExceeded,
    RecordLimits,
    ResourceState,
)
from tailrace_impl_common import ConnectedClient
from tailrace_impl_common.messages import Follow, Opened, OpenUpload, Read, ReadLines, Started
from tailrace_impl_server import ServerSettings

KIB = 1024
SMALL: dict[str, object] = {
    "chunk_size": 2 * KIB,
    "upload_window": 6 * KIB,
    "upload_grace": 0.25,
    "max_download_window": 5 * KIB,
    "max_resource_size": 7 * KIB,
    "max_page_size": 2,
    "max_heads": 3,
    "max_context_bytes": 9 * KIB,
    "max_context_resources": 4,
    "max_storage_bytes": 21 * KIB,
    "max_uploads": 5,
    "max_contexts": 3,
    "max_requests": 6,
    "context_required": True,
}
"""Another value for each limit."""
NOT_OF_ONE_CLIENT = {"max_running_requests", "max_bulks", "max_consumers"}
"""Bounds of what all clients do together: who meets one is told `overloaded`, and did nothing wrong."""
OF_BULKS = {"max_record_size": "record_bytes", "max_bulk_records": "bulk_records", "max_bulk_bytes": "bulk_bytes"}
"""Bounds that are announced when a bulk is opened, by the names that they have there."""
OF_CREDIT = {"max_credit"}
"""Told to whoever asks for more; a consumer chooses its credit itself, and never comes near."""


async def announced(client: ConnectedClient, request: OpenUpload | Read | Follow | ReadLines) -> Limits:
    """Return the limits in the first answer to a request."""
    conversation = await Conversation.begin(client.connection, request)
    answer: Opened | Started = await conversation.receive(Opened if isinstance(request, OpenUpload) else Started)
    await conversation.close()
    return answer.limits


@proves("LIM-2")
async def test_every_limit_is_announced_in_every_handshake(new_server: NewServer, cell: Cell) -> None:
    assert set(SMALL) == {field.name for field in dataclasses.fields(Limits)}
    server = await new_server(**SMALL)
    client = server.connect(cell.transport)
    context = await client.create_context()
    async with client.upload("x", lines=True, context=context.id) as upload:
        await upload.write(b"line\n")
        assert dataclasses.asdict(upload.limits) == SMALL
    requests: tuple[OpenUpload | Read | Follow | ReadLines, ...] = (
        OpenUpload(metadata=Metadata(name="y", context=context.id)),
        Read(id=upload.id),
        Follow(id=upload.id, start=FromOffset(0)),
        ReadLines(id=upload.id),
    )
    for request in requests:
        assert dataclasses.asdict(await announced(client, request)) == SMALL, request
    if cell.transport is Transport.WEBSOCKET:
        link = await client.connection._connected()  # type: ignore[attr-defined]  # the handshake itself
        assert dataclasses.asdict(link.hello.limits) == SMALL


@proves("LIM-2")
async def test_no_setting_that_bounds_a_client_is_kept_from_it(new_server: NewServer, cell: Cell) -> None:
    bounds = {field.name for field in dataclasses.fields(ServerSettings) if field.name.startswith("max_")}
    assert {field.name for field in dataclasses.fields(RecordLimits)}.issuperset(OF_BULKS.values())
    assert bounds - {field.name for field in dataclasses.fields(Limits)} == NOT_OF_ONE_CLIENT | OF_CREDIT | set(
        OF_BULKS
    )
    server = await new_server()
    client = server.connect(cell.transport)
    async with client.upload("x") as upload:
        assert upload.limits == server.manager.limits


# What happens at each of them: given a client, what was announced to it, and an open context

Hit = Callable[[ConnectedClient, Limits, str], Awaitable[None]]
HITS: dict[str, Hit] = {}


def hits(name: str) -> Callable[[Hit], Hit]:
    """Name the limit that a function runs into."""

    def keep(hit: Hit) -> Hit:
        HITS[name] = hit
        return hit

    return keep


async def stored(client: ConnectedClient, context: str, size: int) -> str:
    """Upload so many bytes, and return the id."""
    async with client.upload("x", context=context) as upload:
        await upload.write(bytes(size))
    return upload.id


@hits("chunk_size")
async def hit_chunk_size(client: ConnectedClient, limits: Limits, context: str) -> None:
    upload = await HandUpload.open(client.connection, context=context)
    await upload.chunk(bytes(limits.chunk_size))
    await upload.send(upload.make(bytes(limits.chunk_size + 1)))
    error = await upload.error()
    await upload.close()
    assert isinstance(error, MessageTooLarge)
    assert error.maximum == limits.chunk_size


@hits("upload_window")
async def hit_upload_window(client: ConnectedClient, limits: Limits, context: str) -> None:
    assert limits.chunk_size > limits.upload_window
    upload = await HandUpload.open(client.connection, context=context)
    assert upload.until == limits.upload_window
    await upload.send(upload.make(bytes(limits.upload_window + 1)))
    error = await upload.error()
    await upload.close()
    assert isinstance(error, ProtocolError)
    assert "window" in error.message


@hits("upload_grace")
async def hit_upload_grace(client: ConnectedClient, limits: Limits, context: str) -> None:
    upload = await HandUpload.open(client.connection, context=context)
    await upload.close()
    async with client.open(upload.id) as resource:
        status = await resource.wait()
    assert (status.state, status.reason) == (ResourceState.FAILED, "uploader lost")


@hits("max_download_window")
async def hit_max_download_window(client: ConnectedClient, limits: Limits, context: str) -> None:
    resource = await stored(client, context, 1)
    within = await Conversation.begin(client.connection, Read(id=resource, window=limits.max_download_window))
    await within.receive(Started)
    await within.close()
    beyond = await Conversation.begin(client.connection, Read(id=resource, window=limits.max_download_window + 1))
    error = await beyond.error()
    await beyond.close()
    assert isinstance(error, InvalidArgument)
    assert error.field == "window"


@hits("max_resource_size")
async def hit_max_resource_size(client: ConnectedClient, limits: Limits, context: str) -> None:
    await stored(client, context, limits.max_resource_size)
    other = (await client.create_context()).id
    with pytest.raises(QuotaExceeded) as refused:
        await stored(client, other, limits.max_resource_size + 1)
    assert refused.value.maximum == limits.max_resource_size


@hits("max_page_size")
async def hit_max_page_size(client: ConnectedClient, limits: Limits, context: str) -> None:
    for _ in range(limits.max_page_size + 1):
        await stored(client, context, 0)
    page = await client.list_page(limit=limits.max_page_size + 1)
    assert len(page.statuses) == limits.max_page_size
    assert page.next_token is not None


@hits("max_heads")
async def hit_max_heads(client: ConnectedClient, limits: Limits, context: str) -> None:
    async with client.open(await stored(client, context, 0)) as resource:
        assert len(await resource.heads([0] * limits.max_heads)) == limits.max_heads
        with pytest.raises(InvalidArgument):
            await resource.heads([0] * (limits.max_heads + 1))


@hits("max_context_bytes")
async def hit_max_context_bytes(client: ConnectedClient, limits: Limits, context: str) -> None:
    await stored(client, context, limits.max_resource_size)
    await stored(client, context, limits.max_context_bytes - limits.max_resource_size)
    with pytest.raises(QuotaExceeded) as refused:
        await stored(client, context, 1)
    assert refused.value.maximum == limits.max_context_bytes
    assert (await client.get_context(context)).bytes == limits.max_context_bytes


@hits("max_context_resources")
async def hit_max_context_resources(client: ConnectedClient, limits: Limits, context: str) -> None:
    for _ in range(limits.max_context_resources):
        await stored(client, context, 0)
    with pytest.raises(QuotaExceeded) as refused:
        await client.upload("one more", context=context).open()
    assert refused.value.maximum == limits.max_context_resources


@hits("max_storage_bytes")
async def hit_max_storage_bytes(client: ConnectedClient, limits: Limits, context: str) -> None:
    contexts = [context, *[(await client.create_context()).id for _ in range(limits.max_contexts - 1)]]
    for each in contexts:
        await stored(client, each, limits.max_resource_size)
    assert len(contexts) * limits.max_resource_size == limits.max_storage_bytes
    with pytest.raises(QuotaExceeded) as refused:
        await stored(client, context, 1)
    assert refused.value.maximum == limits.max_storage_bytes


@hits("max_uploads")
async def hit_max_uploads(client: ConnectedClient, limits: Limits, context: str) -> None:
    # More than one context takes.
    contexts = [context, (await client.create_context()).id]
    running = [client.upload("x", context=contexts[number % 2]) for number in range(limits.max_uploads)]
    for upload in running:
        await upload.open()
    with pytest.raises(QuotaExceeded) as refused:
        await client.upload("one more", context=context).open()
    assert refused.value.maximum == limits.max_uploads
    for upload in running:
        await upload.abort()


@hits("max_contexts")
async def hit_max_contexts(client: ConnectedClient, limits: Limits, context: str) -> None:
    for _ in range(limits.max_contexts - 1):
        await client.create_context()
    with pytest.raises(QuotaExceeded) as refused:
        await client.create_context()
    assert refused.value.maximum == limits.max_contexts
    await client.close_context(context)
    await client.create_context()


@hits("max_requests")
async def hit_max_requests(client: ConnectedClient, limits: Limits, context: str) -> None:
    upload = client.upload("x", context=context)
    await upload.open()
    request = Follow(id=upload.id, start=FromOffset(0))
    # The upload is one.
    running = [await Conversation.begin(client.connection, request) for _ in range(limits.max_requests - 1)]
    for conversation in running:
        await conversation.receive(Started)
    assert isinstance(await Conversation.refused(client.connection, request), Overloaded)
    for conversation in running:
        await conversation.close()
    await upload.abort()


@hits("context_required")
async def hit_context_required(client: ConnectedClient, limits: Limits, context: str) -> None:
    assert limits.context_required
    with pytest.raises(InvalidArgument) as refused:
        await client.upload("x").open()
    assert refused.value.field == "context"


OF_A_CONNECTION = "max_requests"
"""The one limit that is not there in process, where there is no connection."""
OTHERWISE: dict[str, dict[str, object]] = {"upload_window": {"chunk_size": 8 * KIB}}
"""Settings with which a limit can be hit before another one."""


async def run_into(name: str, new_server: NewServer, cell: Cell) -> None:
    """Run into a limit, with what was announced of it."""
    server = await new_server(**{**SMALL, **OTHERWISE.get(name, {})})
    client = server.connect(cell.transport)
    context = await client.create_context()
    limits = await announced(client, OpenUpload(metadata=Metadata(name="x", context=context.id)))
    # What was asked for that is a resource, too.
    for status in [status async for status in client.list()]:
        await client.delete(status.id)
    await HITS[name](client, limits, context.id)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits) if field.name != OF_A_CONNECTION])
@proves("LIM-2")
async def test_the_announced_limit_is_the_one_that_is_hit(new_server: NewServer, cell: Cell, name: str) -> None:
    await run_into(name, new_server, cell)


@pytest.mark.cells(WIRED_CELLS)
@proves("LIM-2")
async def test_the_announced_limit_of_a_connection_is_the_one_that_is_hit(new_server: NewServer, cell: Cell) -> None:
    await run_into(OF_A_CONNECTION, new_server, cell)
