"""The server as any gRPC client sees it: generated classes and raw bytes, without this package's client."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tailrace_common_api import (
    KIBIBYTE,
    ConfigurationError,
    DeadlineExceeded,
    GoingAway,
    MessageTooLarge,
    NotFound,
    Overloaded,
    Page,
    ProtocolError,
    RangeNotSatisfiable,
    ResourceState,
    StorageFailure,
    TailraceError,
    Unsupported,
)
from tailrace_impl_common import HASH_SIZE, chunk_hash, head_of
from tailrace_impl_common.messages import ServerMessage
from tailrace_impl_grpc import GrpcServer, _health, _server
from tailrace_impl_grpc._call_status import CallStatus
from tailrace_impl_grpc._codec import MAX_DATA_MESSAGE
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_grpc._proto.v1 import tailrace_pb2_grpc as services
from tailrace_impl_grpc._server_streams import GrpcDownloadStream, GrpcServerStream
from tailrace_impl_server._reader import LiveReader
from tailrace_server_api import Piece, ResourceManager, ResourceService, TransportServerSettings

if TYPE_CHECKING:
    UploadsStub = services.UploadsAsyncStub
    ResourcesStub = services.ResourcesAsyncStub

Bidirectional = grpc.aio.StreamStreamCall[bytes, bytes]
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


def uploads_of(channel: grpc.aio.Channel) -> UploadsStub:
    return cast("UploadsStub", services.UploadsStub(channel))


def resources_of(channel: grpc.aio.Channel) -> ResourcesStub:
    return cast("ResourcesStub", services.ResourcesStub(channel))


def health_of(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub
    return stub(channel)


def reflection_of(channel: grpc.aio.Channel) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    return stub(channel)


async def rest_of(call: grpc.aio.StreamStreamCall[RequestT, ResponseT]) -> list[ResponseT]:
    """Return what is left to read of a call that ends in order."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(cast("ResponseT", message))
    assert await call.code() is grpc.StatusCode.OK
    return messages


def kinds_of(message: Message) -> list[str]:
    """Return the names of the fields that are set, in the order of their numbers."""
    return [field.name for field, _ in message.ListFields()]


async def answer_of(call: grpc.aio.StreamStreamCall[RequestT, ResponseT]) -> ResponseT:
    """Return the next message of a call."""
    message = await call.read()
    assert message is not grpc.aio.EOF
    return cast("ResponseT", message)


def raw(channel: grpc.aio.Channel, path: str) -> Bidirectional:
    multicallable: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
    return multicallable()


async def error_of(call: grpc.aio.Call) -> TailraceError:
    """Return the error with which a call ended."""
    code = await call.code()
    assert code is not grpc.StatusCode.OK
    return error_from_status(code, await call.details(), await call.trailing_metadata(), address="test")


async def upload(channel: grpc.aio.Channel, data: bytes, **metadata: Any) -> pb.Status:
    """Upload with the generated classes alone, in chunks of 1,000 bytes."""
    call = uploads_of(channel).Upload()
    await call.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a", **metadata))))
    opened = (await answer_of(call)).opened
    assert len(opened.token) > 10
    previous = b""
    for offset in range(0, len(data), 1000):
        piece = data[offset : offset + 1000]
        chunk = pb.Chunk(offset=offset, hash=chunk_hash(piece), previous=previous, data=piece)
        await call.write(pb.UploadRequest(chunk=chunk))
        previous = chunk.hash
    await call.write(pb.UploadRequest(finish=pb.Finish(size=len(data), head=head_of(data))))
    await call.done_writing()
    messages = await rest_of(call)
    assert {kind for message in messages[:-1] for kind in kinds_of(message)} <= {"checkpoint", "window"}
    assert kinds_of(messages[-1]) == ["finished"]
    return messages[-1].finished.status


