"""Uploads and readers whose conversations are lost, against conversations that a test plays."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from tailrace_client_download_api import RemoteResource
from tailrace_client_upload_api import Buffer, ReopenRequest, UploadRequest, UploadSession
from tailrace_common_api import (
    Checkpoint,
    ClientSettings,
    ConnectionLost,
    DataLost,
    DeadlineExceeded,
    Fenced,
    FromOffset,
    GoingAway,
    IntegrityError,
    InvalidArgument,
    Limits,
    Metadata,
    NotFound,
    Overloaded,
    RangeNotSatisfiable,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    Status,
    StorageFull,
    TailraceError,
    UploadAborted,
    Visibility,
)
from tailrace_impl_common import (
    ClientStream,
    ConnectedClient,
    Connection,
    FailoverConnection,
    chunk_hash,
    head_of,
)
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    CreateContext,
    Delete,
    Done,
    End,
    Finish,
    Finished,
    Follow,
    GetHeads,
    GetStatus,
    Heads,
    Opened,
    OpenUpload,
    Read,
    ReopenUpload,
    Request,
    ServerMessage,
    Started,
    UnaryAnswer,
    UnaryRequest,
    Watch,
    Watched,
)

ID = "0" * 32
DATA = bytes(number * 7 % 251 for number in range(300_000))
LIMITS = Limits(
    chunk_size=50_000,
    upload_window=1 << 20,
    upload_grace=60.0,
    max_download_window=1 << 30,
    max_resource_size=1 << 40,
    max_page_size=100,
    max_heads=100,
    max_context_bytes=1 << 40,
    max_context_resources=1000,
    max_storage_bytes=1 << 50,
    max_uploads=100,
    max_contexts=100,
    max_requests=100,
    context_required=False,
)
LOST = ConnectionLost("lost")


def status_of(
    data: bytes = b"", state: ResourceState = ResourceState.IN_PROGRESS, version: int = 1, reason: str | None = None
) -> Status:
    return Status(
        reference=f"played://server/r/{ID}",
        id=ID,
        version=version,
        state=state,
        size=len(data),
        lines=None,
        head=head_of(data),
        reason=reason,
        alternatives=(),
        metadata=Metadata(name="a"),
        visibility=Visibility.LIVE,
        created_at=0.0,
    )


def opened_at(data: bytes = b"", status: Status | None = None, epoch: int = 1) -> Opened:
    return Opened(
        status=status or status_of(data),
        token="token",
        newlines=0,
        offset=len(data),
        head=head_of(data),
        until=1 << 30,
        limits=LIMITS,
        epoch=epoch,
    )


COMPLETED = Finished(status_of(DATA, ResourceState.COMPLETED, 9))


class PlayedStream(ClientStream):
    """Says what it was given; ends with an error, or waits when there is none. What the client says is kept."""

    def __init__(self, *says: ServerMessage | TailraceError) -> None:
        self.says = deque(says)
        self.sent: list[ClientMessage] = []
        self.heard = asyncio.Event()
        self.closed = False
        self._more = asyncio.Event()

    def say(self, *what: ServerMessage | TailraceError) -> None:
        self.says.extend(what)
        self._more.set()

    @property
    def data(self) -> bytes:
        return b"".join(bytes(message.data) for message in self.sent if isinstance(message, Chunk))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.heard.clear()
            await self.heard.wait()

    async def send(self, message: ClientMessage) -> None:
        self.sent.append(message)
        self.heard.set()

    async def receive(self) -> ServerMessage | None:
        while not self.says:
            self._more.clear()
            await self._more.wait()
        said = self.says[0]
        if isinstance(said, TailraceError):
            raise said
        self.says.popleft()
        return said

    async def close(self) -> None:
        self.closed = True
        self.say(ConnectionLost("closed"))


Answer = UnaryAnswer | TailraceError | Callable[[UnaryRequest], UnaryAnswer]


class PlayedConnection(Connection):
    """Hands out streams, and answers, in the order in which they were given."""

    def __init__(self, *streams: PlayedStream | TailraceError, answers: list[Answer] | None = None) -> None:
        self.streams = deque(streams)
        self.answers = deque(answers or [])
        self.requests: list[Request] = []
        self.closed = False
        self.asked = asyncio.Event()

    @property
    def best_chunk_size(self) -> int:
        return 20_000

    async def open(self, request: Request) -> ClientStream:
        self.requests.append(request)
        self.asked.set()
        stream = self.streams.popleft() if len(self.streams) > 1 else self.streams[0]
        if isinstance(stream, TailraceError):
            raise stream
        return stream

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        self.requests.append(request)
        answer = self.answers.popleft()
        if isinstance(answer, TailraceError):
            raise answer
        return answer(request) if callable(answer) else answer

    async def close(self) -> None:
        self.closed = True
        for stream in self.streams:
            if isinstance(stream, PlayedStream):
                await stream.close()


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once: how long the delays are is tested elsewhere."""
    monkeypatch.setattr("random.random", lambda: 0.0)


