"""Following a resource while it grows: from anywhere, without a hole, by many, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, aclosing, suppress

import pytest
from cells import Cell, Crossing
from conversations import Conversation, HandUpload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest import proves
from servers import LocalServer, NewServer

from tailrace_client_download_api import RemoteResource
from tailrace_client_upload_api import UploadSession
from tailrace_common_api import (
    Checkpoint,
    FromOffset,
    InvalidArgument,
    LastBytes,
    LastLines,
    LineAccessDisabled,
    RangeNotSatisfiable,
    ResourceFailed,
    ResourceState,
    Start,
)
from tailrace_impl_common import ConnectedClient, chunk_hash, head_of
from tailrace_impl_common.messages import Chunk, End, Follow, Started
from tailrace_server_api import Piece

HISTORY = b"one\ntwo\r\nthree\n\nfive\nunterminated"
STARTS: list[tuple[Start, int]] = [
    (FromOffset(0), 0),
    (FromOffset(5), 5),
    (FromOffset(len(HISTORY)), len(HISTORY)),
    (LastBytes(0), len(HISTORY)),
    (LastBytes(4), len(HISTORY) - 4),
    (LastBytes(10_000), 0),
    (LastLines(0), HISTORY.index(b"unterminated")),
    (LastLines(1), HISTORY.index(b"five")),
    (LastLines(2), HISTORY.index(b"\nfive")),
    (LastLines(100), 0),
]
"""Where a follower starts while the resource is in progress: complete lines come on top of the unterminated one."""
ENDED_STARTS: list[tuple[Start, int]] = [
    (LastLines(0), len(HISTORY)),
    (LastLines(1), HISTORY.index(b"unterminated")),
    (LastLines(2), HISTORY.index(b"five")),
    (LastBytes(3), len(HISTORY) - 3),
]
"""Where it starts once the resource has ended: the unterminated line is one of them."""


async def follow(resource: RemoteResource, start: Start, *, raise_on_failure: bool = True) -> bytes:
    """Return all that a follower gets, and check that it has no hole and no repeat."""
    received = bytearray()
    offset: int | None = None
    async with aclosing(resource.follow_chunks(start, raise_on_failure=raise_on_failure)) as chunks:
        async for chunk in chunks:
            assert offset in (None, chunk.offset)
            offset = chunk.offset + len(chunk.data)
            received.extend(chunk.data)
    return bytes(received)


@proves("DWN-4")
async def test_a_follower_starts_anywhere_and_gets_history_and_then_what_is_live(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    upload = uploader.upload("a", lines=True)
    await upload.open()
    await upload.write(HISTORY)
    await upload.flush()
    data = HISTORY
    following = []
    for start, offset in STARTS:
        conversation = await Conversation.begin(reader.connection, Follow(id=upload.id, start=start))
        started = await conversation.receive(Started)
        assert (started.offset, started.end, started.line) == (offset, None, None), start
        following.append(conversation)
    for number in range(30):
        piece = b" live %d" % number * (number % 5 + 1) + b"\n" * (number % 2)
        await upload.write(piece)
        data += piece
        if number % 3:
            await upload.flush()
    await upload.finish()
    for (_, offset), conversation in zip(STARTS, following, strict=True):
        *chunks, end = await conversation.rest()
        assert isinstance(end, End)
        position = offset
        for chunk in chunks:
            assert isinstance(chunk, Chunk)
            assert chunk.offset == position
            position = chunk.end
            assert data[chunk.offset : position] == chunk.data
        assert position == end.offset == len(data)
        await conversation.close()
    # The same starts, as the client offers them.
    resource = reader.open(upload.id)
    async with aclosing(resource.follow(last_bytes=9)) as pieces:
        assert b"".join([piece async for piece in pieces]) == data[-9:]
    async with aclosing(resource.follow(last_lines=1)) as pieces:
        assert b"".join([piece async for piece in pieces]) == data[data.rindex(b"\n", 0, -1) + 1 :]


@proves("DWN-4")
async def test_a_follower_of_what_has_ended_gets_it_and_ends(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    async with uploader.upload("complete", lines=True) as complete:
        await complete.write(HISTORY)
    failed = uploader.upload("failed", lines=True)
    await failed.open()
    await failed.write(HISTORY)
    await failed.flush()
    await failed.abort("for a reason")
    for start, offset in ENDED_STARTS:
        assert await follow(reader.open(complete.id), start) == HISTORY[offset:]
        assert await follow(reader.open(failed.id), start, raise_on_failure=False) == HISTORY[offset:]


@proves("DWN-4")
async def test_a_failure_is_raised_behind_the_last_byte(
    crossing: Crossing, uploader: ConnectedClient, reader: ConnectedClient
) -> None:
    upload = uploader.upload("a")
    await upload.open()
    await upload.write(b"before")
    await upload.flush()
    strict, lenient = bytearray(), bytearray()

    async def read(into: bytearray, raise_on_failure: bool) -> None:
        async with aclosing(reader.open(upload.id).follow(raise_on_failure=raise_on_failure)) as pieces:
            async for piece in pieces:
                into.extend(piece)

    reading = [asyncio.create_task(read(strict, True)), asyncio.create_task(read(lenient, False))]
    await upload.write(b" and after")
    await upload.flush()
    await upload.abort("the producer died")
    with pytest.raises(ResourceFailed, match="the producer died") as caught:
        await reading[0]
    await reading[1]
    assert strict == lenient == b"before and after"
    assert (caught.value.id, caught.value.size) == (upload.id, 16)


@proves("DWN-4", "LIN-6")
async def test_starts_that_cannot_be_are_typed_errors(client: ConnectedClient) -> None:
    async with client.upload("a") as upload:
        await upload.write(b"12345")
    resource = client.open(upload.id)
    for start, expected in (
        (FromOffset(6), RangeNotSatisfiable),
        (FromOffset(-1), RangeNotSatisfiable),
        (LastBytes(-1), InvalidArgument),
        (LastLines(1), LineAccessDisabled),
    ):
        with pytest.raises(expected):
            await follow(resource, start)
    with pytest.raises(InvalidArgument):
        await anext(resource.follow(1, last_bytes=1))
    async with client.upload("b", lines=True) as with_lines:
        await with_lines.write(b"x")
    with pytest.raises(InvalidArgument):
        await follow(client.open(with_lines.id), LastLines(-1))
    assert await resource.read() == b"12345"


@proves("DWN-4", "DWN-8", "UPL-17")
async def test_many_followers_get_every_byte(new_server: NewServer, cell: Cell) -> None:
    # A tail that is smaller than the resource: whoever comes late reads from storage and catches up.
    server = await new_server(tail_bytes=32 * 1024, chunk_size=8 * 1024)
    clients = [server.connect(cell.transport) for _ in range(3)]
    upload = clients[0].upload("a", lines=True)
    await upload.open()
    chance = random.Random(7)
    data = bytearray()
    following: list[tuple[int, asyncio.Task[bytes]]] = []
    for number in range(200):
        if number % 4 == 0:
            offset = chance.randint(0, upload.announced.size)
            resource = clients[number // 4 % 3].open(upload.id)
            following.append((offset, asyncio.create_task(follow(resource, FromOffset(offset)))))
        piece = chance.randbytes(chance.choice((1, 80, 80, 3000)))
        data += piece
        await upload.write(piece)
        if number % 2:
            await upload.flush()
    await upload.finish()
    for offset, task in following:
        assert await task == data[offset:]


@proves("DWN-4")
async def test_followers_at_the_same_place_ask_for_new_bytes_once(
    new_server: NewServer, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace_impl_server._pieces import PieceSource

    real = PieceSource.try_read
    asked: list[int] = []

    def try_read(source: PieceSource, start: int, end: int) -> Piece | None:
        asked.append(start)
        return real(source, start, end)

    server = await new_server()
    client = server.connect(cell.transport)
    upload = client.upload("a", lines=True)
    await upload.open()
    async with AsyncExitStack() as stack:
        following = [
            await stack.enter_async_context(aclosing(client.open(upload.id).follow_chunks())) for _ in range(8)
        ]
        # All are there, and behind the same chunk, before it is counted who asks.
        arriving = [asyncio.create_task(anext(chunks)) for chunks in following]
        await upload.write(b"0")
        await upload.flush()
        assert [bytes(chunk.data) for chunk in await asyncio.gather(*arriving)] == [b"0"] * 8
        monkeypatch.setattr(PieceSource, "try_read", try_read)
        for offset in range(1, 6):
            arriving = [asyncio.create_task(anext(chunks)) for chunks in following]
            await upload.write(b"%d" % offset)
            await upload.flush()
            assert [bytes(chunk.data) for chunk in await asyncio.gather(*arriving)] == [b"%d" % offset] * 8
    assert asked == [1, 2, 3, 4, 5]
    await upload.finish()


@proves("DWN-4", "DWN-6", "CHK-1")
async def test_the_end_of_a_stream_says_what_was_sent(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"some")
    await upload.announced(4)
    conversation = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(1)))
    assert (await conversation.receive(Started)).offset == 1
    first = await conversation.receive(Chunk)
    assert (first.offset, bytes(first.data), first.previous) == (1, b"ome", b"")
    await upload.chunk(b"more")
    second = await conversation.receive(Chunk)
    assert (second.offset, bytes(second.data), second.previous) == (4, b"more", first.hash)
    assert second.checkpoint is not None
    assert second.checkpoint.head == head_of(b"somemore")
    finished = await upload.finished()
    end = await conversation.receive(End)
    assert finished.status is not None
    assert (end.offset, end.previous, end.status.state) == (8, second.hash, ResourceState.COMPLETED)
    assert end.status.version == finished.status.version
    assert await conversation.rest() == []
    await conversation.close()


@proves("DWN-4")
async def test_followers_that_are_sent_the_same_bytes_keep_their_own_chains(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"history\n")
    await upload.announced(8)
    # Two from the same place, one from another, one that has nothing before what comes next.
    starts = (0, 0, 3, 8)
    following = []
    previous: list[bytes] = []
    for start in starts:
        conversation = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(start)))
        assert (await conversation.receive(Started)).offset == start
        previous.append((await conversation.receive(Chunk)).hash if start < 8 else b"")
        following.append(conversation)
    data = b"history\n"
    for piece in (b"one\n", b"two and more\n", b"3\n"):
        await upload.chunk(piece)
        for number, conversation in enumerate(following):
            chunk = await conversation.receive(Chunk)
            assert (chunk.offset, bytes(chunk.data), chunk.previous) == (len(data), piece, previous[number])
            assert chunk.hash == chunk_hash(piece)
            assert chunk.checkpoint == Checkpoint(len(data + piece), 0, head_of(data + piece))
            previous[number] = chunk.hash
        data += piece
    finished = await upload.finished()
    assert finished.status is not None
    for number, conversation in enumerate(following):
        end = await conversation.receive(End)
        assert (end.offset, end.previous) == (len(data), previous[number])
        assert await conversation.rest() == []
        await conversation.close()


# Properties


EXAMPLE_TIMEOUT = 100.0
"""Longest time of one example, in seconds: hypothesis repeats one that the test's own timeout has ended."""
SIZES = st.sampled_from([0, 1, 2, 15, 16, 17, 1000, 4096, 65_535, 131_071, 131_072, 131_073, 200_000])