async def test_generated_classes_are_enough_to_upload_and_read(channel: grpc.aio.Channel) -> None:
    data = bytes(range(256)) * 20
    status = await upload(channel, data, lines=True, labels={"a": "b"})
    assert (status.state, status.size, status.head) == (pb.RESOURCE_STATE_COMPLETED, len(data), head_of(data))
    assert status.reference == status.alternatives[0] == f"grpc://{status.reference.split('/')[2]}/r/{status.id}"
    resources = resources_of(channel)
    call = resources.Read()
    await call.write(pb.ReadRequest(open=pb.OpenRead(id=status.id, start=10, end=5000, window=1)))
    started = (await answer_of(call)).started
    assert (started.offset, started.end, started.HasField("line")) == (10, 5000, False)
    received, previous = b"", b""
    while kinds_of(message := await answer_of(call)) == ["chunk"]:
        chunk = message.chunk
        assert (chunk.offset, chunk.previous, chunk.hash) == (10 + len(received), previous, chunk_hash(chunk.data))
        received += chunk.data
        previous = chunk.hash
        # Behind its last byte the server hangs up, and grpc.aio does not forgive a write that comes too late.
        if 10 + len(received) < 5000:
            await call.write(pb.ReadRequest(window=pb.Window(until=10 + len(received) + 1)))
    assert received == data[10:5000]
    assert kinds_of(message) == ["end"]
    assert (message.end.offset, message.end.previous) == (5000, previous)
    assert len(previous) == HASH_SIZE
    assert await rest_of(call) == []
    watched = [status.state async for status in resources.Watch(pb.WatchRequest(id=status.id))]
    assert watched == [pb.RESOURCE_STATE_COMPLETED]
    assert (await resources.Heads(pb.HeadsRequest(id=status.id, sizes=[0, 7]))).heads[1] == head_of(data[:7])
    located = await resources.Locate(pb.LocateRequest(id=status.id, offset=300))
    assert (located.line, located.offset) == (2, 267)
    page = await resources.List(pb.ListRequest(labels={"a": "b"}, limit=10))
    assert [entry.id for entry in page.statuses] == [status.id]
    assert not page.HasField("next_page_token")
    await resources.Delete(pb.DeleteRequest(id=status.id))
    gone = resources.GetStatus(pb.GetStatusRequest(id=status.id))
    with pytest.raises(grpc.aio.AioRpcError, match="no resource"):
        await gone
    assert await gone.code() is grpc.StatusCode.NOT_FOUND
    assert (await error_of(gone)).details() == {"id": status.id}


async def test_a_reader_without_a_window_gets_everything_even_when_it_stops_sending(channel: grpc.aio.Channel) -> None:
    data = b"line\n" * 20_000
    status = await upload(channel, data, lines=True)
    call = resources_of(channel).ReadLines()
    await call.write(pb.ReadLinesRequest(open=pb.OpenReadLines(id=status.id, first=1)))
    await call.done_writing()
    messages = await rest_of(call)
    assert messages[0].started.line == 1
    assert b"".join(message.chunk.data for message in messages[1:-1]) == data[5:]
    assert kinds_of(messages[-1]) == ["end"]


async def read(channel: grpc.aio.Channel, opening: pb.OpenRead) -> list[pb.DownloadResponse]:
    """Read without a window."""
    call = resources_of(channel).Read()
    await call.write(pb.ReadRequest(open=opening))
    await call.done_writing()
    return await rest_of(call)


async def test_a_small_answer_is_one_message(channel: grpc.aio.Channel) -> None:
    data = random.Random(1).randbytes(64 * KIBIBYTE + 1)
    status = await upload(channel, data)
    # The largest, ones with a window that holds them and below what the server has in memory, and the smallest.
    for start, end, window in ((0, len(data) - 1, 0), (10, 510, 500), (1, 2, 1)):
        (message,) = await read(channel, pb.OpenRead(id=status.id, start=start, end=end, window=window))
        assert kinds_of(message) == ["started", "end", "chunk"]
        assert (message.started.offset, message.started.end) == (start, end)
        chunk = message.chunk
        assert (chunk.offset, chunk.data, chunk.previous) == (start, data[start:end], b"")
        assert chunk.hash == message.end.previous == chunk_hash(chunk.data)
        assert message.end.offset == end
        assert message.end.status.state == message.started.status.state == pb.RESOURCE_STATE_COMPLETED