def windows_of(connection: PlayedConnection) -> list[tuple[type[Follow | Read], int]]:
    """Return the kind and the window of each request to read or follow."""
    return [(type(request), request.window) for request in connection.requests if isinstance(request, Follow | Read)]


def client_of(connection: Connection, *, worked: bool = True, **settings: Any) -> ConnectedClient:
    client = ConnectedClient(connection, replace(ClientSettings(reconnect_timeout=20.0), **settings))
    client._link.worked = worked
    return client


async def upload_over(
    *streams: PlayedStream | TailraceError,
    prefix: Callable[[int], AsyncIterator[Buffer]] | None = None,
    answers: list[Answer] | None = None,
    key: str | None = None,
) -> tuple[UploadSession, PlayedConnection]:
    connection = PlayedConnection(*streams, answers=answers)
    request = UploadRequest(metadata=Metadata(name="a"), prefix=prefix, idempotency_key=key)
    # What the connection says once it is closed is its last word.
    return client_of(connection, reconnect_timeout=2.0).start_upload(request), connection


async def bytes_of(data: bytes) -> AsyncIterator[Buffer]:
    for start in range(0, len(data), 7_000):
        yield data[start : start + 7_000]


def prefix_of(data: bytes) -> Callable[[int], AsyncIterator[Buffer]]:
    return lambda size: bytes_of(data[:size])


async def test_an_upload_continues_at_the_servers_offset() -> None:
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(DATA[:120_000], epoch=2))
    upload, connection = await upload_over(first, second)
    async with upload:
        await upload.write(DATA)
        await first.until(lambda: first.data == DATA)
        assert upload.interruption is None
        first.say(LOST)
        finishing = asyncio.ensure_future(upload.finish())
        await second.until(lambda: bool(second.sent) and isinstance(second.sent[-1], Finish))
        second.say(COMPLETED)
        assert (await finishing).state is ResourceState.COMPLETED
    assert connection.requests[1:] == [ReopenUpload(id=ID, token="token")]
    assert second.data == DATA[120_000:]
    assert second.sent[-1] == Finish(len(DATA), head_of(DATA))
    assert upload.epoch == 2
    assert first.closed
    assert second.closed


async def test_a_lost_acknowledgement_completes_the_upload() -> None:
    assert COMPLETED.status is not None
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(DATA, COMPLETED.status))
    upload, _ = await upload_over(first, second)
    async with upload:
        await upload.write(DATA)
        finishing = asyncio.ensure_future(upload.finish())
        await first.until(lambda: bool(first.sent) and isinstance(first.sent[-1], Finish))
        first.say(LOST)
        assert await finishing == COMPLETED.status
    assert second.sent == []


async def test_what_is_announced_before_the_loss_is_not_sent_again() -> None:
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(DATA[:100_000]))
    upload, _ = await upload_over(first, second)
    await upload.open()
    await upload.write(DATA)
    await first.until(lambda: first.data == DATA)
    first.say(Checkpoint(100_000, 0, head_of(DATA[:100_000])))
    flushing = asyncio.ensure_future(upload.flush())
    async with aclosing(upload.checkpoints()) as checkpoints:
        assert (await anext(checkpoints)).size in (0, 100_000)
        first.say(LOST)
        await second.until(lambda: second.data == DATA[100_000:])
        second.say(Checkpoint(len(DATA), 0, head_of(DATA)))
        assert (await flushing).size == len(DATA)
        sizes = [(await anext(checkpoints)).size]
        while sizes[-1] != len(DATA):
            sizes.append((await anext(checkpoints)).size)
        assert sizes == sorted(sizes)
    second.say(StorageFull("the test is over"))
    with pytest.raises(StorageFull):
        await upload.finish()