@proves("UPL-4", "DWN-4", "LIN-1", "CHK-1")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(SIZES, max_size=8), seed=st.integers(0, 2**32), chunk_size=st.sampled_from([1000, 65_536, None]))
async def test_any_chunking_gives_the_same_bytes_newlines_and_head(
    server: LocalServer, cell: Cell, sizes: list[int], seed: int, chunk_size: int | None
) -> None:
    async with asyncio.timeout(EXAMPLE_TIMEOUT):
        await _upload_in_pieces(server, cell, sizes, seed, chunk_size)


async def _upload_in_pieces(
    server: LocalServer, cell: Cell, sizes: list[int], seed: int, chunk_size: int | None
) -> None:
    chance = random.Random(seed)
    pieces = [bytes(chance.choices(b"ab\n\r", k=min(size, 1000))) * (size // 1000 + 1) for size in sizes]
    pieces = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
    data = b"".join(pieces)
    client = server.connect(cell.transport, chunk_size=chunk_size)
    async with client.upload("a", lines=True) as upload, client.open(upload.id) as resource:
        following = asyncio.create_task(follow(resource, FromOffset(0)))
        for piece in pieces:
            await upload.write(piece)
            if chance.random() < 0.5:
                checkpoint = await upload.flush()
                assert checkpoint.newlines == data[: checkpoint.size].count(b"\n")
        final = await upload.finish()
        assert await following == data
        assert await resource.read() == data
    assert (final.size, final.head) == (len(data), head_of(data))
    assert final.lines == data.count(b"\n") + (data[-1:] not in (b"", b"\n"))
    await client.close()


ACTIONS = st.lists(
    st.sampled_from(["write", "write", "flush", "lose", "lose", "follow", "read", "lines", "status"]), max_size=25
)


@proves("RES-5", "UPL-9", "DWN-4", "LIN-2")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS, seed=st.integers(0, 2**32))
async def test_whatever_is_interleaved_every_announced_byte_stays_readable(
    server: LocalServer, cell: Cell, actions: list[str], seed: int
) -> None:
    async with asyncio.timeout(EXAMPLE_TIMEOUT):
        await _interleave(server, cell, actions, seed)


async def _interleave(server: LocalServer, cell: Cell, actions: list[str], seed: int) -> None:
    chance = random.Random(seed)
    writer, reader = server.connect(cell.transport), server.connect(cell.transport)
    session = await HandUpload.open(writer.connection, "a", lines=True)
    resource = reader.open(session.id)
    data = bytearray()
    size = lines = 0
    following: list[tuple[int, asyncio.Task[bytes]]] = []
    for action in actions:
        status = await resource.status()
        assert status.lines is not None
        assert status.size >= size
        assert status.lines >= lines
        size, lines = status.size, status.lines
        assert size <= len(data)
        match action:
            case "write":
                piece = bytes(chance.choices(b"ab\n", k=chance.choice((1, 100, 5000))))
                data += piece
                await session.chunk(piece)
            case "flush":
                await session.announced(session.offset)
            case "lose":
                # What was not announced may be gone; what was announced is not.
                await session.close()
                known = bytes(data)
                token, session_id = session.token, session.id
                session = await HandUpload.reopen(writer.connection, session_id, token)
                assert size <= session.opened.offset <= len(known)
                data = bytearray(known[: session.opened.offset])
                assert session.opened.head == head_of(data)
                session._hasher.update(bytes(data))
            case "follow":
                start = chance.randint(0, size)
                following.append((start, asyncio.create_task(follow(resource, FromOffset(start)))))
            case "read":
                start = chance.randint(0, size)
                end = chance.randint(start, size)
                assert await resource.read(start, end) == data[start:end]
            case "lines":
                first = chance.randint(0, lines)
                parts = data[:size].split(b"\n")[:-1]
                expected = [bytes(part) + b"\n" for part in parts[first : first + 3]]
                assert (await resource.read_lines(first, 3))[: len(expected)] == expected
            case "status":
                assert status.head == head_of(data[:size])
    finished = await session.finished()
    assert finished.status is not None
    assert (finished.status.size, finished.status.head) == (len(data), head_of(data))
    for start, task in following:
        assert await task == data[start:]
    await writer.close()
    await reader.close()


@proves("DWN-7", "DWN-8")
async def test_followers_that_leave_in_the_middle_disturb_nobody(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    staying = asyncio.create_task(follow(client.open(upload.id), FromOffset(0)))
    data = b""
    for number in range(20):
        leaving = asyncio.create_task(follow(client.open(upload.id), FromOffset(0)))
        piece = b"piece %d;" % number
        data += piece
        await _write(upload, piece)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
    await upload.finish()
    assert await staying == data


async def _write(upload: UploadSession, piece: bytes) -> None:
    await upload.write(piece)
    await upload.flush()