async def test_an_empty_answer_is_one_message_without_a_chunk(channel: grpc.aio.Channel) -> None:
    status = await upload(channel, b"data")
    (message,) = await read(channel, pb.OpenRead(id=status.id, start=3, end=3))
    assert kinds_of(message) == ["started", "end"]
    assert (message.started.offset, message.end.offset, message.end.previous) == (3, 3, b"")


async def test_the_end_of_a_larger_answer_comes_by_itself(channel: grpc.aio.Channel) -> None:
    data = bytes(64 * KIBIBYTE + 1)
    status = await upload(channel, data)
    first, *chunks, last = await read(channel, pb.OpenRead(id=status.id))
    assert kinds_of(first) == ["started"]
    assert [kinds_of(message) for message in chunks] == [["chunk"]] * len(chunks)
    assert b"".join(message.chunk.data for message in chunks) == data
    assert kinds_of(last) == ["end"]


async def test_a_small_answer_above_the_window_comes_as_it_is_granted(channel: grpc.aio.Channel) -> None:
    status = await upload(channel, b"data" * 1000)
    call = resources_of(channel).Read()
    await call.write(pb.ReadRequest(open=pb.OpenRead(id=status.id, window=1, chunk_size=1)))
    answer = await answer_of(call)
    assert kinds_of(answer) == ["started"]
    answer = await answer_of(call)
    assert kinds_of(answer) == ["chunk"]
    await call.write(pb.ReadRequest(window=pb.Window(until=4000)))
    received = [kinds_of(message) for message in await rest_of(call)]
    assert received == [["chunk"]] * (len(received) - 1) + [["end"]]


@pytest.mark.parametrize("size", [1, 300])
async def test_a_small_answer_that_storage_gives_in_pieces_comes_in_them(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real = LiveReader.try_read

    def try_read(self: LiveReader, start: int, end: int) -> Piece | None:
        return real(self, start, min(end, start + size))

    monkeypatch.setattr(LiveReader, "try_read", try_read)
    data = random.Random(2).randbytes(2 * size + 1)
    status = await upload(channel, data)
    messages = await read(channel, pb.OpenRead(id=status.id))
    assert [kinds_of(message) for message in messages] == [["started"], ["chunk"], ["chunk"], ["chunk"], ["end"]]
    assert b"".join(message.chunk.data for message in messages) == data
    assert messages[-1].end.previous == messages[-2].chunk.hash


async def test_an_error_in_front_of_a_small_answer_is_the_calls(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: LiveReader, _start: int, _end: int) -> Piece | None:
        raise StorageFailure("the disk is gone")

    status = await upload(channel, b"data")
    monkeypatch.setattr(LiveReader, "try_read", fail)
    call = resources_of(channel).Read()
    await call.write(pb.ReadRequest(open=pb.OpenRead(id=status.id)))
    with pytest.raises(grpc.aio.AioRpcError, match="the disk is gone"):
        await call.read()
    assert isinstance(await error_of(call), StorageFailure)


@pytest.mark.parametrize(
    ("path", "message", "expected"),
    [
        ("/tailrace.v1.Uploads/Upload", b"\xff\xff", ProtocolError),
        ("/tailrace.v1.Uploads/Upload", b"", Unsupported),
        ("/tailrace.v1.Uploads/Upload", b"\xa2\x06\x01x", Unsupported),
        ("/tailrace.v1.Uploads/Upload", bytes(MAX_DATA_MESSAGE + 1), ProtocolError),
        ("/tailrace.v1.Uploads/Upload", b"\x1a" + bytes(MAX_DATA_MESSAGE), MessageTooLarge),
        ("/tailrace.v1.Uploads/Upload", pb.UploadRequest(abort=pb.Abort()).SerializeToString(), ProtocolError),
        ("/tailrace.v1.Resources/Read", pb.ReadRequest(window=pb.Window()).SerializeToString(), ProtocolError),
        ("/tailrace.v1.Resources/Read", b"\xa2\x06\x01x", Unsupported),
        ("/tailrace.v1.Resources/Follow", b"\x0a\x80", ProtocolError),
        ("/tailrace.v1.Resources/ReadLines", b"", Unsupported),
        ("/tailrace.v1.Resources/Read", pb.ReadRequest(open=pb.OpenRead(id="0" * 32)).SerializeToString(), NotFound),
    ],
)
async def test_bad_first_messages_end_their_call_alone(
    channel: grpc.aio.Channel, path: str, message: bytes, expected: type[TailraceError]
) -> None:
    other = uploads_of(channel).Upload()
    await other.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="other"))))
    opened = (await answer_of(other)).opened
    call = raw(channel, path)
    await call.write(message)
    error = await error_of(call)
    assert isinstance(error, expected)
    await other.write(pb.UploadRequest(finish=pb.Finish(size=0, head=opened.head)))
    assert [kinds_of(message) for message in await rest_of(other)] == [["finished"]]


