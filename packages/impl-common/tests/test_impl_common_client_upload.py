"""The client's side of an upload over a conversation that a test plays."""

import asyncio
from collections import deque
from contextlib import aclosing

import pytest

from tailrace_common_api import (
    Checkpoint,
    ClientSettings,
    ConnectionLost,
    Limits,
    Metadata,
    ResourceState,
    Status,
    StorageFull,
    TailraceError,
    Visibility,
)
from tailrace_impl_common import EMPTY_HEAD, ClientStream, Connection, ServerLink, head_of
from tailrace_impl_common._client_upload import ConnectedUpload
from tailrace_impl_common.messages import (
    Chunk,
    ClientMessage,
    Opened,
    OpenUpload,
    Request,
    ServerMessage,
    UnaryAnswer,
    UnaryRequest,
    Window,
)

KIB = 1024
METADATA = Metadata(name="a")
OPENED = Opened(
    status=Status(
        reference="played://server/r/1",
        id="1",
        version=1,
        state=ResourceState.INITIATED,
        size=0,
        lines=None,
        head=EMPTY_HEAD,
        reason=None,
        alternatives=(),
        metadata=METADATA,
        visibility=Visibility.LIVE,
        created_at=0.0,
    ),
    token="token",
    epoch=1,
    offset=0,
    newlines=0,
    head=EMPTY_HEAD,
    until=4 * KIB,
    limits=Limits(
        chunk_size=KIB,
        upload_window=4 * KIB,
        upload_grace=60.0,
        max_download_window=KIB,
        max_resource_size=KIB**4,
        max_page_size=1,
        max_heads=1,
        max_context_bytes=1 << 40,
        max_context_resources=1000,
        max_storage_bytes=1 << 50,
        max_uploads=100,
        max_contexts=100,
        max_requests=100,
        context_required=False,
    ),
)


class PlayedStream(ClientStream):
    """What the server says is put in; what the client says is kept."""

    def __init__(self) -> None:
        self.said: deque[ServerMessage | TailraceError] = deque([OPENED])
        self.sent: list[ClientMessage] = []
        self.broken = False
        self.refused = asyncio.Event()
        self._more = asyncio.Event()

    def say(self, what: ServerMessage | TailraceError) -> None:
        self.said.append(what)
        self._more.set()

    async def send(self, message: ClientMessage) -> None:
        if self.broken:
            self.refused.set()
            raise ConnectionLost("broken")
        self.sent.append(message)

    async def receive(self) -> ServerMessage | None:
        while not self.said:
            self._more.clear()
            await self._more.wait()
        said = self.said.popleft()
        if isinstance(said, TailraceError):
            raise said
        return said

    async def close(self) -> None:
        self.say(ConnectionLost("closed"))


class PlayedConnection(Connection):
    def __init__(self) -> None:
        self.stream = PlayedStream()

    @property
    def best_chunk_size(self) -> int:
        return KIB

    async def open(self, request: Request) -> ClientStream:
        return self.stream

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        raise ConnectionLost("nobody answers")

    async def close(self) -> None:
        return


async def opened() -> tuple[ConnectedUpload, PlayedStream]:
    connection = PlayedConnection()
    request = OpenUpload(metadata=METADATA, visibility=Visibility.LIVE)
    upload = ConnectedUpload(ServerLink(connection, ClientSettings(reconnect_timeout=0)), request)
    await upload.open()
    return upload, connection.stream


async def test_the_servers_reason_is_told_where_sending_fails_first() -> None:
    upload, stream = await opened()
    stream.broken = True
    writing = asyncio.create_task(upload.write(b"x" * (8 * KIB)))
    await stream.refused.wait()
    await asyncio.sleep(0)
    stream.say(StorageFull("the disk is full"))
    with pytest.raises(StorageFull):
        await writing
    await upload.abort()


async def test_an_upload_without_room_goes_on_with_the_next_window() -> None:
    upload, stream = await opened()

    async def sends(size: int) -> None:
        while upload._machine.sent < size:  # noqa: ASYNC110 - the condition is the state of what is tested.
            await asyncio.sleep(0)
        assert sum(len(message.data) for message in stream.sent if isinstance(message, Chunk)) == size

    async with asyncio.timeout(10):
        # What waits for room is no more than a chunk.
        await upload.write(bytes(5 * KIB))
        await sends(4 * KIB)
        stream.say(Checkpoint(4 * KIB, 0, head_of(bytes(4 * KIB))))
        async with aclosing(upload.checkpoints()) as checkpoints:
            while (await anext(checkpoints)).size < 4 * KIB:
                pass
        await sends(4 * KIB)
        stream.say(Window(5 * KIB))
        await sends(5 * KIB)
    upload._fail(ConnectionLost("the test is over"))
    await upload.abort()


async def test_a_connection_that_is_lost_without_a_reason_is_told_as_lost() -> None:
    upload, stream = await opened()
    stream.broken = True
    writing = asyncio.create_task(upload.write(b"x" * (8 * KIB)))
    await stream.refused.wait()
    stream.say(ConnectionLost("broken for the reader too"))
    with pytest.raises(ConnectionLost):
        await writing
    await upload.abort()


async def test_a_large_buffer_is_copied_as_it_is_sent() -> None:
    upload, _ = await opened()
    writing = asyncio.create_task(upload.write(memoryview(bytearray(1024 * KIB))))
    while upload._machine.sent < OPENED.until:  # noqa: ASYNC110 - the condition is the state of what is tested.
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert upload.offset <= OPENED.until + 2 * KIB
    assert not writing.done()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    upload._fail(ConnectionLost("the test is over"))
    await upload.abort()


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (memoryview(bytes(200 * KIB))[KIB:], True),
        (memoryview(bytes(200 * KIB))[: 64 * KIB], True),
        (memoryview(bytes(200 * KIB))[: 64 * KIB - 1], False),
        (memoryview(bytes(200 * KIB)).cast("I"), True),
        (memoryview(bytearray(200 * KIB)).toreadonly(), False),
        (bytearray(200 * KIB), False),
    ],
)
async def test_large_views_of_bytes_are_kept_and_all_else_that_may_change_is_copied(
    data: bytearray | memoryview, *, kept: bool
) -> None:
    upload, _ = await opened()
    writing = asyncio.create_task(upload.write(data))
    await asyncio.sleep(0)
    part = upload._machine._parts[-1]
    assert (memoryview(part).obj is memoryview(data).obj) is kept
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    upload._fail(ConnectionLost("the test is over"))
    await upload.abort()
