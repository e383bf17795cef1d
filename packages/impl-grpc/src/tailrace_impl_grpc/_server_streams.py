"""A conversation, on the server's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio

from tailrace_common_api import MEBIBYTE, ConnectionLost
from tailrace_impl_common import EncodedOnce, MessageStream, cancel_and_wait
from tailrace_impl_common.messages import Abort, Chunk, ClientMessage, Finish, ServerMessage, Watched
from tailrace_impl_grpc._codec import BULK, DOWNLOADS, FOLLOW, MAX_CONTROL_MESSAGE, UPLOAD, Method, encode_chunk
from tailrace_impl_grpc._codec_values import join_responses
from tailrace_impl_grpc._http2_call import Http2Call
from tailrace_impl_grpc._http2_peer import JOINED
from tailrace_impl_grpc._http2_stream import Parts

Context = grpc.aio.ServicerContext[bytes, bytes | Parts]
SharedMessage = EncodedOnce[bytes | Parts]


def shared_message(*, whole: bool) -> SharedMessage:
    """Return what encodes the chunks to readers: those who are sent the same chunk are sent the same bytes.

    Args:
        whole: Whether to join what is sent, for gRPC's library; each byte of a chunk is copied once more for that.
    """
    # All methods that send chunks have the same messages.
    return EncodedOnce(FOLLOW.encode_response if whole else _in_pieces, largest=MEBIBYTE)


def _in_pieces(chunk: Chunk) -> bytes | Parts:
    fields, data = encode_chunk(chunk)
    # What is small is joined for each reader anyway, with what is before it.
    return fields + data if len(data) <= JOINED else (fields, data)


def server_stream(method: Method, context: Context, shared: SharedMessage) -> GrpcServerStream:
    """Return the conversation over a call of ``method``; see :class:`GrpcServerStream`."""
    if method in DOWNLOADS:
        return GrpcDownloadStream(method, context, shared)
    return (GrpcUploadStream if method is UPLOAD else GrpcServerStream)(method, context, shared)


async def write_first(context: grpc.aio.ServicerContext[Any, Any], message: object) -> None:
    """Write the first message of a call to its end, also when cancelled, unless that happens a second time.

    The call's headers go with it. The library takes them for sent only when this write has returned: a status after
    one that was cut off would come with headers again, which gRPC refuses, and the client would never hear why the
    call ends.
    """
    writing = asyncio.ensure_future(context.write(message))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait((writing,))
        raise
    finally:
        await cancel_and_wait(writing)


class GrpcServerStream(MessageStream[ServerMessage, ClientMessage]):
    """A conversation over one call."""

    last: bytes = b""
    """What the call's handler is to return, which gRPC sends with the status: the last message of ``DOWNLOADS``."""

    def __init__(self, method: Method, context: Context, shared: SharedMessage) -> None:
        """Converse over a call.

        Args:
            method: Its method.
            context: Of gRPC.
            shared: What encodes the chunks to all readers of the server.
        """
        self._context = context
        # What this package takes calls with itself can do more.
        self._call = context if isinstance(context, Http2Call) else None
        self._shared = shared
        self._encode = method.encode_response
        self._decode = method.decode_request
        self._open_ended = method is UPLOAD
        self._takes_bytes = method is UPLOAD or method is BULK
        self._answered = False
        self.abandoned = False
        """Whether the client has stopped sending without saying that its upload is over."""

    async def send(self, message: ServerMessage) -> None:
        if type(message) is Watched:
            # The status of the call says it.
            return
        data = self._shared.of(message) if type(message) is Chunk else self._encode(message)
        del message
        await self._write(data)

    async def _write(self, data: bytes | Parts) -> None:
        try:
            if self._answered:
                await self._context.write(data)
            else:
                await self._answer(data)
        except grpc.aio.BaseError:
            raise ConnectionLost("the client is gone") from None

    async def _answer(self, data: bytes | Parts) -> None:
        await write_first(self._context, data)
        self._answered = True
        if self._takes_bytes and self._call is not None:
            # The client was let in, and what it was granted follows.
            self._call.expect_large()

    @property
    def writer(self) -> Callable[[ServerMessage], None] | None:
        if self._call is None or not self._answered or not self._call.writable:
            return None
        return self._write_now

    def _write_now(self, message: ServerMessage) -> None:
        assert self._call is not None
        self._call.write_now(self._shared.of(message) if type(message) is Chunk else self._encode(message))

    @property
    def keeps_unread(self) -> bool:
        # HTTP/2 has a window for each call, and the library cancels the task of one whose client is gone.
        return True

    async def receive(self) -> ClientMessage | None:
        try:
            data: Any = await self._context.read()
        except grpc.aio.BaseError:
            raise ConnectionLost("the client is gone") from None
        if data is grpc.aio.EOF:
            self.abandoned = self._open_ended
            return None
        message = self._decode(data)
        if isinstance(message, (Finish, Abort)):
            self._open_ended = False
        return message


class GrpcDownloadStream(GrpcServerStream):
    """A conversation whose last message goes together with the status of the call.

    gRPC's core then has one thing to do and not several. Whether the client is still there to get it is its business.
    """

    async def send_last(self, *messages: ServerMessage) -> None:
        # A chunk here is for nobody else: what is kept of the last one for followers stays.
        responses = [self._encode(message) for message in messages]
        if sum(map(len, responses)) > MAX_CONTROL_MESSAGE:
            # Some status is near the limit by itself.
            for message in messages[:-1]:
                await self.send(message)
            del responses[:-1]
        self.last = join_responses(responses)


class GrpcUploadStream(GrpcServerStream):
    """A conversation with an uploader, which is told what is announced and what it may send by one message."""

    async def send_together(self, *messages: ServerMessage) -> None:
        await self._write(join_responses(map(self._encode, messages)))