async def test_a_call_without_a_request_is_refused(channel: grpc.aio.Channel) -> None:
    call = raw(channel, "/tailrace.v1.Resources/Read")
    await call.done_writing()
    assert "called without a request" in str(await error_of(call))


async def raw_upload_and_follower(channel: grpc.aio.Channel, *, window: int) -> tuple[Bidirectional, Bidirectional]:
    """Open an upload and follow it; return both calls, each behind its first answer."""
    uploading = raw(channel, "/tailrace.v1.Uploads/Upload")
    opening = pb.OpenUpload(metadata=pb.Metadata(name="a"))
    await uploading.write(pb.UploadRequest(open=opening).SerializeToString())
    opened = pb.UploadResponse.FromString(await answer_of(uploading)).opened
    following = raw(channel, "/tailrace.v1.Resources/Follow")
    follow = pb.OpenFollow(id=opened.status.id, window=window)
    await following.write(pb.FollowRequest(open=follow).SerializeToString())
    await answer_of(following)
    return uploading, following


async def test_bad_messages_in_the_middle_end_their_call_alone(channel: grpc.aio.Channel) -> None:
    uploading, following = await raw_upload_and_follower(channel, window=1)
    await following.write(b"\xff")
    assert isinstance(await error_of(following), ProtocolError)
    await uploading.write(b"\xff")
    assert isinstance(await error_of(uploading), ProtocolError)


async def test_a_follower_is_listened_to_when_what_it_has_granted_runs_short(channel: grpc.aio.Channel) -> None:
    uploading, following = await raw_upload_and_follower(channel, window=1 << 20)
    await following.write(b"\xff")
    offset, previous = 0, b""
    # The third one leaves less than half of the window.
    for data in (bytes(250_000), bytes(250_000), bytes(250_000)):
        chunk = pb.Chunk(offset=offset, hash=chunk_hash(data), previous=previous, data=data)
        await uploading.write(pb.UploadRequest(chunk=chunk).SerializeToString())
        offset, previous = offset + len(data), chunk.hash
        arrived = 0
        while arrived < len(data):
            arrived += len(pb.DownloadResponse.FromString(await answer_of(following)).chunk.data)
    assert isinstance(await error_of(following), ProtocolError)
    uploading.cancel()


async def test_a_message_above_grpcs_own_limit_ends_its_call_alone(channel: grpc.aio.Channel) -> None:
    call = raw(channel, "/tailrace.v1.Uploads/Upload")
    status = CallStatus(call)
    # The answer may come before the message is out.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(bytes(9 * 1024 * 1024))
    assert (await status.known()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await upload(channel, b"x")).size == 1


async def test_errors_tell_what_holds_now(channel: grpc.aio.Channel) -> None:
    status = await upload(channel, b"data")
    call = raw(channel, "/tailrace.v1.Resources/Read")
    await call.write(pb.ReadRequest(open=pb.OpenRead(id=status.id, start=3, end=9)).SerializeToString())
    error = await error_of(call)
    assert isinstance(error, RangeNotSatisfiable)
    assert error.size == 4
    assert await call.code() is grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("leave", ["cancel", "half-close"])