async def test_the_wait_is_told_and_ends_with_the_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)
    first = PlayedStream(opened_at())
    connection = PlayedConnection(first, GoingAway(retry_after=0.0), ConnectionLost("nobody is there"))
    client = client_of(connection, reconnect_timeout=1.0)
    upload = client.start_upload(UploadRequest(metadata=Metadata(name="a")))
    await upload.open()
    interruptions = upload.interruptions()
    next_interruption = asyncio.ensure_future(anext(interruptions))
    writing = asyncio.ensure_future(upload.write(bytes(1 << 20)))
    flushing = asyncio.ensure_future(upload.flush())
    detaching = asyncio.ensure_future(upload.detach())
    first.say(ConnectionLost("first"))
    told = await next_interruption
    assert isinstance(told, ConnectionLost)
    for waiting in (flushing, detaching, asyncio.ensure_future(upload.finish())):
        with pytest.raises(ConnectionLost, match="nobody is there"):
            await waiting
    with pytest.raises(ConnectionLost, match="nobody is there"):
        await upload.write(b"x")
    assert upload.interruption is None
    await writing
    assert [interruption async for interruption in interruptions] == []
    assert await upload.abort() is None


async def test_without_any_time_to_come_back_the_first_error_is_raised() -> None:
    connection = PlayedConnection(PlayedStream(opened_at(), ConnectionLost("first")))
    client = client_of(connection, reconnect_timeout=0.0)
    upload = client.start_upload(UploadRequest(metadata=Metadata(name="a")))
    await upload.open()
    with pytest.raises(ConnectionLost, match="first"):
        await upload.finish()
    assert len(connection.requests) == 1


@pytest.mark.parametrize(
    "error", [StorageFull("full"), Fenced(epoch=1), NotFound(id=ID)], ids=lambda e: type(e).__name__
)
async def test_what_the_server_refuses_is_told_at_once(error: TailraceError) -> None:
    upload, connection = await upload_over(PlayedStream(opened_at(), error))
    await upload.open()
    with pytest.raises(type(error)):
        await upload.finish()
    assert len(connection.requests) == 1


@pytest.mark.parametrize("error", [Fenced(epoch=1), NotFound(id=ID)], ids=lambda e: type(e).__name__)
async def test_what_the_server_refuses_when_it_is_back_is_told(error: TailraceError) -> None:
    upload, _ = await upload_over(PlayedStream(opened_at(), LOST), PlayedStream(error))
    await upload.open()
    with pytest.raises(type(error)):
        await upload.flush() if upload.offset else await upload.finish()


async def test_the_end_of_the_grace_period_is_told() -> None:
    failed = status_of(b"", ResourceState.FAILED, 3, "uploader lost")
    upload, _ = await upload_over(PlayedStream(opened_at(), LOST), PlayedStream(opened_at(b"", failed)))
    with pytest.raises(ResourceFailed, match="uploader lost"):
        async with upload:
            await upload.write(b"x")
    assert upload.status == failed
    # Also where the block does nothing that would raise it.
    upload, _ = await upload_over(PlayedStream(opened_at(), LOST), PlayedStream(opened_at(b"", failed)))
    with pytest.raises(ResourceFailed, match="uploader lost"):  # noqa: PT012 - leaving the block is what raises
        async with upload, aclosing(upload.interruptions()) as interruptions:
            async for _ in interruptions:
                pass
    assert await upload.abort() == failed


async def test_bytes_that_keep_arriving_otherwise_are_an_error() -> None:
    bad = [PlayedStream(opened_at(), IntegrityError(offset=0, problem="changed")) for _ in range(9)]
    upload, connection = await upload_over(*bad)
    await upload.open()
    await upload.write(b"x")
    with pytest.raises(IntegrityError):
        await upload.flush()
    assert len(connection.requests) == 4


