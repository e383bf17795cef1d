"""Connections within the process whose every message passes through the codec of a transport, there and back."""

from __future__ import annotations

import enum
from collections.abc import Callable

from tailrace_impl_common import ClientStream, InProcessConnection
from tailrace_impl_common.messages import Chunk, ClientMessage, Request, ServerMessage, Watched
from tailrace_impl_common.record_messages import Deliveries, RecordBatch
from tailrace_impl_grpc._codec import method_of
from tailrace_impl_websocket._binary_frame import BinaryMessage, frame_of, parse_frame
from tailrace_impl_websocket._codec import (
    Authenticate,
    Cancel,
    Failure,
    Hello,
    Ping,
    Pong,
    decode_from_client,
    decode_from_server,
    encode_from_client,
    encode_from_server,
)
from tailrace_server_api import ResourceManager

_NUMBER = 1


class Codec(enum.Enum):
    """Whose encoding a message passes through."""

    GRPC = "grpc"
    WEBSOCKET = "websocket"


class CodecConnection(InProcessConnection):
    """Talks to a manager in the same loop, in the bytes of a transport."""

    def __init__(self, manager: ResourceManager, codec: Codec) -> None:
        """Connect to ``manager``."""
        super().__init__(manager)
        self._codec = codec

    async def open(self, request: Request) -> ClientStream:
        to_server, to_client = _recoders(self._codec, request)
        first = to_server(request)
        assert isinstance(first, Request)
        return _RecodedStream(await super().open(first), to_server, to_client)


class _RecodedStream(ClientStream):
    def __init__(
        self,
        inner: ClientStream,
        to_server: Callable[[ClientMessage], ClientMessage],
        to_client: Callable[[ServerMessage], ServerMessage],
    ) -> None:
        self._inner = inner
        self._to_server = to_server
        self._to_client = to_client

    async def send(self, message: ClientMessage) -> None:
        await self._inner.send(self._to_server(message))

    async def receive(self) -> ServerMessage | None:
        message = await self._inner.receive()
        return None if message is None else self._to_client(message)

    async def close(self) -> None:
        await self._inner.close()


def _recoders(
    codec: Codec, request: Request
) -> tuple[Callable[[ClientMessage], ClientMessage], Callable[[ServerMessage], ServerMessage]]:
    if codec is Codec.WEBSOCKET:
        return _websocket_to_server, _websocket_to_client
    method = method_of(request)

    def to_server(message: ClientMessage) -> ClientMessage:
        return method.decode_request(method.encode_request(message))

    def to_client(message: ServerMessage) -> ServerMessage:
        if isinstance(message, Watched):
            # The status of a call says it.
            return message
        decoded = method.decode_response(method.encode_response(message))
        assert not isinstance(decoded, list)
        return decoded

    return to_server, to_client


def _websocket_to_server(message: ClientMessage) -> ClientMessage:
    if isinstance(message, Chunk | RecordBatch):
        sent = _framed(message)
        assert not isinstance(sent, Deliveries)
        return sent
    decoded = decode_from_client(encode_from_client(_NUMBER, message)).message
    assert not isinstance(decoded, Authenticate | Cancel | Ping)
    return decoded


def _framed(message: BinaryMessage) -> BinaryMessage:
    return parse_frame(frame_of(_NUMBER, message))


def _websocket_to_client(message: ServerMessage) -> ServerMessage:
    if isinstance(message, Chunk | RecordBatch | Deliveries):
        return _framed(message)
    decoded = decode_from_server(encode_from_server(_NUMBER, message)).message
    assert not isinstance(decoded, Hello | Pong | Failure)
    return decoded