async def test_an_upload_that_is_left_can_be_reopened(channel: grpc.aio.Channel, leave: str) -> None:
    uploads = uploads_of(channel)
    call = uploads.Upload()
    await call.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"))))
    opened = (await answer_of(call)).opened
    chunk = pb.Chunk(hash=chunk_hash(b"data"), data=b"data")
    await call.write(pb.UploadRequest(chunk=chunk))
    while (await answer_of(call)).checkpoint.size < 4:
        pass
    if leave == "cancel":
        call.cancel()
    else:
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="left the upload open"):
            await rest_of(call)
    again = uploads.Upload()
    await again.write(pb.UploadRequest(reopen=pb.ReopenUpload(id=opened.status.id, token=opened.token)))
    reopened = (await answer_of(again)).opened
    assert reopened.offset == 4
    assert reopened.epoch > opened.epoch
    assert reopened.status.state == pb.RESOURCE_STATE_IN_PROGRESS
    again.cancel()


async def test_a_bad_chunk_is_refused_at_that_chunk(channel: grpc.aio.Channel) -> None:
    call = uploads_of(channel).Upload()
    await call.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"))))
    await call.read()
    await call.write(pb.UploadRequest(chunk=pb.Chunk(offset=0, hash=b"wrong567", data=b"data")))
    error = await error_of(call)
    assert error.code == "integrity"
    assert await call.code() is grpc.StatusCode.DATA_LOSS


async def test_health_and_reflection_are_served(channel: grpc.aio.Channel) -> None:
    health = health_of(channel)
    for service in ("", "tailrace.v1.Uploads", "tailrace.v1.Resources", "tailrace.v1.Records"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    asking = reflection_of(channel).ServerReflectionInfo()
    await asking.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await asking.read()).list_services_response.service
    known = {"tailrace.v1.Uploads", "tailrace.v1.Resources", "tailrace.v1.Records"}
    assert known < {service.name for service in listed}
    await asking.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="tailrace.v1.Chunk"))
    assert (await asking.read()).file_descriptor_response.file_descriptor_proto
    await asking.done_writing()
    assert await asking.read() is grpc.aio.EOF