async def test_an_abort_does_not_wait_for_the_server() -> None:
    first = PlayedStream(opened_at())
    connection = PlayedConnection(first, GoingAway(retry_after=1000.0))
    client = client_of(connection, reconnect_timeout=2000.0)
    upload = client.start_upload(UploadRequest(metadata=Metadata(name="a")))
    await upload.open()
    first.say(LOST)
    await connection.asked.wait()
    async with aclosing(upload.interruptions()) as interruptions:
        async for interruption in interruptions:
            if isinstance(interruption, GoingAway):
                break
    flushing = asyncio.ensure_future(upload.finish())
    await asyncio.sleep(0)
    assert await upload.abort("enough") is None
    with pytest.raises(UploadAborted, match="enough"):
        await flushing


async def test_a_client_that_is_closed_comes_back_no_more() -> None:
    first = PlayedStream(opened_at())
    connection = PlayedConnection(first, GoingAway(retry_after=1000.0))
    client = client_of(connection, reconnect_timeout=2000.0)
    upload = client.start_upload(UploadRequest(metadata=Metadata(name="a")))
    await upload.open()
    first.say(LOST)
    async with aclosing(upload.interruptions()) as interruptions:
        async for interruption in interruptions:
            if isinstance(interruption, GoingAway):
                break
    await client.close()
    with pytest.raises(GoingAway):
        await upload.finish()


# What the server lost


async def test_lost_bytes_are_read_from_the_source_again() -> None:
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(DATA[:50_000]))
    third = PlayedStream(opened_at(DATA[:30_000]))
    upload, _ = await upload_over(first, second, third, prefix=prefix_of(DATA))
    async with upload:
        await upload.write(DATA[:200_000])
        await first.until(lambda: len(first.data) == 200_000)
        first.say(Checkpoint(200_000, 0, head_of(DATA[:200_000])))
        await upload.flush()
        first.say(LOST)
        await second.until(lambda: len(second.data) > 60_000)
        second.say(LOST)
        await upload.write(DATA[200_000:])
        assert upload.announced.size == 200_000
        finishing = asyncio.ensure_future(upload.finish())
        await third.until(lambda: bool(third.sent) and isinstance(third.sent[-1], Finish))
        third.say(COMPLETED)
        await finishing
    assert third.data == DATA[30_000:]
    assert third.sent[-1] == Finish(len(DATA), head_of(DATA))


async def test_lost_bytes_that_nobody_has_end_the_upload_as_failed() -> None:
    failed = Finished(status_of(DATA[:50_000], ResourceState.FAILED, 5, "data lost"))
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(DATA[:50_000]), failed)
    upload, _ = await upload_over(first, second)
    await upload.open()
    await upload.write(DATA)
    await first.until(lambda: first.data == DATA)
    first.say(Checkpoint(len(DATA), 0, head_of(DATA)))
    await upload.flush()
    first.say(LOST)
    with pytest.raises(DataLost) as caught:
        await upload.finish()
    assert (caught.value.announced, caught.value.size) == (len(DATA), 50_000)
    assert second.sent == [Abort("data lost")]
    assert upload.status == failed.status


async def test_a_source_that_has_changed_is_refused_with_the_last_common_offset() -> None:
    changed = DATA[:30_000] + b"?" + DATA[30_001:]
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(DATA[:50_000]))

    def heads(request: UnaryRequest) -> Heads:
        assert isinstance(request, GetHeads)
        return Heads(tuple(head_of(DATA[:size]) for size in request.sizes))

    upload, _ = await upload_over(first, second, prefix=prefix_of(changed), answers=[heads])
    await upload.open()
    await upload.write(DATA)
    await first.until(lambda: first.data == DATA)
    first.say(Checkpoint(len(DATA), 0, head_of(DATA)))
    await upload.flush()
    first.say(LOST)
    with pytest.raises(SourceChanged) as caught:
        await upload.finish()
    assert 0 < caught.value.offset <= 30_000


async def test_bytes_of_somebody_else_are_found_by_comparing_heads() -> None:
    theirs = DATA[:150_000] + b"?" * 10_000
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(theirs))

    def heads(request: UnaryRequest) -> Heads:
        assert isinstance(request, GetHeads)
        return Heads(tuple(head_of(theirs[:size]) for size in request.sizes))

    upload, _ = await upload_over(first, second, answers=[heads])
    await upload.open()
    await upload.write(DATA)
    await first.until(lambda: first.data == DATA)
    first.say(LOST)
    with pytest.raises(SourceChanged) as caught:
        await upload.finish()
    assert 150_000 - 64 * 1024 - 20_000 <= caught.value.offset <= 150_000


