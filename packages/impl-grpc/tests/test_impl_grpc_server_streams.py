"""The server's side of one conversation, without gRPC around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tailrace_common_api import Checkpoint, Limits, Metadata, ResourceState, Status, Visibility
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_common.messages import Chunk, End, ServerMessage, Started, Window
from tailrace_impl_grpc._codec import MAX_CONTROL_MESSAGE, READ, UPLOAD
from tailrace_impl_grpc._server_streams import GrpcDownloadStream, GrpcUploadStream, shared_message
from tailrace_server_api import ResourceManager

DATA = b"data"
STATUS = Status(
    reference="grpc://h/r/a",
    id="a",
    version=1,
    state=ResourceState.FAILED,
    size=4,
    lines=None,
    head=head_of(DATA),
    reason="",
    alternatives=(),
    metadata=Metadata(name="a"),
    visibility=Visibility.LIVE,
    created_at=0.0,
)
CHUNK = Chunk(0, DATA, chunk_hash(DATA), b"")


class Written:
    """Stands for the context of a call."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def write(self, message: Any) -> None:
        self.messages.append(message)


def answer(status: Status, limits: Limits) -> tuple[ServerMessage, ...]:
    return (
        Started(offset=0, end=4, line=None, status=status, limits=limits),
        CHUNK,
        End(offset=4, previous=CHUNK.hash, status=status),
    )


async def test_the_last_messages_are_left_to_the_handler(manager: ResourceManager) -> None:
    context: Any = Written()
    stream = GrpcDownloadStream(READ, context, shared_message(whole=True))
    messages = answer(STATUS, manager.limits)
    await stream.send_last(*messages)
    assert context.messages == []
    assert READ.decode_response(stream.last) == list(messages)


async def test_what_would_be_too_large_together_goes_by_itself(manager: ResourceManager) -> None:
    context: Any = Written()
    stream = GrpcDownloadStream(READ, context, shared_message(whole=True))
    messages = answer(replace(STATUS, reason="x" * (MAX_CONTROL_MESSAGE // 2)), manager.limits)
    await stream.send_last(*messages)
    assert [READ.decode_response(data) for data in (*context.messages, stream.last)] == list(messages)


async def test_what_an_uploader_is_told_at_once_is_one_message() -> None:
    context: Any = Written()
    stream = GrpcUploadStream(UPLOAD, context, shared_message(whole=True))
    checkpoint, window = Checkpoint(4, 0, head_of(DATA)), Window(8)
    await stream.send_together(checkpoint, window)
    await stream.send_together(window)
    assert [UPLOAD.decode_response(data) for data in context.messages] == [[checkpoint, window], window]


async def sent_to_two(chunk: Chunk, *, whole: bool) -> Any:
    """Return what two readers get of a chunk, which is one and the same."""
    first, second = Written(), Written()
    shared = shared_message(whole=whole)
    for context in (first, second):
        written: Any = context
        await GrpcDownloadStream(READ, written, shared).send(chunk)
    (message,) = first.messages
    assert second.messages[0] is message
    return message


async def test_what_readers_get_of_a_large_chunk_is_the_chunk_itself() -> None:
    data = bytes(100_000)
    chunk = Chunk(7, data, chunk_hash(data), b"")
    fields, sent = await sent_to_two(chunk, whole=False)
    assert sent is data
    assert fields + sent == READ.encode_response(chunk)
    assert await sent_to_two(chunk, whole=True) == READ.encode_response(chunk)


async def test_small_chunks_are_one_message() -> None:
    for whole in (False, True):
        assert await sent_to_two(CHUNK, whole=whole) == READ.encode_response(CHUNK)