async def test_closing_tells_everyone(server: GrpcServer, channel: grpc.aio.Channel, manager: ResourceManager) -> None:
    health = health_of(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
    uploading = uploads_of(channel).Upload()
    await uploading.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"))))
    opened = (await answer_of(uploading)).opened
    following = resources_of(channel).Follow()
    await following.write(pb.FollowRequest(open=pb.OpenFollow(id=opened.status.id)))
    await following.read()
    watching = resources_of(channel).Watch(pb.WatchRequest(id=opened.status.id))
    await watching.read()
    asking = reflection_of(channel).ServerReflectionInfo()
    await asking.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await asking.read()
    closing = asyncio.ensure_future(server.close(30.0))
    for call in (uploading, following, watching, asking):
        error = await error_of(call)
        assert isinstance(error, GoingAway)
        assert error.retry_after > 0
    statuses = [message.status async for message in _until_error(health)]
    assert statuses[-1] == health_pb2.HealthCheckResponse.NOT_SERVING
    # Nothing is left that would use up the grace.
    await asyncio.wait_for(closing, 10.0)
    await server.close(30.0)
    snapshot = (await manager.reopen(opened.status.id, opened.token)).snapshot
    assert snapshot.state is ResourceState.INITIATED


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_small_answer_that_is_not_taken_holds_nobody_up(
    server: GrpcServer, channel: grpc.aio.Channel, address: str, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    answered = asyncio.Event()
    real = GrpcDownloadStream.send_last

    async def send_last(self: GrpcDownloadStream, *messages: ServerMessage) -> None:
        await real(self, *messages)
        answered.set()

    data = random.Random(3).randbytes(64 * KIBIBYTE)
    status = await upload(channel, data)
    monkeypatch.setattr(GrpcDownloadStream, "send_last", send_last)
    # It takes less unread than the answer is.
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as narrow:
        call = resources_of(narrow).Read()
        await call.write(pb.ReadRequest(open=pb.OpenRead(id=status.id)))
        await asyncio.wait_for(answered.wait(), 10.0)
        assert not server._running
        if leaves:
            call.cancel()
        # Others are answered, and closing, which cuts what is left behind a moment, does not use up the grace.
        (message,) = await read(channel, pb.OpenRead(id=status.id))
        assert message.chunk.data == data
        await asyncio.wait_for(server.close(30.0), 15.0)


async def test_a_small_answer_that_is_not_taken_counts_among_the_calls_of_its_connection(
    server: GrpcServer, channel: grpc.aio.Channel, address: str
) -> None:
    status = await upload(channel, random.Random(3).randbytes(64 * KIBIBYTE))
    assert server._peers is not None
    server._peers._max_requests = 3
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as narrow:
        calls = []
        for _ in range(3):
            call = resources_of(narrow).Read()
            await call.write(pb.ReadRequest(open=pb.OpenRead(id=status.id)))
            calls.append(call)
        # All are answered, as far as their handlers go.
        async with asyncio.timeout(10.0):
            while server._running or server._peers._calls.total() < 3:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        assert isinstance(await error_of(resources_of(narrow).Read()), Overloaded)
        for call in calls:
            call.cancel()
        async with asyncio.timeout(10.0):
            while server._peers._calls:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)


async def test_closing_while_a_call_is_answered_for_the_first_time_is_told(
    server: GrpcServer, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing: list[asyncio.Future[None]] = []
    real = GrpcServerStream.send

    async def send(self: GrpcServerStream, message: ServerMessage) -> None:
        # It begins while the message is on its way, at the next turn of the loop.
        if not closing:
            closing.append(asyncio.ensure_future(server.close(30.0)))
        await real(self, message)

    monkeypatch.setattr(GrpcServerStream, "send", send)
    uploading = uploads_of(channel).Upload()
    await uploading.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"))))
    answer = await answer_of(uploading)
    assert kinds_of(answer) == ["opened"]
    assert isinstance(await error_of(uploading), GoingAway)
    await asyncio.wait_for(closing[0], 10.0)


async def test_who_comes_while_the_server_drains_is_told_to_come_back(
    server: GrpcServer, channel: grpc.aio.Channel, manager: ResourceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def wait(*_: object, **__: object) -> Page:
        asked.set()
        await answer.wait()
        return Page((), None)

    monkeypatch.setattr(manager, "list", wait)
    running = asyncio.ensure_future(resources_of(channel).List(pb.ListRequest(limit=1)))
    await asked.wait()
    closing, again = [asyncio.ensure_future(server.close(grace)) for grace in (30.0, 0.0)]
    await asyncio.sleep(0)
    # Over a new connection, too.
    async with grpc.aio.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as other:
        for known in (channel, other):
            error = await error_of(resources_of(known).GetStatus(pb.GetStatusRequest(id="0" * 32)))
            assert isinstance(error, GoingAway)
            assert error.retry_after > 0
            health = await health_of(known).Check(health_pb2.HealthCheckRequest(service=""))
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
            watching = health_of(known).Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watching.code() is grpc.StatusCode.UNAVAILABLE
    # Whoever closes it has it closed behind that, and the grace is that of the first.
    assert not again.done()
    answer.set()
    # What ran before gets its answer.
    assert not (await running).statuses
    await closing
    await again
    _, refused = await asyncio.to_thread(manager.telemetry.exposition)
    assert b'tailrace_refused_total{code="going_away",transport="grpc"} 2.0' in refused


async def test_health_follows_the_readiness_of_the_manager(
    channel: grpc.aio.Channel, manager: ResourceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_health, "_LOOK_AGAIN", 0.01)
    health = health_of(channel)
    watching = health.Watch(health_pb2.HealthCheckRequest(service="tailrace.v1.Uploads"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    with monkeypatch.context() as unready:
        unready.setattr(type(manager), "ready", False)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="unheard.of"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    stranger = health.Watch(health_pb2.HealthCheckRequest(service="unheard.of"))
    assert (await stranger.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    stranger.cancel()


async def test_a_call_without_a_request_is_ended(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "_REQUEST_TIMEOUT", 0.01)
    for call in (uploads_of(channel).Upload(), resources_of(channel).Read(), resources_of(channel).Follow()):
        error = await error_of(call)
        assert isinstance(error, DeadlineExceeded)
        assert (error.what, error.seconds) == ("the request", 0.01)
    # Behind its request an upload may be silent for as long as it likes.
    monkeypatch.setattr(_server, "_REQUEST_TIMEOUT", 1.0)
    uploading = uploads_of(channel).Upload()
    await uploading.write(pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"))))
    opened = (await answer_of(uploading)).opened
    silent = asyncio.ensure_future(uploading.read())
    await error_of(resources_of(channel).Read())
    await uploading.write(pb.UploadRequest(abort=pb.Abort(reason="enough")))
    message: Any = await silent
    assert message.finished.status.id == opened.status.id


async def test_who_watches_the_health_is_bounded(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_health, "_MOST_WATCHING", 1)
    health = health_of(channel)
    watching = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Watch(health_pb2.HealthCheckRequest(service="")).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Asking once is always possible.
    answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()


async def _until_error(
    call: grpc.aio.UnaryStreamCall[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
) -> AsyncIterator[health_pb2.HealthCheckResponse]:
    while not call.done():
        try:
            message: object = await call.read()
        except grpc.aio.AioRpcError:
            return
        if isinstance(message, health_pb2.HealthCheckResponse):
            yield message


async def test_a_closed_server_refuses_connections(server: GrpcServer, address: str) -> None:
    await server.close(1.0)
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await resources_of(channel).List(pb.ListRequest(limit=1))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_never_started_can_be_closed() -> None:
    await GrpcServer().close(1.0)


async def test_a_port_in_use_is_a_configuration_error(server: GrpcServer, address: str) -> None:
    second = GrpcServer()
    settings = TransportServerSettings(port=int(address.rpartition(":")[2]))
    manager = server._manager
    assert manager is not None
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        await second.start(manager, settings)
    await second.close(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        TransportServerSettings(options={"what": "1"}),
        TransportServerSettings(options={"compression": "maybe"}),
        TransportServerSettings(public_base="ws://example.org"),
        TransportServerSettings(public_base="grpc://example.org/prefix"),
        TransportServerSettings(public_base="example.org"),
        TransportServerSettings(host="no such host.invalid"),
    ],
)
async def test_impossible_settings_are_configuration_errors(
    manager: ResourceManager, settings: TransportServerSettings
) -> None:
    with pytest.raises(ConfigurationError):
        await GrpcServer().start(manager, settings)


async def test_references_are_made_under_the_public_base(manager: ResourceManager) -> None:
    server = GrpcServer()
    settings = TransportServerSettings(
        host="localhost", public_base="grpcs://example.org:443/", options={"compression": "on"}
    )
    await server.start(manager, settings)
    try:
        assert server.urls["grpc"].startswith("grpc://localhost:")
        async with grpc.aio.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as channel:
            status = await upload(channel, b"x" * 5000)
        assert status.reference == f"grpcs://example.org:443/r/{status.id}"
        assert list(status.alternatives) == [status.reference]
    finally:
        await server.close(1.0)


@pytest.mark.parametrize("ends", [True, False])
async def test_a_call_that_does_not_end_does_not_keep_the_server(
    server: GrpcServer,
    channel: grpc.aio.Channel,
    manager: ResourceManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ends: bool,
) -> None:
    """Work that swallows the cancellation of its call: it is cancelled again, named, and left behind at last."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def authenticate(_credentials: object) -> ResourceService:
        begun.set()
        while not release.is_set() and not (ends and "did not end" in caplog.text):
            with suppress(asyncio.CancelledError):
                await release.wait()
        raise GoingAway(retry_after=1.0)

    real = GrpcServer._end_leftovers

    async def end_leftovers(server: GrpcServer) -> None:
        # How soon a call ends that does is gRPC's affair, too.
        monkeypatch.setattr(_server, "_LAST_CHANCE", 20.0 if ends else 0.1)
        await real(server)

    monkeypatch.setattr(manager, "authenticate", authenticate)
    monkeypatch.setattr(_server, "_LAST_CHANCE", 0.1)
    monkeypatch.setattr(GrpcServer, "_end_leftovers", end_leftovers)
    call = uploads_of(channel).Upload()
    await begun.wait()
    await asyncio.wait_for(server.close(0.01), 40.0)
    assert "calls did not end within the grace: Upload (" in caplog.text
    assert ("calls do not end, and are left behind: Upload (" in caplog.text) is not ends
    release.set()
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