# The first answer


@pytest.mark.parametrize("key", [None, "key"])
async def test_a_request_whose_answer_was_lost_is_repeated_under_a_key_only(key: str | None) -> None:
    upload, connection = await upload_over(PlayedStream(LOST), PlayedStream(opened_at()), key=key)
    if key is None:
        with pytest.raises(ConnectionLost):
            await upload.open()
        assert len(connection.requests) == 1
    else:
        await upload.open()
        assert connection.requests[0] == connection.requests[1]
        assert isinstance(connection.requests[0], OpenUpload)
        await connection.close()
        await upload.abort()


async def test_a_request_that_was_refused_for_now_is_repeated() -> None:
    upload, connection = await upload_over(
        PlayedStream(Overloaded(what="uploads", retry_after=0.0)), PlayedStream(opened_at())
    )
    await upload.open()
    assert len(connection.requests) == 2
    await connection.close()
    await upload.abort()


async def test_the_first_use_of_a_connection_is_not_repeated() -> None:
    connection = PlayedConnection(LOST, answers=[LOST])
    client = client_of(connection, worked=False)
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: client.start_upload(UploadRequest(metadata=Metadata(name="a"), idempotency_key="k")).open(),
        lambda: client.resume_upload(ReopenRequest(id=ID, token="t")).open(),
        lambda: client.open(ID).read(),
        lambda: client.open(ID).wait(),
        lambda: client.status(ID),
    ]
    for attempt in attempts:
        with pytest.raises(ConnectionLost):
            await attempt()
    assert len(connection.requests) == len(attempts)


# Readers


def started(offset: int, end: int | None) -> Started:
    return Started(offset=offset, end=end, line=None, status=status_of(DATA), limits=LIMITS)


def chunks_of(start: int, end: int, step: int = 10_000) -> list[Chunk]:
    chunks: list[Chunk] = []
    for offset in range(start, end, step):
        data = DATA[offset : min(end, offset + step)]
        until = offset + len(data)
        checkpoint = Checkpoint(until, 0, head_of(DATA[:until]))
        chunks.append(Chunk(offset, data, chunk_hash(data), chunks[-1].hash if chunks else b"", checkpoint))
    return chunks


def whole(offset: int, end: int | None, until: int, status: Status) -> PlayedStream:
    chunks = chunks_of(offset, until)
    return PlayedStream(started(offset, end), *chunks, End(offset=until, previous=chunks[-1].hash, status=status))


async def test_a_follower_continues_behind_its_last_byte() -> None:
    final = status_of(DATA, ResourceState.COMPLETED, 9)
    connection = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 50_000), LOST),
        ConnectionLost("nobody is there"),
        PlayedStream(GoingAway(retry_after=0.0)),
        PlayedStream(started(50_000, None), *chunks_of(50_000, 120_000), LOST),
        whole(120_000, None, len(DATA), final),
    )
    resource = client_of(connection).open(ID)
    assert b"".join([piece async for piece in resource.follow()]) == DATA
    starts = [request.start for request in connection.requests if isinstance(request, Follow)]
    assert starts == [FromOffset(offset) for offset in (0, 50_000, 50_000, 50_000, 120_000)]


async def test_a_window_that_a_server_refuses_is_left_to_the_transport() -> None:
    final = status_of(DATA, ResourceState.COMPLETED, 9)
    refusal = InvalidArgument(field="window", problem="more than there is")
    connection = PlayedConnection(
        PlayedStream(refusal),
        PlayedStream(started(0, None), *chunks_of(0, 50_000), LOST),
        whole(50_000, None, len(DATA), final),
        whole(0, len(DATA), len(DATA), final),
        PlayedStream(InvalidArgument(field="start", problem="none")),
    )
    resource = client_of(connection, download_window=1_000_000).open(ID)
    assert b"".join([piece async for piece in resource.follow()]) == DATA
    assert await resource.read() == DATA
    with pytest.raises(InvalidArgument, match="start"):
        await resource.read()
    assert windows_of(connection) == [(Follow, 1_000_000), (Follow, 0), (Follow, 0), (Read, 0), (Read, 0)]


async def test_a_server_that_takes_over_may_refuse_the_window() -> None:
    final = status_of(DATA, ResourceState.COMPLETED, 9)
    connection = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 50_000), LOST),
        PlayedStream(InvalidArgument(field="window", problem="more than there is")),
        # More than would have been granted.
        whole(50_000, None, len(DATA), final),
    )
    resource = client_of(connection, download_window=60_000).open(ID)
    assert b"".join([piece async for piece in resource.follow()]) == DATA
    assert windows_of(connection) == [(Follow, 60_000), (Follow, 60_000), (Follow, 0)]


async def test_a_range_continues_to_the_end_that_it_had() -> None:
    connection = PlayedConnection(
        PlayedStream(started(100, 90_000), *chunks_of(100, 40_100), LOST),
        whole(40_100, 90_000, 90_000, status_of(DATA)),
    )
    assert await client_of(connection).open(ID).read_last(1234) == DATA[100:90_000]
    assert connection.requests[1] == Read(id=ID, start=40_100, end=90_000, window=ClientSettings().download_window)


async def test_a_reader_that_gets_other_bytes_after_all_stops() -> None:
    other = bytes(10)
    wrong = Chunk(50_000, other, chunk_hash(other), b"", Checkpoint(50_010, 0, head_of(DATA[:50_010])))
    connection = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 50_000), LOST), PlayedStream(started(50_000, None), wrong)
    )
    follower = client_of(connection).open(ID).follow()
    assert b"".join([await anext(follower) for _ in range(5)]) == DATA[:50_000]
    with pytest.raises(IntegrityError) as caught:
        await anext(follower)
    assert caught.value.offset == 50_000
    assert len(connection.requests) == 2


async def test_a_server_with_less_than_was_delivered_lost_data() -> None:
    connection = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 50_000), LOST),
        PlayedStream(RangeNotSatisfiable(start=50_000, end=None, size=20_000)),
    )
    with pytest.raises(DataLost) as caught:
        async for _ in client_of(connection).open(ID).follow():
            pass
    assert (caught.value.announced, caught.value.size) == (50_000, 20_000)


async def test_statuses_go_on_with_rising_versions() -> None:
    final = status_of(DATA, ResourceState.COMPLETED, 9)
    connection = PlayedConnection(
        PlayedStream(status_of(DATA[:1], version=1), status_of(DATA[:5], version=5), LOST),
        PlayedStream(status_of(DATA[:5], version=5), LOST),
        PlayedStream(status_of(DATA[:5], version=5), status_of(DATA[:7], version=7), LOST),
        # The end of the conversation itself is lost.
        PlayedStream(final, LOST),
    )
    async with aclosing(client_of(connection).open(ID).statuses()) as statuses:
        assert [status.version async for status in statuses] == [1, 5, 7, 9]
    assert connection.requests == [Watch(id=ID)] * 4


@pytest.mark.parametrize("version", [3, 5, 7])
async def test_a_status_that_went_back_is_lost_data(version: int) -> None:
    connection = PlayedConnection(
        PlayedStream(status_of(DATA[:5], version=5), LOST),
        PlayedStream(status_of(DATA[:3], version=version), Watched()),
    )
    with pytest.raises(DataLost):
        await client_of(connection).open(ID).wait()


async def test_a_resource_tells_that_it_waits_and_stops_when_it_is_closed() -> None:
    connection = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 10), LOST), PlayedStream(GoingAway(retry_after=1000.0))
    )
    resource: RemoteResource = client_of(connection, reconnect_timeout=2000.0).open(ID)
    follower = resource.follow()
    assert await anext(follower) == DATA[:10]
    waiting = asyncio.ensure_future(anext(follower))
    interruptions = resource.interruptions()
    while not isinstance(await anext(interruptions), GoingAway):
        pass
    await resource.close()
    with pytest.raises(GoingAway):
        await waiting
    assert [interruption async for interruption in interruptions] in ([], [None])
    assert resource.interruption is None


@pytest.mark.parametrize("closed", ["resource", "client"])
async def test_interruptions_end_with_the_resource_and_with_the_client(closed: str) -> None:
    client = client_of(PlayedConnection())
    resource = client.open(ID)
    told = [resource.interruptions() for _ in range(2)]
    waiting = [asyncio.ensure_future(anext(interruptions, "the end")) for interruptions in told]
    await asyncio.sleep(0)
    # One of them is left.
    waiting.pop().cancel()
    await asyncio.sleep(0)
    await (client if closed == "client" else resource).close()
    assert await asyncio.gather(*waiting) == ["the end"]


async def test_an_interruption_ends_when_the_conversation_goes_on() -> None:
    connection = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 10), LOST), PlayedStream(started(10, None), *chunks_of(10, 20))
    )
    resource = client_of(connection).open(ID)
    async with aclosing(resource.follow()) as pieces, aclosing(resource.interruptions()) as interruptions:
        assert await anext(pieces) == DATA[:10]
        following = asyncio.ensure_future(anext(pieces))
        assert await anext(interruptions) is LOST
        assert await anext(interruptions) is None
        assert await following == DATA[10:20]
        assert resource.interruption is None


# Questions


async def test_questions_are_asked_again() -> None:
    status = status_of()
    connection = PlayedConnection(LOST, answers=[LOST, GoingAway(retry_after=0.0), status])
    assert await client_of(connection).status(ID) == status
    assert connection.requests == [GetStatus(id=ID)] * 3


async def test_a_question_that_was_not_answered_in_time_is_not_asked_again() -> None:
    late = DeadlineExceeded(what="the answer", seconds=1.0)
    connection = PlayedConnection(LOST, answers=[late])
    with pytest.raises(DeadlineExceeded):
        await client_of(connection).status(ID)


async def test_a_deletion_whose_answer_was_lost_was_done() -> None:
    connection = PlayedConnection(LOST, answers=[LOST, NotFound(id=ID)])
    await client_of(connection).delete(ID)
    assert connection.requests == [Delete(id=ID)] * 2
    connection = PlayedConnection(LOST, answers=[NotFound(id=ID)])
    with pytest.raises(NotFound):
        await client_of(connection).delete(ID)


async def test_a_context_is_not_made_twice() -> None:
    connection = PlayedConnection(LOST, answers=[LOST])
    with pytest.raises(ConnectionLost):
        await client_of(connection)._link.ask(CreateContext(attributes={}), Done)
    assert len(connection.requests) == 1


# Several ways


async def test_a_way_that_fails_is_left_for_the_next() -> None:
    final = status_of(DATA, ResourceState.COMPLETED, 9)
    first = PlayedConnection(
        PlayedStream(started(0, None), *chunks_of(0, 50_000), LOST), ConnectionLost("down"), answers=[LOST]
    )
    second = PlayedConnection(whole(50_000, None, len(DATA), final), answers=[final, final])
    connection = FailoverConnection([first, second])
    client = client_of(connection, worked=False)
    assert b"".join([piece async for piece in client.open(ID).follow()]) == DATA
    assert connection.current is second
    assert len(first.requests) == len(second.requests) == 1
    assert await client.status(ID) == final
    await client.close()
    assert first.closed
    assert second.closed


async def test_the_first_use_tries_every_way_once() -> None:
    final = status_of(b"", ResourceState.COMPLETED, 9)
    first = PlayedConnection(PlayedStream(LOST), answers=[LOST, LOST])
    second = PlayedConnection(PlayedStream(final, Watched()), answers=[final, LOST])
    # A stream may fail at its first message only.
    assert await client_of(FailoverConnection([first, second]), worked=False).open(ID).wait() == final
    assert await client_of(FailoverConnection([first, second]), worked=False).status(ID) == final
    down = [PlayedConnection(ConnectionLost(f"{number} is down")) for number in range(3)]
    with pytest.raises(ConnectionLost, match="2 is down"):
        await FailoverConnection(down).open(Watch(id=ID))
    assert [len(connection.requests) for connection in down] == [1, 1, 1]


async def test_many_conversations_turn_away_once() -> None:
    ways = [PlayedConnection(PlayedStream()), PlayedConnection(PlayedStream()), PlayedConnection(PlayedStream())]
    for way in ways:
        way.streams.extend(PlayedStream() for _ in range(8))
    connection = FailoverConnection(ways)
    streams = [await connection.open(Watch(id=ID)) for _ in range(5)]
    for stream in streams:
        connection.turn(stream)
    assert connection.current is ways[1]
    assert connection.ways == 3


async def test_what_must_not_be_done_twice_is_not_asked_on_another_way() -> None:
    first, second = PlayedConnection(LOST, answers=[LOST]), PlayedConnection(LOST, answers=[Done()])
    with pytest.raises(ConnectionLost):
        await FailoverConnection([first, second]).call(Delete(id=ID))
    assert second.requests == []


class SilentConnection(PlayedConnection):
    """A way that nobody answers on; it waits for as long as every transport does, and then says so."""

    def __init__(self, seconds: float) -> None:
        super().__init__(LOST)
        self._seconds = seconds

    async def open(self, request: Request) -> ClientStream:
        self.requests.append(request)
        self.asked.set()
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            raise DeadlineExceeded(what="the connection", seconds=self._seconds) from None
        raise AssertionError("nobody answers")


async def test_an_upload_leaves_a_way_that_nobody_answers_on() -> None:
    silent, second = SilentConnection(0.5), PlayedConnection(PlayedStream(opened_at()))
    connection = FailoverConnection([silent, second])
    upload = client_of(connection, worked=False, connect_timeout=0.5).start_upload(
        UploadRequest(metadata=Metadata(name="a"))
    )
    await upload.open()
    assert connection.current is second
    assert len(silent.requests) == len(second.requests) == 1
    await upload.abort()


async def test_an_upload_continues_behind_a_way_that_nobody_answers_on() -> None:
    first, second = PlayedStream(opened_at()), PlayedStream(opened_at(epoch=2))
    silent = SilentConnection(0.5)
    connection = FailoverConnection([PlayedConnection(first), silent, PlayedConnection(second)])
    upload = client_of(connection, connect_timeout=0.5).start_upload(UploadRequest(metadata=Metadata(name="a")))
    async with upload:
        await upload.write(DATA)
        first.say(LOST)
        finishing = asyncio.ensure_future(upload.finish())
        await second.until(lambda: bool(second.sent) and isinstance(second.sent[-1], Finish))
        second.say(COMPLETED)
        assert (await finishing).state is ResourceState.COMPLETED
    assert second.data == DATA
    assert len(silent.requests) == 1


class StuckStream(PlayedStream):
    """Takes nothing."""

    async def send(self, message: ClientMessage) -> None:
        self.heard.set()
        await asyncio.Event().wait()


class EndingStream(PlayedStream):
    """Takes note of an abort."""

    async def send(self, message: ClientMessage) -> None:
        await super().send(message)
        if isinstance(message, Abort):
            self.say(Finished(status_of(b"", ResourceState.FAILED, 9, message.reason)))


async def test_an_upload_that_is_given_up_as_soon_as_it_goes_on_is_given_up_at_once() -> None:
    first, second = StuckStream(opened_at()), EndingStream(opened_at(epoch=2))
    upload, _ = await upload_over(first, second)
    await upload.open()
    await upload.write(DATA[:10])
    await first.heard.wait()
    first.say(LOST)
    async with aclosing(upload.interruptions()) as interruptions:
        assert await anext(interruptions) is LOST
        assert await anext(interruptions) is None
        # In the very turn of the event loop in which the next conversation begins.
        status = await upload.abort("enough")
    assert second.sent[-1:] == [Abort("enough")]
    assert status is not None
    assert status.reason == "enough"


@pytest.mark.parametrize("kind", ["follow", "statuses"])
async def test_an_interruption_does_not_outlast_its_reader(kind: str) -> None:
    first = PlayedStream(started(0, None), *chunks_of(0, 10), LOST)
    if kind == "statuses":
        first = PlayedStream(status_of(), LOST)
    silent = SilentConnection(60.0)
    resource = client_of(FailoverConnection([PlayedConnection(first), silent])).open(ID)
    reader = resource.follow() if kind == "follow" else resource.statuses()
    await anext(reader)
    waiting = asyncio.ensure_future(anext(reader))
    await silent.asked.wait()
    assert resource.interruption is LOST
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert resource.interruption is None
